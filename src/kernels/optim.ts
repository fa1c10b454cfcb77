// Optimiser updates: Adam, dense and by rows, Adam with factored second moments, SGD, and the sum of squares for clipping.

import { loadPart, storePart } from "./vectors";
import { splat } from "./lanes";

/** One Adam update of `count` elements; m = 0 means no first moment. Corrections are 1/(1 − βᵗ). */
function update(p: usize, g: usize, m: usize, v: usize, count: i32, lr: f32, b1: f32, b2: f32, epsilon: f32, decay: f32, gradScale: f32, c1: f32, c2: f32): void {
  const s = splat(gradScale);
  for (let i = 0; i < count; i += 4) {
    const n = count - i;
    const at = <usize>i << 2;
    const whole = n >= 4;
    const gradient = f32x4.mul(s, whole ? v128.load(g + at) : loadPart(g + at, n));
    const v0 = whole ? v128.load(v + at) : loadPart(v + at, n);
    const p0 = whole ? v128.load(p + at) : loadPart(p + at, n);
    const v1 = f32x4.add(f32x4.mul(splat(b2), v0), f32x4.mul(splat(1 - b2), f32x4.mul(gradient, gradient)));
    let direction = gradient;
    if (m != 0) {
      const m0 = whole ? v128.load(m + at) : loadPart(m + at, n);
      const m1 = f32x4.add(f32x4.mul(splat(b1), m0), f32x4.mul(splat(1 - b1), gradient));
      if (whole) v128.store(m + at, m1);
      else storePart(m + at, m1, n);
      direction = f32x4.mul(m1, splat(c1));
    }
    const root = f32x4.add(f32x4.sqrt(f32x4.mul(v1, splat(c2))), splat(epsilon));
    const delta = f32x4.add(f32x4.div(direction, root), f32x4.mul(splat(decay), p0));
    const p1 = f32x4.sub(p0, f32x4.mul(splat(lr), delta));
    if (whole) {
      v128.store(v + at, v1);
      v128.store(p + at, p1);
    } else {
      storePart(v + at, v1, n);
      storePart(p + at, p1, n);
    }
  }
}

// @ts-ignore: decorator
@inline
function correction(beta: f64, step: i32): f32 {
  return <f32>(1 / (1 - Math.pow(beta, <f64>step)));
}

export function adam(begin: i32, end: i32, param: usize, grad: usize, m: usize, v: usize, n: i32, step: i32, lr: f64, b1: f64, b2: f64, epsilon: f64, decay: f64, gradScale: f64): void {
  const at = <usize>begin << 2;
  update(param + at, grad + at, m == 0 ? 0 : m + at, v + at, end - begin, <f32>lr, <f32>b1, <f32>b2, <f32>epsilon, <f32>decay, <f32>gradScale, correction(b1, step), correction(b2, step));
}

export function adamRows(begin: i32, end: i32, param: usize, grad: usize, rows: usize, slots: i32, width: i32, m: usize, v: usize, steps: usize, lr: f64, b1: f64, b2: f64, epsilon: f64, decay: f64, gradScale: f64): void {
  for (let s = begin; s < end; s++) {
    const r = load<i32>(rows + (<usize>s << 2));
    if (r < 0) continue;
    const count = steps + (<usize>r << 2);
    const step = load<i32>(count) + 1;
    store<i32>(count, step);
    const at = (<usize>r * <usize>width) << 2;
    update(param + at, grad + ((<usize>s * <usize>width) << 2), m == 0 ? 0 : m + at, v + at, width, <f32>lr, <f32>b1, <f32>b2, <f32>epsilon, <f32>decay, <f32>gradScale, correction(b1, step), correction(b2, step));
  }
}

