/** Experts that are modules of the user's own: any function from width D to width D, called with the rows of one expert, and only when there are some. */

import { describe, expect, it } from "vitest";
import type { ExpertModule } from "#sparsegate/moe/experts.js";
import { MoE } from "#sparsegate/moe/layer.js";
import { Dropout, Linear } from "#sparsegate/nn/layers.js";
import { Module, parameter, type RunContext } from "#sparsegate/nn/module.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { denseGradient } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const [D, F, E, K] = [3, 5, 4, 2];
const CONTEXT: RunContext = { training: true, seed: 1, step: 0, firstRow: 0 };

/** relu(x·W1 + b1)·W2 + b2, as the built-in experts compute it. */
class TwoLayers extends Module implements ExpertModule {
  readonly first: Linear;
  readonly second: Linear;
  constructor(index: number) {
    super();
    this.first = new Linear({ inputSize: D, outputSize: F, name: `expert.${index}.first` });
    this.second = new Linear({ inputSize: F, outputSize: D, name: `expert.${index}.second` });
  }
  forward(x: Tensor): Tensor {
    return this.second.forward(sg.relu(this.first.forward(x)));
  }
}

/** Scales by a parameter, and counts what it is asked. */
class Counting extends Module implements ExpertModule {
  readonly scale: Tensor;
  calls = 0;
  rows = 0;
  constructor(index: number) {
    super();
    this.scale = parameter(`expert.${index}.scale`, [D], { kind: "ones" });
  }
  forward(x: Tensor): Tensor {
    this.calls++;
    this.rows += x.shape[0]!;
    return sg.mul(x, this.scale);
  }
}

/** An expert that is a function alone. */
class Func extends Module {
  constructor(readonly f: (x: Tensor, context: RunContext) => Tensor) {
    super();
  }
  forward(x: Tensor, context: RunContext): Tensor {
    return this.f(x, context);
  }
}

function write(p: Tensor, data: ArrayLike<number>): void {
  p.backend.write(p.buffer, data);
}
const list = (t: Tensor): number[] => Array.from(t.dataSync());
/** Sends every row to the experts given, the first of them best, in evaluation as in training. */
function aim(moe: MoE, ...experts: number[]): void {
  const weight = moe.namedParameters().get("gate.weight")!;
  const columns = Float64Array.from({ length: E }, (_, e) => (experts.includes(e) ? 100 - experts.indexOf(e) : 0));
  // The first element of every x below is 1.
  write(
    weight,
    Float64Array.from({ length: D * E }, (_, i) => (i < E ? columns[i]! : 0)),
  );
}
const rowsOfOnes = (rows: number, seed: number): Tensor =>
  sg.tensor(
    new Draw(seed).floats(rows * D, -1, 1).map((v, i) => (i % D === 0 ? 1 : v)),
    [rows, D],
  );

