/** The compiler's messages as a small multilingual translation task, and how many of their placeholders survive a translation. */

import { ConfigError, expectation } from "../core/errors.js";
import type { Message } from "./messages.js";
import type { ParallelCorpus } from "./parallel.js";

/** The languages of the paper's multilingual model beside English: French, German, Japanese, Korean, Portuguese, Spanish (Shazeer et al. 2017, App. E). */
export const PAPER_LANGUAGES: readonly string[] = ["fr", "de", "ja", "ko", "pt-br", "es"];

/**
 * One corpus for each direction: from English into each language, and back, twelve for the paper's six. A message is in a corpus when it is in
 * both languages, in the order of `messages`.
 *
 * Split first (`splitMessages`): all translations of a message are then in one part, so that no test sentence was seen in another language.
 *
 * @throws ConfigError for English, a language twice, or one that has no message in common with English
 */
export function messagePairs(messages: readonly Message[], languages: readonly string[] = PAPER_LANGUAGES): ParallelCorpus[] {
  const byLanguage = new Map<string, Map<string, string>>();
  for (const { key, language, text } of messages) {
    let texts = byLanguage.get(language);
    if (texts === undefined) byLanguage.set(language, (texts = new Map()));
    texts.set(key, text);
  }
  const english = byLanguage.get("en") ?? new Map<string, string>();
  return languages.flatMap((language, i) => {
    if (language === "en" || languages.indexOf(language) < i)
      throw new ConfigError(expectation("messagePairs", "languages beside English, each once", languages));
    const keys = [...(byLanguage.get(language)?.keys() ?? [])].filter((key) => english.has(key));
    if (keys.length === 0) throw new ConfigError(expectation("messagePairs", `messages in English and in ${language}`, "none"));
    const [here, there] = [keys.map((key) => english.get(key)!), keys.map((key) => byLanguage.get(language)!.get(key)!)];
    const leftOut = { emptySource: 0, emptyTarget: 0, emptyBoth: 0 };
    return [
      { sourceLanguage: "en", targetLanguage: language, sources: here, targets: there, leftOut },
      { sourceLanguage: language, targetLanguage: "en", sources: there, targets: here, leftOut },
    ];
  });
}

/** The placeholders of a message, as `{0}`, in their order. */
export function placeholders(text: string): string[] {
  return text.match(/\{\d+\}/g) ?? [];
}

/** How placeholders fared in translations. */
export interface PlaceholderCount {
  /** In the sources. */
  readonly expected: number;
  /** Of these, in the translation too, wherever they stand; one that occurs twice must be there twice. */
  readonly kept: number;
  /** In translations, without one in the source. */
  readonly invented: number;
  /** kept / expected; 1 where there was none to keep. */
  readonly share: number;
}

/** Counts the placeholders that survive in translations. @throws ConfigError when there are not as many translations as sources */
export function countPlaceholders(sources: readonly string[], translations: readonly string[]): PlaceholderCount {
  if (sources.length !== translations.length) {
    throw new ConfigError(expectation("countPlaceholders", `translations of ${sources.length} sources`, translations.length));
  }
  let expected = 0;
  let kept = 0;
  let found = 0;
  sources.forEach((source, i) => {
    const left = new Map<string, number>();
    for (const placeholder of placeholders(source)) {
      left.set(placeholder, (left.get(placeholder) ?? 0) + 1);
      expected++;
    }
    for (const placeholder of placeholders(translations[i])) {
      found++;
      const count = left.get(placeholder) ?? 0;
      if (count === 0) continue;
      left.set(placeholder, count - 1);
      kept++;
    }
  });
  return { expected, kept, invented: found - kept, share: expected === 0 ? 1 : kept / expected };
}
