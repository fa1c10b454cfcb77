/** The text that tables are reproduced on: the compiler's messages that come with the package, or lines of a file of the user's. */

import { ConfigError, expectation } from "../../core/errors.js";
import { philox4x32, streamId } from "../../core/random.js";
import { trainBpe } from "../../text/bpe.js";
import { readLines } from "../../text/corpus.js";
import { tokenizeCorpus } from "../../text/dataset.js";
import { loadMessages, splitMessages } from "../../text/messages.js";
import type { Datasets } from "../setup.js";

/** Share of the text that is kept for testing. */
const TEST_SHARE = 0.05;

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
