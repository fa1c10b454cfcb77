/** Functions of noisy top-k gating (Shazeer et al. 2017, App. A): the load estimate, the squared coefficient of variation, and their gradients. */

import { normalCdf4, normalPdf4 } from "./math";
import { fillRow, loadPart, loadPartOr, storePart, sumOf } from "./vectors";

// @ts-ignore: decorator
@inline
function number(p: usize, i: i32): f32 {
  return load<f32>(p + ((<usize>i) << 2));
}

/** A standard deviation so small counts as none: drawing again changes nothing, and a quotient by it would be ∞ or NaN. */
const NO_NOISE: f32 = 1e-30;

/** v, 0 where there is no noise. */
// @ts-ignore: decorator
@inline
function whereNoise(v: v128, deviation: v128): v128 {
  return v128.andnot(v, f32x4.le(deviation, f32x4.splat(NO_NOISE)));
}

/** Row by row with the threshold of the experts that were not chosen, then the k chosen ones again with theirs. */
export function loadProbability(begin: i32, end: i32, clean: usize, std: usize, topValues: usize, topIndices: usize, p: usize, rows: i32, cols: i32, k: i32): void {
  const width = min(k + 1, cols);
  for (let r = begin; r < end; r++) {
    const base = <usize>r * <usize>cols << 2;
    const x = clean + base, s = std + base, out = p + base;
    if (k == cols) {
      fillRow(out, f32x4.splat(1), cols);
      continue;
    }
    const top = <usize>r * <usize>width << 2;
    const others = f32x4.splat(number(topValues + top, k - 1));
    let j = 0;
    for (; j <= cols - 4; j += 4) {
      const at = (<usize>j) << 2;
      const deviation = v128.load(s + at);
      v128.store(out + at, whereNoise(normalCdf4(f32x4.div(f32x4.sub(v128.load(x + at), others), deviation)), deviation));
    }
    if (j < cols) {
      const at = (<usize>j) << 2;
      const left = cols - j;
      const deviation = loadPartOr(s + at, left, 1);
      storePart(out + at, whereNoise(normalCdf4(f32x4.div(f32x4.sub(loadPart(x + at, left), others), deviation)), deviation), left);
    }
    const chosen = number(topValues + top, k);
    for (let a = 0; a < k; a++) {
      const at = (<usize>load<i32>(topIndices + top + ((<usize>a) << 2))) << 2;
      const deviation = load<f32>(s + at);
      const z = (load<f32>(x + at) - chosen) / deviation;
      store<f32>(out + at, deviation <= NO_NOISE ? 1 : f32x4.extract_lane(normalCdf4(f32x4.splat(z)), 0));
    }
  }
}

/** dClean = dp·φ(z)/std, dStd = −z·dClean; what a threshold gets is minus the sum over those it served. */
export function loadProbabilityGrad(begin: i32, end: i32, clean: usize, std: usize, topValues: usize, topIndices: usize, dp: usize, dClean: usize, dStd: usize, dTopValues: usize, rows: i32, cols: i32, k: i32): void {
  const width = min(k + 1, cols);
  for (let r = begin; r < end; r++) {
    const base = <usize>r * <usize>cols << 2;
    const x = clean + base, s = std + base, up = dp + base, dx = dClean + base, ds = dStd + base;
    const top = <usize>r * <usize>width << 2;
    fillRow(dTopValues + top, f32x4.splat(0), width);
    if (k == cols) {
      fillRow(dx, f32x4.splat(0), cols);
      fillRow(ds, f32x4.splat(0), cols);
      continue;
    }
    const others = f32x4.splat(number(topValues + top, k - 1));
    let j = 0;
    for (; j <= cols - 4; j += 4) {
      const at = (<usize>j) << 2;
      const deviation = v128.load(s + at);
      const z = f32x4.div(f32x4.sub(v128.load(x + at), others), deviation);
      const slope = f32x4.div(f32x4.mul(v128.load(up + at), normalPdf4(z)), deviation);
      v128.store(dx + at, whereNoise(slope, deviation));
      v128.store(ds + at, whereNoise(f32x4.neg(f32x4.mul(slope, z)), deviation));
    }
    if (j < cols) {
      const at = (<usize>j) << 2;
      const left = cols - j;
      const deviation = loadPartOr(s + at, left, 1);
      const z = f32x4.div(f32x4.sub(loadPart(x + at, left), others), deviation);
      const slope = f32x4.div(f32x4.mul(loadPart(up + at, left), normalPdf4(z)), deviation);
      storePart(dx + at, whereNoise(slope, deviation), left);
      storePart(ds + at, whereNoise(f32x4.neg(f32x4.mul(slope, z)), deviation), left);
    }
    // The chosen ones are taken out of the sum over the others, then computed with their own threshold.
    for (let a = 0; a < k; a++) store<f32>(dx + ((<usize>load<i32>(topIndices + top + ((<usize>a) << 2))) << 2), 0);
    store<f32>(dTopValues + top + ((<usize>(k - 1)) << 2), <f32>-sumOf(dx, cols));
    const chosen = number(topValues + top, k);
    let sum: f64 = 0;
    for (let a = 0; a < k; a++) {
      const at = (<usize>load<i32>(topIndices + top + ((<usize>a) << 2))) << 2;
      const deviation = load<f32>(s + at);
      const z = (load<f32>(x + at) - chosen) / deviation;
      const none = deviation <= NO_NOISE;
      const slope: f32 = none ? 0 : (load<f32>(up + at) * f32x4.extract_lane(normalPdf4(f32x4.splat(z)), 0)) / deviation;
      store<f32>(dx + at, slope);
      store<f32>(ds + at, none ? 0 : -(slope * z));
      sum += <f64>slope;
    }
    store<f32>(dTopValues + top + ((<usize>k) << 2), <f32>-sum);
  }
}

function meanOf(x: usize, n: i32): f64 {
  let sum: f64 = 0;
  for (let i = 0; i < n; i++) sum += <f64>number(x, i);
  return sum / <f64>n;
}

function varianceOf(x: usize, n: i32, mean: f64): f64 {
  let sum: f64 = 0;
  for (let i = 0; i < n; i++) sum += (<f64>number(x, i) - mean) * (<f64>number(x, i) - mean);
  return sum / <f64>n;
}

export function cvSquared(begin: i32, end: i32, x: usize, n: i32, out: usize): void {
  const mean = meanOf(x, n);
  store<f32>(out, n == 0 || mean == 0 ? 0 : <f32>(varianceOf(x, n, mean) / (mean * mean)));
}

/** 2·dy/n · ((x − μ)/μ² − variance/μ³). */
export function cvSquaredGrad(begin: i32, end: i32, x: usize, n: i32, dy: usize, dx: usize): void {
  const mean = meanOf(x, n);
  const variance = varianceOf(x, n, mean);
  const scale = (2 * <f64>load<f32>(dy)) / <f64>n;
  for (let i = 0; i < n; i++) {
    const d = ((<f64>number(x, i) - mean) - variance / mean) / (mean * mean);
    store<f32>(dx + ((<usize>i) << 2), mean == 0 ? 0 : <f32>(scale * d));
  }
}
