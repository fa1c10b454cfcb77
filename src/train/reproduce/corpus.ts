/** The text that tables are reproduced on: the compiler's messages that come with the package, lines of a file of the user's, or a folder of texts with a vocabulary. */

import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { ConfigError, expectation } from "../../core/errors.js";
import { philox4x32, streamId } from "../../core/random.js";
import { trainBpe } from "../../text/bpe.js";
import { readLines } from "../../text/corpus.js";
import { tokenizeCorpus } from "../../text/dataset.js";
import { loadMessages, splitMessages } from "../../text/messages.js";
import type { TrainConfig } from "../config.js";
import { corporaOf, makeDatasets, type Datasets } from "../setup.js";

/** Share of the text that is kept for testing. */
const TEST_SHARE = 0.05;

/** Lines that `file` may be called in a folder of texts: the ending decides how it is read. */
const named = (part: string): string[] => [`${part}.txt`, `${part}.txt.gz`];

/** Texts and vocabulary of a folder, as paths. */
export interface TextFolder {
  train: string;
  valid?: string;
  test: string;
  /** A closed vocabulary, one word a line. */
  vocab?: string;
}

/** The texts of a folder: train, test and if it is there valid, each .txt or .txt.gz, and a vocabulary vocab*.txt. @throws ConfigError where one is missing */
export function textFolder(folder: string): TextFolder {
  const names = readdirSync(folder).sort();
  const find = (part: string): string | undefined => named(part).find((name) => names.includes(name));
  const [train, valid, test] = [find("train"), find("valid"), find("test")];
  for (const [part, file] of Object.entries({ train, test })) {
    if (file === undefined) throw new ConfigError(expectation("--data", `${named(part).join(" or ")} in ${folder}`, "neither"));
  }
  const vocab = names.filter((name) => /^vocab.*\.txt$/.test(name));
  if (vocab.length > 1) throw new ConfigError(expectation("--data", `one vocabulary in ${folder}`, vocab.join(", ")));
  return {
    train: join(folder, train!),
    test: join(folder, test!),
    ...(valid === undefined ? {} : { valid: join(folder, valid) }),
    ...(vocab[0] === undefined ? {} : { vocab: join(folder, vocab[0]) }),
  };
}

/**
 * The tokens that a table is reproduced on, with the text in words.
 * @param data a folder as of `textFolder`, a file as of `reproductionText`, or left out for the messages
 * @param config whose tokenizer is made where the folder has no vocabulary @param valid keep lines for validation too, where data is no folder
 */
export function reproductionDatasets(
  data: string | undefined,
  config: TrainConfig,
  valid: boolean,
): { description: string; datasets: Datasets } {
  if (data !== undefined && statSync(data, { throwIfNoEntry: false })?.isDirectory()) {
    const { vocab, ...paths } = textFolder(data);
    const own = { ...config, ...paths, ...(vocab === undefined ? {} : { vocab }) };
    return { description: data, datasets: makeDatasets(own, corporaOf(own)) };
  }
  const text = reproductionText(data, config.seed);
  if (!valid) return { description: text.description, datasets: tokenised(text, config.vocab_size) };
  // Every twentieth line of what is left; in the order of the file, which may have its like side by side, but the test lines are drawn by chance.
  const train = text.train.filter((_, i) => i % 20 !== 19);
  const datasets = tokenised({ ...text, train }, config.vocab_size);
  return {
    description: text.description,
    datasets: {
      ...datasets,
      valid: tokenizeCorpus(
        text.train.filter((_, i) => i % 20 === 19),
        datasets.tokenizer,
      ),
    },
  };
}

/** Training and test text of a reproduction. */
export interface ReproductionText {
  /** In words, for the report. */
  description: string;
  train: readonly string[];
  test: readonly string[];
}

/** @param data a text file, a sentence a line, plain or .gz: every twentieth line by chance is for testing. Left out: the messages. @throws FileError */
export function reproductionText(data: string | undefined, seed: number): ReproductionText {
  if (data === undefined) {
    const { train, test } = splitMessages(loadMessages(), { seed, validShare: 0, testShare: TEST_SHARE });
    const texts = (messages: typeof train): string[] => messages.map(({ text }) => text);
    return { description: "compiler messages of TypeScript 5 in 14 languages", train: texts(train), test: texts(test) };
  }
  const [train, test]: [string[], string[]] = [[], []];
  const stream = streamId("reproduction", "test lines");
  let i = 0;
  for (const line of readLines(data)) {
    const [word] = philox4x32([i++, 0, 0, stream], [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0]);
    (word / 2 ** 32 < TEST_SHARE ? test : train).push(line);
  }
  if (train.length === 0 || test.length === 0)
    throw new ConfigError(
      expectation("--data", "some hundred lines, to train and to test on", `${train.length + test.length} in ${data}`),
    );
  return { description: data, train, test };
}

/** Tokens of the text, in subwords trained on its training part. */
export function tokenised({ train, test }: ReproductionText, vocabSize: number): Datasets {
  const tokenizer = trainBpe(train, { vocabSize });
  return { tokenizer, train: tokenizeCorpus(train, tokenizer), test: tokenizeCorpus(test, tokenizer) };
}
