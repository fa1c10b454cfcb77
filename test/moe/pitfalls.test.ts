/**
 * What went wrong in other implementations, one by one: each entry that applies to a flat noisy top-k layer is a test here, with its number in the collected list.
 * Those about capacity (4), dropped tokens in the layer (8), Switch and GShard (7, 9 in part) and parallelism (12 to 14) belong to gates and communicators.
 */

import { describe, expect, it } from "vitest";
import { LanguageModel } from "#sparsegate/models/language-model.js";
import { MoE, type MoEOutput } from "#sparsegate/moe/layer.js";
import { balanceStatistics, coefficientOfVariation } from "#sparsegate/moe/statistics.js";
import { Module } from "#sparsegate/nn/module.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";
import { trainStep } from "#sparsegate/train/step.js";
import { Draw } from "../backend/helpers.js";
import { denseGradient } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const TRAINING = { training: true, seed: 3, step: 1, firstRow: 0 };
const EVALUATION = { ...TRAINING, training: false };
const list = (t: Tensor): number[] => Array.from(t.dataSync());
const total = (values: readonly number[]): number => values.reduce((s, v) => s + v, 0);
function write(p: Tensor, data: ArrayLike<number>): void {
  p.backend.write(p.buffer, data);
}
/** Gate weights (D, E) by formula. */
function setGate(moe: MoE, signal: (d: number, e: number) => number, noise: (d: number, e: number) => number = () => 0): void {
  for (const [name, f] of [["gate.weight", signal] as const, ["gate.noiseWeight", noise] as const]) {
    const p = moe.namedParameters().get(name)!;
    const E = p.shape[1]!;
    write(
      p,
      Float64Array.from({ length: p.size }, (_, i) => f(Math.floor(i / E), i % E)),
    );
  }
}
/** Rows whose last element is 1, so that the last row of a gate's weights is a bias. */
const biased = (rows: number, D: number, seed: number): Tensor =>
  sg.tensor(
    new Draw(seed).floats(rows * D, -1, 1).map((v, i) => (i % D === D - 1 ? 1 : v)),
    [rows, D],
  );
const gateGradient = (moe: MoE): number[] => [...denseGradient(moe.namedParameters().get("gate.weight")!)];
/** Passes rows on, and remembers them. */
class Witness extends Module {
  readonly seen: number[][] = [];
  forward(x: Tensor): Tensor {
    for (let r = 0; r < x.shape[0]!; r++) this.seen.push(list(sg.slice(x, 0, r, r + 1)));
    return sg.affine(x, 1);
  }
}

