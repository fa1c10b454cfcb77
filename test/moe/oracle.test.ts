/**
 * The MoE layer against the dense loop over all experts (dense.ts): output, gates, importance, load, balance losses and the gradients of input and all
 * parameters, for random shapes and for the edges, on every backend. The loop's own gradients are held to finite differences of the loop.
 */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { denseGradient } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";
import { denseMoE, denseParameters, gateNoise, leaves, matrix, type DenseOutput } from "./dense.js";
import { add, differentiate, times, type Scalar, type Vector } from "./scalar.js";

interface Case {
  rows: number;
  D: number;
  E: number;
  F: number;
  k: number;
  bias: boolean;
  training: boolean;
  /** Spread of W_g and W_noise; 0 is the start, at which all clean logits are equal. */
  gateScale: number;
  noiseScale: number;
  importanceWeight: number;
  loadWeight: number;
  seed: number;
  firstRow: number;
  /** Added to every element of x. */
  offset?: number;
}

const random: fc.Arbitrary<Case> = fc
  .record({
    rows: fc.integer({ min: 1, max: 9 }),
    // On and off the SIMD width of 4.
    D: fc.constantFrom(1, 2, 3, 4, 5, 7, 8, 17),
    E: fc.integer({ min: 1, max: 9 }),
    F: fc.constantFrom(1, 2, 3, 4, 5, 7, 17),
    k: fc.integer({ min: 1, max: 9 }),
    bias: fc.boolean(),
    training: fc.boolean(),
    gateScale: fc.constantFrom(0, 0.3, 1),
    noiseScale: fc.constantFrom(0, 0.3, 1),
    importanceWeight: fc.constantFrom(0, 0.1, 1),
    loadWeight: fc.constantFrom(0, 0.1, 1),
    seed: fc.integer({ min: 0, max: 1e6 }),
    firstRow: fc.constantFrom(0, 1, 3, 1000),
  })
  .map((c) => ({ ...c, k: Math.min(c.k, c.E) }));

/** float32 numbers, so that every backend starts from the same ones. */
function build({ rows, D, E, F, k, bias, gateScale, noiseScale, importanceWeight, loadWeight, seed, offset = 0 }: Case): {
  moe: MoE;
  x: Tensor;
} {
  const draw = new Draw(seed);
  const moe = new MoE({
    hiddenSize: D,
    numExperts: E,
    topK: k,
    expertHiddenSize: F,
    bias,
    importanceWeight,
    loadWeight,
    name: "moe",
  });
  for (const [name, p] of moe.namedParameters()) {
    const scale = name === "gate.weight" ? gateScale : name === "gate.noiseWeight" ? noiseScale : 1;
    p.backend.write(p.buffer, draw.floats(p.size, -scale, scale));
  }
  const x = sg.keep(
    sg.tensor(
      draw.floats(rows * D, -1, 1).map((v) => Math.fround(v + offset)),
      [rows, D],
    ),
  );
  x.requiresGrad = true;
  return { moe, x };
}

/** Fixed irregular weights of the output in the objective Σ w·y + auxLoss. */
const weightOf = (i: number): number => Math.fround(Math.sin(1.3 * i + 0.5));

function oracle(
  { rows, D, E, training, seed, firstRow, k, importanceWeight, loadWeight }: Case,
  moe: MoE,
  x: Tensor,
): { out: DenseOutput; objective: Scalar; flat: Map<string, Vector> } {
  const { flat, model } = denseParameters(moe.namedParameters(), { topK: k, importanceWeight, loadWeight });
  const inputs = leaves(x);
  const noise = training ? gateNoise("moe.gate", rows, E, { seed, step: 2, firstRow }) : undefined;
  const out = denseMoE(model, matrix(inputs, 0, rows, D), noise);
  const objective = add(...out.y.flat().map((v, i) => times(v, weightOf(i))), out.auxLoss);
  return { out, objective, flat: flat.set("x", inputs) };
}

/** In what the layer differs from the loop; undefined where the case stands so near a tie or a bend that float32 may fall on the other side. */
function differences(c: Case, tolerance: number, margin: number): string[] | undefined {
  const { moe, x } = build(c);
  const { out: want, objective, flat } = oracle(c, moe, x);
  if (want.margin < margin) return undefined;
  const lines: string[] = [];
  const compare = (name: string, got: ArrayLike<number>, expected: readonly number[]): void => {
    // Relative to the largest element: float32 rounds sums relative to their terms.
    const scale = Math.max(1, ...expected.map(Math.abs));
    if (got.length !== expected.length) lines.push(`${name}: expected ${expected.length} elements, got ${got.length}`);
    for (const [i, w] of expected.entries())
      if (!(Math.abs(got[i]! - w) <= tolerance * scale)) lines.push(`${name}[${i}]: expected ${w}, got ${got[i]}`);
  };
  sg.scope(() => {
    const out = moe.forward(x, { training: c.training, seed: c.seed, step: 2, firstRow: c.firstRow });
    const weights = sg.tensor(
      Float64Array.from({ length: x.size }, (_, i) => weightOf(i)),
      x.shape,
    );
    const loss = sg.sum(sg.mul(out.output, weights));
    // With losses of weight 0 and no rows the output may not depend on what the loss does.
    sg.backward(sg.add(loss, out.auxLoss));
    const values = (list: readonly Scalar[]): number[] => list.map((s) => s.value);
    compare("output", out.output.dataSync(), values(want.y.flat()));
    compare("experts", out.experts.dataSync(), want.chosen.flat());
    compare("gates", out.gates.dataSync(), values(want.gates.flat()));
    compare("importance", out.importance.dataSync(), values(want.importance));
    compare("load", out.load.dataSync(), values(want.load));
    compare("auxLoss", out.auxLoss.dataSync(), [want.auxLoss.value]);
    const offsets = out.routing.offsets.dataSync();
    compare(
      "rows per expert",
      Array.from({ length: c.E }, (_, e) => offsets[e + 1]! - offsets[e]!),
      Array.from({ length: c.E }, (_, e) => want.chosen.flat().filter((i) => i === e).length),
    );
  });
  differentiate(objective);
  for (const [name, p] of [["x", x] as const, ...moe.namedParameters()])
    compare(
      `gradient of ${name}`,
      denseGradient(p),
      flat.get(name)!.map((s) => s.gradient),
    );
  x.zeroGrad();
  x.dispose();
  moe.dispose();
  return lines;
}

