/** Rows by index: gather, combine, routing, sums by segment. */

import type { Buf } from "../backend.js";
import { checkIndices } from "../indices.js";
import { floats, ints } from "./memory.js";

export function gatherRows(src: Buf, index: Buf, out: Buf, rows: number, width: number): void {
  const [S, I, O] = [floats(src), ints(index), floats(out)];
  for (let r = 0; r < rows; r++) for (let j = 0; j < width; j++) O[r * width + j] = I[r]! < 0 ? 0 : S[I[r]! * width + j]!;
}

/** Assignments of row r: from offsets, or k a row. */
const assignments = (rowOffsets: Buf | null, r: number, k: number): [from: number, to: number] => (rowOffsets ? [ints(rowOffsets)[r]!, ints(rowOffsets)[r + 1]!] : [r * k, (r + 1) * k]);

export function combineRows(src: Buf, position: Buf, weights: Buf | null, rowOffsets: Buf | null, y: Buf, n: number, k: number, width: number): void {
  const [S, P, W, Y] = [floats(src), ints(position), weights && floats(weights), floats(y)];
  for (let r = 0; r < n; r++) {
    const [from, to] = assignments(rowOffsets, r, k);
    for (let j = 0; j < width; j++) {
      let sum = 0;
      for (let a = from; a < to; a++) if (P[a]! >= 0) sum += (W ? W[a]! : 1) * S[P[a]! * width + j]!;
      Y[r * width + j] = sum;
    }
  }
}

export function combineRowsGrad(src: Buf, position: Buf, weights: Buf, rowOffsets: Buf | null, dy: Buf, dSrc: Buf | null, dWeights: Buf | null, n: number, k: number, width: number): void {
  const [S, P, W, dY] = [floats(src), ints(position), floats(weights), floats(dy)];
  for (let r = 0; r < n; r++) {
    const [from, to] = assignments(rowOffsets, r, k);
    for (let a = from; a < to; a++) {
      let dot = 0;
      if (P[a]! >= 0) {
        for (let j = 0; j < width; j++) {
          dot += dY[r * width + j]! * S[P[a]! * width + j]!;
          if (dSrc) floats(dSrc)[P[a]! * width + j] = W[a]! * dY[r * width + j]!;
        }
      }
      if (dWeights) floats(dWeights)[a] = dot;
    }
  }
}

export function limitPerExpert(expert: Buf, priority: Buf | null, n: number, k: number, groups: number, capacity: number): void {
  const E = ints(expert);
  checkIndices("limitPerExpert", E, n * k, -1, groups);
  // First choices of all rows, then second choices, ...
  const arrival = Array.from({ length: n * k }, (_, i) => (i % n) * k + Math.floor(i / n));
  for (let e = 0; e < groups; e++) {
    const mine = arrival.filter((j) => E[j] === e);
    // NaN counts as −∞; sort is stable, so that equal ones keep their order.
    const key = (j: number): number => (Number.isNaN(floats(priority!)[j]!) ? -Infinity : floats(priority!)[j]!);
    if (priority) mine.sort((a, b) => (key(a) === key(b) ? 0 : key(a) > key(b) ? -1 : 1));
    for (const j of mine.slice(capacity)) E[j] = -1;
  }
}

export function zeroTail(offsets: Buf, groups: number, m: number, x: Buf, width: number): void {
  floats(x).fill(0, ints(offsets)[groups]! * width, m * width);
}

export function groupedBias(offsets: Buf, groups: number, m: number, x: Buf, bias: Buf, y: Buf, width: number): void {
  const [at, X, B, Y] = [ints(offsets), floats(x), floats(bias), floats(y)];
  for (let e = 0; e < groups; e++) for (let r = at[e]!; r < at[e + 1]!; r++) for (let j = 0; j < width; j++) Y[r * width + j] = X[r * width + j]! + B[e * width + j]!;
  for (let i = at[groups]! * width; i < m * width; i++) Y[i] = X[i]!;
}

