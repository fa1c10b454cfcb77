/** recompute: the same gradients bit for bit with less in memory at once, whatever the body does, and clear errors where it cannot. */

import { describe, expect, it } from "vitest";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { BACKENDS, useBackend } from "../use-backend.js";
import { denseGradient, param } from "./finite-differences.js";

const KEY = { seed: 1, stream: 2, step: 3 };
const used = (): number => sg.defaultBackend().memory().used;
const gradients = (tensors: readonly Tensor[]): number[][] => tensors.map((p) => [...denseGradient(p)]);
const int = (data: readonly number[]): Tensor => sg.tensor(data, [data.length], "int32");

/** What a body computes from its inputs and from the parameters around it, and which gradients come out with and without recompute. */
interface Case {
  inputs: readonly number[][];
  parameters: readonly number[][];
  body: (parameters: readonly Tensor[]) => (...inputs: Tensor[]) => Tensor;
}
const CASES: Record<string, Case> = {
  "two layers": {
    inputs: [[9, 4]],
    parameters: [
      [4, 7],
      [7, 5],
    ],
    body:
      ([v, w]) =>
      (x) =>
        sg.matmul(sg.tanh(sg.matmul(x!, v!)), w!),
  },
  "dropout, alone and by rows": {
    inputs: [[9, 4]],
    parameters: [[4, 4]],
    body:
      ([w]) =>
      (x) =>
        sg.dropoutRows(sg.matmul(sg.dropout(sg.square(x!), 0.3, KEY), w!), 0.4, KEY, int([4, 2, 7, -1, 0, 8, 3, 3, 1])),
  },
  "a parameter used twice": {
    inputs: [[3, 4]],
    parameters: [[4, 4]],
    body:
      ([w]) =>
      (x) =>
        sg.matmul(sg.gelu(sg.matmul(x!, w!)), w!),
  },
  "an input used three times": {
    inputs: [[3, 4]],
    parameters: [],
    body: () => (x) => sg.mul(sg.add(x!, sg.square(x!)), sg.sigmoid(x!)),
  },
  "several inputs, one of them a single number": {
    inputs: [[3, 4], [4], []],
    parameters: [],
    body: () => (x, y, z) => sg.mul(sg.mul(sg.exp(x!), y!), z!),
  },
  "recompute within": {
    inputs: [[3, 4]],
    parameters: [
      [4, 4],
      [4, 4],
    ],
    body:
      ([v, w]) =>
      (x) =>
        sg.recompute((h) => sg.tanh(sg.matmul(sg.dropout(h!, 0.2, KEY), w!)), [sg.tanh(sg.matmul(x!, v!))], [w!]),
  },
  "parameters whose gradient is by rows": {
    inputs: [[5, 3]],
    parameters: [
      [4, 3, 2],
      [4, 2],
    ],
    body:
      ([w, b]) =>
      (x) =>
        sg.groupedBias(sg.groupedMatmul(x!, w!, int([0, 2, 2, 4, 4])), b!, int([0, 2, 2, 4, 4])),
  },
  "an input whose gradient is by rows": {
    inputs: [[6, 3]],
    parameters: [],
    body: () => (table) => sg.square(sg.embedding(table!, int([5, 0, 5]))),
  },
  noise: {
    inputs: [
      [40, 5],
      [40, 5],
    ],
    parameters: [],
    body: () => (clean, raw) => {
      const { values, load } = sg.noisyTopK(clean!, raw!, 2, { key: KEY, start: 0 });
      return sg.concat([sg.reshape(values, [-1]), load]);
    },
  },
  "an input handed on": { inputs: [[3, 4]], parameters: [], body: () => (x) => x! },
};

