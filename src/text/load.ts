/** The tokenizer of a checkpoint, from the file that `Tokenizer.save` named. */

import { FileError, expectation } from "../core/errors.js";
import { BpeTokenizer, TOKENIZER_FILE } from "./bpe.js";
import type { Tokenizer } from "./tokenizer.js";
import { VOCABULARY_FILE, WordVocabulary } from "./word-vocab.js";

/** End-of-sentence words that corpora use, in the order they are looked for. */
const END_WORDS = ["</s>", "<eos>", "</S>", "<S>"];

/**
 * The tokenizer in a saved file: a byte-pair one from `tokenizer.json`, a word vocabulary from `vocab.txt`.
 *
 * @param file the file's name; folders before it are kept for messages @param text its content
 * @param eos the end-of-sentence word of a `vocab.txt`, where it is none of the usual ones
 */
export function loadTokenizer(file: string, text: string, { eos }: { readonly eos?: string } = {}): Tokenizer {
  const name = file.split(/[/\\]/).at(-1);
  if (name === TOKENIZER_FILE) return BpeTokenizer.fromJson(text, file);
  if (name !== VOCABULARY_FILE) throw new FileError(expectation("tokenizer file", `${TOKENIZER_FILE} or ${VOCABULARY_FILE}`, file));
  const lines = text.replace(/\r?\n$/, "").split(/\r?\n/);
  const end = eos ?? END_WORDS.find((word) => lines.includes(word));
  // A saved vocabulary has its end word; adding one would shift no id but would not fit the model.
  if (end === undefined || !lines.includes(end)) {
    throw new FileError(expectation(file, `the end-of-sentence word ${end ?? END_WORDS.join(", ")}`, "none of these", "Name it with `eos`."));
  }
  return WordVocabulary.fromWords(lines, { eos: end }, file);
}
