/** Strictly balanced gating (Shazeer et al. 2017, App. F) against the loop, by hand, in its equal loads, and in what its thresholds learn. */

import { describe, expect, it } from "vitest";
import { MoE } from "#sparsegate/moe/layer.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import * as sg from "#sparsegate/tensor/index.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { equalsDenseLoop } from "./claims.js";
import { routedCounts, usedBy } from "./harness.js";
import { EVALUATION, fill, givenProbabilities, list, multiples, TRAINING } from "./helpers.js";

equalsDenseLoop("strictly-balanced");

const P = [
  [0.9, 0.1],
  [0.6, 0.4],
  [0.3, 0.7],
  [0.2, 0.8],
];

for (const { name, make } of BACKENDS) {
  describe(`strictly balanced gating on the ${name} backend`, () => {
    useBackend(make);

    it("gives every expert its m = ⌊1.5·4/2⌋ = 3 best rows, weighted by probabilities over the sum of the chosen", () => {
      const { moe, x } = givenProbabilities(P, [1, 10], "strictly-balanced", { topK: 1.5 });
      const out = moe.forward(x, TRAINING);
      // Expert 0 takes rows 0, 1, 2; expert 1 takes rows 3, 2, 1.
      expect(usedBy(out, 4).map((of) => of.map((a) => a.expert))).toEqual([[0], [0, 1], [0, 1], [1]]);
      // 1·1, 0.6·1 + 0.4·10, 0.3·1 + 0.7·10, 1·10
      multiples(out.output, x).forEach((m, n) => expect(m).toBeCloseTo([1, 4.6, 7.3, 10][n]!, 4));
      expect(list(out.load)).toEqual([3, 3]);
    });

    it("has the loss Σ (M_threshold − M_batchwise)·(X − T) per row, and ∂/∂log T = T·(rows chosen − rows above)", () => {
      const { moe, x } = givenProbabilities(P, [1, 10], { type: "strictly-balanced", thresholdWeight: 2 }, { topK: 1.5 });
      const threshold = moe.namedParameters().get("gate.logThreshold")!;
      // The start: T = 1/numExperts. Above it are 0.9, 0.6 and 0.7, 0.8; batchwise also 0.3 of expert 0 and 0.4 of expert 1: −(0.3 − 0.5) − (0.4 − 0.5).
      list(threshold).forEach((t) => expect(Math.exp(t)).toBeCloseTo(0.5, 6));
      const { auxLoss } = moe.forward(x, TRAINING);
      expect(auxLoss.item()).toBeCloseTo((2 * 0.3) / 4, 6);
      sg.backward(auxLoss);
      // One row more is chosen than is above, for both experts: T has to fall.
      for (const g of denseGradient(threshold)) expect(g).toBeCloseTo((2 * 0.5 * (3 - 2)) / 4, 6);
    });

    it("at inference uses what is above the thresholds; rows that no expert picks give zero and can be counted", () => {
      const { moe, x } = givenProbabilities(P, [1, 10], "strictly-balanced", { topK: 1.5 });
      fill(moe.namedParameters().get("gate.logThreshold")!, (i) => Math.log([0.25, 0.75][i]!));
      const out = moe.forward(x, EVALUATION);
      // Above 0.25 for expert 0: rows 0, 1, 2; above 0.75 for expert 1: row 3.
      expect(usedBy(out, 4).map((of) => of.map((a) => a.expert))).toEqual([[0], [0], [0], [1]]);
      expect(out.auxLoss.item()).toBe(0);
      fill(moe.namedParameters().get("gate.logThreshold")!, () => Math.log(0.75));
      const few = moe.forward(x, EVALUATION);
      expect(list(few.load)).toEqual([1, 1]);
      const offsets = list(few.rowOffsets!);
      expect([0, 1, 2, 3].filter((n) => offsets[n] === offsets[n + 1])).toEqual([1, 2]);
      multiples(few.output, x).forEach((m, n) => expect(m).toBeCloseTo([1, 0, 0, 10][n]!, 5));
      expect(list(few.output).slice(2, 6)).toEqual([0, 0, 0, 0]);
      fill(moe.namedParameters().get("gate.logThreshold")!, () => Math.log(0.95));
      const none = moe.forward(x, EVALUATION);
      expect(list(none.output)).toEqual(new Array(8).fill(0));
      expect(list(none.load)).toEqual([0, 0]);
    });

    it("gives every expert exactly the same number of training rows, for any numbers of rows, experts and k", () => {
      for (const [rows, E, k] of [
        [64, 8, 2], // 16 each
        [50, 8, 2], // 12.5: 12 each
        [7, 3, 1], // 2.33: 2 each
        [31, 5, 1.5], // 9.3: 9 each
        [10, 16, 1], // fewer rows than experts, 0.6: 1 each
        [3, 16, 4], // 0.75: 1 each
        [1, 16, 4], // one row goes to all
        [9, 4, 4], // all rows to all
        [200, 300, 2], // 1.33: 1 each
      ] as const) {
        const moe = new MoE({ hiddenSize: 4, numExperts: E, topK: k, gate: "strictly-balanced", expertHiddenSize: 2 });
        const out = moe.forward(sg.randomNormal([rows, 4], { seed: rows }), TRAINING);
        const m = Math.min(rows, Math.max(1, Math.floor((k * rows) / E)));
        expect(routedCounts(out), `${rows} rows, ${E} experts, k = ${k}`).toEqual(new Array(E).fill(m));
        expect(list(out.load)).toEqual(new Array(E).fill(m));
      }
    });
    it("does so where all rows are the same: equal values go to the first rows", () => {
      const moe = new MoE({ hiddenSize: 2, numExperts: 4, topK: 2, gate: "strictly-balanced", expertHiddenSize: 2 });
      const out = moe.forward(sg.full([6, 2], 1), TRAINING);
      expect(routedCounts(out)).toEqual([3, 3, 3, 3]);
      expect(usedBy(out, 6).map((of) => of.length)).toEqual([4, 4, 4, 0, 0, 0]);
    });
  });
}

