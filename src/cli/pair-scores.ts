/** What `train` says of several pairs of languages: how much text there is of each, and its scores in the end. */

import type { PairDataset } from "../text/pair-dataset.js";
import type { ParallelCorpus } from "../text/parallel.js";
import type { TranslationEvaluation } from "../train/translation/evaluate.js";
import { table } from "./format.js";

/** The training text in numbers of pairs of sentences, and as a note. */
export function countText(corpora: readonly ParallelCorpus[], { groups, pairs }: PairDataset): { pairs: number; tooLong: number; note: string } {
  const tooLong = groups.reduce((sum, group) => sum + group.tooLong, 0);
  const empty = corpora.reduce((sum, { leftOut }) => sum + leftOut.emptySource + leftOut.emptyTarget + leftOut.emptyBoth, 0);
  const each = groups.length > 1 ? ` (${groups.map((group) => `${group.name} ${group.pairs}`).join(", ")})` : "";
  return { pairs, tooLong, note: `Text: ${pairs} pairs to train on${each}; ${tooLong} left out as too long, ${empty} as empty.` };
}

/** Scores of one pair of languages, of those texts that were evaluated. */
export type PairScores = { pair: string; bleu_signature: string } & { [score in `${"valid" | "test"}_${"perplexity" | "bleu"}`]?: number };

/** Scores of each pair of languages; none where there is one pair, whose scores are those of the run. */
export function pairScores(valid: TranslationEvaluation | undefined, test: TranslationEvaluation | undefined): PairScores[] {
  const texts = (valid ?? test)?.texts ?? [];
  if (texts.length < 2) return [];
  return texts.map(({ name, bleu }, i) => {
    const [ofValid, ofTest] = [valid?.texts[i], test?.texts[i]];
    return {
      pair: name,
      ...(ofValid && { valid_perplexity: ofValid.perplexity, valid_bleu: ofValid.bleu.score }),
      ...(ofTest && { test_perplexity: ofTest.perplexity, test_bleu: ofTest.bleu.score }),
      bleu_signature: bleu.signature,
    };
  });
}

/** Scores of pairs as the terminal shows them; they have the same texts. */
export function pairTable(scores: readonly PairScores[]): string {
  const keys = (["valid_perplexity", "valid_bleu", "test_perplexity", "test_bleu"] as const).filter((key) => scores[0]?.[key] !== undefined);
  return table(
    ["pair", ...keys.map((key) => key.replace("_", " ").replace("bleu", "BLEU"))],
    scores.map((one) => [one.pair, ...keys.map((key) => one[key]!.toFixed(2))]),
  );
}
