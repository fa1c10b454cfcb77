/**
 * Expert capacity: how many rows an expert takes at most (GShard, Lepikhin et al. 2020; Switch, Fedus et al. 2021). Dropless where no factor is given.
 * What is dropped contributes zero; the residual connection around the layer carries the row.
 */

import { limitPerExpert } from "../tensor/ops/gating.js";
import type { Tensor } from "../tensor/tensor.js";

/** How many rows an expert takes at most. */
export interface CapacityOptions {
  /** An expert takes at most ⌈capacityFactor · assignments / experts⌉ rows in training. Left out: no row is dropped. */
  capacityFactor?: number;
  /** The same in evaluation. Default: capacityFactor. */
  evalCapacityFactor?: number;
  /** Who stays when there are more: first come (all first choices before all second ones), or the highest gate values. Default arrival, as in GShard. */
  dropPolicy?: "arrival" | "probability";
}

/** The options of `CapacityOptions`, by name. */
export const CAPACITY_OPTIONS = ["capacityFactor", "evalCapacityFactor", "dropPolicy"] as const satisfies readonly (keyof CapacityOptions)[];

/** ⌈factor · assignments / experts⌉, at least 1, so that few rows among many experts are not all dropped. What rounding adds is no row: ⌈1.1 · 50⌉ is 55. */
export function capacityOf(factor: number, assignments: number, numExperts: number): number {
  return Math.max(1, Math.ceil(((factor * assignments) / numExperts) * (1 - 4 * Number.EPSILON)));
}

/**
 * The assignments that fit.
 * @param experts (N, K), of numExperts in all; -1 is left out, and counts among the N·K assignments that a share is made of. Lists, whose experts have picked
 * their rows, pass as they are.
 */
export function limitToCapacity(experts: Tensor, gates: Tensor, numExperts: number, { capacityFactor, evalCapacityFactor, dropPolicy }: CapacityOptions, training: boolean): Tensor {
  const factor = training ? capacityFactor : (evalCapacityFactor ?? capacityFactor);
  if (factor === undefined || experts.rank !== 2) return experts;
  return limitPerExpert(experts, numExperts, capacityOf(factor, experts.size, numExperts), dropPolicy === "probability" ? gates : undefined);
}
