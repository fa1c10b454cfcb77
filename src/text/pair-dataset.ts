/** Tokenised pairs of sentences, of one language pair or of several. */

import { checkInteger, checkNumber, checkOneOf } from "../core/checks.js";
import { ConfigError, expectation } from "../core/errors.js";
import { streamId, uniformsFrom } from "../core/random.js";
import { BpeTokenizer } from "./bpe.js";
import { type ParallelCorpus, languageToken } from "./parallel.js";
import type { Tokenizer } from "./tokenizer.js";

/** Ids of sentences, one after another: sentence i is at `starts[i]` to `starts[i + 1]`. None is empty, as each ends with the end-of-sentence id. */
export interface Sentences {
  readonly ids: Int32Array;
  readonly starts: Int32Array;
}

/** A language pair within a data set. */
export interface PairGroup {
  /** As `en-de`, or `corpus 0` where no languages are told. */
  readonly name: string;
  /** How many pairs there are. */
  readonly pairs: number;
  /** How many were cut or left out because a side was too long. */
  readonly tooLong: number;
}

/** Pairs of tokenised sentences. */
export class PairDataset {
  /**
   * @param sources a source ends with `eosId`, and begins with its language token where there is one @param targets a target ends with `eosId`
   * @param groups the language pairs @param groupOf the group of each pair @param rowOf where each pair was in its corpus
   */
  constructor(
    readonly sources: Sentences,
    readonly targets: Sentences,
    readonly groups: readonly PairGroup[],
    readonly groupOf: Int32Array,
    readonly rowOf: Int32Array,
    readonly eosId: number,
  ) {}

  /** How many pairs there are. */
  get pairs(): number {
    return this.groupOf.length;
  }

  /** How many ids the source of pair i has. */
  sourceLength(i: number): number {
    return this.sources.starts[i + 1] - this.sources.starts[i];
  }

  /** How many ids the target of pair i has, the end-of-sentence id among them. */
  targetLength(i: number): number {
    return this.targets.starts[i + 1] - this.targets.starts[i];
  }
}

/** How pairs are tokenised. */
export interface PairOptions {
  /** The most ids of a source, with its end and its language token; of a target, with its end. By default without bound. */
  readonly maxSourceTokens?: number;
  readonly maxTargetTokens?: number;
  /** What becomes of pairs with a longer side: `skip` (default) leaves them out, `cut` cuts that side and puts the end-of-sentence id after it. */
  readonly tooLong?: "skip" | "cut";
  /** Puts the token of the target language (`languageToken`) in front of each source, as one model for several languages needs. Default false. */
  readonly languageTokens?: boolean;
}

/**
 * Tokenises one corpus or several, each of them a group of its own.
 *
 * @throws ConfigError when the tokenizer has no token for a language, a corpus does not tell its target language where a token is asked for, two
 * corpora are of one language pair, a bound is too small, or no pair is left
 */
export function tokenizePairs(
  corpora: ParallelCorpus | readonly ParallelCorpus[],
  tokenizer: Tokenizer,
  options: PairOptions = {},
): PairDataset {
  const { maxSourceTokens = Infinity, maxTargetTokens = Infinity, tooLong = "skip", languageTokens = false } = options;
  const where = "tokenizePairs";
  const least = languageTokens ? 3 : 2;
  if (maxSourceTokens !== Infinity) checkInteger(where, "maxSourceTokens", maxSourceTokens, { min: least });
  if (maxTargetTokens !== Infinity) checkInteger(where, "maxTargetTokens", maxTargetTokens, { min: 2 });
  checkOneOf(where, "tooLong", tooLong, ["skip", "cut"]);

  const sources = new SentenceList();
  const targets = new SentenceList();
  const groupOf = new IntList();
  const rowOf = new IntList();
  const groups: PairGroup[] = [];
  for (const corpus of "sources" in corpora ? [corpora] : corpora) {
    const { sourceLanguage, targetLanguage } = corpus;
    const told = sourceLanguage !== undefined && targetLanguage !== undefined;
    const name = told ? `${sourceLanguage}-${targetLanguage}` : `corpus ${groups.length}`;
    if (groups.some((group) => group.name === name))
      throw new ConfigError(expectation(where, "one corpus a language pair", name));
    const front = languageFront(where, corpus, tokenizer, languageTokens);
    const before = groupOf.length;
    let long = 0;
    for (let row = 0; row < corpus.sources.length; row++) {
      const source = [...front, ...tokenizer.encode(corpus.sources[row]), tokenizer.eosId];
      const target = [...tokenizer.encode(corpus.targets[row]), tokenizer.eosId];
      if (source.length > maxSourceTokens || target.length > maxTargetTokens) {
        long++;
        if (tooLong === "skip") continue;
      }
      sources.push(cut(source, maxSourceTokens));
      targets.push(cut(target, maxTargetTokens));
      groupOf.push(groups.length);
      rowOf.push(row);
    }
    groups.push({ name, pairs: groupOf.length - before, tooLong: long });
  }
  if (groupOf.length === 0) {
    const left = groups.reduce((sum, group) => sum + group.tooLong, 0);
    throw new ConfigError(
      expectation(where, "at least one pair of sentences", left === 0 ? "none" : `none; ${left} are too long`),
    );
  }
  return new PairDataset(sources.done(), targets.done(), groups, groupOf.done(), rowOf.done(), tokenizer.eosId);
}

