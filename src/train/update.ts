/** The second half of a training step, the same for every task: the way back, the sum of gradients over ranks, clipping, the update. */

import type { Communicator } from "../comm/communicator.js";
import { NonFiniteError } from "../core/errors.js";
import type { Module } from "../nn/module.js";
import { clipScale } from "../optim/clip.js";
import type { Optimizer } from "../optim/optimizers.js";
import { backward } from "../tensor/tape.js";
import type { Tensor } from "../tensor/tensor.js";
import { GradientSums, sumOverRanks } from "./ranks.js";

/**
 * Moves the parameters by the gradient of a loss.
 * @param loss scalar: this rank's share of the loss of all
 * @returns the gradient's global norm, before clipping
 * @throws NonFiniteError when it is not finite; parameters are then as they were, and gradients gone
 */
export function update(
  model: Module,
  optimizer: Optimizer,
  loss: Tensor,
  { learningRate, maxGradNorm, comm }: { learningRate: number; maxGradNorm: number | undefined; comm?: Communicator | undefined },
): number {
  try {
    const sums = comm && new GradientSums(comm);
    backward(loss, sums && { onComplete: (p) => sums.add(p) });
    sums?.finish();
    const { norm, scale } = clipScale(model.parameters(), maxGradNorm, comm && ((squares) => sumOverRanks(comm, squares)));
    optimizer.step(learningRate, scale);
    return norm;
  } catch (error) {
    if (error instanceof NonFiniteError) error.message = `Step ${optimizer.steps + 1}: ${error.message}`;
    throw error;
  } finally {
    optimizer.zeroGrad();
  }
}
