/** Offsets of groups of rows, which kernels follow without asking: looked through once, and those that `routeByExpert` made not at all, which a step would else read back. */

import { TensorError } from "../../core/errors.js";
import type { Tensor } from "../tensor.js";

/** How many rows offsets were found to stay within. */
const within = new WeakMap<Tensor, number>();

/** Says that offsets rise from 0 to at most `limit`, of those that a kernel has just made so. */
export function trustOffsets(offsets: Tensor, limit: number): void {
  within.set(offsets, limit);
}

/**
 * @param offsets int32: where each of several groups begins, and the last one ends
 * @param limit how many rows there are; there may be more than the groups use
 * @throws TensorError naming the first that is not 0 at the start, below the one before it, or above the limit
 */
export function checkOffsets(where: string, offsets: Tensor, limit: number): void {
  const known = within.get(offsets);
  if (known !== undefined && known <= limit) return;
  const values = offsets.dataSync();
  for (let i = 0, last = 0; i < values.length; last = values[i++]!) {
    const value = values[i]!;
    if (value < last || value > (i === 0 ? 0 : limit)) {
      throw new TensorError(`${where}: expected offsets that rise from 0 to at most ${limit}, got ${value} at position ${i}.`);
    }
  }
  trustOffsets(offsets, limit);
}
