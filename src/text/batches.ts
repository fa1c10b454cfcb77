/** Batches of a tokenised corpus: endless and resumable for training, each token exactly once for evaluation. */

import { ConfigError, expectation } from "../core/errors.js";
import type { TokenDataset } from "./dataset.js";
import { shuffled } from "./shuffle.js";

/** Whether each sentence begins with no memory, or the corpus is read as one stream. */
export type BatchMode = "sentences" | "continuous";

/** A rectangle of text, time first: position t of lane b is at t · batchSize + b. */
export interface Batch {
  /** The token before each target; the end-of-sentence id where there is none. */
  readonly inputs: Int32Array;
  /** The tokens to foretell; −1 is no target. */
  readonly targets: Int32Array;
  /** 1 where the recurrent state must be zero BEFORE the position. */
  readonly resets: Int32Array;
  readonly timeSteps: number;
  readonly batchSize: number;
  /** How many targets there are. */
  readonly tokens: number;
  /** How many rows (timeSteps · batchSize each) came in the batches before. */
  readonly firstRow: number;
}

/** The shape and the kind of batches. */
export interface BatchOptions {
  /** How many lanes are read side by side. */
  readonly batchSize: number;
  /** How many tokens of each lane are in a batch. */
  readonly timeSteps: number;
  readonly mode: BatchMode;
}

/** Where a `BatchStream` stands, as JSON. */
export interface BatchStreamState {
  readonly mode: BatchMode;
  readonly seed: number;
  readonly batchSize: number;
  /** The size of the corpus, to notice another one. */
  readonly datasetTokens: number;
  readonly epoch: number;
  /** Rows given so far. */
  readonly rows: number;
  /** Sentences taken in this epoch ("sentences"), or tokens of each lane ("continuous"). */
  readonly cursor: number;
  /** "sentences": where each lane is in `tokens`, as the start, the position and the end of its sentence. */
  readonly lanes: readonly (readonly [number, number, number])[];
}

/** A lane inside a sentence: its start, the position of the next target, and its end. */
interface Lane {
  start: number;
  at: number;
  end: number;
}

/**
 * Training batches without end and without padding.
 *
 * "sentences": one seeded shuffle of the sentences an epoch, shared by the lanes; a lane that is through takes the next sentence, and a
 * sentence that does not fit goes on in the next batch. "continuous": the stream cut into `batchSize` lanes read side by side, the tokens
 * that do not fill all lanes dropped; each epoch begins anew, where need be inside a batch.
 */
export class BatchStream {
  readonly #dataset: TokenDataset;
  readonly #options: BatchOptions & { readonly seed: number };
  readonly #laneLength: number;
  #epoch = 0;
  #rows = 0;
  #cursor = 0;
  #lanes: Lane[];
  #order: Int32Array | undefined;

  /** @throws ConfigError when a size is not a positive integer, or "continuous" lanes would be shorter than `timeSteps`. */
  constructor(dataset: TokenDataset, options: BatchOptions & { readonly seed: number }) {
    checkOptions(options);
    if (!Number.isSafeInteger(options.seed) || options.seed < 0) throw new ConfigError(expectation("seed", "an integer from 0", options.seed));
    this.#dataset = dataset;
    this.#options = { ...options };
    this.#laneLength = Math.floor(dataset.tokens.length / options.batchSize);
    if (options.mode === "continuous" && this.#laneLength < options.timeSteps) {
      const needed = options.batchSize * options.timeSteps;
      const hint = "Lower the batch size (--batch-size) or the time steps (--time-steps), or take more text.";
      throw new ConfigError(expectation("continuous text", `at least ${needed} tokens (batch size × time steps)`, dataset.tokens.length, hint));
    }
    this.#lanes = emptyLanes(options.batchSize);
  }

  /** How many passes over the corpus came before the one being read. */
  get epoch(): number {
    return this.#epoch;
  }