for (const { name, make } of BACKENDS) {
  describe(`pitfalls on the ${name} backend`, () => {
    useBackend(make);

    it("(1) the load estimate compares logits with logits: at 256 experts and k = 4 a row's probabilities sum to 4 and not to about 126", () => {
      const moe = new MoE({ hiddenSize: 8, numExperts: 256, topK: 4, expertHiddenSize: 1 });
      setGate(moe, (d, e) => Math.sin(7 * d + 3 * e));
      const rows = 500;
      const { load } = moe.forward(biased(rows, 8, 1), TRAINING);
      expect(total(list(load)) / rows).toBeGreaterThan(3.8);
      expect(total(list(load)) / rows).toBeLessThan(4.2);
    });
    it("(1) gates and load do not change when all logits grow by the same number, as they would if thresholds were taken after a softmax", () => {
      const outs = [0, 5].map((shift) => {
        const moe = new MoE({ hiddenSize: 4, numExperts: 6, topK: 2 });
        setGate(moe, (d, e) => (d === 3 ? shift : Math.sin(7 * d + 3 * e)));
        return moe.forward(biased(20, 4, 2), TRAINING);
      }) as [MoEOutput, MoEOutput];
      expect(list(outs[1].experts)).toEqual(list(outs[0].experts));
      for (const key of ["gates", "load"] as const)
        list(outs[1][key]).forEach((v, i) => expect(v).toBeCloseTo(list(outs[0][key])[i]!, 5));
    });

    it("(2) noise that underflows to zero gives no NaN, at ties neither: the load is the counted one and has no gradient", () => {
      const moe = new MoE({ hiddenSize: 4, numExperts: 6, topK: 2 });
      // Two experts are better than the rest by the same number, the rest are tied; softplus(−200) is 0 in float32, 1e-87 in float64.
      setGate(
        moe,
        (d, e) => (d === 3 ? (e === 2 || e === 5 ? 1 : 0) : 0),
        (d) => (d === 3 ? -200 : 0),
      );
      const out = moe.forward(biased(10, 4, 3), TRAINING);
      expect(list(out.load)).toEqual([0, 0, 10, 0, 0, 10]);
      sg.backward(sg.add(sg.sum(out.output), out.auxLoss));
      for (const p of moe.parameters()) expect(denseGradient(p).every(Number.isFinite), p.name).toBe(true);
    });
    it("(2) evaluation has no noise: the load is counted, and only the importance has a loss", () => {
      const moe = new MoE({ hiddenSize: 4, numExperts: 6, topK: 2, importanceWeight: 0, loadWeight: 1 });
      setGate(moe, (d, e) => Math.sin(7 * d + 3 * e));
      const out = moe.forward(biased(50, 4, 4), EVALUATION);
      const counts = new Array<number>(6).fill(0);
      for (const e of list(out.experts)) counts[e]!++;
      expect(list(out.load)).toEqual(counts);
      expect(out.auxLoss.item()).toBe(0);
    });

    it("(3) with k = 1 the gate learns from the balance losses and not from the task, as documented; with k = 2 from both", () => {
      for (const [topK, fromTask] of [
        [1, false],
        [2, true],
      ] as const) {
        const gradients = [true, false].map((task) => {
          const moe = new MoE({ hiddenSize: 4, numExperts: 6, topK });
          setGate(moe, (d, e) => Math.sin(7 * d + 3 * e));
          const out = moe.forward(biased(20, 4, 5), TRAINING);
          sg.backward(task ? sg.sum(out.output) : out.auxLoss);
          return gateGradient(moe).some((g) => g !== 0);
        });
        expect(gradients).toEqual([fromTask, true]);
      }
    });

    it("(5) any number of rows works, fewer than experts and none among them: each row comes back once, from k experts", () => {
      const moe = new MoE({ hiddenSize: 3, numExperts: 16, topK: 4, experts: () => new Witness() });
      for (const rows of [0, 1, 2, 3, 5, 15, 16, 17, 64]) {
        const x = biased(rows, 3, 6 + rows);
        const out = moe.forward(x, TRAINING);
        // Experts pass rows on and the weights of a row sum to 1.
        list(out.output).forEach((v, i) => expect(v).toBeCloseTo(list(x)[i]!, 5));
        expect(list(out.routing.offsets).at(-1)).toBe(4 * rows);
      }
    });

    it("(6) each layer's own loss counts: imbalances that cancel when layers are lumped together do not cancel in their sum", () => {
      const [a, b] = ["a", "b"].map((layer) => new MoE({ hiddenSize: 4, numExperts: 2, topK: 1, name: layer })) as [MoE, MoE];
      // All rows to expert 0 in one layer, to expert 1 in the other.
      setGate(a, (d, e) => (d === 3 && e === 0 ? 3 : 0));
      setGate(b, (d, e) => (d === 3 && e === 1 ? 3 : 0));
      const x = biased(40, 4, 7);
      const [first, second] = [a.forward(x, TRAINING), b.forward(x, TRAINING)];
      const lumped = list(first.importance).map((v, i) => v + list(second.importance)[i]!);
      const loss = sg.add(first.auxLoss, second.auxLoss);
      // CV² of (40, 0) is 1: at most 0.1 for each of the two losses of each layer. Lumped together the layers look balanced.
      expect(coefficientOfVariation(lumped) ** 2).toBeLessThan(0.05);
      expect(first.auxLoss.item()).toBeGreaterThan(0.15);
      expect(second.auxLoss.item()).toBeGreaterThan(0.15);
      sg.backward(loss);
      // The loss is no constant: down its slope lies less for the crowded expert.
      expect(gateGradient(a)[2 * 3]).toBeGreaterThan(0);
      expect(gateGradient(b)[2 * 3 + 1]).toBeGreaterThan(0);
    });
    it("(6) the softmax is taken once: with two experts kept, the weights have the ratio of e to the difference of the logits", () => {
      const moe = new MoE({ hiddenSize: 4, numExperts: 3, topK: 2 });
      setGate(moe, (d, e) => (d === 3 ? [2, 0.5, -4][e]! : 0));
      const [g0, g1] = list(moe.forward(biased(1, 4, 8), EVALUATION).gates) as [number, number];
      expect(g0 / g1).toBeCloseTo(Math.exp(1.5), 4);
      expect(g0 + g1).toBeCloseTo(1, 6);
    });

    it("(7) noise stays in the gate: experts get the rows of x bit for bit, and x is as it was", () => {
      const witnesses = Array.from({ length: 5 }, () => new Witness());
      const moe = new MoE({ hiddenSize: 3, numExperts: 5, topK: 2, experts: witnesses });
      const x = biased(12, 3, 9);
      const before = list(x);
      moe.forward(x, TRAINING);
      expect(list(x)).toEqual(before);
      const rows = new Set(Array.from({ length: 12 }, (_, r) => before.slice(3 * r, 3 * r + 3).join()));
      const seen = witnesses.flatMap((w) => w.seen);
      expect(seen).toHaveLength(24);
      expect(seen.every((row) => rows.has(row.join()))).toBe(true);
    });

    it("(8) a dropped assignment adds nothing, takes no gradient and is not counted as routed to expert 0", () => {
      const experts = sg.tensor([1, -1, -1, -1, 2, 1], [3, 2], "int32");
      const routing = sg.routeByExpert({ experts }, 3);
      expect(list(routing.offsets)).toEqual([0, 0, 2, 3]);
      const x = sg.keep(sg.tensor([1, 2, 3, 4, 5, 6], [3, 2]));
      x.requiresGrad = true;
      const y = sg.combine(sg.dispatch(x, routing), sg.tensor([1, 7, 7, 7, 0.5, 0.25], [3, 2]), routing);
      expect(list(y)).toEqual([1, 2, 0, 0, 3.75, 4.5]);
      expect(list(sg.bincount(sg.full([3, 2], 1), experts, 3))).toEqual([0, 2, 1]);
      sg.backward(sg.sum(y));
      expect([...denseGradient(x)]).toEqual([1, 1, 0, 0, 0.75, 0.75]);
    });

    it("(9) column 0 is the best expert: logits of the chosen fall from left to right, and so do gates", () => {
      const moe = new MoE({ hiddenSize: 4, numExperts: 9, topK: 4 });
      setGate(moe, (d, e) => Math.sin(7 * d + 3 * e));
      const x = biased(30, 4, 10);
      const logits = list(sg.matmul(x, moe.namedParameters().get("gate.weight")!));
      const out = moe.forward(x, EVALUATION);
      for (let n = 0; n < 30; n++) {
        const chosen = list(out.experts).slice(4 * n, 4 * n + 4);
        const byLogit = Array.from({ length: 9 }, (_, e) => e).sort((a, b) => logits[9 * n + b]! - logits[9 * n + a]!);
        expect(chosen).toEqual(byLogit.slice(0, 4));
        const gates = list(out.gates).slice(4 * n, 4 * n + 4);
        expect([...gates].sort((a, b) => b - a)).toEqual(gates);
      }
    });

    it("(10) evaluation is deterministic: seed, step and position change nothing, in the layer and in the model with dropout", () => {
      const moe = new MoE({ hiddenSize: 4, numExperts: 9, topK: 4 });
      const model = smallModel();
      const inputs = sg.tensor(new Draw(2).ints(12, 0, 9), [3, 4], "int32");
      for (const run of [
        (c: typeof EVALUATION) => moe.forward(biased(30, 4, 11), c).output,
        (c: typeof EVALUATION) => model.hidden(inputs, c).output,
      ]) {
        const base = list(run(EVALUATION));
        expect(list(run({ ...EVALUATION, seed: 99, step: 77, firstRow: 55 }))).toEqual(base);
        expect(list(run({ ...EVALUATION, training: true }))).not.toEqual(base);
      }
    });

    it("(11) CV² is that of the population: 0.25 for loads 1 and 3, where a sample variance would give 0.5", () => {
      expect(sg.cvSquared(sg.tensor([1, 3])).item()).toBeCloseTo(0.25, 6);
      expect(coefficientOfVariation([1, 3])).toBeCloseTo(0.5, 12);
      // All rows on 1 of E experts: CV² = E − 1.
      expect(sg.cvSquared(sg.tensor([0, 0, 12, 0])).item()).toBeCloseTo(3, 6);
      const { cvImportance, cvLoad, ...rest } = balanceStatistics([0, 0, 12, 0], [0, 0, 12, 0]);
      for (const cv of [cvImportance, cvLoad]) expect(cv).toBeCloseTo(Math.sqrt(3), 12);
      expect(rest).toEqual({ maxOverMeanLoad: 4, unused: 3 });
    });

    it("(15) a second backward pass over a layer is a clear error, and with retainGraph adds the same gradient again", () => {
      const moe = new MoE({ hiddenSize: 4, numExperts: 5, topK: 2, bias: true });
      setGate(moe, (d, e) => Math.sin(7 * d + 3 * e));
      const out = moe.forward(biased(20, 4, 12), TRAINING);
      const loss = sg.add(sg.sum(sg.square(out.output)), out.auxLoss);
      sg.backward(loss, { retainGraph: true });
      const once = moe.parameters().map((p) => [...denseGradient(p)]);
      sg.backward(loss);
      // Where a product is added to what is there, some libraries begin their sums with that: equal to rounding, then.
      for (const [n, p] of moe.parameters().entries()) {
        const largest = Math.max(...once[n]!.map(Math.abs));
        for (const [i, g] of [...denseGradient(p)].entries()) expect(Math.abs(g - 2 * once[n]![i]!)).toBeLessThanOrEqual(1e-6 * largest);
      }
      expect(() => sg.backward(loss)).toThrow(/was used by an earlier backward and freed\. Pass \{ retainGraph: true \}/);
    });

    it("(16) NaN in the gate stops the step with the parameter's or the layer's name, and no parameter moves", () => {
      const batch = {
        timeSteps: 3,
        batchSize: 4,
        inputs: new Draw(2).ints(12, 0, 9),
        targets: new Draw(3).ints(12, 0, 9),
        resets: new Int32Array(12),
        tokens: 12,
        firstRow: 0,
      };
      const options = { seed: 0, learningRate: 0.1, maxGradNorm: 1, sampledSoftmax: 0 };
      const CASES: [path: string, value: number, message: RegExp][] = [
        ["moe.gate.weight", NaN, /expected finite values in parameter moe\.gate\.weight, got NaN/],
        ["moe.experts.outputWeight", Infinity, /expected finite values in parameter moe\.experts\.outputWeight, got Infinity/],
        // Finite weights whose products overflow float32, or float64.
        [
          "moe.experts.inputWeight",
          name === "reference" ? 1e308 : 1e38,
          /expected a finite output of moe\.experts, got/,
        ],
        ["softmaxWeight", name === "reference" ? 1e308 : 3e38, /expected a finite output of softmax, got/],
      ];
      for (const [path, value, message] of CASES) {
        const model = smallModel();
        const optimizer = new Adam(model.namedParameters());
        const training = { model, optimizer, states: undefined };
        trainStep(training, batch, options);
        const broken = model.namedParameters().get(path)!;
        broken.backend.fill(broken.buffer, value, broken.size);
        const before = new Map([...model.namedParameters()].map(([key, p]) => [key, list(p)]));
        expect(() => trainStep(training, batch, options), path).toThrow(message);
        expect(() => trainStep(training, batch, options), path).toThrow(expect.objectContaining({ name: "NonFiniteError" }));
        for (const [key, p] of model.namedParameters()) expect(list(p), key).toEqual(before.get(key));
        expect(model.parameters().every((p) => p.grad === undefined)).toBe(true);
        expect(optimizer.steps).toBe(1);
      }
    });
  });
}

describe("pitfalls of text", () => {
  it("(17) words such as constructor and __proto__ are words of a vocabulary like any other", () => {
    const vocabulary = WordVocabulary.fromCounts(["constructor __proto__ constructor toString"]);
    for (const word of ["constructor", "__proto__", "toString"]) expect(vocabulary.decode(vocabulary.encode(word))).toBe(word);
    expect(vocabulary.encode("valueOf")).toEqual([vocabulary.unkId]);
  });
});

function smallModel(): LanguageModel {
  const middle = { kind: "moe", numExperts: 4, topK: 2, expertHiddenSize: 6, importanceWeight: 0.1, loadWeight: 0.1 } as const;
  return new LanguageModel({
    vocabSize: 9,
    hiddenSize: 4,
    lstmSize: 4,
    middle,
    dropout: 0.3,
    sigmoid: false,
    residual: true,
    seed: 1,
  });
}
