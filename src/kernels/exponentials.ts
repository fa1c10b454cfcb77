/** Sums of exponentials of a row: what softmax and the losses share. */

import { exp4, log4 } from "./math";
import { BLOCK, lanes, loadPartOr, storePart } from "./vectors";

/** What is subtracted before exp: the largest, or 0 where all are −∞ (−∞ − −∞ would be NaN). */
// @ts-ignore: decorator
@inline
export function shiftFor(most: f32): f32 {
  return most == -Infinity ? 0 : most;
}

/** ln of a float64 sum, as float32. Sums of shifted exponentials lie between 1 and the number of columns. */
// @ts-ignore: decorator
@inline
export function logOf(sum: f64): f32 {
  return f32x4.extract_lane(log4(f32x4.splat(<f32>sum)), 0);
}

/** Σ e^(x − shift) over n elements, which also go to `out` unless that is 0. out may be x. */
export function expSum(x: usize, out: usize, n: i32, shift: f32): f64 {
  const s = f32x4.splat(shift);
  let total: f64 = 0;
  let i = 0;
  while (n - i >= 8) {
    const stop = i + min(BLOCK, (n - i) & ~7);
    let a = f32x4.splat(0), b = a;
    for (; i < stop; i += 8) {
      const at = (<usize>i) << 2;
      const e = exp4(f32x4.sub(v128.load(x + at), s));
      const f = exp4(f32x4.sub(v128.load(x + at, 16), s));
      a = f32x4.add(a, e);
      b = f32x4.add(b, f);
      if (out) {
        v128.store(out + at, e);
        v128.store(out + at, f, 16);
      }
    }
    total += lanes(f32x4.add(a, b));
  }
  for (; i < n; i += 4) {
    const at = (<usize>i) << 2;
    const left = n - i;
    const v = left >= 4 ? v128.load(x + at) : loadPartOr(x + at, left, -Infinity);
    const e = exp4(f32x4.sub(v, s));
    total += lanes(e);
    if (out) {
      if (left >= 4) v128.store(out + at, e);
      else storePart(out + at, e, left);
    }
  }
  return total;
}

/** x = x·scale, n elements. */
export function scaleRow(x: usize, scale: f32, n: i32): void {
  const s = f32x4.splat(scale);
  let i = 0;
  for (; i <= n - 4; i += 4) {
    const at = x + ((<usize>i) << 2);
    v128.store(at, f32x4.mul(v128.load(at), s));
  }
  for (; i < n; i++) {
    const at = x + ((<usize>i) << 2);
    store<f32>(at, load<f32>(at) * scale);
  }
}
