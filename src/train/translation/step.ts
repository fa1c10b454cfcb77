/** One training step of a translation model: forward, backward, clipping, update. */

import type { Communicator } from "../../comm/communicator.js";
import { moeStatistics, processedLoad, type MoEStatistics } from "../../moe/statistics.js";
import type { TranslationModel } from "../../models/translation-model.js";
import type { RunContext } from "../../nn/module.js";
import type { Optimizer } from "../../optim/optimizers.js";
import { add, affine } from "../../tensor/ops/elementwise.js";
import { scope } from "../../tensor/scope.js";
import type { PairBatch } from "../../text/pair-batches.js";
import { onOtherRank, ownPairs, sumOverRanks } from "../ranks.js";
import { update } from "../update.js";

/** The parts of a translation model that have a mixture. */
export const PARTS = ["encoder", "decoder"] as const;
export type Part = (typeof PARTS)[number];

export interface TranslationStep {
  /** Mean cross-entropy, nats per target token, without label smoothing. */
  loss: number;
  auxLoss: number;
  gradNorm: number;
  /** Target tokens. */
  tokens: number;
  /** Rows that each expert of each mixture computed. */
  load: { [part in Part]?: number[] };
  /** What the mixtures did, where the step was asked for it. */
  statistics: { [part in Part]?: MoEStatistics };
}

/**
 * @param batch of all ranks together
 * @throws NonFiniteError when the loss or a gradient is not finite, naming the layer; parameters are then as they were before the step; what modules keep besides, a sigmoid gate's biases, may have moved
 */
export function translationStep(
  model: TranslationModel,
  optimizer: Optimizer,
  batch: PairBatch,
  { seed, learningRate, maxGradNorm, statistics, comm }: { seed: number; learningRate: number; maxGradNorm: number | undefined; statistics: boolean; comm?: Communicator | undefined },
): TranslationStep {
  return scope(() => {
    const context: RunContext = { training: true, seed, step: optimizer.steps, firstRow: batch.firstRow };
    const own = comm ? ownPairs(batch, comm) : batch;
    const out = model.forward(own, context);
    // Each rank's mean counts by its targets.
    const share = own.tokens / batch.tokens;
    const loss = comm ? sumOverRanks(comm, out.crossEntropy.item() * share) : out.crossEntropy.item();
    const auxLoss = out.auxLoss?.item() ?? 0;
    const where = `Step ${optimizer.steps + 1}`;
    if (!Number.isFinite(loss + auxLoss)) throw onOtherRank(model, comm, where) ?? model.explainNonFinite(where, loss + auxLoss, own, context);
    const mean = comm ? affine(out.loss, share) : out.loss;
    const gradNorm = update(model, optimizer, out.auxLoss ? add(mean, out.auxLoss) : mean, { learningRate, maxGradNorm, comm });
    const result: TranslationStep = { loss, auxLoss, gradNorm, tokens: batch.tokens, load: {}, statistics: {} };
    for (const part of PARTS) {
      const moe = out[part]?.moe;
      if (!moe) continue;
      if (statistics) result.statistics[part] = moeStatistics(moe);
      result.load[part] = result.statistics[part]?.load ?? processedLoad(moe);
    }
    return result;
  });
}
