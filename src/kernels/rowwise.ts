// Functions of whole rows: softmax, layer normalisation, top-k, cross-entropy.

import { exp4, log4 } from "./math";
import { dotOf, largestOf, loadPart, storePart, sumOf } from "./vectors";
import { splat, sum4 } from "./lanes";

// @ts-ignore: decorator
@inline
function row(p: usize, r: i32, width: i32): usize { return p + ((<usize>r * <usize>width) << 2); }

// @ts-ignore: decorator
@inline
function exp(x: f32): f32 { return f32x4.extract_lane(exp4(splat(x)), 0); }

// @ts-ignore: decorator
@inline
function ln(x: f32): f32 { return f32x4.extract_lane(log4(splat(x)), 0); }

/** y = e^(x − shift), returning the sum. y may be x. */
function expOf(x: usize, y: usize, shift: f32, cols: i32): f32 {
  const s = splat(shift);
  let sum = splat(0);
  let j = 0;
  for (; j + 4 <= cols; j += 4) {
    const e = exp4(f32x4.sub(v128.load(x + (<usize>j << 2)), s));
    v128.store(y + (<usize>j << 2), e);
    sum = f32x4.add(sum, e);
  }
  let total = sum4(sum);
  if (j < cols) {
    storePart(y + (<usize>j << 2), exp4(f32x4.sub(loadPart(x + (<usize>j << 2), cols - j), s)), cols - j);
    for (; j < cols; j++) total += load<f32>(y + (<usize>j << 2));
  }
  return total;
}

/** Σ e^(x − shift) without storing. */
function sumExp(x: usize, shift: f32, cols: i32): f32 {
  const s = splat(shift);
  let sum = splat(0);
  let j = 0;
  for (; j + 4 <= cols; j += 4) sum = f32x4.add(sum, exp4(f32x4.sub(v128.load(x + (<usize>j << 2)), s)));
  let total = sum4(sum);
  for (; j < cols; j++) total += exp(load<f32>(x + (<usize>j << 2)) - shift);
  return total;
}

function scale(y: usize, factor: f32, cols: i32): void {
  const f = splat(factor);
  let j = 0;
  for (; j + 4 <= cols; j += 4) v128.store(y + (<usize>j << 2), f32x4.mul(f, v128.load(y + (<usize>j << 2))));
  for (; j < cols; j++) store<f32>(y + (<usize>j << 2), factor * load<f32>(y + (<usize>j << 2)));
}

function lse(x: usize, cols: i32): f32 {
  const most = largestOf(x, cols);
  return most == -Infinity ? most : most + ln(sumExp(x, most, cols));
}

export function softmax(begin: i32, end: i32, x: usize, y: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const to = row(y, r, cols);
    const from = row(x, r, cols);
    scale(to, 1 / expOf(from, to, largestOf(from, cols), cols), cols);
  }
}

export function softmaxGrad(begin: i32, end: i32, y: usize, dy: usize, dx: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const a = row(y, r, cols);
    const b = row(dy, r, cols);
    const to = row(dx, r, cols);
    const dot = <f32>dotOf(a, b, cols);
    const d = splat(dot);
    let j = 0;
    for (; j + 4 <= cols; j += 4) v128.store(to + (<usize>j << 2), f32x4.mul(v128.load(a + (<usize>j << 2)), f32x4.sub(v128.load(b + (<usize>j << 2)), d)));
    for (; j < cols; j++) store<f32>(to + (<usize>j << 2), load<f32>(a + (<usize>j << 2)) * (load<f32>(b + (<usize>j << 2)) - dot));
  }
}

export function logSoftmax(begin: i32, end: i32, x: usize, y: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const l = lse(row(x, r, cols), cols);
    for (let j = 0; j < cols; j++) store<f32>(row(y, r, cols) + (<usize>j << 2), load<f32>(row(x, r, cols) + (<usize>j << 2)) - l);
  }
}

export function logSoftmaxGrad(begin: i32, end: i32, y: usize, dy: usize, dx: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const a = row(y, r, cols);
    const b = row(dy, r, cols);
    const total = <f32>sumOf(b, cols);
    for (let j = 0; j < cols; j++) store<f32>(row(dx, r, cols) + (<usize>j << 2), load<f32>(b + (<usize>j << 2)) - exp(load<f32>(a + (<usize>j << 2))) * total);
  }
}

export function logSumExp(begin: i32, end: i32, x: usize, out: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) store<f32>(out + (<usize>r << 2), lse(row(x, r, cols), cols));
}

export function rowDot(begin: i32, end: i32, a: usize, b: usize, out: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) store<f32>(out + (<usize>r << 2), <f32>dotOf(row(a, r, cols), row(b, r, cols), cols));
}

export function layerNorm(begin: i32, end: i32, x: usize, gamma: usize, beta: usize, y: usize, mean: usize, rstd: usize, rows: i32, cols: i32, epsilon: f32): void {
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols);
    const mu = sumOf(from, cols) / <f64>cols;
    let squares: f64 = 0;
    for (let j = 0; j < cols; j++) {
      const d = <f64>load<f32>(from + (<usize>j << 2)) - mu;
      squares += d * d;
    }
    const s = <f32>(1 / Math.sqrt(squares / <f64>cols + <f64>epsilon));
    const m = <f32>mu;
    store<f32>(mean + (<usize>r << 2), m);
    store<f32>(rstd + (<usize>r << 2), s);
    const to = row(y, r, cols);
    for (let j = 0; j < cols; j++) {
      const at = <usize>j << 2;
      store<f32>(to + at, (load<f32>(from + at) - m) * s * load<f32>(gamma + at) + load<f32>(beta + at));
    }
  }
}

