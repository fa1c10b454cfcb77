/** Translation on ranks: the losses, translations and parameters of one rank, whatever their number, also where a batch has fewer sentences than ranks. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { runRanks } from "#sparsegate/comm/index.js";
import { loadCheckpoint, type TensorFiles } from "#sparsegate/train/checkpoint.js";
import { PairBatchStream } from "#sparsegate/text/pair-batches.js";
import { checkConfig } from "#sparsegate/train/config.js";
import type { TranslationConfig } from "#sparsegate/train/translation/config.js";
import { makeTranslationDatasets, type TranslationCorpora } from "#sparsegate/train/translation/data.js";
import { sentences } from "../../cli/helpers.js";
import run, { type Trained } from "./programs/translation.mjs";

const root = mkdtempSync(join(tmpdir(), "sparsegate-translation-ranks-"));
afterAll(() => rmSync(root, { recursive: true }));

const program = new URL("programs/translation.mjs", import.meta.url);
const STEPS = 24;
const turned = (text: string): string => text.split(" ").reverse().join(" ").toUpperCase();
const pair = (lines: readonly string[]): object => ({ sources: lines, targets: lines.map(turned), leftOut: { emptySource: 0, emptyTarget: 0, emptyBoth: 0 } });
// Batches of one sentence to six; an empty text and one of white space are translated without the model.
const corpora = { train: [pair(sentences(60, 1, 8))], valid: [pair([...sentences(6, 2, 8), " ", sentences(1, 3, 8)[0]!])] };
const base = {
  task: "translation", train: "(in memory)", train_target: "(in memory)", valid: "(in memory)", valid_target: "(in memory)", vocab_size: 270, hidden_size: 8, batch_tokens: 60,
  max_steps: STEPS, eval_steps: 12, save_steps: 1000, logging_steps: 10, learning_rate: 0.02, dropout: 0.1, eval_beam_size: 2, max_grad_norm: 1, seed: 4,
}; // prettier-ignore

const folder = (name: string): string => join(root, name);
const data = (name: string, config: object, rest: object = {}): object => ({ corpora, ...rest, config: { ...base, ...config, output_dir: folder(name) } });
const onRanks = (size: number, name: string, config: object, rest: object = {}): Promise<Trained[]> => runRanks<Trained>(size, program, data(name, config, rest), { timeout: 60 });
const tensors = (files: TensorFiles): [string, number[]][] => files.names.map((name) => [name, Array.from(files.read(name))]);
const saved = (name: string): [string, number[]][] => tensors(loadCheckpoint(join(folder(name), `checkpoint-${STEPS}`)).model);

function expectClose(got: readonly number[], expected: readonly number[], relative: number, what: string): void {
  expect(got.length, what).toBe(expected.length);
  for (const [i, value] of expected.entries()) expect(Math.abs(got[i]! - value), `${what}[${i}]: ${got[i]} for ${value}`).toBeLessThanOrEqual(relative * Math.max(Math.abs(value), 1e-6));
}

/** Parameters to 1e-4 of the largest of their tensor. */
function expectSameParameters(got: string, expected: string): void {
  const theirs = new Map(saved(got));
  for (const [name, values] of saved(expected)) {
    const scale = values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-6);
    for (const [i, value] of values.entries()) expect(Math.abs(theirs.get(name)![i]! - value), `${name}[${i}]`).toBeLessThanOrEqual(1e-4 * scale);
  }
}

const kinds: Record<string, object> = {
  "noisy top-k, additive attention": { model: "MoE-5", top_k: 2, attention: "additive", expert_dropout: 0.1 },
  "strictly balanced, label smoothing": { model: "MoE-4", gate: "strictly-balanced", top_k: 2, label_smoothing: 0.1 },
  "hierarchical, softmax of its own": { model: "MoE-6", branching: 3, embeddings: "shared", lstm_size: 12 },
  "Switch with capacity": { model: "MoE-4", gate: "switch", capacity_factor: 1.1 },
  "dense, words left out, context to all layers": { model: "MoE-1-Wide", word_dropout: 0.2, context_to: "all" },
};

