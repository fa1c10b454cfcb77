/** One seed gives one result: again, with another number of threads, and with the batch in parts. */

import { describe, expect, it } from "vitest";
import type { Backend } from "#sparsegate/backend/backend.js";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { LanguageModel } from "#sparsegate/models/language-model.js";
import { MoE } from "#sparsegate/moe/layer.js";
import { Dropout } from "#sparsegate/nn/layers.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import { clipScale } from "#sparsegate/optim/clip.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { denseGradient } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const list = (t: Tensor): number[] => Array.from(t.dataSync());

function stir(moe: MoE): MoE {
  const draw = new Draw(3);
  for (const [name, p] of moe.namedParameters())
    if (name.startsWith("gate")) p.backend.write(p.buffer, draw.floats(p.size, -0.5, 0.5));
  return moe;
}

/** Runs with tensors on a backend of its own and gives plain numbers back. */
function on<T>(backend: Backend, body: () => T): T {
  const before = sg.setDefaultBackend(backend);
  try {
    return body();
  } finally {
    sg.setDefaultBackend(before);
    backend.dispose();
  }
}

/** One step of a layer large enough for every kernel to be cut among threads: output, loss and gradients. */
function layerStep(): Map<string, number[]> {
  const moe = stir(new MoE({ hiddenSize: 64, numExperts: 16, topK: 4, expertHiddenSize: 96, bias: true, seed: 2 }));
  const x = sg.randomNormal([1500, 64], { seed: 4 });
  x.requiresGrad = true;
  const out = moe.forward(x, { training: true, seed: 5, step: 6, firstRow: 0 });
  sg.backward(sg.add(sg.mean(sg.square(out.output)), out.auxLoss));
  const found = new Map([
    ["experts", list(out.experts)],
    ["output", list(out.output)],
    ["auxLoss", list(out.auxLoss)],
  ]);
  for (const [name, p] of [["x", x] as const, ...moe.namedParameters()]) found.set(`gradient of ${name}`, [...denseGradient(p)]);
  return found;
}

/** Parameters after three steps of a small language model with dropout and clipping. */
function trained(seed: number): Map<string, number[]> {
  const model = new LanguageModel({
    vocabSize: 50,
    hiddenSize: 16,
    lstmSize: 24,
    middle: { kind: "moe", numExperts: 8, topK: 2, expertHiddenSize: 32, importanceWeight: 0.1, loadWeight: 0.1 },
    dropout: 0.2,
    sigmoid: true,
    residual: true,
    seed,
  });
  const adam = new Adam(model.namedParameters());
  const draw = new Draw(8);
  for (let step = 0; step < 3; step++) {
    sg.scope(() => {
      const [inputs, targets] = [0, 1].map(() => sg.tensor(draw.ints(7 * 30, 0, 50), [7, 30], "int32")) as [Tensor, Tensor];
      const out = model.forward({ inputs, targets }, { training: true, seed, step, firstRow: 210 * step });
      sg.backward(sg.add(out.loss, out.auxLoss!));
      adam.step(0.01, clipScale(model.parameters(), 0.5).scale);
      adam.zeroGrad();
    });
  }
  return new Map([...model.namedParameters()].map(([name, p]) => [name, list(p)]));
}

