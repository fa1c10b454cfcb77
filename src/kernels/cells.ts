// The LSTM cell and the functions of noisy top-k gating (Shazeer et al. 2017, App. A), with their gradients.

import { normalCdf4, normalPdf4, sigmoid4, tanh4 } from "./math";
import { loadPart, storePart } from "./vectors";
import { splat } from "./lanes";

// @ts-ignore: decorator
@inline
function get(p: usize, n: i32): v128 {
  return n == 4 ? v128.load(p) : loadPart(p, n);
}

// @ts-ignore: decorator
@inline
function put(p: usize, v: v128, n: i32): void {
  if (n == 4) v128.store(p, v);
  else storePart(p, v, n);
}

export function lstmCell(begin: i32, end: i32, gates: usize, cPrev: usize, c: usize, h: usize, rows: i32, hidden: i32): void {
  const width = <usize>hidden << 2;
  for (let r = begin; r < end; r++) {
    for (let j = 0; j < hidden; j += 4) {
      const n = min(4, hidden - j);
      const one = ((<usize>r * <usize>hidden) << 2) + (<usize>j << 2);
      const at = gates + ((<usize>r * <usize>hidden) << 4) + (<usize>j << 2);
      const i = sigmoid4(get(at, n));
      const f = sigmoid4(get(at + width, n));
      const g = tanh4(get(at + 2 * width, n));
      const o = sigmoid4(get(at + 3 * width, n));
      const cell = f32x4.add(f32x4.mul(f, get(cPrev + one, n)), f32x4.mul(i, g));
      put(at, i, n);
      put(at + width, f, n);
      put(at + 2 * width, g, n);
      put(at + 3 * width, o, n);
      put(c + one, cell, n);
      put(h + one, f32x4.mul(o, tanh4(cell)), n);
    }
  }
}

export function lstmCellGrad(begin: i32, end: i32, gates: usize, cPrev: usize, c: usize, dh: usize, dc: usize, dGates: usize, rows: i32, hidden: i32): void {
  const width = <usize>hidden << 2;
  const unit = splat(1);
  for (let r = begin; r < end; r++) {
    for (let j = 0; j < hidden; j += 4) {
      const n = min(4, hidden - j);
      const one = ((<usize>r * <usize>hidden) << 2) + (<usize>j << 2);
      const four = ((<usize>r * <usize>hidden) << 4) + (<usize>j << 2);
      const at = gates + four;
      const to = dGates + four;
      const i = get(at, n);
      const f = get(at + width, n);
      const g = get(at + 2 * width, n);
      const o = get(at + 3 * width, n);
      const t = tanh4(get(c + one, n));
      const dH = get(dh + one, n);
      const dCell = f32x4.add(get(dc + one, n), f32x4.mul(f32x4.mul(dH, o), f32x4.sub(unit, f32x4.mul(t, t))));
      put(to, f32x4.mul(f32x4.mul(dCell, g), f32x4.mul(i, f32x4.sub(unit, i))), n);
      put(to + width, f32x4.mul(f32x4.mul(dCell, get(cPrev + one, n)), f32x4.mul(f, f32x4.sub(unit, f))), n);
      put(to + 2 * width, f32x4.mul(f32x4.mul(dCell, i), f32x4.sub(unit, f32x4.mul(g, g))), n);
      put(to + 3 * width, f32x4.mul(f32x4.mul(dH, t), f32x4.mul(o, f32x4.sub(unit, o))), n);
      put(dc + one, f32x4.mul(dCell, f), n);
    }
  }
}

/** Is expert i among the first k of a row's top indices? */
// @ts-ignore: decorator
@inline
function chosen(top: usize, k: i32, i: i32): bool {
  for (let j = 0; j < k; j++) if (load<i32>(top + (<usize>j << 2)) == i) return true;
  return false;
}

// @ts-ignore: decorator
@inline
function cdf(x: f32): f32 {
  return f32x4.extract_lane(normalCdf4(splat(x)), 0);
}

