/** A tokenised corpus: one flat array of ids and where its sentences begin. */

import { ConfigError, expectation } from "../core/errors.js";
import type { Tokenizer } from "./tokenizer.js";

/** The tokens of a corpus. Each sentence ends with the end-of-sentence id; none is empty. */
export class TokenDataset {
  /** @param tokens all ids, sentence after sentence @param starts where each sentence begins in `tokens` @param eosId the id that ends each */
  constructor(
    readonly tokens: Int32Array,
    readonly starts: Int32Array,
    readonly eosId: number,
  ) {}

  /** How many sentences there are. */
  get sentences(): number {
    return this.starts.length;
  }

  /** Where sentence i ends: the position after its end-of-sentence id. */
  endOf(i: number): number {
    return i + 1 < this.starts.length ? this.starts[i + 1] : this.tokens.length;
  }
}

/** Tokenises lines, each a sentence; lines of white space alone are passed over. */
export function tokenizeCorpus(lines: Iterable<string>, tokenizer: Tokenizer): TokenDataset {
  let tokens = new Int32Array(1 << 16);
  let length = 0;
  const starts: number[] = [];
  for (const line of lines) {
    if (!/[^\t-\r ]/.test(line)) continue;
    const ids = tokenizer.encode(line);
    if (ids.length === 0) continue;
    if (length + ids.length + 1 > tokens.length) {
      const larger = new Int32Array(Math.max(2 * tokens.length, length + ids.length + 1));
      larger.set(tokens);
      tokens = larger;
    }
    starts.push(length);
    tokens.set(ids, length);
    length += ids.length;
    tokens[length++] = tokenizer.eosId;
  }
  if (length === 0) throw new ConfigError(expectation("the corpus", "at least one sentence", "only empty lines"));
  return new TokenDataset(tokens.slice(0, length), Int32Array.from(starts), tokenizer.eosId);
}
