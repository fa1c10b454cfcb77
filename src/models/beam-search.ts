/**
 * Beam search over a translation model, many sentences at once, with GNMT's length normalisation and coverage penalty (Wu et al. 2016, section 7): each step
 * runs the decoder once for all beams of all sentences that are not done, from the states of the step before.
 */

import { checkInteger, checkNumber } from "../core/checks.js";
import { NonFiniteError, expectation } from "../core/errors.js";
import type { AttentionMemory } from "../tensor/ops/attentive-lstm.js";
import { add } from "../tensor/ops/elementwise.js";
import { logSoftmax, gatherLast, topK } from "../tensor/ops/reduce.js";
import { embedding } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import { keep, scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import { tensor, type Tensor } from "../tensor/tensor.js";
import type { DecoderState, SourceBatch, TranslationModel } from "./translation-model.js";

/** How `beamSearch` searches. */
export interface BeamOptions {
  /** The id that ends a sentence, and that the decoder begins with. */
  eosId: number;
  /** K, hypotheses of a sentence that go on at each step. 1 is greedy search. Default 4. */
  beamSize?: number;
  /** α of lp(Y) = ((5 + |Y|) / 6)^α. Default 0.6; 0: none, and short translations win. */
  lengthPenalty?: number;
  /** β of cp(X, Y) = β·Σ_i log(min(Σ_j p_ij, 1)). Default 0: none. */
  coveragePenalty?: number;
  /** Most ids of a translation, its end counted in, from the number of ids of its source. Default 2·n + 10. */
  maxLength?: (sourceLength: number) => number;
  /** How many hypotheses are given of each sentence, at most K. Default 1. */
  nBest?: number;
  /**
   * Where the model's experts are spread over ranks, all of which search at once, each for its own sentences (or none): whether something is true on any of
   * them. A rank that is done takes part in the mixtures of the others.
   */
  anyRank?: (value: boolean) => boolean;
}

/** A translation. */
export interface Hypothesis {
  /** Without the end of the sentence. */
  ids: number[];
  /** log P / lp + cp, by which hypotheses are ranked. */
  score: number;
  /** log P(Y | X), the end of the sentence counted in. */
  logProbability: number;
  /** A row for each id and one for the end: how much was read of each position of the source. */
  attention: Float32Array[];
}

/** A score that no hypothesis has: of beams that are not in use. In float32 still far from the end. */
const UNUSED = -1e30;

/** Of one step: where each lane came from in the step before, and what it read. */
interface Step {
  parents: Int32Array;
  ids: Int32Array;
  /** (lanes, S) of the step that chose the ids, by the lanes of the step before. */
  attention: ArrayLike<number>;
}

interface Sentence {
  index: number;
  length: number;
  limit: number;
  finished: Hypothesis[];
}

/** One lane of the decoder: a hypothesis that goes on. */
interface Lane {
  sentence: Sentence;
  logProbability: number;
}

/** α's length normalisation. @param length |Y|, the end counted in */
export function lengthNormalisation(length: number, alpha: number): number {
  return ((5 + length) / 6) ** alpha;
}

/** β's penalty for source positions that were read less than once. @param attention a row for each step @param sourceLength positions that are no padding */
export function coverage(attention: readonly ArrayLike<number>[], sourceLength: number, beta: number): number {
  if (beta === 0) return 0;
  let sum = 0;
  for (let i = 0; i < sourceLength; i++) {
    // A position that was not read at all would make every hypothesis equally impossible.
    const read = attention.reduce((total, row) => total + row[i]!, 0);
    sum += Math.log(Math.max(Math.min(read, 1), 1e-30));
  }
  return beta * sum;
}

/**
 * The best translations of each sentence of a batch, best first.
 *
 * The K hypotheses of the highest log P go on; one that ends while among the K best of its step is finished. A sentence is done when K are, or at its limit,
 * where only the end is allowed. All are then ranked by `score`. Sentences do not depend on each other, unless the gates are of a kind whose experts choose
 * among the rows of a batch.
 * @throws ConfigError for an option out of range; NonFiniteError for a model that gives no probabilities
 */
export function beamSearch(model: TranslationModel, batch: SourceBatch, options: BeamOptions): Hypothesis[][] {
  const { eosId, beamSize: K = 4, lengthPenalty = 0.6, coveragePenalty = 0, maxLength = (n) => 2 * n + 10, nBest = 1, anyRank = (value) => value } = options;
  const where = "beamSearch";
  const V = model.config.vocabSize;
  checkInteger(where, "eosId", eosId, { min: 0, max: V - 1 });
  checkInteger(where, "beamSize", K, { min: 1, max: 1024 });
  checkNumber(where, "lengthPenalty", lengthPenalty, { min: 0 });
  checkNumber(where, "coveragePenalty", coveragePenalty, { min: 0 });
  checkInteger(where, "nBest", nBest, { min: 1, max: K, hint: "Take more beams (beamSize)." });
  const sentences = Array.from(batch.sourceLengths, (length, index): Sentence => {
    const limit = checkInteger(where, "maxLength", maxLength(length), { min: 1 });
    return { index, length, limit, finished: [] };
  });
  const steps: Step[] = [];
  const finish = ({ sentence, logProbability }: Lane, lane: number, attention: ArrayLike<number>): void => {
    if (Number.isNaN(logProbability)) return;
    const S = batch.sourceSteps;
    const ids: number[] = [];
    const rows = [rowOf(attention, lane, S, sentence.length)];
    for (let t = steps.length - 1, at = lane; t >= 0; t--) {
      const step = steps[t]!;
      ids.push(step.ids[at]!);
      at = step.parents[at]!;
      rows.push(rowOf(step.attention, at, S, sentence.length));
    }
    ids.reverse();
    rows.reverse();
    const score = logProbability / lengthNormalisation(rows.length, lengthPenalty) + coverage(rows, sentence.length, coveragePenalty);
    sentence.finished.push({ ids, score, logProbability, attention: rows });
  };

  noGrad(() => {
    if (sentences.length === 0) {
      model.idle("encoder");
      while (anyRank(false)) model.idle("decoder");
      return;
    }
    const decoder = new LaneDecoder(model, batch, K);
    try {
      // The first beam of each sentence alone is in use: all would be the same.
      let lanes = sentences.flatMap((sentence) => Array.from({ length: K }, (_, k): Lane => ({ sentence, logProbability: k === 0 ? 0 : UNUSED })));
      let ids = new Int32Array(lanes.length).fill(eosId);
      while (anyRank(lanes.length > 0)) {
        if (lanes.length === 0) {
          model.idle("decoder");
          continue;
        }
        const scores = Float64Array.from(lanes, ({ logProbability }) => logProbability);
        const { values, indices, ends, attention } = decoder.step(ids, scores, eosId, Math.min(2 * K, K * V));
        const width = values.length / (lanes.length / K);
        const next: (Lane & { parent: number; id: number })[] = [];
        for (let first = 0; first < lanes.length; first += K) {
          const { sentence } = lanes[first]!;
          const group = first / K;
          const last = steps.length + 1 >= sentence.limit;
          if (last) {
            for (let k = 0; k < K; k++) {
              const lane = lanes[first + k]!;
              if (lane.logProbability > UNUSED / 2) finish({ sentence, logProbability: lane.logProbability + ends[first + k]! }, first + k, attention);
            }
            continue;
          }
          const going: typeof next = [];
          for (let rank = 0; rank < width && going.length < K; rank++) {
            const logProbability = values[group * width + rank]!;
            if (!(logProbability > UNUSED / 2)) break;
            const index = indices[group * width + rank]!;
            const [parent, id] = [first + Math.floor(index / V), index % V];
            if (id !== eosId) going.push({ sentence, logProbability, parent, id });
            else if (rank < K) finish({ sentence, logProbability }, parent, attention);
          }
          if (sentence.finished.length >= K || going.length === 0) continue;
          while (going.length < K) going.push({ ...going[0]!, logProbability: UNUSED });
          next.push(...going);
        }
        const parents = Int32Array.from(next, ({ parent }) => parent);
        ids = Int32Array.from(next, ({ id }) => id);
        steps.push({ parents, ids, attention });
        lanes = next;
        if (lanes.length > 0) decoder.choose(parents);
      }
    } finally {
      decoder.dispose();
    }
  });
  for (const { finished, index } of sentences) {
    if (finished.length === 0) throw new NonFiniteError(expectation(where, `finite probabilities for sentence ${index}`, NaN, "Was the model's training stopped by values that are not finite?"));
  }
  return sentences.map(({ finished }) => finished.sort((a, b) => b.score - a.score).slice(0, nBest));
}

function rowOf(attention: ArrayLike<number>, lane: number, S: number, length: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => attention[lane * S + i]!);
}

