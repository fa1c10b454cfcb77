/**
 * Products of few rows with large weights, in the pieces that memory and library are fastest with.
 *
 * The weights of an expert that has 32 rows take longer to come from memory than the product takes, and a library that packs them copies them besides. A piece
 * goes through some thirty rows of the weights at once, each in a page of its own: as many streams as a processor fetches ahead. The few rows are laid across first,
 * so that a vector holds a number of each (docs/decisions/013).
 */

import type { Cblas, Sgemm } from "./cblas.js";

/** Up to how many rows a library wants products in pieces: OpenBLAS, which multiplies small matrices where they lie, up to FEW; MKL, which packs fast, up to FEWER. */
export type Cut = "few" | "fewer" | "none";

/** Memory of the calling thread, and what lays a block across there. */
export interface Workspace {
  /** Address of WORKSPACE_FLOATS elements. */
  address: number;
  /** to[j][i] = from[i][j] + beta · to[j][i] for i < rows, j < columns; strides between rows, in elements. With beta 0 what was there is not read. */
  transpose(from: number, fromStride: number, rows: number, columns: number, to: number, toStride: number, beta: number): void;
}

/** Rows (of the sum, for gradients of weights). */
const [FEW, FEWER] = [160, 48];
/** Multiply-adds up to which OpenBLAS does not pack, and elements of C where the second factor is transposed; multiply-adds that no pieces are worth. */
const [SMALL, SMALL_C, LEAST] = [1e6, 1024, 2 ** 17];
/** The most rows of the weights in a piece: a prefetcher follows as many streams. */
const STREAMS = 32;
/** Elements of a page of 4 KiB, of which one stream is followed: rows that share a page go into different pieces, as far as so many. */
const [PAGE, MOST_APART] = [1024, 8];
/** Sides of a piece: rows, the weights' columns where they are summed over, where they are not, and in a gradient. The streams make it SMALL. */
const [ROWS, DEPTH, COLUMNS, GRADIENT_COLUMNS] = [32, 1024, 1024, 512];
/** Numbers in a vector, and the most rows beside whole vectors of them that are cheaper multiplied as they lie than in a vector that is filled up. */
const [LANES, MOST_LEFT] = [16, 12];
/** MKL: elements of weights up to which it is fastest whole, with up to FEWER rows and with more (1 MiB); terms of the sum in a piece with more. */
const [PACKED_FAST, CACHED, SHALLOW] = [2 ** 16, 2 ** 18, 96];

/** Elements that pieces are laid across in: the few rows, and a piece of the result. */
export const WORKSPACE_FLOATS = FEW * DEPTH + ROWS * STREAMS * MOST_APART;

/** How a library, known by its name and its own build, wants products of few rows. */
export function cutFor(name: Cblas["name"], build: string): Cut {
  if (name === "MKL") return "fewer";
  return name === "OpenBLAS" && /\b(SkylakeX|Cooperlake|SapphireRapids)\b/i.test(build) ? "few" : "none";
}