export function groupedBiasGrad(offsets: Buf, groups: number, dy: Buf, dBias: Buf, touched: Buf, width: number): void {
  const [at, dY, dB] = [ints(offsets), floats(dy), floats(dBias)];
  for (let e = 0; e < groups; e++) {
    ints(touched)[e] = at[e + 1]! > at[e]! ? e : -1;
    for (let j = 0; j < width; j++) {
      dB[e * width + j] = 0;
      for (let r = at[e]!; r < at[e + 1]!; r++) dB[e * width + j]! += dY[r * width + j]!;
    }
  }
}

export function routeByExpert(expert: Buf, m: number, groups: number, offsets: Buf, order: Buf, position: Buf): void {
  const [X, at, O, P] = [ints(expert), ints(offsets), ints(order), ints(position)];
  checkIndices("routeByExpert", X, m, -1, groups);
  O.fill(-1, 0, m);
  let place = 0;
  for (let e = 0; e < groups; e++) {
    at[e] = place;
    for (let j = 0; j < m; j++) {
      if (X[j] !== e) continue;
      O[place] = j;
      P[j] = place++;
    }
  }
  at[groups] = place;
  for (let j = 0; j < m; j++) if (X[j]! < 0) P[j] = -1;
}

export function uniqueIndices(index: Buf, n: number, rows: Buf, offsets: Buf, order: Buf): void {
  const [I, R, at, O] = [ints(index), ints(rows), ints(offsets), ints(order)];
  const places = new Map<number, number[]>();
  for (let i = 0; i < n; i++) {
    const here = places.get(I[i]!);
    if (here) here.push(i);
    else places.set(I[i]!, [i]);
  }
  R.fill(-1, 0, n);
  at.fill(n, 0, n + 1);
  let place = 0;
  for (const [slot, value] of [...places.keys()].sort((a, b) => a - b).entries()) {
    R[slot] = value;
    at[slot] = place;
    for (const i of places.get(value)!) O[place++] = i;
  }
}

export function segmentSumRows(src: Buf, order: Buf, offsets: Buf, slots: number, out: Buf, width: number): void {
  const [S, O, at, Y] = [floats(src), ints(order), ints(offsets), floats(out)];
  for (let s = 0; s < slots; s++) {
    for (let j = 0; j < width; j++) {
      Y[s * width + j] = 0;
      for (let p = at[s]!; p < at[s + 1]!; p++) Y[s * width + j]! += S[O[p]! * width + j]!;
    }
  }
}

export function addRowsAt(src: Buf, rows: Buf, slots: number, dst: Buf, width: number): void {
  const [S, R, D] = [floats(src), ints(rows), floats(dst)];
  for (let s = 0; s < slots; s++) if (R[s]! >= 0) for (let j = 0; j < width; j++) D[R[s]! * width + j]! += S[s * width + j]!;
}

export function maskRows(flags: Buf, src: Buf, dst: Buf, rows: number, width: number): void {
  const [F, S, D] = [ints(flags), floats(src), floats(dst)];
  for (let r = 0; r < rows; r++) for (let j = 0; j < width; j++) D[r * width + j] = F[r] ? 0 : S[r * width + j]!;
}

export function gatherLast(src: Buf, index: Buf, out: Buf, rows: number, cols: number, k: number): void {
  const [S, I, O] = [floats(src), ints(index), floats(out)];
  checkIndices("gatherLast", I, rows * k, -1, cols);
  for (let i = 0; i < rows * k; i++) O[i] = I[i]! < 0 ? 0 : S[Math.floor(i / k) * cols + I[i]!]!;
}

export function scatterAddLast(src: Buf, index: Buf, dst: Buf, rows: number, cols: number, k: number): void {
  const [S, I, D] = [floats(src), ints(index), floats(dst)];
  checkIndices("scatterAddLast", I, rows * k, -1, cols);
  for (let i = 0; i < rows * k; i++) if (I[i]! >= 0) D[Math.floor(i / k) * cols + I[i]!]! += S[i]!;
}

export function bincount(src: Buf, index: Buf, n: number, out: Buf, size: number): void {
  const [S, I, O] = [floats(src), ints(index), floats(out)];
  checkIndices("bincount", I, n, -1, size);
  O.fill(0, 0, size);
  for (let i = 0; i < n; i++) if (I[i]! >= 0) O[I[i]!]! += S[i]!;
}
