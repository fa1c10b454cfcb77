/** Gating (Shazeer et al. 2017, section 2.1, App. A and F): noisy top-k with its load estimate, batchwise masks, CV², and their gradients. */

import { normalCdf4, normalPdf4, sigmoid4, softplus4 } from "./math";
import { randomNormal } from "./random";
import { cutOf, orderOf } from "./select";
import { topK } from "./softmax";
import { addRow, fillRow, int, loadPart, loadPartOr, number, place, row, storePart, sumOf } from "./vectors";

/** First row of segment s: from offsets, or of parts of equal size. */
// @ts-ignore: decorator
@inline
function segment(offsets: usize, segments: i32, rows: i32, s: i32): i32 {
  if (offsets) return int(offsets, s);
  return min(rows, s * ((rows + segments - 1) / segments));
}

/** The backend's NO_NOISE. */
const NO_NOISE: f32 = 1e-30;

/** v, 0 where there is no noise. */
// @ts-ignore: decorator
@inline
function whereNoise(v: v128, deviation: v128): v128 {
  return v128.andnot(v, f32x4.le(deviation, f32x4.splat(NO_NOISE)));
}

/** (x − threshold) / std, within the backend's MAX_DEVIATIONS. NaN stays NaN. */
// @ts-ignore: decorator
@inline
function deviations(x: v128, threshold: v128, std: v128): v128 {
  const z = f32x4.div(f32x4.sub(x, threshold), std);
  return f32x4.max(f32x4.min(z, f32x4.splat(100)), f32x4.splat(-100));
}

// @ts-ignore: decorator
@inline
function first(v: v128): f32 {
  return f32x4.extract_lane(v, 0);
}

/** scratch holds two rows a segment: the noisy logits, later the probabilities, and the noise's deviations. */
export function noisyTopK(begin: i32, end: i32, clean: usize, raw: usize, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64, rowIds: usize, offsets: usize, segments: i32,
  topValues: usize, topIndices: usize, loads: usize, rows: i32, cols: i32, k: i32, scratch: usize): void {
  const width = min(k + 1, cols);
  for (let s = begin; s < end; s++) {
    const noisy = row(scratch, 2 * s, cols), std = row(scratch, 2 * s + 1, cols), sums = row(loads, s, cols);
    fillRow(sums, f32x4.splat(0), cols);
    const stop = segment(offsets, segments, rows, s + 1);
    for (let r = segment(offsets, segments, rows, s); r < stop; r++) {
      const x = row(clean, r, cols), y = row(raw, r, cols), values = row(topValues, r, width), indices = row(topIndices, r, width);
      const id = rowIds ? int(rowIds, r) : r;
      randomNormal(0, cols, noisy, cols, seedLo, seedHi, stream, step, (start + <f64>id) * <f64>cols, 0, 1);
      let j = 0;
      for (; j <= cols - 4; j += 4) {
        const at = (<usize>j) << 2;
        const deviation = softplus4(v128.load(y + at));
        v128.store(std + at, deviation);
        v128.store(noisy + at, f32x4.add(v128.load(x + at), f32x4.mul(v128.load(noisy + at), deviation)));
      }
      if (j < cols) {
        const at = (<usize>j) << 2, left = cols - j;
        const deviation = softplus4(loadPart(y + at, left));
        storePart(std + at, deviation, left);
        storePart(noisy + at, f32x4.add(loadPart(x + at, left), f32x4.mul(loadPart(noisy + at, left), deviation)), left);
      }
      topK(0, 1, noisy, values, indices, 1, cols, width);
      if (k == cols) {
        fillRow(noisy, f32x4.splat(1), cols);
        addRow(noisy, sums, cols);
        continue;
      }
      // All with the threshold of the experts that were not chosen, then the k chosen ones again with theirs.
      const others = f32x4.splat(number(values, k - 1)), chosen = f32x4.splat(number(values, k));
      for (j = 0; j <= cols - 4; j += 4) {
        const at = (<usize>j) << 2;
        const deviation = v128.load(std + at);
        v128.store(noisy + at, whereNoise(normalCdf4(deviations(v128.load(x + at), others, deviation)), deviation));
      }
      if (j < cols) {
        const at = (<usize>j) << 2, left = cols - j;
        const deviation = loadPartOr(std + at, left, 1);
        storePart(noisy + at, whereNoise(normalCdf4(deviations(loadPart(x + at, left), others, deviation)), deviation), left);
      }
      for (let a = 0; a < k; a++) {
        const i = int(indices, a);
        const deviation = number(std, i);
        store<f32>(place(noisy, i), deviation <= NO_NOISE ? 1 : first(normalCdf4(deviations(f32x4.splat(number(x, i)), chosen, f32x4.splat(deviation)))));
      }
      addRow(noisy, sums, cols);
    }
  }
}

/** What element i of a row gets per unit of dP: dClean = φ(z)/std, dRaw = −z·dClean·σ(raw). */
// @ts-ignore: decorator
@inline
function slopes(x: v128, y: v128, threshold: v128, up: v128, dx: usize, dy: usize, count: i32): void {
  const std = softplus4(y);
  const z = deviations(x, threshold, std);
  const slope = whereNoise(f32x4.div(f32x4.mul(up, normalPdf4(z)), std), std);
  const second = whereNoise(f32x4.neg(f32x4.mul(f32x4.mul(slope, z), sigmoid4(y))), std);
  if (count >= 4) {
    v128.store(dx, slope);
    v128.store(dy, second);
  } else {
    storePart(dx, slope, count);
    storePart(dy, second, count);
  }
}

