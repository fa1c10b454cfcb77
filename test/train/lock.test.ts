/** One training at a time in a folder: who holds it is told, and what a killed run left is no hindrance. */

import { spawn } from "node:child_process";
import fs, { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { checkUnlocked, lockFolder } from "#sparsegate/train/lock.js";
import { train } from "#sparsegate/train/trainer.js";
import { run, sentences, traces, until } from "../cli/helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-lock-"));
const folder = join(root, "run");
const file = join(folder, ".lock");
afterAll(() => {
  defaultBackend().dispose();
  rmSync(root, { recursive: true });
});
beforeEach(() => rmSync(folder, { recursive: true, force: true }));

/** Puts another function in place of one of node:fs, for those that imported it by name too. @returns puts it back */
function replace(name: "linkSync" | "renameSync" | "rmSync", by: (...args: never[]) => void): () => void {
  const original = fs[name];
  const put = (value: unknown): void => {
    (fs as unknown as Record<string, unknown>)[name] = value;
    syncBuiltinESMExports();
  };
  put(by);
  return () => put(original);
}

/** A file's text, if it is there. */
function readOr(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

/** The lock of another process, alive or not. */
function leave(pid: number, host = hostname()): void {
  lockFolder(folder)(); // makes the folder
  writeFileSync(file, JSON.stringify({ pid, host }));
}

describe("lockFolder", () => {
  test("holds a folder until it is let go", () => {
    const unlock = lockFolder(folder);
    expect(JSON.parse(readFileSync(file, "utf8"))).toEqual({ pid: process.pid, host: hostname() });
    expect(() => lockFolder(folder)).toThrow(/--output-dir: expected a folder in which nothing else is training, got .*which this process holds/);
    unlock();
    expect(existsSync(file)).toBe(false);
    lockFolder(folder)();
  });

  test("names the process that holds it", async () => {
    const other = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"]);
    leave(other.pid!);
    expect(() => lockFolder(folder)).toThrow(`process ${other.pid} holds`);
    other.kill("SIGKILL");
    await new Promise((done) => other.once("exit", done));
    lockFolder(folder)(); // what it left does not count any more
  });

  test.skipIf(process.platform !== "linux")("passes over a process that has ended, and whose parent has not taken leave of it", async () => {
    // What sh becomes waits for no child, and the one it began stays a zombie; killed before, sh might still take leave of it.
    const parent = spawn("sh", ["-c", "sleep 60 & echo $!; exec sleep 60"]);
    const pid = Number(await new Promise((done) => parent.stdout.once("data", done)));
    await until(() => readFileSync(`/proc/${parent.pid}/comm`, "utf8") === "sleep\n", { child: parent });
    process.kill(pid, "SIGKILL");
    await until(() => readFileSync(`/proc/${pid}/stat`, "utf8").includes(") Z "), { child: parent });
    leave(pid);
    lockFolder(folder)();
    parent.kill();
  });

  test("is never seen without what is in it: a starter that looked then would take it for a left-over", async () => {
    mkdirSync(folder);
    const lock = JSON.stringify(new URL("../../dist/train/lock.js", import.meta.url).href);
    const script = `const { lockFolder } = await import(${lock}); for (;;) lockFolder(${JSON.stringify(folder)})();`;
    const other = spawn(process.execPath, ["--input-type=module", "-e", script]);
    await until(() => readOr(file) !== undefined, { child: other });
    const seen = new Set<string | undefined>();
    for (const end = Date.now() + 1000; Date.now() < end;) seen.add(readOr(file));
    other.kill("SIGKILL");
    await new Promise((done) => other.once("exit", done));
    expect([...seen].filter((text) => text !== undefined)).toEqual([JSON.stringify({ pid: other.pid, host: hostname() })]);
  });

  test("goes to one of two that find the same left-over: the second does not take the lock of the first for it", () => {
    leave(process.pid);
    // Between the second's look and what it does about the left-over, the first has put its own lock in place.
    const theirs = JSON.stringify({ pid: process.ppid, host: hostname() });
    let met = false;
    const restore = (["rmSync", "renameSync"] as const).map((name) => {
      const original = fs[name] as (path: string, ...rest: unknown[]) => void;
      return replace(name, (path: string, ...rest: unknown[]) => {
        if (path === file && !met) writeFileSync(file, theirs);
        met ||= path === file;
        original(path, ...rest);
      });
    });
    try {
      expect(() => lockFolder(folder)).toThrow(`process ${process.ppid} holds`);
    } finally {
      for (const one of restore) one();
    }
    expect([met, readFileSync(file, "utf8"), readdirSync(folder)]).toEqual([true, theirs, [".lock"]]);
  });

  test("needs no hard links", () => {
    const restore = replace("linkSync", () => {
      throw Object.assign(new Error("EPERM: operation not permitted, link"), { code: "EPERM" });
    });
    try {
      leave(process.ppid);
      expect(() => lockFolder(folder)).toThrow(`process ${process.ppid} holds`);
      writeFileSync(file, JSON.stringify({ pid: process.pid, host: hostname() }));
      const unlock = lockFolder(folder);
      expect(readdirSync(folder)).toEqual([".lock"]);
      expect(() => checkUnlocked(folder)).toThrow("which this process holds");
      unlock();
      expect(readdirSync(folder)).toEqual([]);
    } finally {
      restore();
    }
  });

  test("lets go of its own lock alone, and not of that of another machine which took the run up", () => {
    const unlock = lockFolder(folder);
    const theirs = JSON.stringify({ pid: 1, host: "elsewhere.invalid" });
    writeFileSync(file, theirs);
    unlock();
    expect(readFileSync(file, "utf8")).toBe(theirs);
  });

  test("says of a folder that cannot be one what is wrong", () => {
    writeFileSync(folder, "");
    expect(() => lockFolder(folder)).toThrow(/--output-dir: expected to write .*\.lock, got "(EEXIST|ENOTDIR): /);
  });

  test("passes over what another machine, a run of the same number, or a crash left", () => {
    leave(process.ppid, "elsewhere.invalid");
    lockFolder(folder)();
    leave(process.pid);
    lockFolder(folder)();
    writeFileSync(file, '{"pid": 1');
    lockFolder(folder)();
    expect(existsSync(file)).toBe(false);
  });
});

test("the command is refused before the text is read, and exits with 1", async () => {
  leave(process.ppid);
  const { code, stderr } = await run(["train", "--train", join(root, "absent.txt"), "--output-dir", folder]);
  expect([code, stderr]).toEqual([1, expect.stringMatching(/^--output-dir: expected a folder in which nothing else is training, got ".*, which process \d+ holds"/)]);
  expect(existsSync(file)).toBe(true);
});

describe("training", () => {
  const config = (): ReturnType<typeof checkConfig> =>
    checkConfig(
      { train: "(in memory)", tokenizer: "words", hidden_size: 8, batch_size: 4, time_steps: 6, max_steps: 2, output_dir: folder },
      "the test",
    );

  test("is refused in a folder another holds, and nothing there changes", async () => {
    (await train(config(), { train: sentences(40) })).model.dispose();
    expect(existsSync(file)).toBe(false); // let go at the end
    const before = traces(folder);
    leave(process.ppid);
    await expect(train(config(), { train: sentences(40) }, { overwrite: true })).rejects.toThrow(/which process \d+ holds/);
    rmSync(file);
    expect(traces(folder)).toEqual(before);
  });

  test("lets go of the folder when it fails", async () => {
    const failing = train(config(), { train: sentences(40) }, {
      onStep: () => {
        throw new Error("from outside");
      },
    });
    await expect(failing).rejects.toThrow("from outside");
    expect(existsSync(file)).toBe(false);
  });
});
