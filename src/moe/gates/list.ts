/** Lists of (row, expert): what gates give whose rows differ in their number of experts. */

import { div, maximum } from "../../tensor/ops/elementwise.js";
import { addIndices, type ElementList } from "../../tensor/ops/gating.js";
import { gatherLast } from "../../tensor/ops/reduce.js";
import { bincount } from "../../tensor/ops/rows.js";
import { reshape } from "../../tensor/ops/shape.js";
import type { Tensor } from "../../tensor/tensor.js";

/** values[index] of a vector (M), 0 for -1. */
export function pick(values: Tensor, index: Tensor): Tensor {
  return reshape(gatherLast(reshape(values, [1, -1]), reshape(index, [1, -1])), [-1]);
}

/** matrix (N, E) at the elements of a list: (M), 0 in the unused tail. */
export function gatesAt(matrix: Tensor, { experts, rows }: ElementList): Tensor {
  return pick(reshape(matrix, [-1]), addIndices(experts, rows, matrix.shape[1]!));
}

/** Gate values (M) of a list, each over the sum of its row's: Σ_i G(x)_i = 1 (App. F). */
export function renormalise(gates: Tensor, { rows }: ElementList, numRows: number): Tensor {
  // In the unused tail both are 0; the bound keeps it a number.
  return div(gates, maximum(pick(bincount(gates, rows, numRows), rows), 1e-30));
}
