/** One seed gives one result under every gate, flat and on two levels: again, on another number of threads, and with the batch in parts. */

import { describe, expect, it } from "vitest";
import type { Backend } from "#sparsegate/backend/backend.js";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import * as sg from "#sparsegate/tensor/index.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { flat } from "./claims.js";
import { build, COMMON, contextOf, usedBy, type Case } from "./harness.js";
import { GATE_TYPES, PICKS, plain, type GateType } from "./specs.js";

const deep = (type: GateType, change: Partial<Case> = {}): Case => ({
  ...COMMON,
  rows: 20,
  D: 3,
  E: [4, 5],
  ...change,
  gate: plain(type, 2, 4),
  secondary: plain(type, 2, 5),
});

/** Large enough for every kernel to be cut among threads. Gates weigh little, so that no row stands at an edge by rounding. */
const LARGE = { rows: 700, D: 32, F: [48], dropout: 0.1, shared: 1, gateScale: 0.3 } as const;
const LAYERS: [string, Case][] = GATE_TYPES.flatMap((type): [string, Case][] => {
  const options = PICKS.has(type) ? {} : { capacityFactor: 0.8 };
  return [
    [type, flat(type, { ...LARGE, E: 16 }, options)],
    [`${type} on two levels`, { ...deep(type, LARGE), E: [4, 5] }],
  ];
});

/** Everything that a step gives, by name. */
function step(backend: Backend, c: Case): Map<string, number[]> {
  const before = sg.setDefaultBackend(backend);
  try {
    return sg.scope(() => {
      const { moe, x } = build(c);
      const out = moe.forward(x, contextOf(c));
      sg.backward(sg.add(sg.mean(sg.square(out.output)), out.auxLoss));
      const found = new Map(
        Object.entries({
          experts: out.experts,
          output: out.output,
          gates: out.gates,
          importance: out.importance,
          load: out.load,
          auxLoss: out.auxLoss,
        }).map(([key, t]) => [key, Array.from(t.dataSync())]),
      );
      for (const [path, p] of [["x", x] as const, ...moe.namedParameters()])
        found.set(`gradient of ${path}`, [...denseGradient(p)]);
      for (const [path, t] of moe.namedState()) found.set(`state ${path}`, Array.from(t.dataSync()));
      for (const p of [x, ...moe.parameters()]) p.zeroGrad();
      x.dispose();
      moe.dispose();
      return found;
    });
  } finally {
    sg.setDefaultBackend(before);
  }
}

describe("one seed gives one result under every gate", () => {
  it.each(LAYERS)("%s: bit for bit when repeated, and up to rounding on 1 and 2 threads with the same experts", (_, c) => {
    const [one, two] = [new CpuBackend({ threads: 1 }), new CpuBackend({ threads: 2 })];
    try {
      const [first, again, other, otherAgain] = [step(one, c), step(one, c), step(two, c), step(two, c)];
      for (const [name, values] of first) expect(again.get(name), name).toEqual(values);
      for (const [name, values] of other) expect(otherAgain.get(name), name).toEqual(values);
      expect(other.get("experts")).toEqual(first.get("experts"));
      for (const [name, values] of first) {
        const scale = values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
        const worst = other.get(name)!.reduce((most, v, i) => Math.max(most, Math.abs(v - values[i]!)), 0);
        expect(worst, name).toBeLessThanOrEqual(1e-5 * scale);
      }
    } finally {
      one.dispose();
      two.dispose();
    }
  });
});

for (const { name, make } of BACKENDS) {
  describe(`a batch in parts on the ${name} backend`, () => {
    useBackend(make);
    const alone = GATE_TYPES.filter((type) => !PICKS.has(type));
    const cases = alone.flatMap((type): [string, Case][] => [
      [type, flat(type, { rows: 20, E: 7, dropout: 0.3 })],
      [`${type} on two levels`, deep(type, { dropout: 0.3 })],
    ]);
    it.each(cases)("makes the choices and the output of the whole: %s", (_, c) => {
      // What a sigmoid gate has seen moves its biases: each part starts from the same ones.
      const run = (from: number, to: number) => {
        const { moe, x } = build(c);
        const out = moe.forward(sg.slice(x, 0, from, to), { ...contextOf(c), firstRow: from });
        return { used: usedBy(out, to - from).map((of) => of.map((a) => a.expert)), output: Array.from(out.output.dataSync()) };
      };
      const whole = run(0, 20);
      const parts = [run(0, 1), run(1, 8), run(8, 20)];
      expect(parts.flatMap((p) => p.used)).toEqual(whole.used);
      parts.flatMap((p) => p.output).forEach((v, i) => expect(v).toBeCloseTo(whole.output[i]!, 5));
    });
  });
}
