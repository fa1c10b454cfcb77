/** Experts and their variants: activations, hidden layers, biases, dropout, recomputation, and modules of one's own under every gate. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { ExpertModule } from "#sparsegate/moe/experts.js";
import { FeedForwardExperts } from "#sparsegate/moe/feed-forward.js";
import type { GateConfig } from "#sparsegate/moe/gates/index.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE } from "#sparsegate/moe/layer.js";
import { Module, parameter } from "#sparsegate/nn/module.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../../backend/helpers.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { flat } from "./claims.js";
import { build, contextOf, hierarchies, holds, layers, useBackends, type Case } from "./harness.js";
import { EVALUATION, list, TRAINING } from "./helpers.js";
import { fewest, GATE_TYPES, plain, RANDOM } from "./specs.js";

const ACTIVATIONS = ["relu", "gelu", "swiglu"] as const;

describe("experts in a layer equal the dense loop", () => {
  const { differences } = useBackends();
  /** Variants at random, in training three times out of four, where dropout is. */
  const varied = (base: fc.Arbitrary<Case>, activation: (typeof ACTIVATIONS)[number]): fc.Arbitrary<Case> =>
    fc
      .tuple(
        base,
        fc.record({
          F: fc.constantFrom([3], [4, 5], [2, 3, 5]),
          bias: fc.boolean(),
          dropout: fc.constantFrom(0, 0.3),
          recompute: fc.boolean(),
          shared: fc.constantFrom(0, 1, 2),
          training: fc.constantFrom(true, true, true, false),
        }),
      )
      .map(([c, variant]) => ({ ...c, ...variant, activation }));
  for (const activation of ACTIVATIONS) {
    it(`${activation}: one to three hidden layers, biases, dropout, recomputation and shared experts, 25 random layers`, () => {
      holds(varied(layers(RANDOM["top-k"]), activation), differences, 25, 11);
    });
    it(`${activation} on two levels, 10 random layers`, () => {
      holds(varied(hierarchies(RANDOM["noisy-top-k"], RANDOM["top-k"]), activation), differences, 10, 11);
    });
  }
  it.each(GATE_TYPES)("with dropout, two hidden layers and capacity under the %s gate, 5 random layers", (type) => {
    holds(
      layers(RANDOM[type], fewest(type)).map((c) => ({ ...c, F: [3, 4], activation: "gelu", dropout: 0.4, training: true })),
      differences,
      5,
      12,
    );
  });
});

/** One feed-forward expert as a module of its own, with parameters that are parts of those of built-in experts. */
class OwnExpert extends Module implements ExpertModule {
  readonly inputWeight: Tensor;
  readonly outputWeight: Tensor;
  constructor(builtIn: FeedForwardExperts, e: number) {
    super();
    const part = (path: "inputWeight" | "outputWeight"): Tensor => {
      const all = builtIn[path];
      const [, rows, cols] = all.shape as [number, number, number];
      const p = parameter(`expert.${e}.${path}`, [rows, cols], { kind: "zeros" });
      p.backend.write(p.buffer, list(all).slice(e * rows * cols, (e + 1) * rows * cols));
      return p;
    };
    this.inputWeight = part("inputWeight");
    this.outputWeight = part("outputWeight");
  }
  forward(x: Tensor): Tensor {
    return sg.matmul(sg.relu(sg.matmul(x, this.inputWeight)), this.outputWeight);
  }
}

function gradients(moe: MoE, x: Tensor, context: typeof TRAINING): Map<string, number[]> {
  x.zeroGrad();
  for (const p of moe.parameters()) p.zeroGrad();
  const out = moe.forward(x, context);
  const weights = sg.tensor(
    Float64Array.from({ length: x.size }, (_, i) => Math.sin(i + 1)),
    x.shape,
  );
  sg.backward(sg.add(sg.sum(sg.mul(out.output, weights)), out.auxLoss));
  const found = new Map([["output", list(out.output)]]);
  for (const [path, p] of [["x", x] as const, ...moe.namedParameters()]) found.set(path, [...denseGradient(p)]);
  return found;
}

