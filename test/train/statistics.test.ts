/** Statistics of a layer's output against counts by hand, and what reading them costs a training step: nothing where they are not asked for. */

import { afterAll, describe, expect, test, vi } from "vitest";
import { LanguageModel } from "#sparsegate/models/language-model.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE, type MoEOutput } from "#sparsegate/moe/layer.js";
import { moeStatistics, UnusedExperts } from "#sparsegate/moe/statistics.js";
import { routeByExpert, tensor, type Tensor } from "#sparsegate/tensor/index.js";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { makeDatasets, makeOptimizer, modelConfig } from "#sparsegate/train/setup.js";
import { trainStep } from "#sparsegate/train/step.js";
import { BatchStream } from "#sparsegate/text/batches.js";
import { sentences } from "../cli/helpers.js";

afterAll(() => defaultBackend().dispose());

const EVALUATION = { training: false, seed: 0, step: 0, firstRow: 0 };
const TRAINING = { ...EVALUATION, training: true };
const ints = (values: number[], shape: number[]): Tensor => tensor(values, shape, "int32");

/** What a layer of three experts would give for rows that chose so. */
function output(
  experts: number[],
  gates: number[],
  { rows, load = [0, 0, 0], importance = [1, 1, 1], requested, probabilities }: Given,
): MoEOutput {
  const assigned = rows
    ? { experts: ints(experts, [experts.length]), ...list(rows) }
    : { experts: ints(experts, [experts.length / 2, 2]) };
  return {
    output: tensor([0]),
    auxLoss: tensor(0),
    importance: tensor(importance),
    load: tensor(load),
    experts: assigned.experts,
    gates: tensor(gates, assigned.experts.shape),
    ...("rowOffsets" in assigned ? { rowOffsets: assigned.rowOffsets } : {}),
    routing: routeByExpert(assigned, 3),
    ...(requested === undefined ? {} : { requested }),
    ...(probabilities ? { probabilities: tensor(probabilities) } : {}),
  };
}

interface Given {
  /** Of a list: the row of each assignment, in order. */
  rows?: number[];
  load?: number[];
  importance?: number[];
  requested?: number;
  probabilities?: number[][];
}

function list(rows: number[]): { rows: Tensor; rowOffsets: Tensor } {
  const count = Math.max(...rows) + 2; // one more row, without an expert
  const starts = Array.from({ length: count + 1 }, (_, row) => rows.filter((r) => r >= 0 && r < row).length);
  return { rows: ints(rows, [rows.length]), rowOffsets: ints(starts, [count + 1]) };
}

