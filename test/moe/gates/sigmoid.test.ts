/** Sigmoid scores with bias-only balancing (DeepSeek-V3) against the loop, by hand, and in what the biases do over steps. */

import { describe, expect, it } from "vitest";
import { MoE } from "#sparsegate/moe/layer.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { coefficientOfVariation } from "#sparsegate/moe/statistics.js";
import * as sg from "#sparsegate/tensor/index.js";
import { Draw } from "../../backend/helpers.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { equalsDenseLoop } from "./claims.js";
import { routedCounts } from "./harness.js";
import { EVALUATION, fill, input, list, Times, TRAINING } from "./helpers.js";

equalsDenseLoop("sigmoid");

const logit = (p: number): number => Math.log(p / (1 - p));

/** As many experts as the rows are wide, the unit matrix for W_g: scores are given. */
function givenScores(scores: readonly (readonly number[])[], gate: object, topK: number) {
  const E = scores[0]!.length;
  const moe = new MoE({
    hiddenSize: E,
    numExperts: E,
    topK,
    gate: { type: "sigmoid", ...gate },
    experts: (i) => new Times(10 ** i),
  });
  fill(moe.namedParameters().get("gate.weight")!, (i) => (i % (E + 1) === 0 ? 1 : 0));
  return { moe, x: input(scores.map((row) => row.map(logit))), bias: moe.namedState().get("gate.bias")! };
}

for (const { name, make } of BACKENDS) {
  describe(`sigmoid gating on the ${name} backend`, () => {
    useBackend(make);

    it("weights the k best scores over their sum, times the scale", () => {
      const { moe, x } = givenScores([[0.2, 0.8, 0.6]], { scale: 2.5 }, 2);
      const out = moe.forward(x, EVALUATION);
      expect(list(out.experts)).toEqual([1, 2]);
      list(out.gates).forEach((g, j) => expect(g).toBeCloseTo([(2.5 * 0.8) / 1.4, (2.5 * 0.6) / 1.4][j]!, 5));
    });

    it("lets biases choose, and not weigh: expert 0 with a bias of 0.5 comes before better scores, with its own score for a weight", () => {
      const { moe, x, bias } = givenScores([[0.2, 0.8, 0.6]], {}, 2);
      fill(bias, (i) => (i === 0 ? 0.5 : 0));
      const out = moe.forward(x, EVALUATION);
      // 0.8 comes before 0.2 + 0.5 and 0.6.
      expect(list(out.experts)).toEqual([1, 0]);
      list(out.gates).forEach((g, j) => expect(g).toBeCloseTo([0.8, 0.2][j]!, 5));
      // Order among the chosen and the sum of the weights are the biases' business and not.
      fill(bias, (i) => (i === 0 ? 0.7 : 0));
      const other = moe.forward(x, EVALUATION);
      expect(list(other.experts)).toEqual([0, 1]);
      expect(list(other.gates)).toEqual([...list(out.gates)].reverse());
    });

    it("moves each bias by exactly γ after a training batch: up below the mean load, down above, not at all at it", () => {
      const scores = [
        [0.9, 0.8, 0.2, 0.1],
        [0.9, 0.1, 0.8, 0.2],
        [0.9, 0.8, 0.1, 0.2],
        [0.9, 0.1, 0.2, 0.8],
      ];
      // Loads 4, 2, 1, 1 with a mean of 2.
      const { moe, x, bias } = givenScores(scores, { biasUpdateRate: 0.125 }, 2);
      const first = moe.forward(x, TRAINING);
      expect(list(first.load)).toEqual([4, 2, 1, 1]);
      expect(list(bias)).toEqual([-0.125, 0, 0.125, 0.125]);
      moe.forward(x, TRAINING);
      expect(list(bias)).toEqual([-0.25, 0, 0.25, 0.25]);
      moe.forward(x, EVALUATION);
      expect(list(bias)).toEqual([-0.25, 0, 0.25, 0.25]);
    });
    it("moves them once in a pass that is computed again for its gradients, which chooses as it did, however deep", () => {
      const scores = [
        [0.6, 0.59, 0.2, 0.1],
        [0.6, 0.58, 0.2, 0.1],
      ];
      const run = (times: number) => {
        // Expert 0 has both rows; a step moves it below expert 1, which the second run of the pass would choose.
        const { moe, x, bias } = givenScores(scores, { biasUpdateRate: 0.5 }, 1);
        x.requiresGrad = true;
        let body = (input: sg.Tensor): sg.Tensor => moe.forward(input, TRAINING).output;
        for (let i = 0; i < times; i++) {
          const inner = body;
          body = (input) => sg.recompute(inner, [input], moe.parameters());
        }
        // Two calls before the way back.
        sg.backward(sg.sum(sg.add(body(x), body(x))));
        return { bias: list(bias), dx: [...denseGradient(x)], dw: [...denseGradient(moe.namedParameters().get("gate.weight")!)] };
      };
      const once = run(0);
      expect(once.bias).not.toEqual([0, 0, 0, 0]);
      expect(run(1)).toEqual(once);
      expect(run(2)).toEqual(once);
    });
    it("moves nothing where loads are equal, whatever the number of experts and rows", () => {
      for (const E of [3, 7, 13, 49, 61]) {
        for (const each of [1, 3, 7, 10]) {
          const rows = Array.from({ length: E * each }, (_, n) => Array.from({ length: E }, (_, e) => (e === n % E ? 0.9 : 0.1)));
          const { moe, x, bias } = givenScores(rows, { biasUpdateRate: 1 }, 1);
          expect(routedCounts(moe.forward(x, TRAINING))).toEqual(new Array(E).fill(each));
          expect(
            list(bias).every((b) => b === 0),
            `${E} experts of ${each} rows`,
          ).toBe(true);
        }
      }
    });
    it("moves nothing for γ = 0, and by 0.001 by default", () => {
      const still = givenScores([[0.9, 0.1]], { biasUpdateRate: 0 }, 1);
      still.moe.forward(still.x, TRAINING);
      expect(list(still.bias)).toEqual([0, 0]);
      const { moe, x, bias } = givenScores([[0.9, 0.1]], {}, 1);
      moe.forward(x, TRAINING);
      list(bias).forEach((b, i) => expect(b).toBeCloseTo([-0.001, 0.001][i]!, 9));
    });

    it("keeps biases in the state and not among the parameters; they take no gradient and no part in it", () => {
      const { moe, x, bias } = givenScores([[0.2, 0.8, 0.6]], {}, 2);
      expect([...moe.namedState().keys()]).toContain("gate.bias");
      expect([...moe.namedParameters().keys()]).not.toContain("gate.bias");
      sg.backward(sg.sum(moe.forward(x, EVALUATION).output));
      expect(bias.grad).toBeUndefined();
      expect(bias.requiresGrad).toBe(false);
      const before = [...denseGradient(x)];
      x.zeroGrad();
      // A bias that leaves the choice as it is leaves the gradient as it is.
      fill(bias, (i) => (i === 1 ? 5 : 0));
      sg.backward(sg.sum(moe.forward(x, EVALUATION).output));
      expect([...denseGradient(x)]).toEqual(before);
    });
    it("has biases of its own for each group of a hierarchical layer, which follow the loads of the group", () => {
      const moe = new HierarchicalMoE({
        hiddenSize: 2,
        numExperts: [2, 2],
        topK: [1, 1],
        gate: "top-k",
        secondaryGate: { type: "sigmoid", biasUpdateRate: 0.5 },
      });
      const [primary, secondary] = ["gate.primary.weight", "gate.secondary.weight"].map((path) =>
        moe.namedParameters().get(path)!,
      );
      // Rows with a positive first element go to group 0; within each group expert 0 is preferred by a positive second one.
      fill(primary!, (i) => [1, -1, 0, 0][i]!);
      fill(secondary!, (i) => [0, 0, 1, -1, 0, 0, 1, -1][i]!);
      // Group 0: two rows for expert 0, one for expert 1. Group 1: one each.
      const x = input([
        [1, 1],
        [1, 1],
        [1, -1],
        [-1, 1],
        [-1, -1],
      ]);
      const out = moe.forward(x, TRAINING);
      expect(routedCounts(out)).toEqual([2, 1, 1, 1]);
      const bias = moe.namedState().get("gate.secondary.bias")!;
      expect(bias.shape).toEqual([2, 2]);
      expect(list(bias)).toEqual([-0.5, 0.5, 0, 0]);
    });
  });
}