for (const { name, make } of BACKENDS) {
  describe(`experts on the ${name} backend`, () => {
    useBackend(make);
    const D = 5;
    const batch = (rows: number, seed = 2): Tensor => {
      const x = sg.keep(sg.tensor(new Draw(seed).floats(rows * D, -1, 1), [rows, D]));
      x.requiresGrad = true;
      return x;
    };
    /** A layer with everything that a call of experts can have. */
    const full = (change: Partial<Omit<Case, "E">> = {}): { moe: MoE; x: Tensor } =>
      build(
        flat(
          "top-k",
          { rows: 20, D, F: [6, 7], activation: "swiglu", dropout: 0.4, shared: 1, ...change },
          { capacityFactor: 0.9 },
        ),
      );

    it("recomputed have the same output and gradients bit for bit, with dropout, dropped rows and shared experts", () => {
      for (const activation of ACTIVATIONS) {
        const [kept, again] = [false, true].map((recompute) => {
          const { moe, x } = full({ recompute, activation });
          return gradients(moe, x, TRAINING);
        }) as [Map<string, number[]>, Map<string, number[]>];
        for (const [path, values] of kept) expect(again.get(path), `${activation}: ${path}`).toEqual(values);
      }
    });
    it("recomputed twice over, for two calls before one backward pass, add up their gradients", () => {
      const sums = [false, true].map((recompute) => {
        const { moe, x } = full({ recompute });
        const outs = [0, 1].map((step) => moe.forward(x, { ...TRAINING, step }));
        sg.backward(sg.add(sg.sum(sg.square(outs[0]!.output)), sg.sum(sg.square(outs[1]!.output))));
        return [...moe.parameters(), x].map((p) => [...denseGradient(p)]);
      });
      sums[1]!.forEach((values, i) => {
        const scale = sums[0]![i]!.reduce((most, v) => Math.max(most, Math.abs(v)), 0.01);
        values.forEach((v, j) => expect(Math.abs(v - sums[0]![i]![j]!)).toBeLessThan(2e-6 * scale));
      });
    });

    it("drop elements by row and expert alone: other rows of the batch, and the batch in parts, change nothing", () => {
      const { moe, x } = build(flat("top-k", { rows: 20, D, dropout: 0.5 }));
      const whole = list(moe.forward(x, TRAINING).output);
      // Other contents in every row but 7: the row stands elsewhere among its experts' rows.
      const data = new Draw(77).floats(20 * D, -1, 1);
      data.set(list(x).slice(7 * D, 8 * D), 7 * D);
      const changed = list(moe.forward(sg.tensor(data, [20, D]), TRAINING).output);
      for (let d = 0; d < D; d++) expect(changed[7 * D + d]).toBeCloseTo(whole[7 * D + d]!, 5);
      expect(changed[0]).not.toBeCloseTo(whole[0]!, 3);
      const parts = [
        [0, 6],
        [6, 20],
      ].flatMap(([from, to]) => list(moe.forward(sg.slice(x, 0, from!, to!), { ...TRAINING, firstRow: from! }).output));
      parts.forEach((v, i) => expect(v).toBeCloseTo(whole[i]!, 5));
      // A row moved to another place is another row.
      const moved = list(moe.forward(sg.slice(x, 0, 6, 20), TRAINING).output);
      expect(moved.some((v, i) => Math.abs(v - whole[6 * D + i]!) > 1e-3)).toBe(true);
    });
    it("drop as many as they should: 40% of hidden activations, others scaled by 1/0.6", () => {
      // One expert of many hidden units, all 1 before dropout, summed by the output: 0 or 1/0.6 each, over 1000.
      const F = 1000;
      const experts = new FeedForwardExperts({ numExperts: 1, hiddenSize: 1, expertHiddenSize: F, expertDropout: 0.4 });
      for (const p of experts.parameters()) p.backend.fill(p.buffer, 1, p.size);
      const rows = 20;
      const ids = sg.tensor(
        Int32Array.from({ length: rows }, (_, i) => i),
        [rows],
        "int32",
      );
      const y = list(experts.forward(sg.full([rows, 1], 1), sg.tensor([0, rows], [2], "int32"), TRAINING, () => ids));
      // Mean 1000; four standard deviations of a binomial count over 0.6: 4·√(1000·0.4·0.6)/0.6 = 103.
      for (const v of y) expect(Math.abs(v - F)).toBeLessThan(103);
      expect(new Set(y).size).toBeGreaterThan(10);
    });
    it("drop nothing in evaluation, whatever the seed", () => {
      const [dropping, still] = [0.5, 0].map((dropout) => build(flat("top-k", { rows: 20, D, dropout }))) as [
        { moe: MoE; x: Tensor },
        { moe: MoE; x: Tensor },
      ];
      const want = list(still.moe.forward(still.x, EVALUATION).output);
      for (const seed of [1, 2]) expect(list(dropping.moe.forward(dropping.x, { ...EVALUATION, seed }).output)).toEqual(want);
      expect(list(dropping.moe.forward(dropping.x, TRAINING).output)).not.toEqual(want);
      const again = list(dropping.moe.forward(dropping.x, TRAINING).output);
      expect(list(dropping.moe.forward(dropping.x, TRAINING).output)).toEqual(again);
      for (const change of [{ seed: 9 }, { step: 9 }])
        expect(list(dropping.moe.forward(dropping.x, { ...TRAINING, ...change }).output)).not.toEqual(again);
    });

    const options = { hiddenSize: D, expertHiddenSize: 6 };
    const expectSame = (own: Map<string, number[]>, builtIn: Map<string, number[]>, E: number): void => {
      const expectClose = (got: readonly number[], want: readonly number[], what: string): void => {
        const scale = want.reduce((most, v) => Math.max(most, Math.abs(v)), 0.01);
        got.forEach((v, i) => expect(Math.abs(v - want[i]!), what).toBeLessThan(2e-6 * scale));
        expect(got.length, what).toBe(want.length);
      };
      for (const [path, values] of builtIn) {
        if (!path.startsWith("experts.")) expectClose(own.get(path)!, values, path);
        else
          expectClose(
            Array.from({ length: E }, (_, e) => own.get(`experts.modules.${e}.${path.slice("experts.".length)}`)!).flat(),
            values,
            path,
          );
      }
    };
    it.each(GATE_TYPES)(
      "of one's own give what built-in ones give, gradients too, flat and on two levels, with rows dropped: %s",
      (type) => {
        const config = (E: number): { gate: GateConfig; topK: number } => {
          const { topK, ...gate } = plain(type, 2, E);
          return {
            gate: {
              ...gate,
              ...(type === "strictly-balanced" || type === "expert-choice" ? {} : { capacityFactor: 0.6 }),
            } as GateConfig,
            topK,
          };
        };
        const draw = new Draw(6);
        const weights = (moe: MoE): void => {
          for (const [path, p] of moe.namedParameters())
            p.backend.write(
              p.buffer,
              path.endsWith("logThreshold") ? draw.floats(p.size, -1.6, -1.2) : draw.floats(p.size, -1, 1),
            );
        };
        const copyGate = (from: MoE, to: MoE): void => {
          const state = from.namedState();
          for (const [path, p] of to.namedState()) if (path.startsWith("gate")) p.backend.write(p.buffer, list(state.get(path)!));
        };
        for (const context of [TRAINING, EVALUATION]) {
          const { gate, topK } = config(4);
          const builtIn = new MoE({ ...options, numExperts: 4, gate, topK });
          weights(builtIn);
          const own = new MoE({
            ...options,
            expertHiddenSize: undefined,
            numExperts: 4,
            gate,
            topK,
            experts: (e) => new OwnExpert(builtIn.experts as FeedForwardExperts, e),
          });
          copyGate(builtIn, own);
          expectSame(gradients(own, batch(15), context), gradients(builtIn, batch(15), context), 4);

          const [first, second] = [config(3), config(2)];
          const levels = {
            ...options,
            numExperts: [3, 2] as const,
            gate: first.gate,
            secondaryGate: second.gate,
            topK: [first.topK, second.topK] as const,
          };
          const deep = new HierarchicalMoE(levels);
          weights(deep);
          const ownDeep = new HierarchicalMoE({
            ...levels,
            expertHiddenSize: undefined,
            experts: (e) => new OwnExpert(deep.experts as FeedForwardExperts, e),
          });
          copyGate(deep, ownDeep);
          expectSame(gradients(ownDeep, batch(15), context), gradients(deep, batch(15), context), 6);
        }
      },
    );

    it("without rows are not touched: their gradients have no rows for them", () => {
      // All rows want expert 0 and 1 of 4.
      const { moe, x } = build(flat("top-k", { rows: 6, E: 4, gateScale: 0, bias: true }));
      sg.backward(sg.sum(moe.forward(x, contextOf(flat("top-k"))).output));
      for (const [path, p] of moe.namedParameters())
        if (path.startsWith("experts.")) expect(list(p.grad!.rows!)).toEqual([0, 1, -1, -1]);
    });
  });
}
