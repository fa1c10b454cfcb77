/**
 * Beam search over a translation model, many sentences at once, with GNMT's length normalisation and coverage penalty (Wu et al. 2016, section 7): each step
 * runs the decoder once for all beams of all sentences that are not done, from the states of the step before. The first runs one lane of each sentence.
 */

import { checkInteger, checkNumber } from "../core/checks.js";
import { NonFiniteError, expectation } from "../core/errors.js";
import type { AttentionMemory } from "../tensor/ops/attentive-lstm.js";
import { add, sub } from "../tensor/ops/elementwise.js";
import { gatherLast, logSumExp, topK } from "../tensor/ops/reduce.js";
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
  /** α of lp(Y) = ((5 + |Y|) / 6)^α. Default 1; 0: none, and short translations win. */
  lengthPenalty?: number;
  /** β of cp(X, Y) = β·Σ_i log(min(Σ_j p_ij, 1)). Default 0: none. */
  coveragePenalty?: number;
  /** Most ids of a translation, its end counted in, from the number of ids of its source. Default 2·n + 10. */
  maxLength?: (sourceLength: number) => number;
  /**
   * Whether a translation may be of no ids at all. A model that is unsure which words to choose may find that likelier than any of them (Stahlberg and Byrne
   * 2019). Default false: the first step ends no sentence, but one whose limit is 1.
   */
  allowEmpty?: boolean;
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
 * The K hypotheses of the highest log P go on; one that ends while among the K best of its step is finished, but for an empty one (see `allowEmpty`). A sentence
 * is done when K are, or at its limit, where only the end is allowed. All are then ranked by `score`. Sentences do not depend on each other, unless experts
 * choose among the rows of a batch or have a capacity in evaluation: hypotheses, and lanes that are not in use, then push each other out.
 * @throws ConfigError for an option out of range; NonFiniteError for a model that gives no probabilities
 */
