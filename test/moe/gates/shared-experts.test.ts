/** Shared experts: what every row uses beside the experts that its gate picks. */

import { describe, expect, it } from "vitest";
import { FeedForwardExperts } from "#sparsegate/moe/feed-forward.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../../backend/helpers.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { flat } from "./claims.js";
import { build, COMMON, useBackends, type Case } from "./harness.js";
import { EVALUATION, list, Times, TRAINING } from "./helpers.js";
import { GATE_TYPES, plain } from "./specs.js";

describe("a layer with shared experts equals the dense loop", () => {
  const { differences } = useBackends();
  const variant = { shared: 2, F: [5], activation: "swiglu", dropout: 0.3, rows: 9 } as const;
  it.each(GATE_TYPES)("under the %s gate, flat and on two levels", (type) => {
    expect(differences(flat(type, variant))).toEqual([]);
    const deep: Case = { ...COMMON, ...variant, D: 3, E: [3, 2], gate: plain(type, 2, 3), secondary: plain(type, 2, 2) };
    expect(differences(deep)).toEqual([]);
  });
  it("for no rows", () => {
    expect(differences(flat("top-k", { ...variant, rows: 0 }))).toEqual([]);
  });
});

for (const { name, make } of BACKENDS) {
  describe(`shared experts on the ${name} backend`, () => {
    useBackend(make);
    const [D, F] = [4, 6];
    const x = (): Tensor => sg.tensor(new Draw(3).floats(10 * D, -1, 1), [10, D]);
    const options = { hiddenSize: D, numExperts: 5, topK: 2, gate: "top-k", expertHiddenSize: F, bias: true } as const;
    const without = (y: readonly number[], routed: readonly number[]): number[] => y.map((v, i) => v - routed[i]!);

    it("add to what was routed: output = routed + shared, the gate and its experts being as without", () => {
      const [plainLayer, sharing] = [new MoE(options), new MoE({ ...options, sharedExperts: 1 })];
      for (const context of [TRAINING, EVALUATION]) {
        const [a, b] = [plainLayer.forward(x(), context), sharing.forward(x(), context)];
        expect(list(b.experts)).toEqual(list(a.experts));
        expect(b.auxLoss.item()).toBe(a.auxLoss.item());
        const shared = list(
          sharing.shared!.forward(x(), sg.tensor([0, 10], [2], "int32"), context, () => sg.zeros([10], "int32")),
        );
        without(list(b.output), list(a.output)).forEach((v, i) => expect(v).toBeCloseTo(shared[i]!, 5));
        expect(shared.some((v) => Math.abs(v) > 0.1)).toBe(true);
      }
    });

    it("are what rows that no expert took are left with", () => {
      const layer = (sharedExperts: number): MoE =>
        new MoE({ hiddenSize: D, numExperts: 5, gate: { type: "expert-choice" }, topK: 0.5, sharedExperts, expertHiddenSize: F });
      const [routed, both] = [layer(0).forward(x(), TRAINING), layer(1).forward(x(), TRAINING)];
      const offsets = list(routed.rowOffsets!);
      const left = Array.from({ length: 10 }, (_, n) => n).filter((n) => offsets[n] === offsets[n + 1]);
      expect(left.length).toBeGreaterThan(0);
      for (const n of left) {
        expect(list(routed.output).slice(n * D, (n + 1) * D)).toEqual(new Array(D).fill(0));
        expect(
          list(both.output)
            .slice(n * D, (n + 1) * D)
            .some((v) => v !== 0),
        ).toBe(true);
      }
    });

    it("two are the sum of two: one network of twice the hidden width, each half an expert", () => {
      const both = new MoE({ ...options, bias: false, sharedExperts: 2 }).shared!;
      expect(both.inputWeight.shape).toEqual([1, D, 2 * F]);
      expect(both.outputWeight.shape).toEqual([1, 2 * F, D]);
      const offsets = sg.tensor([0, 10], [2], "int32");
      const ids = () => sg.zeros([10], "int32");
      const [input, output] = [list(both.inputWeight), list(both.outputWeight)];
      const halves = [0, 1].map((half) => {
        const one = new FeedForwardExperts({ numExperts: 1, hiddenSize: D, expertHiddenSize: F });
        const columns = Array.from({ length: D }, (_, d) => input.slice(d * 2 * F + half * F, d * 2 * F + (half + 1) * F)).flat();
        one.inputWeight.backend.write(one.inputWeight.buffer, columns);
        one.outputWeight.backend.write(one.outputWeight.buffer, output.slice(half * F * D, (half + 1) * F * D));
        return list(one.forward(x(), offsets, TRAINING, ids));
      });
      list(both.forward(x(), offsets, TRAINING, ids)).forEach((v, i) =>
        expect(v).toBeCloseTo(halves[0]![i]! + halves[1]![i]!, 5),
      );
    });

    it("stand beside experts of one's own and in hierarchical layers, and their parameters are the layer's", () => {
      const own = new MoE({
        hiddenSize: D,
        numExperts: 3,
        topK: 1,
        gate: "top-k",
        experts: () => new Times(2),
        sharedExperts: 1,
        expertHiddenSize: F,
      });
      expect([...own.namedParameters().keys()]).toEqual(["gate.weight", "shared.inputWeight", "shared.outputWeight"]);
      const shared = list(own.shared!.forward(x(), sg.tensor([0, 10], [2], "int32"), TRAINING, () => sg.zeros([10], "int32")));
      const given = list(x());
      // Weight 1 times 2, and the shared expert.
      list(own.forward(x(), TRAINING).output).forEach((v, i) => expect(v).toBeCloseTo(2 * given[i]! + shared[i]!, 5));
      const deep = new HierarchicalMoE({ hiddenSize: D, numExperts: [2, 2], sharedExperts: 1, expertHiddenSize: F });
      expect([...deep.namedParameters().keys()].filter((path) => path.startsWith("shared"))).toEqual([
        "shared.inputWeight",
        "shared.outputWeight",
      ]);
    });
    it("draw dropout by row: the batch in parts loses the same elements", () => {
      const { moe, x: rows } = build(flat("top-k", { rows: 12, dropout: 0.5, shared: 1 }));
      const whole = list(moe.forward(rows, TRAINING).output);
      const parts = [
        [0, 5],
        [5, 12],
      ].flatMap(([from, to]) => list(moe.forward(sg.slice(rows, 0, from!, to!), { ...TRAINING, firstRow: from! }).output));
      parts.forEach((v, i) => expect(v).toBeCloseTo(whole[i]!, 5));
    });
  });
}