for (const { name, make } of BACKENDS) {
  describe(`recompute on the ${name} backend`, () => {
    useBackend(make);

    for (const [what, { inputs: shapes, parameters: parameterShapes, body }] of Object.entries(CASES)) {
      for (const leaves of [true, false]) {
        it(`has the gradients of the plain computation bit for bit: ${what}, inputs that are ${leaves ? "leaves" : "results"}`, () => {
          const before = used();
          const inputs = shapes.map((shape, i) => param(shape, 10 + i));
          const parameters = parameterShapes.map((shape, i) => param(shape, 20 + i));
          const f = body(parameters);
          const run = (again: boolean): { y: number[]; found: number[][] } => {
            for (const p of [...inputs, ...parameters]) p.zeroGrad();
            const y = sg.scope(() => {
              const given = leaves ? inputs : inputs.map((x) => sg.affine(x, 1.5));
              const y = again ? sg.recompute(f, given, parameters) : f(...given);
              sg.backward(sg.sum(sg.mul(y, sg.tensor(new Draw(3).floats(y.size), y.shape))));
              return Array.from(y.dataSync());
            });
            return { y, found: gradients([...inputs, ...parameters]) };
          };
          const [plain, again] = [run(false), run(true)];
          expect(again).toEqual(plain);
          // No gradient is all zero, or the comparison would say nothing.
          for (const gradient of plain.found) expect(gradient.some((g) => g !== 0)).toBe(true);
          for (const p of [...inputs, ...parameters]) {
            p.zeroGrad();
            p.dispose();
          }
          expect(used()).toBe(before);
        });
      }
    }

    it("adds to what a parameter gets from elsewhere, before and after, bit for bit", () => {
      const [x, w] = [param([3, 4], 1), param([4, 4], 2)];
      const run = (again: boolean): number[][] => {
        for (const p of [x, w]) p.zeroGrad();
        sg.scope(() => {
          const f = (h: Tensor): Tensor => sg.tanh(sg.matmul(h, w));
          const h = f(sg.matmul(x, w));
          sg.backward(sg.sum(sg.matmul(again ? sg.recompute((h) => f(f(h!)), [h], [w]) : f(f(h)), w)));
        });
        return gradients([x, w]);
      };
      expect(run(true)).toEqual(run(false));
    });

    it("gives inputs that are used elsewhere too the sum of both", () => {
      const x = param([5], 1);
      const run = (again: boolean): number[] => {
        x.zeroGrad();
        sg.scope(() => {
          const h = sg.square(x);
          const f = (h: Tensor): Tensor => sg.mul(h, sg.tanh(h));
          sg.backward(sg.sum(sg.mul(sg.exp(h), again ? sg.recompute((h) => f(h!), [h], []) : f(h))));
        });
        return [...denseGradient(x)];
      };
      const [want, got] = [run(false), run(true)];
      // Two gradients of the body are added before the third: another order of the same sum.
      got.forEach((g, i) => expect(Math.abs(g - want[i]!)).toBeLessThan(1e-6 * Math.max(1, Math.abs(want[i]!))));
    });

    it("takes less memory at once: of ten blocks, the hidden activations of one", () => {
      const [N, D, F, blocks] = [256, 8, 128, 10];
      const [v, w] = [param([D, F], 1), param([F, D], 2)];
      const x = sg.keep(sg.randomNormal([N, D], { seed: 3 }));
      const peakOf = (again: boolean): number => {
        for (const p of [v, w]) p.zeroGrad();
        const before = used();
        sg.defaultBackend().resetPeak();
        sg.scope(() => {
          const block = (h: Tensor): Tensor => sg.add(h, sg.matmul(sg.tanh(sg.matmul(h, v)), w));
          let h = x;
          for (let i = 0; i < blocks; i++) h = again ? sg.recompute((h) => block(h!), [h], [v, w]) : block(h);
          sg.backward(sg.sum(h));
        });
        return sg.defaultBackend().memory().peak - before;
      };
      const hidden = N * F * (name === "reference" ? 8 : 4);
      const [plain, again] = [peakOf(false), peakOf(true)];
      // Plain: two hidden matrices a block. Again: two of one block, and two gradients of these.
      expect(plain).toBeGreaterThan(2 * blocks * hidden);
      expect(again).toBeLessThan(7 * hidden);
    });

    it("is nothing that is recorded where no gradient is wanted", () => {
      const [x, w] = [sg.tensor([1, 2]), param([2], 1)];
      expect(sg.recompute((x) => sg.square(x!), [x], []).requiresGrad).toBe(false);
      expect(sg.noGrad(() => sg.recompute((x) => sg.mul(x!, w), [x], [w])).requiresGrad).toBe(false);
    });

    it("gives the parameters theirs where an input wants none, and none to that input", () => {
      const [x, table, w] = [sg.tensor([1, 2, 3]), param([3], 2), param([3], 1)];
      const index = int([2, 0, 2]);
      const y = sg.recompute(
        (x, table, index) => sg.mul(sg.mul(x!, w), sg.reshape(sg.embedding(sg.reshape(table!, [3, 1]), index!), [3])),
        [x, table, index],
        [w],
      );
      sg.backward(sg.sum(y));
      expect(x.grad).toBeUndefined();
      expect(index.grad).toBeUndefined();
      const [t, v] = [table.dataSync(), w.dataSync()];
      // y = Σ x_i·w_i·table[index_i].
      [1 * t[2]!, 2 * t[0]!, 3 * t[2]!].forEach((g, i) => expect(denseGradient(w)[i]).toBeCloseTo(g, 5));
      [2 * v[1]!, 0, 1 * v[0]! + 3 * v[2]!].forEach((g, i) => expect(denseGradient(table)[i]).toBeCloseTo(g, 5));
    });

    it("gives nothing where the result depends on no input", () => {
      const x = param([2], 1);
      const before = used();
      sg.scope(() => {
        const y = sg.recompute(() => sg.full([2], 3), [x], []);
        sg.backward(sg.sum(sg.mul(y, sg.square(x))));
      });
      denseGradient(x).forEach((g, i) => expect(g).toBeCloseTo(6 * x.dataSync()[i]!, 5));
      x.zeroGrad();
      expect(used()).toBe(before);
    });

    it("can be gone back over again when the graph is retained", () => {
      const [x, w] = [param([3, 4], 1), param([4, 4], 2)];
      const y = sg.sum(sg.recompute((x) => sg.tanh(sg.matmul(x!, w)), [x], [w]));
      sg.backward(y, { retainGraph: true });
      const once = gradients([x, w]);
      sg.backward(y);
      expect(gradients([x, w])).toEqual(once.map((g) => g.map((v) => 2 * v)));
      expect(() => sg.backward(y)).toThrow(/was used by an earlier backward and freed/);
    });

    it("refuses a body that uses a result computed outside it, and leaves the tape as it was", () => {
      const [x, w] = [param([2], 1), param([2], 2)];
      const outside = sg.square(w);
      const y = sg.recompute((x) => sg.mul(x!, outside), [x], []);
      expect(() => sg.backward(sg.sum(y))).toThrow(
        "recompute: expected a body that computes from its inputs and parameters alone, got one that uses the result of square. Pass it among the inputs.",
      );
      // The graph outside is whole, and recording goes on as before.
      sg.backward(sg.sum(outside));
      denseGradient(w).forEach((g, i) => expect(g).toBeCloseTo(2 * w.dataSync()[i]!, 5));
      expect(sg.noGrad(() => sg.square(w)).requiresGrad).toBe(false);
    });

    it("leaves the tape as it was when its body throws, forwards and backwards", () => {
      const x = param([2], 1);
      let calls = 0;
      const body = (x: Tensor): Tensor => {
        if (++calls % 2 === 0) throw new Error("stop");
        return sg.square(x);
      };
      const y = sg.sum(sg.recompute((x) => body(x!), [x], []));
      expect(() => sg.backward(y)).toThrow("stop");
      expect(x.grad).toBeUndefined();
      calls = 1;
      expect(() => sg.recompute((x) => body(x!), [x], [])).toThrow("stop");
      expect(sg.square(x).requiresGrad).toBe(true);
    });

    it("of a layer's experts, with dropout, changes no bit of output and gradients", () => {
      for (const options of [
        {},
        { activation: "swiglu", bias: true, expertDropout: 0.3 },
        { expertHiddenSize: [6, 5], expertDropout: 0.3 },
      ] as const) {
        const [plain, again] = [false, true].map((recompute) => {
          const moe = new MoE({ hiddenSize: 4, numExperts: 5, topK: 2, sharedExperts: 1, recompute, ...options });
          const x = param([30, 4], 9);
          const { output, auxLoss } = moe.forward(x, { training: true, seed: 1, step: 2, firstRow: 7 });
          sg.backward(sg.add(sg.sum(sg.square(output)), auxLoss));
          return [[...output.dataSync()], ...gradients([x, ...moe.parameters()])];
        });
        expect(again).toEqual(plain);
      }
    });
    it("computes once what it is told to compute once, in bodies within bodies too, and keeps it no longer than the scope it is in", () => {
      let times = 0;
      const square = (x: Tensor): Tensor => sg.mul(x, sg.oncePerPass(() => sg.affine(sg.square(x), ++times)));
      const step = (wrap: (body: (x: Tensor) => Tensor) => (x: Tensor) => Tensor, depth: number): number[] => {
        const x = param([3, 4], 9);
        times = 0;
        let body = square;
        for (let i = 0; i < depth; i++) body = wrap(body);
        sg.scope(() => sg.backward(sg.sum(body(x))));
        expect(times).toBe(1);
        const [found] = gradients([x]);
        x.zeroGrad();
        x.dispose();
        return found!;
      };
      const again = (body: (x: Tensor) => Tensor) => (x: Tensor): Tensor => sg.recompute((y) => body(y!), [x], []);
      const plain = step(again, 0);
      const before = used();
      for (const depth of [1, 2, 3]) expect(step(again, depth)).toEqual(plain);
      expect(used()).toBe(before);
      // Without a way back nothing is remembered.
      const x = param([3, 4], 9);
      const alone = used();
      sg.noGrad(() => sg.scope(() => void again(square)(x)));
      expect(used()).toBe(alone);
    });
  });
}
