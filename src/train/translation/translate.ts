/** Text to translated text: sentences sorted by length into batches, searched, and put back in their order. */

import type { Communicator } from "../../comm/communicator.js";
import { checkInteger } from "../../core/checks.js";
import { ConfigError, expectation } from "../../core/errors.js";
import { beamSearch, type BeamOptions } from "../../models/beam-search.js";
import type { SourceBatch, TranslationModel } from "../../models/translation-model.js";
import { languageToken } from "../../text/parallel.js";
import type { Tokenizer } from "../../text/tokenizer.js";
import { onAnyRank } from "../ranks.js";

/** How texts are translated. */
export interface TranslateOptions extends Omit<BeamOptions, "eosId" | "anyRank"> {
  /** Sentences at once. Default 32. */
  batchSize?: number;
  /** Longer sources are cut, their end-of-sentence id counted in. Default 100. */
  maxSourceTokens?: number;
  /** The language to translate into, for a model of several: its token is put in front. */
  language?: string | undefined;
  /** Where the model's experts are spread over ranks: all call at once, each with its own texts. */
  comm?: Communicator | undefined;
}

/** A translation of one text. */
export interface Translation {
  text: string;
  /** By which translations are ranked: see `beamSearch`. */
  score: number;
  logProbability: number;
  /** What the model read and wrote, the ends of the sentences among them. */
  sourceTokens: string[];
  targetTokens: string[];
  /** (targetTokens, sourceTokens) how much was read of each. */
  attention: Float32Array[];
}

/** The translations of texts. */
export interface Translated {
  /** For each text its translations, best first. A text of white space alone has one, which is empty. */
  translations: Translation[][];
  /** Texts that were cut. */
  cut: number;
}

/** All at once. @throws ConfigError for an option out of range, or a model of another vocabulary */
export function translate(model: TranslationModel, tokenizer: Tokenizer, texts: readonly string[], options: TranslateOptions = {}): Translated {
  const steps = translateSteps(model, tokenizer, texts, options);
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}

/** `translate` that rests after each batch, and says how many texts are done. */
export function* translateSteps(model: TranslationModel, tokenizer: Tokenizer, texts: readonly string[], options: TranslateOptions = {}): Generator<number, Translated> {
  const { batchSize = 32, maxSourceTokens = 100, language, comm, ...search } = options;
  const where = "translate";
  checkInteger(where, "batchSize", batchSize, { min: 1 });
  checkInteger(where, "maxSourceTokens", maxSourceTokens, { min: 3 });
  if (tokenizer.vocabSize !== model.config.vocabSize) {
    throw new ConfigError(expectation(where, `a tokenizer of ${model.config.vocabSize} tokens (the model's vocabulary)`, tokenizer.vocabSize));
  }
  const front = language === undefined ? [] : [tokenizer.specialId(languageToken(language))];
  let cut = 0;
  const nothing: Translation = { text: "", score: 0, logProbability: 0, sourceTokens: [], targetTokens: [], attention: [] };
  const translations = texts.map(() => [nothing]);
  const sources = texts.flatMap((text, index) => {
    if (text.trim() === "") return [];
    const ids = [...front, ...tokenizer.encode(text)];
    if (ids.length >= maxSourceTokens) cut++;
    return [{ index, ids: [...ids.slice(0, maxSourceTokens - 1), tokenizer.eosId] }];
  });
  sources.sort((a, b) => a.ids.length - b.ids.length || a.index - b.index);
  const anyRank = (going: boolean): boolean => onAnyRank(comm, going);
  for (let first = 0; anyRank(first < sources.length); first += batchSize) {
    const part = sources.slice(first, first + batchSize);
    const found = beamSearch(model, sourceBatch(part.map(({ ids }) => ids), tokenizer.eosId), { ...search, eosId: tokenizer.eosId, ...(comm ? { anyRank } : {}) });
    for (const [i, { index, ids: source }] of part.entries()) {
      translations[index] = found[i]!.map(({ ids, score, logProbability, attention }) => ({
        text: tokenizer.decode(ids),
        score,
        logProbability,
        sourceTokens: source.map((id) => tokenizer.tokenText(id)),
        targetTokens: [...ids, tokenizer.eosId].map((id) => tokenizer.tokenText(id)),
        attention,
      }));
    }
    yield Math.min(first, sources.length) + part.length;
  }
  return { translations, cut };
}

/** Sentences side by side, time first; the padding is `padding`. */
export function sourceBatch(sentences: readonly (readonly number[])[], padding: number): SourceBatch {
  const sourceSteps = sentences.reduce((most, { length }) => Math.max(most, length), 0);
  const batchSize = sentences.length;
  const sources = Int32Array.from({ length: sourceSteps * batchSize }, (_, i) => sentences[i % batchSize]![Math.floor(i / batchSize)] ?? padding);
  return { sources, sourceSteps, batchSize, sourceLengths: Int32Array.from(sentences, ({ length }) => length) };
}
