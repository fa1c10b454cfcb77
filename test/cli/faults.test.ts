/** Disks that are full, folders that cannot be written to, checkpoints that are damaged: one clear line each, and the last good checkpoint stays usable. */

import { execFileSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { flags, inPairs, readWhole, run, seeded, steps, traces, writeTexts, type Outcome } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-faults-"));
const mounts: string[] = [];
beforeAll(() => void writeTexts(root));
afterAll(() => {
  for (const mount of mounts) execFileSync("umount", [mount]);
  rmSync(root, { recursive: true });
});

const config = {
  train: "train.txt",
  valid: "valid.txt",
  tokenizer: "words",
  model: "MoE-8",
  hidden_size: 16,
  batch_size: 4,
  time_steps: 6,
  eval_steps: 3,
  logging_steps: 1,
};

/** One line that a user can act on: no stack, no word on bugs of ours, nothing undefined, exit code 1. */
function expectOneLine({ code, stderr }: Outcome, ...words: (string | RegExp)[]): void {
  const lines = stderr.trim().split("\n").filter((line) => !/^No (relaxed SIMD|CBLAS)|^MoE-8 step/.test(line)); // prettier-ignore
  expect(lines, stderr).toHaveLength(1);
  for (const word of words) expect(lines[0]).toMatch(word);
  expect(stderr).not.toMatch(/\n\s+at |undefined|NaN|please report/);
  expect(code).toBe(1);
}

/** Mounts a memory disk, where that is permitted. */
function mountDisk(folder: string, options: string): boolean {
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", folder], { stdio: "pipe" });
  } catch {
    return false;
  }
  mounts.push(folder);
  return true;
}

/** Every file below a folder with its content. */
function contents(folder: string): Record<string, string> {
  const files = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((name) =>
    statSync(join(folder, name)).isFile(),
  );
  return Object.fromEntries(files.map((name) => [name, readFileSync(join(folder, name)).toString("base64")]));
}

describe("a disk that is full", () => {
  test(
    "stops training with the path and the cause, keeps the checkpoints before, and training goes on once there is room",
    { timeout: 60_000 },
    async ({ skip }) => {
      const disk = mkdtempSync(join(root, "disk-"));
      if (!mountDisk(disk, "size=1m"))
        skip("mounting a small disk is not permitted here; the limit on the length of files below stands for it");
      const long = { ...config, max_steps: 20, save_steps: 2, save_total_limit: 20 };
      const outcome = await run(["train", ...flags({ ...long, output_dir: join(disk, "run") })], { cwd: root });
      expectOneLine(outcome, disk, "ENOSPC: no space left on the disk", "Free some space");
      const left = steps(join(disk, "run"));
      expect(left.length).toBeGreaterThan(1);
      for (const step of left) readWhole(join(disk, "run", `checkpoint-${step}`));
      expect(readdirSync(join(disk, "run")).filter((name) => name.startsWith("."))).toEqual([]);

      execFileSync("mount", ["-o", "remount,size=16m", disk]);
      const resumed = await run(["train", "--resume", join(disk, "run")], { cwd: root });
      expect(resumed.code, resumed.stderr).toBe(0);
      const whole = mkdtempSync(join(root, "whole-"));
      const reference = await run(["train", ...flags({ ...long, output_dir: join(whole, "run") })], { cwd: root });
      expect(reference.code, reference.stderr).toBe(0);
      const [expected, actual] = [traces(join(whole, "run")), traces(join(disk, "run"))];
      expect(actual.metrics).toEqual(expected.metrics);
      for (const file of ["model.safetensors", "optimizer.safetensors"]) expect(actual.files[file]).toBe(expected.files[file]);
    },
  );

  test("or a file that may not grow any longer (ulimit -f), leaves nothing half-written", { timeout: 60_000 }, async () => {
    const folder = mkdtempSync(join(root, "limit-"));
    const args = ["train", ...flags({ ...config, max_steps: 4, save_steps: 2, output_dir: join(folder, "run") })];
    // 32 KiB: enough for texts and metrics, not for the model.
    const shell = [
      "sh",
      "-c",
      'ulimit -f 64; exec "$0" "$@"',
      process.execPath,
      join(import.meta.dirname, "../../dist/cli/main.js"),
    ];
    const outcome = await run(args, { cwd: root, command: shell });
    expectOneLine(
      outcome,
      join(folder, "run/checkpoint-2"),
      "EFBIG: the file would be longer than a file may be here",
      "ulimit -f",
    );
    expect(readdirSync(join(folder, "run")).sort()).toEqual(["config.json", "metrics.jsonl", "tensorboard"]);
  });
});

