/** How BLEU cuts a segment into tokens: the rules of sacrebleu 2 (Post 2018), which took over those of NIST's mteval-v13a. */

import { withoutEnd, withoutStart, words } from "./score.js";

/** Ways to cut a segment into tokens. */
export type BleuTokenization = "13a" | "zh" | "char" | "none";

/**
 * By name, as in sacrebleu.
 *
 * - `13a`: punctuation of ASCII is cut off, but for periods and commas between digits, and hyphens that follow no digit. For languages with spaces.
 * - `zh`: Chinese signs are tokens of their own, the rest is cut as in 13a.
 * - `char`: every code point is a token.
 * - `none`: at white space alone, for text that is tokenised already.
 */
export const BLEU_TOKENIZATIONS: Readonly<Record<BleuTokenization, (text: string) => string[]>> = {
  "13a": (text) => {
    let line = withoutEnd(text).replaceAll("<skipped>", "").replaceAll("-\n", "").replaceAll("\n", " ");
    // The order matters: "&amp;lt;" becomes "<".
    for (const [entity, character] of ENTITIES) line = line.replaceAll(entity, character);
    return words(separatePunctuation(` ${line} `));
  },
  zh: (text) => words(separatePunctuation(withoutStart(withoutEnd(text)).replace(CHINESE, " $& "))),
  char: (text) => words(Array.from(withoutEnd(text)).join(" ")),
  none: (text) => words(text),
};

const ENTITIES = [
  ["&quot;", '"'],
  ["&amp;", "&"],
  ["&lt;", "<"],
  ["&gt;", ">"],
] as const;

/** ASCII punctuation but for the apostrophe, the hyphen, the period and the comma; the space is in it too, which changes nothing. */
const PUNCTUATION = /[{-~[-` -&(-+:-@/]/gu;

function separatePunctuation(line: string): string {
  return line
    .replace(PUNCTUATION, " $& ")
    .replace(/([^0-9])([.,])/gu, "$1 $2 ")
    .replace(/([.,])([^0-9])/gu, " $1 $2")
    .replace(/([0-9])-/gu, "$1 - ");
}

/**
 * What counts as Chinese in `zh`. U+2001 to U+2A6D stand for a range that sacrebleu means as U+20000 to U+2A6D6 and that its comparison of
 * texts takes so: typographic quotes and dashes are tokens, ideographs beyond U+FFFF are not. Scores are equal only when this is too.
 */
const CHINESE =
  /[\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31ef\u3200-\u4db5\u4e00-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef]/gu;
