/** BLEU (Papineni et al. 2002) as sacrebleu 2 computes and prints it (Post 2018), and as multi-bleu.perl of Moses does, which the literature on Multi30k uses. */

import { checkInteger, checkNumber, checkOneOf } from "../core/checks.js";
import { ConfigError, expectation } from "../core/errors.js";
import { BLEU_TOKENIZATIONS, type BleuTokenization } from "./bleu-tokens.js";
import { type References, SCORE_VERSION, checkSegments, fixed, ngrams, referenceCount } from "./score.js";

/** What stands in for a precision of zero: `exp` (each halves the one before), `floor` (a small count), `add-k` (k more of all but single words), `none`. */
export type BleuSmoothing = "exp" | "floor" | "add-k" | "none";

/** Options of BLEU; the defaults are sacrebleu's, so that figures can be compared. */
export interface BleuOptions {
  /** Compare in lower case. Default false ("mixed case"). */
  readonly lowercase?: boolean;
  /** How segments are cut into tokens. Default `13a`. */
  readonly tokenize?: BleuTokenization;
  /** Default `exp`. */
  readonly smoothing?: BleuSmoothing;
  /** The count of `floor` (default 0.1), the k of `add-k` (default 1); the other kinds take none. */
  readonly smoothingValue?: number;
  /** The longest runs of tokens that are compared. Default 4. */
  readonly maxOrder?: number;
  /** Leave out the orders that no translation is long enough for. Default false for a corpus, true for a sentence. */
  readonly effectiveOrder?: boolean;
}

/** A BLEU score and what it is made of. Lists have one entry an order, 1 to `maxOrder`. */
export interface BleuScore {
  /** 0 to 100. */
  readonly score: number;
  /** In percent, after smoothing. */
  readonly precisions: readonly number[];
  /** Runs of tokens that are in a reference too, and all runs; with the k of `add-k`. */
  readonly counts: readonly number[];
  readonly totals: readonly number[];
  /** exp(1 − reference length / translation length) where translations are shorter than references, otherwise 1. */
  readonly brevityPenalty: number;
  /** Tokens of the translations, and of the references nearest to them in length (the shorter of two as near). */
  readonly hypothesisLength: number;
  readonly referenceLength: number;
  /** How it was computed, as in `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:sparsegate-0.1.0`. */
  readonly signature: string;
}

type Settings = Required<Omit<BleuOptions, "tokenize" | "lowercase">>;

/** sacrebleu's log of zero. */
const LOG_ZERO = -9999999999;

/**
 * BLEU of a document: BP · exp(mean over n of log p_n), p_n the share of the translations' runs of n tokens that are in a reference of their segment.
 *
 * Equal to sacrebleu 2.6 for the same options, to rounding. Segments count as they stand, empty ones too.
 *
 * @param hypotheses the translations, a segment each
 * @param references for each segment its reference or references
 * @throws ConfigError when counts of segments differ, a segment has no reference, or an option cannot be used
 * @see Papineni et al. 2002; Post 2018, "A call for clarity in reporting BLEU scores"
 */
export function corpusBleu(hypotheses: readonly string[], references: References, options: BleuOptions = {}): BleuScore {
  return bleuOf("corpusBleu", hypotheses, references, { effectiveOrder: false, ...options });
}

/** BLEU of one segment, with `effectiveOrder` unless told otherwise, as sacrebleu's `sentence_bleu`. */
export function sentenceBleu(hypothesis: string, references: string | readonly string[], options: BleuOptions = {}): BleuScore {
  return bleuOf("sentenceBleu", [hypothesis], [references], { effectiveOrder: true, ...options });
}

