/** Sampled softmax: the loss and its gradients by the formula, its relation to the full softmax, and the distribution of candidates. */

import { describe, expect, it } from "vitest";
import { logUniformCandidates } from "#sparsegate/nn/candidates.js";
import type { Candidates } from "#sparsegate/tensor/ops/losses.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { add, differentiate, dot, exp, log, scalar, sub, times, type Matrix, type Scalar, type Vector } from "../moe/scalar.js";
import { denseGradient } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const [D, V] = [3, 12];

interface Problem {
  x: Tensor;
  weight: Tensor;
  bias: Tensor;
  targets: Int32Array;
}
function problem(seed: number, targets: readonly number[], classes = V): Problem {
  const draw = new Draw(seed);
  const leaf = (shape: readonly number[]): Tensor => {
    const p = sg.keep(
      sg.tensor(
        draw.floats(
          shape.reduce((n, d) => n * d, 1),
          -1,
          1,
        ),
        shape,
      ),
    );
    p.requiresGrad = true;
    return p;
  };
  return { x: leaf([targets.length, D]), weight: leaf([classes, D]), bias: leaf([classes]), targets: Int32Array.from(targets) };
}
const sampled = ({ x, weight, bias, targets }: Problem, candidates: Candidates): Tensor =>
  sg.sampledCrossEntropy(x, weight, bias, sg.tensor(targets, [targets.length], "int32"), candidates);
const exact = ({ x, weight, bias, targets }: Problem): Tensor =>
  sg.linearCrossEntropy(x, weight, bias, sg.tensor(targets, [targets.length], "int32"));
const gradients = (p: Problem, loss: Tensor): number[][] => {
  for (const t of [p.x, p.weight, p.bias]) t.zeroGrad();
  sg.backward(loss);
  return [p.x, p.weight, p.bias].map((t) => [...denseGradient(t)]);
};

/**
 * Mean over counted rows of log(e^{z_t} + Σ_s e^{z_s}) − z_t over samples s other than the target t, where z_c = x·w_c + b_c − log(expected count of c)
 * (Jean et al. 2015, eq. 10; as in TensorFlow's sampled_softmax_loss with remove_accidental_hits).
 */
function formula(
  { x, weight, bias, targets }: Problem,
  { samples, logExpected, logExpectedOf }: Candidates,
): { loss: Scalar; leaves: Vector[] } {
  const [xs, ws, bs] = [x, weight, bias].map((t) => Array.from(t.dataSync(), scalar)) as [Vector, Vector, Vector];
  const rows = (flat: Vector): Matrix => Array.from({ length: flat.length / D }, (_, r) => flat.slice(r * D, r * D + D));
  const counted = targets.filter((t) => t >= 0).length;
  const losses = Array.from(targets).flatMap((t, n) => {
    if (t < 0) return [];
    const z = (c: number, correction: number): Scalar => sub(add(dot(rows(xs)[n]!, rows(ws)[c]!), bs[c]!), scalar(correction));
    const truth = z(t, logExpectedOf(t));
    const others = Array.from(samples).flatMap((c, i) => (c === t ? [] : [z(c, logExpected[i]!)]));
    return [sub(log(add(exp(truth), ...others.map(exp))), truth)];
  });
  return { loss: times(add(...losses), 1 / counted), leaves: [xs, ws, bs] };
}

const CANDIDATES: Candidates = {
  samples: Int32Array.of(1, 3, 4, 9),
  logExpected: Float32Array.of(-0.5, -1, -2, 0.25),
  logExpectedOf: (t) => -t / 8,
};
const TARGETS = [3, 0, -1, 11, 9, 3];

