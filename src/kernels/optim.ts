/** Optimiser updates: Adam, dense, by rows and with a factored second moment (App. D); SGD; sums of squares for clipping. */

import { dotOf, loadPart, madd, storePart } from "./vectors";

// @ts-ignore: decorator
@inline
function get(p: usize, count: i32): v128 {
  return count >= 4 ? v128.load(p) : loadPart(p, count);
}

// @ts-ignore: decorator
@inline
function put(p: usize, v: v128, count: i32): void {
  if (count >= 4) v128.store(p, v);
  else storePart(p, v, count);
}

/** βᵗ by squaring. */
function power(beta: f64, t: i32): f64 {
  let result: f64 = 1;
  for (; t > 0; t >>= 1) {
    if (t & 1) result *= beta;
    beta *= beta;
  }
  return result;
}

/** param after a step along direction / (√v̂ + ε) with decoupled decay: p·keep − rate·direction/(√(v·correction) + ε). */
// @ts-ignore: decorator
@inline
function stepped(p: v128, direction: v128, v: v128, rate: v128, correction: v128, epsilon: v128, keep: v128): v128 {
  return f32x4.sub(f32x4.mul(p, keep), f32x4.div(f32x4.mul(rate, direction), f32x4.add(f32x4.sqrt(f32x4.mul(v, correction)), epsilon)));
}

/** `count` elements, `n` (4, or fewer at the end) at a time; m 0 where there is no first moment. Settings in float64 so that corrections are exact. */
function update(param: usize, grad: usize, m: usize, v: usize, count: i32, step: i32, learningRate: f64, beta1: f64, beta2: f64, epsilon: f64, weightDecay: f64, gradScale: f64): void {
  const rate = f32x4.splat(<f32>(m ? learningRate / (1 - power(beta1, step)) : learningRate));
  const correction = f32x4.splat(<f32>(1 / (1 - power(beta2, step))));
  const keep = f32x4.splat(<f32>(1 - learningRate * weightDecay));
  const e = f32x4.splat(<f32>epsilon), scale = f32x4.splat(<f32>gradScale);
  const b1 = f32x4.splat(<f32>beta1), c1 = f32x4.splat(<f32>(1 - beta1));
  const b2 = f32x4.splat(<f32>beta2), c2 = f32x4.splat(<f32>(1 - beta2));
  for (let i = 0; i < count; i += 4) {
    const at = (<usize>i) << 2;
    const left = count - i;
    const g = f32x4.mul(get(grad + at, left), scale);
    const second = madd(b2, get(v + at, left), f32x4.mul(c2, f32x4.mul(g, g)));
    let direction = g;
    if (m) {
      direction = madd(b1, get(m + at, left), f32x4.mul(c1, g));
      put(m + at, direction, left);
    }
    put(v + at, second, left);
    put(param + at, stepped(get(param + at, left), direction, second, rate, correction, e, keep), left);
  }
}

export function adam(begin: i32, end: i32, param: usize, grad: usize, m: usize, v: usize, n: i32, step: i32, learningRate: f64, beta1: f64, beta2: f64, epsilon: f64, weightDecay: f64, gradScale: f64): void {
  const at = (<usize>begin) << 2;
  update(param + at, grad + at, m ? m + at : 0, v + at, end - begin, step, learningRate, beta1, beta2, epsilon, weightDecay, gradScale);
}

export function adamRows(begin: i32, end: i32, param: usize, grad: usize, rows: usize, slots: i32, width: i32, m: usize, v: usize, steps: usize, learningRate: f64, beta1: f64, beta2: f64, epsilon: f64, weightDecay: f64, gradScale: f64): void {
  for (let s = begin; s < end; s++) {
    const row = load<i32>(rows + ((<usize>s) << 2));
    if (row < 0) continue;
    const counter = steps + ((<usize>row) << 2);
    const step = load<i32>(counter) + 1;
    store<i32>(counter, step);
    const at = <usize>row * <usize>width << 2;
    update(param + at, grad + (<usize>s * <usize>width << 2), m ? m + at : 0, v + at, width, step, learningRate, beta1, beta2, epsilon, weightDecay, gradScale);
  }
}

/** A vector of a row after its step along g: p·keep − rate·g/d. */
// @ts-ignore: decorator
@inline
function stepAlong(p: usize, g: usize, d: v128, rate: v128, keep: v128): void {
  v128.store(p, f32x4.sub(f32x4.mul(v128.load(p), keep), f32x4.div(f32x4.mul(rate, v128.load(g)), d)));
}