describe("thresholds of strictly balanced gating", () => {
  useBackend(BACKENDS[1].make);
  it("learn to choose as the batchwise mask does: on new batches 95% of all pairs agree, and 85% of the chosen ones both ways", () => {
    const [E, k, D, rows, steps] = [8, 2, 8, 256, 300];
    const moe = new MoE({ hiddenSize: D, numExperts: E, topK: k, gate: "strictly-balanced", expertHiddenSize: 4 });
    const adam = new Adam(moe.gate.namedParameters());
    const batch = (seed: number) => sg.randomNormal([rows, D], { seed });
    /** Pairs of row and expert in use. */
    const mask = (seed: number, training: boolean): Set<string> =>
      new Set(
        usedBy(moe.forward(batch(seed), { ...TRAINING, training }), rows).flatMap((of, n) => of.map((a) => `${n} ${a.expert}`)),
      );
    const agreement = () => {
      let [both, batchwise, above] = [0, 0, 0];
      for (let seed = 1e6; seed < 1e6 + 5; seed++) {
        const [a, b] = [mask(seed, true), mask(seed, false)];
        both += [...a].filter((pair) => b.has(pair)).length;
        batchwise += a.size;
        above += b.size;
      }
      return { pairs: 1 - (batchwise + above - 2 * both) / (5 * rows * E), ofChosen: both / batchwise, ofAbove: both / above };
    };
    const before = agreement();
    // Thresholds start at 1/numExperts, above which there are too many.
    expect(before.ofAbove).toBeLessThan(0.75);
    for (let step = 0; step < steps; step++) {
      sg.scope(() => {
        sg.backward(moe.forward(batch(step), { ...TRAINING, step }).auxLoss);
        adam.step(0.02 * Math.min(1, 2 * (1 - step / steps)));
        adam.zeroGrad();
      });
    }
    const after = agreement();
    console.log(
      `strictly balanced: ${JSON.stringify({ before, after }, (_, v: unknown) => (typeof v === "number" ? Number(v.toFixed(3)) : v))}`,
    );
    expect(after.pairs).toBeGreaterThan(0.95);
    expect(after.ofChosen).toBeGreaterThan(0.85);
    expect(after.ofAbove).toBeGreaterThan(0.85);
  });
});
