/** Strictly balanced gating (Shazeer et al. 2017, App. F): a batchwise mask while training, learned thresholds at inference. */

import { checkNumber } from "../../core/checks.js";
import { fanInUniform, parameter } from "../../nn/module.js";
import { add, affine, exp, neg, relu, sub } from "../../tensor/ops/elementwise.js";
import { aboveThreshold, columnTopK, gatherIndices, groupedSum, type ElementList } from "../../tensor/ops/gating.js";
import { groupedBias } from "../../tensor/ops/products.js";
import { softmax, sum } from "../../tensor/ops/reduce.js";
import { reshape } from "../../tensor/ops/shape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { RouterGate, type Choice, type GateContext, type GateOptions, type GroupedRows } from "./gate.js";
import { numberThrough } from "./groups.js";
import { gatesAt, pick, renormalise } from "./list.js";

/** Options of `StrictlyBalancedGate`; its experts are never over-full, so that it has no capacity. */
export interface StrictlyBalancedOptions extends Omit<GateOptions, "capacityFactor" | "evalCapacityFactor" | "dropPolicy"> {
  /** k: each expert gets m = ⌊k·rows/numExperts⌋ rows (at least one) of a training batch. */
  topK: number;
  /** Weight of L_batchwise, by which the thresholds learn. Default 1. */
  thresholdWeight?: number;
}

/**
 * G(x)_i = G_σ(x)_i·M_i / Σ_j G_σ(x)_j·M_j with G_σ = softmax(x·W_g). While training M holds, for each expert, its m largest values over the batch; at
 * inference M_i = 1 where G_σ(x)_i > T_i. T learns by L_batchwise = Σ_j Σ_i (M_threshold − M_batchwise)·(X_ji − T_i), whose gradient reaches W_g too. A row
 * that no expert picks passes zero. Loads are equal from the first step, so that W_g need not start at zero, where all rows would tie.
 *
 * Two deviations: the loss is the mean over rows, so that its weight does not depend on the batch; and log T is what is learned, so that a step of the
 * optimiser is a share of T (near 1/numExperts), whatever the number of experts.
 */
export class StrictlyBalancedGate extends RouterGate {
  readonly topK: number;
  readonly thresholdWeight: number;
  /** log T (E), or (G, E) */
  readonly logThreshold: Tensor;

  constructor(options: StrictlyBalancedOptions) {
    const where = "StrictlyBalancedGate";
    super(where, options, { name: "gate", init: fanInUniform(options.hiddenSize), importanceWeight: 0, loadWeight: 0 });
    const { numExperts, name = "gate" } = options;
    this.topK = checkNumber(where, "topK", options.topK, { min: 1e-6, max: numExperts, hint: `A row cannot use more experts than there are (numExperts ${numExperts}).` });
    this.thresholdWeight = checkNumber(where, "thresholdWeight", options.thresholdWeight ?? 1, { min: 0 });
    const shape = this.numGroups === undefined ? [numExperts] : [this.numGroups, numExperts];
    this.logThreshold = parameter(`${name}.logThreshold`, shape, { kind: "constant", value: -Math.log(numExperts) });
  }

  protected choose(logits: Tensor, _x: Tensor, context: GateContext, groups: GroupedRows | undefined): Choice {
    const probabilities = softmax(logits);
    const rows = probabilities.shape[0]!;
    const threshold = exp(context.ranks ? context.ranks.once(this.logThreshold) : this.logThreshold);
    const list = context.training ? columnTopK(probabilities, this.topK, groups) : aboveThreshold(probabilities, threshold, groups);
    const chosen = gatesAt(probabilities, list);
    const choice: Choice = { ...list, gates: renormalise(chosen, list, rows), probabilities };
    if (!context.training || this.thresholdWeight === 0) return choice;
    return { ...choice, loss: affine(batchwiseLoss(probabilities, threshold, chosen, list, groups), this.thresholdWeight / Math.max(rows, 1)) };
  }
}

/** Σ (M_threshold − M_batchwise)·(X − T). Where the threshold's mask is 1, X − T is positive: that part is Σ relu(X − T), and no mask is needed. */
function batchwiseLoss(x: Tensor, threshold: Tensor, chosen: Tensor, list: ElementList, groups: GroupedRows | undefined): Tensor {
  const numExperts = x.shape[1]!;
  const above = groups ? sum(groupedSum(relu(groupedBias(x, neg(threshold), groups.offsets)), groups)) : sum(relu(sub(x, threshold)));
  const experts = groups ? numberThrough(list.experts, numExperts, { ...groups, groupOf: gatherIndices(groups.groupOf, list.rows) }) : list.experts;
  return add(above, sub(sum(pick(reshape(threshold, [-1]), experts)), sum(chosen)));
}
