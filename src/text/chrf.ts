/** chrF (Popović 2015) and chrF++ (Popović 2017) as sacrebleu 2 computes them: an F score of runs of characters, and of words. */

import { checkInteger, checkNumber } from "../core/checks.js";
import { type References, SCORE_VERSION, checkSegments, fixed, ngrams, referenceCount, words } from "./score.js";

/** Options of chrF; the defaults are sacrebleu's. */
export interface ChrfOptions {
  /** The longest runs of characters (code points). Default 6. */
  readonly charOrder?: number;
  /** The longest runs of words: 0 for chrF (default), 2 for chrF++. */
  readonly wordOrder?: number;
  /** How many times recall weighs as much as precision. Default 2. */
  readonly beta?: number;
  /** Compare in lower case. Default false. */
  readonly lowercase?: boolean;
  /** Keep white space in the runs of characters. Default false. */
  readonly whitespace?: boolean;
}

/** A chrF score. */
export interface ChrfScore {
  /** 0 to 100. */
  readonly score: number;
  /** `chrF2`, or `chrF2++` for words up to pairs; the digit is beta. */
  readonly name: string;
  /** How it was computed, as in `nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:sparsegate-0.1.0`. */
  readonly signature: string;
}

type Settings = Required<ChrfOptions>;

/** Punctuation of ASCII, which is cut off the end of a word, or else off its start. */
const PUNCTUATION = /[!-/:-@[-`{-~]/;

/**
 * chrF of a document: F_β = (1 + β²)·P·R / (β²·P + R), P and R the means over orders of the precision and the recall of all segments together.
 *
 * Orders that the translations or the references are too short for are left out of the means (sacrebleu's effective order). Of several
 * references the one with the best F counts in each segment. Equal to sacrebleu 2.6 for the same options, to rounding; like there, runs of an
 * order of which a segment's reference has none do not count as wrong.
 *
 * @param hypotheses the translations, a segment each
 * @param references for each segment its reference or references
 * @throws ConfigError when counts of segments differ, a segment has no reference, or an option cannot be used
 * @see Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"
 */
export function corpusChrf(hypotheses: readonly string[], references: References, options: ChrfOptions = {}): ChrfScore {
  return chrfOf("corpusChrf", hypotheses, references, options);
}

/** chrF of one segment. */
export function sentenceChrf(hypothesis: string, references: string | readonly string[], options: ChrfOptions = {}): ChrfScore {
  return chrfOf("sentenceChrf", [hypothesis], [references], options);
}

/** One line as sacrebleu prints it: `chrF2++ = 52.9`. */
export function formatChrf(
  chrf: ChrfScore,
  { width = 1, signature = false }: { readonly width?: number; readonly signature?: boolean } = {},
): string {
  return `${chrf.name}${signature ? `|${chrf.signature}` : ""} = ${fixed(chrf.score, width)}`;
}

function chrfOf(where: string, hypotheses: readonly string[], references: References, options: ChrfOptions): ChrfScore {
  const { charOrder = 6, wordOrder = 0, beta = 2, lowercase = false, whitespace = false } = options;
  checkInteger(where, "charOrder", charOrder, { min: 1 });
  checkInteger(where, "wordOrder", wordOrder, { min: 0 });
  checkNumber(where, "beta", beta, { min: 0 });
  const lists = checkSegments(where, hypotheses, references);
  const settings: Settings = { charOrder, wordOrder, beta, lowercase, whitespace };
  const totals = new Array<number>(3 * (charOrder + wordOrder)).fill(0);
  hypotheses.forEach((hypothesis, segment) => {
    const statistics = segmentStatistics(hypothesis, lists[segment], settings);
    for (let i = 0; i < totals.length; i++) totals[i] += statistics[i];
  });
  const fields = [
    `case:${lowercase ? "lc" : "mixed"}`,
    "eff:yes",
    `nc:${charOrder}`,
    `nw:${wordOrder}`,
    `space:${whitespace ? "yes" : "no"}`,
  ];
  return {
    score: fScore(totals, beta),
    name: `chrF${beta}${"+".repeat(wordOrder)}`,
    signature: [referenceCount(lists), ...fields, `version:${SCORE_VERSION}`].join("|"),
  };
}

/** For each order the runs of the translation, of the reference and of both, by the reference with the best F; the first of equals. */
function segmentStatistics(hypothesis: string, references: readonly string[], settings: Settings): number[] {
  const own = allNgrams(hypothesis, settings);
  let best: number[] = [];
  let bestScore = -1;
  for (const reference of references) {
    const other = allNgrams(reference, settings);
    const statistics = own.flatMap((ngramCounts, i) => {
      let runs = 0;
      let matches = 0;
      for (const [ngram, count] of ngramCounts) {
        runs += count;
        matches += Math.min(count, other[i].get(ngram) ?? 0);
      }
      const inReference = [...other[i].values()].reduce((sum, count) => sum + count, 0);
      return [inReference > 0 ? runs : 0, inReference, matches];
    });
    const score = fScore(statistics, settings.beta);
    if (score > bestScore) [best, bestScore] = [statistics, score];
  }
  return best;
}

/** Counts of the runs of 1 to `charOrder` characters, then of 1 to `wordOrder` words. */
function allNgrams(text: string, { charOrder, wordOrder, lowercase, whitespace }: Settings): Map<string, number>[] {
  const cased = lowercase ? text.toLowerCase() : text;
  const characters = Array.from(whitespace ? cased : words(cased).join(""));
  const tokens = wordOrder === 0 ? [] : words(cased).flatMap(separatePunctuation);
  return [
    ...Array.from({ length: charOrder }, (_, i) => ngrams(characters, i + 1, "")),
    ...Array.from({ length: wordOrder }, (_, i) => ngrams(tokens, i + 1, " ")),
  ];
}

/** As the first implementation of chrF++: "(hi)" becomes "(hi" and ")", at one end alone. */
function separatePunctuation(word: string): string[] {
  if (word.length === 1) return [word];
  if (PUNCTUATION.test(word.at(-1)!)) return [word.slice(0, -1), word.at(-1)!];
  return PUNCTUATION.test(word[0]) ? [word[0], word.slice(1)] : [word];
}

/** The F score, 0 to 100, of (translation, reference, both) counts by order. */
function fScore(statistics: readonly number[], beta: number): number {
  let precision = 0;
  let recall = 0;
  let orders = 0;
  for (let i = 0; i < statistics.length; i += 3) {
    const [own, other, both] = statistics.slice(i, i + 3);
    if (own === 0 || other === 0) continue;
    precision += both / own;
    recall += both / other;
    orders++;
  }
  if (precision + recall === 0) return 0;
  const factor = beta ** 2;
  return (100 * (1 + factor) * (precision / orders) * (recall / orders)) / ((factor * precision) / orders + recall / orders);
}
