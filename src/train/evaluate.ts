/** Perplexity by the exact softmax: exp of the mean negative log-likelihood over every target, in nats. */

import { streamId } from "../core/random.js";
import { balanceStatistics, processedLoad, requestedAssignments, type BalanceStatistics } from "../moe/statistics.js";
import type { LanguageModel } from "../models/language-model.js";
import type { RunContext } from "../nn/module.js";
import type { LstmState } from "../tensor/ops/lstm.js";
import { keep, scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import { tensor } from "../tensor/tensor.js";
import type { Batch } from "../text/batches.js";

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
  /** Of the whole pass, with gates as at inference; absent without an MoE. */
  balance?: BalanceStatistics;
  /** Rows that each expert computed. */
  load?: Float64Array;
  /** Assignments that capacity dropped, of those the gate asked for. */
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
export function* evaluationSteps(model: LanguageModel, batches: Iterable<Batch>, { onRouted, carryState = true }: EvaluateOptions = {}): Generator<void, Evaluation> {
  let [total, tokens] = [0, 0];
  let states: LstmState[] | undefined;
  const E = model.moe?.numExperts ?? 0;
  const importance = new Float64Array(E);
  const load = new Float64Array(E);
  let wanted = 0;
  const one = (batch: Batch): void => {
    const tensors = batchTensors(batch);
    const out = model.forward(tensors, EVALUATION, states);
    const loss = out.loss.item();
    if (!Number.isFinite(loss)) throw model.explainNonFinite("Evaluation", loss, tensors, EVALUATION, states);
    total += loss * batch.tokens;
    tokens += batch.tokens;
    if (out.moe) {
      addTo(importance, out.moe.importance.dataSync());
      addTo(load, processedLoad(out.moe));
      wanted += requestedAssignments(out.moe);
      if (onRouted) {
        const experts = out.moe.experts.dataSync() as Int32Array;
        const k = out.moe.experts.shape[1] ?? 0;
        const rowOffsets = (out.moe.rowOffsets?.dataSync() ?? Int32Array.from({ length: experts.length / k + 1 }, (_, row) => row * k)) as Int32Array;
        onRouted({ batch, experts, gates: out.moe.gates.dataSync(), rowOffsets });
      }
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
  return { loss, perplexity: Math.exp(loss), tokens, ...(E > 0 ? { balance: balanceStatistics(importance, load), load, droppedFraction: droppedOf(wanted, load) } : {}) };
}

function addTo(sum: Float64Array, part: ArrayLike<number>): void {
  for (let i = 0; i < sum.length; i++) sum[i]! += part[i]!;
}

function droppedOf(wanted: number, load: Float64Array): number {
  return wanted > 0 ? 1 - load.reduce((sum, n) => sum + n, 0) / wanted : 0;
}
