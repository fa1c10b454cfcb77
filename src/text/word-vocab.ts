/** A vocabulary of whole words, split at ASCII white space: the tokenisation of the published language-model corpora. */

import { ConfigError, FileError, expectation } from "../core/errors.js";
import { readLines } from "./corpus.js";
import type { Tokenizer } from "./tokenizer.js";

/** The token of words outside the vocabulary. */
export const UNKNOWN = "<unk>";

/** The file name of a word vocabulary in a checkpoint. */
export const VOCABULARY_FILE = "vocab.txt";

/**
 * Tab, line ends and space, as in `wc -w` and KenLM. Not `\s`: a no-break space or a byte order mark inside a corpus is part of a word
 * there, and the published token counts hold only so.
 */
const SPACE = /[\t-\r ]/;

/** Options of a word vocabulary. */
export interface WordVocabularyOptions {
  /** The end-of-sentence word, `</s>` unless told; corpora also write `<eos>` or `<S>`. */
  readonly eos?: string;
}

/** A tokenizer of whole words. Ids follow the order of the words, the most frequent first. */
export class WordVocabulary implements Tokenizer {
  readonly eosId: number;
  readonly unkId: number;
  readonly #words: readonly string[];
  // A Map and not an object: `constructor` and `__proto__` are words too.
  readonly #ids: ReadonlyMap<string, number>;

  private constructor(words: readonly string[], eos: string) {
    this.#words = words;
    this.#ids = new Map(words.map((word, id) => [word, id]));
    this.eosId = this.#ids.get(eos)!;
    this.unkId = this.#ids.get(UNKNOWN)!;
  }

  /** Reads a vocabulary of one word a line, the most frequent first; `<unk>` and `eos` go to its end when they are absent. */
  static fromFile(path: string, options: WordVocabularyOptions = {}): WordVocabulary {
    return WordVocabulary.fromWords(readLines(path), options, path);
  }

  /** As `fromFile`, from the lines themselves; `where` names them in messages. */
  static fromWords(lines: Iterable<string>, options: WordVocabularyOptions = {}, where = VOCABULARY_FILE): WordVocabulary {
    const eos = endWord(options);
    const lineOf = new Map<string, number>();
    let line = 0;
    for (const text of lines) {
      line++;
      const word = text.replace(/^[\t-\r ]+|[\t-\r ]+$/g, "");
      if (word === "") continue;
      if (SPACE.test(word)) throw new FileError(expectation(`${where}:${line}`, "one word a line", word));
      const before = lineOf.get(word);
      if (before !== undefined) throw new FileError(expectation(`${where}:${line}`, `a word not seen before`, word, `It is on line ${before} too; remove one.`));
      lineOf.set(word, line);
    }
    if (lineOf.size === 0) throw new FileError(expectation(where, "at least one word", "none"));
    for (const special of [UNKNOWN, eos]) if (!lineOf.has(special)) lineOf.set(special, ++line);
    return new WordVocabulary([...lineOf.keys()], eos);
  }

  /**
   * The most frequent words of a corpus; words of the same count go by code unit, so the result depends on the text alone.
   * `maxSize` bounds the vocabulary with `<unk>` and `eos` counted in. `eos` comes first, as it ends every sentence, then `<unk>`.
   */
  static fromCounts(lines: Iterable<string>, options: WordVocabularyOptions & { readonly maxSize?: number } = {}): WordVocabulary {
    const eos = endWord(options);
    const maxSize = options.maxSize ?? Infinity;
    if (!(maxSize >= 3)) throw new ConfigError(expectation("maxSize", "at least 3 (two special words and a word)", maxSize));
    const counts = new Map<string, number>();
    for (const line of lines) for (const word of splitWords(line)) counts.set(word, (counts.get(word) ?? 0) + 1);
    counts.delete(eos);
    counts.delete(UNKNOWN);
    if (counts.size === 0) throw new ConfigError(expectation("the corpus of a vocabulary", "at least one word", "none"));
    const ordered = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1)).map(([word]) => word);
    return new WordVocabulary([eos, UNKNOWN, ...ordered.slice(0, maxSize - 2)], eos);
  }

  get vocabSize(): number {
    return this.#words.length;
  }

  encode(text: string): number[] {
    return splitWords(text).map((word) => this.#ids.get(word) ?? this.unkId);
  }

  decode(ids: readonly number[]): string {
    return ids
      .filter((id) => id !== this.eosId)
      .map((id) => this.tokenText(id))
      .join(" ");
  }

  /** The id of a word. Here a special token is a word like any other, and comes out of a text that has it. */
  specialId(token: string): number {
    const id = this.#ids.get(token);
    if (id === undefined) throw new ConfigError(expectation("specialId", `the word ${JSON.stringify(token)} in the vocabulary`, "none", "Add it to the vocabulary's file."));
    return id;
  }

  tokenText(id: number): string {
    const word = this.#words[id];
    if (word === undefined) throw new ConfigError(expectation("token id", `an integer from 0 to ${this.vocabSize - 1}`, id));
    return word;
  }

  /** The words, one a line. Which of them ends sentences is not in the file: give `eos` when reading one that is not `</s>`. */
  save(): { file: string; text: string } {
    return { file: VOCABULARY_FILE, text: `${this.#words.join("\n")}\n` };
  }
}

/** The words of a text, as the vocabulary sees them. */
export function splitWords(text: string): string[] {
  const words: string[] = [];
  let start = 0;
  for (let i = 0; i <= text.length; i++) {
    const code = i < text.length ? text.charCodeAt(i) : 32;
    if (code !== 32 && (code < 9 || code > 13)) continue;
    if (i > start) words.push(text.slice(start, i));
    start = i + 1;
  }
  return words;
}

function endWord(options: WordVocabularyOptions): string {
  const eos = options.eos ?? "</s>";
  if (eos === "" || SPACE.test(eos) || eos === UNKNOWN) throw new ConfigError(expectation("eos (--eos)", `one word other than ${UNKNOWN}`, eos));
  return eos;
}
