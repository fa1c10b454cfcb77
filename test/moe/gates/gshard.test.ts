/** GShard's top-2 gating (Lepikhin et al. 2020) against the loop, and golden values worked out by hand: weights, policies, capacity, loss. */

import { describe, expect, it } from "vitest";
import { MoE } from "#sparsegate/moe/layer.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { equalsDenseLoop } from "./claims.js";
import { routedCounts } from "./harness.js";
import { EVALUATION, givenProbabilities, input, list, multiples, TRAINING } from "./helpers.js";

equalsDenseLoop("gshard");

/** Four rows over three experts. */
const P = [
  [0.6, 0.3, 0.1], // 0, then 1: weights 2/3 and 1/3
  [0.5, 0.1, 0.4], // 0, then 2: 5/9 and 4/9
  [0.7, 0.2, 0.1], // 0, then 1: 7/9 and 2/9
  [0.2, 0.75, 0.05], // 1, then 0: 15/19 and 4/19
];
const FACTORS = [1, 10, 100];
/** Weighted by the factors of the experts. */
const FIRST = [2 / 3, 5 / 9, 7 / 9, 150 / 19];
const SECOND = [10 / 3, 400 / 9, 20 / 9, 4 / 19];
const GATE = { type: "gshard", secondPolicy: "all" } as const;

