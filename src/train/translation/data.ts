/** From a configuration to corpora, tokenizer and pairs. One corpus is one pair of languages; of several, one model learns all. */

import { existsSync } from "node:fs";
import { FileError, expectation } from "../../core/errors.js";
import { trainBpe } from "../../text/bpe.js";
import { BpeDropout, tokenizePairs, type PairDataset } from "../../text/pair-dataset.js";
import { languageToken, readParallel, type ParallelCorpus } from "../../text/parallel.js";
import type { Tokenizer } from "../../text/tokenizer.js";
import { flagOf } from "../config.js";
import type { TranslationConfig } from "./config.js";
import { TEXTS, pairTexts, type TextPart } from "./pairs.js";

/** The texts of a run. */
export interface TranslationCorpora {
  train: readonly ParallelCorpus[];
  valid?: readonly ParallelCorpus[];
  test?: readonly ParallelCorpus[];
}

/** A text to evaluate on: every pair of it, and whole, however long. Only for translations are sources cut, as at any other time. */
export interface EvaluationText {
  /** As `en-de`. */
  name: string;
  corpus: ParallelCorpus;
  data: PairDataset;
}

export interface TranslationDatasets {
  tokenizer: Tokenizer;
  train: PairDataset;
  /** Other encodings of `train` in each epoch. */
  bpeDropout?: BpeDropout;
  valid?: EvaluationText[];
  test?: EvaluationText[];
  /** Whether a token of the target language stands in front of each source. */
  multilingual: boolean;
}

/**
 * Reads a text of a run, a corpus for each pair of languages: pairs of sentences with an empty side are left out of training, and kept in evaluation.
 * @throws FileError naming file and line
 */
export async function readText(config: TranslationConfig, part: TextPart): Promise<ParallelCorpus[]> {
  checkFiles(config, part);
  return readPairs(config, part);
}

async function readPairs(config: TranslationConfig, part: TextPart): Promise<ParallelCorpus[]> {
  const corpora: ParallelCorpus[] = [];
  for (const input of pairTexts(config, part)) corpora.push(await readParallel({ ...input, empty: part === "train" ? "skip" : "keep" }));
  return corpora;
}

/** Reads the texts of a run. @throws FileError naming file and line */
export async function readCorpora(config: TranslationConfig): Promise<TranslationCorpora> {
  // Before any is read: that may take minutes.
  for (const part of TEXTS) checkFiles(config, part);
  return {
    train: await readPairs(config, "train"),
    ...(config.valid === undefined ? {} : { valid: await readPairs(config, "valid") }),
    ...(config.test === undefined ? {} : { test: await readPairs(config, "test") }),
  };
}

/** @throws FileError where a pair's file is missing, naming the pair and the option that its name was made from */
function checkFiles(config: TranslationConfig, part: TextPart): void {
  if (config.pairs === undefined) return; // what reads the file says it as well
  for (const text of pairTexts(config, part)) {
    const files = "sourceFile" in text ? { [part]: text.sourceFile, [`${part}_target`]: text.targetFile } : { [part]: text.file };
    for (const [key, file] of Object.entries(files)) {
      if (existsSync(file)) continue;
      const hint = "Check the names, or leave the pair out of --pairs.";
      throw new FileError(expectation(`${flagOf(key)} ${config[key as TextPart]}`, `a file ${file} for ${text.sourceLanguage}-${text.targetLanguage}`, "no such file", hint));
    }
  }
}

/** Texts to evaluate on. @param languageTokens whether a token of the target language stands in front of each source */
export function evaluationTexts(corpora: readonly ParallelCorpus[], tokenizer: Tokenizer, languageTokens: boolean): EvaluationText[] {
  return corpora.map((corpus) => {
    const data = tokenizePairs(corpus, tokenizer, { languageTokens });
    return { name: data.groups[0]!.name, corpus, data };
  });
}

/**
 * Tokenises the texts of a run.
 * @param tokenizer of the checkpoint that is resumed; otherwise trained on both sides of the training text, each sentence once
 * @throws ConfigError where no pair is short enough
 */
export function makeTranslationDatasets(config: TranslationConfig, corpora: TranslationCorpora, tokenizer = makeTranslationTokenizer(config, corpora.train)): TranslationDatasets {
  const languageTokens = corpora.train.length > 1;
  const { max_source_tokens: maxSourceTokens, max_target_tokens: maxTargetTokens, bpe_dropout: dropout, seed } = config;
  const train = tokenizePairs(corpora.train, tokenizer, { maxSourceTokens, maxTargetTokens, languageTokens });
  return {
    tokenizer,
    train,
    ...(dropout > 0 ? { bpeDropout: new BpeDropout(train, corpora.train, tokenizer, { dropout, seed, languageTokens }) } : {}),
    ...(corpora.valid ? { valid: evaluationTexts(corpora.valid, tokenizer, languageTokens) } : {}),
    ...(corpora.test ? { test: evaluationTexts(corpora.test, tokenizer, languageTokens) } : {}),
    multilingual: languageTokens,
  };
}

function makeTranslationTokenizer({ vocab_size }: TranslationConfig, corpora: readonly ParallelCorpus[]): Tokenizer {
  const lines = new Set(corpora.flatMap(({ sources, targets }) => [...sources, ...targets]));
  const languages = corpora.length > 1 ? [...new Set(corpora.map(({ targetLanguage }) => targetLanguage))] : [];
  return trainBpe(lines, { vocabSize: vocab_size, specialTokens: languages.filter((language) => language !== undefined).map(languageToken) });
}
