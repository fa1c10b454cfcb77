/** The MoE layer where there is nothing to do, or nothing sensible: no rows, no noise, numbers that are none, options that cannot be. */

import { describe, expect, it } from "vitest";
import { MoE } from "#sparsegate/moe/layer.js";
import { Linear } from "#sparsegate/nn/layers.js";
import { clipScale } from "#sparsegate/optim/clip.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { denseGradient } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const TRAINING = { training: true, seed: 1, step: 0, firstRow: 0 };
const EVALUATION = { ...TRAINING, training: false };

function stirred(moe: MoE, seed = 3): MoE {
  const draw = new Draw(seed);
  for (const p of moe.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -1, 1));
  return moe;
}
function input(data: ArrayLike<number>, shape: readonly number[]): Tensor {
  const x = sg.keep(sg.tensor(data, shape));
  x.requiresGrad = true;
  return x;
}
const list = (t: Tensor): number[] => Array.from(t.dataSync());
const customExperts = (i: number): Linear => new Linear({ inputSize: 3, outputSize: 3, name: `expert.${i}` });

for (const { name, make } of BACKENDS) {
  describe(`MoE on the ${name} backend`, () => {
    useBackend(make);

    for (const experts of ["built-in", "custom"]) {
      for (const context of [TRAINING, EVALUATION]) {
        it(`gives an empty output, no loss and zero gradients for no rows (${experts} experts, ${context.training ? "training" : "evaluation"})`, () => {
          const moe = stirred(
            new MoE({
              hiddenSize: 3,
              numExperts: 4,
              topK: 2,
              ...(experts === "custom" ? { experts: customExperts } : { bias: true }),
            }),
          );
          for (const shape of [
            [0, 3],
            [2, 0, 3],
          ]) {
            const x = input([], shape);
            const out = moe.forward(x, context);
            expect(out.output.shape).toEqual(shape);
            expect(out.experts.shape).toEqual([0, 2]);
            expect(out.auxLoss.item()).toBe(0);
            expect([...list(out.importance), ...list(out.load)]).toEqual(new Array(8).fill(0));
            sg.backward(sg.add(sg.sum(out.output), out.auxLoss));
            for (const p of moe.parameters()) expect(denseGradient(p).every((g) => g === 0)).toBe(true);
          }
        });
      }
    }

    it("spoils the output of a row that is not finite, and of no other; its experts are still experts", () => {
      const moe = stirred(new MoE({ hiddenSize: 3, numExperts: 5, topK: 2, bias: true }));
      const fine = new Draw(9).floats(4 * 3, -1, 1);
      for (const context of [TRAINING, EVALUATION]) {
        const want = list(moe.forward(sg.tensor(fine, [4, 3]), context).output);
        for (const bad of [NaN, Infinity, -Infinity]) {
          const out = moe.forward(sg.tensor(fine.with(4, bad), [4, 3]), context);
          const got = list(out.output);
          for (const row of [0, 2, 3]) for (let d = 0; d < 3; d++) expect(got[3 * row + d]).toBeCloseTo(want[3 * row + d]!, 6);
          expect(got.slice(3, 6)).toEqual([NaN, NaN, NaN]);
          expect(list(out.experts).every((e) => Number.isInteger(e) && e >= 0 && e < 5)).toBe(true);
          expect(new Set(list(out.experts).slice(2, 4)).size).toBe(2);
          expect(list(out.routing.offsets).at(-1)).toBe(8);
          expect(out.auxLoss.item()).toBeNaN();
        }
      }
    });

    it("computes to the end when every row, or the gate itself, is not finite; clipping then names a parameter", () => {
      for (const where of ["x", "gate.weight", "gate.noiseWeight", "experts.inputWeight"]) {
        for (const bad of [NaN, Infinity]) {
          const moe = stirred(new MoE({ hiddenSize: 3, numExperts: 5, topK: 2 }));
          const x = input(new Draw(9).floats(12, -1, 1), [4, 3]);
          const broken = where === "x" ? x : moe.namedParameters().get(where)!;
          broken.backend.fill(broken.buffer, bad, broken.size);
          const out = moe.forward(x, TRAINING);
          expect(list(out.output).some(Number.isFinite), where).toBe(false);
          sg.backward(sg.add(sg.sum(out.output), out.auxLoss));
          expect(() => clipScale(moe.parameters(), 1)).toThrow(/^Gradient of moe\.\S+ is not finite/);
        }
      }
    });

    it("keeps large finite inputs finite: logits of ±1e4, where a softmax without a shift would overflow", () => {
      const moe = stirred(new MoE({ hiddenSize: 3, numExperts: 5, topK: 2 }));
      const x = input(new Draw(9).floats(30, -1e4, 1e4), [10, 3]);
      const out = moe.forward(x, TRAINING);
      sg.backward(sg.add(sg.sum(out.output), out.auxLoss));
      for (const t of [out.output, out.gates, out.load, out.auxLoss]) expect(list(t).every(Number.isFinite)).toBe(true);
      for (const p of [x, ...moe.parameters()]) expect(denseGradient(p).every(Number.isFinite), p.name).toBe(true);
    });

    it("sends ties to the lowest experts in evaluation, and spreads them by noise in training", () => {
      const moe = new MoE({ hiddenSize: 3, numExperts: 8, topK: 2 });
      const x = sg.tensor(new Draw(9).floats(600, -1, 1), [200, 3]);
      const quiet = moe.forward(x, EVALUATION);
      expect(list(quiet.load)).toEqual([200, 200, 0, 0, 0, 0, 0, 0]);
      expect(new Set(list(quiet.gates))).toEqual(new Set([0.5]));
      const offsets = list(moe.forward(x, TRAINING).routing.offsets);
      const counts = Array.from({ length: 8 }, (_, e) => offsets[e + 1]! - offsets[e]!);
      // 400 assignments at random: 50 an expert, give or take 4 standard deviations of √(400·⅛·⅞) ≈ 6.6.
      for (const count of counts) expect(Math.abs(count - 50)).toBeLessThan(27);
    });
  });
}

