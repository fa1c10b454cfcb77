/** Optimiser updates: Adam, dense, by rows and with a factored second moment (App. D); SGD; sums of squares for clipping. */

import { BLOCK, dotOf, lanes, loadUpTo4, madd, storeUpTo4 } from "./vectors";

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

/** One vector's step, or that of the `count` elements at the end; m 0 where there is no first moment. Where count is a 4 in the code, nothing is left of asking for it. */
// @ts-ignore: decorator
@inline
function updateVector(param: usize, grad: usize, m: usize, v: usize, count: i32, rate: v128, correction: v128, e: v128, keep: v128, scale: v128, b1: v128, c1: v128, b2: v128, c2: v128): void {
  // Before anything is stored: processors take a load for one of what was just stored where the last twelve bits of the addresses are equal, as those of large tensors are.
  const p = loadUpTo4(param, count);
  const g = f32x4.mul(loadUpTo4(grad, count), scale);
  const second = madd(b2, loadUpTo4(v, count), f32x4.mul(c2, f32x4.mul(g, g)));
  let direction = g;
  if (m) {
    direction = madd(b1, loadUpTo4(m, count), f32x4.mul(c1, g));
    storeUpTo4(m, direction, count);
  }
  storeUpTo4(v, second, count);
  storeUpTo4(param, stepped(p, direction, second, rate, correction, e, keep), count);
}

