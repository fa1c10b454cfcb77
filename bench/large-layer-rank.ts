/** One rank of the benchmark `large-layer`: its part of the experts, its part of the rows. */

import type { Communicator } from "#sparsegate/comm/index.js";
import { MoE } from "#sparsegate/moe/layer.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import { add, affine, backward, keep, matmul, mean, randomNormal, scope, square, sub } from "#sparsegate/tensor/index.js";
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
  parameters: number;
  peakBytes: number;
}

/** Learns to do to rows what one random matrix does: few steps are enough to see whether it learns. */
export default function main(
  comm: Communicator,
  { numExperts, hiddenSize, expertHiddenSize, rows, learningRate, steps }: Options,
): RankSaw {
  const backend = useCpu();
  const moe = new MoE({ hiddenSize, numExperts, expertHiddenSize, topK: 4, comm });
  const parameters = moe.namedParameters();
  const optimizer = new Adam(parameters, { factored: (name) => name.includes("experts.") });
  optimizer.prepare();
  const map = keep(affine(randomNormal([hiddenSize, hiddenSize], { seed: 1 }), 1 / Math.sqrt(hiddenSize)));
  const own = rows / comm.size;
  const saw: RankSaw = { losses: [], seconds: [], parameters: moe.numParameters(), peakBytes: 0 };
  for (let step = 0; step < steps; step++) {
    comm.barrier();
    const begun = performance.now();
    scope(() => {
      // Every rank its own rows of the batch, the same whatever the number of ranks.
      const x = randomNormal([own, hiddenSize], { seed: 100 + step * comm.size + comm.rank });
      const { output, auxLoss } = moe.forward(x, { training: true, seed: 0, step, firstRow: step * rows + comm.rank * own });
      const loss = mean(square(sub(output, matmul(x, map))));
      backward(add(affine(loss, 1 / comm.size), auxLoss));
      for (const p of moe.parameters()) {
        if (p.shard || !p.grad) continue;
        const sum = Float32Array.from(p.grad.value.dataSync());
        comm.allReduce(sum);
        p.backend.write(p.grad.value.buffer, sum);
      }
      optimizer.step(learningRate);
      optimizer.zeroGrad();
      const all = Float64Array.of(loss.item() / comm.size);
      comm.allReduce(all);
      saw.losses.push(all[0]!);
    });
    saw.seconds.push((performance.now() - begun) / 1000);
  }
  saw.peakBytes = backend.memory().peak;
  backend.dispose();
  return saw;
}
