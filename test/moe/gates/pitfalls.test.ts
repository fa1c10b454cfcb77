/** Bugs that other implementations of these gates have or had, by number: none of them here. Those of a single gate are in its own file, (8) and (9) also in capacity.test.ts. */

import { describe, expect, it } from "vitest";
import { makeGate, type GateConfig } from "#sparsegate/moe/gates/index.js";
import { HierarchicalGate } from "#sparsegate/moe/gates/hierarchical.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE } from "#sparsegate/moe/layer.js";
import { clipScale } from "#sparsegate/optim/clip.js";
import * as sg from "#sparsegate/tensor/index.js";
import { Draw } from "../../backend/helpers.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { flat } from "./claims.js";
import type { Spec } from "./dense-gates.js";
import { build, COMMON, contextOf, routedCounts, usedBy, type Case } from "./harness.js";
import { EVALUATION, fill, givenProbabilities, input, list, Times, TRAINING } from "./helpers.js";
import { fewest, GATE_TYPES, PICKS, plain, type GateType } from "./specs.js";

const deep = (first: GateType, second: GateType, change: Partial<Case> = {}): Case => ({
  ...COMMON,
  rows: 9,
  D: 3,
  E: [3, 4],
  gate: plain(first, 2, 3),
  secondary: plain(second, 2, 4),
  ...change,
});

