/** The paper's expert as one operation: the same numbers as the operations it is made of, on every backend. */

import { describe, expect, it } from "vitest";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import * as sg from "#sparsegate/tensor/index.js";

const BACKENDS = [
  ["reference", () => new ReferenceBackend(), 1e-12],
  ["cpu", () => new CpuBackend({ threads: 2 }), 1e-6],
  ["cpu without BLAS", () => new CpuBackend({ threads: 2, blas: "none" }), 1e-6],
] as const;

describe.each(BACKENDS)("groupedFeedForward on the %s backend", (_, make, tolerance) => {
  // Sizes off the SIMD width, one group without rows, one with most, large enough that its products are cut among threads; rows of no group at the end.
  const [M, D, F, OUT, offsets] = [413, 37, 301, 35, [0, 3, 3, 400, 409]];

  it("equals relu between two grouped products, outputs and gradients, and keeps less", () => {
    const before = sg.setDefaultBackend(make());
    const E = offsets.length - 1;
    const leaves = (): sg.Tensor[] =>
      [[M, D], [E, D, F], [E, F, OUT]].map((shape, i) => {
        const leaf = sg.keep(sg.randomNormal(shape, { seed: i + 1 }));
        leaf.requiresGrad = true;
        return leaf;
      });
    const weights = sg.randomNormal([M, OUT], { seed: 9 });
    const at = sg.tensor(offsets, [E + 1], "int32");
    const run = (body: (x: sg.Tensor, w1: sg.Tensor, w2: sg.Tensor) => sg.Tensor): ArrayLike<number>[] => {
      const [x, w1, w2] = leaves() as [sg.Tensor, sg.Tensor, sg.Tensor];
      const y = body(x, w1, w2);
      sg.backward(sg.sum(sg.mul(y, weights)));
      // Slots of groups without rows hold nothing: they are cut out.
      const used = [w1, w2].map((w) => [0, 2, 3].flatMap((e) => Array.from(w.grad!.value.dataSync().slice((e * w.size) / E, ((e + 1) * w.size) / E))));
      expect(Array.from(w1.grad!.rows!.dataSync())).toEqual([0, -1, 2, 3]);
      return [y.dataSync(), x.grad!.value.dataSync(), ...used];
    };
    const fused = run((x, w1, w2) => sg.groupedFeedForward(x, w1, w2, at));
    const composed = run((x, w1, w2) => sg.groupedMatmul(sg.relu(sg.groupedMatmul(x, w1, at)), w2, at));
    for (const [i, want] of composed.entries()) {
      const most = Math.max(...Array.from(want, Math.abs));
      for (let j = 0; j < want.length; j++) if (!(Math.abs(fused[i]![j]! - want[j]!) <= tolerance * most)) expect(fused[i]![j], `${i}, ${j}`).toBe(want[j]);
    }
    expect(Array.from(fused[0]!).slice(409 * OUT)).toEqual(new Array<number>(4 * OUT).fill(0));
    sg.defaultBackend().dispose();
    sg.setDefaultBackend(before);
  });

  it("keeps NaN, and refuses shapes that do not fit", () => {
    const before = sg.setDefaultBackend(make());
    const ones = (shape: number[]): sg.Tensor => sg.full(shape, 1);
    const at = sg.tensor([0, 2], [2], "int32");
    const y = sg.groupedFeedForward(sg.tensor([[NaN, 1], [1, 1]]), ones([1, 2, 3]), ones([1, 3, 2]), at).dataSync();
    expect(Array.from(y)).toEqual([NaN, NaN, 6, 6]);
    expect(() => sg.groupedFeedForward(ones([2, 2]), ones([1, 3, 3]), ones([1, 3, 2]), at)).toThrow(
      "groupedFeedForward: expected x (M, D), w1 (E, D, F), w2 (E, F, D2), offsets (E+1), got [2, 2], [1, 3, 3], [1, 3, 2], [2].",
    );
    sg.defaultBackend().dispose();
    sg.setDefaultBackend(before);
  });
});