/**
 * Lower-cased tokenised BLEU, what multi-bleu.perl prints: four orders, no smoothing, tokens compared in lower case.
 *
 * The literature on Multi30k lower-cases the corpus and tokenises it with the scripts of Moses, whose lists of abbreviations for each language
 * are not in this package. So `tokenize: "none"` on text that Moses has tokenised gives exactly the published measure; the default `13a` cuts
 * raw text by the rules of mteval-v13a instead, which was 0.4 to 0.5 points off in a trial on German, French and English captions: say so
 * beside the figure, as the signature does.
 * Lower-casing is Unicode's; the script's own flag `-lc` lowers ASCII letters alone, so it is to be compared on text lowered before.
 */
export function multiBleu(
  hypotheses: readonly string[],
  references: References,
  { tokenize = "13a", lowercase = true }: { readonly tokenize?: "13a" | "none"; readonly lowercase?: boolean } = {},
): BleuScore {
  checkOneOf("multiBleu", "tokenize", tokenize, ["13a", "none"]);
  // Perl's split knows ASCII white space alone.
  const cut =
    tokenize === "none"
      ? (text: string): string[] => text.split(/[\t-\r ]+/).filter((token) => token !== "")
      : BLEU_TOKENIZATIONS["13a"];
  const tokens = (text: string): string[] => cut(lowercase ? text.toLowerCase() : text);
  const lists = checkSegments("multiBleu", hypotheses, references);
  const settings: Settings = { smoothing: "none", smoothingValue: 0, maxOrder: 4, effectiveOrder: false };
  const signature = `${referenceCount(lists)}|case:${lowercase ? "lc" : "mixed"}|eff:no|tok:${tokenize}|smooth:none|kind:multi-bleu|version:${SCORE_VERSION}`;
  return {
    ...scoreOf(
      statisticsOf(
        hypotheses.map(tokens),
        lists.map((list) => list.map(tokens)),
        4,
      ),
      settings,
    ),
    signature,
  };
}

/** One line as sacrebleu prints it: `BLEU = 25.0 60.1/31.5/19.0/12.3 (BP = 0.950 ratio = 0.951 hyp_len = 97 ref_len = 102)`. */
export function formatBleu(
  bleu: BleuScore,
  { width = 1, signature = false }: { readonly width?: number; readonly signature?: boolean } = {},
): string {
  const { score, precisions, brevityPenalty, hypothesisLength, referenceLength } = bleu;
  const ratio = referenceLength === 0 ? 0 : hypothesisLength / referenceLength;
  const lengths = `ratio = ${fixed(ratio, 3)} hyp_len = ${hypothesisLength} ref_len = ${referenceLength}`;
  const name = signature ? `BLEU|${bleu.signature}` : "BLEU";
  return `${name} = ${fixed(score, width)} ${precisions.map((p) => fixed(p, 1)).join("/")} (BP = ${fixed(brevityPenalty, 3)} ${lengths})`;
}

function bleuOf(where: string, hypotheses: readonly string[], references: References, options: BleuOptions): BleuScore {
  const {
    lowercase = false,
    tokenize = "13a",
    smoothing = "exp",
    smoothingValue,
    maxOrder = 4,
    effectiveOrder = false,
  } = options;
  checkOneOf(where, "tokenize", tokenize, Object.keys(BLEU_TOKENIZATIONS) as BleuTokenization[]);
  checkOneOf(where, "smoothing", smoothing, ["exp", "floor", "add-k", "none"]);
  checkInteger(where, "maxOrder", maxOrder, { min: 1 });
  const takesValue = smoothing === "floor" || smoothing === "add-k";
  if (smoothingValue !== undefined) {
    if (!takesValue) throw new ConfigError(expectation(where, `no smoothingValue for smoothing ${smoothing}`, smoothingValue));
    checkNumber(where, "smoothingValue", smoothingValue, { min: 0 });
  }
  const value = smoothingValue ?? (smoothing === "floor" ? 0.1 : 1);
  const lists = checkSegments(where, hypotheses, references);
  const tokens = (text: string): string[] => BLEU_TOKENIZATIONS[tokenize](lowercase ? text.toLowerCase() : text);
  const statistics = statisticsOf(
    hypotheses.map(tokens),
    lists.map((list) => list.map(tokens)),
    maxOrder,
  );
  const score = scoreOf(statistics, { smoothing, smoothingValue: value, maxOrder, effectiveOrder });
  const signature = [
    referenceCount(lists),
    `case:${lowercase ? "lc" : "mixed"}`,
    `eff:${effectiveOrder ? "yes" : "no"}`,
    `tok:${tokenize}`,
    `smooth:${smoothing}${takesValue ? `[${fixed(value, 2)}]` : ""}`,
    // sacrebleu does not tell it; a score of other than four orders is another measure.
    ...(maxOrder === 4 ? [] : [`order:${maxOrder}`]),
    `version:${SCORE_VERSION}`,
  ].join("|");
  return { ...score, signature };
}

