/** One training at a time in a folder: two that wrote there would delete each other's checkpoints and mix their metrics. */

import { randomInt } from "node:crypto";
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
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
  const own = JSON.stringify({ pid: process.pid, host: hostname() });
  try {
    makeFolder(folder);
    while (!place(path, own)) {
      checkUnlocked(folder);
      takeAway(folder);
    }
  } catch (error) {
    throw error instanceof ConfigError ? error : fileError("--output-dir", path, "write", error);
  }
  const key = resolve(folder);
  held.add(key);
  return () => {
    held.delete(key);
    // On another machine a run may have been taken up by now: that lock is not ours.
    quietly(() => readFileSync(path, "utf8") === own && rmSync(path, { force: true }));
  };
}

/** A name that no other process takes, of the kind that the next save clears where a kill leaves it. */
const besides = (path: string): string => `${path}.tmp-${process.pid}-${randomInt(2 ** 47)}`;

/** Puts a lock in place, content and all at once: a starter that looked in between would take an empty one for a left-over. @returns whether there was none */
function place(path: string, content: string): boolean {
  const temporary = besides(path);
  try {
    writeFileSync(temporary, content, { flag: "wx" });
    return made(() => {
      try {
        linkSync(temporary, path);
      } catch (error) {
        if (errorCode(error) === "EEXIST") throw error;
        // No hard links here, as on exFAT and some network folders, each of which says so otherwise: one starter alone can still create the file, if not at once with what is in it.
        writeFileSync(path, content, { flag: "wx" });
      }
    });
  } finally {
    quietly(() => rmSync(temporary, { force: true }));
  }
}

/** Whether a file could be made; false where there is one. */
function made(make: () => void): boolean {
  try {
    make();
    return true;
  } catch (error) {
    if (errorCode(error) === "EEXIST") return false;
    throw error;
  }
}

/**
 * Takes a left-over away by renaming it, which of several starters one alone can do. Since they looked, another may have put its own lock in place: what was
 * renamed is looked at again, and put back. (Only a third that came in that very moment would hold the folder too.)
 */
function takeAway(folder: string): void {
  const path = join(folder, LOCK_FILE);
  const away = besides(path);
  try {
    renameSync(path, away);
  } catch (error) {
    if (errorCode(error) === "ENOENT") return; // another was first
    throw error;
  }
  if (holderOf(away) !== undefined) place(path, readFileSync(away, "utf8"));
  rmSync(away, { force: true });
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
  return held.has(resolve(folder)) ? process.pid : holderOf(join(folder, LOCK_FILE));
}

/** The other process of this machine that a lock is of, if it lives. */
function holderOf(path: string): number | undefined {
  try {
    const { pid, host } = JSON.parse(readFileSync(path, "utf8")) as { pid?: unknown; host?: unknown };
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
