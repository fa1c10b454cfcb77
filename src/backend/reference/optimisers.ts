/** Optimiser updates from their formulas. */

import type { AdamSettings, Buf } from "../backend.js";
import { floats, ints } from "./memory.js";

/** One Adam update (Kingma & Ba 2015, algorithm 1, decoupled weight decay). */
function adamElement(P: Float64Array, M: Float64Array | null, V: Float64Array, i: number, gradient: number, step: number, s: AdamSettings): void {
  const g = gradient * s.gradScale;
  const m = M ? s.beta1 * M[i]! + (1 - s.beta1) * g : g;
  const v = s.beta2 * V[i]! + (1 - s.beta2) * g * g;
  if (M) M[i] = m;
  V[i] = v;
  const mHat = M ? m / (1 - s.beta1 ** step) : m;
  const vHat = v / (1 - s.beta2 ** step);
  P[i]! -= s.learningRate * (mHat / (Math.sqrt(vHat) + s.epsilon) + s.weightDecay * P[i]!);
}

export function adam(param: Buf, grad: Buf, m: Buf | null, v: Buf, n: number, step: number, s: AdamSettings): void {
  for (let i = 0; i < n; i++) adamElement(floats(param), m && floats(m), floats(v), i, floats(grad)[i]!, step, s);
}

export function adamRows(param: Buf, grad: Buf, rows: Buf, slots: number, width: number, m: Buf | null, v: Buf, steps: Buf, s: AdamSettings): void {
  for (let slot = 0; slot < slots; slot++) {
    const row = ints(rows)[slot]!;
    if (row < 0) continue;
    const step = ++ints(steps)[row]!;
    for (let j = 0; j < width; j++) adamElement(floats(param), m && floats(m), floats(v), row * width + j, floats(grad)[slot * width + j]!, step, s);
  }
}

export function factoredAdamRows(param: Buf, grad: Buf, rows: Buf | null, slots: number, height: number, width: number, rowMean: Buf, colMean: Buf, steps: Buf, s: AdamSettings): void {
  const [P, G, R, C] = [floats(param), floats(grad), floats(rowMean), floats(colMean)];
  for (let slot = 0; slot < slots; slot++) {
    const e = rows ? ints(rows)[slot]! : slot;
    if (e < 0) continue;
    const step = ++ints(steps)[e]!;
    const square = (i: number, j: number): number => (G[(slot * height + i) * width + j]! * s.gradScale) ** 2;
    for (let i = 0; i < height; i++) {
      let mean = 0;
      for (let j = 0; j < width; j++) mean += square(i, j) / width;
      R[e * height + i] = s.beta2 * R[e * height + i]! + (1 - s.beta2) * mean;
    }
    for (let j = 0; j < width; j++) {
      let mean = 0;
      for (let i = 0; i < height; i++) mean += square(i, j) / height;
      C[e * width + j] = s.beta2 * C[e * width + j]! + (1 - s.beta2) * mean;
    }
    let overall = 0;
    for (let i = 0; i < height; i++) overall += R[e * height + i]! / height;
    for (let i = 0; i < height; i++) {
      for (let j = 0; j < width; j++) {
        const v = overall === 0 ? 0 : (R[e * height + i]! * C[e * width + j]!) / overall;
        const vHat = v / (1 - s.beta2 ** step);
        const at = (e * height + i) * width + j;
        P[at]! -= s.learningRate * ((G[(slot * height + i) * width + j]! * s.gradScale) / (Math.sqrt(vHat) + s.epsilon) + s.weightDecay * P[at]!);
      }
    }
  }
}

export function sgd(param: Buf, grad: Buf, n: number, learningRate: number, gradScale: number): void {
  for (let i = 0; i < n; i++) floats(param)[i]! -= learningRate * gradScale * floats(grad)[i]!;
}

export function sgdRows(param: Buf, grad: Buf, rows: Buf, slots: number, width: number, learningRate: number, gradScale: number): void {
  for (let slot = 0; slot < slots; slot++) {
    const row = ints(rows)[slot]!;
    if (row >= 0) sgd(param.at(row * width), grad.at(slot * width), width, learningRate, gradScale);
  }
}

export function sumSquares(x: Buf, n: number, rows: Buf | null, width: number, out: Buf): void {
  const X = floats(x);
  for (let i = 0; i < n; i++) if (!rows || ints(rows)[Math.floor(i / width)]! >= 0) floats(out)[0]! += X[i]! * X[i]!;
}