for (const { name, make } of BACKENDS) {
  describe(`pitfalls of the gates on the ${name} backend`, () => {
    useBackend(make);

    it.each(GATE_TYPES)(
      "(5) %s works for any number of rows, none and fewer than experts among them, flat and on two levels",
      (type) => {
        for (const rows of [0, 1, 2, 3, 5, 17]) {
          for (const training of [true, false]) {
            for (const c of [
              flat(type, { rows, E: 16, training }),
              deep(type, type, { rows, training, E: [5, 6], gate: plain(type, 2, 5), secondary: plain(type, 2, 6) }),
            ]) {
              const { moe, x } = build(c);
              const out = moe.forward(x, contextOf(c));
              expect(out.output.shape).toEqual([rows, 3]);
              sg.backward(sg.add(sg.sum(out.output), out.auxLoss));
              for (const p of [x, ...moe.parameters()])
                expect(denseGradient(p).every(Number.isFinite), `${rows} rows: ${p.name}`).toBe(true);
            }
          }
        }
      },
    );

    it.each(["noisy-top-k", "switch", "gshard", "top-k"] as const)(
      "(6) %s: each layer's own loss counts; opposite imbalances of two layers do not cancel, and each has a gradient against its own",
      (type) => {
        const layer = (favoured: number): MoE => {
          const moe = new MoE({
            hiddenSize: 2,
            numExperts: 2,
            topK: type === "gshard" ? 2 : 1,
            gate: type,
            importanceWeight: type === "noisy-top-k" ? 1 : 0,
            expertHiddenSize: 2,
          });
          fill(moe.namedParameters().get("gate.weight")!, (i) => (i === favoured ? 3 : 0));
          return moe;
        };
        const [a, b] = [layer(0), layer(1)];
        const x = input(Array.from({ length: 40 }, (_, n) => [1, Math.sin(n)]));
        const [first, second] = [a.forward(x, TRAINING), b.forward(x, TRAINING)];
        // Lumped together the layers look balanced: each expert is first for 40 rows of 80.
        const lumped = list(first.importance).map((v, e) => v + list(second.importance)[e]!);
        expect(lumped[0]! / lumped[1]!).toBeCloseTo(1, 3);
        // Apart, each loss is near its worst: 1 of CV² of two experts, or 2·p instead of 1 of n·Σ f·P, times its weight.
        const balanced = type === "noisy-top-k" ? 0 : type === "top-k" ? 0.02 : 0.01;
        for (const out of [first, second]) expect(out.auxLoss.item()).toBeGreaterThan(balanced + 0.0085);
        sg.backward(sg.add(first.auxLoss, second.auxLoss));
        // Down its slope the favoured expert's logit falls.
        const slope = (moe: MoE, e: number): number => denseGradient(moe.namedParameters().get("gate.weight")!)[e]!;
        // (The weight of a row's only expert is constant: with noisy top-k the slope is that of the load.)
        expect(slope(a, 0)).toBeGreaterThan(0);
        expect(slope(b, 1)).toBeGreaterThan(0);
      },
    );

    /** mean logsumexp(x·W)² in plain numbers. */
    const zOf = (x: readonly number[], w: readonly number[], D: number): number => {
      const E = w.length / D;
      const rows = x.length / D;
      let total = 0;
      for (let n = 0; n < rows; n++) {
        let sum = 0;
        for (let e = 0; e < E; e++) {
          let logit = 0;
          for (let d = 0; d < D; d++) logit += x[n * D + d]! * w[d * E + e]!;
          sum += Math.exp(logit);
        }
        total += Math.log(sum) ** 2;
      }
      return total / rows;
    };
    it.each(GATE_TYPES)("(7) the z-loss of %s is of logits, not of probabilities, of all rows, whatever is dropped", (type) => {
      const withWeight = (zLossWeight: number, training: boolean): Case => {
        const gate: Spec = {
          ...plain(type, 2, 5),
          zLossWeight,
          ...(type === "switch" ? { jitter: 0 } : {}),
          ...(PICKS.has(type) ? {} : { capacityFactor: 0.5 }),
        };
        return { ...flat(type, { rows: 12, training }), gate };
      };
      for (const training of [true, false]) {
        const results = [0, 0.25].map((z) => {
          const c = withWeight(z, training);
          const { moe, x } = build(c);
          const want = z * zOf(list(x), list(moe.namedParameters().get("gate.weight")!), 3);
          return { loss: moe.forward(x, contextOf(c)).auxLoss.item(), want };
        });
        const [without, with_] = results as [(typeof results)[0], (typeof results)[0]];
        expect(with_.want).toBeGreaterThan(0.1);
        expect(with_.loss - without.loss).toBeCloseTo(with_.want, 5);
      }
    });
    it("(7) the z-loss of two levels is that of the primary gate and that of the secondary ones over all places", () => {
      const c = (z: number): Case =>
        deep("top-k", "top-k", {
          gate: { ...plain("top-k", 2, 3), zLossWeight: z },
          secondary: { ...plain("top-k", 2, 4), zLossWeight: z },
        });
      const losses = [0, 0.25].map((z) => {
        const { moe, x } = build(c(z));
        const out = moe.forward(x, contextOf(c(z)));
        const parameters = moe.namedParameters();
        const secondary = list(parameters.get("gate.secondary.weight")!);
        const rows = list(x);
        // Two places a row, each in the group's own matrix (3 × 4).
        const places = usedBy(out, 9).flatMap((of, n) =>
          [...new Set(of.map((a) => Math.floor(a.expert / 4)))].map((g) =>
            zOf(rows.slice(3 * n, 3 * n + 3), secondary.slice(12 * g, 12 * g + 12), 3),
          ),
        );
        expect(places).toHaveLength(18);
        const want = zOf(rows, list(parameters.get("gate.primary.weight")!), 3) + places.reduce((a, b) => a + b) / 18;
        return { loss: out.auxLoss.item(), want };
      });
      expect(losses[1]!.loss - losses[0]!.loss).toBeCloseTo(0.25 * losses[1]!.want, 5);
    });

    it.each(GATE_TYPES.filter((type) => !PICKS.has(type)))(
      "(8) %s: what capacity dropped is nobody's row, least of all expert 0's",
      (type) => {
        // All rows want the last experts; the first ones have none.
        const E = 6;
        const topK = type === "softmax" ? E : type === "switch" ? 1 : 2;
        const experts = Array.from({ length: E }, () => new Times(1));
        const moe = new MoE({ hiddenSize: 2, numExperts: E, topK, gate: { type, capacityFactor: 0.2 } as GateConfig, experts });
        fill(moe.namedParameters().get("gate.weight")!, (i) => (i < E ? i : 0));
        const out = moe.forward(input(Array.from({ length: 30 }, (_, n) => [1, n / 30])), EVALUATION);
        const counts = routedCounts(out);
        const capacity = Math.ceil((0.2 * 30 * topK) / E);
        if (type !== "softmax") expect(counts.slice(0, 4)).toEqual([0, 0, 0, 0]);
        expect(counts[E - 1]).toBe(capacity);
        expect(experts.map((e) => e.seen.length)).toEqual(counts);
        expect(list(out.experts).filter((e) => e >= 0).length).toBe(counts.reduce((a, b) => a + b));
      },
    );

    it.each(GATE_TYPES.filter((type) => !PICKS.has(type)))(
      "(9) %s: column 0 is the best expert, and the rest follow in the order of their weights",
      (type) => {
        const c = flat(type, { rows: 30, E: 7, training: false }, { k: 4 });
        const { moe, x } = build(c);
        const out = moe.forward(x, contextOf(c));
        const k = out.gates.shape[1]!;
        const gates = list(out.gates);
        // Of sigmoid the biases decide on the order; without them it is that of the scores.
        if (type === "sigmoid") {
          fill(moe.namedState().get("gate.bias")!, () => 0);
          gates.splice(0, gates.length, ...list(moe.forward(x, contextOf(c)).gates));
        }
        for (let n = 0; n < 30; n++) {
          const row = gates.slice(k * n, k * (n + 1));
          expect(row).toEqual([...row].sort((a, b) => b - a));
        }
      },
    );

    it("(10) evaluation of every gate is deterministic, flat and on two levels: seed, step and position change nothing, and leave no trace", () => {
      for (const type of GATE_TYPES) {
        for (const c of [
          flat(type, { rows: 20, training: false, dropout: 0.5 }),
          deep(type, type, { rows: 20, training: false, dropout: 0.5 }),
        ]) {
          const { moe, x } = build(c);
          const base = moe.forward(x, contextOf(c));
          const state = [...moe.namedState().values()].map(list);
          for (const change of [{ seed: 99 }, { step: 77 }, { firstRow: 55 }]) {
            const again = moe.forward(x, { ...contextOf(c), ...change });
            expect(list(again.output), type).toEqual(list(base.output));
            expect(list(again.experts), type).toEqual(list(base.experts));
          }
          expect([...moe.namedState().values()].map(list)).toEqual(state);
        }
      }
    });
    it.each(["noisy-top-k", "switch", "gshard"] as const)("(10) and %s does differ in training", (type) => {
      const { moe, x } = build(flat(type, { rows: 40, E: 5 }));
      const outputs = [1, 2, 3].map((step) => list(moe.forward(x, { ...TRAINING, step }).output).join());
      expect(new Set(outputs).size).toBe(3);
    });

    it("(13) losses are scaled by the experts of the whole layer: 1 in balance for switch and gshard, however many experts and however they are grouped", () => {
      const balancedRows = (E: number): number[][] =>
        Array.from({ length: E }, (_, n) =>
          Array.from({ length: E }, (_, e) => (e === n ? 0.7 : e === (n + 1) % E ? 0.2 : 0.1 / Math.max(1, E - 2))),
        );
      for (const E of [2, 4, 8, 16]) {
        for (const type of ["switch", "gshard"] as const) {
          const { moe, x } = givenProbabilities(balancedRows(E), new Array<number>(E).fill(1), {
            type,
            auxLossWeight: 1,
          } as GateConfig);
          expect(moe.forward(x, EVALUATION).auxLoss.item()).toBeCloseTo(1, 5);
        }
      }
      // Two levels over 4 × 4 experts: each group in balance, groups in balance: 1 of the primary gate, 1 of the mean over groups.
      const grouped = new HierarchicalMoE({
        hiddenSize: 8,
        numExperts: [4, 4],
        gate: { type: "switch", auxLossWeight: 1, jitter: 0 },
        experts: () => new Times(1),
      });
      const [primary, secondary] = ["gate.primary.weight", "gate.secondary.weight"].map((path) =>
        grouped.namedParameters().get(path)!,
      );
      // The first four elements are logits of the primary gate, the others of every secondary one.
      fill(primary!, (i) => (Math.floor(i / 4) === i % 4 ? 1 : 0));
      fill(secondary!, (i) => (Math.floor((i % 32) / 4) === 4 + (i % 4) ? 1 : 0));
      const rows = balancedRows(4).flatMap((p) => balancedRows(4).map((q) => [...p, ...q].map(Math.log)));
      expect(grouped.forward(input(rows), TRAINING).auxLoss.item()).toBeCloseTo(2, 5);
      // Importance of the two-level layer: CV² over all sixteen, 15 where one of them has everything.
      const one = new HierarchicalMoE({
        hiddenSize: 8,
        numExperts: [4, 4],
        topK: [1, 1],
        gate: { type: "top-k", auxLossWeight: 0 },
        importanceWeight: 1,
        experts: () => new Times(1),
      });
      for (const path of ["gate.primary.weight", "gate.secondary.weight"])
        fill(one.namedParameters().get(path)!, (i) => (i % 4 === 2 ? 1 : 0));
      expect(one.forward(input([new Array<number>(8).fill(1)]), TRAINING).auxLoss.item()).toBeCloseTo(15, 4);
    });

    it("(2, 16) rows that are not finite spoil themselves alone, under every gate whose rows decide for themselves", () => {
      const types = GATE_TYPES.filter((type) => !PICKS.has(type));
      for (const type of types) {
        const c = flat(type, { rows: 6, training: false });
        const { moe, x } = build(c);
        const want = list(moe.forward(x, contextOf(c)).output);
        const spoilt = sg.tensor(
          list(x).map((v, i) => (i === 7 ? NaN : v)),
          [6, 3],
        );
        const out = moe.forward(spoilt, contextOf(c));
        const got = list(out.output);
        for (const n of [0, 1, 3, 4, 5])
          for (let d = 0; d < 3; d++) expect(got[3 * n + d], type).toBeCloseTo(want[3 * n + d]!, 5);
        expect(got.slice(6, 9), type).toEqual([NaN, NaN, NaN]);
      }
    });
    it("(2, 16) where experts pick rows, one that is not finite is picked last, and a gate that is not finite does not break the layer", () => {
      for (const type of PICKS) {
        const c = flat(type, { rows: 6 }, { k: 1 });
        const { moe, x } = build(c);
        const spoilt = sg.tensor(
          list(x).map((v, i) => (i === 7 ? NaN : v)),
          [6, 3],
        );
        const out = moe.forward(spoilt, contextOf(c));
        expect(routedCounts(out)).toEqual([1, 1, 1, 1, 1]);
        expect(usedBy(out, 6)[2]).toEqual([]);
        // The balance loss tells of it, where there is one; the gradient always does.
        sg.backward(sg.add(sg.sum(sg.square(out.output)), out.auxLoss));
        expect(() => clipScale(moe.parameters(), undefined), type).toThrow("Gradient of moe.gate.weight is not finite.");
        expect(list(out.output).every(Number.isFinite)).toBe(true);
        fill(moe.namedParameters().get("gate.weight")!, () => NaN);
        const broken = moe.forward(x, contextOf(c));
        expect(routedCounts(broken)).toEqual([1, 1, 1, 1, 1]);
      }
    });
  });
}