for (const { name, make } of BACKENDS) {
  describe(`custom experts on the ${name} backend`, () => {
    useBackend(make);

    it("give what the built-in ones give when they compute the same: output, losses and gradients, with idle experts among them", () => {
      const fast = new MoE({ hiddenSize: D, numExperts: E, topK: K, expertHiddenSize: F, bias: true });
      const modules = Array.from({ length: E }, (_, e) => new TwoLayers(e));
      const own = new MoE({ hiddenSize: D, numExperts: E, topK: K, experts: modules });
      const draw = new Draw(4);
      for (const [path, p] of fast.namedParameters()) {
        const data = draw.floats(p.size, -1, 1);
        // No row goes to expert 3: a logit far below the others, since x starts with 1.
        if (path === "gate.weight") data[3] = -200;
        write(p, data);
        const other = own.namedParameters().get(path);
        if (other) write(other, data);
        const [layer, kind] = /experts\.(input|output)(Weight|Bias)/.exec(path)?.slice(1) ?? [];
        for (const [e, module] of layer ? modules.entries() : []) {
          const linear = layer === "input" ? module.first : module.second;
          write(kind === "Weight" ? linear.weight : linear.bias!, data.subarray((e * p.size) / E, ((e + 1) * p.size) / E));
        }
      }
      const results = [fast, own].map((moe) => {
        const x = sg.keep(rowsOfOnes(6, 5));
        x.requiresGrad = true;
        const out = moe.forward(x, CONTEXT);
        sg.backward(sg.add(sg.sum(sg.mul(out.output, rowsOfOnes(6, 8))), out.auxLoss));
        return { out, x };
      });
      const [a, b] = results as [(typeof results)[0], (typeof results)[0]];
      const close = (got: readonly number[], want: readonly number[]): void =>
        got.forEach((v, i) => expect(v).toBeCloseTo(want[i]!, name === "reference" ? 12 : 5));
      expect(list(b.out.experts)).toEqual(list(a.out.experts));
      close(list(b.out.output), list(a.out.output));
      close(list(b.out.auxLoss), list(a.out.auxLoss));
      close([...denseGradient(b.x)], [...denseGradient(a.x)]);
      for (const path of ["gate.weight", "gate.noiseWeight"])
        close([...denseGradient(own.namedParameters().get(path)!)], [...denseGradient(fast.namedParameters().get(path)!)]);
      for (const path of ["inputWeight", "inputBias", "outputWeight", "outputBias"] as const) {
        const whole = [...denseGradient(fast.namedParameters().get(`experts.${path}`)!)];
        const parts = modules.flatMap((module) => {
          const linear = path.startsWith("input") ? module.first : module.second;
          return [...denseGradient(path.endsWith("Weight") ? linear.weight : linear.bias!)];
        });
        close(parts, whole);
      }
      expect(modules[3]!.first.weight.grad).toBeUndefined();
    });

    it("are called once with all their rows, and not at all without; those get no gradient", () => {
      const modules = Array.from({ length: E }, (_, e) => new Counting(e));
      const moe = new MoE({ hiddenSize: D, numExperts: E, topK: K, experts: modules });
      aim(moe, 2, 1);
      const out = moe.forward(rowsOfOnes(7, 1), CONTEXT);
      sg.backward(sg.add(sg.sum(out.output), out.auxLoss));
      expect(modules.map((m) => m.calls)).toEqual([0, 1, 1, 0]);
      expect(modules.map((m) => m.rows)).toEqual([0, 7, 7, 0]);
      expect(modules.map((m) => m.scale.grad !== undefined)).toEqual([false, true, true, false]);
    });

    for (const kind of ["built-in", "custom"]) {
      it(`stay bit for bit as they are through Adam while they have no rows, after steps with rows too (${kind})`, () => {
        const moe = new MoE({
          hiddenSize: D,
          numExperts: E,
          topK: 1,
          ...(kind === "custom" ? { experts: (i: number) => new TwoLayers(i) } : { expertHiddenSize: F, bias: true }),
        });
        const adam = new Adam(moe.namedParameters());
        /** The parameters of each expert. */
        const snapshot = (): number[][] =>
          Array.from({ length: E }, (_, e) =>
            [...moe.namedParameters()].flatMap(([path, p]) => {
              if (path.startsWith("experts.modules")) return path.startsWith(`experts.modules.${e}.`) ? list(p) : [];
              return path.startsWith("experts.") ? list(p).slice((e * p.size) / E, ((e + 1) * p.size) / E) : [];
            }),
          );
        const step = (number: number, ...experts: number[]): void => {
          aim(moe, ...experts);
          sg.scope(() => {
            const out = moe.forward(rowsOfOnes(6, number), { ...CONTEXT, step: number });
            sg.backward(sg.add(sg.sum(sg.square(out.output)), out.auxLoss));
          });
          adam.step(0.1);
          adam.zeroGrad();
        };
        // Expert 1 gets momentum, then no rows while expert 2 trains.
        step(0, 1);
        const before = snapshot();
        step(1, 2);
        step(2, 2);
        const after = snapshot();
        for (const idle of [0, 1, 3]) expect(after[idle]).toEqual(before[idle]);
        expect(after[2]).not.toEqual(before[2]);
      });
    }

    it("may keep state of their own from call to call", () => {
      const modules = Array.from({ length: E }, (_, e) => new Counting(e));
      const moe = new MoE({ hiddenSize: D, numExperts: E, topK: 1, experts: modules });
      for (const expert of [0, 3, 3]) {
        aim(moe, expert);
        moe.forward(rowsOfOnes(2, expert), CONTEXT);
      }
      expect(modules.map((m) => m.rows)).toEqual([2, 0, 0, 4]);
    });

    it("see the layer's context: dropout in an expert follows it, so that evaluation is deterministic", () => {
      const seen: RunContext[] = [];
      const dropout = new Dropout(0.5, "inside");
      const moe = new MoE({
        hiddenSize: D,
        numExperts: E,
        topK: 1,
        experts: () =>
          new Func((x, context) => {
            seen.push(context);
            return dropout.forward(x, context);
          }),
      });
      aim(moe, 2);
      const x = rowsOfOnes(8, 3);
      const evaluation = { training: false, seed: 5, step: 9, firstRow: 100 };
      expect(list(moe.forward(x, evaluation).output)).toEqual(list(x));
      expect(list(moe.forward(x, { ...evaluation, training: true }).output)).toContain(0);
      expect(seen.map(({ rowIds, ...context }) => ({ ...context, ids: rowIds && list(rowIds) }))).toEqual([
        { ...evaluation, ids: undefined },
        { ...evaluation, training: true, ids: [0, 1, 2, 3, 4, 5, 6, 7] },
      ]);
    });

    it("drop what depends on the row alone: on what stands beside it and on the order of rows, given ids, nothing does", () => {
      const moe = new MoE({ hiddenSize: D, numExperts: E, topK: 2, gate: "top-k", experts: (e) => new Dropout(0.5, `expert.${e}`) });
      write(moe.namedParameters().get("gate.weight")!, new Draw(3).floats(D * E, -1, 1));
      const rows = 12;
      const x = sg.tensor(new Draw(4).floats(rows * D, -1, 1), [rows, D]);
      const whole = list(moe.forward(x, CONTEXT).output);
      expect(whole).toContain(0);
      const parts = [
        [0, 5],
        [5, rows],
      ].flatMap(([from, to]) => list(moe.forward(sg.slice(x, 0, from!, to!), { ...CONTEXT, firstRow: from! }).output));
      expect(parts).toEqual(whole);
      const rowIds = sg.tensor(Int32Array.from({ length: rows }, (_, i) => rows - 1 - i), [rows], "int32");
      const backwards = list(moe.forward(sg.concat(Array.from({ length: rows }, (_, i) => sg.slice(x, 0, rows - 1 - i, rows - i)), 0), { ...CONTEXT, rowIds }).output);
      for (let r = 0; r < rows; r++) expect(backwards.slice(r * D, (r + 1) * D)).toEqual(whole.slice((rows - 1 - r) * D, (rows - r) * D));
    });

    it("that return another shape, or no tensor, are refused by name", () => {
      const bad: [f: (x: Tensor) => unknown, got: string][] = [
        [(x) => sg.slice(x, 1, 0, 2), "[6, 2]"],
        [(x) => sg.slice(x, 0, 0, 5), "[5, 3]"],
        [(x) => sg.sum(x), "[]"],
        [(x) => sg.reshape(x, [6, 3, 1]), "[6, 3, 1]"],
        [() => undefined, "undefined"],
        [(x) => ({ output: x }), "Object"],
      ];
      for (const [f, got] of bad) {
        const moe = new MoE({ hiddenSize: D, numExperts: E, topK: 1, experts: () => new Func(f as (x: Tensor) => Tensor) });
        aim(moe, 1);
        expect(() => moe.forward(rowsOfOnes(6, 1), CONTEXT)).toThrow(
          `MoE expert 1: expected an output of shape [6, 3], got ${got}. Experts map width D to width D.`,
        );
      }
    });
  });
}
