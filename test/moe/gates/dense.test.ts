/** The measure itself: gradients of the dense loop (dense-layer.ts) are those of finite differences of the loop, for every gate, two levels, and every kind of expert. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BACKENDS, useBackend } from "../../use-backend.js";
import { differentiate } from "../scalar.js";
import { build, hierarchies, layers, oracle, type Case } from "./harness.js";
import { fewest, GATE_TYPES, RANDOM } from "./specs.js";

/** Elements looked at of each tensor. */
const SAMPLE = 5;
const H = 1e-5;

function isDerivative(given: Case): void {
  const c = { ...given, rows: Math.min(given.rows, 4), D: Math.min(given.D, 3), F: given.F.map((f) => Math.min(f, 3)) };
  const { moe, x } = build(c);
  const { result, objective, flat } = oracle(c, moe, x);
  fc.pre(result.margin > 1e-3);
  differentiate(objective);
  for (const [name, p] of [["x", x] as const, ...moe.namedParameters()]) {
    const data = p.dataSync();
    for (let i = 0; i < p.size; i += Math.ceil(p.size / SAMPLE)) {
      const at = (h: number): number => {
        p.backend.write(
          p.buffer,
          data.map((v, j) => (j === i ? v + h : v)),
        );
        return oracle(c, moe, x).objective.value;
      };
      const slope = (at(H) - at(-H)) / (2 * H);
      const off = Math.abs(flat.get(name)![i]!.gradient - slope);
      expect(off, `${name}[${i}]`).toBeLessThan(1e-6 * Math.max(1, Math.abs(slope)));
    }
    p.backend.write(p.buffer, data);
  }
}

const check = (arbitrary: fc.Arbitrary<Case>, numRuns: number): void =>
  fc.assert(
    fc.property(arbitrary, (c) => isDerivative(c)),
    { seed: 5, numRuns },
  );

describe("the dense loop has the gradients of finite differences", () => {
  useBackend(BACKENDS[0].make);
  it.each(GATE_TYPES)("%s, 4 random layers", (type) => check(layers(RANDOM[type], fewest(type)), 4));
  it.each(GATE_TYPES)("%s on two levels, 2 random layers", (type) =>
    check(hierarchies(RANDOM[type], RANDOM[type], [fewest(type), fewest(type)]), 2),
  );
  it.each(["relu", "gelu", "swiglu"] as const)(
    "%s experts of two hidden layers with biases, dropout and a shared expert",
    (activation) =>
      check(
        layers(RANDOM["top-k"]).map((c) => ({
          ...c,
          F: [2, 3],
          activation,
          bias: true,
          dropout: 0.3,
          shared: 1,
          training: true,
        })),
        2,
      ),
  );
});
