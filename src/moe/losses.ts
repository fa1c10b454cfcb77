/** Losses that keep experts in balance and routers tame. Each is a scalar of its own layer: losses of several layers are added, never their loads. */

import { add, affine, div, maximum, mul, square } from "../tensor/ops/elementwise.js";
import { cvSquared, groupedSum, type Groups } from "../tensor/ops/gating.js";
import { logSumExp, mean, sum } from "../tensor/ops/reduce.js";
import { bincount } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import { full, type Tensor } from "../tensor/tensor.js";

/** a + b, where either may be missing. */
export function addLosses(a: Tensor | undefined, b: Tensor): Tensor {
  return a ? add(a, b) : b;
}

/**
 * w_importance · CV(Importance)² + w_load · CV(Load)² (Shazeer et al. 2017, section 4 and App. A), CV by the population's variance.
 * A load that was counted has no gradient, and its loss is left out: pass undefined.
 */
export function balanceLoss(importance: Tensor, load: Tensor | undefined, { importanceWeight, loadWeight }: { importanceWeight: number; loadWeight: number }): Tensor {
  const ofImportance = affine(cvSquared(importance), importanceWeight);
  return load ? add(ofImportance, affine(cvSquared(load), loadWeight)) : ofImportance;
}

/** mean over rows of logsumexp(logits)², on logits and never on probabilities (ST-MoE, Zoph et al. 2022). Rows of no group count in the mean with 0. */
export function zLoss(logits: Tensor, groups?: Groups): Tensor {
  const squares = square(logSumExp(logits));
  if (!groups) return mean(squares);
  return affine(sum(groupedSum(reshape(squares, [-1, 1]), groups)), 1 / Math.max(squares.size, 1));
}

/**
 * n · Σ_e f_e · P_e, with f_e the share of rows whose first choice is e and P_e the mean router probability of e (Switch, Fedus et al. 2021, eq. 4-6; GShard's
 * mean_e(f_e·P_e)·n² is the same sum). 1 in perfect balance. The gradient flows through P alone.
 *
 * @param probabilities (N, E); @param first int32 (N): first choices, or numbered through all groups (G·E) for rows in groups
 * For rows in groups: the mean over groups of each group's loss, a group without rows counting 0.
 */
export function switchLoss(probabilities: Tensor, first: Tensor, groups?: Groups): Tensor {
  const [rows, numExperts] = probabilities.shape as [number, number];
  const ones = full([rows], 1, "float32", probabilities.backend);
  if (!groups) {
    const share = affine(bincount(ones, first, numExperts), 1 / Math.max(rows, 1));
    return affine(sum(mul(share, mean(probabilities, 0))), numExperts);
  }
  const G = groups.count;
  const counts = reshape(bincount(ones, first, G * numExperts), [G, numExperts]);
  const rowsOf = maximum(sum(counts, 1), full([G], 1, "float32", probabilities.backend));
  const products = sum(mul(counts, groupedSum(probabilities, groups)), 1);
  return affine(sum(div(products, square(rowsOf))), numExperts / G);
}