const EDGE: Case = {
  rows: 7,
  D: 3,
  E: 5,
  F: 4,
  k: 2,
  bias: true,
  training: true,
  gateScale: 1,
  noiseScale: 0.5,
  importanceWeight: 0.1,
  loadWeight: 0.1,
  seed: 3,
  firstRow: 0,
};
const EDGES: Record<string, Partial<Case>> = {
  "several rows": {},
  "all logits equal, as at the start: training": { gateScale: 0, noiseScale: 0 },
  "all logits equal, as at the start: evaluation takes the first k": { gateScale: 0, noiseScale: 0, training: false },
  "k = numExperts": { k: 5 },
  "k = numExperts in evaluation": { k: 5, training: false },
  "k = numExperts − 1": { k: 4 },
  "k = 1": { k: 1 },
  "one row": { rows: 1 },
  "one expert": { E: 1, k: 1 },
  "one row, one expert, width one": { rows: 1, E: 1, k: 1, D: 1, F: 1 },
  "fewer rows than experts, most of which get none": { rows: 2, E: 17 },
  "all rows on the same experts": { rows: 20, gateScale: 3, offset: 4, noiseScale: 0.01 },
  "no noise to speak of": { noiseScale: 8, offset: -6 },
  "much noise": { noiseScale: 4, offset: 3 },
  "width 1": { D: 1, F: 1 },
  "widths 3 and 5": { D: 3, F: 5 },
  "widths 5 and 7": { D: 5, F: 7 },
  "widths 7 and 17": { D: 7, F: 17 },
  "widths 17 and 3": { D: 17, F: 3 },
  "more experts than SIMD lanes, off their number": { E: 21, k: 4, rows: 30 },
  "rows far into the stream of noise": { firstRow: 2 ** 33 },
};

for (const { name, make } of BACKENDS) {
  // float64 up to the rounding of sums; float32 keeps 6e-8 of each term.
  const [tolerance, margin] = name === "reference" ? [1e-9, 1e-9] : [1e-5, 1e-4];
  describe(`MoE on the ${name} backend equals the dense loop over all experts`, () => {
    useBackend(make);
    it("for 100 random shapes and settings", () => {
      let compared = 0;
      fc.assert(
        fc.property(random, (c) => {
          const lines = differences(c, tolerance, margin);
          fc.pre(lines !== undefined);
          compared++;
          expect(lines).toEqual([]);
        }),
        { seed: 1701, numRuns: 100 },
      );
      expect(compared).toBe(100);
    });
    it.each(Object.keys(EDGES))("%s", (edge) => {
      const c = { ...EDGE, ...EDGES[edge] };
      expect(differences(c, tolerance, 0)).toEqual([]);
    });
    it("takes any number of leading axes for rows, and gives them back", () => {
      const { moe, x } = build({ ...EDGE, rows: 6 });
      const context = { training: true, seed: 1, step: 0, firstRow: 0 };
      const flat = moe.forward(x, context).output;
      const deep = moe.forward(sg.reshape(x, [2, 1, 3, 3]), context).output;
      expect(deep.shape).toEqual([2, 1, 3, 3]);
      expect(deep.dataSync()).toEqual(flat.dataSync());
      const vector = moe.forward(sg.reshape(sg.slice(x, 0, 0, 1), [3]), context).output;
      expect(vector.shape).toEqual([3]);
      expect(vector.dataSync()).toEqual(flat.dataSync().slice(0, 3));
    });
  });
}

describe("the dense loop itself", () => {
  useBackend(BACKENDS[0].make);
  it("has the gradients of finite differences, for 12 random shapes and settings", () => {
    fc.assert(
      fc.property(random, (given) => {
        const c = {
          ...given,
          rows: Math.min(given.rows, 4),
          D: Math.min(given.D, 3),
          F: Math.min(given.F, 3),
          E: Math.min(given.E, 5),
          k: Math.min(given.k, given.E, 5),
        };
        const { moe, x } = build(c);
        const { out, objective, flat } = oracle(c, moe, x);
        fc.pre(out.margin > 1e-3 && (c.training || c.gateScale > 0));
        differentiate(objective);
        for (const [name, p] of [["x", x] as const, ...moe.namedParameters()]) {
          const data = p.dataSync();
          for (let i = 0; i < p.size; i++) {
            const at = (h: number): number => {
              p.backend.write(
                p.buffer,
                data.map((v, j) => (j === i ? v + h : v)),
              );
              return oracle(c, moe, x).objective.value;
            };
            const slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            expect(Math.abs(flat.get(name)![i]!.gradient - slope), `${name}[${i}]`).toBeLessThan(
              1e-6 * Math.max(1, Math.abs(slope)),
            );
          }
          p.backend.write(p.buffer, data);
        }
      }),
      { seed: 5, numRuns: 12 },
    );
  });
});