describe("moeStatistics counts", () => {
  // Four rows of two choices each; three were dropped, and the last row lost both.
  const experts = [0, 1, 0, 2, 0, -1, -1, -1];
  const gates = [0.5, 0.5, 0.75, 0.25, 1, 0, 0.5, 0.5];

  test("rows of each expert after capacity, and how evenly they are spread", () => {
    const found = moeStatistics(output(experts, gates, { requested: 8 }));
    expect(found.load).toEqual([3, 1, 1]);
    // Mean 5/3, deviations 4/3, -2/3, -2/3: variance 8/9, so CV = √(8/9) / (5/3).
    expect(found.cvLoad).toBeCloseTo(Math.sqrt(8 / 9) / (5 / 3), 12);
    expect(found.maxOverMeanLoad).toBeCloseTo(9 / 5, 12);
    expect(found.unused).toBe(0);
  });

  test("what was dropped of what was asked for, and rows that no expert computed", () => {
    expect(moeStatistics(output(experts, gates, { requested: 8 }))).toMatchObject({ droppedFraction: 3 / 8, unroutedRows: 1 });
    // Where the number asked for depends on the data, it is what was counted.
    expect(moeStatistics(output(experts, gates, { load: [4, 2, 1] })).droppedFraction).toBeCloseTo(2 / 7, 6);
    expect(moeStatistics(output([0, 1, 1, 2], [1, 1, 1, 1], { requested: 4 }))).toMatchObject({
      droppedFraction: 0,
      unroutedRows: 0,
    });
  });

  test("CV² of importance and of load as the losses see them", () => {
    const found = moeStatistics(output(experts, gates, { requested: 8, importance: [2, 1, 0], load: [3, 3, 0] }));
    expect(found.importance).toEqual([2, 1, 0]);
    expect(found.importanceCv2).toBeCloseTo(2 / 3, 6);
    expect(found.loadCv2).toBeCloseTo(1 / 2, 6);
  });

  test("the entropy of the kept gates, over their sum, of rows that have some", () => {
    const found = moeStatistics(output(experts, gates, { requested: 8 }));
    const h = (...p: number[]): number => -p.reduce((sum, x) => sum + (x > 0 ? x * Math.log(x) : 0), 0);
    expect(found.entropyOf).toBe("kept");
    expect(found.entropy).toBeCloseTo((h(0.5, 0.5) + h(0.75, 0.25) + h(1) + h(0.5, 0.5)) / 4, 6);
    // Gate values that do not sum to 1, and a row without any.
    const listed = moeStatistics(output([0, 1, 2], [0.2, 0.6, 0.3], { rows: [0, 0, 1], load: [1, 1, 1] }));
    expect(listed.entropy).toBeCloseTo((h(0.25, 0.75) + h(1)) / 2, 6);
    expect(listed).toMatchObject({ unroutedRows: 1, droppedFraction: 0, load: [1, 1, 1] });
  });

  test("the entropy of the router where there is one: log 3 for one that knows nothing, 0 for one that is sure", () => {
    const third = [1 / 3, 1 / 3, 1 / 3];
    const found = moeStatistics(output(experts, gates, { probabilities: [third, [1, 0, 0], [1, 0, 0], third] }));
    expect(found.entropyOf).toBe("router");
    expect(found.entropy).toBeCloseTo(Math.log(3) / 2, 6);
  });

  test("nothing for a batch without rows, or with none that was taken", () => {
    for (const none of [output([], [], {}), output([-1, -1], [1, 1], { requested: 2 })]) {
      const found = moeStatistics(none);
      expect(found).toMatchObject({ load: [0, 0, 0], cvLoad: 0, maxOverMeanLoad: 0, unused: 3 });
      for (const value of Object.values(found).flat()) expect(typeof value === "string" || Number.isFinite(value)).toBe(true);
    }
  });
});

describe("the statistics of a layer", () => {
  // Eight rows that are all alike go to the same experts.
  const rows = tensor(Array.from({ length: 8 }, () => [1, 2, 3, 4]));
  const sizes = { hiddenSize: 4, expertHiddenSize: 4 };

  test("switch at capacity 1: an expert of four keeps 2 of 8 rows, 6 pass by", () => {
    const moe = new MoE({ ...sizes, numExperts: 4, gate: "switch", capacityFactor: 1, evalCapacityFactor: 4 });
    expect(moeStatistics(moe.forward(rows, { ...TRAINING, step: 1 }))).toMatchObject({
      droppedFraction: 0.75,
      unroutedRows: 6,
      unused: 3,
    });
    expect(moeStatistics(moe.forward(rows, EVALUATION))).toMatchObject({ droppedFraction: 0, unroutedRows: 0 });
    expect(moeStatistics(moe.forward(rows, EVALUATION)).entropyOf).toBe("router");
  });

  test("a capacity for evaluation alone holds there, in a hierarchical layer too", () => {
    const gate = { type: "top-k", evalCapacityFactor: 1 } as const;
    const flat = new MoE({ ...sizes, numExperts: 4, topK: 1, gate });
    const deep = new HierarchicalMoE({ ...sizes, numExperts: [2, 2], topK: [1, 1], gate: "top-k", secondaryGate: gate });
    for (const moe of [flat, deep]) {
      expect(moeStatistics(moe.forward(rows, TRAINING)).droppedFraction).toBe(0);
      expect(moeStatistics(moe.forward(rows, EVALUATION))).toMatchObject({ droppedFraction: 0.75, unroutedRows: 6 });
    }
  });

  test("second experts that gshard leaves out are not dropped: nobody asked for them", () => {
    for (const secondPolicy of ["all", "none", "random", "threshold"] as const) {
      const flat = new MoE({ ...sizes, numExperts: 4, gate: { type: "gshard", secondPolicy } });
      const deep = new HierarchicalMoE({ ...sizes, numExperts: [2, 4], gate: { type: "gshard", secondPolicy } });
      for (const moe of [flat, deep]) {
        const found = moeStatistics(moe.forward(rows, TRAINING));
        expect(found.droppedFraction, secondPolicy).toBe(0);
        if (secondPolicy === "none") expect(found.load.reduce((sum, n) => sum + n, 0)).toBe(8);
      }
    }
  });

  test("strictly balanced: every expert has k·N/E rows, and no smooth load enters", () => {
    const moe = new MoE({ ...sizes, numExperts: 4, topK: 2, gate: "strictly-balanced" });
    expect(moeStatistics(moe.forward(rows, TRAINING))).toMatchObject({
      load: [4, 4, 4, 4],
      cvLoad: 0,
      maxOverMeanLoad: 1,
      droppedFraction: 0,
    });
  });

  test("noisy top-k: load is counted, its CV² is the smooth estimate's", () => {
    const moe = new MoE({ ...sizes, numExperts: 4, topK: 2 });
    const out = moe.forward(rows, TRAINING);
    const found = moeStatistics(out);
    expect(found.load.reduce((sum, n) => sum + n, 0)).toBe(16);
    const smooth = Array.from(out.load.dataSync());
    expect(smooth.every(Number.isInteger)).toBe(false);
    const mean = smooth.reduce((a, b) => a + b, 0) / 4;
    expect(found.loadCv2).toBeCloseTo(smooth.reduce((sum, n) => sum + (n - mean) ** 2, 0) / 4 / mean ** 2, 6);
  });
});

