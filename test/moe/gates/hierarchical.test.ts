/**
 * Two levels of gates (Shazeer et al. 2017, App. B): every pair of gates against the dense loop, and the cases in which two levels must equal one: a primary
 * gate that sends everything to one group, a single group, groups of a single expert.
 */

import { describe, expect, it } from "vitest";
import { makeGate, type GateConfig } from "#sparsegate/moe/gates/index.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE, type MoEOutput } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../../backend/helpers.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import type { Spec } from "./dense-gates.js";
import { COMMON, hierarchies, holds, useBackends, usedBy, type Case } from "./harness.js";
import { fewest, GATE_TYPES, PICKS, plain, RANDOM, type GateType } from "./specs.js";

describe("a hierarchical layer equals the dense loop over all groups and experts", () => {
  const { differences } = useBackends();
  /** Those that are most likely to be used: more cases for them. */
  const USUAL: [GateType, GateType][] = [
    ["noisy-top-k", "noisy-top-k"],
    ["gshard", "gshard"],
    ["strictly-balanced", "strictly-balanced"],
    ["noisy-top-k", "switch"],
    ["switch", "expert-choice"],
    ["top-k", "top-k"],
    ["sigmoid", "noisy-top-k"],
  ];
  it.each(USUAL)("%s over %s: 25 random shapes and settings", (first, second) => {
    holds(hierarchies(RANDOM[first], RANDOM[second], [fewest(first), fewest(second)]), differences, 25, 1701);
  });
  it.each(GATE_TYPES)("%s over every gate: 5 random shapes and settings each", (first) => {
    for (const second of GATE_TYPES)
      holds(hierarchies(RANDOM[first], RANDOM[second], [fewest(first), fewest(second)]), differences, 5, 5);
  });

  /** Three groups of four, of which a row uses two and two, changed in some respects. */
  const two = (
    first: GateType,
    second: GateType,
    change: Partial<Case> & { E?: readonly [number, number] } = {},
    ofFirst: Partial<Spec> = {},
    ofSecond: Partial<Spec> = {},
  ): Case => {
    const E = change.E ?? ([3, 4] as const);
    return {
      ...COMMON,
      rows: 9,
      D: 3,
      ...change,
      E,
      gate: { ...plain(first, 2, E[0]), ...ofFirst },
      secondary: { ...plain(second, 2, E[1]), ...ofSecond },
    };
  };
  const EDGES: [edge: string, change: Partial<Case> & { E?: readonly [number, number] }, minimum?: readonly [number, number]][] =
    [
      ["one group", { E: [1, 4] }, [1, 4]],
      ["groups of one expert", { E: [4, 1] }, [4, 1]],
      ["one group of one expert", { E: [1, 1] }, [1, 1]],
      ["one row", { rows: 1 }],
      ["no rows", { rows: 0 }],
      ["no rows in evaluation", { rows: 0, training: false }],
      ["more groups than rows, most of which receive none", { rows: 2, E: [9, 3] }],
      ["all rows to the same groups", { gateScale: 1.5, offset: 2, noiseScale: 0.01 }],
      ["all logits equal", { gateScale: 0, noiseScale: 0 }],
      ["widths 5 and 7, 17 experts", { D: 5, F: [7], E: [3, 17] }],
      ["rows far into the streams of random numbers", { firstRow: 2 ** 31 }],
    ];
  for (const [edge, change, [groups, perGroup] = [9, 9]] of EDGES) {
    it(`${edge}, with each gate at both levels`, () => {
      for (const type of GATE_TYPES) {
        const first = fewest(type) > groups ? "top-k" : type;
        const second = fewest(type) > perGroup ? "top-k" : type;
        expect(differences(two(first, second, change)), type).toEqual([]);
      }
    });
  }
  it("with capacity for almost nothing, in the primary gate, in the secondary ones, or in both", () => {
    for (const type of GATE_TYPES.filter((t) => !PICKS.has(t))) {
      for (const dropPolicy of ["arrival", "probability"] as const) {
        const tight = { capacityFactor: 0.3, dropPolicy };
        for (const [ofFirst, ofSecond] of [
          [tight, {}],
          [{}, tight],
          [tight, tight],
        ] as const)
          expect(differences(two(type, type, { rows: 12 }, ofFirst, ofSecond)), type).toEqual([]);
      }
    }
  });
  it("with capacity in evaluation alone, also where only the secondary gates have one", () => {
    const tight = { evalCapacityFactor: 0.3 };
    for (const training of [true, false]) {
      expect(differences(two("top-k", "top-k", { rows: 12, training }, {}, tight))).toEqual([]);
      expect(differences(two("top-k", "top-k", { rows: 12, training }, tight, {}))).toEqual([]);
    }
  });
});

