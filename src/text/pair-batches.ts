/** Batches of sentence pairs by number of tokens: endless and resumable for training, in order of length for evaluation. */

import { checkInteger, checkNumber } from "../core/checks.js";
import { ConfigError, expectation } from "../core/errors.js";
import type { BpeDropout, PairDataset } from "./pair-dataset.js";
import { shuffled } from "./shuffle.js";

/** Rectangles of source and target text, time first: position t of lane b is at t · batchSize + b. */
export interface PairBatch {
  /** (sourceSteps, batchSize): the ids of the sources; the end-of-sentence id where a source is over. */
  readonly sources: Int32Array;
  /** (sourceSteps, batchSize): 1 where a source has an id (its end-of-sentence id is one), 0 in the padding. */
  readonly sourceMask: Int32Array;
  /** (batchSize): how many ids each source has. */
  readonly sourceLengths: Int32Array;
  /** (batchSize): how many ids each target has. */
  readonly targetLengths: Int32Array;
  /** (targetSteps, batchSize): what the decoder is given, the id before each target; the end-of-sentence id at the start and in the padding. */
  readonly inputs: Int32Array;
  /** (targetSteps, batchSize): what the decoder has to foretell, the end-of-sentence id last; −1 in the padding. */
  readonly targets: Int32Array;
  readonly sourceSteps: number;
  readonly targetSteps: number;
  readonly batchSize: number;
  /** How many targets there are. */
  readonly tokens: number;
  /** (batchSize): which pair of the data set each lane is. */
  readonly pairs: Int32Array;
  /**
   * How many rows came in the batches before; a batch counts batchSize · max(sourceSteps, targetSteps), so that neither the encoder's rows nor the
   * decoder's are those of another batch.
   */
  readonly firstRow: number;
}

/** How training batches are made. */
export interface PairBatchOptions {
  /** The most tokens of a batch, padding counted: batchSize · max(sourceSteps, targetSteps) is never more. */
  readonly batchTokens: number;
  readonly seed: number;
  /** How many shuffled pairs are sorted by length together. More makes less padding, and batches less mixed. Default 16,384. */
  readonly window?: number;
  /**
   * T of the sampling between language pairs: a pair of languages with n sentences has the share n^(1/T) of an epoch. At 1 (default) every
   * sentence comes once an epoch; above it, languages with little text come more often than their text.
   */
  readonly temperature?: number;
  /** Other encodings of the data set in each epoch. Default: those that it has. */
  readonly bpeDropout?: BpeDropout;
}

/** Where a `PairBatchStream` stands, as JSON. */
export interface PairBatchStreamState {
  readonly seed: number;
  readonly batchTokens: number;
  readonly window: number;
  readonly temperature: number;
  /** Left out where nothing is dropped. */
  readonly bpeDropout?: number;
  /** The size of the data set, to notice another one. */
  readonly datasetPairs: number;
  readonly datasetTokens: number;
  readonly epoch: number;
  /** Batches given in this epoch. */
  readonly cursor: number;
  /** Rows given so far. */
  readonly rows: number;
}

/** What an epoch gives. */
interface Plan {
  /** The data set as it is encoded in this epoch. */
  readonly encoded: PairDataset;
  /** The pairs of each batch, in the order in which they come. */
  readonly batches: readonly Int32Array[];
}

/**
 * Training batches without end.
 *
 * Each epoch shuffles the pairs, sorts them by source and then target length within windows, cuts each window into batches of at most
 * `batchTokens`, and shuffles the batches. The plan of an epoch, and with `bpeDropout` its encodings, are a function of the seed and the epoch
 * alone. With several language pairs, each has its own shuffle without end, of which an epoch takes the next N · p_i pairs (rounded so that no
 * fraction is lost from one epoch to the next): p_i ∝ n_i^(1/T), N all pairs. So at any temperature the sentences of one language pair come equally often, give or take one.
 */
export class PairBatchStream {
  readonly #dataset: PairDataset;
  readonly #options: Required<Omit<PairBatchOptions, "bpeDropout">>;
  readonly #bpeDropout: BpeDropout | undefined;
  /** The pairs of each group, and how many of them an epoch takes on average. */
  readonly #members: Int32Array[];
  readonly #draws: number[];
  #epoch = 0;
  #cursor = 0;
  #rows = 0;
  #plan: Plan | undefined;

