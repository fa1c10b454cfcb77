/** Seeded orders: what is shuffled depends on the seed, the purpose and the round alone, so that a stream can be resumed anywhere. */

import { philox4x32, streamId } from "../core/random.js";

/** The numbers from 0 to count − 1 in a random order (Fisher-Yates). @param what is shuffled, as `sentences` @param round as the epoch */
export function shuffled(count: number, seed: number, what: string, round: number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  const stream = streamId("shuffle", what);
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0] as const;
  let words: readonly number[] = [];
  for (let i = count - 1, drawn = 0; i > 0; i--, drawn++) {
    if (drawn % 4 === 0) words = philox4x32([drawn / 4, 0, round >>> 0, stream], key);
    const j = Math.floor((words[drawn % 4] / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
