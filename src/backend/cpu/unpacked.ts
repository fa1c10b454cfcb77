/**
 * Products of few rows, cut so that OpenBLAS does not pack them.
 *
 * A large product is packed: copied into the order that its kernel reads. For an expert with 32 rows that costs about as much as the product. On AVX-512,
 * OpenBLAS multiplies small matrices where they lie, up to 10⁶ multiply-adds; the pieces below are as large as it takes (docs/decisions/011).
 */

import type { Cblas } from "./cblas.js";

/** Multiply-adds up to which the library does not pack. */
const SMALL = 1e6;
/** Elements of C up to which it does not where the second factor is transposed. */
const SMALL_C = 1024;
/** Rows (of the sum, for gradients of weights) above which packing pays. */
const FEW = 160;
/** Rows of C in one piece: what the kernel keeps of the first factor while it passes over the second. */
const ROWS = 32;
/** The longest sides of a piece that its caches hold. */
const [COLUMNS, GRADIENT_COLUMNS, DEPTH] = [1024, 512, 1024];

/** Whether the library, described by its own build, has kernels that do not pack. */
export function multipliesInPlace(build: string): boolean {
  return /^OpenBLAS .*\b(SkylakeX|Cooperlake|SapphireRapids)\b/i.test(build);
}

/** `sgemm`, in pieces where the library does not pack them and that is faster; sizes alone decide, so that equal products round equally. */
export function unpacked({ sgemm, inPlace }: Pick<Cblas, "sgemm" | "inPlace">, transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number): void {
  const small = m * n * k <= SMALL && (transA || !transB || m * n <= SMALL_C);
  if (!inPlace || small || (transA ? transB || k > FEW : m > FEW)) {
    sgemm(transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  const mb = Math.min(m, transB ? ROWS / 2 : ROWS);
  const kb = transA || transB ? Math.min(k, DEPTH) : pieceSide(k, SMALL / (mb * Math.min(n, COLUMNS)), 8);
  const nb = transB ? pieceSide(n, Math.min(SMALL_C / mb, SMALL / (mb * kb)), 16) : transA ? pieceSide(n, Math.min(GRADIENT_COLUMNS, SMALL / (mb * kb)), 64) : Math.min(n, COLUMNS);
  for (let j = 0; j < n; j += nb) {
    const columns = Math.min(nb, n - j);
    for (let p = 0; p < k; p += kb) {
      const depth = Math.min(kb, k - p);
      const second = b + 4 * (transB ? j * ldb + p : p * ldb + j);
      for (let i = 0; i < m; i += mb) {
        sgemm(transA, transB, Math.min(mb, m - i), columns, depth, alpha, a + 4 * (transA ? p * lda + i : i * lda + p), lda, second, ldb, p === 0 ? beta : 1, c + 4 * (i * ldc + j), ldc);
      }
    }
  }
}

/** The largest whole multiple of `step` up to `most`, or all of a side that is shorter. */
function pieceSide(side: number, most: number, step: number): number {
  return Math.min(side, Math.max(step, Math.floor(most / step) * step));
}
