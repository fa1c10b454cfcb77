// Every operation's gradient against central finite differences on the float64 reference backend.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";

const H = 1e-5;

/** Weighted sum of a tensor with fixed irregular weights, so that no gradient can hide behind a symmetry. */
function project(y: Tensor): Tensor {
  const weights = sg.tensor(Float64Array.from({ length: y.size }, (_, i) => Math.sin(1.7 * i + 0.3)), y.shape);
  return sg.sum(sg.mul(y, weights));
}

function param(shape: readonly number[], seed: number, low = -1, high = 1): Tensor {
  const p = sg.keep(sg.randomUniform(shape, low, high, { seed }));
  p.requiresGrad = true;
  return p;
}

/** Largest relative difference between the tape's gradients and central differences. */
function worst(inputs: readonly Tensor[], f: () => Tensor): number {
  for (const p of inputs) p.zeroGrad();
  const loss = f();
  sg.backward(loss.size === 1 ? loss : project(loss));
  const value = (): number => {
    const y = f();
    return (y.size === 1 ? y : project(y)).item();
  };
  let most = 0;
  for (const p of inputs) {
    const grad = p.grad!;
    const dense = new Float64Array(p.size);
    const values = grad.value.dataSync();
    if (grad.rows) {
      const width = p.size / p.shape[0]!;
      grad.rows.dataSync().forEach((row, slot) => {
        if (row >= 0) for (let j = 0; j < width; j++) dense[row * width + j] = values[slot * width + j]!;
      });
    } else dense.set(values);
    const data = p.dataSync();
    for (let i = 0; i < p.size; i++) {
      const at = (delta: number): number => {
        const moved = data.slice();
        moved[i]! += delta;
        p.backend.write(p.buffer, moved);
        return value();
      };
      const slope = (at(H) - at(-H)) / (2 * H);
      most = Math.max(most, Math.abs(slope - dense[i]!) / Math.max(1, Math.abs(slope)));
    }
    p.backend.write(p.buffer, data);
  }
  return most;
}

let before: ReturnType<typeof sg.setDefaultBackend>;
beforeAll(() => {
  before = sg.setDefaultBackend(new ReferenceBackend());
});
afterAll(() => {
  sg.setDefaultBackend(before);
});

// Central differences with h = 1e-5 are good to about h² + 1e-16/h = 1e-10.
const TOLERANCE = 1e-6;