const D = 3;
const list = (t: Tensor): number[] => Array.from(t.dataSync());
const CONTEXT = { training: true, seed: 5, step: 3, firstRow: 4 };
const part = (t: Tensor, from: number, to: number): number[] => list(t).slice(from, to);

/** Weights uniform in [−1, 1) for every tensor of a layer's state, thresholds near one in four. */
function stir(moe: MoE, seed: number): void {
  const draw = new Draw(seed);
  for (const [path, p] of moe.namedState())
    p.backend.write(p.buffer, path.endsWith("logThreshold") ? draw.floats(p.size, -1.7, -1.2) : draw.floats(p.size, -1, 1));
}
/** Copies the state of group g (of G), which is all of it where there is one. */
function copyGroup(from: MoE, to: MoE, g: number, G: number): void {
  const state = from.namedState();
  for (const [path, p] of to.namedState()) {
    const source = state.get(path.replace(/^gate\./, "gate.secondary."))!;
    expect(source.size, path).toBe(G * p.size);
    p.backend.write(p.buffer, part(source, g * p.size, (g + 1) * p.size));
  }
}
function input(rows: number, seed: number): Tensor {
  const x = sg.keep(
    sg.tensor(
      new Draw(seed).floats(rows * D, -1, 1).map((v, i) => (i % D === 0 ? 1 : v)),
      [rows, D],
    ),
  );
  x.requiresGrad = true;
  return x;
}
/** Forward and backward of Σ w·y + auxLoss. */
function run(moe: MoE, x: Tensor, context: typeof CONTEXT): MoEOutput {
  x.zeroGrad();
  const out = moe.forward(x, context);
  const weights = sg.tensor(
    Float64Array.from({ length: x.size }, (_, i) => Math.sin(1.3 * i + 0.5)),
    x.shape,
  );
  sg.backward(sg.add(sg.sum(sg.mul(out.output, weights)), out.auxLoss));
  return out;
}
function expectClose(got: readonly number[], want: readonly number[], what: string): void {
  expect(got.length, what).toBe(want.length);
  const scale = want.reduce((most, v) => Math.max(most, Math.abs(v)), 0.01);
  got.forEach((v, i) => expect(Math.abs(v - want[i]!), `${what}[${i}]`).toBeLessThanOrEqual(2e-6 * scale));
}
/** Options of a gate without its topK. */
const configOf = ({ topK: _, ...options }: Spec): GateConfig => options as GateConfig;
/** Sends rows to the first group alone, or to the best one, with weight 1 and no loss of its own. */
const BEST_ALONE: Spec = { type: "top-k", topK: 1, auxLossWeight: 0, zLossWeight: 0 };

