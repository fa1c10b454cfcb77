/** Functions of whole rows: softmax and its relatives, the k largest, and dot products. */

import { exp4 } from "./math";
import { dotOf, largestOf, loadPart, number, row, storePart, sumOf } from "./vectors";
import { expSum, logOf, shiftFor } from "./exponentials";

export function softmax(begin: i32, end: i32, x: usize, y: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols), to = row(y, r, cols);
    const sum = expSum(from, to, cols, shiftFor(largestOf(from, cols)));
    const scale = f32x4.splat(<f32>(1 / sum));
    let j = 0;
    for (; j <= cols - 4; j += 4) {
      const at = to + ((<usize>j) << 2);
      v128.store(at, f32x4.mul(v128.load(at), scale));
    }
    for (; j < cols; j++) {
      const at = to + ((<usize>j) << 2);
      store<f32>(at, load<f32>(at) * f32x4.extract_lane(scale, 0));
    }
  }
}

export function softmaxGrad(begin: i32, end: i32, y: usize, dy: usize, dx: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const p = row(y, r, cols), g = row(dy, r, cols), to = row(dx, r, cols);
    const dot = <f32>dotOf(p, g, cols);
    const dot4 = f32x4.splat(dot);
    let j = 0;
    for (; j <= cols - 4; j += 4) {
      const at = (<usize>j) << 2;
      v128.store(to + at, f32x4.mul(v128.load(p + at), f32x4.sub(v128.load(g + at), dot4)));
    }
    for (; j < cols; j++) {
      const at = (<usize>j) << 2;
      store<f32>(to + at, load<f32>(p + at) * (load<f32>(g + at) - dot));
    }
  }
}

export function logSoftmax(begin: i32, end: i32, x: usize, y: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols), to = row(y, r, cols);
    const shift = shiftFor(largestOf(from, cols));
    const log = logOf(expSum(from, 0, cols, shift));
    const shift4 = f32x4.splat(shift), log4 = f32x4.splat(log);
    let j = 0;
    for (; j <= cols - 4; j += 4) {
      const at = (<usize>j) << 2;
      v128.store(to + at, f32x4.sub(f32x4.sub(v128.load(from + at), shift4), log4));
    }
    for (; j < cols; j++) {
      const at = (<usize>j) << 2;
      store<f32>(to + at, load<f32>(from + at) - shift - log);
    }
  }
}

export function logSoftmaxGrad(begin: i32, end: i32, y: usize, dy: usize, dx: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const p = row(y, r, cols), g = row(dy, r, cols), to = row(dx, r, cols);
    const total = f32x4.splat(<f32>sumOf(g, cols));
    let j = 0;
    for (; j <= cols - 4; j += 4) {
      const at = (<usize>j) << 2;
      v128.store(to + at, f32x4.sub(v128.load(g + at), f32x4.mul(exp4(v128.load(p + at)), total)));
    }
    if (j < cols) {
      const at = (<usize>j) << 2;
      const left = cols - j;
      storePart(to + at, f32x4.sub(loadPart(g + at, left), f32x4.mul(exp4(loadPart(p + at, left)), total)), left);
    }
  }
}

export function logSumExp(begin: i32, end: i32, x: usize, out: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols);
    const most = largestOf(from, cols);
    // Of an infinite row e^x itself has the limit.
    const shift: f32 = abs(most) == Infinity ? 0 : most;
    store<f32>(out + ((<usize>r) << 2), shift + logOf(expSum(from, 0, cols, shift)));
  }
}

export function rowDot(begin: i32, end: i32, a: usize, b: usize, out: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) store<f32>(out + ((<usize>r) << 2), <f32>dotOf(row(a, r, cols), row(b, r, cols), cols));
}

/** What a value counts as in the order of top-k. */
// @ts-ignore: decorator
@inline
function key(x: f32): f32 {
  return x == x ? x : -Infinity;
}

/** Keeps the k best in order in `values` and `indices`; nearly all others fall at a comparison of sixteen with the worst kept. */
export function topK(begin: i32, end: i32, x: usize, values: usize, indices: usize, rows: i32, cols: i32, k: i32): void {
  if (k <= 0) return;
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols), best = row(values, r, k), at = row(indices, r, k);
    for (let j = 0; j < k; j++) insert(from, best, at, j, j);
    let bar = key(number(best, k - 1));
    let bar4 = f32x4.splat(bar);
    let j = k;
    while (j < cols) {
      while (j <= cols - 16) {
        const p = from + ((<usize>j) << 2);
        const over = v128.or(v128.or(f32x4.gt(v128.load(p), bar4), f32x4.gt(v128.load(p, 16), bar4)), v128.or(f32x4.gt(v128.load(p, 32), bar4), f32x4.gt(v128.load(p, 48), bar4)));
        if (v128.any_true(over)) break;
        j += 16;
      }
      const stop = min(j + 16, cols);
      for (; j < stop; j++) {
        if (!(number(from, j) > bar)) continue;
        insert(from, best, at, k - 1, j);
        bar = key(number(best, k - 1));
      }
      bar4 = f32x4.splat(bar);
    }
  }
}

/** Puts element j of x into a sorted list, whose place `last` is free. Equal ones stay before it. */
function insert(x: usize, best: usize, at: usize, last: i32, j: i32): void {
  const v = number(x, j);
  let place = last;
  for (; place > 0 && key(v) > key(number(best, place - 1)); place--) {
    store<f32>(best + ((<usize>place) << 2), number(best, place - 1));
    store<i32>(at + ((<usize>place) << 2), load<i32>(at + ((<usize>(place - 1)) << 2)));
  }
  store<f32>(best + ((<usize>place) << 2), v);
  store<i32>(at + ((<usize>place) << 2), j);
}
