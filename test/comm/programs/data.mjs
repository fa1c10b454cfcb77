/** Made-up data that every rank can make for every other, and so knows what it has to get. */

/** The three kinds of array, by the name of their type. */
export const ARRAYS = { float32: Float32Array, int32: Int32Array, float64: Float64Array };

/** Numbers in [0, 1), the same for the same seed. */
export function random(seed) {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Values whose sums have to be rounded; int32 ones whose sums wrap around. */
export function values(type, length, seed) {
  const next = random(seed);
  const value = type === "int32" ? () => Math.floor((next() - 0.5) * 2 ** 32) : () => (next() - 0.5) * 10 ** Math.floor(8 * next());
  return ARRAYS[type].from({ length }, value);
}

/** An array in shared memory that begins in the middle of it, at a place that is no multiple of 8, and has `more` elements after its end. */
export function shared(type, content, more = 0) {
  const Type = ARRAYS[type];
  const at = 3 * Type.BYTES_PER_ELEMENT;
  const array = new Type(new SharedArrayBuffer(at + (content.length + more) * Type.BYTES_PER_ELEMENT), at, content.length + more);
  array.set(content);
  array.fill(-7, content.length);
  return array;
}

/** Fails with both arrays when they are not the same, bit for bit; a NaN equals a NaN. */
export function same(what, got, expected) {
  const [a, b] = [Array.from(got), Array.from(expected)];
  const at = a.length === b.length ? a.findIndex((value, i) => !Object.is(value, b[i])) : -2;
  if (at !== -1) throw new Error(`${what}: expected ${at < 0 ? `${b.length} elements` : `${b[at]} at ${at}`}, got ${at < 0 ? a.length : a[at]} (of ${show(a)}; expected ${show(b)})`);
}

const show = (list) => `[${list.slice(0, 30).join(", ")}${list.length > 30 ? ", ..." : ""}]`;

/** Fails unless the call is refused with a CommError of this text. */
export function refused(call, says) {
  let error;
  try {
    call();
  } catch (thrown) {
    error = thrown;
  }
  if (error === undefined) throw new Error(`expected a refusal (${says}), got none`);
  if (error.name !== "CommError" || !error.message.includes(says)) throw new Error(`expected a CommError with ${says}, got ${error.name}: ${error.message}`);
}

export const starts = (counts) => counts.reduce((all, count) => [...all, all.at(-1) + count], [0]);

/** Sleeps without an event loop. */
export function sleep(ms) {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}