  /** @throws ConfigError when an option cannot be used, or a pair alone is longer than `batchTokens` */
  constructor(dataset: PairDataset, options: PairBatchOptions) {
    const { batchTokens, seed, window = 1 << 14, temperature = 1, bpeDropout } = options;
    const where = "PairBatchStream";
    checkInteger(where, "seed", seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
    checkInteger(where, "window", window, { min: 1 });
    checkNumber(where, "temperature", temperature, { min: Number.MIN_VALUE });
    checkFits(where, dataset, batchTokens);
    if (bpeDropout && bpeDropout.dataset !== dataset) {
      throw new ConfigError(expectation(where, "bpeDropout of the same data set", "one of another"));
    }
    this.#dataset = dataset;
    this.#bpeDropout = bpeDropout;
    this.#options = { batchTokens, seed, window, temperature };
    this.#members = dataset.groups.map(({ pairs }) => new Int32Array(pairs));
    const filled = new Array<number>(dataset.groups.length).fill(0);
    dataset.groupOf.forEach((group, pair) => (this.#members[group][filled[group]++] = pair));
    // In parts of the largest, so that no power overflows.
    const unit = temperature === 1 ? 1 : Math.max(...this.#members.map(({ length }) => length));
    const power = Math.min(1 / temperature, Number.MAX_VALUE);
    const weights = this.#members.map(({ length }) => (length === 0 ? 0 : (length / unit) ** power));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    // At temperature 1 these are the pairs there are, exactly: weights and their sum are integers.
    this.#draws = weights.map((weight) => (dataset.pairs * weight) / total);
  }

  /** How many passes over the data set came before the one being read. */
  get epoch(): number {
    return this.#epoch;
  }

  /** The next batch. */
  next(): PairBatch {
    this.#plan ??= this.#makePlan();
    if (this.#cursor === this.#plan.batches.length) {
      this.#cursor = 0;
      this.#epoch++;
      this.#plan = this.#makePlan();
    }
    const batch = fillBatch(this.#plan.encoded, this.#plan.batches[this.#cursor++], this.#rows);
    this.#rows += rowsOf(batch);
    return batch;
  }

  /** Where the stream stands; `restore` of it on a stream of the same data set and options goes on with the very same batches. */
  state(): PairBatchStreamState {
    const { sources, targets, pairs } = this.#dataset;
    const datasetTokens = sources.ids.length + targets.ids.length;
    const dropout = this.#bpeDropout?.dropout ?? 0;
    return { ...this.#options, ...(dropout > 0 ? { bpeDropout: dropout } : {}), datasetPairs: pairs, datasetTokens, epoch: this.#epoch, cursor: this.#cursor, rows: this.#rows };
  }

  /** Goes to where a stream was. @throws ConfigError when that had another data set or other options, or is no position */
  restore(state: PairBatchStreamState): void {
    const own = this.state();
    for (const field of ["seed", "batchTokens", "window", "temperature", "bpeDropout", "datasetPairs", "datasetTokens"] as const) {
      if (state[field] !== own[field]) {
        throw new ConfigError(
          expectation(
            `the saved position's ${field}`,
            String(own[field] ?? "none"),
            state[field] ?? "none",
            "Resume with the corpus and options of the first run.",
          ),
        );
      }
    }
    const whole = [state.epoch, state.cursor, state.rows].every((value) => Number.isSafeInteger(value) && value >= 0);
    const before = this.#epoch;
    this.#epoch = whole ? state.epoch : before;
    const plan = whole ? this.#makePlan() : undefined;
    if (!plan || state.cursor > plan.batches.length) {
      this.#epoch = before;
      throw new ConfigError(expectation("the saved position", "one inside the data set", "another"));
    }
    this.#plan = plan;
    this.#cursor = state.cursor;
    this.#rows = state.rows;
  }

  #makePlan(): Plan {
    const { seed, window, batchTokens } = this.#options;
    const encoded = this.#bpeDropout?.epoch(this.#epoch) ?? this.#dataset;
    const drawn = this.#members.flatMap((_, group) => [...this.#drawGroup(group)]);
    const order = shuffled(drawn.length, seed, "pairs", this.#epoch).map((place) => drawn[place]);
    const batches: Int32Array[] = [];
    for (let from = 0; from < order.length; from += window) {
      const sorted = sortByLength(encoded, order.subarray(from, from + window));
      for (const batch of cutByTokens(encoded, sorted, batchTokens)) batches.push(batch);
    }
    return { encoded, batches: Array.from(shuffled(batches.length, seed, "batches", this.#epoch), (place) => batches[place]) };
  }

  /** The pairs that this epoch takes of a group: the next ones of its permutations, one after another. */
  *#drawGroup(group: number): Generator<number, void, undefined> {
    const members = this.#members[group];
    const what = `pairs of ${this.#dataset.groups[group].name}`;
    const end = Math.round((this.#epoch + 1) * this.#draws[group]);
    let pass = -1;
    let order: Int32Array = new Int32Array(0);
    for (let at = Math.round(this.#epoch * this.#draws[group]); at < end; at++) {
      const needed = Math.floor(at / members.length);
      if (needed !== pass) order = shuffled(members.length, this.#options.seed, what, (pass = needed));
      yield members[order[at % members.length]];
    }
  }
}

/**
 * Batches for evaluation: each pair once, by source and then target length, so that there is little padding. `pairs` tells which they are, and
 * `inCorpusOrder` undoes the sorting.
 *
 * @throws ConfigError when a pair alone is longer than `batchTokens`
 */
export function pairEvaluationBatches(
  dataset: PairDataset,
  { batchTokens }: { readonly batchTokens: number },
): Iterable<PairBatch> {
  checkFits("pairEvaluationBatches", dataset, batchTokens);
  const all = Int32Array.from({ length: dataset.pairs }, (_, pair) => pair);
  const batches = cutByTokens(dataset, sortByLength(dataset, all), batchTokens);
  return {
    *[Symbol.iterator]() {
      let rows = 0;
      for (const pairs of batches) {
        const batch = fillBatch(dataset, pairs, rows);
        rows += rowsOf(batch);
        yield batch;
      }
    },
  };
}

/** What was made of each lane, in the order of the data set. @throws ConfigError when a pair has no result or two, or a batch not one a lane */
export function inCorpusOrder<T>(batches: Iterable<{ readonly pairs: Int32Array; readonly results: readonly T[] }>): T[] {
  const results = new Map<number, T>();
  for (const { pairs, results: own } of batches) {
    if (own.length !== pairs.length)
      throw new ConfigError(expectation("inCorpusOrder", `${pairs.length} results of a batch`, own.length));
    pairs.forEach((pair, lane) => {
      if (results.has(pair)) throw new ConfigError(expectation("inCorpusOrder", "one result a pair", `two of pair ${pair}`));
      results.set(pair, own[lane]);
    });
  }
  return Array.from({ length: results.size }, (_, pair) => {
    if (!results.has(pair)) throw new ConfigError(expectation("inCorpusOrder", "a result of every pair", `none of pair ${pair}`));
    return results.get(pair)!;
  });
}

/** The pairs by source length, then target length; equals stay in their order. */
function sortByLength(dataset: PairDataset, pairs: Int32Array): Int32Array {
  return pairs
    .slice()
    .sort((a, b) => dataset.sourceLength(a) - dataset.sourceLength(b) || dataset.targetLength(a) - dataset.targetLength(b));
}

/** Cuts a list of pairs into batches, each as long as its longest side lets it be. */
function cutByTokens(dataset: PairDataset, pairs: Int32Array, batchTokens: number): Int32Array[] {
  const batches: Int32Array[] = [];
  let start = 0;
  let longest = 0;
  for (let i = 0; i < pairs.length; i++) {
    const length = Math.max(dataset.sourceLength(pairs[i]), dataset.targetLength(pairs[i]));
    if ((i - start + 1) * Math.max(longest, length) > batchTokens) {
      batches.push(pairs.slice(start, i));
      start = i;
      longest = 0;
    }
    longest = Math.max(longest, length);
  }
  if (start < pairs.length) batches.push(pairs.slice(start));
  return batches;
}

function fillBatch(dataset: PairDataset, pairs: Int32Array, firstRow: number): PairBatch {
  const batchSize = pairs.length;
  const sourceLengths = pairs.map((pair) => dataset.sourceLength(pair));
  const targetLengths = pairs.map((pair) => dataset.targetLength(pair));
  const sourceSteps = sourceLengths.reduce((most, length) => Math.max(most, length), 0);
  const targetSteps = targetLengths.reduce((most, length) => Math.max(most, length), 0);
  const sources = new Int32Array(sourceSteps * batchSize).fill(dataset.eosId);
  const sourceMask = new Int32Array(sourceSteps * batchSize);
  const inputs = new Int32Array(targetSteps * batchSize).fill(dataset.eosId);
  const targets = new Int32Array(targetSteps * batchSize).fill(-1);
  let tokens = 0;
  pairs.forEach((pair, lane) => {
    const source = dataset.sources.starts[pair];
    for (let t = 0; t < sourceLengths[lane]; t++) {
      sources[t * batchSize + lane] = dataset.sources.ids[source + t];
      sourceMask[t * batchSize + lane] = 1;
    }
    const target = dataset.targets.starts[pair];
    for (let t = 0; t < targetLengths[lane]; t++) {
      targets[t * batchSize + lane] = dataset.targets.ids[target + t];
      if (t > 0) inputs[t * batchSize + lane] = dataset.targets.ids[target + t - 1];
    }
    tokens += targetLengths[lane];
  });
  return { sources, sourceMask, sourceLengths, targetLengths, inputs, targets, sourceSteps, targetSteps, batchSize, tokens, pairs, firstRow };
}

function rowsOf({ batchSize, sourceSteps, targetSteps }: PairBatch): number {
  return batchSize * Math.max(sourceSteps, targetSteps);
}

function checkFits(where: string, dataset: PairDataset, batchTokens: number): void {
  checkInteger(where, "batchTokens", batchTokens, { min: 1 });
  for (let pair = 0; pair < dataset.pairs; pair++) {
    const length = Math.max(dataset.sourceLength(pair), dataset.targetLength(pair));
    if (length <= batchTokens) continue;
    const place = `row ${dataset.rowOf[pair]} of ${dataset.groups[dataset.groupOf[pair]].name}`;
    const hint = "Take more tokens a batch, or bound the lengths (maxSourceTokens, maxTargetTokens).";
    throw new ConfigError(expectation(where, `batchTokens of at least ${length}, the length of ${place}`, batchTokens, hint));
  }
}