describe("a folder that cannot be written to", () => {
  test("because it is read-only is refused before the text is read", { timeout: 60_000 }, async ({ skip }) => {
    const folder = mkdtempSync(join(root, "read-only-"));
    // Permission bits do not bind root: a read-only disk does.
    if (process.getuid?.() !== 0) chmodSync(folder, 0o555);
    else if (!mountDisk(folder, "ro")) skip("mounting a read-only disk is not permitted here, and root ignores permission bits");
    for (const output of [folder, join(folder, "run")]) {
      const outcome = await run(["train", ...flags({ ...config, train: "no-such-text.txt", output_dir: output })], { cwd: root });
      expectOneLine(
        outcome,
        folder,
        /EROFS: the file system is read-only|EACCES: permission denied/,
        "Choose another --output-dir",
      );
    }
  });

  test("because a file is in its place is refused, and the file stays", { timeout: 60_000 }, async () => {
    const file = join(root, "in-the-way");
    writeFileSync(file, "precious");
    for (const [output, cause] of [
      [file, "EEXIST: there is a file where a folder should be"],
      [join(file, "run"), "ENOTDIR: a part of the path is a file"],
    ] as const) {
      expectOneLine(
        await run(["train", ...flags({ ...config, output_dir: output })], { cwd: root }),
        "--output-dir",
        output,
        cause,
        "Choose another path",
      );
    }
    expect(readFileSync(file, "utf8")).toBe("precious");
  });
});

describe("a damaged checkpoint", () => {
  const sound = join(root, "sound");
  beforeAll(async () => {
    const outcome = await run(
      ["train", ...flags({ ...config, max_steps: 6, save_steps: 2, save_total_limit: 3, output_dir: sound })],
      { cwd: root },
    );
    expect(outcome.code, outcome.stderr).toBe(0);
    expect(steps(sound)).toEqual([2, 4, 6]);
  }, 60_000);

  /** What can happen to a file. */
  const damages = {
    "cut short": (path: string) => truncateSync(path, Math.floor(statSync(path).size / 2)),
    "with a flipped bit": (path: string, random: () => number) => {
      const bytes = readFileSync(path);
      const bit = Math.floor(random() * bytes.length * 8);
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      writeFileSync(path, bytes);
    },
    missing: (path: string) => rmSync(path),
  };

  test(
    "in any of its files is refused by name, nothing is touched, and the one before takes the run to the same end",
    { timeout: 120_000 },
    async () => {
      const files = readdirSync(join(sound, "checkpoint-6"));
      expect(files.sort()).toEqual([
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "trainer_state.json",
        "vocab.txt",
      ]);
      const cases = files.flatMap((file) =>
        (Object.keys(damages) as (keyof typeof damages)[]).map((damage) => ({ file, damage })),
      );
      const random = seeded(5);
      await inPairs(
        cases.map(({ file, damage }, i) => async () => {
          const copy = join(root, `damaged-${i}`);
          cpSync(sound, copy, { recursive: true });
          damages[damage](join(copy, "checkpoint-6", file), random);
          const before = contents(copy);
          expectOneLine(
            await run(["train", "--resume", copy, "--max-steps", "8"], { cwd: root }),
            join(copy, "checkpoint-6", file),
            `${join(copy, "checkpoint-4")} --overwrite`,
          );
          expect(contents(copy), `${file} ${damage}`).toEqual(before);
          // The other commands say it as well; one of each is enough to see that.
          const uses = [
            ["eval", copy, "--data", "test.txt"],
            ["generate", copy],
            ["inspect", copy],
          ] as const;
          if (file !== "optimizer.safetensors")
            expectOneLine(await run(uses[i % 3]!, { cwd: root }), join(copy, "checkpoint-6", file));
          if (damage !== "with a flipped bit") return;
          const end = await run(["train", "--resume", join(copy, "checkpoint-4"), "--overwrite"], { cwd: root });
          expect(end.code, end.stderr).toBe(0);
          const [expected, actual] = [traces(sound), traces(copy)];
          expect(actual.metrics).toEqual(expected.metrics);
          for (const name of ["model.safetensors", "optimizer.safetensors"])
            expect(actual.files[name]).toBe(expected.files[name]);
        }),
      );
    },
  );

  test("is no reason to go back without --overwrite, which says what it discards", { timeout: 60_000 }, async () => {
    const before = contents(sound);
    const outcome = await run(["train", "--resume", join(sound, "checkpoint-2")], { cwd: root });
    expectOneLine(outcome, "--resume", join(sound, "checkpoint-2"), "Add --overwrite to go back to it and discard checkpoint-6");
    expect(contents(sound)).toEqual(before);
  });
});

describe("a folder with an earlier run", () => {
  test("is not mixed with a new one: refused without --overwrite, discarded with it", { timeout: 60_000 }, async () => {
    const output = join(root, "earlier");
    mkdirSync(output);
    const args = (steps: number): string[] => [
      "train",
      ...flags({ ...config, max_steps: steps, save_steps: 2, output_dir: output }),
    ];
    expect((await run(args(6), { cwd: root })).code).toBe(0);
    const before = contents(output);
    expectOneLine(await run(args(2), { cwd: root }), "--output-dir", "checkpoint-6", "--resume", "--overwrite");
    expect(contents(output)).toEqual(before);
    const second = await run([...args(2), "--overwrite"], { cwd: root });
    expect(second.code, second.stderr).toBe(0);
    expect(steps(output)).toEqual([2]);
  });
});