for (const { name, make } of BACKENDS) {
  describe(`GShard's gating by hand on the ${name} backend`, () => {
    useBackend(make);
    const expectMultiples = (got: readonly number[], want: readonly number[]): void =>
      got.forEach((m, n) => expect(m).toBeCloseTo(want[n]!, 4));

    it("weights the two best by their probabilities over the sum of the two", () => {
      const { moe, x } = givenProbabilities(P, FACTORS, GATE);
      const out = moe.forward(x, TRAINING);
      expect(list(out.experts)).toEqual([0, 1, 0, 2, 0, 1, 1, 0]);
      expectMultiples(
        multiples(out.output, x),
        FIRST.map((g, n) => g + SECOND[n]!),
      );
      list(out.importance).forEach((v, e) =>
        expect(v).toBeCloseTo([2 / 3 + 5 / 9 + 7 / 9 + 4 / 19, 1 / 3 + 2 / 9 + 15 / 19, 4 / 9][e]!, 5),
      );
      expect(list(out.load)).toEqual([4, 3, 1]);
      expect(out.requested).toBe(8);
    });

    it("has the loss n²·mean_e(f_e·P_e) on first choices: 9·(3/4·0.5 + 1/4·0.3375)/3 times its weight", () => {
      // First choices: 0, 0, 0, 1. P: means of the columns; expert 2 is nobody's first.
      const want = (9 * (0.75 * 0.5 + 0.25 * 0.3375)) / 3;
      for (const policy of ["all", "none", "threshold", "random"] as const) {
        const { moe, x } = givenProbabilities(P, FACTORS, { ...GATE, secondPolicy: policy, auxLossWeight: 2 });
        expect(moe.forward(x, TRAINING).auxLoss.item()).toBeCloseTo(2 * want, 5);
      }
    });

    it("with capacity ⌈0.75·8/3⌉ = 2 drops one token whole: both of its experts are full", () => {
      const { moe, x } = givenProbabilities(P, FACTORS, { ...GATE, capacityFactor: 0.75 });
      const out = moe.forward(x, TRAINING);
      // First choices come first: rows 0 and 1 fill expert 0 and row 2 finds it full; row 3 has expert 1. Then second choices: row 0 fills expert 1, row 1 has
      // expert 2, row 2 finds expert 1 full, row 3 expert 0.
      expect(list(out.experts)).toEqual([0, 1, 0, 2, -1, -1, 1, -1]);
      expectMultiples(multiples(out.output, x), [FIRST[0]! + SECOND[0]!, FIRST[1]! + SECOND[1]!, 0, FIRST[3]!]);
      expect(list(out.output).slice(6, 9)).toEqual([0, 0, 0]);
      expect(routedCounts(out)).toEqual([2, 2, 1]);
      expect(out.requested! - list(out.routing.offsets)[3]!).toBe(3);
    });
    it("with capacity 2 by probability keeps the highest weights of each expert", () => {
      const { moe, x } = givenProbabilities(P, FACTORS, { ...GATE, capacityFactor: 0.75, dropPolicy: "probability" });
      const out = moe.forward(x, TRAINING);
      // Expert 0: 7/9 and 2/3 before 5/9 and 4/19. Expert 1: 15/19 and 1/3 before 2/9.
      expect(list(out.experts)).toEqual([0, 1, -1, 2, 0, -1, 1, -1]);
      expectMultiples(multiples(out.output, x), [FIRST[0]! + SECOND[0]!, SECOND[1]!, FIRST[2]!, FIRST[3]!]);
    });

    it("policy none uses first experts alone, with the weight that they have beside the second", () => {
      const { moe, x } = givenProbabilities(P, FACTORS, { ...GATE, secondPolicy: "none" });
      const out = moe.forward(x, TRAINING);
      expect(list(out.experts)).toEqual([0, -1, 0, -1, 0, -1, 1, -1]);
      expectMultiples(multiples(out.output, x), FIRST);
      expect(list(out.load)).toEqual([3, 1, 0]);
    });
    it("policy threshold uses the second where its weight exceeds it: 1/3 and 4/9 of the four exceed 0.3", () => {
      const { moe, x } = givenProbabilities(P, FACTORS, { ...GATE, secondPolicy: "threshold", secondThreshold: 0.3 });
      const out = moe.forward(x, TRAINING);
      expect(list(out.experts)).toEqual([0, 1, 0, 2, 0, -1, 1, -1]);
      expectMultiples(multiples(out.output, x), [FIRST[0]! + SECOND[0]!, FIRST[1]! + SECOND[1]!, FIRST[2]!, FIRST[3]!]);
    });
    it("counts as dropped what capacity dropped, not what a policy left out", () => {
      for (const policy of ["none", "threshold", "random"] as const) {
        const { moe, x } = givenProbabilities(P, FACTORS, { ...GATE, secondPolicy: policy, secondThreshold: 0.3 });
        const out = moe.forward(x, TRAINING);
        expect(out.requested).toBeUndefined();
        // Nothing was dropped: as many are routed as were wanted.
        expect(list(out.load).reduce((a, b) => a + b)).toBe(list(out.routing.offsets)[3]);
      }
    });

    it("policy random uses the second with probability min(1, weight / threshold)", () => {
      const rows = 4000;
      // Weights of the second: 0.05, 0.1, 0.3; threshold 0.2: probabilities 1/4, 1/2, 1.
      for (const [weight, probability] of [
        [0.05, 0.25],
        [0.1, 0.5],
        [0.3, 1],
      ] as const) {
        const { moe, x } = givenProbabilities(
          Array.from({ length: rows }, () => [1 - weight, weight, 1e-12]),
          [0, 0, 0],
          { ...GATE, secondPolicy: "random", secondThreshold: 0.2 },
        );
        const used = list(moe.forward(x, TRAINING).load)[1]!;
        // Four standard deviations of a binomial count; none where it is certain.
        const spread = 4 * Math.sqrt(rows * probability * (1 - probability));
        expect(Math.abs(used - rows * probability)).toBeLessThanOrEqual(spread);
        const experts = (change: object): number[] => list(moe.forward(x, { ...TRAINING, ...change }).experts);
        const base = experts({});
        expect(experts({})).toEqual(base);
        // Drawn anew at each step and seed, and by the row's own number.
        if (probability < 1) {
          for (const change of [{ step: 1 }, { seed: 2 }]) expect(experts(change)).not.toEqual(base);
          expect(experts({ firstRow: 1 }).slice(0, 2 * rows - 2)).toEqual(base.slice(2));
        } else for (const change of [{ step: 1 }, { seed: 2 }]) expect(experts(change)).toEqual(base);
      }
    });

    it("(10) evaluation is deterministic: random becomes threshold, with a threshold and a capacity of its own", () => {
      const options = {
        ...GATE,
        secondPolicy: "random",
        secondThreshold: 1,
        evalSecondThreshold: 0.3,
        evalCapacityFactor: 2,
      } as const;
      const { moe, x } = givenProbabilities(P, FACTORS, { ...options, capacityFactor: 0.1 });
      const base = moe.forward(x, EVALUATION);
      expect(list(base.experts)).toEqual([0, 1, 0, 2, 0, -1, 1, -1]);
      for (const change of [{ seed: 5 }, { step: 9 }, { firstRow: 3 }])
        expect(list(moe.forward(x, { ...EVALUATION, ...change }).experts)).toEqual(list(base.experts));
    });
    it("(10) refuses random in evaluation, and says why", () => {
      const make = () => new MoE({ hiddenSize: 3, numExperts: 3, gate: { type: "gshard", evalSecondPolicy: "random" as "all" } });
      expect(make).toThrow(
        /^GShardGate: expected evalSecondPolicy all, none or threshold, got "random"\. Evaluation is deterministic; threshold uses the second experts that random always uses\.$/,
      );
    });

    it("is the dense mixture of two experts when there are two", () => {
      const { moe, x } = givenProbabilities([[0.25, 0.75]], [1, 10], GATE);
      // 0.25·1 + 0.75·10
      expect(multiples(moe.forward(x, EVALUATION).output, x)[0]).toBeCloseTo(7.75, 4);
    });
    it("keeps rows finite whose probabilities all round to zero but one", () => {
      const { moe } = givenProbabilities([[0.6, 0.3, 0.1]], FACTORS, GATE);
      const out = moe.forward(input([[500, -500, -500]]), TRAINING);
      const [first, second] = list(out.gates) as [number, number];
      expect(first).toBeCloseTo(1, 7);
      expect(second).toBe(0);
      expect(list(out.output).every(Number.isFinite)).toBe(true);
    });
  });
}
