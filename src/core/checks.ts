/** Argument checks whose wording is the same everywhere. Each returns its value so that it can be used in place. */

import { ConfigError, expectation } from "./errors.js";
import { didYouMean } from "./suggest.js";

/** An integer in [min, max]. */
export function checkInteger(
  where: string,
  name: string,
  value: unknown,
  { min = -Infinity, max = Infinity, hint = "" }: { min?: number; max?: number; hint?: string } = {},
): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > max) {
    throw new ConfigError(expectation(where, `${name} to be an integer${range(min, max)}`, value, hint));
  }
  return value;
}

/** A finite number in [min, max]. */
export function checkNumber(
  where: string,
  name: string,
  value: unknown,
  { min = -Infinity, max = Infinity, hint = "" }: { min?: number; max?: number; hint?: string } = {},
): number {
  if (typeof value !== "number" || !Number.isFinite(value) || value < min || value > max) {
    throw new ConfigError(expectation(where, `${name} to be a finite number${range(min, max)}`, value, hint));
  }
  return value;
}

/** One of a closed list of words. */
export function checkOneOf<T extends string>(where: string, name: string, value: unknown, choices: readonly T[]): T {
  if (!choices.includes(value as T)) {
    throw new ConfigError(expectation(where, `${name} to be one of ${choices.join(", ")}`, value));
  }
  return value as T;
}

/** Options that are among the known ones: one that is not, as where it is misspelt, would do nothing. Those that are undefined count as left out. */
export function checkOptions(where: string, options: object, known: readonly string[]): void {
  if (typeof options !== "object" || options === null) throw new ConfigError(expectation(where, "an object of options", options));
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined && !known.includes(name)) throw new ConfigError(expectation(where, `options among ${known.join(", ")}`, name, didYouMean(name, known)));
  }
}

/** Where the first NaN or infinity stands; -1 when every value is finite. */
export function firstNonFinite(values: ArrayLike<number>): number {
  for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i])) return i;
  return -1;
}

function range(min: number, max: number): string {
  if (min === -Infinity && max === Infinity) return "";
  if (max === Infinity) return ` of at least ${min}`;
  if (min === -Infinity) return ` of at most ${max}`;
  return ` from ${min} to ${max}`;
}
