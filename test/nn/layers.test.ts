/** Linear, Embedding, LayerNorm and Dropout: values, gradients by finite differences, and how parameters start; modules: names, modes, disposal. */

import { describe, expect, it } from "vitest";
import { Dropout, Embedding, LayerNorm, Linear, Lstm } from "#sparsegate/nn/layers.js";
import { fanInUniform, Module, parameter, type Init } from "#sparsegate/nn/module.js";
import { Sgd } from "#sparsegate/optim/optimizers.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { gradientErrors, param } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const CONTEXT = { training: true, seed: 3, step: 2, firstRow: 5 };
const list = (t: Tensor): number[] => Array.from(t.dataSync());
const int = (data: readonly number[], shape: readonly number[]): Tensor => sg.tensor(data, shape, "int32");

describe("layers", () => {
  useBackend(BACKENDS[0].make);

  it("Linear is x·W + b over the last axis, and its gradients are right, with and without a bias", () => {
    const linear = new Linear({ inputSize: 3, outputSize: 2 });
    linear.weight.backend.write(linear.weight.buffer, [1, 2, 3, 4, 5, 6]);
    linear.bias!.backend.write(linear.bias!.buffer, [10, 20]);
    // (1, 0, −1)·W = (1 − 5, 2 − 6).
    expect(list(linear.forward(sg.tensor([[[1, 0, -1]]])))).toEqual([6, 16]);
    for (const bias of [true, false]) {
      const layer = new Linear({ inputSize: 3, outputSize: 2, bias });
      const x = param([2, 2, 3], 1);
      expect(layer.parameters()).toHaveLength(bias ? 2 : 1);
      expect(gradientErrors([x, ...layer.parameters()], () => layer.forward(x))).toEqual([]);
    }
  });

  it("Embedding looks rows up; equal indices add their gradients; T = 1 and B = 1 are shapes like any other", () => {
    const layer = new Embedding({ vocabSize: 5, hiddenSize: 3 });
    const table = list(layer.weight);
    expect(list(layer.forward(int([4, 0, 4], [3, 1])))).toEqual([...table.slice(12), ...table.slice(0, 3), ...table.slice(12)]);
    for (const shape of [[2, 3], [1, 6], [6, 1], [6]]) {
      expect(layer.forward(int([1, 4, 1, 0, 1, 2], shape)).shape).toEqual([...shape, 3]);
      expect(gradientErrors([layer.weight], () => layer.forward(int([1, 4, 1, 0, 1, 2], shape)))).toEqual([]);
    }
    expect(() => layer.forward(int([5], [1]))).toThrow("embedding: expected indices from 0 to 4, got 5 at position 0.");
  });

  it("LayerNorm gives rows of mean 0 and variance 1, then scales and shifts; gradients of x, gamma and beta", () => {
    const layer = new LayerNorm({ hiddenSize: 4, epsilon: 1e-12 });
    const y = list(
      layer.forward(
        sg.tensor([
          [1, 2, 3, 6],
          [-5, 0, 0, 1],
        ]),
      ),
    );
    for (const row of [y.slice(0, 4), y.slice(4)]) {
      expect(row.reduce((s, v) => s + v, 0)).toBeCloseTo(0, 10);
      expect(row.reduce((s, v) => s + v * v, 0) / 4).toBeCloseTo(1, 10);
    }
    const x = param([2, 3, 4], 2);
    for (const p of layer.parameters()) p.backend.randomUniform(p.buffer, p.size, { seed: 1, stream: 2, step: 3 }, 0, -1, 1);
    expect(gradientErrors([x, ...layer.parameters()], () => new Wrapped(layer).forward(x))).toEqual([]);
  });

  it("Dropout sets a share of `rate` to zero, scales the rest by 1/(1 − rate), and passes gradients through the same mask", () => {
    const layer = new Dropout(0.3, "d");
    const n = 20_000;
    const y = list(layer.forward(sg.full([n / 4, 4], 1), CONTEXT));
    const kept = y.filter((v) => v !== 0);
    for (const v of kept) expect(v).toBeCloseTo(1 / 0.7, 12);
    // Binomial: standard deviation √(n·0.3·0.7) ≈ 65.
    expect(Math.abs(n - kept.length - 0.3 * n)).toBeLessThan(4 * 65);
    const x = param([3, 4], 3, 0.5, 1);
    expect(gradientErrors([x], () => layer.forward(x, CONTEXT))).toEqual([]);
  });

  it("Dropout does nothing in evaluation and at rate 0, and refuses a rate of 1", () => {
    const x = sg.tensor([1, 2, 3]);
    expect(new Dropout(0.5).forward(x, { ...CONTEXT, training: false })).toBe(x);
    expect(new Dropout(0).forward(x, CONTEXT)).toBe(x);
    expect(new Dropout(0.5).eval().forward(x)).toBe(x);
    expect(() => new Dropout(1)).toThrow("Dropout: expected rate to be a finite number from 0 to 0.999, got 1.");
  });

  it("two dropouts of different names draw different masks, two of one name the same", () => {
    const x = sg.full([100], 1);
    const [a, b, again] = ["a", "b", "a"].map((name) => list(new Dropout(0.5, name).forward(x, CONTEXT)));
    expect(again).toEqual(a);
    expect(b).not.toEqual(a);
  });

  it("refuse sizes that are no sizes, and inputs of another width", () => {
    expect(() => new Linear({ inputSize: 0, outputSize: 2 })).toThrow(
      "Linear: expected inputSize to be an integer of at least 1, got 0.",
    );
    expect(() => new Embedding({ vocabSize: 1.5, hiddenSize: 2 })).toThrow(
      "Embedding: expected vocabSize to be an integer of at least 1, got 1.5.",
    );
    expect(() => new LayerNorm({ hiddenSize: 0 })).toThrow(
      "LayerNorm: expected hiddenSize to be an integer of at least 1, got 0.",
    );
    expect(() => new Lstm({ inputSize: 2, hiddenSize: 3, projectionSize: 0 })).toThrow(
      "Lstm: expected projectionSize to be an integer of at least 1, got 0.",
    );
    expect(() => new Lstm({ inputSize: 2, hiddenSize: 3 }).forward(sg.zeros([1, 1, 3]))).toThrow(
      "Lstm.forward: expected x of width 2 (inputSize), got 3.",
    );
  });
});

