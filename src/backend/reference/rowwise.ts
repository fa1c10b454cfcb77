/** Functions of whole rows: softmax, layer normalisation, top-k, and the losses over classes. */

import type { Buf } from "../backend.js";
import { floats, ints } from "./memory.js";

/** log Σ eˣ of one row. */
export function logSumExpOf(x: Float64Array): number {
  let most = -Infinity;
  for (const v of x) most = v > most || Number.isNaN(v) ? v : most;
  if (most === -Infinity) return -Infinity;
  let sum = 0;
  for (const v of x) sum += Math.exp(v - most);
  return most + Math.log(sum);
}

const row = (x: Buf, r: number, cols: number): Float64Array => floats(x).subarray(r * cols, (r + 1) * cols);

export function softmax(x: Buf, y: Buf, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) {
    const lse = logSumExpOf(row(x, r, cols));
    row(y, r, cols).set(row(x, r, cols).map((v) => Math.exp(v - lse)));
  }
}

export function softmaxGrad(y: Buf, dy: Buf, dx: Buf, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) {
    const [Y, dY] = [row(y, r, cols), row(dy, r, cols)];
    const dot = Y.reduce((sum, v, j) => sum + v * dY[j]!, 0);
    row(dx, r, cols).set(Y.map((v, j) => v * (dY[j]! - dot)));
  }
}

export function logSoftmax(x: Buf, y: Buf, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) {
    const lse = logSumExpOf(row(x, r, cols));
    row(y, r, cols).set(row(x, r, cols).map((v) => v - lse));
  }
}

export function logSoftmaxGrad(y: Buf, dy: Buf, dx: Buf, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) {
    const dY = row(dy, r, cols);
    const total = dY.reduce((sum, v) => sum + v, 0);
    row(dx, r, cols).set(row(y, r, cols).map((v, j) => dY[j]! - Math.exp(v) * total));
  }
}

export function logSumExp(x: Buf, out: Buf, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) {
    const X = row(x, r, cols);
    // Where softmax would divide ∞ by ∞, the sum alone has a limit.
    floats(out)[r] = X.includes(Infinity) && !X.includes(NaN) ? Infinity : logSumExpOf(X);
  }
}

export function layerNorm(x: Buf, gamma: Buf, beta: Buf, y: Buf, mean: Buf, rstd: Buf, rows: number, cols: number, epsilon: number): void {
  const [G, B] = [floats(gamma), floats(beta)];
  for (let r = 0; r < rows; r++) {
    const X = row(x, r, cols);
    const mu = X.reduce((sum, v) => sum + v, 0) / cols;
    const variance = X.reduce((sum, v) => sum + (v - mu) ** 2, 0) / cols;
    const scale = 1 / Math.sqrt(variance + epsilon);
    row(y, r, cols).set(X.map((v, j) => (v - mu) * scale * G[j]! + B[j]!));
    floats(mean)[r] = mu;
    floats(rstd)[r] = scale;
  }
}

export function layerNormGrad(x: Buf, gamma: Buf, mean: Buf, rstd: Buf, dy: Buf, dx: Buf, dGamma: Buf, dBeta: Buf, rows: number, cols: number): void {
  const [G, dG, dB] = [floats(gamma), floats(dGamma), floats(dBeta)];
  dG.fill(0, 0, cols);
  dB.fill(0, 0, cols);
  for (let r = 0; r < rows; r++) {
    const dY = row(dy, r, cols);
    const scale = floats(rstd)[r]!;
    const xHat = row(x, r, cols).map((v) => (v - floats(mean)[r]!) * scale);
    const dXHat = dY.map((v, j) => v * G[j]!);
    const average = dXHat.reduce((sum, v) => sum + v, 0) / cols;
    const along = dXHat.reduce((sum, v, j) => sum + v * xHat[j]!, 0) / cols;
    for (let j = 0; j < cols; j++) {
      dG[j]! += dY[j]! * xHat[j]!;
      dB[j]! += dY[j]!;
    }
    row(dx, r, cols).set(dXHat.map((v, j) => scale * (v - average - xHat[j]! * along)));
  }
}

export function topK(x: Buf, values: Buf, indices: Buf, rows: number, cols: number, k: number): void {
  for (let r = 0; r < rows; r++) {
    const X = row(x, r, cols);
    const key = (i: number): number => (Number.isNaN(X[i]!) ? -Infinity : X[i]!);
    const order = Array.from(X, (_, i) => i).sort((a, b) => (key(a) === key(b) ? a - b : key(a) > key(b) ? -1 : 1));
    for (let j = 0; j < k; j++) {
      floats(values)[r * k + j] = X[order[j]!]!;
      ints(indices)[r * k + j] = order[j]!;
    }
  }
}

export function rowDot(a: Buf, b: Buf, out: Buf, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) floats(out)[r] = row(a, r, cols).reduce((sum, v, j) => sum + v * row(b, r, cols)[j]!, 0);
}

export function crossEntropy(logits: Buf, target: Buf, loss: Buf, rows: number, cols: number, gradScale: number): void {
  for (let r = 0; r < rows; r++) {
    const L = row(logits, r, cols);
    const t = ints(target)[r]!;
    const lse = logSumExpOf(L);
    floats(loss)[r] = t < 0 ? 0 : lse - L[t]!;
    if (gradScale !== 0) L.set(L.map((v, j) => (t < 0 ? 0 : gradScale * (Math.exp(v - lse) - (j === t ? 1 : 0)))));
  }
}

export function sampledCrossEntropy(logits: Buf, shift: Buf, samples: Buf, trueLogit: Buf, trueShift: Buf, target: Buf, loss: Buf, rows: number, cols: number, gradScale: number): void {
  for (let r = 0; r < rows; r++) {
    const t = ints(target)[r]!;
    const L = row(logits, r, cols);
    const shifted = L.map((v, j) => (ints(samples)[j] === t ? -Infinity : v - floats(shift)[j]!));
    const truth = floats(trueLogit)[r]! - floats(trueShift)[r]!;
    const lse = logSumExpOf(Float64Array.of(truth, ...shifted));
    floats(loss)[r] = t < 0 ? 0 : lse - truth;
    if (gradScale === 0) continue;
    L.set(shifted.map((v) => (t < 0 ? 0 : gradScale * Math.exp(v - lse))));
    floats(trueLogit)[r] = t < 0 ? 0 : gradScale * (Math.exp(truth - lse) - 1);
  }
}
