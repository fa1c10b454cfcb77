/** Expert capacity: who stays, what those that go leave behind, how they are counted, and sizes that make no sense at first sight. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { capacityOf } from "#sparsegate/moe/capacity.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import { Draw } from "../../backend/helpers.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { build, contextOf, routedCounts, usedBy } from "./harness.js";
import { flat } from "./claims.js";
import { EVALUATION, list, TRAINING } from "./helpers.js";
import { GATE_TYPES, PICKS } from "./specs.js";

const QUEUES = GATE_TYPES.filter((type) => !PICKS.has(type));

describe("capacityOf", () => {
  it("is ⌈factor · assignments / experts⌉", () => {
    expect(capacityOf(1, 8, 4)).toBe(2);
    expect(capacityOf(1, 9, 4)).toBe(3);
    expect(capacityOf(1.25, 16, 4)).toBe(5);
    expect(capacityOf(0.5, 8, 4)).toBe(1);
  });
  it("is at least one row, also of none and of few among many", () => {
    expect(capacityOf(1, 0, 4)).toBe(1);
    expect(capacityOf(1e-6, 100, 64)).toBe(1);
  });
  it("does not count what rounding adds for a row: for all factors of two decimals as in whole numbers", () => {
    // 1.1 · 50 is 55.00000000000001 in float64.
    expect(capacityOf(1.1, 50, 1)).toBe(55);
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 400 }),
        fc.integer({ min: 1, max: 1e6 }),
        fc.integer({ min: 1, max: 4096 }),
        (percent, assignments, experts) => {
          const exact = (BigInt(percent) * BigInt(assignments) + BigInt(100 * experts - 1)) / BigInt(100 * experts);
          expect(capacityOf(percent / 100, assignments, experts)).toBe(Number(exact));
        },
      ),
      { seed: 4, numRuns: 2000 },
    );
  });
});

for (const { name, make } of BACKENDS) {
  describe(`capacity on the ${name} backend`, () => {
    useBackend(make);

    it("(9) by arrival all first choices come before all second ones, and these before all third ones, in the order of rows", () => {
      const [rows, E, K] = [40, 5, 3];
      const { moe, x } = build(flat("top-k", { rows, E, D: 4 }, { k: K, capacityFactor: 0.7 }));
      const free = build(flat("top-k", { rows, E, D: 4 }, { k: K }));
      const wanted = list(free.moe.forward(free.x, TRAINING).experts);
      const got = list(moe.forward(x, TRAINING).experts);
      // ⌈0.7 · 120 / 5⌉ = 17 rows an expert, handed out choice by choice.
      const left = new Array<number>(E).fill(17);
      const want = new Array<number>(rows * K).fill(-1);
      for (let choice = 0; choice < K; choice++)
        for (let n = 0; n < rows; n++) {
          const e = wanted[n * K + choice]!;
          if (left[e]!-- > 0) want[n * K + choice] = e;
        }
      expect(got).toEqual(want);
      expect(got.filter((e) => e < 0).length).toBeGreaterThan(10);
    });

    it("by probability the highest weights stay, whatever the order of rows: the batch upside down keeps the same ones", () => {
      const c = flat("top-k", { rows: 30, E: 4, D: 4 }, { k: 2, capacityFactor: 0.5, dropPolicy: "probability" });
      const { moe, x } = build(c);
      const data = list(x);
      const turned = sg.tensor(Array.from({ length: 30 }, (_, n) => data.slice(4 * (29 - n), 4 * (30 - n))).flat(), [30, 4]);
      const used = usedBy(moe.forward(x, TRAINING), 30);
      const upsideDown = usedBy(moe.forward(turned, TRAINING), 30).reverse();
      expect(upsideDown.map((of) => of.map((a) => a.expert))).toEqual(used.map((of) => of.map((a) => a.expert)));
      // Of each expert the least that stayed weighs no less than the most that went.
      const free = build(flat("top-k", { rows: 30, E: 4, D: 4 }, { k: 2 }));
      const all = usedBy(free.moe.forward(free.x, TRAINING), 30);
      for (let e = 0; e < 4; e++) {
        const of = (list: typeof used): number[] => list.flat().flatMap((a) => (a.expert === e ? [a.gate] : []));
        const stayed = of(used);
        const went = of(all)
          .sort((a, b) => b - a)
          .slice(stayed.length);
        if (went.length > 0) expect(Math.min(...stayed)).toBeGreaterThanOrEqual(Math.max(...went));
      }
    });
    it("by probability equal weights stay in the order of arrival", () => {
      // With all logits equal every weight is a half, and all rows want experts 0 and 1.
      const { moe, x } = build(
        flat("top-k", { rows: 6, E: 4, gateScale: 0 }, { k: 2, capacityFactor: 1, dropPolicy: "probability" }),
      );
      expect(list(moe.forward(x, TRAINING).experts)).toEqual([0, 1, 0, 1, 0, 1, -1, -1, -1, -1, -1, -1]);
    });

    it.each(QUEUES)("(8) a dropped row gives zero and has no part in any gradient, whatever it holds: %s", (type) => {
      // All rows want the same experts, of which each takes a quarter of them; nothing but the output has a say.
      const quiet = {
        zLossWeight: 0,
        auxLossWeight: 0,
        capacityFactor: type === "softmax" ? 0.25 : 0.5,
        evalSecondPolicy: "all",
      } as const;
      const c = flat(type, { rows: 12, E: 4, gateScale: 1.5, offset: 2, importanceWeight: 0, loadWeight: 0, training: false });
      const known = Object.entries(quiet).filter(([option]) => option in c.gate || option === "capacityFactor");
      const { moe, x } = build({ ...c, gate: { ...c.gate, ...Object.fromEntries(known) } });
      const run = () => {
        for (const p of [x, ...moe.parameters()]) p.zeroGrad();
        const out = moe.forward(x, EVALUATION);
        sg.backward(sg.sum(sg.square(out.output)));
        return { out, used: usedBy(out, 12), gradients: moe.parameters().map((p) => [...denseGradient(p)]) };
      };
      const before = run();
      const dropped = before.used.flatMap((of, n) => (of.length === 0 ? [n] : []));
      expect(dropped.length).toBeGreaterThan(0);
      expect(dropped.length).toBeLessThan(12);
      const [y, dx] = [list(before.out.output), denseGradient(x)];
      for (const n of dropped) for (let d = 0; d < 3; d++) expect([y[3 * n + d], dx[3 * n + d]]).toEqual([0, 0]);
      // Another content that is dropped as well.
      x.backend.write(
        x.buffer,
        list(x).map((v, i) => (dropped.includes(Math.floor(i / 3)) ? 1.01 * v : v)),
      );
      const after = run();
      expect(after.used).toEqual(before.used);
      expect(after.gradients).toEqual(before.gradients);
      expect(before.gradients.flat().some((g) => g !== 0)).toBe(true);
    });

    it.each(QUEUES)(
      "(8) counts what was dropped: wanted less routed, and no expert has a row that it did not get: %s",
      (type) => {
        for (const dropPolicy of ["arrival", "probability"] as const) {
          const c = flat(type, { rows: 40, E: 5 }, { capacityFactor: 0.5, dropPolicy });
          const { moe, x } = build(c);
          const out = moe.forward(x, contextOf(c));
          const counts = routedCounts(out);
          const used = usedBy(out, 40);
          const routed = counts.reduce((a, b) => a + b);
          expect(used.flat().length).toBe(routed);
          counts.forEach((count, e) => expect(used.flat().filter((a) => a.expert === e).length).toBe(count));
          const k = out.experts.shape[1]!;
          const limit = capacityOf(0.5, 40 * k, 5);
          expect(Math.max(...counts)).toBeLessThanOrEqual(limit);
          const dropped = list(out.experts).filter((e) => e < 0).length;
          if (type === "gshard") {
            // Some second experts are left out by the gate's own policy: what was wanted is the load, which is counted.
            expect(out.requested).toBeUndefined();
            expect(list(out.load).reduce((a, b) => a + b)).toBeGreaterThan(routed);
          } else {
            expect(out.requested).toBe(40 * k);
            expect(out.requested! - list(out.routing.offsets)[5]!).toBe(dropped);
            expect(dropped).toBeGreaterThan(0);
          }
        }
      },
    );

    it.each(QUEUES)("(5) larger than the batch, or of a batch with fewer rows than experts, it drops nothing: %s", (type) => {
      for (const rows of [0, 1, 2, 3]) {
        for (const factor of [16, 1e9]) {
          const c = flat(type, { rows, E: 9 }, { capacityFactor: factor });
          const free = flat(type, { rows, E: 9 });
          const [a, b] = [build(c), build(free)];
          expect(list(a.moe.forward(a.x, contextOf(c)).output)).toEqual(list(b.moe.forward(b.x, contextOf(free)).output));
        }
      }
      // With the smallest factor each expert still has its one row.
      const c = flat(type, { rows: 3, E: 9 }, { capacityFactor: 1e-9 });
      const { moe, x } = build(c);
      expect(Math.max(...routedCounts(moe.forward(x, contextOf(c))))).toBe(1);
    });

    it("(4) by probability with negative logits alone: those that were not assigned are in nobody's way", () => {
      // All logits below zero; row n wants expert n mod 2 of 8, with weights falling by n.
      const moe = new MoE({
        hiddenSize: 8,
        numExperts: 8,
        topK: 1,
        gate: { type: "switch", jitter: 0, capacityFactor: 1.4, dropPolicy: "probability" },
        expertHiddenSize: 2,
      });
      const gate = moe.namedParameters().get("gate.weight")!;
      gate.backend.write(
        gate.buffer,
        Float64Array.from({ length: 64 }, (_, i) => (i % 9 === 0 ? 1 : 0)),
      );
      const x = sg.tensor(
        Array.from({ length: 12 }, (_, n) => Array.from({ length: 8 }, (_, e) => (e === n % 2 ? -1 - 0.1 * n : -9))).flat(),
        [12, 8],
      );
      const out = moe.forward(x, TRAINING);
      // ⌈1.4 · 12 / 8⌉ = 3 rows for each of experts 0 and 1: the first ones, whose logits are highest.
      expect(routedCounts(out)).toEqual([3, 3, 0, 0, 0, 0, 0, 0]);
      expect(list(out.experts)).toEqual([0, 1, 0, 1, 0, 1, -1, -1, -1, -1, -1, -1]);
    });

    it("in a hierarchical layer limits groups by the primary gate's factor and experts by the secondary gates'", () => {
      const rows = 24;
      const make = (primary: object, secondary: object) =>
        new HierarchicalMoE({
          hiddenSize: 4,
          numExperts: [3, 4],
          topK: [2, 2],
          gate: { type: "top-k", ...primary },
          secondaryGate: { type: "top-k", ...secondary },
          expertHiddenSize: 2,
        });
      const x = sg.tensor(new Draw(5).floats(rows * 4, -1, 2), [rows, 4]);
      const groupsOf = (counts: readonly number[]): number[] =>
        [0, 1, 2].map((g) => counts.slice(4 * g, 4 * g + 4).reduce((a, b) => a + b));
      const free = routedCounts(make({}, {}).forward(x, TRAINING));
      expect(groupsOf(free).reduce((a, b) => a + b)).toBe(rows * 4);
      // Two groups a row: 48 places, ⌈0.5 · 48 / 3⌉ = 8 of each group, two experts for each.
      const byGroup = make({ capacityFactor: 0.5 }, {}).forward(x, TRAINING);
      for (const count of groupsOf(routedCounts(byGroup))) expect(count).toBeLessThanOrEqual(16);
      // ⌈0.5 · 96 / 12⌉ = 4 of each expert.
      const byExpert = make({}, { capacityFactor: 0.5 }).forward(x, TRAINING);
      expect(Math.max(...routedCounts(byExpert))).toBe(4);
      for (const out of [byGroup, byExpert]) {
        expect(out.requested).toBe(96);
        expect(list(out.routing.offsets)[12]).toBeLessThan(96);
      }
    });
  });
}