/** Every expert against the threshold of those left out; then the k chosen, against theirs, are put right. */
export function loadProbability(begin: i32, end: i32, clean: usize, std: usize, topValues: usize, topIndices: usize, p: usize, rows: i32, cols: i32, k: i32): void {
  const width = min(k + 1, cols);
  for (let r = begin; r < end; r++) {
    const at = (<usize>r * <usize>cols) << 2;
    const top = (<usize>r * <usize>width) << 2;
    if (k == cols) {
      for (let i = 0; i < cols; i++) store<f32>(p + at + (<usize>i << 2), 1);
      continue;
    }
    const out = splat(load<f32>(topValues + top + (<usize>(k - 1) << 2)));
    for (let i = 0; i < cols; i += 4) {
      const n = min(4, cols - i);
      const x = at + (<usize>i << 2);
      put(p + x, normalCdf4(f32x4.div(f32x4.sub(get(clean + x, n), out), get(std + x, n))), n);
    }
    const inside = load<f32>(topValues + top + (<usize>k << 2));
    for (let j = 0; j < k; j++) {
      const x = at + (<usize>load<i32>(topIndices + top + (<usize>j << 2)) << 2);
      store<f32>(p + x, cdf((load<f32>(clean + x) - inside) / load<f32>(std + x)));
    }
  }
}

export function loadProbabilityGrad(begin: i32, end: i32, clean: usize, std: usize, topValues: usize, topIndices: usize, dp: usize, dClean: usize, dStd: usize, dTopValues: usize, rows: i32, cols: i32, k: i32): void {
  const width = min(k + 1, cols);
  for (let r = begin; r < end; r++) {
    const at = (<usize>r * <usize>cols) << 2;
    const top = (<usize>r * <usize>width) << 2;
    memory.fill(dTopValues + top, 0, <usize>width << 2);
    if (k == cols) {
      memory.fill(dClean + at, 0, <usize>cols << 2);
      memory.fill(dStd + at, 0, <usize>cols << 2);
      continue;
    }
    const outside = load<f32>(topValues + top + (<usize>(k - 1) << 2));
    const inside = load<f32>(topValues + top + (<usize>k << 2));
    let sumOutside: f64 = 0;
    let sumInside: f64 = 0;
    for (let i = 0; i < cols; i++) {
      const x = at + (<usize>i << 2);
      const isIn = chosen(topIndices + top, k, i);
      const s = load<f32>(std + x);
      const z = (load<f32>(clean + x) - (isIn ? inside : outside)) / s;
      const slope = (load<f32>(dp + x) * f32x4.extract_lane(normalPdf4(splat(z)), 0)) / s;
      store<f32>(dClean + x, slope);
      store<f32>(dStd + x, -slope * z);
      if (isIn) sumInside += <f64>slope;
      else sumOutside += <f64>slope;
    }
    store<f32>(dTopValues + top + (<usize>(k - 1) << 2), <f32>-sumOutside);
    store<f32>(dTopValues + top + (<usize>k << 2), <f32>-sumInside);
  }
}

function meanOf(x: usize, n: i32): f64 {
  let sum: f64 = 0;
  for (let i = 0; i < n; i++) sum += <f64>load<f32>(x + (<usize>i << 2));
  return sum / <f64>n;
}

function varianceOf(x: usize, n: i32, mean: f64): f64 {
  let sum: f64 = 0;
  for (let i = 0; i < n; i++) {
    const d = <f64>load<f32>(x + (<usize>i << 2)) - mean;
    sum += d * d;
  }
  return sum / <f64>n;
}

export function cvSquared(begin: i32, end: i32, x: usize, n: i32, out: usize): void {
  const mean = meanOf(x, n);
  store<f32>(out, mean == 0 ? 0 : <f32>(varianceOf(x, n, mean) / (mean * mean)));
}

export function cvSquaredGrad(begin: i32, end: i32, x: usize, n: i32, dy: usize, dx: usize): void {
  const mean = meanOf(x, n);
  const variance = varianceOf(x, n, mean);
  const d = <f64>load<f32>(dy);
  for (let i = 0; i < n; i++) {
    const v = <f64>load<f32>(x + (<usize>i << 2));
    store<f32>(dx + (<usize>i << 2), mean == 0 ? 0 : <f32>((d * 2 * ((v - mean) / (mean * mean) - variance / (mean * mean * mean))) / <f64>n));
  }
}
