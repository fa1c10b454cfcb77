/** The bidirectional LSTM over sentences of different lengths: each as if it stood alone, whatever is in the padding. */

import { describe, expect, it } from "vitest";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { BidirectionalLstm, Lanes } from "#sparsegate/nn/bidirectional.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { denseGradient, gradientErrors, param } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const list = (t: Tensor): number[] => Array.from(t.dataSync());
const [T, B, D, H] = [5, 3, 2, 3];
const LENGTHS = Int32Array.of(5, 2, 1);
const lanes = (): Lanes => new Lanes(LENGTHS, T);

function layer(projectionSize?: number): BidirectionalLstm {
  const made = new BidirectionalLstm({ inputSize: D, hiddenSize: H, projectionSize });
  const draw = new Draw(1);
  for (const p of made.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -1, 1));
  return made;
}
/** The same numbers, with `padding` where a lane's sentence is over. */
const input = (padding: number): Tensor => {
  const data = new Draw(2).floats(T * B * D, -1, 1);
  return sg.tensor(
    data.map((v, i) => (Math.floor(i / (B * D)) < LENGTHS[Math.floor(i / D) % B]! ? v : padding)),
    [T, B, D],
  );
};
const laneOf = (t: Tensor, lane: number): number[] => {
  const width = t.shape[2]!;
  return Array.from({ length: LENGTHS[lane]! }, (_, i) => list(t).slice((i * B + lane) * width, (i * B + lane + 1) * width)).flat();
};

for (const { name, make } of BACKENDS) {
  describe(`BidirectionalLstm on the ${name} backend`, () => {
    useBackend(make);
    const digits = name === "reference" ? 12 : 5;
    const close = (got: readonly number[], want: readonly number[]): void => {
      expect(got.length).toBe(want.length);
      got.forEach((v, i) => expect(v, `element ${i}`).toBeCloseTo(want[i]!, digits));
    };

    for (const P of [undefined, 2]) {
      it(`is the sum of an LSTM and of one that reads from the end${P ? ", projected" : ""}: each sentence as if alone`, () => {
        const m = layer(P);
        const x = input(0.7);
        const got = m.forward(x, lanes());
        for (const [lane, length] of LENGTHS.entries()) {
          const alone = sg.tensor(laneOf(x, lane), [length, 1, D]);
          const turned = (t: Tensor): Tensor => sg.concat(Array.from({ length }, (_, i) => sg.slice(t, 0, length - 1 - i, length - i)));
          const want = sg.add(m.forwards.forward(alone).output, turned(m.backwards.forward(turned(alone)).output));
          close(laneOf(got, lane), list(want));
        }
      });
    }

    it("gives the same for any padding, and padding gets no gradient", () => {
      const m = layer(2);
      close(laneOf(m.forward(input(1e3), lanes()), 1), laneOf(m.forward(input(0), lanes()), 1));
      const x = sg.keep(input(0.3));
      x.requiresGrad = true;
      const packing = lanes().packing();
      sg.scope(() => sg.backward(sg.sum(sg.moveRows(sg.reshape(m.forward(x, lanes()), [-1, 2]), packing))));
      const gradient = denseGradient(x);
      for (let row = 0; row < T * B; row++) {
        const padding = Math.floor(row / B) >= LENGTHS[row % B]!;
        for (let d = 0; d < D; d++) expect(gradient[row * D + d] === 0, `row ${row}`).toBe(padding);
      }
    });

    it("packs sentences by step and lane, and puts zeros back", () => {
      const packing = lanes().packing();
      expect(list(packing.index)).toEqual([0, 1, 2, 3, 4, 6, 9, 12]);
      const x = sg.tensor(Float64Array.from({ length: T * B }, (_, i) => i + 1), [T * B, 1]);
      const back = sg.moveRows(sg.moveRows(x, packing), sg.moveBack(packing));
      expect(list(back)).toEqual([1, 2, 3, 4, 5, 0, 7, 0, 0, 10, 0, 0, 13, 0, 0]);
      expect(list(lanes().attentionBias()).map((v) => v === 0)).toEqual([true, true, true, true, true, true, true, false, false, false, true, false, false, false, false]);
    });
  });
}

describe("BidirectionalLstm on the float64 reference", () => {
  useBackend(() => new ReferenceBackend());
  it("has the gradients of finite differences, of every weight and of the input", () => {
    const m = layer(2);
    const x = param([T, B, D], 4);
    const packed = (): Tensor => sg.moveRows(sg.reshape(m.forward(x, lanes()), [-1, 2]), lanes().packing());
    expect(gradientErrors([x, ...m.parameters()], packed)).toEqual([]);
  });

  it("refuses lengths beyond the steps, and a sequence of other lanes", () => {
    expect(() => new Lanes(Int32Array.of(2, 6), 5)).toThrow("Lanes: expected lengths from 0 to 5 steps, got 6.");
    expect(() => layer().forward(sg.zeros([4, B, D]), lanes())).toThrow("BidirectionalLstm.forward: expected x (5, 3, D) as the lanes have it, got [4, 3, 2].");
  });
});
