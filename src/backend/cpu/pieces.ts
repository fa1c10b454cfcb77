/**
 * Products of few rows, in the pieces that a library multiplies fastest.
 *
 * A large product is packed: copied into the order that the library's kernel reads. For an expert with 32 rows that costs about as much as the product
 * itself. On AVX-512, OpenBLAS multiplies small matrices where they lie, up to 10⁶ multiply-adds: its pieces are as large as it takes (docs/decisions/011).
 * MKL is fastest where a piece of the second factor stays in the cache for all rows, and gradients of weights are computed a few rows at a time
 * (docs/decisions/012).
 */

import type { Cblas } from "./cblas.js";

/** How products of few rows are cut: small enough for OpenBLAS to multiply in place, shallow for MKL, or not at all. */
export type Cut = "small" | "shallow" | "none";

/** Rows (of the sum, for gradients of weights) above which a product goes whole. */
const FEW = 160;

/** OpenBLAS: multiply-adds up to which it does not pack, and elements of C where the second factor is transposed. */
const [SMALL, SMALL_C] = [1e6, 1024];
/** Rows of C in one piece, what the kernel keeps of the first factor while it passes over the second. */
const ROWS = 32;
/** OpenBLAS: the longest sides of a piece that its caches hold. */
const [COLUMNS, GRADIENT_COLUMNS, DEPTH] = [1024, 512, 1024];

/** MKL: elements of the weights, or of their gradient, (1 MiB) up to which a product goes whole. */
const CACHED = 2 ** 18;
/** MKL: terms of the sum in a piece, for up to VERY_FEW rows and for up to FEW. */
const [VERY_FEW, SHALLOW, LESS_SHALLOW] = [48, 48, 96];

/** How a library, known by its name and its own build, wants products of few rows. */
export function cutFor(name: Cblas["name"], build: string): Cut {
  if (name === "MKL") return "shallow";
  return name === "OpenBLAS" && /\b(SkylakeX|Cooperlake|SapphireRapids)\b/i.test(build) ? "small" : "none";
}

/** `sgemm`, in pieces where that is faster; sizes alone decide, so that equal products round equally. */
export function multiply({ sgemm, cut }: Pick<Cblas, "sgemm" | "cut">, transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number): void {
  const few = (transA ? k : m) <= FEW && !(transA && transB);
  let [mb, nb, kb] = [m, n, k];
  if (cut === "small" && few && !(m * n * k <= SMALL && (!transB || m * n <= SMALL_C))) {
    mb = Math.min(m, transB ? ROWS / 2 : ROWS);
    if (transA || transB) {
      kb = Math.min(k, DEPTH);
      nb = transA ? pieceSide(n, Math.min(GRADIENT_COLUMNS, SMALL / (mb * kb)), 64) : pieceSide(n, Math.min(SMALL_C / mb, SMALL / (mb * kb)), 16);
    } else {
      nb = Math.min(n, COLUMNS);
      kb = pieceSide(k, SMALL / (mb * nb), 8);
    }
  } else if (cut === "shallow" && few && !transB && (transA ? m : k) * n > CACHED) {
    if (transA) mb = ROWS;
    else [nb, kb] = [COLUMNS, m <= VERY_FEW ? SHALLOW : LESS_SHALLOW];
  }
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
