/** Byte-level byte-pair encoding as in GPT-2 (Radford et al. 2019): training, encoding, and the HuggingFace file format. */

import { ConfigError, FileError, expectation } from "../core/errors.js";
import type { Tokenizer } from "./tokenizer.js";

/** The file name of a byte-pair tokenizer in a checkpoint. */
export const TOKENIZER_FILE = "tokenizer.json";

/** The end-of-sentence token of the tokenizers trained here, id 0. */
export const END_OF_SENTENCE = "</s>";

/**
 * Merges are learned within these pieces only: GPT-2's pattern of contractions, words, numbers, other signs and white space. That is Unicode's: JavaScript's `\s` lacks
 * U+0085 and has the byte order mark.
 */
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** Pair keys are first · PAIR + second, exact in a double. */
const PAIR = 2 ** 24;

/** Pieces whose encoding is remembered; the memory is emptied when full. */
const CACHE_SIZE = 1 << 16;

/** GPT-2's visible character for each byte: printable Latin-1 stands for itself, the other bytes for U+0100 and on, in order. */
const CHARACTERS: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const visible = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCodePoint(visible ? byte : next++);
  });
})();

const BYTES: ReadonlyMap<string, number> = new Map(CHARACTERS.map((character, byte) => [character, byte]));

const encoder = new TextEncoder();

type Merge = readonly [string, string];

/** A byte-level tokenizer: any well-formed text encodes, and decodes to itself. (A lone surrogate becomes U+FFFD, as in any UTF-8.) */
export class BpeTokenizer implements Tokenizer {
  readonly eosId: number;
  readonly unkId = undefined;
  readonly #tokens: readonly string[];
  readonly #merges: readonly Merge[];
  readonly #special: ReadonlySet<number>;
  /** The id of each byte's token. */
  readonly #byteIds: readonly number[];
  /** By pair key: which merge comes first, and the id it makes. */
  readonly #ranks = new Map<number, { rank: number; id: number }>();
  readonly #cache = new Map<string, readonly number[]>();

