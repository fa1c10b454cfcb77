/** `sparsegate train` on ranks: threads by --ranks, processes by any mpirun there is; Ctrl-C saves on all. */

import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadCheckpoint } from "#sparsegate/train/checkpoint.js";
import { readMetrics } from "#sparsegate/train/metrics.js";
import { MPI_ENV, mpiruns } from "../comm/helpers.js";
import { flags, main, run, start, steps, until, writeTexts } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-cli-ranks-"));
beforeAll(() => void writeTexts(root));
afterAll(() => rmSync(root, { recursive: true }));

const config = {
  train: "train.txt", valid: "valid.txt", tokenizer: "words", model: "MoE-6", top_k: 2, hidden_size: 12, batch_size: 4, time_steps: 5, max_steps: 12, logging_steps: 1,
}; // prettier-ignore

/** How a run of so many ranks is started. */
const ways = [
  { way: "threads", name: "threads", command: (): string[] => [process.execPath, main], extra: (size: number): object => ({ ranks: size }), code: 130 as number | undefined },
  // What mpirun itself says after Ctrl-C is its own affair: 1 or 0.
  ...mpiruns.map(({ name, command, args }) => ({
    way: name.replace(" ", ""), name, command: (size: number): string[] => [command, ...args, "-n", String(size), process.execPath, main], extra: (): object => ({}), code: undefined as number | undefined,
  })),
];

const losses = (folder: string): number[] => readMetrics(join(root, folder, "metrics.jsonl")).filter((record) => "train/loss" in record).map((record) => Number(record["train/loss"]));

describe.each(ways)("$name", ({ way, command, extra, code }) => {
  test.each([2, 4])("%i ranks give the losses of one, and write one checkpoint and one file of metrics", { timeout: 120_000 }, async (size) => {
    const one = `${way}-one-${size}`;
    expect((await run(["train", ...flags({ ...config, output_dir: one })], { cwd: root })).code).toBe(0);
    const folder = `${way}-${size}`;
    const outcome = await run(["train", ...flags({ ...config, ...extra(size), output_dir: folder })], { cwd: root, command: command(size), env: MPI_ENV });
    expect(outcome.code, outcome.stderr).toBe(0);
    // One rank speaks.
    expect(outcome.stdout.match(/^steps: 12$/gm)).toHaveLength(1);
    const [got, expected] = [losses(folder), losses(one)];
    expect(got).toHaveLength(12);
    for (const [i, loss] of expected.entries()) expect(Math.abs(got[i]! - loss)).toBeLessThanOrEqual(1e-5 * loss);
    const names = (run: string): string[] => loadCheckpoint(join(root, run, "checkpoint-12")).model.names;
    expect(names(folder)).toEqual(names(one));
  });

  test("Ctrl-C ends after a step, with a checkpoint from which any number of ranks goes on", { timeout: 120_000 }, async () => {
    const folder = `${way}-stopped`;
    const child = start(["train", ...flags({ ...config, max_steps: 1_000_000, ...extra(2), output_dir: folder })], { cwd: root, command: command(2), env: MPI_ENV });
    const metrics = join(root, folder, "metrics.jsonl");
    await until(() => existsSync(metrics) && readFileSync(metrics, "utf8").split("\n").length > 5, child);
    child.child.kill("SIGINT");
    const outcome = await child.ended;
    if (code !== undefined) expect(outcome.code, outcome.stderr).toBe(code);
    const [, step] = /Interrupted at step (\d+) of 1000000/.exec(outcome.stderr) ?? [];
    expect(step, outcome.stderr).toBeDefined();
    expect(steps(join(root, folder)).at(-1)).toBe(Number(step));
    const resumed = await run(["train", "--resume", folder, "--max-steps", String(Number(step) + 2)], { cwd: root });
    expect(resumed.code, resumed.stderr).toBe(0);
  });
});

