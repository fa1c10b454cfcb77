/** Optimisers against their formulas written out in float64, element by element, on every backend. */

import { describe, expect, it } from "vitest";
import { Adam, Sgd, type AdamOptions } from "#sparsegate/optim/optimizers.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const list = (t: Tensor): number[] => Array.from(t.dataSync());

function leaf(data: ArrayLike<number>, shape: readonly number[]): Tensor {
  const p = sg.keep(sg.tensor(data, shape));
  p.requiresGrad = true;
  return p;
}
/** Gives a parameter a gradient, dense or by rows. */
function setGradient(p: Tensor, value: ArrayLike<number>, rows?: readonly number[]): void {
  const width = p.size / (p.shape[0] ?? 1);
  p.grad = rows
    ? { value: sg.keep(sg.tensor(value, [rows.length, width])), rows: sg.keep(sg.tensor(rows, [rows.length], "int32")) }
    : { value: sg.keep(sg.tensor(value, p.shape)) };
}

/** Kingma & Ba 2015, algorithm 1, with Loshchilov & Hutter's decoupled decay: one scalar. */
class PlainAdam {
  m = 0;
  v = 0;
  t = 0;
  constructor(
    public p: number,
    readonly o: Required<Omit<AdamOptions, "factored" | "learningRateScale">>,
  ) {}
  step(g: number, rate: number): void {
    const { beta1, beta2, epsilon, weightDecay } = this.o;
    this.t++;
    this.m = beta1 * this.m + (1 - beta1) * g;
    this.v = beta2 * this.v + (1 - beta2) * g * g;
    const mHat = this.m / (1 - beta1 ** this.t);
    const vHat = this.v / (1 - beta2 ** this.t);
    this.p -= rate * (mHat / (Math.sqrt(vHat) + epsilon)) + rate * weightDecay * this.p;
  }
}

const DEFAULTS = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 };

