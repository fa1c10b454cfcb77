/** Learning rates at points worked out by hand, and the global norm of gradients. */

import { describe, expect, it } from "vitest";
import { clipScale, globalNorm } from "#sparsegate/optim/clip.js";
import { constant, inverseSquareRoot, linearDecay, stepDecay } from "#sparsegate/optim/schedules.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { BACKENDS, useBackend } from "../use-backend.js";

describe("schedules", () => {
  it("constant is constant", () => {
    const rate = constant(0.25);
    expect([1, 2, 1e9].map(rate)).toEqual([0.25, 0.25, 0.25]);
  });
  it("inverseSquareRoot rises linearly to its peak, then falls with 1/√step (App. C: 1,000 steps)", () => {
    const rate = inverseSquareRoot(0.008, 1000);
    // 0.008·1/1000; half way; the peak; 0.008·√(1000/4000) = 0.004; 0.008·√(1000/100000) = 0.0008.
    for (const [step, want] of [
      [1, 8e-6],
      [500, 0.004],
      [1000, 0.008],
      [4000, 0.004],
      [100_000, 0.0008],
    ] as const)
      expect(rate(step)).toBeCloseTo(want, 12);
    expect(rate(999)).toBeLessThan(rate(1000));
    expect(rate(1001)).toBeLessThan(rate(1000));
  });
  it("inverseSquareRoot with a warm-up of 1 starts at its peak", () => {
    const rate = inverseSquareRoot(0.1, 1);
    expect(rate(1)).toBeCloseTo(0.1, 12);
    expect(rate(4)).toBeCloseTo(0.05, 12);
  });
  it("linearDecay rises, holds, and falls to nothing one step after the last", () => {
    // Of 20 steps 4 of rise and 6 of plateau; the fall takes 20 + 1 − 10 = 11.
    const rate = linearDecay(0.11, 20, 4, 6);
    for (const [step, want] of [
      [1, 0.0275],
      [4, 0.11],
      [10, 0.11],
      [11, 0.1],
      [19, 0.02],
      [20, 0.01],
      [21, 0],
      [30, 0],
    ] as const)
      expect(rate(step)).toBeCloseTo(want, 12);
    // A run shorter than its rise and plateau has no fall; its last step has a rate still.
    expect([1, 2, 3].map(linearDecay(1, 3, 2, 9))).toEqual([0.5, 1, 1]);
  });
  it("stepDecay holds, then halves at the start of every further stretch (Zaremba et al. 2014)", () => {
    // 20 steps of full rate, then halves at 21, 31, 41, ...
    const rate = stepDecay(1, { holdSteps: 20, everySteps: 10, factor: 0.5 });
    for (const [step, want] of [
      [1, 1],
      [20, 1],
      [21, 0.5],
      [30, 0.5],
      [31, 0.25],
      [40, 0.25],
      [41, 0.125],
    ] as const)
      expect(rate(step)).toBe(want);
  });
  it("stepDecay without holding decays from the first step, and with factor 1 never", () => {
    expect([1, 5, 6].map(stepDecay(1, { holdSteps: 0, everySteps: 5, factor: 0.1 }))).toEqual([0.1, 0.1, 0.010000000000000002]);
    expect([1, 1000].map(stepDecay(2, { holdSteps: 0, everySteps: 5, factor: 1 }))).toEqual([2, 2]);
  });
  it("refuse numbers that make no rate", () => {
    expect(() => constant(-1)).toThrow("constant: expected learningRate to be a finite number of at least 0, got -1.");
    expect(() => inverseSquareRoot(0.1, 0)).toThrow(
      "inverseSquareRoot: expected warmupSteps to be an integer of at least 1, got 0.",
    );
    expect(() => linearDecay(0.1, 0, 1)).toThrow("linearDecay: expected maxSteps to be an integer of at least 1, got 0.");
    expect(() => stepDecay(1, { holdSteps: 0, everySteps: 5, factor: 2 })).toThrow(
      "stepDecay: expected factor to be a finite number from 0 to 1, got 2.",
    );
  });
});

function withGradient(name: string, value: readonly number[], rows?: readonly number[]): Tensor {
  const p = sg.keep(sg.zeros(rows ? [4, value.length / rows.length] : [value.length]));
  p.requiresGrad = true;
  p.name = name;
  p.grad = rows
    ? {
        value: sg.keep(sg.tensor(value, [rows.length, value.length / rows.length])),
        rows: sg.keep(sg.tensor(rows, [rows.length], "int32")),
      }
    : { value: sg.keep(sg.tensor(value)) };
  return p;
}

for (const { name, make } of BACKENDS) {
  describe(`clipping on the ${name} backend`, () => {
    useBackend(make);
    it("takes the norm over all parameters together, and of gradients by rows only the rows in use", () => {
      // 3² + 4² + 12² = 13²; the row marked -1 holds what was left in memory.
      const parameters = [withGradient("a", [3, 0]), withGradient("b", [4, 0, NaN, 1e30, 0, 12], [2, -1, 0]), sg.zeros([3])];
      expect(globalNorm(parameters)).toBeCloseTo(13, 5);
    });
    it("scales down to the norm asked for, never up", () => {
      const p = [withGradient("a", [3, 4])];
      expect(clipScale(p, 1)).toEqual({ norm: 5, scale: 0.2 });
      expect(clipScale(p, 5)).toEqual({ norm: 5, scale: 1 });
      expect(clipScale(p, 100)).toEqual({ norm: 5, scale: 1 });
      expect(clipScale(p, undefined)).toEqual({ norm: 5, scale: 1 });
      expect(clipScale([sg.zeros([2])], 1)).toEqual({ norm: 0, scale: 1 });
    });
    it("names the parameter nearest the loss whose gradient is not finite", () => {
      for (const bad of [NaN, Infinity, -Infinity]) {
        const parameters = [
          withGradient("first", [bad]),
          withGradient("moe.gate.weight", [1, bad]),
          withGradient("last", [1, 2]),
        ];
        expect(() => clipScale(parameters, 1)).toThrow(
          "Gradient of moe.gate.weight is not finite. Lower the learning rate, clip harder (maxGradNorm), or check the input for NaN.",
        );
        expect(() => clipScale(parameters, undefined)).toThrow(expect.objectContaining({ name: "NonFiniteError" }));
      }
    });
    it("names one by its shape that has no name, passes over rows that are not in use, and tells overflow from NaN", () => {
      const rows = withGradient("rows", [1, NaN, 2, 2], [-1, 3]);
      expect(() => clipScale([rows, withGradient("", [NaN])], 1)).toThrow("Gradient of a parameter [1] is not finite.");
      // 1e25² is beyond float32, 1e300² beyond float64.
      expect(() => clipScale([rows, withGradient("large", [name === "reference" ? 1e300 : 1e25])], 1)).toThrow(
        "Gradients are so large that their squares overflow. Lower the learning rate",
      );
    });
    it("frees what it needs in passing", () => {
      const p = [withGradient("a", new Array<number>(5000).fill(1))];
      const before = p[0]!.backend.memory().used;
      globalNorm(p);
      expect(p[0]!.backend.memory().used).toBe(before);
    });
  });
}