export function noisyTopKGrad(begin: i32, end: i32, clean: usize, raw: usize, topValues: usize, topIndices: usize, dTopValues: usize, dLoad: usize, offsets: usize, segments: i32,
  dClean: usize, dRaw: usize, rows: i32, cols: i32, k: i32): void {
  const width = min(k + 1, cols);
  for (let s = begin; s < end; s++) {
    const up = row(dLoad, offsets ? s : 0, cols);
    const stop = segment(offsets, segments, rows, s + 1);
    for (let r = segment(offsets, segments, rows, s); r < stop; r++) {
      const x = row(clean, r, cols), y = row(raw, r, cols), dx = row(dClean, r, cols), dy = row(dRaw, r, cols);
      const values = row(topValues, r, width), indices = row(topIndices, r, width);
      let ofOthers: f64 = 0, ofChosen: f64 = 0;
      if (dLoad && k < cols) {
        const others = f32x4.splat(number(values, k - 1)), chosen = f32x4.splat(number(values, k));
        let j = 0;
        for (; j <= cols - 4; j += 4) {
          const at = (<usize>j) << 2;
          slopes(v128.load(x + at), v128.load(y + at), others, v128.load(up + at), dx + at, dy + at, 4);
        }
        if (j < cols) {
          const at = (<usize>j) << 2, left = cols - j;
          slopes(loadPart(x + at, left), loadPart(y + at, left), others, loadPart(up + at, left), dx + at, dy + at, left);
        }
        // The chosen ones are taken out of the sum over the others, then computed with their own threshold.
        for (let a = 0; a < k; a++) store<f32>(place(dx, int(indices, a)), 0);
        ofOthers = -sumOf(dx, cols);
        for (let a = 0; a < k; a++) {
          const i = int(indices, a);
          slopes(f32x4.splat(number(x, i)), f32x4.splat(number(y, i)), chosen, f32x4.splat(number(up, i)), place(dx, i), place(dy, i), 1);
          ofChosen -= <f64>number(dx, i);
        }
      } else {
        fillRow(dx, f32x4.splat(0), cols);
        fillRow(dy, f32x4.splat(0), cols);
      }
      // noisy = clean + ε·softplus(raw), and ε is what was added over what it was multiplied by.
      for (let a = 0; a < width; a++) {
        const i = int(indices, a);
        let d: f32 = dTopValues ? number(row(dTopValues, r, width), a) : 0;
        if (a == k - 1) d += <f32>ofOthers;
        if (a == k) d += <f32>ofChosen;
        const bend = f32x4.splat(number(y, i));
        const noise = (number(values, a) - number(x, i)) / max(first(softplus4(bend)), NO_NOISE);
        store<f32>(place(dx, i), number(dx, i) + d);
        store<f32>(place(dy, i), number(dy, i) + d * noise * first(sigmoid4(bend)));
      }
    }
  }
}

/** Columns that one part of `columnCuts` looks at: those of a cache line. */
// @ts-ignore: decorator
@inline const COLUMNS: i32 = 16;

/** Parts: for each segment its columns, sixteen at a time. scratch holds a number for each row in each part. */
export function columnCuts(begin: i32, end: i32, x: usize, offsets: usize, segments: i32, rows: i32, cols: i32, k: f64, cut: usize, cutRow: usize, scratch: usize): void {
  const parts = (cols + COLUMNS - 1) / COLUMNS;
  for (let part = begin; part < end; part++) {
    const s = part / parts, column = (part % parts) * COLUMNS;
    const from = segment(offsets, segments, rows, s), n = segment(offsets, segments, rows, s + 1) - from;
    const mine = place(scratch, from * parts + (part % parts) * n);
    // In float64, as in the operation that measures the list; k need not be whole.
    const m = min(n, max(1, <i32>floor<f64>((k * <f64>n) / <f64>cols)));
    for (let i = column; i < min(cols, column + COLUMNS); i++) {
      const at = place(row(cut, s, cols), i), atRow = place(row(cutRow, s, cols), i);
      if (n == 0) {
        store<f32>(at, Infinity);
        store<i32>(atRow, -1);
      } else store<i32>(atRow, from + cutOf(place(row(x, from, cols), i), <usize>cols << 2, n, m, mine, at));
    }
  }
}

/** Whether element i of row r is above its cut. */
// @ts-ignore: decorator
@inline
function isAbove(x: f32, bar: f32, ties: usize, i: i32, r: i32): bool {
  return x > bar || (ties != 0 && orderOf(x) == bar && r <= int(ties, i));
}

export function listAbove(begin: i32, end: i32, x: usize, cut: usize, cutRow: usize, offsets: usize, segments: i32, rows: i32, cols: i32, columns: usize, rowList: usize, rowOffsets: usize, length: i32): void {
  let count = 0, r = 0;
  for (let s = 0; s < segments; s++) {
    const stop = segment(offsets, segments, rows, s + 1);
    const bars = row(cut, s, cols), ties = cutRow ? row(cutRow, s, cols) : 0;
    for (; r < stop; r++) {
      store<i32>(place(rowOffsets, r), count);
      const from = row(x, r, cols);
      for (let i = 0; i < cols; ) {
        // Most are below: four at a time as long as none is above or equal (or no number).
        if (i <= cols - 4 && !v128.any_true(v128.not(f32x4.lt(v128.load(place(from, i)), v128.load(place(bars, i)))))) {
          i += 4;
          continue;
        }
        for (const next = min(cols, i + 4); i < next; i++) {
          if (!isAbove(number(from, i), number(bars, i), ties, i, r)) continue;
          if (columns) store<i32>(place(columns, count), i);
          if (rowList) store<i32>(place(rowList, count), r);
          count++;
        }
      }
    }
  }
  for (; r <= rows; r++) store<i32>(place(rowOffsets, r), count);
  for (let j = count; j < length; j++) {
    if (columns) store<i32>(place(columns, j), -1);
    if (rowList) store<i32>(place(rowList, j), -1);
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