export function beamSearch(model: TranslationModel, batch: SourceBatch, options: BeamOptions): Hypothesis[][] {
  const { eosId, beamSize: K = 4, lengthPenalty = 1, coveragePenalty = 0, maxLength = (n) => 2 * n + 10, allowEmpty = false, nBest = 1, anyRank = (value) => value } = options;
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
    const decoder = new LaneDecoder(model, batch);
    try {
      // One lane of each sentence to begin with, since all its beams would be the same; K from the second step on.
      let width = 1;
      let lanes = sentences.map((sentence): Lane => ({ sentence, logProbability: 0 }));
      let ids = new Int32Array(lanes.length).fill(eosId);
      while (anyRank(lanes.length > 0)) {
        if (lanes.length === 0) {
          model.idle("decoder");
          continue;
        }
        const atLimit = lanes.some(({ sentence }) => steps.length + 1 >= sentence.limit);
        const scores = Float64Array.from(lanes, ({ logProbability }) => logProbability);
        const { values, parents: from, ids: found, ends, attention } = decoder.step(ids, scores, width, 2 * K, atLimit ? eosId : undefined);
        const count = values.length / (lanes.length / width);
        const next: (Lane & { parent: number; id: number })[] = [];
        for (let first = 0; first < lanes.length; first += width) {
          const { sentence } = lanes[first]!;
          if (steps.length + 1 >= sentence.limit) {
            for (let lane = first; lane < first + width; lane++) {
              const { logProbability } = lanes[lane]!;
              if (logProbability > UNUSED / 2) finish({ sentence, logProbability: logProbability + ends![lane]! }, lane, attention);
            }
            continue;
          }
          const going: typeof next = [];
          const begin = (first / width) * count;
          for (let rank = 0; rank < count && going.length < K; rank++) {
            const logProbability = values[begin + rank]!;
            if (!(logProbability > UNUSED / 2)) break;
            const [parent, id] = [from[begin + rank]!, found[begin + rank]!];
            if (id !== eosId) going.push({ sentence, logProbability, parent, id });
            else if (rank < K && (allowEmpty || steps.length > 0)) finish({ sentence, logProbability }, parent, attention);
          }
          if (sentence.finished.length >= K || going.length === 0) continue;
          while (going.length < K) going.push({ ...going[0]!, logProbability: UNUSED });
          next.push(...going);
        }
        const parents = Int32Array.from(next, ({ parent }) => parent);
        ids = Int32Array.from(next, ({ id }) => id);
        steps.push({ parents, ids, attention });
        // Beams of one sentence attend to the same, so that the memory stays while the sentences do.
        const sameMemory = width === K && next.length === lanes.length;
        [lanes, width] = [next, K];
        if (lanes.length > 0) decoder.choose(parents, sameMemory);
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

/** What a step found, for each sentence the best continuations of its lanes, best first. */
interface Continuations {
  /** Log-probabilities of whole hypotheses. */
  values: ArrayLike<number>;
  /** Lanes that are continued, and by which ids. */
  parents: Int32Array;
  ids: Int32Array;
  /** log P of the end for each lane, where it was asked for. */
  ends?: ArrayLike<number>;
  /** (lanes, S) what each lane read. */
  attention: ArrayLike<number>;
}

/** The decoder with a lane for each hypothesis: its memory and states, carried from step to step. */
class LaneDecoder {
  #memory: AttentionMemory;
  #state: DecoderState | undefined;

  constructor(
    readonly model: TranslationModel,
    batch: SourceBatch,
  ) {
    this.#memory = scope(() => held(model.encode(batch).memory));
  }

  /**
   * One step of all lanes, `width` of each sentence: its `most` best continuations by the sum of `scores` and their log-probability.
   * @param eosId asks for the log-probability of ending
   */
  step(ids: Int32Array, scores: Float64Array, width: number, most: number, eosId: number | undefined): Continuations {
    return scope(() => {
      const { vocabSize: V, hiddenSize } = this.model.config;
      const lanes = ids.length;
      const { output, state, attention } = this.model.decode(this.#memory, tensor(ids, [1, lanes], "int32"), this.#state);
      this.#release();
      this.#state = state.map(({ h, c }) => ({ h: keep(h), c: keep(c) })) as DecoderState;
      // Normalised and added to scores are the few that may go on: whole rows of the vocabulary are what this step reads most of.
      const logits = this.model.logits(reshape(output, [lanes, hiddenSize]));
      const total = reshape(logSumExp(logits), [lanes, 1]);
      const each = Math.min(most, V);
      const ofLane = topK(logits, each);
      const totals = add(sub(ofLane.values, total), tensor(scores, [lanes, 1]));
      const best = topK(reshape(totals, [lanes / width, width * each]), Math.min(most, width * each));
      const [chosen, found] = [best.indices.dataSync(), ofLane.indices.dataSync()];
      // Place of a continuation among those of all lanes.
      const count = best.indices.shape[1]!;
      const places = Int32Array.from(chosen, (place, i) => Math.floor(i / count) * width * each + place);
      return {
        values: best.values.dataSync(),
        parents: places.map((place) => Math.floor(place / each)),
        ids: places.map((place) => found[place]!),
        attention: attention.dataSync(),
        ...(eosId === undefined ? {} : { ends: sub(gatherLast(logits, tensor(new Int32Array(lanes).fill(eosId), [lanes, 1], "int32")), total).dataSync() }),
      };
    });
  }

  /** Lane i goes on from what lane parents[i] was. @param sameMemory whether lane i attends to what lane i did */
  choose(parents: Int32Array, sameMemory: boolean): void {
    // As in every step of greedy search in which no sentence ends.
    if (sameMemory && parents.every((parent, lane) => parent === lane)) return;
    const [state, memory] = [this.#state!, this.#memory];
    const index = tensor(parents, [parents.length], "int32");
    this.#state = scope(() => state.map(({ h, c }) => ({ h: keep(embedding(h, index)), c: keep(embedding(c, index)) })) as DecoderState);
    for (const { h, c } of state) for (const t of [h, c]) t.dispose();
    index.dispose();
    if (sameMemory) return;
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
