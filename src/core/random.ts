/**
 * Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
 *
 * Element i of a stream is a pure function of (seed, stream, step, i), so the same global row draws the same noise whatever the number of
 * threads or processes. The kernels repeat this definition; the tests hold them to it and to the published vectors.
 */

/** High 32 bits of a·b for unsigned 32-bit a and b, by halves of 16 bits (the low ones are Math.imul's). */
function mulHigh(a: number, b: number): number {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const lowHigh = aLow * bHigh;
  const highLow = aHigh * bLow;
  const carry = ((aLow * bLow) >>> 16) + (lowHigh & 0xffff) + (highLow & 0xffff);
  return (aHigh * bHigh + (lowHigh >>> 16) + (highLow >>> 16) + (carry >>> 16)) >>> 0;
}

/** Ten rounds of Philox 4x32 on a counter of four and a key of two unsigned 32-bit words. */
export function philox4x32(counter: readonly [number, number, number, number], key: readonly [number, number]): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(0xd2511f53, c0);
    const high1 = mulHigh(0xcd9e8d57, c2);
    const low0 = Math.imul(0xd2511f53, c0);
    c0 = high1 ^ c1 ^ k0;
    c1 = Math.imul(0xcd9e8d57, c2);
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + 0x9e3779b9) | 0;
    k1 = (k1 + 0xbb67ae85) | 0;
  }
  return [c0 >>> 0, c1 >>> 0, c2 >>> 0, c3 >>> 0];
}

/** A key as the backends take it; see `RandomKey` there. */
interface Key {
  readonly seed: number;
  readonly stream: number;
  readonly step: number;
}

/**
 * The four words of block `block` (elements 4·block .. 4·block+3) of a stream.
 * Key = the seed's low and high words; counter = (block low, block high, step, stream).
 */
function words(key: Key, block: number): [number, number, number, number] {
  return philox4x32(
    [block >>> 0, Math.floor(block / 2 ** 32) >>> 0, key.step >>> 0, key.stream >>> 0],
    [key.seed >>> 0, Math.floor(key.seed / 2 ** 32) >>> 0],
  );
}

/** Element i, uniform in [0, 1): the upper 24 bits of word i mod 4, so exact in float32. */
export function uniformAt(key: Key, i: number): number {
  return (words(key, Math.floor(i / 4))[i % 4] >>> 8) * 2 ** -24;
}

/** The uniform numbers of a stream one after another, as `uniformAt` from element `first` on. */
export function uniformsFrom(key: Key, first: number): () => number {
  let at = first;
  let block = -1;
  let drawn: readonly number[] = [];
  return () => {
    const needed = Math.floor(at / 4);
    if (needed !== block) drawn = words(key, (block = needed));
    return (drawn[at++ % 4] >>> 8) * 2 ** -24;
  };
}

/**
 * Element i, standard normal, by Box-Muller on the pairs (word 0, word 1) and (word 2, word 3) of a block:
 * even elements take r·cos(2πu₂), odd ones r·sin(2πu₂), r = √(−2 ln u₁), u₁ = (w + 1 of 24 bits)·2⁻²⁴ in (0, 1].
 */
export function normalAt(key: Key, i: number): number {
  const block = words(key, Math.floor(i / 4));
  const pair = (i % 4) & 2;
  const u1 = ((block[pair] >>> 8) + 1) * 2 ** -24;
  const u2 = (block[pair + 1] >>> 8) * 2 ** -24;
  const radius = Math.sqrt(-2 * Math.log(u1));
  return radius * (i % 2 === 0 ? Math.cos(2 * Math.PI * u2) : Math.sin(2 * Math.PI * u2));
}

/** 32-bit FNV-1a hash of text: the stream of a purpose and a layer, as in `streamId("dropout", "lstm.0")`. */
export function streamId(purpose: string, layer: string): number {
  let hash = 0x811c9dc5;
  for (const character of `${purpose}:${layer}`) {
    hash ^= character.codePointAt(0)!;
    hash = Math.imul(hash, 0x01000193);
  }
  return hash >>> 0;
}