describe("one seed gives one result", () => {
  for (const threads of [1, 2]) {
    for (const blas of ["auto", "none"]) {
      it(`bit for bit when repeated: layer and three training steps on ${threads} thread${threads === 1 ? "" : "s"}, BLAS ${blas}`, () => {
        for (const run of [layerStep, () => trained(7)]) {
          const [first, second] = [0, 1].map(() => on(new CpuBackend({ threads, blas }), run));
          for (const [name, values] of first!) expect(second!.get(name), name).toEqual(values);
        }
      });
    }
  }

  it("up to rounding on 1 and 2 threads: the same experts for every row, gradients to 1e-5 of the largest", () => {
    const [one, two] = [1, 2].map((threads) => on(new CpuBackend({ threads }), layerStep)) as [
      Map<string, number[]>,
      Map<string, number[]>,
    ];
    expect(two.get("experts")).toEqual(one.get("experts"));
    for (const [name, values] of one) {
      const scale = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      const worst = two.get(name)!.reduce((most, v, i) => Math.max(most, Math.abs(v - values[i]!)), 0);
      expect(worst, name).toBeLessThanOrEqual(1e-5 * scale);
    }
  });

  it("up to rounding on 1 and 2 threads: parameters after three training steps", () => {
    const [one, two] = [1, 2].map((threads) => on(new CpuBackend({ threads }), () => trained(7))) as [
      Map<string, number[]>,
      Map<string, number[]>,
    ];
    // Adam's first steps are of the size of the rate (0.01) whatever the gradient; what rounding moves is far below.
    for (const [name, values] of one)
      for (const [i, v] of values.entries()) expect(Math.abs(two.get(name)![i]! - v), `${name}[${i}]`).toBeLessThan(1e-3);
  });

  it("and another seed another", () => {
    const [a, b] = [7, 8].map((seed) => on(new CpuBackend({ threads: 1 }), () => trained(seed))) as [
      Map<string, number[]>,
      Map<string, number[]>,
    ];
    for (const [name, values] of a) expect(b.get(name), name).not.toEqual(values);
  });
});

for (const { name, make } of BACKENDS) {
  describe(`noise on the ${name} backend depends on the global row alone`, () => {
    useBackend(make);
    const context = { training: true, seed: 3, step: 4, firstRow: 0 };
    /** The whole, and parts of uneven size put together again. */
    const inParts = (x: Tensor, run: (part: Tensor, firstRow: number) => Tensor): [whole: number[], parts: number[]] => {
      const rows = x.shape[0]!;
      const cuts = [0, 1, 6, rows];
      return [list(run(x, 0)), cuts.slice(1).flatMap((end, i) => list(run(sg.slice(x, 0, cuts[i]!, end), cuts[i]!)))];
    };
    const x = (): Tensor => sg.randomNormal([11, 5], { seed: 6 });

    it("in the gate: a batch in parts picks the same experts with the same weights", () => {
      const moe = stir(new MoE({ hiddenSize: 5, numExperts: 7, topK: 3 }));
      const [whole, parts] = inParts(x(), (part, firstRow) => moe.forward(part, { ...context, firstRow }).experts);
      expect(parts).toEqual(whole);
      const [output, outputs] = inParts(x(), (part, firstRow) => moe.forward(part, { ...context, firstRow }).output);
      outputs.forEach((v, i) => expect(v).toBeCloseTo(output[i]!, 5));
    });
    it("in dropout: a batch in parts loses the same elements", () => {
      const dropout = new Dropout(0.5, "here");
      const [whole, parts] = inParts(x(), (part, firstRow) => dropout.forward(part, { ...context, firstRow }));
      expect(parts).toEqual(whole);
      expect(whole.filter((v) => v === 0).length).toBeGreaterThan(10);
    });
    it("and on seed, step and layer: a change of any draws anew", () => {
      const experts = (change: Partial<typeof context>, layer = "moe"): number[] =>
        list(new MoE({ hiddenSize: 5, numExperts: 50, topK: 3, name: layer }).forward(x(), { ...context, ...change }).experts);
      const base = experts({});
      expect(experts({})).toEqual(base);
      for (const other of [experts({ seed: 4 }), experts({ step: 5 }), experts({ firstRow: 1 }), experts({}, "another")])
        expect(other).not.toEqual(base);
      // One row further on, the second row's noise is the first's.
      expect(experts({ firstRow: 1 }).slice(0, 3)).toEqual(base.slice(3, 6));
    });
    it("a layer without a context draws anew at each call, and not in evaluation", () => {
      const moe = new MoE({ hiddenSize: 5, numExperts: 50, topK: 3 });
      expect(list(moe.forward(x()).experts)).not.toEqual(list(moe.forward(x()).experts));
      moe.eval();
      expect(list(moe.forward(x()).experts)).toEqual(list(moe.forward(x()).experts));
    });
  });
}