test("--ranks under mpirun is refused, as mpirun says how many there are", { timeout: 60_000 }, async () => {
  for (const { command, args } of mpiruns) {
    const outcome = await run(["train", ...flags({ ...config, output_dir: "both" }), "--ranks", "2"], { cwd: root, command: [command, ...args, "-n", "2", process.execPath, main], env: MPI_ENV });
    expect(outcome.code).not.toBe(0);
    expect(outcome.stderr).toContain("train: expected no --ranks under mpirun, which starts the ranks, got 2. Give their number to mpirun: -n.");
  }
});

describe.each(ways)("translation on $name", ({ way, command, extra }) => {
  const pairs = { task: "translation", train: "train.txt", train_target: "train.txt", valid: "valid.txt", valid_target: "valid.txt", model: "MoE-4", gate: "strictly-balanced", top_k: 2, vocab_size: 270, hidden_size: 8, batch_tokens: 200, max_steps: 8, logging_steps: 1 }; // prettier-ignore

  test("gives the losses and the scores of one rank, said once, and a model that one rank translates with", { timeout: 120_000 }, async () => {
    const [one, two] = [`${way}-pairs-1`, `${way}-pairs-2`];
    const alone = await run(["train", ...flags({ ...pairs, output_dir: one }), "--json"], { cwd: root });
    expect(alone.code, alone.stderr).toBe(0);
    const outcome = await run(["train", ...flags({ ...pairs, ...extra(2), output_dir: two }), "--json"], { cwd: root, command: command(2), env: MPI_ENV });
    expect(outcome.code, outcome.stderr).toBe(0);
    const [expected, got] = [alone, outcome].map(({ stdout }) => JSON.parse(stdout) as { finished: boolean; valid_perplexity: number; valid_bleu: number });
    expect(got!.finished).toBe(true);
    expect(Math.abs(got!.valid_perplexity - expected!.valid_perplexity)).toBeLessThan(1e-4 * expected!.valid_perplexity);
    expect(got!.valid_bleu).toBe(expected!.valid_bleu);
    for (const [i, loss] of losses(one).entries()) expect(Math.abs(losses(two)[i]! - loss)).toBeLessThanOrEqual(1e-5 * loss);
    const translated = await run(["translate", two, "w1 w2"], { cwd: root });
    expect([translated.code, translated.stdout]).toEqual([0, (await run(["translate", one, "w1 w2"], { cwd: root })).stdout]);
  });
});

test("what cannot be is said once, before any rank starts", async () => {
  const outcome = await run(["train", ...flags({ ...config, model: "MoE-6x" }), "--ranks", "2"], { cwd: root });
  expect(outcome.code).toBe(1);
  expect(outcome.stderr.trim().split("\n")).toHaveLength(1);
  expect((await run(["train", ...flags(config), "--ranks", "0"], { cwd: root })).stderr).toContain("Expected a number from 1.");
});

test("two ranks stop early where one does, and test the best parameters", { timeout: 120_000 }, async () => {
  const patient = { ...config, test: "valid.txt", model: "MoE-4", max_steps: 200, eval_steps: 4, learning_rate: 0.05, patience: 1 };
  const [one, two] = await Promise.all(
    [1, 2].map(async (ranks) => {
      const { code, stdout, stderr } = await run(["train", ...flags({ ...patient, ranks, output_dir: `patient-${ranks}` }), "--json"], { cwd: root });
      expect(code, stderr).toBe(0);
      return JSON.parse(stdout) as { steps: number; best_step: number; test_perplexity: number };
    }),
  );
  expect(one!.steps).toBeLessThan(200);
  expect(one!.best_step).toBeLessThan(one!.steps);
  expect([two!.steps, two!.best_step]).toEqual([one!.steps, one!.best_step]);
  expect(Math.abs(two!.test_perplexity - one!.test_perplexity)).toBeLessThan(1e-3 * one!.test_perplexity);
});