for (const { name, make } of BACKENDS) {
  const digits = name === "reference" ? 12 : 5;
  const close = (got: readonly number[], want: readonly number[]): void =>
    got.forEach((v, i) => expect(v, `element ${i}`).toBeCloseTo(want[i]!, digits));

  describe(`sampledCrossEntropy on the ${name} backend`, () => {
    useBackend(make);

    it("is the formula, in loss and gradients, with accidental hits and a row left out", () => {
      const p = problem(1, TARGETS);
      const loss = sampled(p, CANDIDATES);
      const { loss: want, leaves } = formula(p, CANDIDATES);
      differentiate(want);
      expect(loss.item()).toBeCloseTo(want.value, digits);
      const got = gradients(p, loss);
      for (const [n, flat] of leaves.entries())
        close(
          got[n]!,
          flat.map((s) => s.gradient),
        );
    });

    it("has gradients for the rows of samples and targets alone", () => {
      const p = problem(2, TARGETS);
      sg.backward(sampled(p, CANDIDATES));
      // Class 0 stands in for the target that is left out.
      for (const t of [p.weight, p.bias])
        expect([...new Set(t.grad!.rows!.dataSync())].filter((row) => row >= 0).sort((a, b) => a - b)).toEqual([
          0, 1, 3, 4, 9, 11,
        ]);
    });

    it("leaves accidental hits out: a sample that equals the target changes nothing", () => {
      const p = problem(3, [3, 3, 3, 3, 3, 3]);
      const without = { ...CANDIDATES, samples: Int32Array.of(1, 4, 9), logExpected: Float32Array.of(-0.5, -2, 0.25) };
      expect(sampled(p, CANDIDATES).item()).toBeCloseTo(sampled(p, without).item(), digits);
      const only = { ...CANDIDATES, samples: Int32Array.of(3), logExpected: Float32Array.of(-1) };
      // Nothing but the true class is left: its probability is 1.
      expect(sampled(p, only).item()).toBeCloseTo(0, digits);
    });

    it("is the exact softmax when all classes are sampled: as it stands without corrections, and of corrected biases with them", () => {
      const p = problem(4, TARGETS);
      const all = Int32Array.from({ length: V }, (_, c) => c);
      const corrections = new Draw(9).floats(V);
      for (const shift of [new Float64Array(V), corrections]) {
        const candidates = { samples: all, logExpected: Float32Array.from(shift), logExpectedOf: (t: number) => shift[t]! };
        const corrected = { ...p, bias: sg.keep(sg.tensor(p.bias.dataSync().map((b, c) => b - shift[c]!))) };
        corrected.bias.requiresGrad = true;
        expect(sampled(p, candidates).item()).toBeCloseTo(exact(corrected).item(), digits);
        const [a, b] = [gradients(p, sampled(p, candidates)), gradients(corrected, exact(corrected))];
        a.forEach((values, n) => close(values, b[n]!));
      }
    });
  });
}

describe("the gradient of sampled softmax", () => {
  useBackend(BACKENDS[1].make);
  it("averaged over draws of candidates points where the full softmax's does, the closer the more are sampled", () => {
    const classes = 60;
    // Targets as rare as the candidates' distribution expects.
    const targets = Array.from({ length: 40 }, (_, n) => logUniformCandidates(classes, 1, { seed: 1, step: n }).samples[0]!);
    const p = problem(5, targets, classes);
    const full = gradients(p, exact(p));
    const cosines = [5, 20].map((samples) => {
      const mean = full.map((values) => values.map(() => 0));
      for (let step = 0; step < 400; step++) {
        const one = sg.scope(() => gradients(p, sampled(p, logUniformCandidates(classes, samples, { seed: 2, step }))));
        for (const [n, values] of one.entries()) for (const [i, v] of values.entries()) mean[n]![i]! += v / 400;
      }
      return mean.map((values, n) => {
        const along = (a: readonly number[], b: readonly number[]): number => a.reduce((s, v, i) => s + v * b[i]!, 0);
        return along(values, full[n]!) / Math.sqrt(along(values, values) * along(full[n]!, full[n]!));
      });
    });
    for (const n of [0, 1, 2]) {
      expect(cosines[0]![n]).toBeGreaterThan(0.95);
      expect(cosines[1]![n]).toBeGreaterThan(0.99);
      expect(cosines[1]![n]).toBeGreaterThan(cosines[0]![n]!);
    }
  });
});

describe("logUniformCandidates", () => {
  useBackend(BACKENDS[1].make);
  /** P(c) = log((c + 2)/(c + 1)) / log(V + 1). */
  const probability = (c: number, classes: number): number => Math.log((c + 2) / (c + 1)) / Math.log(classes + 1);

  it("draws class c with probability log((c + 2)/(c + 1))/log(V + 1) (χ² of 50,000 draws over 30 classes)", () => {
    const [classes, draws] = [30, 50_000];
    const counts = new Array<number>(classes).fill(0);
    for (let step = 0; step < draws; step++) counts[logUniformCandidates(classes, 1, { seed: 3, step }).samples[0]!]!++;
    const chi2 = counts.reduce(
      (s, n, c) => s + (n - draws * probability(c, classes)) ** 2 / (draws * probability(c, classes)),
      0,
    );
    // 29 degrees of freedom: exceeded once in 10,000 times at 66.2.
    expect(chi2).toBeLessThan(66.2);
  });

  it("gives the expected count of each class: near the share of samples that hold it, and summing to the number of samples", () => {
    const [classes, samples, draws] = [50, 10, 4000];
    const held = new Array<number>(classes).fill(0);
    const expected = new Array<number>(classes).fill(0);
    for (let step = 0; step < draws; step++) {
      const found = logUniformCandidates(classes, samples, { seed: 4, step });
      for (const c of found.samples) held[c]! += 1 / draws;
      for (let c = 0; c < classes; c++) expected[c]! += Math.exp(found.logExpectedOf(c)) / draws;
      found.samples.forEach((c, i) => expect(found.logExpected[i]).toBeCloseTo(found.logExpectedOf(c), 5));
    }
    // 1 − (1 − P)^T with T the draws that it took, which is no constant: right to a few percent.
    for (let c = 0; c < classes; c++) expect(Math.abs(expected[c]! - held[c]!)).toBeLessThan(0.03 + 0.1 * held[c]!);
    expect(expected.reduce((s, v) => s + v, 0)).toBeCloseTo(samples, 0);
  });

  it("gives distinct classes within the vocabulary, ascending, as many as asked for, up to all", () => {
    for (const [classes, samples] of [
      [1, 1],
      [2, 2],
      [40, 40],
      [40, 7],
      [10_000, 2048],
    ] as const) {
      const { samples: got } = logUniformCandidates(classes, samples, { seed: 0, step: 0 });
      expect(got).toHaveLength(samples);
      expect(new Set(got).size).toBe(samples);
      expect(got.every((c, i) => c >= 0 && c < classes && (i === 0 || c > got[i - 1]!))).toBe(true);
    }
  });

  it("depends on seed and step alone", () => {
    const draw = (seed: number, step: number): number[] => [...logUniformCandidates(1000, 20, { seed, step }).samples];
    expect(draw(1, 2)).toEqual(draw(1, 2));
    expect(draw(1, 3)).not.toEqual(draw(1, 2));
    expect(draw(2, 2)).not.toEqual(draw(1, 2));
  });

  it("refuses more samples than classes, and none", () => {
    expect(() => logUniformCandidates(10, 11, { seed: 0, step: 0 })).toThrow(
      "logUniformCandidates: expected samples to be an integer from 1 to 10, got 11. The vocabulary has 10 entries.",
    );
    expect(() => logUniformCandidates(10, 0, { seed: 0, step: 0 })).toThrow(/got 0/);
  });
});