/** `sgemm`, in pieces where that is faster; sizes alone decide, so that equal products round equally. */
export function multiply({ sgemm, cut }: Pick<Cblas, "sgemm" | "cut">, workspace: Workspace, transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number): void {
  if (cut === "none" || !wantsPieces(cut, transA, transB, m, n, k)) sgemm(transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  else if (transA) gradient(sgemm, workspace, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  else if (transB) timesTransposed(sgemm, workspace, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  else if (cut === "fewer" && m > FEWER) timesShallow(sgemm, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  else times(sgemm, workspace, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

function wantsPieces(cut: "few" | "fewer", transA: boolean, transB: boolean, m: number, n: number, k: number): boolean {
  const [rows, weights] = transA ? [k, m * n] : [m, k * n];
  if (rows > FEW || (transA && transB)) return false;
  if (cut === "fewer") return rows <= FEWER ? weights > PACKED_FAST : !transB && weights > CACHED;
  // Small ones that lie in the cache are fastest whole, unless they are packed all the same or write their weights.
  return rows * weights > (transA || (transB && m * n > SMALL_C) ? LEAST : SMALL);
}

/** C = alpha A B + beta C, B the weights: a piece adds the terms of some of their rows. */
function times(sgemm: Sgemm, { address, transpose }: Workspace, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number): void {
  const apart = rowsApart(ldb);
  const columns = Math.min(COLUMNS, n);
  const streams = Math.min(STREAMS, Math.floor(SMALL / (ROWS * columns)));
  const rows = share(m, Math.max(ROWS, Math.floor(SMALL / (streams * columns))), 1);
  for (let from = 0; from < k; from += DEPTH) {
    const to = Math.min(from + DEPTH, k);
    const terms = share(to - from, streams * apart, apart);
    transpose(a + 4 * from, lda, m, to - from, address, m, 0);
    for (let p = from; p < to; p += terms) {
      const depth = Math.min(terms, to - p);
      for (let first = 0; first < Math.min(apart, depth); first++) {
        const [x, w] = [address + 4 * (p - from + first) * m, b + 4 * (p + first) * ldb];
        for (let i = 0; i < m; i += rows) {
          for (let j = 0; j < n; j += COLUMNS) {
            sgemm(true, false, Math.min(rows, m - i), Math.min(COLUMNS, n - j), Math.ceil((depth - first) / apart), alpha,
              x + 4 * i, apart * m, w + 4 * j, apart * ldb, p + first === 0 ? beta : 1, c + 4 * (i * ldc + j), ldc);
          }
        }
      }
    }
  }
}

/** The same where the library packs A faster than this could lay it across: few terms at a time, so that the piece of B stays in the cache for all rows. */
function timesShallow(sgemm: Sgemm, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number): void {
  for (let j = 0; j < n; j += COLUMNS) {
    for (let p = 0; p < k; p += SHALLOW) {
      sgemm(false, false, m, Math.min(COLUMNS, n - j), Math.min(SHALLOW, k - p), alpha, a + 4 * p, lda, b + 4 * (p * ldb + j), ldb, p === 0 ? beta : 1, c + 4 * j, ldc);
    }
  }
}

/** C = alpha A Bᵀ + beta C, B the weights: a piece is the transpose of what some of their rows give. */
function timesTransposed(sgemm: Sgemm, { address, transpose }: Workspace, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number): void {
  const apart = rowsApart(ldb);
  const out = address + 4 * FEW * DEPTH;
  const left = m % LANES > MOST_LEFT ? 0 : m % LANES;
  const across = m - left;
  const padded = Math.ceil(across / LANES) * LANES;
  for (let p = 0; p < k; p += DEPTH) {
    const depth = Math.min(DEPTH, k - p);
    const added = p === 0 ? beta : 1;
    const most = share(n, Math.min(STREAMS, Math.floor(SMALL / (ROWS * depth))) * apart, apart);
    transpose(a + 4 * p, lda, across, depth, address, padded, 0);
    for (let j = 0; j < n; j += most) {
      const columns = Math.min(most, n - j);
      const w = b + 4 * (j * ldb + p);
      for (let i = 0; i < across; i += ROWS) {
        const rows = Math.min(ROWS, padded - i);
        for (let first = 0; first < Math.min(apart, columns); first++) {
          sgemm(false, false, Math.ceil((columns - first) / apart), rows, depth, alpha, w + 4 * first * ldb, apart * ldb, address + 4 * i, padded, 0, out + 4 * first * rows, apart * rows);
        }
        transpose(out, rows, columns, Math.min(rows, across - i), c + 4 * (i * ldc + j), ldc, added);
      }
      const span = Math.floor(SMALL_C / left);
      for (let q = 0; left > 0 && q < columns; q += span) {
        sgemm(false, true, left, Math.min(span, columns - q), depth, alpha, a + 4 * (across * lda + p), lda, w + 4 * q * ldb, ldb, added, c + 4 * (across * ldc + j + q), ldc);
      }
    }
  }
}

/** C = alpha Aᵀ B + beta C, C the gradient of the weights: a piece is some rows of it. */
function gradient(sgemm: Sgemm, { address, transpose }: Workspace, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number): void {
  const apart = rowsApart(ldc);
  const most = Math.min(GRADIENT_COLUMNS, Math.floor(SMALL / (STREAMS * k * 64)) * 64);
  for (let from = 0; from < m; from += DEPTH) {
    const to = Math.min(from + DEPTH, m);
    const size = share(to - from, STREAMS * apart, apart);
    transpose(a + 4 * from, lda, k, to - from, address, k, 0);
    for (let i = from; i < to; i += size) {
      const rows = Math.min(size, to - i);
      for (let first = 0; first < Math.min(apart, rows); first++) {
        const x = address + 4 * (i - from + first) * k;
        for (let j = 0; j < n; j += most) {
          sgemm(false, false, Math.ceil((rows - first) / apart), Math.min(most, n - j), k, alpha, x, apart * k, b + 4 * j, ldb, beta, c + 4 * ((i + first) * ldc + j), apart * ldc);
        }
      }
    }
  }
}

/** The size of pieces as equal as may be, of at most `most` and whole multiples of `step`, as `most` is. */
function share(side: number, most: number, step: number): number {
  return Math.ceil(side / Math.ceil(side / most) / step) * step;
}

/** How far apart the rows of a piece are, so that each has a page to itself. */
function rowsApart(stride: number): number {
  return Math.min(MOST_APART, Math.ceil(PAGE / stride));
}
