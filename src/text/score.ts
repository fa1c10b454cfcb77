/** What the scores of translations share: segments and their references, white space, counts of n-grams, and printed figures. */

import { ConfigError, expectation } from "../core/errors.js";

/** What the scores of this package call themselves in a signature, where sacrebleu has its own version; the tests hold it to package.json. */
export const SCORE_VERSION = "sparsegate-0.1.0";

/** For each segment its reference, or its references (at least one); their number may differ between segments. */
export type References = readonly (string | readonly string[])[];

/**
 * A list of references for each segment.
 *
 * @throws ConfigError when there is no segment, the counts of segments differ, a segment has no reference, or something is no text
 */
export function checkSegments(where: string, hypotheses: readonly string[], references: References): (readonly string[])[] {
  if (!Array.isArray(hypotheses) || hypotheses.length === 0) {
    throw new ConfigError(expectation(where, "at least one translated segment", Array.isArray(hypotheses) ? 0 : hypotheses));
  }
  if (!Array.isArray(references) || references.length !== hypotheses.length) {
    const actual = Array.isArray(references) ? references.length : references;
    const hint = "Give one entry a segment: a reference, or a list of them.";
    throw new ConfigError(expectation(where, `references for ${hypotheses.length} segments`, actual, hint));
  }
  return references.map((given: unknown, i) => {
    const list: readonly unknown[] = Array.isArray(given) ? given : [given];
    if (list.length === 0) throw new ConfigError(expectation(`${where}: segment ${i}`, "at least one reference", 0));
    for (const text of [hypotheses[i], ...list]) {
      if (typeof text !== "string") throw new ConfigError(expectation(`${where}: segment ${i}`, "text", text));
    }
    return list as readonly string[];
  });
}

/** The signature's first field: how many references each segment has, `var` where that differs. */
export function referenceCount(references: readonly (readonly string[])[]): string {
  const counts = new Set(references.map(({ length }) => length));
  return counts.size === 1 ? `nrefs:${references[0].length}` : "nrefs:var";
}

/** White space as Python's `str.split` takes it: Unicode's, and the four ASCII separators. A byte order mark is none, unlike in `\s`. */
// oxlint-disable-next-line no-control-regex
const SPACES = /[\p{White_Space}\x1c-\x1f]+/u;

/** The words between white space. */
export function words(text: string): string[] {
  return text.split(SPACES).filter((word) => word !== "");
}

/** The text without white space at its end. */
export function withoutEnd(text: string): string {
  let end = text.length;
  while (end > 0 && SPACES.test(text[end - 1])) end--;
  return text.slice(0, end);
}

/** The text without white space at its start. */
export function withoutStart(text: string): string {
  let start = 0;
  while (start < text.length && SPACES.test(text[start])) start++;
  return text.slice(start);
}

/** How often each run of n items occurs; items must not hold the separator, unless it is empty and each is one code point. */
export function ngrams(items: readonly string[], n: number, separator: string): Map<string, number> {
  const counts = new Map<string, number>();
  for (let i = 0; i + n <= items.length; i++) {
    const key = n === 1 ? items[i] : items.slice(i, i + n).join(separator);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return counts;
}

/** A number with so many decimals, ties to the even digit as in Python and C; `toFixed` takes them up (31.25 becomes 31.3, here 31.2). */
export function fixed(value: number, digits: number): string {
  const scaled = value * 10 ** digits;
  // Only multiples of 2^-(digits + 1) can lie halfway, and for those the product above is exact.
  const halfway = Number.isInteger(value * 2 ** (digits + 1)) && Math.abs(scaled % 1) === 0.5;
  if (!halfway) return value.toFixed(digits);
  const low = Math.floor(scaled);
  return ((low % 2 === 0 ? low : low + 1) / 10 ** digits).toFixed(digits);
}