describe("gradients equal finite differences", () => {
  for (const name of ["neg", "exp", "square", "tanh", "sigmoid", "gelu", "silu", "softplus", "normalCdf"] as const) {
    it(name, () => {
      const x = param([3, 5], 1);
      expect(worst([x], () => sg[name](x))).toBeLessThan(TOLERANCE);
    });
  }
  for (const name of ["log", "sqrt", "reciprocal", "relu", "abs"] as const) {
    it(`${name}, away from its edge`, () => {
      const x = param([3, 5], 2, 0.5, 2);
      expect(worst([x], () => sg[name](x))).toBeLessThan(TOLERANCE);
    });
  }
  for (const name of ["add", "sub", "mul", "div"] as const) {
    for (const [a, b] of [[[2, 3], [2, 3]], [[2, 3], [3]], [[2, 3], [2, 1]], [[2, 3], []], [[2, 1, 4], [3, 1]]] as const) {
      it(`${name} of [${a.join()}] and [${b.join()}]`, () => {
        const [x, y] = [param(a, 3), param(b, 4, 0.5, 2)];
        expect(worst([x, y], () => sg[name](x, y))).toBeLessThan(TOLERANCE);
      });
    }
  }
  it("a tensor used twice gets the sum of both gradients", () => {
    const x = param([4], 5);
    expect(worst([x], () => sg.add(sg.mul(x, x), x))).toBeLessThan(TOLERANCE);
  });
  it("reshape, permute, slice and concat", () => {
    const [x, y] = [param([2, 3, 4], 6), param([2, 2, 4], 7)];
    expect(worst([x, y], () => sg.permute(sg.concat([sg.slice(x, 1, 1, 3), y], 1), [2, 0, 1]))).toBeLessThan(TOLERANCE);
    expect(worst([x], () => sg.reshape(x, [6, -1]))).toBeLessThan(TOLERANCE);
  });
  it("matmul, plain and batched", () => {
    const [a, b, c] = [param([2, 3, 4], 8), param([4, 5], 9), param([2, 4, 3], 10)];
    expect(worst([a, b], () => sg.matmul(a, b))).toBeLessThan(TOLERANCE);
    expect(worst([a, c], () => sg.matmul(a, c))).toBeLessThan(TOLERANCE);
  });
  it("groupedMatmul and groupedBias with empty groups", () => {
    const [x, w, bias] = [param([5, 3], 11), param([4, 3, 2], 12), param([4, 2], 13)];
    const offsets = sg.tensor([0, 2, 2, 5, 5], [5], "int32");
    expect(worst([x, w, bias], () => sg.groupedBias(sg.groupedMatmul(x, w, offsets), bias, offsets))).toBeLessThan(TOLERANCE);
  });
  it("sum and mean over any axes", () => {
    const x = param([2, 3, 4], 14);
    for (const axes of [undefined, 0, -1, [0, 2]]) {
      expect(worst([x], () => sg.sum(x, axes))).toBeLessThan(TOLERANCE);
      expect(worst([x], () => sg.mean(x, axes))).toBeLessThan(TOLERANCE);
    }
  });
  it("softmax, logSoftmax, logSumExp, layerNorm", () => {
    const [x, gamma, beta] = [param([3, 5], 15), param([5], 16), param([5], 17)];
    expect(worst([x], () => sg.softmax(x))).toBeLessThan(TOLERANCE);
    expect(worst([x], () => sg.logSoftmax(x))).toBeLessThan(TOLERANCE);
    expect(worst([x], () => sg.logSumExp(x))).toBeLessThan(TOLERANCE);
    expect(worst([x, gamma, beta], () => sg.layerNorm(x, gamma, beta))).toBeLessThan(TOLERANCE);
  });
  it("topK, gatherLast and bincount", () => {
    const x = param([3, 5], 18);
    const index = sg.tensor([0, 2, 2, -1, 4, 1], [3, 2], "int32");
    expect(worst([x], () => sg.topK(x, 2).values)).toBeLessThan(TOLERANCE);
    expect(worst([x], () => sg.gatherLast(x, index))).toBeLessThan(TOLERANCE);
    const y = param([3, 2], 19);
    expect(worst([y], () => sg.bincount(y, index, 5))).toBeLessThan(TOLERANCE);
  });
  it("embedding with repeated indices", () => {
    const table = param([6, 3], 20);
    const index = sg.tensor([1, 4, 1, 0], [2, 2], "int32");
    expect(worst([table], () => sg.embedding(table, index))).toBeLessThan(TOLERANCE);
  });
  it("dispatch and combine with a dropped assignment", () => {
    const [x, gates] = [param([3, 4], 21), param([3, 2], 22)];
    const experts = sg.tensor([1, 0, 2, -1, 1, 2], [3, 2], "int32");
    expect(worst([x, gates], () => {
      const routing = sg.routeByExpert(experts, 4);
      return sg.combine(sg.square(sg.dispatch(x, routing)), gates, routing);
    })).toBeLessThan(TOLERANCE);
  });
  it("loadProbability and cvSquared", () => {
    const [clean, noise] = [param([3, 5], 23), param([3, 5], 24, 0.5, 1.5)];
    expect(worst([clean, noise], () => {
      const noisy = sg.add(clean, sg.mul(noise, 0.3));
      const top = sg.topK(noisy, 3);
      return sg.loadProbability(clean, noise, top.values, top.indices, 2);
    })).toBeLessThan(TOLERANCE);
    const v = param([6], 25, 0.5, 2);
    expect(worst([v], () => sg.cvSquared(v))).toBeLessThan(TOLERANCE);
  });
  it("dropout draws the same mask backwards", () => {
    const x = param([4, 6], 26);
    expect(worst([x], () => sg.dropout(x, 0.4, { seed: 3, stream: 5, step: 7 }, 11))).toBeLessThan(TOLERANCE);
  });
  it("linearCrossEntropy with ignored rows", () => {
    const [x, w, b] = [param([5, 3], 27), param([7, 3], 28), param([7], 29)];
    const targets = sg.tensor([0, 6, -1, 3, 3], [5], "int32");
    expect(worst([x, w, b], () => sg.linearCrossEntropy(x, w, b, targets))).toBeLessThan(TOLERANCE);
  });
  it("sampledCrossEntropy with accidental hits", () => {
    const [x, w, b] = [param([5, 3], 30), param([7, 3], 31), param([7], 32)];
    const targets = sg.tensor([0, 6, -1, 3, 3], [5], "int32");
    const candidates = { samples: Int32Array.of(1, 3, 5), logExpected: Float32Array.of(-0.5, -1, -2), logExpectedOf: (t: number) => -t / 4 };
    expect(worst([x, w, b], () => sg.sampledCrossEntropy(x, w, b, targets, candidates))).toBeLessThan(TOLERANCE);
  });
  for (const projected of [false, true]) {
    it(`lstm ${projected ? "with" : "without"} projection, with resets and a starting state`, () => {
      const [T, B, D, Hh, P] = [3, 2, 3, 4, projected ? 2 : 4];
      const x = param([T, B, D], 33);
      const weights = { inputWeight: param([D, 4 * Hh], 34), recurrentWeight: param([P, 4 * Hh], 35), bias: param([4 * Hh], 36), ...(projected ? { projection: param([Hh, P], 37) } : {}) };
      const state = { h: sg.randomUniform([B, P], -1, 1, { seed: 38 }), c: sg.randomUniform([B, Hh], -1, 1, { seed: 39 }) };
      const resets = sg.tensor([0, 1, 0, 0, 1, 0], [T, B], "int32");
      expect(worst([x, ...Object.values(weights)], () => sg.lstm(x, weights, state, resets).output)).toBeLessThan(TOLERANCE);
    });
  }
});

describe("backward", () => {
  it("a second one over a freed graph is a clear error, and allowed with retainGraph", () => {
    const x = param([3], 40);
    const loss = sg.sum(sg.square(x));
    sg.backward(loss, { retainGraph: true });
    sg.backward(loss);
    expect(Array.from(x.grad!.value.dataSync())).toEqual(Array.from(x.dataSync(), (v) => 4 * v));
    expect(() => sg.backward(loss)).toThrow(/was used by an earlier backward and freed/);
  });
  it("refuses a loss that is no scalar or depends on nothing", () => {
    expect(() => sg.backward(sg.square(param([3], 41)))).toThrow(/expected a scalar loss/);
    expect(() => sg.backward(sg.tensor(1))).toThrow(/depends on none/);
  });
});

describe("scope", () => {
  it("frees what is made inside but for its result", () => {
    const backend = sg.defaultBackend();
    const used = backend.memory().used;
    const kept = sg.scope(() => sg.add(sg.zeros([10]), sg.zeros([10])));
    expect(backend.memory().used - used).toBe(80);
    kept.dispose();
    expect(backend.memory().used).toBe(used);
    expect(() => kept.dataSync()).toThrow(/has been freed/);
  });
});