describe("MoE refuses", () => {
  useBackend(BACKENDS[0].make);
  const CASES: [claim: string, make: () => unknown, message: RegExp][] = [
    [
      "k beyond numExperts",
      () => new MoE({ hiddenSize: 3, numExperts: 2, topK: 3 }),
      /^NoisyTopKGate: expected topK to be an integer from 1 to 2, got 3\./,
    ],
    ["k = 0", () => new MoE({ hiddenSize: 3, numExperts: 2, topK: 0 }), /expected topK to be an integer from 1 to 2, got 0/],
    [
      "no experts",
      () => new MoE({ hiddenSize: 3, numExperts: 0 }),
      /^MoE: expected numExperts to be an integer of at least 1, got 0/,
    ],
    ["half an expert", () => new MoE({ hiddenSize: 3, numExperts: 1.5 }), /numExperts to be an integer/],
    [
      "width 0",
      () => new MoE({ hiddenSize: 0, numExperts: 2 }),
      /^MoE: expected hiddenSize to be an integer of at least 1, got 0/,
    ],
    [
      "hidden width 0",
      () => new MoE({ hiddenSize: 3, numExperts: 2, expertHiddenSize: 0 }),
      /expertHiddenSize to be an integer of at least 1, got 0/,
    ],
    [
      "a negative weight of a loss",
      () => new MoE({ hiddenSize: 3, numExperts: 2, loadWeight: -1 }),
      /loadWeight to be a finite number of at least 0, got -1/,
    ],
    [
      "another number of custom experts",
      () => new MoE({ hiddenSize: 3, numExperts: 4, experts: [customExperts(0)] }),
      /^MoE: expected 4 experts \(numExperts\), got 1\./,
    ],
  ];
  it.each(CASES)("%s", (_claim, make, message) => {
    expect(make).toThrow(message);
    expect(make).toThrow(expect.objectContaining({ name: "ConfigError" }));
  });
  it("an input of another width, a scalar, and integers", () => {
    const moe = new MoE({ hiddenSize: 3, numExperts: 2 });
    expect(() => moe.forward(sg.zeros([2, 4]))).toThrow(
      "MoE.forward: expected x of width 3 (hiddenSize), got 4. Did the embedding size change?",
    );
    expect(() => moe.forward(sg.tensor(1))).toThrow("MoE.forward: expected x of width 3 (hiddenSize), got a scalar.");
    expect(() => moe.forward(sg.zeros([2, 3], "int32"))).toThrow(/expected dtype float32, got int32/);
  });
});
