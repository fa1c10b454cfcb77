/** The LSTM cell, and the functions of noisy top-k gating, with their gradients. */

import type { Buf } from "../backend.js";
import { normalCdf, normalPdf, sigmoid } from "./elementwise.js";
import { floats, ints } from "./memory.js";

export function lstmCell(gates: Buf, cPrev: Buf, c: Buf, h: Buf, rows: number, hidden: number): void {
  const [G, P, C, H] = [floats(gates), floats(cPrev), floats(c), floats(h)];
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < hidden; j++) {
      const at = r * 4 * hidden + j;
      const i = (G[at] = sigmoid(G[at]!));
      const f = (G[at + hidden] = sigmoid(G[at + hidden]!));
      const g = (G[at + 2 * hidden] = Math.tanh(G[at + 2 * hidden]!));
      const o = (G[at + 3 * hidden] = sigmoid(G[at + 3 * hidden]!));
      const cell = f * P[r * hidden + j]! + i * g;
      C[r * hidden + j] = cell;
      H[r * hidden + j] = o * Math.tanh(cell);
    }
  }
}

export function lstmCellGrad(gates: Buf, cPrev: Buf, c: Buf, dh: Buf, dc: Buf, dGates: Buf, rows: number, hidden: number): void {
  const [G, P, C, dH, dC, dG] = [floats(gates), floats(cPrev), floats(c), floats(dh), floats(dc), floats(dGates)];
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < hidden; j++) {
      const at = r * 4 * hidden + j;
      const one = r * hidden + j;
      const [i, f, g, o] = [G[at]!, G[at + hidden]!, G[at + 2 * hidden]!, G[at + 3 * hidden]!];
      const t = Math.tanh(C[one]!);
      const dCell = dC[one]! + dH[one]! * o * (1 - t * t);
      dG[at] = dCell * g * i * (1 - i);
      dG[at + hidden] = dCell * P[one]! * f * (1 - f);
      dG[at + 2 * hidden] = dCell * i * (1 - g * g);
      dG[at + 3 * hidden] = dH[one]! * t * o * (1 - o);
      dC[one] = dCell * f;
    }
  }
}

/** Which of the top values is kth_excluding for expert i: the one after the k chosen for these, the last chosen for the others; -1 when k experts are all. */
function thresholdOf(topIndices: Int32Array, at: number, k: number, cols: number, i: number): number {
  if (k === cols) return -1;
  for (let j = 0; j < k; j++) if (topIndices[at + j] === i) return at + k;
  return at + k - 1;
}

/** Standard deviations up to this count as none; see `Backend.loadProbability`. */
const NO_NOISE = 1e-30;

export function loadProbability(clean: Buf, std: Buf, topValues: Buf, topIndices: Buf, p: Buf, rows: number, cols: number, k: number): void {
  const width = Math.min(k + 1, cols);
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < cols; i++) {
      const at = thresholdOf(ints(topIndices), r * width, k, cols, i);
      const x = r * cols + i;
      if (at < 0) floats(p)[x] = 1;
      else if (floats(std)[x]! <= NO_NOISE) floats(p)[x] = at === r * width + k ? 1 : 0;
      else floats(p)[x] = normalCdf((floats(clean)[x]! - floats(topValues)[at]!) / floats(std)[x]!);
    }
  }
}

export function loadProbabilityGrad(clean: Buf, std: Buf, topValues: Buf, topIndices: Buf, dp: Buf, dClean: Buf, dStd: Buf, dTopValues: Buf, rows: number, cols: number, k: number): void {
  const width = Math.min(k + 1, cols);
  floats(dTopValues).fill(0, 0, rows * width);
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < cols; i++) {
      const at = thresholdOf(ints(topIndices), r * width, k, cols, i);
      const x = r * cols + i;
      const s = floats(std)[x]!;
      const none = at < 0 || s <= NO_NOISE;
      const z = none ? 0 : (floats(clean)[x]! - floats(topValues)[at]!) / s;
      const slope = none ? 0 : (floats(dp)[x]! * normalPdf(z)) / s;
      floats(dClean)[x] = slope;
      floats(dStd)[x] = -slope * z;
      if (at >= 0) floats(dTopValues)[at]! -= slope;
    }
  }
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
