/** One training step: forward, backward, clipping, update. Nothing of it stays in memory but parameters, optimiser state and the carried LSTM state. */

import type { Communicator } from "../comm/communicator.js";
import { moeStatistics, processedLoad, type MoEStatistics } from "../moe/statistics.js";
import type { LanguageModel } from "../models/language-model.js";
import { logUniformCandidates } from "../nn/candidates.js";
import type { RunContext } from "../nn/module.js";
import type { Optimizer } from "../optim/optimizers.js";
import type { LstmState } from "../tensor/ops/lstm.js";
import { add, affine } from "../tensor/ops/elementwise.js";
import { scope } from "../tensor/scope.js";
import type { Batch } from "../text/batches.js";
import { batchTensors, carryStates } from "./evaluate.js";
import { onOtherRank, ownLanes, rowIdsOf, sumOverRanks } from "./ranks.js";
import { update } from "./update.js";

export interface StepResult {
  /** Mean cross-entropy, nats per token. */
  loss: number;
  auxLoss: number;
  gradNorm: number;
  tokens: number;
  /** Rows that each expert computed. */
  load?: number[];
  /** What the mixture did with its rows, where the step was asked for it. */
  statistics?: MoEStatistics;
}

export interface StepOptions {
  seed: number;
  learningRate: number;
  maxGradNorm: number | undefined;
  /** Classes of the sampled softmax; 0 for the exact one. */
  sampledSoftmax: number;
  /** Whether the mixture's statistics are read: for now and then. */
  statistics?: boolean;
}

/** The model in training: what changes from step to step. */
export interface TrainingState {
  model: LanguageModel;
  optimizer: Optimizer;
  /** Of this rank's lanes. */
  states: LstmState[] | undefined;
  /** Where there are several ranks. */
  comm?: Communicator | undefined;
}

/**
 * @param batch of all ranks together
 * @throws NonFiniteError when the loss or a gradient is not finite, naming the layer; parameters are then as they were before the step; what modules keep besides, a sigmoid gate's biases, may have moved
 */
export function trainStep(training: TrainingState, batch: Batch, { seed, learningRate, maxGradNorm, sampledSoftmax, statistics = false }: StepOptions): StepResult {
  const { model, optimizer, comm } = training;
  return scope(() => {
    const own = comm ? ownLanes(batch, comm) : batch;
    const context: RunContext = { training: true, seed, step: optimizer.steps, firstRow: batch.firstRow, ...(comm ? { rowIds: rowIdsOf(batch, comm) } : {}) };
    const candidates = sampledSoftmax > 0 ? logUniformCandidates(model.config.vocabSize, sampledSoftmax, { seed, step: optimizer.steps }) : undefined;
    const tensors = batchTensors(own);
    const out = model.forward(tensors, context, training.states, candidates);
    // Each rank's mean counts by its targets.
    const share = own.tokens / batch.tokens;
    const loss = comm ? sumOverRanks(comm, out.loss.item() * share) : out.loss.item();
    const auxLoss = out.auxLoss?.item() ?? 0;
    if (!Number.isFinite(loss + auxLoss)) throw onOtherRank(model, comm, `Step ${optimizer.steps + 1}`) ?? model.explainNonFinite(`Step ${optimizer.steps + 1}`, loss + auxLoss, tensors, context, training.states);
    const mean = comm ? affine(out.loss, share) : out.loss;
    const gradNorm = update(model, optimizer, out.auxLoss ? add(mean, out.auxLoss) : mean, { learningRate, maxGradNorm, comm });
    const result: StepResult = { loss, auxLoss, gradNorm, tokens: batch.tokens };
    if (out.moe) {
      if (statistics) result.statistics = moeStatistics(out.moe);
      result.load = result.statistics?.load ?? processedLoad(out.moe);
    }
    training.states = carryStates(training.states, out.states);
    return result;
  });
}
