/** Expert choice routing (Zhou et al. 2022) against the loop and by hand: experts pick rows, each as many. */

import { describe, expect, it } from "vitest";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { equalsDenseLoop } from "./claims.js";
import { routedCounts, usedBy } from "./harness.js";
import { EVALUATION, givenProbabilities, multiples, TRAINING } from "./helpers.js";

equalsDenseLoop("expert-choice");

const P = [
  [0.9, 0.1],
  [0.6, 0.4],
  [0.45, 0.55],
  [0.48, 0.52],
];

for (const { name, make } of BACKENDS) {
  describe(`expert choice on the ${name} backend`, () => {
    useBackend(make);

    it("takes each expert's m = ⌊k·rows/experts⌋ best rows with their probabilities as weights; others give zero", () => {
      const { moe, x } = givenProbabilities(P, [1, 10], "expert-choice", { topK: 1 });
      for (const context of [TRAINING, EVALUATION]) {
        const out = moe.forward(x, context);
        // m = 2: expert 0 takes rows 0 and 1, expert 1 rows 2 and 3.
        multiples(out.output, x).forEach((v, n) => expect(v).toBeCloseTo([0.9, 0.6, 5.5, 5.2][n]!, 5));
      }
      const half = givenProbabilities(P, [1, 10], "expert-choice", { topK: 0.5 });
      const out = half.moe.forward(half.x, TRAINING);
      // m = 1
      multiples(out.output, half.x).forEach((v, n) => expect(v).toBeCloseTo([0.9, 0, 5.5, 0][n]!, 5));
      expect(usedBy(out, 4).map((of) => of.length)).toEqual([1, 0, 1, 0]);
    });
    it("lets a row have any number of experts: all, some or none", () => {
      // Row 0 is nearest to both experts: of (1, 1, −2) and (0, 0, 0) and (−1, −1, 2) logits.
      const moe = new MoE({ hiddenSize: 3, numExperts: 3, topK: 1, gate: "expert-choice", expertHiddenSize: 2 });
      const gate = moe.namedParameters().get("gate.weight")!;
      gate.backend.write(gate.buffer, [1, 0, 0, 0, 1, 0, 0, 0, 1]);
      const x = sg.tensor([1, 1, -2, 0, 0, 0, -1, -1, 2], [3, 3]);
      expect(usedBy(moe.forward(x, TRAINING), 3).map((of) => of.map((a) => a.expert))).toEqual([[0, 1], [], [2]]);
    });
    it("gives equal loads, and needs no loss", () => {
      for (const [rows, E, k] of [
        [50, 8, 2],
        [3, 16, 2],
        [31, 5, 1.5],
      ] as const) {
        const moe = new MoE({ hiddenSize: 4, numExperts: E, topK: k, gate: "expert-choice", expertHiddenSize: 2 });
        const out = moe.forward(sg.randomNormal([rows, 4], { seed: rows }), TRAINING);
        expect(routedCounts(out)).toEqual(new Array(E).fill(Math.max(1, Math.floor((k * rows) / E))));
        expect(out.auxLoss.item()).toBe(0);
      }
    });
    it("looks at the whole batch, in evaluation too: more rows can take an expert away from one", () => {
      const few = givenProbabilities(P.slice(1), [1, 10], "expert-choice", { topK: 0.5 });
      const all = givenProbabilities(P, [1, 10], "expert-choice", { topK: 0.5 });
      expect(multiples(few.moe.forward(few.x, EVALUATION).output, few.x)[0]).toBeCloseTo(0.6, 5);
      expect(multiples(all.moe.forward(all.x, EVALUATION).output, all.x)[1]).toBe(0);
    });
  });
}

it("is refused a capacity, of which there is nothing to limit", () => {
  expect(() => new MoE({ hiddenSize: 2, numExperts: 2, gate: "expert-choice", capacityFactor: 1 })).toThrow(
    /^gate expert-choice: expected options among .*, got "capacityFactor"\. The experts of this gate pick their rows/,
  );
});