interface Statistics {
  readonly counts: number[];
  readonly totals: number[];
  readonly hypothesisLength: number;
  readonly referenceLength: number;
}

/** Matches of all segments together: a run counts at most as often as in the reference that has it most often. */
function statisticsOf(hypotheses: readonly string[][], references: readonly string[][][], maxOrder: number): Statistics {
  const counts = new Array<number>(maxOrder).fill(0);
  const totals = new Array<number>(maxOrder).fill(0);
  let hypothesisLength = 0;
  let referenceLength = 0;
  hypotheses.forEach((tokens, segment) => {
    const lists = references[segment];
    hypothesisLength += tokens.length;
    const off = (length: number): number => Math.abs(length - tokens.length);
    referenceLength += lists
      .map(({ length }) => length)
      .reduce((best, length) => ((off(length) - off(best) || length - best) < 0 ? length : best));
    for (let n = 1; n <= maxOrder && n <= tokens.length; n++) {
      const inReferences = lists.map((list) => ngrams(list, n, " "));
      for (const [ngram, count] of ngrams(tokens, n, " ")) {
        counts[n - 1] += Math.min(count, Math.max(...inReferences.map((ngramCounts) => ngramCounts.get(ngram) ?? 0)));
        totals[n - 1] += count;
      }
    }
  });
  return { counts, totals, hypothesisLength, referenceLength };
}

/** The score of what was counted; smoothing as in Chen and Cherry 2014 (`floor` is their method 1, `add-k` 2, `exp` 3). */
function scoreOf(
  statistics: Statistics,
  { smoothing, smoothingValue, maxOrder, effectiveOrder }: Settings,
): Omit<BleuScore, "signature"> {
  const { counts, totals, hypothesisLength, referenceLength } = statistics;
  const short = hypothesisLength < referenceLength;
  const brevityPenalty = !short ? 1 : hypothesisLength === 0 ? 0 : Math.exp(1 - referenceLength / hypothesisLength);
  const precisions = new Array<number>(maxOrder).fill(0);
  const result = { precisions, counts, totals, brevityPenalty, hypothesisLength, referenceLength };
  if (counts.every((count) => count === 0)) return { score: 0, ...result };

  let order = maxOrder;
  let halvings = 1;
  for (let n = 1; n <= maxOrder; n++) {
    const i = n - 1;
    if (smoothing === "add-k" && n > 1) {
      counts[i] += smoothingValue;
      totals[i] += smoothingValue;
    }
    if (totals[i] === 0) break;
    if (effectiveOrder) order = n;
    if (counts[i] > 0) precisions[i] = (100 * counts[i]) / totals[i];
    else if (smoothing === "exp") precisions[i] = 100 / ((halvings *= 2) * totals[i]);
    else if (smoothing === "floor") precisions[i] = (100 * smoothingValue) / totals[i];
  }
  const logs = precisions.slice(0, order).map((p) => (p === 0 ? LOG_ZERO : Math.log(p)));
  return { score: brevityPenalty * Math.exp(logs.reduce((sum, log) => sum + log, 0) / order), ...result };
}