/** The decoder with a lane for each hypothesis: its memory and states, carried from step to step. */
class LaneDecoder {
  #memory: AttentionMemory;
  #state: DecoderState | undefined;

  constructor(
    readonly model: TranslationModel,
    batch: SourceBatch,
    readonly K: number,
  ) {
    this.#memory = scope(() => {
      const { memory } = model.encode(batch);
      return held(lanesOf(memory, Int32Array.from({ length: batch.batchSize * K }, (_, lane) => Math.floor(lane / K))));
    });
  }

  /**
   * One step of all lanes: the `width` best continuations of each sentence by the sum of `scores` and their log-probability (index: beam · V + id), the
   * log-probability of ending for each lane, and what each read.
   */
  step(ids: Int32Array, scores: Float64Array, eosId: number, width: number): { values: ArrayLike<number>; indices: ArrayLike<number>; ends: ArrayLike<number>; attention: ArrayLike<number> } {
    return scope(() => {
      const { vocabSize: V, hiddenSize } = this.model.config;
      const lanes = ids.length;
      const { output, state, attention } = this.model.decode(this.#memory, tensor(ids, [1, lanes], "int32"), this.#state);
      this.#release();
      this.#state = state.map(({ h, c }) => ({ h: keep(h), c: keep(c) })) as DecoderState;
      const logits = logSoftmax(this.model.logits(reshape(output, [lanes, hiddenSize])));
      const totals = add(logits, tensor(scores, [lanes, 1]));
      const best = topK(reshape(totals, [lanes / this.K, this.K * V]), width);
      const ends = gatherLast(logits, tensor(new Int32Array(lanes).fill(eosId), [lanes, 1], "int32"));
      return { values: best.values.dataSync(), indices: best.indices.dataSync(), ends: ends.dataSync(), attention: attention.dataSync() };
    });
  }

  /** Lane i goes on from what lane parents[i] was. */
  choose(parents: Int32Array): void {
    const [state, memory] = [this.#state!, this.#memory];
    const index = tensor(parents, [parents.length], "int32");
    this.#state = scope(() => state.map(({ h, c }) => ({ h: keep(embedding(h, index)), c: keep(embedding(c, index)) })) as DecoderState);
    for (const { h, c } of state) for (const t of [h, c]) t.dispose();
    index.dispose();
    // Beams of one sentence attend to the same: the memory changes when sentences are done.
    if (parents.length === memory.bias.shape[0]) return;
    this.#memory = scope(() => held(lanesOf(memory, parents)));
    free(memory);
  }

  dispose(): void {
    this.#release();
    free(this.#memory);
  }

  #release(): void {
    for (const { h, c } of this.#state ?? []) for (const t of [h, c]) t.dispose();
    this.#state = undefined;
  }
}

/** Lane i of the result is lane index[i]. */
function lanesOf({ values, keys, bias, v }: AttentionMemory, index: Int32Array): AttentionMemory {
  const [S, B] = values.shape as [number, number];
  const places = Int32Array.from({ length: S * index.length }, (_, i) => Math.floor(i / index.length) * B + index[i % index.length]!);
  const rows = tensor(places, [S, index.length], "int32");
  const flat = (t: Tensor): Tensor => embedding(reshape(t, [S * B, t.shape[2]!]), rows);
  return { values: flat(values), keys: flat(keys), bias: embedding(bias, tensor(index, [index.length], "int32")), v };
}

function held(memory: AttentionMemory): AttentionMemory {
  for (const t of [memory.values, memory.keys, memory.bias]) keep(t);
  return memory;
}

function free({ values, keys, bias }: AttentionMemory): void {
  for (const t of [values, keys, bias]) t.dispose();
}
