/** A loss that is no number stops training with the name of the layer or parameter that broke, and never costs a good checkpoint. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { NonFiniteError } from "#sparsegate/core/errors.js";
import { LanguageModel, type MiddleConfig } from "#sparsegate/models/language-model.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import type { Tensor } from "#sparsegate/tensor/tensor.js";
import { evaluationBatches, BatchStream } from "#sparsegate/text/batches.js";
import { tokenizeCorpus, type TokenDataset } from "#sparsegate/text/dataset.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";
import { evaluate } from "#sparsegate/train/evaluate.js";
import { trainStep } from "#sparsegate/train/step.js";
import { flags, readWhole, run, sentences, steps, writeTexts } from "../cli/helpers.js";

const lines = sentences(40);
const vocabulary = WordVocabulary.fromCounts(lines);
const dataset: TokenDataset = tokenizeCorpus(lines, vocabulary);
const batches = { batchSize: 4, timeSteps: 5, mode: "sentences" } as const;

const moe: MiddleConfig = { kind: "moe", numExperts: 4, topK: 2, expertHiddenSize: 8, importanceWeight: 0.1, loadWeight: 0.1 };
const dense: MiddleConfig = { kind: "dense", hiddenSizes: [16, 16] };

function makeModel(middle: MiddleConfig): LanguageModel {
  return new LanguageModel({
    vocabSize: vocabulary.vocabSize,
    hiddenSize: 8,
    lstmSize: 12,
    middle,
    dropout: 0.5,
    sigmoid: true,
    residual: true,
    seed: 0,
  });
}

/** What a training step says, and what an evaluation says. */
function complaints(model: LanguageModel): { step: string; evaluation: string } {
  const optimizer = new Adam(model.namedParameters());
  const before = [...model.namedParameters().values()].map((p) => p.dataSync());
  const said = (action: () => unknown): string => {
    try {
      action();
    } catch (error) {
      if (!(error instanceof NonFiniteError)) throw error;
      return error.message;
    }
    return "nothing";
  };
  const batch = new BatchStream(dataset, { ...batches, seed: 0 }).next();
  const step = said(() =>
    trainStep({ model, optimizer, states: undefined }, batch, { seed: 0, learningRate: 0.1, maxGradNorm: 1, sampledSoftmax: 0 }),
  );
  const evaluation = said(() => evaluate(model, evaluationBatches(dataset, batches)));
  // Parameters are as they were before the step.
  expect([...model.namedParameters().values()].map((p) => p.dataSync())).toEqual(before);
  optimizer.dispose();
  model.dispose();
  return { step, evaluation };
}

/** Overwrites a parameter, element by element. */
function poison(model: LanguageModel, name: string, value: (i: number) => number): void {
  const p: Tensor = model.namedParameters().get(name)!;
  p.backend.write(
    p.buffer,
    Float32Array.from({ length: p.size }, (_, i) => value(i)),
  );
}

const hint = "Lower the learning rate (--learning-rate) or clip the gradients harder (--max-grad-norm).";

describe("the name in the message is that of", () => {
  test.each([
    ...makeModel(moe).namedParameters().keys(),
    ...[...makeModel(dense).namedParameters().keys()].filter((name) => name.startsWith("dense")),
  ])("the parameter %s, when it holds NaN", (name) => {
    const model = makeModel(name.startsWith("dense") ? dense : moe);
    poison(model, name, () => NaN);
    expect(complaints(model)).toEqual({
      step: `Step 1: expected finite values in parameter ${name}, got NaN. ${hint}`,
      // Noise is for training alone.
      evaluation: name.endsWith("noiseWeight")
        ? "nothing"
        : `Evaluation: expected finite values in parameter ${name}, got NaN. ${hint}`,
    });
  });

  /**
   * All parameters are finite, and one is so large that the products with it overflow: embeddings of 1e9 reach every layer along the residual connections.
   * An LSTM saturates, whatever comes in; its projection can overflow.
   */
  const alternating = (columns: number) => (i: number) => (Math.floor(i / columns) % 2 === 0 ? 1e30 : -1e30);
  const layers: Record<string, { middle: MiddleConfig; parameter: string; value: (i: number) => number }> = {
    "lstm.0": { middle: moe, parameter: "lstm.0.projection", value: () => 3e38 },
    "moe.gate": { middle: moe, parameter: "moe.gate.weight", value: alternating(4) },
    "moe.experts": { middle: moe, parameter: "moe.experts.inputWeight", value: alternating(8) },
    dense: { middle: dense, parameter: "dense.layers.0.weight", value: alternating(16) },
    "lstm.1": { middle: moe, parameter: "lstm.1.projection", value: () => 3e38 },
    softmax: { middle: moe, parameter: "softmaxWeight", value: alternating(1) },
  };
  test.each(Object.entries(layers))(
    "the layer %s, when its output is the first to overflow",
    (layer, { middle, parameter, value }) => {
      const model = makeModel(middle);
      poison(model, "embedding.weight", () => 1e9);
      poison(model, parameter, value);
      const { step, evaluation } = complaints(model);
      expect(step).toMatch(
        new RegExp(`^Step 1: expected a finite output of ${layer.replace(".", "\\.")}, got (NaN|-?Infinity)\\. `),
      );
      expect(step).toContain(hint);
      expect(evaluation).toMatch(new RegExp(`^Evaluation: expected a finite output of ${layer.replace(".", "\\.")}, got `));
    },
  );

  test("the embedding, when dropout scales it beyond what float32 holds", () => {
    const model = makeModel(moe);
    poison(model, "embedding.weight", () => 3e38);
    expect(complaints(model).step).toBe(`Step 1: expected a finite output of embedding, got Infinity. ${hint}`);
  });
});

