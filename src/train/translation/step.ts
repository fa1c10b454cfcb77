/** One training step of a translation model: forward, backward, clipping, update. */

import { NonFiniteError } from "../../core/errors.js";
import { moeStatistics, processedLoad, type MoEStatistics } from "../../moe/statistics.js";
import type { TranslationModel } from "../../models/translation-model.js";
import type { RunContext } from "../../nn/module.js";
import { clipScale } from "../../optim/clip.js";
import type { Optimizer } from "../../optim/optimizers.js";
import { add } from "../../tensor/ops/elementwise.js";
import { scope } from "../../tensor/scope.js";
import { backward } from "../../tensor/tape.js";
import type { PairBatch } from "../../text/pair-batches.js";

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

/** @throws NonFiniteError when the loss or a gradient is not finite, naming the layer; parameters are then as they were before the step */
export function translationStep(
  model: TranslationModel,
  optimizer: Optimizer,
  batch: PairBatch,
  { seed, learningRate, maxGradNorm, statistics }: { seed: number; learningRate: number; maxGradNorm: number | undefined; statistics: boolean },
): TranslationStep {
  return scope(() => {
    const context: RunContext = { training: true, seed, step: optimizer.steps, firstRow: batch.firstRow };
    const out = model.forward(batch, context);
    const [loss, auxLoss] = [out.crossEntropy.item(), out.auxLoss?.item() ?? 0];
    const where = `Step ${optimizer.steps + 1}`;
    if (!Number.isFinite(loss + auxLoss)) throw model.explainNonFinite(where, loss + auxLoss, batch, context);
    const result: TranslationStep = { loss, auxLoss, gradNorm: 0, tokens: batch.tokens, load: {}, statistics: {} };
    try {
      backward(out.auxLoss ? add(out.loss, out.auxLoss) : out.loss);
      const { norm, scale } = clipScale(model.parameters(), maxGradNorm);
      result.gradNorm = norm;
      optimizer.step(learningRate, scale);
    } catch (error) {
      if (error instanceof NonFiniteError) error.message = `${where}: ${error.message}`;
      throw error;
    } finally {
      optimizer.zeroGrad();
    }
    for (const part of PARTS) {
      const moe = out[part]?.moe;
      if (!moe) continue;
      if (statistics) result.statistics[part] = moeStatistics(moe);
      result.load[part] = result.statistics[part]?.load ?? processedLoad(moe);
    }
    return result;
  });
}
