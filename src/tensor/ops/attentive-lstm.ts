/**
 * An LSTM layer that attends to a memory, over time as one operation: the first decoder layer of GNMT (Wu et al. 2016, section 3) with either attention of
 * Shazeer et al. 2017, App. G. The recurrence runs through the attention, so that step by step remain the products with what recurs; those with the
 * input, and the gradients of all weights, keys and memory, are single products over every step.
 */

import type { Buf } from "../../backend/backend.js";
import { TensorError } from "../../core/errors.js";
import { checkOperands } from "../shapes.js";
import { needsGrad, noGrad, record } from "../tape.js";
import { empty, sameShape, zeros, type Tensor } from "../tensor.js";
import { scorer } from "./attention-scores.js";
import type { LstmState, LstmWeights } from "./lstm.js";
import { rowGradient, weightGradient } from "./products.js";
import { concat, slice } from "./shape.js";

/** Parameters of an attending LSTM layer of H units, over inputs of width D and a memory of width C. */
export interface AttentiveLstmWeights extends LstmWeights {
  /** (C, 4H) for what is read from the memory. */
  contextWeight: Tensor;
  /** W (P, A): what recurs asks by it. */
  queryWeight: Tensor;
}

/** What is attended to: S positions of each of B lanes. */
export interface AttentionMemory {
  /** (S, B, C) what is read. */
  values: Tensor;
  /** (S, B, A) what queries are compared with. Product attention: V·tanh(values·U); additive attention: values·U. */
  keys: Tensor;
  /** (B, S) added to the scores: 0, and −1e30 where there is only padding. */
  bias: Tensor;
  /** V (A): of additive attention alone. */
  v?: Tensor | undefined;
}

/** What `attentiveLstm` gives. */
export interface AttentiveLstmOutput {
  /** (T, B, P) */
  output: Tensor;
  /** Detached from the tape. */
  state: LstmState;
  /** (T, B, S) how much of each position a step read; detached from the tape. */
  weights: Tensor;
  /** (T, B, C) what each step read, on the tape; where it was asked for. */
  contexts?: Tensor;
}

/**
 * Step t asks with h of step t − 1, reads the memory, and updates the cell with what it read:
 * p = softmax_s A(s, h), context = Σ_s p_s·values_s, gates = x·inputWeight + context·contextWeight + h·recurrentWeight + bias.
 *
 * A(s, h) = Σ_d keys_sd·tanh((h·W)_d), where the keys have V·tanh(values·U) in them: the paper's product attention; with `v` in the memory
 * Σ_d V_d·tanh(keys_sd + (h·W)_d), GNMT's.
 * @param x (T, B, D), time first; @param state where to start, zeros when left out; @param withContexts give the contexts too
 * @throws TensorError for shapes that do not fit
 */