  /** @internal Use `trainBpe` or `BpeTokenizer.fromJson`. */
  constructor(tokens: readonly string[], merges: readonly Merge[], special: ReadonlySet<number>, eosId: number, where = TOKENIZER_FILE) {
    this.#tokens = tokens;
    this.#merges = merges;
    this.#special = special;
    this.eosId = eosId;
    const ids = new Map<string, number>();
    tokens.forEach((token, id) => {
      if (special.has(id)) return;
      const alien = Array.from(token).find((character) => !BYTES.has(character));
      if (alien !== undefined) throw new FileError(expectation(where, "tokens in the byte alphabet of GPT-2", token));
      ids.set(token, id);
    });
    const idOf = (token: string): number => {
      const id = ids.get(token);
      if (id === undefined) throw new FileError(expectation(where, `the token ${JSON.stringify(token)} in model.vocab`, "none"));
      return id;
    };
    this.#byteIds = CHARACTERS.map(idOf);
    merges.forEach(([first, second], rank) => {
      const key = idOf(first) * PAIR + idOf(second);
      if (!this.#ranks.has(key)) this.#ranks.set(key, { rank, id: idOf(first + second) });
    });
  }

  /** Reads a HuggingFace `tokenizer.json` of a byte-level BPE model; `where` names it in messages. */
  static fromJson(text: string, where = TOKENIZER_FILE): BpeTokenizer {
    const fail = (expected: string, actual: unknown, hint?: string): never => {
      throw new FileError(expectation(where, expected, actual, hint));
    };
    let file: TokenizerJson;
    try {
      file = JSON.parse(text) as TokenizerJson;
    } catch (cause) {
      throw new FileError(expectation(where, "JSON", (cause as Error).message), { cause });
    }
    const model = file?.model;
    if (model?.type !== "BPE") fail('model.type "BPE"', model?.type);
    if (typeof model.vocab !== "object" || model.vocab === null) fail("model.vocab, an object", model.vocab);
    if (!Array.isArray(model.merges)) fail("model.merges, an array", model.merges);
    for (const field of ["continuing_subword_prefix", "end_of_word_suffix", "dropout"] as const) {
      if (model[field]) fail(`no model.${field}`, model[field]);
    }
    if (file.normalizer) fail("no normalizer", file.normalizer, "Only plain byte-level tokenizers are read.");
    const pre = file.pre_tokenizer;
    if (pre?.type !== "ByteLevel" || pre.add_prefix_space === true || pre.use_regex === false) {
      fail("a pre_tokenizer ByteLevel without add_prefix_space", pre?.type, "Only plain byte-level tokenizers are read.");
    }
    const added = file.added_tokens ?? [];
    if (!Array.isArray(added) || !added.every((token: { content?: unknown } | null) => typeof token?.content === "string")) {
      fail("added_tokens, an array of tokens with their content", added);
    }
    const tokens: string[] = [];
    for (const [token, id] of [...Object.entries(model.vocab), ...added.map(({ content, id }): [string, number] => [content, id])]) {
      if (!Number.isInteger(id) || id < 0 || id >= PAIR) fail(`an id for the token ${JSON.stringify(token)}`, id);
      if (tokens[id] !== undefined && tokens[id] !== token) fail(`one token with the id ${id}`, [tokens[id], token]);
      tokens[id] = token;
    }
    const gap = tokens.findIndex((token) => token === undefined);
    if (gap >= 0) fail("ids without a gap", `no token ${gap}`);
    const end =
      [END_OF_SENTENCE, "<|endoftext|>"].map((name) => added.find(({ content }) => content === name)).find(Boolean) ??
      (added.length === 1 ? added[0] : fail(`an added token ${END_OF_SENTENCE} or <|endoftext|>`, added.map(({ content }) => content)));
    const merges = model.merges.map((merge): Merge => {
      const pair = typeof merge === "string" ? merge.split(" ") : merge;
      if (!Array.isArray(pair) || pair.length !== 2) fail("merges of two tokens", merge);
      return [String(pair[0]), String(pair[1])];
    });
    return new BpeTokenizer(tokens, merges, new Set(added.map(({ id }) => id)), end.id, where);
  }

  get vocabSize(): number {
    return this.#tokens.length;
  }

  encode(text: string): number[] {
    const ids: number[] = [];
    for (const [piece] of text.matchAll(PIECES)) {
      let encoded = this.#cache.get(piece);
      if (encoded === undefined) {
        encoded = this.#encodePiece(piece);
        if (this.#cache.size >= CACHE_SIZE) this.#cache.clear();
        if (piece.length <= 64) this.#cache.set(piece, encoded);
      }
      for (const id of encoded) ids.push(id);
    }
    return ids;
  }

  /**
   * As `encode`, but at every step each merge that could be made is left out by chance (BPE-dropout, Provilkov et al. 2020): a text has many
   * encodings, all of which decode to it. What is trained on them overfits less.
   *
   * @param dropout the probability of leaving a merge out: at 0 the encoding is that of `encode`, at 1 every byte is a token
   * @param uniform draws from [0, 1)
   */
  encodeWithDropout(text: string, dropout: number, uniform: () => number): number[] {
    const ids: number[] = [];
    for (const [piece] of text.matchAll(PIECES)) {
      for (const id of this.#encodePiece(piece, () => uniform() < dropout)) ids.push(id);
    }
    return ids;
  }

  decode(ids: readonly number[]): string {
    // ignoreBOM keeps a byte order mark of the text, which is text like any other here.
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.#bytes(ids));
  }

  /** The special tokens, the end-of-sentence token among them. */
  get specialTokens(): string[] {
    return [...this.#special].map((id) => this.#tokens[id]);
  }

  /** The id of a special token, one of `specialTokens` in training. No text encodes to it. */
  specialId(token: string): number {
    for (const id of this.#special) if (this.#tokens[id] === token) return id;
    const known = [...this.#special].map((id) => this.#tokens[id]);
    throw new ConfigError(expectation("specialId", `${JSON.stringify(token)} among the special tokens`, known, "Name it in specialTokens when the vocabulary is trained."));
  }

  /** The token's text; where it is only part of a character, its bytes, as `<e3><81>`. */
  tokenText(id: number): string {
    if (this.#special.has(id)) return this.#tokens[id];
    const bytes = this.#bytes([id]);
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return [...bytes].map((byte) => `<${byte.toString(16).padStart(2, "0")}>`).join("");
    }
  }

  /** A `tokenizer.json` that HuggingFace's tokenizers reads too. */
  save(): { file: string; text: string } {
    const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
    const json = {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: [...this.#special]
        .sort((a, b) => a - b)
        .map((id) => ({ id, content: this.#tokens[id], single_word: false, lstrip: false, rstrip: false, normalized: false, special: true })),
      normalizer: null,
      pre_tokenizer: byteLevel,
      post_processor: null,
      decoder: byteLevel,
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab: Object.fromEntries(this.#tokens.map((token, id) => [token, id])),
        merges: this.#merges,
      },
    };
    return { file: TOKENIZER_FILE, text: `${JSON.stringify(json, null, 1)}\n` };
  }

  /** @param isLeftOut whether this time a merge is passed over; asked of each that could be made, at every step anew */
  #encodePiece(piece: string, isLeftOut?: () => boolean): number[] {
    const ids = Array.from(encoder.encode(piece), (byte) => this.#byteIds[byte]);
    while (ids.length > 1) {
      let best: { rank: number; id: number } | undefined;
      let bestAt = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const merge = this.#ranks.get(ids[i] * PAIR + ids[i + 1]);
        if (merge === undefined || isLeftOut?.() === true) continue;
        if (best === undefined || merge.rank < best.rank) [best, bestAt] = [merge, i];
      }
      if (best === undefined) break;
      // By chance one place at a time; else all places of the pair at once, which comes to the same in fewer steps.
      if (isLeftOut !== undefined) ids.splice(bestAt, 2, best.id);
      else mergePair(ids, ids[bestAt], ids[bestAt + 1], best.id);
    }
    return ids;
  }

  #bytes(ids: readonly number[]): Uint8Array {
    const bytes: number[] = [];
    for (const id of ids) {
      const token = this.#tokens[id];
      if (token === undefined) throw new ConfigError(expectation("token id", `an integer from 0 to ${this.vocabSize - 1}`, id));
      if (!this.#special.has(id)) for (const character of token) bytes.push(BYTES.get(character)!);
    }
    return Uint8Array.from(bytes);
  }
}

interface TokenizerJson {
  readonly added_tokens?: readonly { readonly id: number; readonly content: string }[];
  readonly normalizer?: unknown;
  readonly pre_tokenizer?: { readonly type?: string; readonly add_prefix_space?: boolean; readonly use_regex?: boolean } | null;
  readonly model: {
    readonly type?: string;
    readonly dropout?: unknown;
    readonly continuing_subword_prefix?: unknown;
    readonly end_of_word_suffix?: unknown;
    readonly vocab: Readonly<Record<string, number>>;
    readonly merges: readonly (string | readonly string[])[];
  };
}

/** How a vocabulary is trained. */
export interface BpeOptions {
  /** How many ids there are, special tokens and bytes counted in. */
  readonly vocabSize: number;
  /**
   * Tokens beside `</s>` that are put between others and never come out of a text, as `<2de>` in front of a source to be translated into German.
   * Each is one id, from 1 on in this order. They are ASCII in angle brackets, with a letter or a digit: no merge
   * can make such a token.
   */
  readonly specialTokens?: readonly string[];
}

/**
 * Learns a byte-pair vocabulary: 0 is `</s>`, then the special tokens, then the 256 bytes in the order of their characters, then one token a merge.
 *
 * Each step merges the most frequent pair of neighbours; among equals, the pair of the lowest ids. The result depends on the text alone.
 * The vocabulary is smaller than asked for when no pair occurs twice any more. For a vocabulary that several languages share, give the lines of
 * all of them; how much of it each gets depends on how much text it has.
 */
export function trainBpe(lines: Iterable<string>, { vocabSize, specialTokens = [] }: BpeOptions): BpeTokenizer {
  const least = 257 + specialTokens.length;
  if (!Number.isInteger(vocabSize) || vocabSize < least || vocabSize >= PAIR) {
    throw new ConfigError(expectation("vocabSize", `an integer from ${least} (${END_OF_SENTENCE}, special tokens and the 256 bytes)`, vocabSize));
  }
  specialTokens.forEach((token, i) => {
    if (!/^<[!-;=?-~]*[A-Za-z0-9][!-;=?-~]*>$/.test(token)) throw new ConfigError(expectation("specialTokens", "ASCII in angle brackets with a letter or a digit, as <2de>", token));
    if (token === END_OF_SENTENCE || specialTokens.indexOf(token) < i) throw new ConfigError(expectation("specialTokens", "tokens that are there once", token));
  });
  const counts = new Map<string, number>();
  for (const line of lines) for (const [piece] of line.matchAll(PIECES)) counts.set(piece, (counts.get(piece) ?? 0) + 1);
  if (counts.size === 0) throw new ConfigError(expectation("the text to learn byte pairs from", "at least one character", "none"));

  const special = [END_OF_SENTENCE, ...specialTokens];
  const tokens = [...special, ...[...CHARACTERS].sort((a, b) => a.codePointAt(0)! - b.codePointAt(0)!)];
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const byteIds = CHARACTERS.map((character) => ids.get(character)!);
  const words = [...counts].map(([piece, count]) => ({ ids: Array.from(encoder.encode(piece), (byte) => byteIds[byte]), count }));

  // The count of each pair now, and the words it has ever been in (a word may be named twice). Every change of a count enters the heap;
  // outdated entries are passed over. Keys are first · vocabSize + second: small integers, which a Map finds faster than doubles.
  const pairCounts = new Map<number, number>();
  const pairWords = new Map<number, number[]>();
  const change = (key: number, by: number, index: number): void => {
    pairCounts.set(key, (pairCounts.get(key) ?? 0) + by);
    if (by < 0) return;
    const places = pairWords.get(key);
    if (places === undefined) pairWords.set(key, [index]);
    else if (places[places.length - 1] !== index) places.push(index);
  };
  words.forEach((word, index) => {
    for (let i = 0; i + 1 < word.ids.length; i++) change(word.ids[i] * vocabSize + word.ids[i + 1], word.count, index);
  });
  const heap = new PairHeap();
  for (const [key, count] of pairCounts) heap.push({ key, count });

  const merges: Merge[] = [];
  while (tokens.length < vocabSize) {
    const top = heap.pop();
    if (top === undefined || top.count < 2) break;
    if (pairCounts.get(top.key) !== top.count) continue;
    const [first, second] = [Math.floor(top.key / vocabSize), top.key % vocabSize];
    const text = tokens[first] + tokens[second];
    // Two different pairs can make the same text ("ab"+"c", "a"+"bc"); both merges then lead to the one token.
    let id = ids.get(text);
    if (id === undefined) {
      id = tokens.length;
      tokens.push(text);
      ids.set(text, id);
    }
    merges.push([tokens[first], tokens[second]]);
    const changed = new Set<number>();
    for (const index of pairWords.get(top.key)!) {
      const { ids: wordIds, count } = words[index];
      mergePair(wordIds, first, second, id, (left, right, sign) => {
        const key = left * vocabSize + right;
        change(key, sign * count, index);
        changed.add(key);
      });
    }
    pairCounts.delete(top.key);
    pairWords.delete(top.key);
    for (const key of changed) {
      const count = pairCounts.get(key);
      if (count !== undefined && count > 0) heap.push({ key, count });
      else if (count === 0) pairCounts.delete(key);
    }
  }
  return new BpeTokenizer(tokens, merges, new Set(special.keys()), 0);
}

/**
 * Replaces each occurrence of a pair, from the left, in place. `changed` hears of each neighbouring pair that goes (−1) or comes (+1), so
 * that training need not count the rest of the word again; of the replaced pair itself it hears only where two occurrences overlap.
 */
function mergePair(ids: number[], first: number, second: number, id: number, changed?: (left: number, right: number, sign: 1 | -1) => void): void {
  let to = 0;
  for (let from = 0; from < ids.length; from++) {
    if (from + 1 < ids.length && ids[from] === first && ids[from + 1] === second) {
      if (changed !== undefined && to > 0) {
        changed(ids[to - 1], first, -1);
        changed(ids[to - 1], id, 1);
      }
      if (changed !== undefined && from + 2 < ids.length) {
        changed(second, ids[from + 2], -1);
        changed(id, ids[from + 2], 1);
      }
      ids[to++] = id;
      from++;
    } else ids[to++] = ids[from];
  }
  ids.length = to;
}

interface PairCount {
  readonly key: number;
  readonly count: number;
}

/** A binary heap of pairs: the highest count first, then the lowest key. */
class PairHeap {
  readonly #items: PairCount[] = [];

  push(item: PairCount): void {
    const items = this.#items;
    let at = items.length;
    items.push(item);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(item, items[parent])) break;
      items[at] = items[parent];
      at = parent;
    }
    items[at] = item;
  }

  pop(): PairCount | undefined {
    const items = this.#items;
    const top = items[0];
    const last = items.pop();
    if (last === undefined || items.length === 0) return top;
    let at = 0;
    while (true) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && before(items[child + 1], items[child])) child++;
      if (!before(items[child], last)) break;
      items[at] = items[child];
      at = child;
    }
    items[at] = last;
    return top;
  }
}

function before(a: PairCount, b: PairCount): boolean {
  return a.count > b.count || (a.count === b.count && a.key < b.key);
}