describe("a run whose loss blows up", () => {
  const root = mkdtempSync(join(tmpdir(), "sparsegate-non-finite-"));
  const output = join(root, "run");
  const config = {
    train: "train.txt",
    valid: "valid.txt",
    tokenizer: "words",
    model: "MoE-8",
    hidden_size: 16,
    batch_size: 4,
    time_steps: 6,
    max_steps: 4,
    save_steps: 1,
    save_total_limit: 1,
    output_dir: output,
  };
  beforeAll(async () => {
    writeTexts(root);
    const { code, stderr } = await run(["train", ...flags(config)], { cwd: root });
    expect(code, stderr).toBe(0);
  }, 60_000);
  afterAll(() => rmSync(root, { recursive: true }));

  const onwards = (changes: Record<string, string | number>): string[] => [
    "train",
    ...flags({ resume: output, schedule: "constant", max_steps: 12, ...changes }),
  ];
  const lastLine = (stderr: string): string => stderr.trim().split("\n").at(-1)!;

  // 1e30 is a float32, so the step that it is used in goes through; 1e39 is none, and the parameters are infinite after it.
  test.each([
    [
      "an infinite update",
      "1e39",
      /^(checkpoint|Evaluation|Step \d+): expected finite values in (parameter )?embedding\.weight, got -?Infinity\. /,
    ],
  ])(
    "by %s (learning rate %s) ends with 1 and keeps its only checkpoint, from which training goes on",
    { timeout: 60_000 },
    async (_, learning_rate, says) => {
      const before = readFileSync(join(output, "checkpoint-4/trainer_state.json"));
      const { code, stderr, stdout } = await run(onwards({ learning_rate }), { cwd: root });
      expect(code, stderr).toBe(1);
      expect(stdout).toBe("");
      expect(lastLine(stderr)).toMatch(says);
      expect(lastLine(stderr)).toContain(`The last good checkpoint is ${output}/checkpoint-4.`);
      expect(stderr).not.toMatch(/\n\s+at /);
      expect(steps(output)).toEqual([4]);
      readWhole(join(output, "checkpoint-4"));
      expect(readFileSync(join(output, "checkpoint-4/trainer_state.json"))).toEqual(before);
      const onward = await run(onwards({ max_steps: 4 }), { cwd: root });
      expect(onward.code, onward.stderr).toBe(0);
    },
  );

  test("at its next step names the step and the layer", { timeout: 60_000 }, async () => {
    // 1e30 is a float32: the parameters are finite after the update, and nothing computed from them is.
    const { code, stderr } = await run(onwards({ learning_rate: "1e30", save_steps: 100, eval_steps: 100 }), { cwd: root });
    expect(code, stderr).toBe(1);
    expect(lastLine(stderr)).toMatch(
      /^Step 6: expected a finite output of (embedding|lstm\.0|moe\.gate), got (NaN|-?Infinity)\. /,
    );
    expect(steps(output)).toEqual([4]);
  });

  test("before its first checkpoint says that there is none", { timeout: 60_000 }, async () => {
    const { code, stderr } = await run(
      ["train", ...flags({ ...config, output_dir: join(root, "young"), learning_rate: "1e39", schedule: "constant" })],
      { cwd: root },
    );
    expect(code, stderr).toBe(1);
    expect(lastLine(stderr)).toMatch(/No checkpoint had been written yet\.$/);
  });
});
