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

export function factoredAdamRows(begin: i32, end: i32, param: usize, grad: usize, rows: usize, slots: i32, height: i32, width: i32, rowMean: usize, colMean: usize, steps: usize, learningRate: f64, beta1: f64, beta2: f64, epsilon: f64, weightDecay: f64, gradScale: f64): void {
  const bytes = (<usize>width) << 2;
  const matrix = bytes * <usize>height;
  const b2 = f32x4.splat(<f32>beta2);
  const share = f32x4.splat(<f32>((1 - beta2) / <f64>height));
  const scale = f32x4.splat(<f32>gradScale);
  const rate = f32x4.splat(<f32>learningRate), e = f32x4.splat(<f32>epsilon), keep = f32x4.splat(<f32>(1 - learningRate * weightDecay));
  for (let s = begin; s < end; s++) {
    const which = rows ? load<i32>(rows + ((<usize>s) << 2)) : s;
    if (which < 0) continue;
    const counter = steps + ((<usize>which) << 2);
    const step = load<i32>(counter) + 1;
    store<i32>(counter, step);
    const g = grad + matrix * <usize>s, p = param + matrix * <usize>which;
    const R = rowMean + (<usize>which * <usize>height << 2), C = colMean + bytes * <usize>which;
    for (let j = 0; j < width; j += 4) {
      const at = (<usize>j) << 2;
      put(C + at, f32x4.mul(b2, get(C + at, width - j)), width - j);
    }
    let overall: f64 = 0;
    for (let i = 0; i < height; i++) {
      const row = g + bytes * <usize>i;
      for (let j = 0; j < width; j += 4) {
        const at = (<usize>j) << 2;
        const left = width - j;
        const x = f32x4.mul(get(row + at, left), scale);
        put(C + at, madd(share, f32x4.mul(x, x), get(C + at, left)), left);
      }
      const r = R + ((<usize>i) << 2);
      const mean = dotOf(row, row, width) * gradScale * gradScale / <f64>width;
      store<f32>(r, <f32>(beta2 * <f64>load<f32>(r) + (1 - beta2) * mean));
      overall += <f64>load<f32>(r);
    }
    overall = (overall / <f64>height) * (1 - power(beta2, step));
    for (let i = 0; i < height; i++) {
      const row = g + bytes * <usize>i, to = p + bytes * <usize>i;
      const factor = f32x4.splat(overall == 0 ? 0 : <f32>(<f64>load<f32>(R + ((<usize>i) << 2)) / overall));
      for (let j = 0; j < width; j += 4) {
        const at = (<usize>j) << 2;
        const left = width - j;
        put(to + at, stepped(get(to + at, left), f32x4.mul(get(row + at, left), scale), get(C + at, left), rate, factor, e, keep), left);
      }
    }
  }
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
