/** Cross entropy over all classes and over sampled ones, with gradients in place of the logits. */

import { exp4 } from "./math";
import { fillRow, lanes, largestOf, loadPart, loadPartOr, storePart } from "./vectors";
import { expSum, logOf, scaleRow, shiftFor } from "./exponentials";

export function crossEntropy(begin: i32, end: i32, logits: usize, target: usize, loss: usize, rows: i32, cols: i32, gradScale: f32): void {
  for (let r = begin; r < end; r++) {
    const x = logits + (<usize>r * <usize>cols << 2);
    const t = load<i32>(target + ((<usize>r) << 2));
    const out = loss + ((<usize>r) << 2);
    if (t < 0) {
      store<f32>(out, 0);
      if (gradScale != 0) fillRow(x, f32x4.splat(0), cols);
      continue;
    }
    const truth = x + ((<usize>t) << 2);
    const shift = shiftFor(largestOf(x, cols));
    const below = shift - load<f32>(truth);
    const sum = expSum(x, gradScale != 0 ? x : 0, cols, shift);
    store<f32>(out, below + logOf(sum));
    if (gradScale == 0) continue;
    const p = <f64>load<f32>(truth) / sum;
    scaleRow(x, <f32>(<f64>gradScale / sum), cols);
    store<f32>(truth, <f32>(<f64>gradScale * (p - 1)));
  }
}

/** Up to four shifted logits from place j on; −∞ for hits and beyond the end. */
// @ts-ignore: decorator
@inline
function shifted(x: usize, shift: usize, samples: usize, j: i32, cols: i32, t: v128): v128 {
  const at = (<usize>j) << 2;
  const left = cols - j;
  const none = f32x4.splat(-Infinity);
  if (left >= 4) return v128.bitselect(none, f32x4.sub(v128.load(x + at), v128.load(shift + at)), i32x4.eq(v128.load(samples + at), t));
  return v128.bitselect(none, f32x4.sub(loadPartOr(x + at, left, -Infinity), loadPart(shift + at, left)), i32x4.eq(loadPartOr(samples + at, left, 0), t));
}

export function sampledCrossEntropy(begin: i32, end: i32, logits: usize, shift: usize, samples: usize, trueLogit: usize, trueShift: usize, target: usize, loss: usize, rows: i32, cols: i32, gradScale: f32): void {
  for (let r = begin; r < end; r++) {
    const x = logits + (<usize>r * <usize>cols << 2);
    const at = (<usize>r) << 2;
    const t = load<i32>(target + at);
    if (t < 0) {
      store<f32>(loss + at, 0);
      if (gradScale != 0) {
        fillRow(x, f32x4.splat(0), cols);
        store<f32>(trueLogit + at, 0);
      }
      continue;
    }
    const t4 = i32x4.splat(t);
    const truth = load<f32>(trueLogit + at) - load<f32>(trueShift + at);
    let most4 = f32x4.splat(truth);
    for (let j = 0; j < cols; j += 4) most4 = f32x4.pmax(most4, shifted(x, shift, samples, j, cols, t4));
    const most = shiftFor(max(max(f32x4.extract_lane(most4, 0), f32x4.extract_lane(most4, 1)), max(f32x4.extract_lane(most4, 2), f32x4.extract_lane(most4, 3))));
    const m = f32x4.splat(most);
    const own = <f64>f32x4.extract_lane(exp4(f32x4.sub(f32x4.splat(truth), m)), 0);
    let sum = own;
    for (let j = 0; j < cols; j += 4) {
      const e = exp4(f32x4.sub(shifted(x, shift, samples, j, cols, t4), m));
      sum += lanes(e);
      if (gradScale == 0) continue;
      const to = x + ((<usize>j) << 2);
      if (cols - j >= 4) v128.store(to, e);
      else storePart(to, e, cols - j);
    }
    store<f32>(loss + at, (most - truth) + logOf(sum));
    if (gradScale == 0) continue;
    scaleRow(x, <f32>(<f64>gradScale / sum), cols);
    store<f32>(trueLogit + at, <f32>(<f64>gradScale * (own / sum - 1)));
  }
}