  /** The next batch; every position has a target. */
  next(): Batch {
    const { batchSize, timeSteps, mode } = this.#options;
    const batch = emptyBatch(this.#options, this.#rows, this.#dataset.eosId);
    for (let t = 0; t < timeSteps; t++) {
      if (mode === "continuous") this.#fillContinuous(batch, t * batchSize);
      else for (let b = 0; b < batchSize; b++) this.#fillSentence(batch, t * batchSize + b, this.#lanes[b]);
    }
    this.#rows += batchSize * timeSteps;
    return { ...batch, tokens: batchSize * timeSteps };
  }

  /** Where the stream stands; `restore` of it on a stream of the same corpus and options goes on with the very same batches. */
  state(): BatchStreamState {
    const { mode, seed, batchSize } = this.#options;
    const lanes = this.#lanes.map(({ start, at, end }) => [start, at, end] as const);
    return { mode, seed, batchSize, datasetTokens: this.#dataset.tokens.length, epoch: this.#epoch, rows: this.#rows, cursor: this.#cursor, lanes };
  }

  /** Goes to where a stream was. @throws ConfigError when that was another corpus, seed, mode or batch size. */
  restore(state: BatchStreamState): void {
    const own = this.state();
    for (const field of ["mode", "seed", "batchSize", "datasetTokens"] as const) {
      if (state[field] !== own[field]) {
        throw new ConfigError(expectation(`the saved position's ${field}`, String(own[field]), state[field], "Resume with the corpus and options of the first run."));
      }
    }
    const limit = own.mode === "continuous" ? this.#laneLength : this.#dataset.sentences;
    const whole = [state.epoch, state.rows, state.cursor].every((value) => Number.isSafeInteger(value) && value >= 0);
    const lanesFit =
      Array.isArray(state.lanes) &&
      state.lanes.length === own.batchSize &&
      state.lanes.every(
        (lane: BatchStreamState["lanes"][number] | null) => {
          if (!Array.isArray(lane)) return false;
          const [start, at, end] = lane as [number, number, number];
          return [start, at, end].every(Number.isInteger) && start >= 0 && start <= at && at <= end && end <= own.datasetTokens;
        },
      );
    if (!whole || state.cursor > limit || !lanesFit) throw new ConfigError(expectation("the saved position", "one inside the corpus", "another"));
    this.#epoch = state.epoch;
    this.#rows = state.rows;
    this.#cursor = state.cursor;
    this.#lanes = state.lanes.map(([start, at, end]) => ({ start, at, end }));
    this.#order = undefined;
  }

  #fillContinuous({ inputs, targets, resets }: Batch, row: number): void {
    if (this.#cursor === this.#laneLength) {
      this.#cursor = 0;
      this.#epoch++;
    }
    const { tokens } = this.#dataset;
    for (let b = 0; b < this.#options.batchSize; b++) {
      const at = b * this.#laneLength + this.#cursor;
      targets[row + b] = tokens[at];
      if (this.#cursor === 0) resets[row + b] = 1;
      else inputs[row + b] = tokens[at - 1];
    }
    this.#cursor++;
  }

  #fillSentence(batch: Batch, index: number, lane: Lane): void {
    if (lane.at === lane.end) {
      if (this.#cursor === this.#dataset.sentences) {
        this.#cursor = 0;
        this.#epoch++;
        this.#order = undefined;
      }
      this.#order ??= shuffled(this.#dataset.sentences, this.#options.seed, "sentences", this.#epoch);
      enter(lane, this.#dataset, this.#order[this.#cursor++]);
    }
    fillFromLane(batch, index, lane, this.#dataset.tokens);
  }
}

/**
 * Batches in which every token of the corpus is a target exactly once; the last ones are padded with targets −1.
 *
 * "sentences": lanes take the sentences in the order of the corpus. "continuous": a single lane, whatever `batchSize`, since each further
 * lane would begin without the text before it.
 */
export function evaluationBatches(dataset: TokenDataset, options: BatchOptions): Iterable<Batch> {
  checkOptions(options);
  return { [Symbol.iterator]: () => (options.mode === "sentences" ? bySentence(dataset, options) : asStream(dataset, { ...options, batchSize: 1 })) };
}

function* bySentence(dataset: TokenDataset, options: BatchOptions): Generator<Batch, void, undefined> {
  const { batchSize, timeSteps } = options;
  const lanes = emptyLanes(batchSize);
  let sentence = 0;
  for (let rows = 0; sentence < dataset.sentences || lanes.some(({ at, end }) => at < end); rows += batchSize * timeSteps) {
    const batch = emptyBatch(options, rows, dataset.eosId);
    let tokens = 0;
    for (let index = 0; index < batchSize * timeSteps; index++) {
      const lane = lanes[index % batchSize];
      if (lane.at === lane.end) {
        if (sentence === dataset.sentences) continue;
        enter(lane, dataset, sentence++);
      }
      fillFromLane(batch, index, lane, dataset.tokens);
      tokens++;
    }
    yield { ...batch, tokens };
  }
}

function* asStream(dataset: TokenDataset, options: BatchOptions): Generator<Batch, void, undefined> {
  const lane: Lane = { start: 0, at: 0, end: dataset.tokens.length };
  while (lane.at < lane.end) {
    const batch = emptyBatch(options, lane.at, dataset.eosId);
    const tokens = Math.min(options.timeSteps, lane.end - lane.at);
    for (let t = 0; t < tokens; t++) fillFromLane(batch, t, lane, dataset.tokens);
    yield { ...batch, tokens };
  }
}

/** Puts a lane at the beginning of a sentence. */
function enter(lane: Lane, dataset: TokenDataset, sentence: number): void {
  lane.start = dataset.starts[sentence];
  lane.at = lane.start;
  lane.end = dataset.endOf(sentence);
}

/** Writes one position of a lane; at its start the input stays the end-of-sentence id. */
function fillFromLane({ inputs, targets, resets }: Batch, index: number, lane: Lane, tokens: Int32Array): void {
  targets[index] = tokens[lane.at];
  if (lane.at === lane.start) resets[index] = 1;
  else inputs[index] = tokens[lane.at - 1];
  lane.at++;
}

function emptyLanes(count: number): Lane[] {
  return Array.from({ length: count }, () => ({ start: 0, at: 0, end: 0 }));
}

function emptyBatch({ batchSize, timeSteps }: BatchOptions, firstRow: number, eosId: number): Batch {
  const size = batchSize * timeSteps;
  return {
    inputs: new Int32Array(size).fill(eosId),
    targets: new Int32Array(size).fill(-1),
    resets: new Int32Array(size),
    timeSteps,
    batchSize,
    tokens: 0,
    firstRow,
  };
}

function checkOptions({ batchSize, timeSteps, mode }: BatchOptions): void {
  for (const [name, value] of Object.entries({ batchSize, timeSteps })) {
    if (!Number.isInteger(value) || value < 1) throw new ConfigError(expectation(name, "a positive integer", value));
  }
  if (mode !== "sentences" && mode !== "continuous") throw new ConfigError(expectation("mode", '"sentences" or "continuous"', mode));
}