export function factoredAdamRows(begin: i32, end: i32, param: usize, grad: usize, rows: usize, slots: i32, height: i32, width: i32, rowMean: usize, colMean: usize, steps: usize, lr: f64, b1: f64, b2: f64, epsilon: f64, decay: f64, gradScale: f64): void {
  const size = (<usize>height * <usize>width) << 2;
  for (let s = begin; s < end; s++) {
    const e = rows == 0 ? s : load<i32>(rows + (<usize>s << 2));
    if (e < 0) continue;
    const count = steps + (<usize>e << 2);
    const step = load<i32>(count) + 1;
    store<i32>(count, step);
    const g = grad + <usize>s * size;
    const p = param + <usize>e * size;
    const R = rowMean + ((<usize>e * <usize>height) << 2);
    const C = colMean + ((<usize>e * <usize>width) << 2);
    const fresh = <f32>(1 - b2);
    const b = <f32>b2;
    const g2 = <f32>(gradScale * gradScale);
    // Columns decay first; each row of g² is then added with its share.
    for (let j = 0; j < width; j++) store<f32>(C + (<usize>j << 2), b * load<f32>(C + (<usize>j << 2)));
    const share = splat((fresh * g2) / <f32>height);
    let overall: f64 = 0;
    for (let i = 0; i < height; i++) {
      const from = g + ((<usize>i * <usize>width) << 2);
      let sum = splat(0);
      let j = 0;
      for (; j + 4 <= width; j += 4) {
        const at = <usize>j << 2;
        const x = v128.load(from + at);
        const x2 = f32x4.mul(x, x);
        sum = f32x4.add(sum, x2);
        v128.store(C + at, f32x4.add(v128.load(C + at), f32x4.mul(share, x2)));
      }
      let total = f32x4.extract_lane(sum, 0) + f32x4.extract_lane(sum, 1) + (f32x4.extract_lane(sum, 2) + f32x4.extract_lane(sum, 3));
      for (; j < width; j++) {
        const x = load<f32>(from + (<usize>j << 2));
        total += x * x;
        store<f32>(C + (<usize>j << 2), load<f32>(C + (<usize>j << 2)) + f32x4.extract_lane(share, 0) * x * x);
      }
      const mean = b * load<f32>(R + (<usize>i << 2)) + (fresh * g2 * total) / <f32>width;
      store<f32>(R + (<usize>i << 2), mean);
      overall += <f64>mean;
    }
    overall /= <f64>height;
    const c2 = <f64>correction(b2, step);
    const rate = <f32>lr;
    const eps = splat(<f32>epsilon);
    for (let i = 0; i < height; i++) {
      // v_ij = row_i·col_j / mean(row), corrected for the bias of its young average.
      const factor: f32 = overall == 0 ? 0 : <f32>((<f64>load<f32>(R + (<usize>i << 2)) / overall) * c2);
      const from = g + ((<usize>i * <usize>width) << 2);
      const to = p + ((<usize>i * <usize>width) << 2);
      for (let j = 0; j < width; j += 4) {
        const n = width - j;
        const at = <usize>j << 2;
        const x = f32x4.mul(splat(<f32>gradScale), n >= 4 ? v128.load(from + at) : loadPart(from + at, n));
        const root = f32x4.add(f32x4.sqrt(f32x4.mul(splat(factor), n >= 4 ? v128.load(C + at) : loadPart(C + at, n))), eps);
        const p0 = n >= 4 ? v128.load(to + at) : loadPart(to + at, n);
        const p1 = f32x4.sub(p0, f32x4.mul(splat(rate), f32x4.add(f32x4.div(x, root), f32x4.mul(splat(<f32>decay), p0))));
        if (n >= 4) v128.store(to + at, p1);
        else storePart(to + at, p1, n);
      }
    }
  }
}

export function sgd(begin: i32, end: i32, param: usize, grad: usize, n: i32, lr: f32, gradScale: f32): void {
  const s = splat(lr * gradScale);
  let i = begin;
  for (; i + 4 <= end; i += 4) v128.store(param + (<usize>i << 2), f32x4.sub(v128.load(param + (<usize>i << 2)), f32x4.mul(s, v128.load(grad + (<usize>i << 2)))));
  for (; i < end; i++) store<f32>(param + (<usize>i << 2), load<f32>(param + (<usize>i << 2)) - lr * gradScale * load<f32>(grad + (<usize>i << 2)));
}

export function sgdRows(begin: i32, end: i32, param: usize, grad: usize, rows: usize, slots: i32, width: i32, lr: f32, gradScale: f32): void {
  for (let s = begin; s < end; s++) {
    const r = load<i32>(rows + (<usize>s << 2));
    if (r >= 0) sgd(0, width, param + ((<usize>r * <usize>width) << 2), grad + ((<usize>s * <usize>width) << 2), width, lr, gradScale);
  }
}

/** Σ x² of chunks of 65536 elements, or of slots in use, each a float64 of its own so that the total does not depend on who added what. */
export function sumSquaresPartial(begin: i32, end: i32, x: usize, n: i32, rows: usize, width: i32, partials: usize): void {
  const size = rows == 0 ? 65536 : width;
  for (let chunk = begin; chunk < end; chunk++) {
    let total: f64 = 0;
    if (rows == 0 || load<i32>(rows + (<usize>chunk << 2)) >= 0) {
      const first = chunk * size;
      const last = min(n, first + size);
      for (let from = first; from < last; from += 1024) {
        const to = min(last, from + 1024);
        let sum = splat(0);
        let i = from;
        for (; i + 4 <= to; i += 4) {
          const v = v128.load(x + (<usize>i << 2));
          sum = f32x4.add(sum, f32x4.mul(v, v));
        }
        for (; i < to; i++) total += <f64>load<f32>(x + (<usize>i << 2)) * <f64>load<f32>(x + (<usize>i << 2));
        total += <f64>f32x4.extract_lane(sum, 0) + <f64>f32x4.extract_lane(sum, 1) + <f64>f32x4.extract_lane(sum, 2) + <f64>f32x4.extract_lane(sum, 3);
      }
    }
    store<f64>(partials + (<usize>chunk << 3), total);
  }
}

export function sumSquaresFinish(count: i32, partials: usize, out: usize): void {
  let total: f64 = 0;
  for (let i = 0; i < count; i++) total += load<f64>(partials + (<usize>i << 3));
  store<f32>(out, <f32>(<f64>load<f32>(out) + total));
}
