/** From a configuration to corpora, tokenizer and pairs. One corpus is one pair of languages; of several, one model learns all. */

import { trainBpe } from "../../text/bpe.js";
import { tokenizePairs, type PairDataset } from "../../text/pair-dataset.js";
import { languageToken, readParallel, type EmptyPairs, type ParallelCorpus } from "../../text/parallel.js";
import type { Tokenizer } from "../../text/tokenizer.js";
import type { TranslationConfig } from "./config.js";

/** The texts of a run. */
export interface TranslationCorpora {
  train: readonly ParallelCorpus[];
  valid?: readonly ParallelCorpus[];
  test?: readonly ParallelCorpus[];
}

/** A text to evaluate on: every pair of it, however long. */
export interface EvaluationText {
  /** As `en-de`. */
  name: string;
  corpus: ParallelCorpus;
  data: PairDataset;
}

export interface TranslationDatasets {
  tokenizer: Tokenizer;
  train: PairDataset;
  valid?: EvaluationText[];
  test?: EvaluationText[];
  /** Whether a token of the target language stands in front of each source. */
  multilingual: boolean;
}

/** Reads the files of a run: pairs with an empty side are left out of training, and kept in evaluation. @throws FileError naming file and line */
export async function readCorpora(config: TranslationConfig): Promise<TranslationCorpora> {
  const read = async (file: string, targetFile: string | undefined, empty: EmptyPairs): Promise<ParallelCorpus[]> => [
    targetFile === undefined
      ? await readParallel({ file, sourceColumn: config.source_column!, targetColumn: config.target_column!, empty })
      : await readParallel({ sourceFile: file, targetFile, empty }),
  ];
  const { train, valid, test, train_target, valid_target, test_target } = config;
  return {
    train: await read(train, train_target, "skip"),
    ...(valid === undefined ? {} : { valid: await read(valid, valid_target, "keep") }),
    ...(test === undefined ? {} : { test: await read(test, test_target, "keep") }),
  };
}

/**
 * Tokenises the texts of a run.
 * @param tokenizer of the checkpoint that is resumed; otherwise trained on both sides of the training text, each sentence once
 * @throws ConfigError where no pair is short enough
 */
export function makeTranslationDatasets(config: TranslationConfig, corpora: TranslationCorpora, tokenizer = makeTranslationTokenizer(config, corpora.train)): TranslationDatasets {
  const languageTokens = corpora.train.length > 1;
  const evaluated = (texts: readonly ParallelCorpus[]): EvaluationText[] =>
    texts.map((corpus) => {
      const data = tokenizePairs(corpus, tokenizer, { languageTokens });
      return { name: data.groups[0]!.name, corpus, data };
    });
  return {
    tokenizer,
    train: tokenizePairs(corpora.train, tokenizer, { maxSourceTokens: config.max_source_tokens, maxTargetTokens: config.max_target_tokens, languageTokens }),
    ...(corpora.valid ? { valid: evaluated(corpora.valid) } : {}),
    ...(corpora.test ? { test: evaluated(corpora.test) } : {}),
    multilingual: languageTokens,
  };
}

function makeTranslationTokenizer({ vocab_size }: TranslationConfig, corpora: readonly ParallelCorpus[]): Tokenizer {
  const lines = new Set(corpora.flatMap(({ sources, targets }) => [...sources, ...targets]));
  const languages = corpora.length > 1 ? [...new Set(corpora.map(({ targetLanguage }) => targetLanguage))] : [];
  return trainBpe(lines, { vocabSize: vocab_size, specialTokens: languages.filter((language) => language !== undefined).map(languageToken) });
}