describe("biases over steps", () => {
  useBackend(BACKENDS[1].make);
  it("balance skewed data without any loss: the spread of loads falls to a quarter, in 300 batches", () => {
    const [D, E, rows] = [8, 8, 128];
    const moe = new MoE({
      hiddenSize: D,
      numExperts: E,
      topK: 2,
      gate: { type: "sigmoid", biasUpdateRate: 0.01 },
      expertHiddenSize: 2,
    });
    const draw = new Draw(3);
    // The first element of every row is 1, and favours the first experts.
    fill(moe.namedParameters().get("gate.weight")!, (i) => (i < E ? 1 - i / 4 : 0.5 * (2 * draw.next() - 1)));
    const batch = (): sg.Tensor =>
      sg.tensor(
        Float64Array.from({ length: rows * D }, (_, i) => (i % D === 0 ? 1 : 2 * draw.next() - 1)),
        [rows, D],
      );
    const spread: number[] = [];
    for (let step = 0; step < 300; step++) {
      sg.scope(() => {
        const out = moe.forward(batch(), { ...TRAINING, step });
        expect(out.auxLoss.item()).toBe(0);
        spread.push(coefficientOfVariation(routedCounts(out)));
      });
    }
    const mean = (from: number, to: number): number => spread.slice(from, to).reduce((a, b) => a + b) / (to - from);
    expect(mean(0, 5)).toBeGreaterThan(0.8);
    expect(mean(280, 300)).toBeLessThan(mean(0, 5) / 4);
  });
});