for (const { name, make } of BACKENDS) {
  const digits = name === "reference" ? 12 : 5;
  const close = (got: readonly number[], want: readonly number[], where = ""): void => {
    expect(got.length).toBe(want.length);
    got.forEach((v, i) => expect(v, `${where}[${i}]`).toBeCloseTo(want[i]!, digits));
  };

  describe(`Adam on the ${name} backend`, () => {
    useBackend(make);

    it("corrects by the updates of a parameter and not by the steps of the run, resumed or not", () => {
      const [often, late] = [leaf([1], [1]), leaf([1], [1])];
      const named = new Map([["often", often], ["late", late]]);
      let adam = new Adam(named);
      const plain = new PlainAdam(1, DEFAULTS);
      for (let t = 1; t <= 60; t++) {
        setGradient(often, [1]);
        // From the 51st step on, and in every other one of them.
        if (t > 50 && t % 2 === 0) {
          setGradient(late, [1]);
          plain.step(1, 0.01);
        }
        adam.step(0.01);
        adam.zeroGrad();
        if (t !== 55) continue;
        const state = new Map(Array.from(adam.state(), ([key, tensor]) => [key, tensor.dataSync().slice()]));
        adam = new Adam(named);
        for (const [key, tensor] of adam.prepare()) tensor.backend.write(tensor.buffer, state.get(key)!);
        adam.steps = t;
      }
      close(list(late), [plain.p]);
      // The first update of all is by the rate: 1 and 1 over 1.
      expect(1 - plain.p).toBeLessThan(5.01 * 0.01);
    });
    it("goes on from moments that were saved without a count by the steps of the run", () => {
      const p = leaf([1], [1]);
      const adam = new Adam(new Map([["p", p]]));
      const plain = new PlainAdam(1, DEFAULTS);
      for (let t = 1; t <= 9; t++) {
        setGradient(p, [t]);
        adam.step(0.01);
        plain.step(t, 0.01);
        if (t === 5) p.backend.fill(adam.prepare().get("p.steps")!.buffer, 0, 1);
      }
      close(list(p), [plain.p]);
    });

    const SETTINGS: Partial<typeof DEFAULTS>[] = [
      {},
      { beta1: 0 },
      { weightDecay: 0.1 },
      { beta1: 0.5, beta2: 0.9, epsilon: 0.01 },
    ];
    it.each(SETTINGS)("is algorithm 1 of the paper, with bias correction: %o", (change) => {
      const options = { ...DEFAULTS, ...change };
      const draw = new Draw(1);
      for (const shape of [[2, 3], [5], []]) {
        const start = draw.floats(shape.reduce((n, d) => n * d, 1));
        const p = leaf(start, shape);
        const plain = Array.from(start, (v) => new PlainAdam(v, options));
        const adam = new Adam(new Map([["p", p]]), options);
        for (let t = 1; t <= 5; t++) {
          const g = draw.floats(p.size);
          setGradient(p, g);
          adam.step(0.1 / t, 0.5);
          plain.forEach((q, i) => q.step(0.5 * g[i]!, 0.1 / t));
          adam.zeroGrad();
          close(
            list(p),
            plain.map((q) => q.p),
            `step ${t}`,
          );
        }
        expect(adam.steps).toBe(5);
      }
    });

    it("by rows: a row is updated with its own count, exactly as if it were alone; rows not named stay bit for bit", () => {
      const options = { ...DEFAULTS, weightDecay: 0.05 };
      const draw = new Draw(2);
      const p = leaf(draw.floats(4 * 3), [4, 3]);
      const plain = list(p).map((v) => new PlainAdam(v, options));
      const adam = new Adam(new Map([["p", p]]), options);
      for (const rows of [[2, 0], [2], [-1, 2, -1], [0, 3]]) {
        const before = list(p);
        const g = draw.floats(rows.length * 3);
        setGradient(p, g, rows);
        adam.step(0.1);
        adam.zeroGrad();
        for (const [slot, row] of rows.entries())
          if (row >= 0) for (let j = 0; j < 3; j++) plain[3 * row + j]!.step(g[3 * slot + j]!, 0.1);
        close(
          list(p),
          plain.map((q) => q.p),
        );
        for (const row of [0, 1, 2, 3].filter((r) => !rows.includes(r)))
          expect(list(p).slice(3 * row, 3 * row + 3)).toEqual(before.slice(3 * row, 3 * row + 3));
      }
      expect(list(adam.state().get("p.steps")!)).toEqual([2, 0, 3, 1]);
    });

    it("by rows equals dense, on rows that every step names", () => {
      const draw = new Draw(3);
      const start = draw.floats(15);
      const [lazy, dense] = [leaf(start, [5, 3]), leaf(start, [5, 3])];
      const [a, b] = [new Adam(new Map([["p", lazy]])), new Adam(new Map([["p", dense]]))];
      for (let t = 0; t < 4; t++) {
        const g = draw.floats(9);
        setGradient(lazy, g, [1, 3, 4]);
        setGradient(dense, [0, 0, 0, ...g.subarray(0, 3), 0, 0, 0, ...g.subarray(3)], undefined);
        a.step(0.1);
        b.step(0.1);
        for (const o of [a, b]) o.zeroGrad();
      }
      close(list(lazy), list(dense));
    });

    /** App. D: moving averages of row and column means of g²; v = row·column / mean of rows; no first moment. */
    class Factored {
      readonly rowMean: number[];
      readonly colMean: number[];
      t = 0;
      constructor(
        readonly p: number[],
        readonly H: number,
        readonly W: number,
        readonly beta2: number,
      ) {
        this.rowMean = new Array<number>(H).fill(0);
        this.colMean = new Array<number>(W).fill(0);
      }
      step(g: readonly number[], rate: number, epsilon: number): void {
        const { H, W, beta2 } = this;
        this.t++;
        const average = (values: number[]): number => values.reduce((s, v) => s + v, 0) / values.length;
        for (let i = 0; i < H; i++)
          this.rowMean[i] = beta2 * this.rowMean[i]! + (1 - beta2) * average(g.slice(i * W, (i + 1) * W).map((v) => v * v));
        for (let j = 0; j < W; j++)
          this.colMean[j] = beta2 * this.colMean[j]! + (1 - beta2) * average(g.filter((_, at) => at % W === j).map((v) => v * v));
        const mean = average(this.rowMean);
        for (let at = 0; at < H * W; at++) {
          const v = mean === 0 ? 0 : (this.rowMean[Math.floor(at / W)]! * this.colMean[at % W]!) / mean;
          this.p[at]! -= (rate * g[at]!) / (Math.sqrt(v / (1 - beta2 ** this.t)) + epsilon);
        }
      }
    }
    const factoredOptions = { beta1: 0, beta2: 0.9, epsilon: 1e-4, factored: (path: string) => path === "w" };

    it("factored (App. D): each expert's matrix by itself, only those in use", () => {
      const draw = new Draw(4);
      const [E, H, W] = [4, 3, 5];
      const p = leaf(draw.floats(E * H * W), [E, H, W]);
      const plain = Array.from({ length: E }, (_, e) => new Factored(list(p).slice(e * H * W, (e + 1) * H * W), H, W, 0.9));
      const adam = new Adam(new Map([["w", p]]), factoredOptions);
      for (const rows of [
        [0, -1, 2, -1],
        [-1, -1, 2, -1],
        [0, 1, 2, -1],
      ]) {
        const before = list(p);
        const g = draw.floats(E * H * W);
        setGradient(p, g, rows);
        adam.step(0.1, 0.5);
        adam.zeroGrad();
        for (const e of rows)
          if (e >= 0)
            plain[e]!.step(
              Array.from(g.subarray(e * H * W, (e + 1) * H * W), (v) => 0.5 * v),
              0.1,
              1e-4,
            );
        close(
          list(p),
          plain.flatMap((q) => q.p),
        );
        expect(list(p).slice(3 * H * W)).toEqual(before.slice(3 * H * W));
      }
      expect(list(adam.state().get("w.steps")!)).toEqual([2, 1, 3, 0]);
      expect([...adam.state().keys()]).toEqual(["w.rowMean", "w.colMean", "w.steps"]);
      close(
        list(adam.state().get("w.rowMean")!),
        plain.flatMap((q) => q.rowMean),
      );
      close(
        list(adam.state().get("w.colMean")!),
        plain.flatMap((q) => q.colMean),
      );
    });

    it("factored, one matrix: dense gradients, and gradients by rows with zeros for the rows that are not named", () => {
      const draw = new Draw(5);
      const [H, W] = [4, 3];
      const p = leaf(draw.floats(H * W), [H, W]);
      const plain = new Factored(list(p), H, W, 0.9);
      const adam = new Adam(new Map([["w", p]]), factoredOptions);
      const zero = (): number[] => new Array<number>(H * W).fill(0);
      const dense = draw.floats(H * W);
      setGradient(p, dense);
      adam.step(0.1);
      plain.step(Array.from(dense), 0.1, 1e-4);
      for (const rows of [
        [2, -1, 0],
        [3, 1, 2, 0, -1, -1],
      ]) {
        adam.zeroGrad();
        const g = draw.floats(rows.length * W);
        setGradient(p, g, rows);
        adam.step(0.1);
        const full = zero();
        for (const [slot, row] of rows.entries()) if (row >= 0) for (let j = 0; j < W; j++) full[row * W + j] = g[slot * W + j]!;
        plain.step(full, 0.1, 1e-4);
      }
      close(list(p), plain.p);
      expect(list(adam.state().get("w.steps")!)).toEqual([3]);
    });

    it("factored, of a gradient that is zero: nothing moves, nothing is NaN", () => {
      const p = leaf([1, 2, 3, 4], [1, 2, 2]);
      const adam = new Adam(new Map([["w", p]]), { ...factoredOptions, epsilon: 1e-8 });
      setGradient(p, [0, 0, 0, 0]);
      adam.step(0.1);
      expect(list(p)).toEqual([1, 2, 3, 4]);
    });

    it("keeps what the formulas need and no more: bytes of state per scalar", () => {
      const shape = [2, 64, 64];
      const scalars = 2 * 64 * 64;
      const bytes = (options: AdamOptions): number => {
        const p = leaf(new Float64Array(scalars), shape);
        const before = p.backend.memory().used;
        const adam = new Adam(new Map([["w", p]]), options);
        adam.prepare();
        const used = p.backend.memory().used - before;
        adam.dispose();
        expect(p.backend.memory().used).toBe(before);
        p.dispose();
        return used / scalars / (name === "reference" ? 8 : 4);
      };
      // Two moments, one, and (64 + 64)/(64·64) of one; a count per matrix and the allocator's rounding on top.
      expect(bytes({})).toBeCloseTo(2, 1);
      expect(bytes({ beta1: 0 })).toBeCloseTo(1, 1);
      expect(bytes(factoredOptions)).toBeLessThan(0.05);
    });

    it("leaves parameters without a gradient alone, and is reproducible from its state", () => {
      const [p, q] = [leaf([1, 2], [2]), leaf([3, 4], [2])];
      const parameters = new Map([
        ["p", p],
        ["q", q],
      ]);
      const adam = new Adam(parameters);
      setGradient(p, [1, -1]);
      adam.step(0.1);
      expect(list(q)).toEqual([3, 4]);
      // Another optimiser, filled with the first one's state, goes on in the same way.
      const copy = new Map([
        ["p", leaf(list(p), [2])],
        ["q", leaf(list(q), [2])],
      ]);
      const other = new Adam(copy);
      other.steps = adam.steps;
      other.prepare();
      for (const [key, tensor] of other.state()) {
        const from = adam.state().get(key);
        if (from) tensor.backend.write(tensor.buffer, from.dataSync());
      }
      for (const [set, optimizer] of [
        [parameters, adam],
        [copy, other],
      ] as const) {
        setGradient(set.get("p")!, [0.5, 0.25]);
        setGradient(set.get("q")!, [2, -3]);
        optimizer.step(0.1);
      }
      expect(list(copy.get("p")!)).toEqual(list(p));
      expect(list(copy.get("q")!)).toEqual(list(q));
    });
  });

  describe(`SGD on the ${name} backend`, () => {
    useBackend(make);
    it("is p − rate·scale·g, dense and by rows", () => {
      const p = leaf([1, 2, 3, 4, 5, 6], [3, 2]);
      const sgd = new Sgd(new Map([["p", p]]));
      setGradient(p, [1, 1, 2, 2, 3, 3]);
      sgd.step(0.5, 0.5);
      expect(list(p)).toEqual([0.75, 1.75, 2.5, 3.5, 4.25, 5.25]);
      sgd.zeroGrad();
      expect(p.grad).toBeUndefined();
      setGradient(p, [8, 8, 9, 9, 4, 4], [2, -1, 0]);
      sgd.step(0.25);
      expect(list(p)).toEqual([-0.25, 0.75, 2.5, 3.5, 2.25, 3.25]);
      expect(sgd.steps).toBe(2);
      expect(sgd.state().size).toBe(0);
    });

    it("has rates of its own for parameters by name, as Adam has", () => {
      const [p, q] = [leaf([1], [1]), leaf([1], [1])];
      const learningRateScale = (name: string): number => (name === "slow" ? 0.25 : 1);
      const parameters = new Map([["fast", p], ["slow", q]]); // prettier-ignore
      for (const optimizer of [new Sgd(parameters, { learningRateScale }), new Adam(parameters, { learningRateScale })]) {
        const before = [p, q].map((x) => x.item());
        for (const x of [p, q]) setGradient(x, [1]);
        optimizer.step(0.5);
        // Adam's first step is the rate itself, whatever the gradient.
        expect(before[0]! - p.item()).toBeCloseTo(0.5, 6);
        expect(before[1]! - q.item()).toBeCloseTo(0.125, 6);
        optimizer.dispose();
      }
    });
  });
}