export function attentiveLstm(x: Tensor, weights: AttentiveLstmWeights, memory: AttentionMemory, state?: LstmState, withContexts = false): AttentiveLstmOutput {
  const { inputWeight, recurrentWeight, bias, projection, contextWeight, queryWeight } = weights;
  const { values, keys, v } = memory;
  const where = "attentiveLstm";
  checkOperands(where, "float32", x, inputWeight, recurrentWeight, bias, contextWeight, queryWeight, values, keys, memory.bias,
    ...(projection ? [projection] : []), ...(v ? [v] : []), ...(state ? [state.h, state.c] : []));
  if (x.rank !== 3 || values.rank !== 3 || keys.rank !== 3) {
    throw new TensorError(`${where}: expected x (time, batch, D), values (S, batch, C) and keys (S, batch, A), got ${[x, values, keys].map(({ shape }) => `[${shape.join(", ")}]`).join(", ")}.`);
  }
  const [T, B, D] = x.shape as [number, number, number];
  const [S, , C] = values.shape as [number, number, number];
  const A = keys.shape[2]!;
  const P = recurrentWeight.shape[0]!;
  const H = (projection ?? recurrentWeight).shape[0]!;
  const expected: [string, Tensor | undefined, number[]][] = [
    ["inputWeight", inputWeight, [D, 4 * H]],
    ["recurrentWeight", recurrentWeight, [P, 4 * H]],
    ["bias", bias, [4 * H]],
    ["projection", projection, [H, P]],
    ["contextWeight", contextWeight, [C, 4 * H]],
    ["queryWeight", queryWeight, [P, A]],
    ["values", values, [S, B, C]],
    ["keys", keys, [S, B, A]],
    ["the memory's bias", memory.bias, [B, S]],
    ["v", v, [A]],
    ["state.h", state?.h, [B, P]],
    ["state.c", state?.c, [B, H]],
  ];
  for (const [name, t, shape] of expected) {
    if (t && !sameShape(t.shape, shape)) throw new TensorError(`${where}: expected ${name} of shape [${shape.join(", ")}], got [${t.shape.join(", ")}].`);
  }
  if (S === 0 && T > 0) throw new TensorError(`${where}: expected a memory of at least one position, got none.`);

  const backend = x.backend;
  const gates = empty([T, B, 4 * H], "float32", backend);
  const cells = empty([T, B, H], "float32", backend);
  const hidden = projection ? empty([T, B, H], "float32", backend) : undefined;
  const output = empty([T, B, P], "float32", backend);
  const read = empty([T, B, S], "float32", backend);
  const contexts = empty([T, B, C], "float32", backend);
  const queries = empty([T, B, A], "float32", backend);
  // What each step starts from.
  const hPrevious = empty([T, B, P], "float32", backend);
  const cPrevious = empty([T, B, H], "float32", backend);
  const scores = empty([B, S], "float32", backend);
  const score = scorer(keys, v, S, B, A);
  const step = (t: Tensor, i: number, width: number): Buf => t.buffer.at(i * B * width, B * width);
  const all = (n: number): { div: number; mod: number } => ({ div: 1, mod: Math.max(n, 1) });

  backend.gemm(false, false, T * B, 4 * H, D, 1, x.buffer, D, inputWeight.buffer, 4 * H, 0, gates.buffer, 4 * H);
  backend.binary("add", gates.buffer, all(gates.size), bias.buffer, all(4 * H), gates.buffer, gates.size);
  const first = state ?? { h: zeros([B, P], "float32", backend), c: zeros([B, H], "float32", backend) };
  for (let t = 0; t < T; t++) {
    const [hBefore, cBefore] = [step(hPrevious, t, P), step(cPrevious, t, H)];
    backend.copy(t === 0 ? first.h.buffer : step(output, t - 1, P), hBefore, B * P);
    backend.copy(t === 0 ? first.c.buffer : step(cells, t - 1, H), cBefore, B * H);
    const [query, p, context, gate] = [step(queries, t, A), step(read, t, S), step(contexts, t, C), step(gates, t, 4 * H)];
    backend.gemm(false, false, B, A, P, 1, hBefore, P, queryWeight.buffer, A, 0, query, A);
    score.forward(query, scores.buffer);
    backend.binary("add", scores.buffer, all(B * S), memory.bias.buffer, all(B * S), scores.buffer, B * S);
    backend.softmax(scores.buffer, p, B, S);
    // For each lane: its S values, B·C apart, summed by its weights.
    backend.gemmBatched(B, false, false, 1, C, S, 1, p, S, S, values.buffer, B * C, C, 0, context, C, C);
    backend.gemm(false, false, B, 4 * H, C, 1, context, C, contextWeight.buffer, 4 * H, 1, gate, 4 * H);
    backend.gemm(false, false, B, 4 * H, P, 1, hBefore, P, recurrentWeight.buffer, 4 * H, 1, gate, 4 * H);
    const h = hidden ? step(hidden, t, H) : step(output, t, P);
    backend.lstmCell(gate, cBefore, step(cells, t, H), h, B, H);
    if (projection) backend.gemm(false, false, B, P, H, 1, h, H, projection.buffer, P, 0, step(output, t, P), P);
  }
  const end: LstmState = { h: empty([B, P], "float32", backend), c: empty([B, H], "float32", backend) };
  backend.copy(T > 0 ? step(output, T - 1, P) : first.h.buffer, end.h.buffer, B * P);
  backend.copy(T > 0 ? step(cells, T - 1, H) : first.c.buffer, end.c.buffer, B * H);

  const inputs = [x, inputWeight, recurrentWeight, bias, contextWeight, queryWeight, values, keys, ...(projection ? [projection] : []), ...(v ? [v] : [])];
  if (!needsGrad(...inputs)) return { output, state: end, weights: read, ...(withContexts ? { contexts } : {}) };
  // A node of the tape has one output.
  const joined = withContexts ? noGrad(() => concat([output, contexts], 2)) : output;
  record("attentiveLstm", joined, inputs, (dJoined, needs) => {
    const dy = withContexts ? slice(dJoined, 2, 0, P) : dJoined;
    const dRead = withContexts ? slice(dJoined, 2, P, P + C) : undefined;
    const dGates = empty([T, B, 4 * H], "float32", backend);
    const dContexts = empty([T, B, C], "float32", backend);
    const dScores = empty([T, B, S], "float32", backend);
    const dQueries = empty([T, B, A], "float32", backend);
    const dOut = empty([T, B, P], "float32", backend);
    const dc = zeros([B, H], "float32", backend);
    const dhNext = zeros([B, P], "float32", backend);
    const dHidden = projection ? empty([B, H], "float32", backend) : undefined;
    const dWeights = empty([B, S], "float32", backend);
    const scoreGradient = score.backward(queries);
    for (let t = T - 1; t >= 0; t--) {
      const [dh, dGate, dContext, dScore, dQuery] = [step(dOut, t, P), step(dGates, t, 4 * H), step(dContexts, t, C), step(dScores, t, S), step(dQueries, t, A)];
      backend.binary("add", step(dy, t, P), all(B * P), dhNext.buffer, all(B * P), dh, B * P);
      if (projection && dHidden) backend.gemm(false, true, B, H, P, 1, dh, P, projection.buffer, P, 0, dHidden.buffer, H);
      backend.lstmCellGrad(step(gates, t, 4 * H), step(cPrevious, t, H), step(cells, t, H), dHidden ? dHidden.buffer : dh, dc.buffer, dGate, B, H);
      backend.gemm(false, true, B, C, 4 * H, 1, dGate, 4 * H, contextWeight.buffer, 4 * H, 0, dContext, C);
      if (dRead) backend.binary("add", dContext, all(B * C), step(dRead, t, C), all(B * C), dContext, B * C);
      backend.gemmBatched(B, false, true, 1, S, C, 1, dContext, C, C, values.buffer, B * C, C, 0, dWeights.buffer, S, S);
      backend.softmaxGrad(step(read, t, S), dWeights.buffer, dScore, B, S);
      scoreGradient.step(t, dScore, dQuery);
      if (t === 0) break;
      backend.gemm(false, true, B, P, 4 * H, 1, dGate, 4 * H, recurrentWeight.buffer, 4 * H, 0, dhNext.buffer, P);
      backend.gemm(false, true, B, P, A, 1, dQuery, A, queryWeight.buffer, A, 1, dhNext.buffer, P);
    }
    const dBias = empty([4 * H], "float32", backend);
    backend.spreadSum(dGates.buffer, all(4 * H), 1, dBias.buffer, dGates.size);
    const dValues = empty(values.shape, "float32", backend);
    backend.gemmBatched(B, true, false, S, C, T, 1, read.buffer, B * S, S, dContexts.buffer, B * C, C, 0, dValues.buffer, B * C, C);
    const { dKeys, dV } = scoreGradient.end(dScores);
    const weights = [weightGradient(x, dGates), weightGradient(hPrevious, dGates), dBias, weightGradient(contexts, dGates), weightGradient(hPrevious, dQueries)];
    const dx = needs[0] ? rowGradient(dGates, inputWeight) : undefined;
    return [dx, ...weights, dValues, dKeys, ...(projection && hidden ? [weightGradient(hidden, dOut)] : []), ...(dV ? [dV] : [])];
  });
  const made = { state: end, weights: read };
  return withContexts ? { ...made, output: slice(joined, 2, 0, P), contexts: slice(joined, 2, P, P + C) } : { ...made, output };
}
