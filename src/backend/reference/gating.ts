/** Gating (Shazeer et al. 2017, section 2.1, App. A and F) with its gradients. */

import { normalAt } from "../../core/random.js";
import { MAX_DEVIATIONS, NO_NOISE, type Buf, type RandomKey } from "../backend.js";
import { normalCdf, normalPdf, sigmoid, UNARY } from "./elementwise.js";
import { floats, ints, ReferenceBuf } from "./memory.js";
import { topK } from "./rowwise.js";

/** Which of the top values is kth_excluding for expert i: the one after the k chosen for these, the last chosen for the others; -1 when k experts are all. */
function thresholdOf(topIndices: Int32Array, at: number, k: number, cols: number, i: number): number {
  if (k === cols) return -1;
  for (let j = 0; j < k; j++) if (topIndices[at + j] === i) return at + k;
  return at + k - 1;
}

/** Rows of each segment: from offsets, or parts of equal size. */
export function segmentRows(offsets: Buf | null, segments: number, rows: number): [from: number, to: number][] {
  const size = Math.ceil(rows / Math.max(segments, 1));
  return Array.from({ length: segments }, (_, s) => (offsets ? [ints(offsets)[s]!, ints(offsets)[s + 1]!] : [Math.min(rows, s * size), Math.min(rows, (s + 1) * size)]));
}

/** (clean − threshold) / std, kept where Φ and its slope are numbers. */
function deviations(clean: number, threshold: number, std: number): number {
  const z = (clean - threshold) / std;
  return Math.max(-MAX_DEVIATIONS, Math.min(MAX_DEVIATIONS, z));
}

export function noisyTopK(clean: Buf, raw: Buf, key: RandomKey, start: number, rowIds: Buf | null, offsets: Buf | null, segments: number,
  topValues: Buf, topIndices: Buf, load: Buf, rows: number, cols: number, k: number): void {
  const width = Math.min(k + 1, cols);
  const noisy = new ReferenceBuf("float32", new Float64Array(cols));
  floats(topValues).fill(0, 0, rows * width);
  ints(topIndices).fill(-1, 0, rows * width);
  floats(load).fill(0, 0, segments * cols);
  for (const [s, [from, to]] of segmentRows(offsets, segments, rows).entries()) {
    for (let r = from; r < to; r++) {
      const first = (start + (rowIds ? ints(rowIds)[r]! : r)) * cols;
      for (let i = 0; i < cols; i++) noisy.data[i] = floats(clean)[r * cols + i]! + normalAt(key, first + i) * UNARY.softplus(floats(raw)[r * cols + i]!);
      topK(noisy, topValues.at(r * width), topIndices.at(r * width), 1, cols, width);
      for (let i = 0; i < cols; i++) {
        const at = thresholdOf(ints(topIndices), r * width, k, cols, i);
        const std = UNARY.softplus(floats(raw)[r * cols + i]!);
        let p = 1;
        if (at >= 0 && std <= NO_NOISE) p = at === r * width + k ? 1 : 0;
        else if (at >= 0) p = normalCdf(deviations(floats(clean)[r * cols + i]!, floats(topValues)[at]!, std));
        floats(load)[s * cols + i]! += p;
      }
    }
  }
}

export function noisyTopKGrad(clean: Buf, raw: Buf, topValues: Buf, topIndices: Buf, dTopValues: Buf | null, dLoad: Buf | null, offsets: Buf | null, segments: number,
  dClean: Buf, dRaw: Buf, rows: number, cols: number, k: number): void {
  const width = Math.min(k + 1, cols);
  const [dC, dR] = [floats(dClean), floats(dRaw)];
  dC.fill(0, 0, rows * cols);
  dR.fill(0, 0, rows * cols);
  for (const [s, [from, to]] of segmentRows(offsets, segments, rows).entries()) {
    for (let r = from; r < to; r++) {
      const dTop = Array.from({ length: width }, (_, j) => (dTopValues ? floats(dTopValues)[r * width + j]! : 0));
      for (let i = 0; i < cols; i++) {
        const at = thresholdOf(ints(topIndices), r * width, k, cols, i);
        const x = r * cols + i;
        const std = UNARY.softplus(floats(raw)[x]!);
        if (at < 0 || !dLoad || std <= NO_NOISE) continue;
        const z = deviations(floats(clean)[x]!, floats(topValues)[at]!, std);
        const slope = (floats(dLoad)[(offsets ? s : 0) * cols + i]! * normalPdf(z)) / std;
        dC[x] = slope;
        dR[x] = -slope * z * sigmoid(floats(raw)[x]!);
        dTop[at - r * width]! -= slope;
      }
      // noisy = clean + ε·softplus(raw), and ε is what was added over what it was multiplied by.
      for (const [j, d] of dTop.entries()) {
        const x = r * cols + ints(topIndices)[r * width + j]!;
        const noise = (floats(topValues)[r * width + j]! - floats(clean)[x]!) / Math.max(UNARY.softplus(floats(raw)[x]!), NO_NOISE);
        dC[x]! += d;
        dR[x]! += d * noise * sigmoid(floats(raw)[x]!);
      }
    }
  }
}

