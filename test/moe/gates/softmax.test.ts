/** Softmax gating, the dense mixture of section 2.1, against the loop and by hand; and the gates that are the same when every expert is used. */

import { describe, expect, it } from "vitest";
import type { GateConfig } from "#sparsegate/moe/gates/index.js";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import { Draw } from "../../backend/helpers.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { equalsDenseLoop } from "./claims.js";
import { EVALUATION, givenProbabilities, list, multiples, TRAINING } from "./helpers.js";

equalsDenseLoop("softmax");

for (const { name, make } of BACKENDS) {
  describe(`softmax gating on the ${name} backend`, () => {
    useBackend(make);

    it("weights every expert by its probability, in training and in evaluation, and lists the best first", () => {
      const { moe, x } = givenProbabilities([[0.3, 0.5, 0.2]], [1, 10, 100], "softmax");
      for (const context of [TRAINING, EVALUATION]) {
        const out = moe.forward(x, context);
        // 0.3·1 + 0.5·10 + 0.2·100
        expect(multiples(out.output, x)[0]).toBeCloseTo(25.3, 4);
        expect(list(out.experts)).toEqual([1, 0, 2]);
        list(out.gates).forEach((g, j) => expect(g).toBeCloseTo([0.5, 0.3, 0.2][j]!, 6));
        // By expert, as every gate has them.
        list(out.probabilities!).forEach((p, e) => expect(p).toBeCloseTo([0.3, 0.5, 0.2][e]!, 6));
        expect(list(out.load)).toEqual([1, 1, 1]);
        expect(out.requested).toBe(3);
      }
    });

    it("starts with equal weights and has no loss unless one is asked for", () => {
      const moe = new MoE({ hiddenSize: 3, numExperts: 4, gate: "softmax" });
      const out = moe.forward(sg.randomNormal([5, 3], { seed: 1 }), TRAINING);
      expect(list(out.gates)).toEqual(new Array(20).fill(0.25));
      expect(out.auxLoss.item()).toBe(0);
    });

    /** Gates that use all of E experts are the dense mixture: the same output and gradients. */
    const E = 4;
    const SAME: [string, GateConfig, typeof TRAINING][] = [
      ["noisy-top-k without noise", { type: "noisy-top-k", importanceWeight: 0, loadWeight: 0 }, EVALUATION],
      ["top-k", { type: "top-k", auxLossWeight: 0 }, TRAINING],
      ["strictly-balanced, whose experts take every row", { type: "strictly-balanced", thresholdWeight: 0 }, TRAINING],
      ["expert-choice, whose experts take every row", { type: "expert-choice" }, TRAINING],
    ];
    it.each(SAME)("%s with k = numExperts is the dense mixture: output and gradients", (_, gate, context) => {
      const results = ["softmax" as const, gate].map((config) => {
        const moe = new MoE({ hiddenSize: 5, numExperts: E, topK: E, gate: config, expertHiddenSize: 6, bias: true });
        const draw = new Draw(4);
        for (const [path, p] of moe.namedParameters()) {
          // Parameters that the softmax gate does not have come last.
          if (path !== "gate.noiseWeight" && path !== "gate.logThreshold") p.backend.write(p.buffer, draw.floats(p.size, -1, 1));
        }
        const x = sg.keep(sg.tensor(draw.floats(7 * 5, -1, 1), [7, 5]));
        x.requiresGrad = true;
        const out = moe.forward(x, context);
        sg.backward(sg.sum(sg.square(out.output)));
        const found = new Map([["output", list(out.output)]]);
        for (const [path, p] of [["x", x] as const, ...moe.namedParameters()])
          found.set(`gradient of ${path}`, [...denseGradient(p)]);
        return found;
      });
      const [want, got] = results as [Map<string, number[]>, Map<string, number[]>];
      for (const [what, values] of want) {
        const scale = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
        expect(scale, what).toBeGreaterThan(0.1);
        values.forEach((v, i) => expect(Math.abs(got.get(what)![i]! - v), `${what}[${i}]`).toBeLessThan(2e-6 * scale));
      }
    });
  });
}