for (const { name, make } of BACKENDS) {
  describe(`two levels that must equal one, on the ${name} backend`, () => {
    useBackend(make);
    const rows = 11;
    it.each(GATE_TYPES)("a primary gate that sends all rows to one group gives that group's flat layer: %s", (type) => {
      const [G, b, forced] = [3, 4, 1];
      // Noise is numbered by row and group, so that it differs from the flat layer's: gates with noise run without.
      const training = type !== "noisy-top-k";
      const quiet = plain(type, 2, b);
      if (type === "switch") quiet.jitter = 0;
      if (type === "gshard") quiet.secondPolicy = "threshold";
      // What is one number a group is a mean over groups, of which two have no rows and no loss.
      const ofThree = quiet.auxLossWeight === undefined ? quiet : { ...quiet, auxLossWeight: G * quiet.auxLossWeight };
      const options = { hiddenSize: D, expertHiddenSize: 5, bias: true, importanceWeight: 0, loadWeight: 0 };
      const deep = new HierarchicalMoE({
        ...options,
        numExperts: [G, b],
        topK: [1, quiet.topK],
        gate: configOf(BEST_ALONE),
        secondaryGate: configOf(ofThree),
      });
      stir(deep, 7);
      const primary = deep.namedParameters().get("gate.primary.weight")!;
      // The first element of every row is 1.
      primary.backend.write(
        primary.buffer,
        Float64Array.from({ length: D * G }, (_, i) => (i === forced ? 50 : 0)),
      );
      const flat = new MoE({ ...options, numExperts: b, topK: quiet.topK, gate: configOf(quiet) });
      copyGroup(deep, flat, forced, G);
      const [x, y] = [input(rows, 9), input(rows, 9)];
      const [two, one] = [run(deep, x, { ...CONTEXT, training }), run(flat, y, { ...CONTEXT, training })];
      expectClose(list(two.output), list(one.output), "output");
      const [from, to] = [forced * b, (forced + 1) * b];
      for (const key of ["importance", "load"] as const) {
        expectClose(part(two[key], from, to), list(one[key]), key);
        expect(
          [...part(two[key], 0, from), ...part(two[key], to, G * b)].every((v) => v === 0),
          `${key} of other groups`,
        ).toBe(true);
      }
      expect(usedBy(two, rows).map((of) => of.map((a) => a.expert - from))).toEqual(
        usedBy(one, rows).map((of) => of.map((a) => a.expert)),
      );
      expectClose([two.auxLoss.item()], [one.auxLoss.item()], "auxLoss");
      expectClose([...denseGradient(x)], [...denseGradient(y)], "gradient of x");
      const parameters = flat.namedParameters();
      for (const [path, p] of deep.namedParameters()) {
        const gradient = [...denseGradient(p)];
        if (path === "gate.primary.weight") expect(gradient.every((g) => g === 0)).toBe(true);
        else {
          const small = parameters.get(path.replace("gate.secondary.", "gate."))!;
          const own = gradient.slice(forced * small.size, (forced + 1) * small.size);
          expectClose(own, [...denseGradient(small)], `gradient of ${path}`);
          expect(gradient.filter((g) => g !== 0).length, path).toBe(own.filter((g) => g !== 0).length);
        }
      }
    });

    it.each(GATE_TYPES)("one group is the flat layer of its gate: output, losses, gradients, noise too: %s", (type) => {
      const b = 5;
      const spec = plain(type, 2, b);
      const options = { hiddenSize: D, expertHiddenSize: 5, bias: true };
      const deep = new HierarchicalMoE({
        ...options,
        importanceWeight: 0.5,
        loadWeight: 0.5,
        numExperts: [1, b],
        topK: [1, spec.topK],
        // Noisy top-k gives a load, without which there is no load loss; of one group it is all rows.
        gate: "noisy-top-k",
        secondaryGate: configOf(spec),
      });
      stir(deep, 8);
      const gate = makeGate({ ...(configOf(spec) as object), importanceWeight: 0.5, loadWeight: 0.5 } as GateConfig, {
        hiddenSize: D,
        numExperts: b,
        topK: spec.topK,
        name: "moe.gate.secondary",
      });
      const flat = new MoE({ ...options, numExperts: b, gate });
      copyGroup(deep, flat, 0, 1);
      sameAsFlat(deep, flat, rows, (path) => path.replace("gate.secondary.", "gate."));
    });

    it.each(GATE_TYPES)(
      "groups of one expert are the flat layer of the primary gate: output, losses, gradients, noise too: %s",
      (type) => {
        const a = 5;
        const spec = plain(type, 2, a);
        const options = { hiddenSize: D, expertHiddenSize: 5, bias: true };
        const deep = new HierarchicalMoE({
          ...options,
          importanceWeight: 0.5,
          loadWeight: 0.5,
          numExperts: [a, 1],
          topK: [spec.topK, 1],
          gate: configOf(spec),
          // Load of the only expert of a group: the rows that the group received, each with probability 1.
          secondaryGate: "noisy-top-k",
        });
        stir(deep, 8);
        const gate = makeGate({ ...(configOf(spec) as object), importanceWeight: 0.5, loadWeight: 0.5 } as GateConfig, {
          hiddenSize: D,
          numExperts: a,
          topK: spec.topK,
          name: "moe.gate.primary",
        });
        const flat = new MoE({ ...options, numExperts: a, gate });
        const state = deep.namedState();
        for (const [path, p] of flat.namedState()) {
          const source = state.get(path.replace(/^gate\./, "gate.primary."))!;
          p.backend.write(p.buffer, list(source));
        }
        sameAsFlat(deep, flat, rows, (path) => path.replace("gate.primary.", "gate."));
      },
    );
  });
}

/** Both layers on the same input; the level that has nothing to choose has no gradient. */
function sameAsFlat(deep: MoE, flat: MoE, rows: number, rename: (path: string) => string): void {
  for (const training of [true, false]) {
    const [x, y] = [input(rows, 9), input(rows, 9)];
    const [two, one] = [run(deep, x, { ...CONTEXT, training }), run(flat, y, { ...CONTEXT, training })];
    for (const key of ["output", "importance", "load", "auxLoss"] as const) expectClose(list(two[key]), list(one[key]), key);
    const byExpert = (out: MoEOutput) => usedBy(out, rows).map((of) => of.map((a) => a.expert).sort((i, j) => i - j));
    expect(byExpert(two)).toEqual(byExpert(one));
    expectClose([...denseGradient(x)], [...denseGradient(y)], "gradient of x");
    const parameters = flat.namedParameters();
    for (const [path, p] of deep.namedParameters()) {
      const twin = parameters.get(rename(path));
      expectClose(
        [...denseGradient(p)],
        twin ? [...denseGradient(twin)] : new Array<number>(p.size).fill(0),
        `gradient of ${path}`,
      );
    }
    for (const p of [...deep.parameters(), ...flat.parameters()]) p.zeroGrad();
  }
}
