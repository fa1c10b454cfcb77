/** What every gate gives: the experts of each row, their weights, and the losses that keep experts in balance. */

import type { Module, RunContext } from "../nn/module.js";
import type { Tensor } from "../tensor/tensor.js";

/** What a gate gives for N rows, K experts each. */
export interface GateOutput {
  /** (N, K) float32: weights of the chosen experts. */
  gates_NK: Tensor;
  /** (N, K) int32: the chosen experts, best first; -1 where an assignment was dropped. */
  experts_NK: Tensor;
  /** (E) Σ over rows of the gate values (paper, eq. 6). */
  importance_E: Tensor;
  /** (E) the smooth estimate of the number of rows while training (paper, eq. 10), the counted rows otherwise. */
  load_E: Tensor;
  /** Scalar: the weighted balance losses, to be added to the task's loss. */
  auxLoss: Tensor;
}

/** Chooses experts for rows. */
export interface Gate extends Module {
  readonly numExperts: number;
  /** The experts of each row of x_ND (N, D), their weights, and the balance losses. */
  forward(x_ND: Tensor, context: RunContext): GateOutput;
}