/** C + share · Σ g² over four rows from g, `full` columns of them, whole vectors. */
// @ts-ignore: decorator
@inline
function addSquares(C: usize, g: usize, bytes: usize, full: i32, share: v128): void {
  const g1 = g + bytes, g2 = g1 + bytes, g3 = g2 + bytes;
  for (let j = 0; j < full; j += 4) {
    const at = (<usize>j) << 2;
    const a = v128.load(g + at), b = v128.load(g1 + at), c = v128.load(g2 + at), d = v128.load(g3 + at);
    const sum = f32x4.add(madd(a, a, f32x4.mul(b, b)), madd(c, c, f32x4.mul(d, d)));
    v128.store(C + at, madd(share, sum, v128.load(C + at)));
  }
}

/** Reads a word of every cache line in order: what several rows at a time would fetch, and no prefetcher foresee, is there when they come. */
// @ts-ignore: decorator
@inline
function touch(p: usize, bytes: usize): i32 {
  let all = 0;
  for (let at: usize = 0; at < bytes; at += 64) all |= load<i32>(p + at);
  return all;
}

/**
 * The root of the second moment's estimate is the product of two roots, one of its row's mean, one of its column's: taken so, four rows at a time share
 * the latter, and a matrix is done in two passes over its gradient.
 */
export function factoredAdamRows(begin: i32, end: i32, param: usize, grad: usize, rows: usize, slots: i32, height: i32, width: i32, rowMean: usize, colMean: usize, steps: usize, learningRate: f64, beta1: f64, beta2: f64, epsilon: f64, weightDecay: f64, gradScale: f64): void {
  const bytes = (<usize>width) << 2, full = width & ~3;
  const matrix = bytes * <usize>height;
  const fours = height & ~3;
  const b2 = f32x4.splat(<f32>beta2);
  const squared = (1 - beta2) * gradScale * gradScale;
  const share = f32x4.splat(<f32>(squared / <f64>height));
  const rate1 = <f32>(learningRate * gradScale), e1 = <f32>epsilon, keep1 = <f32>(1 - learningRate * weightDecay);
  const rate = f32x4.splat(rate1), e = f32x4.splat(e1), keep = f32x4.splat(keep1);
  for (let s = begin; s < end; s++) {
    const which = rows ? load<i32>(rows + ((<usize>s) << 2)) : s;
    if (which < 0) continue;
    const counter = steps + ((<usize>which) << 2);
    const step = load<i32>(counter) + 1;
    store<i32>(counter, step);
    const R = rowMean + (<usize>which * <usize>height << 2), C = colMean + bytes * <usize>which;
    let g = grad + matrix * <usize>s, p = param + matrix * <usize>which;
    for (let j = 0; j < width; j += 4) {
      const at = (<usize>j) << 2;
      put(C + at, f32x4.mul(b2, get(C + at, width - j)), width - j);
    }
    let overall: f64 = 0;
    for (let i = 0; i < height; i++) {
      const x = g + bytes * <usize>i, r = R + ((<usize>i) << 2);
      store<f32>(r, <f32>(beta2 * <f64>load<f32>(r) + squared * dotOf(x, x, width) / <f64>width));
      overall += <f64>load<f32>(r);
      // Four rows that have just been read.
      if ((i & 3) == 3) addSquares(C, x - 3 * bytes, bytes, full, share);
    }
    for (let i = fours; i < height; i++) {
      const x = g + bytes * <usize>i;
      for (let j = 0; j < full; j += 4) {
        const at = (<usize>j) << 2;
        const a = v128.load(x + at);
        v128.store(C + at, madd(share, f32x4.mul(a, a), v128.load(C + at)));
      }
    }
    for (let j = full; j < width; j++) {
      const at = (<usize>j) << 2;
      let sum: f32 = 0;
      for (let i = 0; i < height; i++) {
        const a = load<f32>(g + bytes * <usize>i + at);
        sum += a * a;
      }
      store<f32>(C + at, load<f32>(C + at) + f32x4.extract_lane(share, 0) * sum);
    }
    // 0 where no gradient ever was: the columns' means are 0 then too.
    overall = (overall / <f64>height) * (1 - power(beta2, step));
    const inverse = overall == 0 ? 0 : 1 / overall;
    for (let i = 0; i < height; i++) {
      const f = rootOf(R, i, inverse), f0 = f32x4.splat(f);
      for (let j = full; j < width; j++) {
        const at = (<usize>j) << 2;
        for (let r = 0; r < (i < fours ? 4 : 1); r++) {
          const to = p + bytes * <usize>r + at;
          const d = Mathf.sqrt(load<f32>(C + at)) * rootOf(R, i + r, inverse) + e1;
          store<f32>(to, load<f32>(to) * keep1 - (rate1 * load<f32>(g + bytes * <usize>r + at)) / d);
        }
      }
      if (i < fours) {
        const f1 = f32x4.splat(rootOf(R, i + 1, inverse)), f2 = f32x4.splat(rootOf(R, i + 2, inverse)), f3 = f32x4.splat(rootOf(R, i + 3, inverse));
        const p1 = p + bytes, p2 = p1 + bytes, p3 = p2 + bytes;
        touch(p, 4 * bytes);
        const g1 = g + bytes, g2 = g1 + bytes, g3 = g2 + bytes;
        for (let j = 0; j < full; j += 4) {
          const at = (<usize>j) << 2;
          const root = f32x4.sqrt(v128.load(C + at));
          stepAlong(p + at, g + at, madd(root, f0, e), rate, keep);
          stepAlong(p1 + at, g1 + at, madd(root, f1, e), rate, keep);
          stepAlong(p2 + at, g2 + at, madd(root, f2, e), rate, keep);
          stepAlong(p3 + at, g3 + at, madd(root, f3, e), rate, keep);
        }
        p = p3 + bytes;
        g = g3 + bytes;
        i += 3;
      } else {
        for (let j = 0; j < full; j += 4) {
          const at = (<usize>j) << 2;
          stepAlong(p + at, g + at, madd(f32x4.sqrt(v128.load(C + at)), f0, e), rate, keep);
        }
        p += bytes;
        g += bytes;
      }
    }
  }
}

