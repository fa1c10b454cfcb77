/** Perplexity by the exact softmax: exp of the mean negative log-likelihood over every target, in nats. */

import type { Communicator } from "../comm/communicator.js";
import { streamId } from "../core/random.js";
import { balanceStatistics, requestedAssignments, type BalanceStatistics } from "../moe/statistics.js";
import type { LanguageModel } from "../models/language-model.js";
import type { MoEOutput } from "../moe/layer.js";
import type { RunContext } from "../nn/module.js";
import type { LstmState } from "../tensor/ops/lstm.js";
import { keep, scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import { tensor } from "../tensor/tensor.js";
import type { Batch } from "../text/batches.js";
import { onOtherRank, ownLanes, rowIdsOf, sumOverRanks } from "./ranks.js";

/** A batch on the backend. */
export function batchTensors(batch: Batch): { inputs: ReturnType<typeof tensor>; targets: ReturnType<typeof tensor>; resets: ReturnType<typeof tensor> } {
  const shape = [batch.timeSteps, batch.batchSize];
  return { inputs: tensor(batch.inputs, shape, "int32"), targets: tensor(batch.targets, shape, "int32"), resets: tensor(batch.resets, shape, "int32") };
}

/** States outlive the step that made them; the ones before are let go. */
export function carryStates(before: readonly LstmState[] | undefined, next: readonly LstmState[]): LstmState[] {
  for (const { h, c } of before ?? []) {
    h.dispose();
    c.dispose();
  }
  for (const { h, c } of next) {
    keep(h);
    keep(c);
  }
  return [...next];
}

export interface Evaluation {
  /** Nats per token. */
  loss: number;
  perplexity: number;
  tokens: number;
  /** Of the whole pass, with gates as at inference: of what experts computed for targets, not for the padding of the last batches. Absent without an MoE. */
  balance?: BalanceStatistics;
  /** Targets that each expert computed for. */
  load?: Float64Array;
  /** Assignments that capacity dropped, of those the gate asked for; padding counts, as it fills experts too. */
  droppedFraction?: number;
}

const EVALUATION: RunContext = { training: false, seed: streamId("evaluation", "unused"), step: 0, firstRow: 0 };

/** What one batch routed: for looking at what experts take. */
export interface RoutedBatch {
  batch: Batch;
  /** The assignments of row r are those from rowOffsets[r] to rowOffsets[r + 1]; -1 where one was dropped. */
  experts: Int32Array;
  gates: ArrayLike<number>;
  rowOffsets: Int32Array;
}

export interface EvaluateOptions {
  /** Called for each batch with the experts of its rows, when the model has an MoE. */
  onRouted?: (routed: RoutedBatch) => void;
  /** Batches go on where the one before ended. False: each starts from zero, and their sizes may differ. @default true */
  carryState?: boolean;
  /** Where the model's experts are spread over ranks: all call at once, with the same batches, and get the same figures. */
  comm?: Communicator | undefined;
}

/** The whole evaluation at once. @throws NonFiniteError naming the layer */
export function evaluate(model: LanguageModel, batches: Iterable<Batch>, options: EvaluateOptions = {}): Evaluation {
  const steps = evaluationSteps(model, batches, options);
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}

/**
 * An evaluation that rests after each batch, so that signals can come in and it can be given up (by `return`).
 * @throws NonFiniteError naming the layer
 */
export function* evaluationSteps(model: LanguageModel, batches: Iterable<Batch>, { onRouted, carryState = true, comm }: EvaluateOptions = {}): Generator<void, Evaluation> {
  let [total, tokens] = [0, 0];
  let states: LstmState[] | undefined;
  const E = model.moe?.numExperts ?? 0;
  const importance = new Float64Array(E);
  const load = new Float64Array(E);
  let [wanted, taken] = [0, 0];
  const one = (batch: Batch): void => {
    const own = comm ? ownLanes(batch, comm) : batch;
    const context = comm ? { ...EVALUATION, rowIds: rowIdsOf(batch, comm) } : EVALUATION;
    const tensors = batchTensors(own);
    const out = model.forward(tensors, context, states);
    const loss = comm ? sumOverRanks(comm, (out.loss.item() * own.tokens) / Math.max(batch.tokens, 1)) : out.loss.item();
    if (!Number.isFinite(loss)) throw onOtherRank(model, comm, "Evaluation") ?? model.explainNonFinite("Evaluation", loss, tensors, context, states);
    total += loss * batch.tokens;
    tokens += batch.tokens;
    if (out.moe) {
      const routed = routedBatch(batch, out.moe);
      wanted += requestedAssignments(out.moe);
      taken += out.moe.routing.offsets.dataSync().at(-1)!;
      addTargets(importance, load, routed);
      onRouted?.(routed);
    }
    if (carryState) states = carryStates(states, out.states);
  };
  try {
    for (const batch of batches) {
      noGrad(() => scope(() => one(batch)));
      yield;
    }
  } finally {
    carryStates(states, []);
  }
  const loss = tokens === 0 ? 0 : total / tokens;
  return { loss, perplexity: Math.exp(loss), tokens, ...(E > 0 ? { balance: balanceStatistics(importance, load), load, droppedFraction: wanted > 0 ? 1 - taken / wanted : 0 } : {}) };
}

function routedBatch(batch: Batch, { experts, gates, rowOffsets }: MoEOutput): RoutedBatch {
  const k = experts.shape[1] ?? 0;
  const rows = batch.timeSteps * batch.batchSize;
  return {
    batch,
    experts: experts.dataSync() as Int32Array,
    gates: gates.dataSync(),
    rowOffsets: (rowOffsets?.dataSync() as Int32Array | undefined) ?? Int32Array.from({ length: rows + 1 }, (_, row) => row * k),
  };
}

function addTargets(importance: Float64Array, load: Float64Array, { batch, experts, gates, rowOffsets }: RoutedBatch): void {
  for (const [row, target] of batch.targets.entries()) {
    if (target < 0) continue;
    for (let j = rowOffsets[row]!; j < rowOffsets[row + 1]!; j++) {
      const expert = experts[j]!;
      if (expert < 0) continue;
      importance[expert]! += gates[j]!;
      load[expert]! += 1;
    }
  }
}
