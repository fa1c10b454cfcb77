/** What an evaluation says of experts: targets alone count, whatever the shape of the batches, and gates whose rows differ in their number of experts are read right. */

import { afterAll, describe, expect, test } from "vitest";
import { LanguageModel } from "#sparsegate/models/language-model.js";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { evaluate, type RoutedBatch } from "#sparsegate/train/evaluate.js";
import { makeDatasets, modelConfig } from "#sparsegate/train/setup.js";
import { specialisation } from "#sparsegate/train/specialisation.js";
import { evaluateOn } from "#sparsegate/train/trainer.js";
import { evaluationBatches } from "#sparsegate/text/batches.js";
import { sentences } from "../cli/helpers.js";

afterAll(() => defaultBackend().dispose());

const lines = sentences(40);

function setUp(options: Record<string, unknown>) {
  const config = checkConfig({ train: "x", tokenizer: "words", hidden_size: 8, model: "MoE-8", ...options }, "the test");
  const datasets = makeDatasets(config, { train: lines });
  return { config, datasets, model: new LanguageModel(modelConfig(config, datasets.tokenizer.vocabSize)) };
}

describe("balance in an evaluation", () => {
  test("is of targets alone: padding, which is most of a batch of many lanes, counts for nothing", () => {
    const { config, datasets, model } = setUp({ gate: "switch" });
    const tokens = datasets.train.tokens.length;
    const of = (batch_size: number, time_steps: number) =>
      evaluateOn(model, datasets.train, { ...config, batch_size, time_steps });
    const [narrow, wide] = [of(1, tokens), of(64, 12)];
    expect(narrow.tokens).toBe(tokens);
    for (const found of [narrow, wide]) expect(found.load!.reduce((sum, n) => sum + n, 0)).toBe(tokens);
    expect(wide.load).toEqual(narrow.load);
    expect(wide.balance!.maxOverMeanLoad).toBe(narrow.balance!.maxOverMeanLoad);
    expect(wide.balance!.cvImportance).toBeCloseTo(narrow.balance!.cvImportance, 5);
    model.dispose();
  });

  test("has the dropped share of all that was asked for", () => {
    const { config, datasets, model } = setUp({ gate: "switch", eval_capacity_factor: 0.25, batch_size: 4, time_steps: 8 });
    const found = evaluateOn(model, datasets.train, config);
    // 8 experts take at most ⌈0.25 · 32 / 8⌉ = 1 row of a batch of 32 each.
    expect(found.droppedFraction).toBeGreaterThanOrEqual(0.75);
    expect(found.droppedFraction).toBeLessThan(1);
    model.dispose();
  });
});

const kinds: Record<string, unknown>[] = [
  { gate: "noisy-top-k" },
  { gate: "strictly-balanced" },
  { gate: "expert-choice" },
  { model: "MoE-16-h", branching: 4 },
];

describe.each(kinds)("with %j", (options) => {
  test("each row's assignments are its own: their weights sum to what the gate gives a row", () => {
    const { datasets, model } = setUp(options);
    const batches: RoutedBatch[] = [];
    evaluate(model, evaluationBatches(datasets.train, { batchSize: 4, timeSteps: 8, mode: "sentences" }), {
      onRouted: (routed) => batches.push(routed),
    });
    for (const { rowOffsets, experts, gates } of batches) {
      expect(rowOffsets).toHaveLength(33);
      expect([rowOffsets[0], rowOffsets[32]]).toEqual([0, options["gate"] === "expert-choice" ? 8 * 8 : experts.length]);
      for (let row = 0; row < 32; row++) {
        const chosen = experts.slice(rowOffsets[row], rowOffsets[row + 1]);
        expect(new Set(chosen).size).toBe(chosen.length);
        const sum = Array.from(gates).slice(rowOffsets[row], rowOffsets[row + 1]).reduce((a, b) => a + b, 0); // prettier-ignore
        // Expert choice weighs by the softmax over all experts; the others renormalise, and thresholds may pass a row by.
        if (options["gate"] === "expert-choice") expect(sum).toBeLessThanOrEqual(1 + 1e-6);
        else if (chosen.length > 0) expect(sum).toBeCloseTo(1, 5);
      }
    }
    model.dispose();
  });

  test("what experts specialise in counts as many tokens as they took", () => {
    const { datasets, model } = setUp(options);
    const texts = lines.map((text, i) => ({ text, label: i % 2 === 0 ? "even" : "odd" }));
    const { experts } = specialisation(model, datasets.tokenizer, texts, { batchSize: 8 });
    const taken = experts.reduce((sum, { tokens }) => sum + tokens, 0);
    const rows = datasets.train.tokens.length;
    if (options["gate"] === "noisy-top-k" || options["model"]) expect(taken).toBe(4 * rows);
    else expect(taken).toBeGreaterThan(0);
    for (const { shares } of experts) expect(shares.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 9);
    model.dispose();
  });
});
