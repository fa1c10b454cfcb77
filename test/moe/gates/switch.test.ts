/** Switch routing (Fedus et al. 2021) against the loop, and golden values worked out by hand: one expert a row, capacity, loss, the gradient of a single choice. */

import { describe, expect, it } from "vitest";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { equalsDenseLoop } from "./claims.js";
import { routedCounts } from "./harness.js";
import { EVALUATION, fill, givenProbabilities, input, list, multiples, Times, TRAINING } from "./helpers.js";

equalsDenseLoop("switch");

/** Four rows over three experts: the first three want expert 0, the last one expert 1. */
const P = [
  [0.6, 0.3, 0.1],
  [0.5, 0.1, 0.4],
  [0.7, 0.2, 0.1],
  [0.2, 0.75, 0.05],
];
const FACTORS = [1, 10, 100];
const GATE = { type: "switch", jitter: 0 } as const;

for (const { name, make } of BACKENDS) {
  describe(`Switch routing by hand on the ${name} backend`, () => {
    useBackend(make);

    it("weights the best expert by its probability over ALL experts", () => {
      const { moe, x } = givenProbabilities(P, FACTORS, GATE);
      const out = moe.forward(x, TRAINING);
      expect(list(out.experts)).toEqual([0, 0, 0, 1]);
      // p·factor of the chosen: 0.6·1, 0.5·1, 0.7·1, 0.75·10.
      multiples(out.output, x).forEach((m, n) => expect(m).toBeCloseTo([0.6, 0.5, 0.7, 7.5][n]!, 5));
      // Importance is the sum of the gate values.
      list(out.importance).forEach((v, e) => expect(v).toBeCloseTo([1.8, 0.75, 0][e]!, 5));
      expect(list(out.load)).toEqual([3, 1, 0]);
      expect(out.requested).toBe(4);
    });

    it("has the loss α·n·Σ f·P: 0.01·3·(3/4·0.5 + 1/4·0.3375)", () => {
      const { moe, x } = givenProbabilities(P, FACTORS, GATE);
      // P: means of the columns, (0.6 + 0.5 + 0.7 + 0.2)/4 = 0.5 and (0.3 + 0.1 + 0.2 + 0.75)/4 = 0.3375; nobody chose expert 2.
      const want = 0.01 * 3 * (0.75 * 0.5 + 0.25 * 0.3375);
      expect(moe.forward(x, TRAINING).auxLoss.item()).toBeCloseTo(want, 7);
      // Capacity changes nothing in it: the loss is on what rows want.
      const tight = givenProbabilities(P, FACTORS, { ...GATE, capacityFactor: 0.1 });
      expect(tight.moe.forward(tight.x, TRAINING).auxLoss.item()).toBeCloseTo(want, 7);
    });

    it("with capacity ⌈1·4/3⌉ = 2 drops the third row for expert 0 by arrival, and the one with the lowest weight by probability", () => {
      const arrival = givenProbabilities(P, FACTORS, { ...GATE, capacityFactor: 1 });
      const first = arrival.moe.forward(arrival.x, TRAINING);
      expect(list(first.experts)).toEqual([0, 0, -1, 1]);
      multiples(first.output, arrival.x).forEach((m, n) => expect(m).toBeCloseTo([0.6, 0.5, 0, 7.5][n]!, 5));
      expect(list(first.output).slice(6, 9)).toEqual([0, 0, 0]);
      expect(routedCounts(first)).toEqual([2, 1, 0]);

      const best = givenProbabilities(P, FACTORS, { ...GATE, capacityFactor: 1, dropPolicy: "probability" });
      const second = best.moe.forward(best.x, TRAINING);
      // Weights 0.6, 0.5, 0.7 for expert 0: the row of 0.5 goes.
      expect(list(second.experts)).toEqual([0, -1, 0, 1]);
      multiples(second.output, best.x).forEach((m, n) => expect(m).toBeCloseTo([0.6, 0, 0.7, 7.5][n]!, 5));
      // Wanted and dropped are still counted.
      for (const out of [first, second]) {
        expect(list(out.load)).toEqual([3, 1, 0]);
        expect(out.requested! - list(out.routing.offsets)[3]!).toBe(1);
      }
    });

    it("(3) has a gradient with a single expert: ∂(p_i·y)/∂logit_j = p_i·(δ_ij − p_j)·y", () => {
      const { moe, x } = givenProbabilities([[0.6, 0.3, 0.1]], FACTORS, { ...GATE, auxLossWeight: 0 });
      sg.backward(sg.sum(moe.forward(x, TRAINING).output));
      const row = [0.6, 0.3, 0.1].map(Math.log);
      // Objective Σ_d p_0·1·x_d, and logit_j = Σ_d x_d·W_dj.
      const sum = row.reduce((a, b) => a + b, 0);
      const slopes = [0.6 * (1 - 0.6), -0.6 * 0.3, -0.6 * 0.1].map((s) => s * sum);
      const gradient = denseGradient(moe.namedParameters().get("gate.weight")!);
      for (let d = 0; d < 3; d++) for (let j = 0; j < 3; j++) expect(gradient[3 * d + j]).toBeCloseTo(slopes[j]! * row[d]!, 4);
      // And through the expert and through the gate to x: W is the unit matrix.
      denseGradient(x).forEach((g, d) => expect(g).toBeCloseTo(0.6 + slopes[d]!, 5));
    });

    it("takes the softmax BEFORE the choice: an expert that is not chosen weighs on the gate value of the one that is", () => {
      const gateOf = (third: number): number => {
        const { moe, x } = givenProbabilities([[4, 2, third]], FACTORS, GATE);
        return list(moe.forward(x, TRAINING).gates)[0]!;
      };
      expect(gateOf(1)).toBeCloseTo(4 / 7, 5);
      expect(gateOf(2)).toBeCloseTo(4 / 8, 5);
    });

    describe("jitter", () => {
      const D = 6;
      const layer = (jitter: number): { moe: MoE; experts: Times[] } => {
        const experts = [0, 1, 2, 3].map((i) => new Times(i));
        const moe = new MoE({ hiddenSize: D, numExperts: 4, gate: { type: "switch", jitter }, experts });
        fill(moe.namedParameters().get("gate.weight")!, (i) => Math.sin(7 * i + 1));
        return { moe, experts };
      };
      const rows = Array.from({ length: 50 }, (_, n) => Array.from({ length: D }, (_, d) => Math.fround(Math.sin(n + 2.3 * d))));

      it("(7) shakes what the router sees, and neither x nor what the experts see", () => {
        const { moe, experts } = layer(0.3);
        const x = input(rows);
        const before = list(x);
        const out = moe.forward(x, TRAINING);
        expect(list(x)).toEqual(before);
        const seen = experts.flatMap((e) => e.seen.map((row) => row.join())).sort();
        expect(seen).toEqual(rows.map((row) => row.join()).sort());
        expect(list(out.gates)).not.toEqual(list(layer(0).moe.forward(x, TRAINING).gates));
      });
      it("(7) is drawn in training alone: evaluation is that of a gate without jitter, whatever the seed", () => {
        const x = input(rows);
        const still = list(layer(0).moe.forward(x, EVALUATION).output);
        expect(list(layer(0.3).moe.forward(x, EVALUATION).output)).toEqual(still);
        expect(list(layer(0.3).moe.forward(x, { ...EVALUATION, seed: 9, step: 8 }).output)).toEqual(still);
      });
      it("in groups takes no more memory than the rows dealt to them", () => {
        const [N, width, groups] = [64, 256, 64];
        const peak = (jitter: number): number => {
          const gate = { type: "switch", jitter } as const;
          const moe = new HierarchicalMoE({ hiddenSize: width, numExperts: [groups, 2], gate, secondaryGate: gate, expertHiddenSize: 4 });
          const x = sg.randomNormal([N, width], { seed: 1 });
          x.backend.resetPeak();
          const before = x.backend.memory().used;
          sg.scope(() => void moe.forward(x, TRAINING));
          return x.backend.memory().peak - before;
        };
        // What is shaken and by how much, at either level, where a matrix for all pairs of rows and groups would be sixty-four times x.
        expect(peak(0.1) - peak(0)).toBeLessThan(5 * N * width * 8);
      });
      it("is uniform in [1 − ε, 1 + ε]: with one row of ones and W the unit matrix the logits are the factors", () => {
        const E = 400;
        const moe = new MoE({ hiddenSize: E, numExperts: E, gate: { type: "switch", jitter: 0.2 }, experts: () => new Times(1) });
        const gate = moe.namedParameters().get("gate.weight")!;
        fill(gate, (i) => (i % (E + 1) === 0 ? 1 : 0));
        const factors: number[] = [];
        // Only the largest logit can be seen, through p = e^max / Σ e^l; means of both sides over steps tell the rest.
        const sums: number[] = [];
        for (let step = 0; step < 5; step++) {
          const out = moe.forward(input([new Array<number>(E).fill(1)]), { ...TRAINING, step });
          factors.push(list(out.experts)[0]!);
          sums.push(1 / list(out.gates)[0]!);
        }
        // The largest of 400 is near 1.2; Σ e^l is near 400·∫ e^u du/0.4 over [0.8, 1.2] = 1000·(e^1.2 − e^0.8), give or take √400·0.31.
        const wanted = (1000 * (Math.exp(1.2) - Math.exp(0.8))) / Math.exp(1.2);
        for (const s of sums) expect(Math.abs(s - wanted)).toBeLessThan(20);
        // Another step, another draw.
        expect(new Set(factors).size).toBeGreaterThan(1);
      });
    });

    it("starts with a tenth of the usual variance: standard deviation √(0.1/hiddenSize)", () => {
      const moe = new MoE({ hiddenSize: 100, numExperts: 50, gate: "switch", expertHiddenSize: 1 });
      const w = list(moe.namedParameters().get("gate.weight")!);
      const variance = w.reduce((sum, v) => sum + v * v, 0) / w.length;
      // 5000 draws: the variance is within 4·√(2/5000) = 8% of 0.001.
      expect(Math.abs(variance / 0.001 - 1)).toBeLessThan(0.08);
    });
  });
}