/** √(R[i] · inverse). */
// @ts-ignore: decorator
@inline
function rootOf(R: usize, i: i32, inverse: f64): f32 {
  return <f32>Math.sqrt(<f64>load<f32>(R + ((<usize>i) << 2)) * inverse);
}

/** param −= rate·grad. */
// @ts-ignore: decorator
@inline
function descend(param: usize, grad: usize, n: i32, rate: f32): void {
  const rate4 = f32x4.splat(rate);
  for (let i = 0; i < n; i += 4) {
    const at = (<usize>i) << 2;
    const left = n - i;
    put(param + at, f32x4.sub(get(param + at, left), f32x4.mul(rate4, get(grad + at, left))), left);
  }
}

export function sgd(begin: i32, end: i32, param: usize, grad: usize, n: i32, learningRate: f32, gradScale: f32): void {
  const at = (<usize>begin) << 2;
  descend(param + at, grad + at, end - begin, learningRate * gradScale);
}

export function sgdRows(begin: i32, end: i32, param: usize, grad: usize, rows: usize, slots: i32, width: i32, learningRate: f32, gradScale: f32): void {
  for (let s = begin; s < end; s++) {
    const row = load<i32>(rows + ((<usize>s) << 2));
    if (row >= 0) descend(param + (<usize>row * <usize>width << 2), grad + (<usize>s * <usize>width << 2), width, learningRate * gradScale);
  }
}

/** Elements in one partial sum of `sumSquaresPartial`: the CPU backend counts chunks by the same number. */
const CHUNK = 65536;

/** partials[c] = Σ x² of chunk c in float64; where rows are given, of slot c (0 where rows[c] is −1). */
export function sumSquaresPartial(begin: i32, end: i32, x: usize, n: i32, rows: usize, width: i32, partials: usize): void {
  for (let c = begin; c < end; c++) {
    let sum: f64 = 0;
    if (!rows) {
      const at = x + (<usize>c * CHUNK << 2);
      sum = dotOf(at, at, min(CHUNK, n - c * CHUNK));
    } else if (load<i32>(rows + ((<usize>c) << 2)) >= 0) {
      const at = x + (<usize>c * <usize>width << 2);
      sum = dotOf(at, at, width);
    }
    store<f64>(partials + ((<usize>c) << 3), sum);
  }
}

/** out[0] += the partial sums, in order. */
export function sumSquaresFinish(count: i32, partials: usize, out: usize): void {
  let sum = <f64>load<f32>(out);
  for (let c = 0; c < count; c++) sum += load<f64>(partials + ((<usize>c) << 3));
  store<f32>(out, <f32>sum);
}
