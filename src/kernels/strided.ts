/** Copies and additions between arrays of any strides, and sums over broadcast axes. */

import { addRow, copyRow, fillRow, sumOf, sumRows } from "./vectors";

// @ts-ignore: decorator
@inline
function entry(descriptor: usize, i: i32): i32 {
  return load<i32>(descriptor + ((<usize>i) << 2));
}

/** Offset in elements of flattened index `flat` over the first five axes; `which` is 6 for the source's strides, 12 for the destination's. */
function offsetOf(descriptor: usize, flat: i32, which: i32): i32 {
  let offset = 0;
  for (let axis = 4; axis >= 0; axis--) {
    const size = entry(descriptor, axis);
    offset += (flat % size) * entry(descriptor, which + axis);
    flat /= size;
  }
  return offset;
}

/** descriptor: shape[6], source strides[6], destination strides[6]. begin..end count rows along the last axis. Any element of 4 bytes. */
export function stridedCopy(begin: i32, end: i32, rank: i32, descriptor: usize, src: usize, dst: usize): void {
  const n = entry(descriptor, 5);
  const srcStep = (<usize>entry(descriptor, 11)) << 2;
  const dstStep = (<usize>entry(descriptor, 17)) << 2;
  // The fifth axis goes along by itself; only at its ends is the whole index taken apart.
  const size = entry(descriptor, 4);
  const srcUp = (<usize>entry(descriptor, 10)) << 2;
  const dstUp = (<usize>entry(descriptor, 16)) << 2;
  let row = begin;
  while (row < end) {
    let from = src + ((<usize>offsetOf(descriptor, row, 6)) << 2);
    let to = dst + ((<usize>offsetOf(descriptor, row, 12)) << 2);
    const count = min(end - row, size - (row % size));
    row += count;
    if (dstUp == 4 && dstStep != 4 && count > 1) {
      // Transposed: blocks of eight rows, so that each line of the destination is filled while it is near.
      for (let first = 0; first < count; first += 8) {
        const stop = min(first + 8, count);
        for (let i = 0; i < n; i++) {
          const p = from + srcStep * <usize>i;
          const q = to + dstStep * <usize>i;
          for (let r = first; r < stop; r++) store<i32>(q + ((<usize>r) << 2), load<i32>(p + srcUp * <usize>r));
        }
      }
      continue;
    }
    for (let r = 0; r < count; r++) {
      if (dstStep == 4 && srcStep == 4) copyRow(from, to, n);
      else if (dstStep == 4 && srcStep == 0) fillRow(to, v128.load32_splat(from), n);
      else {
        let p = from, q = to;
        for (let i = 0; i < n; i++) {
          store<i32>(q, load<i32>(p));
          p += srcStep;
          q += dstStep;
        }
      }
      from += srcUp;
      to += dstUp;
    }
  }
}

export function stridedAdd(begin: i32, end: i32, rank: i32, descriptor: usize, src: usize, dst: usize): void {
  const n = entry(descriptor, 5);
  const srcStep = (<usize>entry(descriptor, 11)) << 2;
  const dstStep = (<usize>entry(descriptor, 17)) << 2;
  for (let row = begin; row < end; row++) {
    let p = src + ((<usize>offsetOf(descriptor, row, 6)) << 2);
    let q = dst + ((<usize>offsetOf(descriptor, row, 12)) << 2);
    if (srcStep == 4 && dstStep == 4) addRow(p, q, n);
    else if (srcStep == 4 && dstStep == 0) store<f32>(q, <f32>(<f64>load<f32>(q) + sumOf(p, n)));
    else {
      for (let i = 0; i < n; i++) {
        store<f32>(q, load<f32>(q) + load<f32>(p));
        p += srcStep;
        q += dstStep;
      }
    }
  }
}

/** Column sums for div = 1; otherwise each output is a sum of runs of `div` elements. */
export function spreadSum(begin: i32, end: i32, x: usize, div: i32, mod: i32, scale: f32, out: usize, n: i32): void {
  if (mod == 1) {
    if (begin < end) store<f32>(out, <f32>(<f64>scale * sumOf(x, n)));
    return;
  }
  if (div == 1) {
    const from = out + ((<usize>begin) << 2);
    sumRows(x + ((<usize>begin) << 2), mod, n / mod, from, end - begin);
    const left = n % mod;
    if (left > begin) addRow(x + ((<usize>(n - left + begin)) << 2), from, min(end, left) - begin);
    if (scale != 1) for (let j = begin; j < end; j++) store<f32>(out + ((<usize>j) << 2), scale * load<f32>(out + ((<usize>j) << 2)));
    return;
  }
  for (let j = begin; j < end; j++) {
    let sum: f64 = 0;
    for (let at: i64 = <i64>j * div; at < n; at += <i64>div * mod) sum += sumOf(x + ((<usize>at) << 2), min(div, n - <i32>at));
    store<f32>(out + ((<usize>j) << 2), <f32>(<f64>scale * sum));
  }
}