/** A layer in the chain of another, so that its gradient arrives from above. */
class Wrapped extends Module {
  constructor(readonly inner: LayerNorm) {
    super();
  }
  forward(x: Tensor): Tensor {
    return sg.square(this.inner.forward(x));
  }
}

describe("parameters", () => {
  useBackend(BACKENDS[1].make);

  it("start as asked: mean and spread of 100,000 draws", () => {
    const n = 100_000;
    const CASES: [init: Init, std: number, most: number][] = [
      [{ kind: "normal", std: 0.5 }, 0.5, 3],
      // Uniform in ±b has standard deviation b/√3.
      [{ kind: "uniform", bound: 0.6 }, 0.6 / Math.sqrt(3), 0.6],
      [fanInUniform(25), 0.2, Math.sqrt(3) / 5],
    ];
    for (const [init, std, most] of CASES) {
      const values = list(parameter("p", [n], init, 1));
      const mean = values.reduce((s, v) => s + v, 0) / n;
      const variance = values.reduce((s, v) => s + (v - mean) ** 2, 0) / n;
      expect(Math.abs(mean)).toBeLessThan((4 * std) / Math.sqrt(n));
      expect(Math.abs(Math.sqrt(variance) / std - 1)).toBeLessThan(0.01);
      expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(Math.fround(most));
    }
    expect(list(parameter("p", [2], { kind: "zeros" }))).toEqual([0, 0]);
    expect(list(parameter("p", [2], { kind: "ones" }))).toEqual([1, 1]);
  });

  it("depend on their name and seed, not on the order of construction", () => {
    const draw = (name: string, seed: number): number[] => list(parameter(name, [4], { kind: "normal", std: 1 }, seed));
    const first = draw("a", 1);
    draw("b", 1);
    expect(draw("a", 1)).toEqual(first);
    expect(draw("a", 2)).not.toEqual(first);
    expect(draw("b", 1)).not.toEqual(first);
  });

  it("outlive every scope, and go when the module is disposed of, gradients too", () => {
    const used = (): number => sg.defaultBackend().memory().used;
    const before = used();
    const linear = sg.scope(() => new Linear({ inputSize: 3, outputSize: 2 }));
    sg.scope(() => sg.backward(sg.sum(linear.forward(sg.zeros([1, 3])))));
    expect(used()).toBeGreaterThan(before);
    linear.dispose();
    expect(used()).toBe(before);
  });
});

