/** The command line as tests run it: real processes of the built program, small texts, and runs compared bit for bit. */

import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import { philox4x32 } from "#sparsegate/core/random.js";
import { loadCheckpoint } from "#sparsegate/train/checkpoint.js";
import { readMetrics } from "#sparsegate/train/metrics.js";

export const main = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface Started {
  child: ChildProcess;
  /** What stderr has said so far. */
  stderr(): string;
  ended: Promise<Outcome>;
}

/** Starts the program. One thread unless told otherwise: models here are too small for more, and several children run side by side. */
export function start(
  args: readonly string[],
  {
    cwd,
    env = {},
    command = [process.execPath, main],
  }: { cwd?: string; env?: NodeJS.ProcessEnv; command?: readonly string[] } = {},
): Started {
  const child = spawn(command[0]!, [...command.slice(1), ...args], {
    cwd,
    env: { ...process.env, SPARSEGATE_THREADS: "1", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (data: Buffer) => (stdout += String(data)));
  child.stderr.on("data", (data: Buffer) => (stderr += String(data)));
  const ended = new Promise<Outcome>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
  return { child, stderr: () => stderr, ended };
}

export function run(args: readonly string[], options: Parameters<typeof start>[1] = {}): Promise<Outcome> {
  return start(args, options).ended;
}

/** Runs the jobs, two at a time, as the machines that test this have two cores. */
export async function inPairs<T>(jobs: readonly (() => Promise<T>)[]): Promise<T[]> {
  const results: T[] = [];
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < jobs.length) {
      const i = next++;
      results[i] = await jobs[i]!();
    }
  };
  // Both are waited for even when one fails, so that no child outlives its test.
  for (const outcome of await Promise.allSettled([worker(), worker()])) if (outcome.status === "rejected") throw outcome.reason;
  return results;
}

/** Waits until `test` holds, and fails when it does not within the time or the child ends before. */
export async function until(test: () => boolean, { child, stderr }: { child: ChildProcess; stderr?: () => string }, ms = 30_000): Promise<void> {
  const limit = Date.now() + ms;
  while (!test()) {
    if (Date.now() > limit) throw new Error("until: waited too long");
    if (child.exitCode !== null || child.signalCode !== null) throw new Error(`until: the child ended before. ${stderr?.() ?? ""}`);
    await sleep(2);
  }
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Numbers in [0, 1) that are the same each time. */
export function seeded(seed: number): () => number {
  let i = 0;
  return () => philox4x32([i++, 0, 0, 0], [seed, 0])[0] / 2 ** 32;
}

/** Sentences of invented words, some words more frequent than others. */
export function sentences(count: number, seed = 1, words = 60): string[] {
  const random = seeded(seed);
  return Array.from({ length: count }, () =>
    Array.from({ length: 3 + Math.floor(8 * random()) }, () => `w${Math.floor(words * random() ** 2)}`).join(" "),
  );
}

/** A folder with train.txt, valid.txt and test.txt. */
export function writeTexts(folder: string, { train = 300, valid = 25, test = 20 } = {}): string {
  mkdirSync(folder, { recursive: true });
  for (const [i, [name, count]] of Object.entries({ train, valid, test }).entries())
    writeFileSync(join(folder, `${name}.txt`), `${sentences(count, i + 1).join("\n")}\n`);
  return folder;
}

/** Expects a program to end with 1 and a line on stderr that has this text. */
export async function refused(outcome: Promise<Outcome>, text: string): Promise<void> {
  const { code, stderr } = await outcome;
  expect(stderr).toContain(text);
  expect(stderr.trimEnd().split("\n")).toHaveLength(1);
  expect(code).toBe(1);
}

/** `{ max_steps: 3, sigmoid: false }` as flags. */
export function flags(config: Readonly<Record<string, string | number | boolean>>): string[] {
  return Object.entries(config).flatMap(([key, value]) => {
    const name = key.replaceAll("_", "-");
    if (typeof value === "boolean") return [value ? `--${name}` : `--no-${name}`];
    return [`--${name}`, String(value)];
  });
}

/** Steps of the checkpoints in a run's folder. */
export function steps(run: string): number[] {
  if (!existsSync(run)) return [];
  const found = readdirSync(run).map((name) => /^checkpoint-(\d+)$/.exec(name)?.[1]);
  return found.filter((step) => step !== undefined).map(Number).sort((a, b) => a - b); // prettier-ignore
}

/** Reads every byte of a checkpoint that a resumed run would. @throws FileError when anything is damaged */
export function readWhole(checkpoint: string): void {
  const { model, optimizer } = loadCheckpoint(checkpoint);
  for (const name of model.names) model.read(name);
  for (const name of optimizer?.names ?? []) optimizer!.read(name);
}

/** All that must not depend on when a run was interrupted: every file of its last checkpoint, and its metrics but for the clock's. */
export function traces(run: string): { files: Record<string, string>; metrics: string[] } {
  const last = join(run, `checkpoint-${steps(run).at(-1)}`);
  const files = Object.fromEntries(
    readdirSync(last)
      .sort()
      .map((name) => [name, readFileSync(join(last, name)).toString("base64")]),
  );
  const metrics = readMetrics(join(run, "metrics.jsonl")).map((record) => {
    const { time: _, "train/tokens_per_second": _speed, ...rest } = record;
    return JSON.stringify(rest);
  });
  return { files, metrics };
}
