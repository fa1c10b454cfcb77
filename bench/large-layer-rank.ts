/** One rank of the benchmark `large-layer`: its part of the experts, its part of the rows. */

import type { Communicator } from "#sparsegate/comm/index.js";
import { MoE } from "#sparsegate/moe/layer.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import {
  add,
  affine,
  backward,
  keep,
  matmul,
  mean,
  randomNormal,
  scope,
  square,
  sub,
  type Tensor,
} from "#sparsegate/tensor/index.js";
import { GradientSums, sumOverRanks } from "#sparsegate/train/ranks.js";
import { useCpu } from "./harness.js";

export interface Options {
  numExperts: number;
  hiddenSize: number;
  expertHiddenSize: number;
  rows: number;
  learningRate: number;
  steps: number;
}

export interface RankSaw {
  /** Of the whole batch, by step. */
  losses: number[];
  seconds: number[];
  /** Of this rank alone, and of every rank. */
  own: number;
  shared: number;
  peakBytes: number;
}

/** Learns to do to rows what one random matrix does: few steps are enough to see whether it learns. */
export default function main(
  comm: Communicator,
  { numExperts, hiddenSize, expertHiddenSize, rows, learningRate, steps }: Options,
): RankSaw {
  const backend = useCpu();
  const moe = new MoE({ hiddenSize, numExperts, expertHiddenSize, topK: 4, comm });
  const optimizer = new Adam(moe.namedParameters(), { factored: (name) => name.includes("experts.") });
  // Before the first step, so that it does not lie behind the gradients: see makeOptimizer.
  optimizer.prepare();
  const sizeOf = (counts: (p: Tensor) => boolean): number =>
    moe.parameters().reduce((sum, p) => sum + (counts(p) ? p.size : 0), 0);
  const map = keep(affine(randomNormal([hiddenSize, hiddenSize], { seed: 1 }), 1 / Math.sqrt(hiddenSize)));
  const own = rows / comm.size;
  const saw: RankSaw = {
    losses: [],
    seconds: [],
    own: sizeOf((p) => p.shard !== undefined),
    shared: sizeOf((p) => p.shard === undefined),
    peakBytes: 0,
  };
  for (let step = 0; step < steps; step++) {
    comm.barrier();
    const begun = performance.now();
    scope(() => {
      // Every rank has rows of its own.
      const x = randomNormal([own, hiddenSize], { seed: 100 + step * comm.size + comm.rank });
      const { output, auxLoss } = moe.forward(x, { training: true, seed: 0, step, firstRow: step * rows + comm.rank * own });
      const loss = mean(square(sub(output, matmul(x, map))));
      const sums = new GradientSums(comm);
      backward(add(affine(loss, 1 / comm.size), auxLoss), { onComplete: (p) => sums.add(p) });
      sums.finish();
      optimizer.step(learningRate);
      optimizer.zeroGrad();
      saw.losses.push(sumOverRanks(comm, loss.item() / comm.size));
    });
    saw.seconds.push((performance.now() - begun) / 1000);
  }
  saw.peakBytes = backend.memory().peak;
  backend.dispose();
  return saw;
}
