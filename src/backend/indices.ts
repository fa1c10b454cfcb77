/** What is said of an index that names nothing: in one wording, whoever finds it. */

import { TensorError } from "../core/errors.js";

/**
 * @param n how many of the values count
 * @param first the lowest index that counts; -1 where that means "none", and whatever is below it too
 * @throws TensorError naming the first value outside [first, limit) and where it stands
 */
export function checkIndices(where: string, values: ArrayLike<number>, n: number, first: -1 | 0, limit: number): void {
  for (let i = 0; i < n; i++) {
    const value = values[i]!;
    if (value >= limit || (first === 0 && value < 0)) throw new TensorError(`${where}: expected indices from ${first} to ${limit - 1}, got ${value} at position ${i}.`);
  }
}
