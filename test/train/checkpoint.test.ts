/** Checkpoints: what is saved comes back, and kills, full disks and damaged files never cost the last good one. */

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { ConfigError, FileError } from "#sparsegate/core/errors.js";
import { latestCheckpoint, loadCheckpoint, saveCheckpoint, type CheckpointContents } from "#sparsegate/train/checkpoint.js";
import type { StoredTensor } from "#sparsegate/train/safetensors.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-checkpoint-"));
afterAll(() => rmSync(root, { recursive: true }));
const newRun = () => mkdtempSync(join(root, "run-"));
const built = new URL("../../dist/train/checkpoint.js", import.meta.url);

function tensor(name: string, ...values: number[]): StoredTensor {
  return { name, shape: [values.length], dtype: "F32", data: Float32Array.from(values) };
}

function contents(value = 1): CheckpointContents {
  return {
    config: { hidden_size: 64, layers: ["lstm", "moe"] },
    model: [tensor("b", value, value + 1), tensor("a", value)],
    optimizer: [tensor("b.m", value)],
    state: { cursor: { epoch: 1, row: 20 }, random: [1, 2 ** 32 - 1] },
    files: new Map([["vocab.txt", "ein\nzwei\n"]]),
  };
}

/** Loads everything there is to load. */
function loadWhole(path: string): number[] {
  const { model, optimizer } = loadCheckpoint(path);
  return [
    ...model.names.flatMap((name) => [...model.read(name)]),
    ...(optimizer?.names.flatMap((name) => [...optimizer.read(name)]) ?? []),
  ];
}