describe("UnusedExperts", () => {
  test("counts the steps since each expert had rows", () => {
    const unused = new UnusedExperts(3);
    for (const load of [[1, 0, 0], [0, 0, 2], [3, 0, 0], [3, 0, 0]]) unused.observe(load); // prettier-ignore
    expect([...unused.steps]).toEqual([0, 4, 2]);
    expect(unused.longest).toBe(4);
    expect([unused.unusedFor(1), unused.unusedFor(3), unused.unusedFor(5)]).toEqual([[1, 2], [1], []]);
    const again = new UnusedExperts([...unused.steps]);
    again.observe([0, 1, 0]);
    expect([...again.steps]).toEqual([1, 0, 3]);
  });
  test("refuses the load of another layer", () => {
    expect(() => new UnusedExperts(3).observe([1, 2])).toThrow("UnusedExperts.observe: expected the load of 3 experts, got 2.");
    expect(new UnusedExperts(0).longest).toBe(0);
  });
});

test("a step that is not asked for statistics reads nothing for them from the backend, but the number of each expert's rows", () => {
  const settings = checkConfig(
    { train: "x", tokenizer: "words", model: "MoE-16", hidden_size: 8, batch_size: 4, time_steps: 6 },
    "the test",
  );
  const datasets = makeDatasets(settings, { train: sentences(100) });
  const model = new LanguageModel(modelConfig(settings, datasets.tokenizer.vocabSize));
  const optimizer = makeOptimizer(settings, model.namedParameters());
  const stream = new BatchStream(datasets.train, { batchSize: 4, timeSteps: 6, mode: "sentences", seed: 0 });
  const training = { model, optimizer, states: undefined };
  const read = vi.spyOn(model.softmaxWeight.backend, "readSync");
  /** Lengths of what a step reads. */
  const reads = (statistics: boolean): number[] => {
    read.mockClear();
    const result = trainStep(training, stream.next(), {
      seed: 0,
      learningRate: 1e-3,
      maxGradNorm: 1,
      sampledSoftmax: 0,
      statistics,
    });
    expect(result.load).toHaveLength(16);
    expect(result.statistics !== undefined).toBe(statistics);
    return read.mock.calls.map(([buffer]) => buffer.length).sort((a, b) => a - b);
  };
  reads(false);
  const without = reads(false);
  // Loss, balance loss, gradient norm, the offsets of 16 experts; and the indices of two look-ups, which are checked.
  expect(without.filter((length) => length <= 17)).toEqual([1, 1, 1, 17]);
  const withThem = reads(true);
  expect(withThem.length).toBeGreaterThan(without.length);
  read.mockRestore();
  optimizer.dispose();
  model.dispose();
});
