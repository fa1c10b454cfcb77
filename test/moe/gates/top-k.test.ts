/** Top-k with renormalised softmax (Mixtral) against the loop and by hand. */

import { describe, expect, it } from "vitest";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { equalsDenseLoop } from "./claims.js";
import { EVALUATION, givenProbabilities, list, multiples, TRAINING } from "./helpers.js";

equalsDenseLoop("top-k");

const P = [
  [0.6, 0.3, 0.1],
  [0.5, 0.1, 0.4],
  [0.7, 0.2, 0.1],
  [0.2, 0.75, 0.05],
];

for (const { name, make } of BACKENDS) {
  describe(`top-k gating on the ${name} backend`, () => {
    useBackend(make);

    it("weights the k best by their probabilities over their sum, without noise", () => {
      const { moe, x } = givenProbabilities(P, [1, 10, 100], "top-k", { topK: 2 });
      for (const context of [TRAINING, EVALUATION]) {
        const out = moe.forward(x, context);
        expect(list(out.experts)).toEqual([0, 1, 0, 2, 0, 1, 1, 0]);
        const want = [(0.6 + 3) / 0.9, (0.5 + 40) / 0.9, (0.7 + 2) / 0.9, (7.5 + 0.2) / 0.95];
        multiples(out.output, x).forEach((m, n) => expect(m).toBeCloseTo(want[n]!, 4));
      }
    });
    it("has the loss n·Σ f·P with every choice counted: 3·(4/4·0.5 + 3/4·0.3375 + 1/4·0.1625), 0.02 of it by default", () => {
      const { moe, x } = givenProbabilities(P, [1, 10, 100], "top-k", { topK: 2 });
      // Choices per row: expert 0 in all four, 1 in three, 2 in one. P: means of the columns.
      expect(moe.forward(x, TRAINING).auxLoss.item()).toBeCloseTo(0.02 * 3 * (0.5 + 0.75 * 0.3375 + 0.25 * 0.1625), 7);
    });
    it("has k for a loss in perfect balance", () => {
      for (const k of [1, 2, 3]) {
        // Each expert is first, second and third once.
        const rows = [
          [0.6, 0.3, 0.1],
          [0.1, 0.6, 0.3],
          [0.3, 0.1, 0.6],
        ];
        const { moe, x } = givenProbabilities(rows, [1, 1, 1], { type: "top-k", auxLossWeight: 1 }, { topK: k });
        expect(moe.forward(x, TRAINING).auxLoss.item()).toBeCloseTo(k, 5);
      }
    });
    it("(3) with k = 1 is constant 1, so that the gate learns from its loss alone", () => {
      const { moe, x } = givenProbabilities(P, [1, 10, 100], "top-k", { topK: 1 });
      expect(list(moe.forward(x, TRAINING).gates)).toEqual([1, 1, 1, 1]);
    });
  });
}