describe("a checkpoint", () => {
  test("gives back what was saved, in a folder of the documented files", () => {
    const run = newRun();
    const path = saveCheckpoint(run, 20, contents());
    expect(path).toBe(join(run, "checkpoint-20"));
    expect(readdirSync(run)).toEqual(["checkpoint-20"]);
    expect(readdirSync(path).sort()).toEqual([
      "config.json",
      "model.safetensors",
      "optimizer.safetensors",
      "trainer_state.json",
      "vocab.txt",
    ]);
    const loaded = loadCheckpoint(path);
    expect(loaded).toMatchObject({ step: 20, config: contents().config, state: contents().state, files: contents().files });
    expect(loaded.model.names).toEqual(["a", "b"]);
    expect(loaded.model.read("b")).toEqual(Float32Array.of(1, 2));
    expect(loaded.optimizer?.read("b.m")).toEqual(Float32Array.of(1));
    expect(() => loaded.model.read("c")).toThrow(/a tensor c/);
    expect(loadCheckpoint(saveCheckpoint(run, 21, { config: {}, model: [] })).optimizer).toBeNull();
  });

  test("is sharded with an index once it is longer than the limit, each tensor whole", () => {
    const path = saveCheckpoint(
      newRun(),
      1,
      { config: {}, model: [tensor("a", 1, 2), tensor("b", 3), tensor("c", 4, 5, 6, 7), tensor("d", 8)] },
      { shardBytes: 12 },
    );
    expect(readdirSync(path).filter((name) => name.startsWith("model"))).toEqual([
      "model-00001-of-00003.safetensors",
      "model-00002-of-00003.safetensors",
      "model-00003-of-00003.safetensors",
      "model.safetensors.index.json",
    ]);
    expect(JSON.parse(readFileSync(join(path, "model.safetensors.index.json"), "utf8"))).toEqual({
      metadata: { total_size: 32 },
      weight_map: {
        a: "model-00001-of-00003.safetensors",
        b: "model-00001-of-00003.safetensors",
        c: "model-00002-of-00003.safetensors",
        d: "model-00003-of-00003.safetensors",
      },
    });
    expect(loadWhole(path)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  test("of the same step is replaced", () => {
    const run = newRun();
    saveCheckpoint(run, 5, contents(1));
    saveCheckpoint(run, 5, contents(2));
    expect(loadWhole(join(run, "checkpoint-5"))).toEqual([2, 2, 3, 2]);
    expect(readdirSync(run)).toEqual(["checkpoint-5"]);
  });

  test("refuses what JSON would lose, and file names that are taken or lead elsewhere", () => {
    const run = newRun();
    const save = (changes: Partial<CheckpointContents>) => () => saveCheckpoint(run, 1, { ...contents(), ...changes });
    expect(save({ state: { best: { loss: NaN } } })).toThrow(/state\.best\.loss to be something JSON can hold, got NaN/);
    expect(save({ state: { random: new Uint32Array(2) } })).toThrow(ConfigError);
    for (const name of ["config.json", "model-x.safetensors", "../up", ".hidden", ""]) {
      expect(save({ files: new Map([[name, ""]]) }), name).toThrow(ConfigError);
    }
    expect(readdirSync(run)).toEqual([]);
  });
});

describe("the latest checkpoint", () => {
  test("is the highest step by number; folders that are incomplete or of another name are passed over", () => {
    const run = newRun();
    expect(latestCheckpoint(run)).toBeNull();
    expect(latestCheckpoint(join(run, "none"))).toBeNull();
    for (const step of [9, 10, 100, 101, 102]) saveCheckpoint(run, step, contents());
    mkdirSync(join(run, "checkpoint-best"));
    mkdirSync(join(run, "checkpoint-999"));
    writeFileSync(join(run, "checkpoint-1000"), "a file");
    truncateSync(join(run, "checkpoint-102/model.safetensors"), 50);
    rmSync(join(run, "checkpoint-101/config.json"));
    expect(latestCheckpoint(run)).toBe(join(run, "checkpoint-100"));
  });

  test("comes back after a kill between the two renames of a replacement", () => {
    const run = newRun();
    saveCheckpoint(run, 5, contents(3));
    renameSync(join(run, "checkpoint-5"), join(run, ".checkpoint-5.old-999999999"));
    expect(loadWhole(latestCheckpoint(run)!)).toEqual([3, 3, 4, 3]);
  });
});

describe("the limit", () => {
  test("keeps that many, deletes the lowest steps, and touches nothing else", () => {
    const run = newRun();
    writeFileSync(join(run, "metrics.jsonl"), "");
    writeFileSync(join(run, "checkpoint-1"), "a file of the user");
    for (const step of [2, 4, 10, 30, 200]) saveCheckpoint(run, step, contents(), { saveTotalLimit: 3 });
    expect(readdirSync(run).sort()).toEqual([
      "checkpoint-1",
      "checkpoint-10",
      "checkpoint-200",
      "checkpoint-30",
      "metrics.jsonl",
    ]);
    saveCheckpoint(run, 5, contents(), { saveTotalLimit: 1 }); // the new one stays even where its step is not the highest
    expect(readdirSync(run).sort()).toEqual(["checkpoint-1", "checkpoint-5", "metrics.jsonl"]);
    expect(() => saveCheckpoint(run, 6, contents(), { saveTotalLimit: 0 })).toThrow(ConfigError);
  });
});

describe("damage", () => {
  test("by a flipped bit in any file is noticed", () => {
    const run = newRun();
    const path = saveCheckpoint(run, 7, contents(), { shardBytes: 8 });
    const names = readdirSync(path);
    fc.assert(
      fc.property(fc.constantFrom(...names), fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (name, where) => {
        const whole = readFileSync(join(path, name));
        const bit = Math.floor(where * 8 * whole.length);
        const bent = Buffer.from(whole);
        bent[bit >> 3] ^= 1 << (bit & 7);
        writeFileSync(join(path, name), bent);
        try {
          expect(() => loadWhole(path), `${name}, bit ${bit}`).toThrow(FileError);
        } finally {
          writeFileSync(join(path, name), whole);
        }
      }),
      { numRuns: 1000 },
    );
    loadWhole(path);
  });

  test("by a cut at any byte of any file is noticed without reading a tensor, and the message names the file", () => {
    const run = newRun();
    const path = saveCheckpoint(run, 7, contents());
    for (const name of readdirSync(path)) {
      const whole = readFileSync(join(path, name));
      for (let length = 0; length < whole.length; length++) {
        writeFileSync(join(path, name), whole.subarray(0, length));
        expect(() => loadCheckpoint(path), `${name} cut to ${length}`).toThrow(name);
        expect(latestCheckpoint(run)).toBeNull();
      }
      writeFileSync(join(path, name), whole);
    }
  });

  test("by tensors of another checkpoint is noticed", () => {
    const run = newRun();
    const [one, two] = [saveCheckpoint(run, 1, contents(1)), saveCheckpoint(run, 2, contents(2))];
    writeFileSync(join(two, "model.safetensors"), readFileSync(join(one, "model.safetensors")));
    expect(() => loadCheckpoint(two)).toThrow(FileError);
  });
});

describe("saving that fails", () => {
  test("below a file says so", () => {
    const file = join(newRun(), "file");
    writeFileSync(file, "");
    for (const run of [file, join(file, "run")]) {
      expect(() => saveCheckpoint(run, 1, contents())).toThrow(FileError);
      expect(() => saveCheckpoint(run, 1, contents())).toThrow(
        /to write .*checkpoint-1, got "E(NOTDIR|EXIST): .*file.* Choose another path/,
      );
    }
  });

  test("where nothing can be created says so", () => {
    expect(() => saveCheckpoint("/proc/sparsegate", 1, contents())).toThrow(FileError);
  });

  test("because data cannot be fetched keeps the old checkpoint of that step and leaves nothing behind", () => {
    const run = newRun();
    saveCheckpoint(run, 5, contents(1));
    const broken: StoredTensor = { name: "z", shape: [1], dtype: "F32", data: () => { throw new Error("worker died"); } }; // prettier-ignore
    expect(() => saveCheckpoint(run, 5, { ...contents(2), model: [tensor("a", 1), broken] })).toThrow("worker died");
    expect(readdirSync(run)).toEqual(["checkpoint-5"]);
    expect(loadWhole(join(run, "checkpoint-5"))).toEqual([1, 1, 2, 1]);
  });

  test("on a full disk says so, leaves nothing behind, and works again once there is room", ({ skip }) => {
    const disk = newRun();
    try {
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], { stdio: "pipe" });
    } catch {
      skip("mounting a small disk is not allowed here");
    }
    try {
      saveCheckpoint(disk, 1, contents(1));
      const big: StoredTensor = { name: "big", shape: [1 << 19], dtype: "F32", data: new Float32Array(1 << 19) };
      expect(() => saveCheckpoint(disk, 2, { ...contents(), optimizer: [big] })).toThrow(
        /ENOSPC: no space left on the disk.*Free some space/,
      );
      expect(readdirSync(disk)).toEqual(["checkpoint-1"]);
      expect(loadWhole(latestCheckpoint(disk)!)).toEqual([1, 1, 2, 1]);
      saveCheckpoint(disk, 2, contents(2), { saveTotalLimit: 1 });
      expect(readdirSync(disk)).toEqual(["checkpoint-2"]);
    } finally {
      execFileSync("umount", [disk]);
    }
  });
});

test("a process killed while it saves in a loop, ten times over, leaves a latest checkpoint that loads whole, and no litter after the next save", async () => {
  const run = newRun();
  const script = `
    import { saveCheckpoint, latestCheckpoint, loadCheckpoint } from ${JSON.stringify(pathToFileURL(built.pathname).href)};
    const run = ${JSON.stringify(run)};
    const last = latestCheckpoint(run);
    const from = last === null ? 0 : loadCheckpoint(last).step;
    const tensor = (name, value) => ({ name, shape: [20000], dtype: "F32", data: new Float32Array(20000).fill(value) });
    for (let i = 1; ; i++) {
      const step = from + Math.ceil(i / 2); // every step twice: replacements are killed as well
      saveCheckpoint(run, step, { config: { step }, model: [tensor("a", step), tensor("b", step)], optimizer: [tensor("m", step)] }, { saveTotalLimit: 2, shardBytes: 100000 });
      if (i === 3) process.stdout.write("going\\n");
    }`;
  let step = 0;
  for (let round = 0; round < 10; round++) {
    const child = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    const exit = once(child, "exit");
    await once(child.stdout, "data");
    await new Promise((resolve) => setTimeout(resolve, 7 * round + 20 * Math.random()));
    child.kill("SIGKILL");
    await exit;
    const latest = loadCheckpoint(latestCheckpoint(run)!);
    expect(latest.step).toBeGreaterThan(step);
    step = latest.step;
    expect(latest.config).toEqual({ step });
    for (const tensors of [latest.model, latest.optimizer!]) {
      for (const name of tensors.names) expect(tensors.read(name).every((value) => value === step)).toBe(true);
    }
    for (const name of readdirSync(run).filter((entry) => !entry.startsWith("."))) loadWhole(join(run, name));
  }
  saveCheckpoint(run, step + 1, contents(), { saveTotalLimit: 1 });
  expect(readdirSync(run)).toEqual([`checkpoint-${step + 1}`]);
});