describe("losses over large vocabularies", () => {
  useBackend(BACKENDS[1].make);
  it("never hold rows × classes at once: 2,048 rows of 20,000 classes (164 MB of logits) take 32 MiB and the gradients, exact or sampled", () => {
    const [rows, classes, width] = [2048, 20_000, 4];
    const backend = sg.defaultBackend();
    const made = (shape: readonly number[], seed: number): Tensor => {
      const p = sg.keep(sg.randomNormal(shape, { seed }));
      p.requiresGrad = true;
      return p;
    };
    const [x, weight, bias] = [made([rows, width], 1), made([classes, width], 2), made([classes], 3)];
    const targets = sg.keep(sg.tensor(new Draw(1).ints(rows, 0, classes), [rows], "int32"));
    /** MiB in use at once on top of what was before. */
    const extra = (work: () => unknown): number => {
      for (const p of [x, weight, bias]) p.zeroGrad();
      backend.resetPeak();
      const before = backend.memory().used;
      sg.scope(() => void work());
      return (backend.memory().peak - before) / 2 ** 20;
    };
    const whole = (rows * classes * 4) / 2 ** 20;
    expect(whole).toBeGreaterThan(150);
    // The chunk of logits, twice the gradients of x, weight and bias (0.5 MiB), and small things.
    expect(extra(() => sg.backward(sg.linearCrossEntropy(x, weight, bias, targets)))).toBeLessThan(32 + 2);
    expect(extra(() => sg.noGrad(() => sg.linearCrossEntropy(x, weight, bias, targets)))).toBeLessThan(32 + 1);
    const candidates = logUniformCandidates(classes, 15_000, { seed: 0, step: 0 });
    expect(extra(() => sg.backward(sg.sampledCrossEntropy(x, weight, bias, targets, candidates)))).toBeLessThan(32 + 4);
    for (const p of [x, weight, bias]) p.zeroGrad();
  });

  it("give the same in chunks as in one: a loss over 300 rows of 40,000 classes equals the mean of losses of single rows", () => {
    // 8 Mi logits hold 209 rows of 40,000: two chunks.
    const [rows, classes] = [300, 40_000];
    const [x, weight] = [sg.randomNormal([rows, 2], { seed: 1 }), sg.randomNormal([classes, 2], { seed: 2 })];
    const targets = new Draw(1).ints(rows, -1, classes);
    x.requiresGrad = true;
    const loss = sg.linearCrossEntropy(x, weight, undefined, sg.tensor(targets, [rows], "int32"));
    sg.backward(loss);
    const whole = denseGradient(x);
    const counted = targets.filter((t) => t >= 0).length;
    let sum = 0;
    for (const r of [0, 208, 209, 299]) {
      const row = sg.keep(sg.tensor(x.dataSync().slice(2 * r, 2 * r + 2), [1, 2]));
      row.requiresGrad = true;
      sg.backward(sg.linearCrossEntropy(row, weight, undefined, sg.tensor([targets[r]!], [1], "int32")));
      denseGradient(row).forEach((g, d) => expect(whole[2 * r + d]! * counted).toBeCloseTo(g, 4));
    }
    for (let r = 0; r < rows; r++)
      sum += sg.scope(() =>
        sg
          .linearCrossEntropy(
            sg.tensor(x.dataSync().slice(2 * r, 2 * r + 2), [1, 2]),
            weight,
            undefined,
            sg.tensor([targets[r]!], [1], "int32"),
          )
          .item(),
      );
    expect(loss.item()).toBeCloseTo(sum / counted, 4);
  });
});
