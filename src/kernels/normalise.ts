/** Layer normalisation and its gradient: by rows for dx, by columns for gamma and beta. */

import { BLOCK, fillRow, lanes, row, sumOf } from "./vectors";

/** Σ (x − mean)². */
function squaredDistance(x: usize, n: i32, mean: f32): f64 {
  const m = f32x4.splat(mean);
  let total: f64 = 0;
  let i = 0;
  while (n - i >= 8) {
    const stop = i + min(BLOCK, (n - i) & ~7);
    let a = f32x4.splat(0), b = a;
    for (; i < stop; i += 8) {
      const at = x + ((<usize>i) << 2);
      const d = f32x4.sub(v128.load(at), m), e = f32x4.sub(v128.load(at, 16), m);
      a = f32x4.add(a, f32x4.mul(d, d));
      b = f32x4.add(b, f32x4.mul(e, e));
    }
    total += lanes(f32x4.add(a, b));
  }
  for (; i < n; i++) {
    const d = <f64>(load<f32>(x + ((<usize>i) << 2)) - mean);
    total += d * d;
  }
  return total;
}

export function layerNorm(begin: i32, end: i32, x: usize, gamma: usize, beta: usize, y: usize, mean: usize, rstd: usize, rows: i32, cols: i32, epsilon: f32): void {
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols), to = row(y, r, cols);
    const mu = <f32>(sumOf(from, cols) / <f64>cols);
    const scale = <f32>(1 / sqrt(squaredDistance(from, cols, mu) / <f64>cols + <f64>epsilon));
    const mu4 = f32x4.splat(mu), scale4 = f32x4.splat(scale);
    let j = 0;
    for (; j <= cols - 4; j += 4) {
      const at = (<usize>j) << 2;
      const unit = f32x4.mul(f32x4.sub(v128.load(from + at), mu4), scale4);
      v128.store(to + at, f32x4.add(f32x4.mul(unit, v128.load(gamma + at)), v128.load(beta + at)));
    }
    for (; j < cols; j++) {
      const at = (<usize>j) << 2;
      store<f32>(to + at, (load<f32>(from + at) - mu) * scale * load<f32>(gamma + at) + load<f32>(beta + at));
    }
    store<f32>(mean + ((<usize>r) << 2), mu);
    store<f32>(rstd + ((<usize>r) << 2), scale);
  }
}

/** dx = rstd·(dŷ − mean(dŷ) − x̂·mean(dŷ·x̂)) with dŷ = dy·gamma, x̂ = (x − mean)·rstd. */
export function layerNormGradRows(begin: i32, end: i32, x: usize, gamma: usize, mean: usize, rstd: usize, dy: usize, dx: usize, dGamma: usize, dBeta: usize, rows: i32, cols: i32): void {
  for (let r = begin; r < end; r++) {
    const from = row(x, r, cols), g = row(dy, r, cols), to = row(dx, r, cols);
    const mu = load<f32>(mean + ((<usize>r) << 2)), scale = load<f32>(rstd + ((<usize>r) << 2));
    const mu4 = f32x4.splat(mu), scale4 = f32x4.splat(scale);
    let average: f64 = 0, along: f64 = 0;
    let j = 0;
    while (cols - j >= 4) {
      const stop = j + min(BLOCK, (cols - j) & ~3);
      let a = f32x4.splat(0), b = a;
      for (; j < stop; j += 4) {
        const at = (<usize>j) << 2;
        const d = f32x4.mul(v128.load(g + at), v128.load(gamma + at));
        a = f32x4.add(a, d);
        b = f32x4.add(b, f32x4.mul(d, f32x4.mul(f32x4.sub(v128.load(from + at), mu4), scale4)));
      }
      average += lanes(a);
      along += lanes(b);
    }
    for (; j < cols; j++) {
      const at = (<usize>j) << 2;
      const d = load<f32>(g + at) * load<f32>(gamma + at);
      average += <f64>d;
      along += <f64>d * <f64>((load<f32>(from + at) - mu) * scale);
    }
    const average1 = <f32>(average / <f64>cols), along1 = <f32>(along / <f64>cols);
    const average4 = f32x4.splat(average1), along4 = f32x4.splat(along1);
    for (j = 0; j <= cols - 4; j += 4) {
      const at = (<usize>j) << 2;
      const d = f32x4.mul(v128.load(g + at), v128.load(gamma + at));
      const unit = f32x4.mul(f32x4.sub(v128.load(from + at), mu4), scale4);
      v128.store(to + at, f32x4.mul(scale4, f32x4.sub(f32x4.sub(d, average4), f32x4.mul(unit, along4))));
    }
    for (; j < cols; j++) {
      const at = (<usize>j) << 2;
      const d = load<f32>(g + at) * load<f32>(gamma + at);
      store<f32>(to + at, scale * (d - average1 - (load<f32>(from + at) - mu) * scale * along1));
    }
  }
}

export function layerNormGradColumns(begin: i32, end: i32, x: usize, gamma: usize, mean: usize, rstd: usize, dy: usize, dx: usize, dGamma: usize, dBeta: usize, rows: i32, cols: i32): void {
  const first = (<usize>begin) << 2;
  const n = end - begin;
  fillRow(dGamma + first, f32x4.splat(0), n);
  fillRow(dBeta + first, f32x4.splat(0), n);
  for (let r = 0; r < rows; r++) {
    const from = row(x, r, cols), g = row(dy, r, cols);
    const mu = load<f32>(mean + ((<usize>r) << 2)), scale = load<f32>(rstd + ((<usize>r) << 2));
    const mu4 = f32x4.splat(mu), scale4 = f32x4.splat(scale);
    let j = begin;
    for (; j <= end - 4; j += 4) {
      const at = (<usize>j) << 2;
      const d = v128.load(g + at);
      const unit = f32x4.mul(f32x4.sub(v128.load(from + at), mu4), scale4);
      v128.store(dGamma + at, f32x4.add(v128.load(dGamma + at), f32x4.mul(d, unit)));
      v128.store(dBeta + at, f32x4.add(v128.load(dBeta + at), d));
    }
    for (; j < end; j++) {
      const at = (<usize>j) << 2;
      const d = load<f32>(g + at);
      store<f32>(dGamma + at, load<f32>(dGamma + at) + d * ((load<f32>(from + at) - mu) * scale));
      store<f32>(dBeta + at, load<f32>(dBeta + at) + d);
    }
  }
}
