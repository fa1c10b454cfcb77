/** Random and plain descriptions of every gate, for layers of a given number of experts (or groups). */

import fc from "fast-check";
import type { Spec } from "./dense-gates.js";

export type GateType = Spec["type"];

const zLoss = { zLossWeight: fc.constantFrom(0, 0.1) };

/** Capacity, often so small that most is dropped, in training, in evaluation, or both. */
const capacity = fc.oneof(
  fc.constant({}),
  fc.record({
    capacityFactor: fc.constantFrom(0.2, 0.5, 1, 1.3, 20),
    dropPolicy: fc.constantFrom("arrival" as const, "probability" as const),
  }),
  fc.record({ evalCapacityFactor: fc.constantFrom(0.2, 1) }),
  fc.record({
    capacityFactor: fc.constantFrom(0.5, 1),
    evalCapacityFactor: fc.constantFrom(0.2, 2),
    dropPolicy: fc.constantFrom("arrival" as const, "probability" as const),
  }),
);

const withCapacity = (spec: fc.Arbitrary<Spec>): fc.Arbitrary<Spec> => fc.tuple(spec, capacity).map(([a, b]) => ({ ...a, ...b }));
const upTo = (numExperts: number) => fc.integer({ min: 1, max: numExperts });
/** Experts a row on average, not always whole: k·rows/experts seldom is either. */
const share = (numExperts: number) => fc.constantFrom(0.5, 1, 1.5, 2, 3).map((k) => Math.min(k, numExperts));

export const RANDOM: Record<GateType, (numExperts: number) => fc.Arbitrary<Spec>> = {
  softmax: (E) => withCapacity(fc.record({ type: fc.constant("softmax" as const), topK: fc.constant(E), ...zLoss })),
  "noisy-top-k": (E) => withCapacity(fc.record({ type: fc.constant("noisy-top-k" as const), topK: upTo(E), ...zLoss })),
  "strictly-balanced": (E) =>
    fc.record({
      type: fc.constant("strictly-balanced" as const),
      topK: share(E),
      thresholdWeight: fc.constantFrom(0, 0.5, 1),
      ...zLoss,
    }),
  switch: () =>
    withCapacity(
      fc.record({
        type: fc.constant("switch" as const),
        topK: fc.constant(1),
        jitter: fc.constantFrom(0, 0.01, 0.5),
        auxLossWeight: fc.constantFrom(0, 0.01, 1),
        ...zLoss,
      }),
    ),
  gshard: () =>
    withCapacity(
      fc.record({
        type: fc.constant("gshard" as const),
        topK: fc.constant(2),
        auxLossWeight: fc.constantFrom(0, 0.01, 1),
        secondPolicy: fc.constantFrom("all" as const, "none" as const, "threshold" as const, "random" as const),
        evalSecondPolicy: fc.constantFrom("all" as const, "none" as const, "threshold" as const),
        secondThreshold: fc.constantFrom(0.2, 0.45),
        evalSecondThreshold: fc.constantFrom(0.1, 0.4),
        ...zLoss,
      }),
    ),
  "expert-choice": (E) => fc.record({ type: fc.constant("expert-choice" as const), topK: share(E), ...zLoss }),
  "top-k": (E) =>
    withCapacity(
      fc.record({ type: fc.constant("top-k" as const), topK: upTo(E), auxLossWeight: fc.constantFrom(0, 0.02, 1), ...zLoss }),
    ),
  sigmoid: (E) =>
    withCapacity(
      fc.record({
        type: fc.constant("sigmoid" as const),
        topK: upTo(E),
        scale: fc.constantFrom(1, 2.5),
        biasUpdateRate: fc.constantFrom(0, 0.01),
        ...zLoss,
      }),
    ),
};

/** One gate of each kind with all of its losses, for k experts a row (one for switch, two for gshard). */
export const PLAIN: Record<GateType, (k: number) => Spec> = {
  softmax: (k) => ({ type: "softmax", topK: k, zLossWeight: 0.1 }),
  "noisy-top-k": (k) => ({ type: "noisy-top-k", topK: k, zLossWeight: 0.1 }),
  "strictly-balanced": (k) => ({ type: "strictly-balanced", topK: k, thresholdWeight: 1, zLossWeight: 0.1 }),
  switch: () => ({ type: "switch", topK: 1, jitter: 0.1, auxLossWeight: 1, zLossWeight: 0.1 }),
  gshard: () => ({
    type: "gshard",
    topK: 2,
    auxLossWeight: 1,
    secondPolicy: "random",
    evalSecondPolicy: "threshold",
    secondThreshold: 0.45,
    evalSecondThreshold: 0.3,
    zLossWeight: 0.1,
  }),
  "expert-choice": (k) => ({ type: "expert-choice", topK: k, zLossWeight: 0.1 }),
  "top-k": (k) => ({ type: "top-k", topK: k, auxLossWeight: 1, zLossWeight: 0.1 }),
  sigmoid: (k) => ({ type: "sigmoid", topK: k, scale: 2.5, biasUpdateRate: 0.01, zLossWeight: 0.1 }),
};

export const GATE_TYPES = Object.keys(PLAIN) as GateType[];
/** Fewest experts of a gate. */
export const fewest = (type: GateType): number => (type === "gshard" ? 2 : 1);
/** A plain gate for k experts a row of E: all of them for softmax. */
export const plain = (type: GateType, k: number, E: number): Spec => PLAIN[type](type === "softmax" ? E : Math.min(k, E));
/** Gates whose experts pick rows. */
export const PICKS: ReadonlySet<GateType> = new Set(["strictly-balanced", "expert-choice"]);
