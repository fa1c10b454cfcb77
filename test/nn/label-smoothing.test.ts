/** Label smoothing against its definition: the cross-entropy with (1 − ε)·onehot + ε/V, in plain numbers; and by finite differences. */

import { describe, expect, it } from "vitest";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { smoothedCrossEntropy } from "#sparsegate/nn/label-smoothing.js";
import * as sg from "#sparsegate/tensor/index.js";
import { gradientErrors, param } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const [N, D, V] = [4, 3, 5];
const TARGETS = [2, -1, 0, 4];

for (const { name, make } of BACKENDS) {
  describe(`label smoothing on the ${name} backend`, () => {
    useBackend(make);
    it.each([0, 0.1, 0.5])("is the cross-entropy with smoothed targets, ε = %s; rows without a target do not count", (epsilon) => {
      const [x, w, b] = [param([N, D], 1), param([V, D], 2), param([V], 3)];
      const [X, W, b0] = [x, w, b].map((t) => Array.from(t.dataSync())) as [number[], number[], number[]];
      let [smoothed, plain] = [0, 0];
      for (const [n, target] of TARGETS.entries()) {
        if (target < 0) continue;
        const z = b0.map((bias, v) => bias + Array.from({ length: D }, (_, d) => X[n * D + d]! * W[v * D + d]!).reduce((s, p) => s + p, 0));
        const lse = Math.log(z.reduce((s, v) => s + Math.exp(v), 0));
        z.forEach((v, c) => (smoothed -= ((c === target ? 1 - epsilon : 0) + epsilon / V) * (v - lse)));
        plain -= z[target]! - lse;
      }
      const { loss, crossEntropy } = smoothedCrossEntropy(x, w, b, sg.tensor(TARGETS, [N], "int32"), epsilon);
      expect(loss.item()).toBeCloseTo(smoothed / 3, 6);
      expect(crossEntropy.item()).toBeCloseTo(plain / 3, 6);
    });
  });
}

describe("label smoothing on the float64 reference", () => {
  useBackend(() => new ReferenceBackend());
  it("has the gradients of finite differences", () => {
    const inputs = [param([N, D], 1), param([V, D], 2), param([V], 3)] as const;
    expect(gradientErrors(inputs, () => smoothedCrossEntropy(...inputs, sg.tensor(TARGETS, [N], "int32"), 0.2).loss)).toEqual([]);
  });
  it("refuses an ε of 1", () => {
    expect(() => smoothedCrossEntropy(param([N, D], 1), param([V, D], 2), param([V], 3), sg.tensor(TARGETS, [N], "int32"), 1)).toThrow(
      "smoothedCrossEntropy: expected epsilon to be a finite number from 0 to 0.999, got 1.",
    );
  });
});