describe("Module", () => {
  useBackend(BACKENDS[0].make);
  class Net extends Module {
    readonly blocks = [
      new Linear({ inputSize: 2, outputSize: 2, name: "x" }),
      new Linear({ inputSize: 2, outputSize: 2, bias: false, name: "y" }),
    ];
    readonly norm = new LayerNorm({ hiddenSize: 2 });
    readonly shared = this.blocks[0]!.weight;
    readonly constant = sg.zeros([3]);
    readonly drop = new Dropout(0.5);
  }

  it("names parameters by the path to them, once each and by the first; tensors that need no gradient are none", () => {
    const net = new Net();
    expect([...net.namedParameters().keys()]).toEqual([
      "blocks.0.weight",
      "blocks.0.bias",
      "blocks.1.weight",
      "norm.gamma",
      "norm.beta",
    ]);
    expect(net.parameters()).toHaveLength(5);
    expect(net.numParameters()).toBe(4 + 2 + 4 + 2 + 2);
  });

  it("moves a parameter that two properties share once a step", () => {
    const net = new Net();
    const { weight } = net.blocks[0]!;
    sg.scope(() => sg.backward(sg.sum(weight)));
    const before = weight.dataSync()[0]!;
    new Sgd(net.namedParameters()).step(0.25);
    expect(weight.dataSync()[0]).toBeCloseTo(before - 0.25, 6);
  });

  it("finds modules in plain objects and maps, and goes round in no circle", () => {
    const inside = new Linear({ inputSize: 1, outputSize: 1 });
    const drop = new Dropout(0.5);
    const net = new (class extends Module {
      readonly parts = { first: inside, byName: new Map<string, Module>([["drop", drop], ["again", inside]]) };
      readonly self = this;
    })();
    expect([...net.namedParameters("net").keys()]).toEqual(["net.parts.first.weight", "net.parts.first.bias"]);
    net.eval();
    expect(drop.training).toBe(false);
  });

  it("takes no result that it keeps for a parameter, before or after the result is freed", () => {
    class Keeps extends Module {
      readonly linear = new Linear({ inputSize: 1, outputSize: 1 });
      last: { output: Tensor } | undefined;
    }
    const net = new Keeps();
    const names = (): string[] => [...net.namedState().keys()];
    sg.scope(() => {
      net.last = { output: net.linear.forward(sg.full([1, 1], 1)) };
      expect(names()).toEqual(["linear.weight", "linear.bias"]);
    });
    expect(names()).toEqual(["linear.weight", "linear.bias"]);
  });

  it("refuses two parameters of one path", () => {
    const of = (): Linear => new Linear({ inputSize: 1, outputSize: 1, bias: false });
    const net = new (class extends Module {
      readonly parts = new Map<unknown, Module>([[1, of()], ["1", of()]]);
    })();
    expect(() => net.namedParameters()).toThrow('Module: expected each parameter to have a path of its own, got "parts.1.weight". Rename a property or a key.');
  });

  it("keeps frozen parameters in the state, and optimisers leave them until they are free again", () => {
    const linear = new Linear({ inputSize: 1, outputSize: 1 });
    const { weight } = linear;
    const sgd = new Sgd(linear.namedParameters());
    const step = (): number => {
      sg.scope(() => sg.backward(sg.sum(linear.forward(sg.full([1, 1], 1)))));
      const before = weight.dataSync()[0]!;
      sgd.step(0.5);
      sgd.zeroGrad();
      return weight.dataSync()[0]! - before;
    };
    weight.requiresGrad = false;
    expect([...linear.namedState().keys()]).toEqual(["weight", "bias"]);
    expect(linear.numParameters()).toBe(1);
    expect(step()).toBe(0);
    weight.requiresGrad = true;
    expect(step()).toBeCloseTo(-0.5, 6);
    weight.requiresGrad = false;
    linear.dispose();
    expect(weight.disposed).toBe(true);
  });

  it("switches everything below it between training and evaluation", () => {
    const net = new Net();
    net.eval();
    expect([net.training, net.blocks[1]!.training, net.drop.training]).toEqual([false, false, false]);
    net.train();
    expect([net.training, net.blocks[1]!.training, net.drop.training]).toEqual([true, true, true]);
  });

  it("switches modules in lists of lists, where parameters are found too", () => {
    const drop = new Dropout(0.5);
    const nested = new (class extends Module {
      readonly rows = [[new Linear({ inputSize: 1, outputSize: 1 })], [[drop]]];
    })();
    expect([...nested.namedParameters().keys()]).toEqual(["rows.0.0.weight", "rows.0.0.bias"]);
    nested.eval();
    expect([drop.training, (nested.rows[0]![0] as Module).training]).toEqual([false, false]);
  });
});
