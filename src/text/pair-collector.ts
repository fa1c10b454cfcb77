/** Gathers the pairs of a corpus as a reader finds them, and checks that each side is text. */

import { FileError, expectation, show } from "../core/errors.js";
import type { EmptyPairs } from "./parallel.js";

/** What a reader gives for bytes that are not UTF-8. */
export const NOT_UTF8 = Symbol("bytes that are not UTF-8");

/** The pairs so far. */
export class PairCollector {
  readonly sources: string[] = [];
  readonly targets: string[] = [];
  readonly leftOut = { emptySource: 0, emptyTarget: 0, emptyBoth: 0 };
  /** How many pairs came, with those left out. */
  rows = 0;
  readonly #empty: EmptyPairs;
  readonly #place: (row: number, side: "source" | "target") => string;

  /** @param place how a message names one side of row i, from 1 */
  constructor(empty: EmptyPairs, place: (row: number, side: "source" | "target") => string) {
    this.#empty = empty;
    this.#place = place;
  }

  /** Takes the next pair. @throws FileError when a side is no text, or is empty and may not be */
  add(source: unknown, target: unknown): void {
    this.rows++;
    this.#check(source, "source");
    this.#check(target, "target");
    const emptySource = isEmpty(source);
    const emptyTarget = isEmpty(target);
    if ((emptySource || emptyTarget) && this.#empty === "error") {
      const side = emptySource ? "source" : "target";
      const partner =
        emptySource && emptyTarget ? "on either side" : `as in ${this.#place(this.rows, emptySource ? "target" : "source")}`;
      const hint = 'Mend the corpus, or read it with empty "skip".';
      throw new FileError(expectation(this.#place(this.rows, side), `text, ${partner}`, "an empty line", hint));
    }
    if ((emptySource || emptyTarget) && this.#empty === "skip") {
      this.leftOut[emptySource && emptyTarget ? "emptyBoth" : emptySource ? "emptySource" : "emptyTarget"]++;
      return;
    }
    this.sources.push(source);
    this.targets.push(target);
  }

  #check(value: unknown, side: "source" | "target"): asserts value is string {
    const fail = (expected: string, actual: string): never => {
      throw new FileError(`${this.#place(this.rows, side)}: expected ${expected}, got ${actual}.`);
    };
    if (value === NOT_UTF8) fail("UTF-8 text", "bytes that are not UTF-8");
    if (typeof value !== "string") fail("text", value === undefined ? "nothing" : show(value));
    if ((value as string).includes("\0")) fail("text", "a zero byte in it");
    if (/\p{Surrogate}/u.test(value as string)) fail("text", "half of a surrogate pair in it");
  }
}

/** Whether there is nothing but ASCII white space, which no tokenizer makes a token of. */
function isEmpty(text: string): boolean {
  return !/[^\t-\r ]/.test(text);
}