/** `count` elements. Settings in float64 so that corrections are exact. */
function update(param: usize, grad: usize, m: usize, v: usize, count: i32, step: i32, learningRate: f64, beta1: f64, beta2: f64, epsilon: f64, weightDecay: f64, gradScale: f64): void {
  const rate = f32x4.splat(<f32>(m ? learningRate / (1 - power(beta1, step)) : learningRate));
  const correction = f32x4.splat(<f32>(1 / (1 - power(beta2, step))));
  const keep = f32x4.splat(<f32>(1 - learningRate * weightDecay));
  const e = f32x4.splat(<f32>epsilon), scale = f32x4.splat(<f32>gradScale);
  const b1 = f32x4.splat(<f32>beta1), c1 = f32x4.splat(<f32>(1 - beta1));
  const b2 = f32x4.splat(<f32>beta2), c2 = f32x4.splat(<f32>(1 - beta2));
  const whole = count & ~3;
  for (let i = 0; i < whole; i += 4) {
    const at = (<usize>i) << 2;
    updateVector(param + at, grad + at, m ? m + at : 0, v + at, 4, rate, correction, e, keep, scale, b1, c1, b2, c2);
  }
  const at = (<usize>whole) << 2;
  if (whole < count) updateVector(param + at, grad + at, m ? m + at : 0, v + at, count - whole, rate, correction, e, keep, scale, b1, c1, b2, c2);
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

/** A matrix of no more bytes than this stays with its gradient in a core's own cache, half a MiB or more on today's servers, from one pass to the next. */
const NEAR: usize = 192 * 1024;

/** Reads a word of every cache line, so that what comes later finds it near: loads that wait for nothing but memory, many at a time. */
// @ts-ignore: decorator
@inline
function touch(p: usize, bytes: usize): i32 {
  let all = 0;
  for (let at: usize = 0; at < bytes; at += 64) all |= load<i32>(p + at);
  return all;
}

/** Σ g² over a row of `width` elements, as `dotOf` has it, and sums[j] += g[j]². */
function squaresOfRow(g: usize, sums: usize, width: i32): f64 {
  let total: f64 = 0;
  let j = 0;
  while (width - j >= 16) {
    const stop = j + min(BLOCK, (width - j) & ~15);
    let a = f32x4.splat(0), b = a, c = a, d = a;
    for (; j < stop; j += 16) {
      const at = (<usize>j) << 2;
      const x = g + at, s = sums + at;
      const x0 = v128.load(x), x1 = v128.load(x, 16), x2 = v128.load(x, 32), x3 = v128.load(x, 48);
      const y0 = f32x4.mul(x0, x0), y1 = f32x4.mul(x1, x1), y2 = f32x4.mul(x2, x2), y3 = f32x4.mul(x3, x3);
      a = f32x4.add(a, y0);
      b = f32x4.add(b, y1);
      c = f32x4.add(c, y2);
      d = f32x4.add(d, y3);
      v128.store(s, f32x4.add(v128.load(s), y0));
      v128.store(s, f32x4.add(v128.load(s, 16), y1), 16);
      v128.store(s, f32x4.add(v128.load(s, 32), y2), 32);
      v128.store(s, f32x4.add(v128.load(s, 48), y3), 48);
    }
    total += lanes(f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
  }
  for (; j < width; j++) {
    const at = (<usize>j) << 2;
    const x = load<f32>(g + at);
    total += <f64>x * <f64>x;
    store<f32>(sums + at, load<f32>(sums + at) + x * x);
  }
  return total;
}

/** A vector after its step along g: p·keep − rate·g/(root·f + ε). */
// @ts-ignore: decorator
@inline
function along(p: v128, g: v128, root: v128, f: v128, rate: v128, e: v128, keep: v128): v128 {
  return f32x4.sub(f32x4.mul(p, keep), f32x4.div(f32x4.mul(rate, g), madd(root, f, e)));
}

/**
 * The root of the second moment's estimate is the product of two roots, one of its row's mean, one of its column's. Those of the columns are taken once a
 * matrix, so that its gradient is gone through twice, and its weights once, in the order in which they lie in memory; what is small is fetched in the first
 * pass, which waits less for it. roots: `width` numbers a slot.
 */
export function factoredAdamRows(begin: i32, end: i32, param: usize, grad: usize, rows: usize, slots: i32, height: i32, width: i32, rowMean: usize, colMean: usize, steps: usize, roots: usize, learningRate: f64, beta1: f64, beta2: f64, epsilon: f64, weightDecay: f64, gradScale: f64): void {
  const bytes = (<usize>width) << 2;
  const matrix = bytes * <usize>height;
  const b2 = f32x4.splat(<f32>beta2);
  const squared = (1 - beta2) * gradScale * gradScale;
  const share = f32x4.splat(<f32>(squared / <f64>height));
  const rate = f32x4.splat(<f32>(learningRate * gradScale)), e = f32x4.splat(<f32>epsilon), keep = f32x4.splat(<f32>(1 - learningRate * weightDecay));
  for (let s = begin; s < end; s++) {
    const which = rows ? load<i32>(rows + ((<usize>s) << 2)) : s;
    if (which < 0) continue;
    const counter = steps + ((<usize>which) << 2);
    const step = load<i32>(counter) + 1;
    store<i32>(counter, step);
    const R = rowMean + (<usize>which * <usize>height << 2), C = colMean + bytes * <usize>which, root = roots + bytes * <usize>s;
    const g = grad + matrix * <usize>s, p = param + matrix * <usize>which;
    memory.fill(root, 0, bytes);
    let overall: f64 = 0;
    for (let i = 0; i < height; i++) {
      const r = R + ((<usize>i) << 2);
      if (matrix <= NEAR) touch(p + bytes * <usize>i, bytes);
      store<f32>(r, <f32>(beta2 * <f64>load<f32>(r) + squared * squaresOfRow(g + bytes * <usize>i, root, width) / <f64>width));
      overall += <f64>load<f32>(r);
    }
    for (let j = 0; j < width; j += 4) {
      const at = (<usize>j) << 2;
      const mean = madd(share, loadUpTo4(root + at, width - j), f32x4.mul(b2, loadUpTo4(C + at, width - j)));
      storeUpTo4(C + at, mean, width - j);
      storeUpTo4(root + at, f32x4.sqrt(mean), width - j);
    }
    // 0 where no gradient ever was: the columns' means are 0 then too.
    overall = (overall / <f64>height) * (1 - power(beta2, step));
    const inverse = overall == 0 ? 0 : 1 / overall;
    for (let i = 0; i < height; i++) {
      const f = f32x4.splat(<f32>Math.sqrt(<f64>load<f32>(R + ((<usize>i) << 2)) * inverse));
      const before = bytes * <usize>i;
      let j = 0;
      for (; j <= width - 16; j += 16) {
        const at = (<usize>j) << 2;
        const P = p + before + at, G = g + before + at, D = root + at;
        v128.store(P, along(v128.load(P), v128.load(G), v128.load(D), f, rate, e, keep));
        v128.store(P, along(v128.load(P, 16), v128.load(G, 16), v128.load(D, 16), f, rate, e, keep), 16);
        v128.store(P, along(v128.load(P, 32), v128.load(G, 32), v128.load(D, 32), f, rate, e, keep), 32);
        v128.store(P, along(v128.load(P, 48), v128.load(G, 48), v128.load(D, 48), f, rate, e, keep), 48);
      }
      for (; j < width; j += 4) {
        const at = (<usize>j) << 2, left = width - j;
        const P = p + before + at;
        storeUpTo4(P, along(loadUpTo4(P, left), loadUpTo4(g + before + at, left), loadUpTo4(root + at, left), f, rate, e, keep), left);
      }
    }
  }
}

/** param −= rate·grad for a vector, or `count` elements of one. */
// @ts-ignore: decorator
@inline
function descendVector(param: usize, grad: usize, rate: v128, count: i32): void {
  storeUpTo4(param, f32x4.sub(loadUpTo4(param, count), f32x4.mul(rate, loadUpTo4(grad, count))), count);
}

/** param −= rate·grad. */
function descend(param: usize, grad: usize, n: i32, rate: f32): void {
  const rate4 = f32x4.splat(rate);
  const whole = n & ~3;
  for (let i = 0; i < whole; i += 4) {
    const at = (<usize>i) << 2;
    descendVector(param + at, grad + at, rate4, 4);
  }
  const at = (<usize>whole) << 2;
  if (whole < n) descendVector(param + at, grad + at, rate4, n - whole);
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