/** How the pairs of a data set are encoded anew. */
export interface BpeDropoutOptions {
  /** The probability of leaving a merge out (`BpeTokenizer.encodeWithDropout`). Provilkov et al. 2020 take 0.1. */
  readonly dropout: number;
  readonly seed: number;
}

/**
 * The pairs of a data set in other encodings each epoch: BPE-dropout (Provilkov et al. 2020), against overfitting little text.
 *
 * The encoding of a sentence is a function of the seed, the epoch and its place in the data set alone. A pair of which a side would be longer than any
 * in the data set keeps the encoding that it has there, so that what fits into batches and bounds goes on to fit.
 */
export class BpeDropout {
  readonly dropout: number;
  readonly #seed: number;
  readonly #corpora: readonly ParallelCorpus[];
  readonly #tokenizer: BpeTokenizer;
  readonly #longestSource: number;
  readonly #longestTarget: number;
  /** What stands in front of the sources of each corpus. */
  readonly #front: readonly (readonly number[])[];

  /**
   * @param dataset what `tokenizePairs` made of these corpora with this tokenizer @param languageTokens as there
   * @throws ConfigError when the tokenizer has no merges, or an option cannot be used
   */
  constructor(
    readonly dataset: PairDataset,
    corpora: ParallelCorpus | readonly ParallelCorpus[],
    tokenizer: Tokenizer,
    { dropout, seed, languageTokens = false }: BpeDropoutOptions & Pick<PairOptions, "languageTokens">,
  ) {
    const where = "BpeDropout";
    this.dropout = checkNumber(where, "dropout", dropout, { min: 0, max: 1 });
    this.#seed = checkInteger(where, "seed", seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
    if (!(tokenizer instanceof BpeTokenizer)) {
      throw new ConfigError(expectation(where, "a byte-pair tokenizer", "one without merges", "Train one with trainBpe."));
    }
    this.#tokenizer = tokenizer;
    this.#corpora = "sources" in corpora ? [corpora] : corpora;
    this.#front = this.#corpora.map((corpus) => languageFront(where, corpus, tokenizer, languageTokens));
    const longest = (length: (pair: number) => number): number => dataset.groupOf.reduce((most, _, pair) => Math.max(most, length(pair)), 0);
    this.#longestSource = longest((pair) => dataset.sourceLength(pair));
    this.#longestTarget = longest((pair) => dataset.targetLength(pair));
  }

  /** The data set in the encodings of an epoch, from 0. */
  epoch(epoch: number): PairDataset {
    const { sources, targets, groups, groupOf, rowOf, eosId, pairs } = this.dataset;
    const newSources = new SentenceList();
    const newTargets = new SentenceList();
    for (let pair = 0; pair < pairs; pair++) {
      const [group, row] = [groupOf[pair], rowOf[pair]];
      const source = [...this.#front[group], ...this.#encode(this.#corpora[group].sources[row], "source", epoch, pair), eosId];
      const target = [...this.#encode(this.#corpora[group].targets[row], "target", epoch, pair), eosId];
      const fits = source.length <= this.#longestSource && target.length <= this.#longestTarget;
      newSources.push(fits ? source : sentence(sources, pair));
      newTargets.push(fits ? target : sentence(targets, pair));
    }
    return new PairDataset(newSources.done(), newTargets.done(), groups, groupOf, rowOf, eosId);
  }

  #encode(text: string, side: string, epoch: number, pair: number): number[] {
    // A sentence has 2^24 numbers to itself: more than it can draw, being no longer than a batch.
    const uniform = uniformsFrom({ seed: this.#seed, stream: streamId("bpe-dropout", side), step: epoch }, pair * 2 ** 24);
    return this.#tokenizer.encodeWithDropout(text, this.dropout, uniform);
  }
}

/** The token of the target language, where one is asked for. */
function languageFront(where: string, { targetLanguage }: ParallelCorpus, tokenizer: Tokenizer, languageTokens: boolean): number[] {
  if (!languageTokens) return [];
  if (targetLanguage === undefined) {
    const hint = "Tell targetLanguage when the corpus is read.";
    throw new ConfigError(expectation(where, "the target language of each corpus", "none", hint));
  }
  return [tokenizer.specialId(languageToken(targetLanguage))];
}

function sentence({ ids, starts }: Sentences, i: number): Int32Array {
  return ids.subarray(starts[i], starts[i + 1]);
}

/** The first of the ids, with the last of them at the end still. */
function cut(ids: number[], most: number): number[] {
  return ids.length <= most ? ids : [...ids.slice(0, most - 1), ids.at(-1)!];
}

/** An array of integers that grows. */
class IntList {
  length = 0;
  #values = new Int32Array(1 << 12);

  push(value: number): void {
    if (this.length === this.#values.length) {
      const larger = new Int32Array(2 * this.length);
      larger.set(this.#values);
      this.#values = larger;
    }
    this.#values[this.length++] = value;
  }

  done(): Int32Array {
    return this.#values.slice(0, this.length);
  }
}

class SentenceList {
  readonly #ids = new IntList();
  readonly #starts = new IntList();

  constructor() {
    this.#starts.push(0);
  }

  push(ids: Iterable<number>): void {
    for (const id of ids) this.#ids.push(id);
    this.#starts.push(this.#ids.length);
  }

  done(): Sentences {
    return { ids: this.#ids.done(), starts: this.#starts.done() };
  }
}