export function layerNormGradRows(begin: i32, end: i32, x: usize, gamma: usize, mean: usize, rstd: usize, dy: usize, dx: usize, dGamma: usize, dBeta: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols);
    const d = row(dy, r, cols);
    const m = load<f32>(mean + (<usize>r << 2));
    const s = load<f32>(rstd + (<usize>r << 2));
    let sum: f64 = 0;
    let along: f64 = 0;
    for (let j = 0; j < cols; j++) {
      const at = <usize>j << 2;
      const g = <f64>(load<f32>(d + at) * load<f32>(gamma + at));
      sum += g;
      along += g * <f64>((load<f32>(from + at) - m) * s);
    }
    const average = <f32>(sum / <f64>cols);
    const slope = <f32>(along / <f64>cols);
    for (let j = 0; j < cols; j++) {
      const at = <usize>j << 2;
      store<f32>(row(dx, r, cols) + at, s * (load<f32>(d + at) * load<f32>(gamma + at) - average - (load<f32>(from + at) - m) * s * slope));
    }
  }
}

export function layerNormGradColumns(begin: i32, end: i32, x: usize, gamma: usize, mean: usize, rstd: usize, dy: usize, dx: usize, dGamma: usize, dBeta: usize, rows: i32, cols: i32): void {
  for (let j = begin; j < end; j++) {
    const at = <usize>j << 2;
    let g: f64 = 0;
    let b: f64 = 0;
    for (let r = 0; r < rows; r++) {
      const d = <f64>load<f32>(row(dy, r, cols) + at);
      b += d;
      g += d * <f64>((load<f32>(row(x, r, cols) + at) - load<f32>(mean + (<usize>r << 2))) * load<f32>(rstd + (<usize>r << 2)));
    }
    store<f32>(dGamma + at, <f32>g);
    store<f32>(dBeta + at, <f32>b);
  }
}

/** A value as it is compared: NaN as −∞. */
// @ts-ignore: decorator
@inline
function keyOf(value: f32): f32 { return value == value ? value : -Infinity; }

/** Insertion into a list of k; most elements fall to the comparison with the smallest kept. */
export function topK(begin: i32, end: i32, x: usize, values: usize, indices: usize, rows: i32, cols: i32, k: i32): void {
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols);
    const v = row(values, r, k);
    const ids = row(indices, r, k);
    let count = 0;
    let least: f32 = -Infinity;
    for (let j = 0; j < cols; j++) {
      const raw = load<f32>(from + (<usize>j << 2));
      const value = keyOf(raw);
      if (count == k && !(value > least)) continue;
      let at = count < k ? count : k - 1;
      while (at > 0 && keyOf(load<f32>(v + (<usize>(at - 1) << 2))) < value) {
        store<f32>(v + (<usize>at << 2), load<f32>(v + (<usize>(at - 1) << 2)));
        store<i32>(ids + (<usize>at << 2), load<i32>(ids + (<usize>(at - 1) << 2)));
        at--;
      }
      store<f32>(v + (<usize>at << 2), raw);
      store<i32>(ids + (<usize>at << 2), j);
      if (count < k) count++;
      if (count == k) least = keyOf(load<f32>(v + (<usize>(k - 1) << 2)));
    }
  }
}

export function crossEntropy(begin: i32, end: i32, logits: usize, target: usize, loss: usize, rows: i32, cols: i32, gradScale: f32): void {
  for (let r = begin; r < end; r++) {
    const x = row(logits, r, cols);
    const t = load<i32>(target + (<usize>r << 2));
    if (t < 0) {
      store<f32>(loss + (<usize>r << 2), 0);
      if (gradScale != 0) memory.fill(x, 0, <usize>cols << 2);
      continue;
    }
    const most = largestOf(x, cols);
    const truth = load<f32>(x + (<usize>t << 2));
    const sum = gradScale != 0 ? expOf(x, x, most, cols) : sumExp(x, most, cols);
    store<f32>(loss + (<usize>r << 2), most - truth + ln(sum));
    if (gradScale == 0) continue;
    scale(x, gradScale / sum, cols);
    const p = x + (<usize>t << 2);
    store<f32>(p, load<f32>(p) - gradScale);
  }
}

export function sampledCrossEntropy(begin: i32, end: i32, logits: usize, shift: usize, samples: usize, trueLogit: usize, trueShift: usize, target: usize, loss: usize, rows: i32, cols: i32, gradScale: f32): void {
  for (let r = begin; r < end; r++) {
    const x = row(logits, r, cols);
    const t = load<i32>(target + (<usize>r << 2));
    const truthAt = trueLogit + (<usize>r << 2);
    if (t < 0) {
      store<f32>(loss + (<usize>r << 2), 0);
      if (gradScale != 0) {
        memory.fill(x, 0, <usize>cols << 2);
        store<f32>(truthAt, 0);
      }
      continue;
    }
    const truth = load<f32>(truthAt) - load<f32>(trueShift + (<usize>r << 2));
    for (let j = 0; j < cols; j++) {
      const at = <usize>j << 2;
      store<f32>(x + at, load<i32>(samples + at) == t ? -Infinity : load<f32>(x + at) - load<f32>(shift + at));
    }
    const most = max(largestOf(x, cols), truth);
    const e = exp(truth - most);
    const sum = e + (gradScale != 0 ? expOf(x, x, most, cols) : sumExp(x, most, cols));
    store<f32>(loss + (<usize>r << 2), most - truth + ln(sum));
    if (gradScale == 0) continue;
    scale(x, gradScale / sum, cols);
    store<f32>(truthAt, gradScale * (e / sum - 1));
  }
}
