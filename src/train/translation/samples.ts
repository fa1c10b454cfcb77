/** Translations to look at: from the worst to the best by the chrF of each sentence. */

import { checkInteger } from "../../core/checks.js";
import { sentenceChrf } from "../../text/chrf.js";
import type { ParallelCorpus } from "../../text/parallel.js";

/** A sentence with its translation. */
export interface TranslationSample {
  /** Which of the text it is, from 1. */
  sentence: number;
  /** 0 to 100. */
  chrf: number;
  source: string;
  reference: string;
  translation: string;
}

/**
 * So many sentences at equal distances in the order of their chrF, the first the worst and the last the best; of equal ones the earlier comes first. All of a
 * text that has no more than that; of one sample the worst.
 * @param count at least 1
 * @throws ConfigError when `count` is out of range, or there is not a translation for each sentence
 */
export function translationSamples({ sources, targets }: Pick<ParallelCorpus, "sources" | "targets">, translations: readonly string[], count: number): TranslationSample[] {
  checkInteger("translationSamples", "count", count, { min: 1 });
  const all = sources.map((source, i): TranslationSample => {
    const [reference, translation] = [targets[i]!, translations[i]!];
    return { sentence: i + 1, chrf: sentenceChrf(translation, reference).score, source, reference, translation };
  });
  const ordered = all.toSorted((a, b) => a.chrf - b.chrf);
  const taken = Math.min(count, ordered.length);
  return Array.from({ length: taken }, (_, i) => ordered[taken === 1 ? 0 : Math.round((i * (ordered.length - 1)) / (taken - 1))]!);
}
