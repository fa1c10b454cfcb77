/** Matrix products as triple loops in float64. */

import type { Buf, Epilogue } from "../backend.js";
import { floats, ints } from "./memory.js";

/** C = alpha·op(A)·op(B) + beta·C. */
export function gemm(transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
  a: Buf, lda: number, b: Buf, ldb: number, beta: number, c: Buf, ldc: number): void {
  const [A, B, C] = [floats(a), floats(b), floats(c)];
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let p = 0; p < k; p++) sum += (transA ? A[p * lda + i]! : A[i * lda + p]!) * (transB ? B[j * ldb + p]! : B[p * ldb + j]!);
      C[i * ldc + j] = alpha * sum + (beta === 0 ? 0 : beta * C[i * ldc + j]!);
    }
  }
}

/** Group by group: y = x·w[e] or x·w[e]ᵀ; zeros after the last group. */
export function groupedGemm(offsets: Buf, groups: number, m: number, x: Buf, w: Buf, transW: boolean, y: Buf, p: number, q: number, then?: Epilogue): void {
  const at = ints(offsets);
  for (let e = 0; e < groups; e++) {
    const rows = at[e + 1]! - at[e]!;
    if (rows > 0) gemm(false, transW, rows, q, p, 1, x.at(at[e]! * p), p, w.at(e * p * q), transW ? p : q, 0, y.at(at[e]! * q), q);
  }
  const used = at[groups]! * q;
  if (then === "relu") for (let i = 0; i < used; i++) floats(y)[i] = Math.max(floats(y)[i]!, 0);
  else if (then) for (let i = 0; i < used; i++) if (!(floats(then.mask)[i]! > 0)) floats(y)[i] = 0;
  floats(y).fill(0, used, m * q);
}

/** Group by group: dw[e] = xᵀ·dy. */
export function groupedGemmWeight(offsets: Buf, groups: number, x: Buf, dy: Buf, dw: Buf, touched: Buf, p: number, q: number, accumulate: boolean): void {
  const [at, flags] = [ints(offsets), ints(touched)];
  for (let e = 0; e < groups; e++) {
    const rows = at[e + 1]! - at[e]!;
    const before = accumulate && flags[e]! >= 0;
    if (rows > 0) gemm(true, false, p, q, rows, 1, x.at(at[e]! * p), p, dy.at(at[e]! * q), q, before ? 1 : 0, dw.at(e * p * q), q);
    flags[e] = rows > 0 || before ? e : -1;
  }
}