describe("optimisers refuse", () => {
  useBackend(BACKENDS[0].make);
  const one = (): Map<string, Tensor> => new Map([["w", leaf([1], [1])]]);
  const CASES: [claim: string, make: () => unknown, message: string][] = [
    [
      "no parameters",
      () => new Sgd(new Map()),
      "Optimizer: expected at least one parameter, got none. Pass module.namedParameters().",
    ],
    ["beta1 = 1", () => new Adam(one(), { beta1: 1 }), "Adam: expected beta1 to be a finite number from 0 to 0.999999, got 1."],
    [
      "beta2 = NaN",
      () => new Adam(one(), { beta2: NaN }),
      "Adam: expected beta2 to be a finite number from 0 to 0.99999999, got NaN.",
    ],
    [
      "a negative epsilon",
      () => new Adam(one(), { epsilon: -1 }),
      "Adam: expected epsilon to be a finite number from 0 to 1e+30, got -1.",
    ],
    [
      "an epsilon that is 0 in float32",
      () => new Adam(one(), { epsilon: 1e-50 }),
      "Adam: expected epsilon above 0 in float32, got 1e-50. The usual one is 1e-8.",
    ],
    [
      "a rate that is no number",
      () => new Sgd(one(), { learningRateScale: () => NaN }),
      "Optimizer: expected learningRateScale of w to be a finite number of at least 0, got NaN.",
    ],
    [
      "a parameter of two names",
      () => {
        const [w] = one().values();
        return new Adam(new Map([["a", w!], ["b", w!]]));
      },
      'Optimizer: expected each parameter once, got "b, which is a". Pass module.namedParameters().',
    ],
    [
      "an option that is misspelt",
      () => new Adam(one(), { weight_decay: 0.1 } as never),
      'Adam: expected options among beta1, beta2, epsilon, weightDecay, factored, learningRateScale, got "weight_decay". Did you mean weightDecay?',
    ],
    ["momentum", () => new Sgd(one(), { momentum: 0.9 } as never), 'Sgd: expected options among learningRateScale, got "momentum".'],
    [
      "a vector to factor",
      () => new Adam(one(), { factored: () => true }).prepare(),
      "Adam: expected a factored parameter to have two or three axes, got [1]",
    ],
  ];
  it.each(CASES)("%s", (_claim, make, message) => {
    expect(make).toThrow(message);
    expect(make).toThrow(expect.objectContaining({ name: "ConfigError" }));
  });
});