describe("a gate made elsewhere", () => {
  useBackend(BACKENDS[0].make);
  it("is the layer's, with the losses and limits that it was given", () => {
    const given = { hiddenSize: 3, numExperts: 4, topK: 2, name: "moe.gate" };
    const gate = makeGate({ type: "top-k", auxLossWeight: 1, capacityFactor: 0.5 }, given);
    const [own, named] = [
      new MoE({ hiddenSize: 3, numExperts: 4, gate }),
      new MoE({ hiddenSize: 3, numExperts: 4, topK: 2, gate: { type: "top-k", auxLossWeight: 1 }, capacityFactor: 0.5 }),
    ];
    const x = sg.tensor(new Draw(1).floats(60, -1, 1), [20, 3]);
    const [a, b] = [own.forward(x, TRAINING), named.forward(x, TRAINING)];
    expect(list(a.output)).toEqual(list(b.output));
    expect(a.auxLoss.item()).toBe(b.auxLoss.item());
  });
  it("of two levels is what HierarchicalMoE makes", () => {
    const level = (numExperts: number, numGroups?: number) =>
      makeGate(
        { type: "noisy-top-k" },
        { hiddenSize: 3, numExperts, topK: 2, numGroups, name: `moe.gate.${numGroups === undefined ? "primary" : "secondary"}` },
      );
    const gate = new HierarchicalGate({ primary: level(3), secondary: level(4, 3), importanceWeight: 0.3, loadWeight: 0.2 });
    const [own, named] = [
      new MoE({ hiddenSize: 3, numExperts: 12, gate }),
      new HierarchicalMoE({ hiddenSize: 3, numExperts: [3, 4], topK: [2, 2], importanceWeight: 0.3, loadWeight: 0.2 }),
    ];
    const x = sg.tensor(new Draw(1).floats(60, -1, 1), [20, 3]);
    const [a, b] = [own.forward(x, TRAINING), named.forward(x, TRAINING)];
    expect(list(a.output)).toEqual(list(b.output));
    expect(a.auxLoss.item()).toBe(b.auxLoss.item());
  });
  it("of two levels has the weights of importance and load that its primary gate has, unless it is given others", () => {
    const weights = (options: object) => {
      const { importanceWeight, loadWeight } = new HierarchicalMoE({ hiddenSize: 3, numExperts: [2, 2], ...options }).gate;
      return [importanceWeight, loadWeight];
    };
    expect(weights({})).toEqual([0.1, 0.1]);
    expect(
      weights({
        gate: { type: "noisy-top-k", importanceWeight: 0.5 },
        secondaryGate: { type: "noisy-top-k", importanceWeight: 0.7 },
      }),
    ).toEqual([0.5, 0.1]);
    expect(weights({ gate: "switch", secondaryGate: "noisy-top-k" })).toEqual([0, 0]);
    expect(weights({ importanceWeight: 0.2, loadWeight: 0 })).toEqual([0.2, 0]);
    // The z-loss of the layer is that of both gates.
    const { primary, secondary } = new HierarchicalMoE({ hiddenSize: 3, numExperts: [2, 2], zLossWeight: 0.4 })
      .gate as HierarchicalGate;
    expect([primary.zLossWeight, secondary.zLossWeight]).toEqual([0.4, 0.4]);
    // Two experts at each level where the gate lets one choose, as in the paper, and fewer where there are fewer.
    const levels = new HierarchicalMoE({ hiddenSize: 3, numExperts: [5, 1], gate: "top-k" }).gate as HierarchicalGate;
    expect([levels.primary, levels.secondary].map((gate) => (gate as unknown as { topK: number }).topK)).toEqual([2, 1]);
  });
  it.each(GATE_TYPES)("%s has the defaults of its name: experts a row, and options left out are those of the class", (type) => {
    const moe = new MoE({ hiddenSize: 3, numExperts: 12, gate: type });
    const want = {
      softmax: 12,
      "noisy-top-k": 4,
      "strictly-balanced": 4,
      switch: 1,
      gshard: 2,
      "expert-choice": 2,
      "top-k": 2,
      sigmoid: 8,
    }[type];
    expect((moe.gate as unknown as { topK: number }).topK).toBe(want);
    const few = new MoE({ hiddenSize: 3, numExperts: fewest(type), gate: type });
    expect((few.gate as unknown as { topK: number }).topK).toBe(Math.min(want, fewest(type)));
  });
});