export function columnCuts(x: Buf, offsets: Buf | null, segments: number, rows: number, cols: number, k: number, cut: Buf, cutRow: Buf): void {
  for (const [s, [from, to]] of segmentRows(offsets, segments, rows).entries()) {
    const m = Math.min(to - from, Math.max(1, Math.floor((k * (to - from)) / cols)));
    for (let i = 0; i < cols; i++) {
      const value = (r: number): number => (Number.isNaN(floats(x)[r * cols + i]!) ? -Infinity : floats(x)[r * cols + i]!);
      const order = Array.from({ length: to - from }, (_, j) => from + j).sort((a, b) => (value(a) === value(b) ? a - b : value(a) > value(b) ? -1 : 1));
      floats(cut)[s * cols + i] = m > 0 ? value(order[m - 1]!) : Infinity;
      ints(cutRow)[s * cols + i] = m > 0 ? order[m - 1]! : -1;
    }
  }
}

export function listAbove(x: Buf, cut: Buf, cutRow: Buf | null, offsets: Buf | null, segments: number, rows: number, cols: number,
  column: Buf | null, row: Buf | null, rowOffsets: Buf, length: number): void {
  let count = 0;
  const [C, R] = [column && ints(column), row && ints(row)];
  C?.fill(-1, 0, length);
  R?.fill(-1, 0, length);
  let next = 0;
  for (const [s, [from, to]] of segmentRows(offsets, segments, rows).entries()) {
    for (let r = from; r < to; r++) {
      ints(rowOffsets)[r] = count;
      for (let i = 0; i < cols; i++) {
        const [value, bar] = [floats(x)[r * cols + i]!, floats(cut)[s * cols + i]!];
        const tie = cutRow !== null && (value === bar || (Number.isNaN(value) && bar === -Infinity)) && r <= ints(cutRow)[s * cols + i]!;
        if (!(value > bar) && !tie) continue;
        if (C) C[count] = i;
        if (R) R[count] = r;
        count++;
      }
    }
    next = Math.max(next, to);
  }
  for (let r = next; r <= rows; r++) ints(rowOffsets)[r] = count;
}

export function cvSquared(x: Buf, n: number, out: Buf): void {
  const { mean, variance } = moments(floats(x), n);
  floats(out)[0] = mean === 0 ? 0 : variance / mean ** 2;
}

export function cvSquaredGrad(x: Buf, n: number, dy: Buf, dx: Buf): void {
  // CV² = S/(n·μ²) with S = Σ(x−μ)²: ∂/∂x_i = 2(x_i − μ)/(n·μ²) − 2·variance/(n·μ³).
  const { mean, variance } = moments(floats(x), n);
  for (let i = 0; i < n; i++) {
    floats(dx)[i] = mean === 0 ? 0 : (floats(dy)[0]! * 2 * ((floats(x)[i]! - mean) / mean ** 2 - variance / mean ** 3)) / n;
  }
}

function moments(x: Float64Array, n: number): { mean: number; variance: number } {
  let [mean, variance] = [0, 0];
  for (let i = 0; i < n; i++) mean += x[i]! / n;
  for (let i = 0; i < n; i++) variance += (x[i]! - mean) ** 2 / n;
  return { mean, variance };
}