describe.each(Object.keys(kinds))("%s", (kind) => {
  const name = kind.replaceAll(/\W+/g, "-");
  let one: Promise<Trained> | undefined;

  test.each([2, 3, 4])(`on %i ranks: losses of ${STEPS} steps to 1e-5, parameters at the end to 1e-4, the same translations`, { timeout: 120_000 }, async (size) => {
    const single = await (one ??= run(undefined, data(name, kinds[kind]!)));
    const to = `${name}-${size}`;
    for (const { steps, evaluations, finished } of await onRanks(size, to, kinds[kind]!)) {
      expect(finished).toBe(true);
      for (const key of ["loss", "auxLoss", "gradNorm"] as const) {
        const of = (list: Trained["steps"]): number[] => list.map((step) => step[key]);
        expectClose(of(steps), of(single.steps), key === "loss" ? 1e-5 : 1e-3, key);
      }
      expect(steps.map(({ load, tokens }) => ({ load, tokens }))).toEqual(single.steps.map(({ load, tokens }) => ({ load, tokens })));
      expect(evaluations.map(({ translations }) => translations)).toEqual(single.evaluations.map(({ translations }) => translations));
      expectClose(evaluations.map(({ loss }) => loss), single.evaluations.map(({ loss }) => loss), 1e-5, "evaluation");
    }
    expect(single.steps[0]!.loss).toBeGreaterThan(single.steps.at(-1)!.loss);
    expect(single.evaluations.flatMap(({ translations }) => translations.flat()).filter((text) => text !== "").length).toBeGreaterThan(6);
    expectSameParameters(to, name);
  });
});

test("experts are spread: a rank of 2 has half of those of one", async () => {
  const config = { ...kinds["strictly balanced, label smoothing"], max_steps: 1 };
  const single = await run(undefined, data("spread", config));
  // 4 experts of 2·8·16 weights in each of two mixtures, of which a rank has 2.
  for (const { parameters } of await onRanks(2, "spread-2", config)) expect(parameters).toBe(single.parameters - 2 * 2 * (2 * 8 * 16));
});

test("parameters that make the loss overflow end all ranks, and name the layer", async () => {
  // A float32 that goes through the step it is made in, and overflows in the next.
  const config = { ...kinds["strictly balanced, label smoothing"], learning_rate: 1e30, schedule: "constant" };
  await expect(onRanks(3, "blown", config)).rejects.toThrow(/: Step 2: expected a finite output of encoder\./);
});

test("the text has batches of fewer sentences than ranks", () => {
  const config = checkConfig({ ...base, model: "LSTM", output_dir: root }, "the test") as TranslationConfig;
  const stream = new PairBatchStream(makeTranslationDatasets(config, corpora as unknown as TranslationCorpora).train, { batchTokens: config.batch_tokens, seed: config.seed });
  const sizes = Array.from({ length: STEPS }, () => stream.next().batchSize);
  expect(Math.min(...sizes)).toBe(1);
  expect(Math.max(...sizes)).toBeGreaterThan(4);
});

test("stopped on 3 ranks and resumed on 1, 2 and 5: as if never interrupted", { timeout: 120_000 }, async () => {
  const config = kinds["strictly balanced, label smoothing"]!;
  const whole = await run(undefined, data("whole", config));
  const first = await onRanks(3, "three", config, { stopAt: 13 });
  expect(first.map(({ taken, finished }) => [taken, finished])).toEqual(new Array(3).fill([13, false]));
  const resume = join(folder("three"), "checkpoint-13");
  for (const size of [1, 2, 5]) {
    const results = size === 1 ? [await run(undefined, data("on-1", config, { resume }))] : await onRanks(size, `on-${size}`, config, { resume });
    for (const { steps } of results) expectClose(steps.map(({ loss }) => loss), whole.steps.slice(13).map(({ loss }) => loss), 1e-5, `loss on ${size}`);
    expectSameParameters(`on-${size}`, "whole");
  }
});
