/** One training at a time in a folder: two that wrote there would delete each other's checkpoints and mix their metrics. */

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { ConfigError, expectation } from "../core/errors.js";
import { errorCode, fileError, makeFolder, quietly } from "./atomic.js";

const LOCK_FILE = ".lock";

/** Folders that this process holds: its number alone does not tell, as in a container every run may be process 1. */
const held = new Set<string>();

/**
 * Holds a run's folder, which is made where it is missing, until the function returned is called. What a killed run of this machine left does not
 * count, nor what another machine did: that its process lives cannot be seen from here, and a run that is taken up elsewhere must be able to go on.
 * @throws ConfigError where another run holds it, FileError where it cannot be written
 */
export function lockFolder(folder: string): () => void {
  const path = join(folder, LOCK_FILE);
  const lock = (): void => writeFileSync(path, JSON.stringify({ pid: process.pid, host: hostname() }), { flag: "wx" });
  try {
    makeFolder(folder);
    try {
      lock();
    } catch (error) {
      if (errorCode(error) !== "EEXIST") throw error;
      checkUnlocked(folder);
      rmSync(path);
      lock();
    }
  } catch (error) {
    throw error instanceof ConfigError ? error : fileError("--output-dir", path, "write", error);
  }
  const key = resolve(folder);
  held.add(key);
  return () => {
    held.delete(key);
    quietly(() => rmSync(path, { force: true }));
  };
}

/** @throws ConfigError where another run holds the folder */
export function checkUnlocked(folder: string): void {
  const pid = holder(folder);
  if (pid === undefined) return;
  const by = pid === process.pid ? "this process" : `process ${pid}`;
  throw new ConfigError(
    expectation(
      "--output-dir",
      "a folder in which nothing else is training",
      `${folder}, which ${by} holds`,
      `Wait for it, stop it, or give another --output-dir. If that is no training of yours, delete ${join(folder, LOCK_FILE)}.`,
    ),
  );
}

/** The process that trains in a folder, if one does. */
function holder(folder: string): number | undefined {
  if (held.has(resolve(folder))) return process.pid;
  try {
    const { pid, host } = JSON.parse(readFileSync(join(folder, LOCK_FILE), "utf8")) as { pid?: unknown; host?: unknown };
    return host === hostname() && Number.isSafeInteger(pid) && isOtherProcess(pid as number) ? (pid as number) : undefined;
  } catch {
    return undefined; // none there, or one half written by a machine that went down
  }
}

/** Whether a process of that number lives and is not this one. One that has ended, and is only not yet taken leave of by its parent, does not live. */
export function isOtherProcess(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0); // signal 0 only asks
  } catch (error) {
    return errorCode(error) === "EPERM";
  }
  return !isZombie(pid);
}

/** On Linux, where /proc says so; elsewhere a zombie counts as alive for the moment that it stays. */
function isZombie(pid: number): boolean {
  try {
    // After the name, which stands in brackets and may hold anything: the state.
    return /^[ZX]/.test(readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)!);
  } catch {
    return false;
  }
}
