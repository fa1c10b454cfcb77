// Single-precision matrix product, C = alpha op(A) op(B) + beta C, row-major with the conventions of CBLAS.
//
// The plain meaning, which every path below must agree with up to rounding:
//
//   for i < m, j < n:
//     s = sum over p < k of (transA ? A[p*lda + i] : A[i*lda + p]) * (transB ? B[j*ldb + p] : B[p*ldb + j])
//     C[i*ldc + j] = beta == 0 ? alpha * s : alpha * s + beta * C[i*ldc + j]
//
// Products with a few rows read B where it lies (`rowsTimesB`, `rowsTimesBt`). All others work in blocks: KC x NC of op(B)
// is packed into panels eight columns wide that stay in the L2 cache, and MR rows of alpha op(A), each number written four
// times over, into a panel that stays in L1; `tile` multiplies one panel of each. Packing deals with the transposes and
// fills up with zeros what the matrix lacks of a full panel, so that `tile` knows only full tiles.
// There is no state outside the caller's scratch area: threads may run this at once.

/** Rows of a tile. Fused multiply-adds need no register for the product, which leaves room for six rows. */
// @ts-ignore: decorator
@inline const MR: i32 = isDefined(RELAXED) ? 6 : 4;
/** Columns of a tile: two vectors. */
// @ts-ignore: decorator
@inline const NR: i32 = 8;
/** Depth of a block: a panel of A (16 bytes times MR times KC) and one of B (32 times KC) share the L1 cache. */
// @ts-ignore: decorator
@inline const KC: i32 = 192;
/** Columns of a block of B: with KC, 768 KiB of the L2 cache's MiB. */
// @ts-ignore: decorator
@inline const NC: i32 = 1024;
/** Steps that the loop of the plain `tile` takes at once; depths are filled up with zeros to a multiple of it. */
// @ts-ignore: decorator
@inline const UNROLL: i32 = 4;
/** Up to so many rows, packing B costs more than it saves. */
// @ts-ignore: decorator
@inline const FEW_ROWS: i32 = 3;

// @ts-ignore: decorator
@inline const PANEL_A: usize = <usize>(KC * MR * 16);
// @ts-ignore: decorator
@inline const PANELS_B: usize = <usize>(KC * NC * 4);
// @ts-ignore: decorator
@inline const SCRATCH: usize = PANEL_A + PANELS_B + <usize>(MR * NR * 4 + 32);

/** Bytes of scratch that each caller of `gemm` provides. */
export function gemmScratchBytes(): i32 { return <i32>SCRATCH; }

/** a * b + c; rounded once instead of twice where the engine has relaxed SIMD. */
// @ts-ignore: decorator
@inline function madd(a: v128, b: v128, c: v128): v128 {
  if (isDefined(RELAXED)) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** Two vectors of a finished row of a tile: `beta` times the old ones are added. No branch: see `tile6`. */
// @ts-ignore: decorator
@inline function finish(c: usize, old: usize, beta: v128, lo: v128, hi: v128): void {
  v128.store(c, madd(v128.load(old), beta, lo));
  v128.store(c, madd(v128.load(old, 16), beta, hi), 16);
}

/**
 * C (MR x NR, rows `ldc` bytes apart) = panel of A times panel of B + beta times the tile at `old`, rows `ldo` bytes apart:
 * C itself, or zeros where C must not be read.
 */
// @ts-ignore: decorator
@inline function tile(depth: i32, a: usize, b: usize, beta: f32, old: usize, ldo: usize, c: usize, ldc: usize): void {
  if (isDefined(RELAXED)) tile6(depth, a, b, beta, old, ldo, c, ldc);
  else tile4(depth, a, b, beta, old, ldo, c, ldc);
}

/**
 * Four rows. TurboFan orders the arithmetic of a basic block by its last use, so that an unrolled loop would add up one
 * accumulator after the other and spill most of what it loaded. The tests against negative depths, which never hold, end the
 * basic block after each step; a fused compare and branch costs less than the loop's own stack check and counters.
 */
function tile4(depth: i32, a: usize, b: usize, beta: f32, old: usize, ldo: usize, c: usize, ldc: usize): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00, c30 = c00, c31 = c00;
  const end = a + (<usize>depth << 6);
  let x: v128, b0: v128, b1: v128;
  while (a < end) {
    b0 = v128.load(b); b1 = v128.load(b, 16);
    x = v128.load(a); c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load(a, 16); c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load(a, 32); c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load(a, 48); c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    if (depth == -1) break;
    b0 = v128.load(b, 32); b1 = v128.load(b, 48);
    x = v128.load(a, 64); c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load(a, 80); c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load(a, 96); c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load(a, 112); c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    if (depth == -2) break;
    b0 = v128.load(b, 64); b1 = v128.load(b, 80);
    x = v128.load(a, 128); c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load(a, 144); c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load(a, 160); c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load(a, 176); c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    if (depth == -3) break;
    b0 = v128.load(b, 96); b1 = v128.load(b, 112);
    x = v128.load(a, 192); c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load(a, 208); c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load(a, 224); c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load(a, 240); c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    a += 64 * UNROLL;
    b += 32 * UNROLL;
  }
  const f = f32x4.splat(beta);
  finish(c, old, f, c00, c01);
  finish(c + ldc, old + ldo, f, c10, c11);
  finish(c + 2 * ldc, old + 2 * ldo, f, c20, c21);
  finish(c + 3 * ldc, old + 3 * ldo, f, c30, c31);
}

/**
 * Six rows, for fused multiply-adds: twelve accumulators, two vectors of B and one of A are all the registers there are. It
 * takes this order to keep them there: TurboFan places the loop's arithmetic by the order of its uses after the loop, and
 * finishing the first row first, or with branches, makes it load all of A before using any (20 GF/s instead of 50).
 */
function tile6(depth: i32, a: usize, b: usize, beta: f32, old: usize, ldo: usize, c: usize, ldc: usize): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00;
  let c30 = c00, c31 = c00, c40 = c00, c41 = c00, c50 = c00, c51 = c00;
  const end = b + (<usize>depth << 5);
  let x: v128;
  while (b < end) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    x = v128.load(a); c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load(a, 16); c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load(a, 32); c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load(a, 48); c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    x = v128.load(a, 64); c40 = madd(x, b0, c40); c41 = madd(x, b1, c41);
    x = v128.load(a, 80); c50 = madd(x, b0, c50); c51 = madd(x, b1, c51);
    a += 96;
    b += 32;
  }
  const f = f32x4.splat(beta);
  finish(c + 5 * ldc, old + 5 * ldo, f, c50, c51);
  finish(c + 4 * ldc, old + 4 * ldo, f, c40, c41);
  finish(c + 3 * ldc, old + 3 * ldo, f, c30, c31);
  finish(c + 2 * ldc, old + 2 * ldo, f, c20, c21);
  finish(c + ldc, old + ldo, f, c10, c11);
  finish(c, old, f, c00, c01);
}

/** C (rows x cols) = beta C + what the tile at `from` holds, for tiles that reach over the edge of C. */
function addEdge(from: usize, rows: i32, cols: i32, beta: f32, c: usize, ldc: usize): void {
  for (let i = 0; i < rows; i++, c += ldc, from += NR * 4) {
    for (let j: usize = 0; j < <usize>cols << 2; j += 4) {
      const s = load<f32>(from + j);
      store<f32>(c + j, beta == 0 ? s : s + beta * load<f32>(c + j));
    }
  }
}

/** Packs `rows` <= MR rows of alpha op(A), `depth` numbers each, as [padded][MR][4 equal numbers]. */
function packA(trans: i32, rows: i32, depth: i32, padded: i32, alpha: f32, a: usize, lda: usize, to: usize): void {
  if (rows < MR || depth < padded) memory.fill(to, 0, <usize>(padded * MR) << 4);
  const f = f32x4.splat(alpha);
  if (trans) {
    for (let p = 0; p < depth; p++, a += lda, to += MR * 16) {
      for (let i: usize = 0; i < <usize>rows; i++) v128.store(to + (i << 4), f32x4.mul(f, v128.load32_splat(a + (i << 2))));
    }
    return;
  }
  for (let i = 0; i < rows; i++, a += lda, to += 16) {
    let from = a, t = to, p = depth;
    for (; p >= 4; p -= 4, from += 16, t += MR * 64) {
      const v = f32x4.mul(f, v128.load(from));
      v128.store(t, v128.shuffle<f32>(v, v, 0, 0, 0, 0));
      v128.store(t, v128.shuffle<f32>(v, v, 1, 1, 1, 1), MR * 16);
      v128.store(t, v128.shuffle<f32>(v, v, 2, 2, 2, 2), MR * 32);
      v128.store(t, v128.shuffle<f32>(v, v, 3, 3, 3, 3), MR * 48);
    }
    for (; p > 0; p--, from += 4, t += MR * 16) v128.store(t, f32x4.mul(f, v128.load32_splat(from)));
  }
}

/** One number of op(B) after the other, for the parts of a panel that no vector path covers. */
function packBEdge(p0: i32, p1: i32, cols: i32, b: usize, stepP: usize, stepJ: usize, to: usize): void {
  for (let p = p0; p < p1; p++) {
    for (let j = 0; j < cols; j++) {
      store<f32>(to + (<usize>(p * NR + j) << 2), load<f32>(b + <usize>p * stepP + <usize>j * stepJ));
    }
  }
}

/** Packs a block of B that is not transposed as panels of [padded][NR]. Four rows at a time: whole cache lines are written. */
function packB(cols: i32, depth: i32, padded: i32, b: usize, ldb: usize, to: usize): void {
  const panel = <usize>padded << 5;
  const whole = cols & ~(NR - 1);
  for (let p = 0; p + 4 <= depth; p += 4) {
    let r0 = b + <usize>p * ldb, t = to + (<usize>p << 5);
    for (let j = 0; j < whole; j += NR, r0 += 32, t += panel) {
      const r1 = r0 + ldb, r2 = r1 + ldb, r3 = r2 + ldb;
      v128.store(t, v128.load(r0)); v128.store(t, v128.load(r0, 16), 16);
      v128.store(t, v128.load(r1), 32); v128.store(t, v128.load(r1, 16), 48);
      v128.store(t, v128.load(r2), 64); v128.store(t, v128.load(r2, 16), 80);
      v128.store(t, v128.load(r3), 96); v128.store(t, v128.load(r3, 16), 112);
    }
  }
  for (let j = 0; j < whole; j += NR, b += 32, to += panel) packBEdge(depth & ~3, depth, NR, b, ldb, 4, to);
  if (whole < cols) packBEdge(0, depth, cols - whole, b, ldb, 4, to);
}

/** Four rows of four numbers, `from` bytes apart, as columns `to` bytes apart, to which `beta` times what was there is added. */
// @ts-ignore: decorator
@inline function transpose4(p: usize, from: usize, q: usize, to: usize, beta: f32): void {
  const r0 = v128.load(p), r1 = v128.load(p + from), r2 = v128.load(p + 2 * from), r3 = v128.load(p + 3 * from);
  const x = v128.shuffle<f32>(r0, r1, 0, 4, 1, 5), y = v128.shuffle<f32>(r2, r3, 0, 4, 1, 5);
  const z = v128.shuffle<f32>(r0, r1, 2, 6, 3, 7), w = v128.shuffle<f32>(r2, r3, 2, 6, 3, 7);
  storeAdded(q, v128.shuffle<f64>(x, y, 0, 2), beta);
  storeAdded(q + to, v128.shuffle<f64>(x, y, 1, 3), beta);
  storeAdded(q + 2 * to, v128.shuffle<f64>(z, w, 0, 2), beta);
  storeAdded(q + 3 * to, v128.shuffle<f64>(z, w, 1, 3), beta);
}

// @ts-ignore: decorator
@inline function storeAdded(q: usize, v: v128, beta: f32): void {
  v128.store(q, beta == 0 ? v : f32x4.add(v, f32x4.mul(f32x4.splat(beta), v128.load(q))));
}

/** Packs a block of a transposed B, whose rows are columns of op(B), as panels of [padded][NR]. */
function packBt(cols: i32, depth: i32, padded: i32, b: usize, ldb: usize, to: usize): void {
  for (let j = 0; j < cols; j += NR, b += ldb * NR, to += <usize>padded << 5) {
    let p = 0;
    if (cols - j >= NR) {
      for (let from = b, t = to; p + 4 <= depth; p += 4, from += 16, t += 128) {
        transpose4(from, ldb, t, 32, 0);
        transpose4(from + 4 * ldb, ldb, t + 16, 32, 0);
      }
    }
    packBEdge(p, depth, min(NR, cols - j), b, 4, ldb, to);
  }
}

/** C = beta C, without reading C for beta 0. */
function scaleC(m: i32, n: i32, beta: f32, c: usize, ldc: usize): void {
  if (beta == 1) return;
  for (let i = 0; i < m; i++, c += ldc) {
    if (beta == 0) memory.fill(c, 0, <usize>n << 2);
    else for (let j: usize = 0; j < <usize>n << 2; j += 4) store<f32>(c + j, beta * load<f32>(c + j));
  }
}

/** C += alpha op(A) B for few rows: eight rows of B at a time are added up into each row of C. */
function rowsTimesB(m: i32, n: i32, k: i32, alpha: f32, a: usize, rowA: usize, stepA: usize, b: usize, ldb: usize, c: usize, ldc: usize): void {
  const vectors = <usize>(n & ~3) << 2, bytes = <usize>n << 2;
  const f = f32x4.splat(alpha);
  let p = 0;
  for (; p + 8 <= k; p += 8, a += 8 * stepA, b += 8 * ldb) {
    for (let i = 0; i < m; i++) {
      const s = a + <usize>i * rowA, row = c + <usize>i * ldc;
      const x0 = f32x4.mul(f, v128.load32_splat(s)), x1 = f32x4.mul(f, v128.load32_splat(s + stepA));
      const x2 = f32x4.mul(f, v128.load32_splat(s + 2 * stepA)), x3 = f32x4.mul(f, v128.load32_splat(s + 3 * stepA));
      const x4 = f32x4.mul(f, v128.load32_splat(s + 4 * stepA)), x5 = f32x4.mul(f, v128.load32_splat(s + 5 * stepA));
      const x6 = f32x4.mul(f, v128.load32_splat(s + 6 * stepA)), x7 = f32x4.mul(f, v128.load32_splat(s + 7 * stepA));
      for (let j: usize = 0; j < vectors; j += 16) {
        let q = b + j;
        let u = madd(x0, v128.load(q), v128.load(row + j)), v = f32x4.mul(x1, v128.load(q += ldb));
        u = madd(x2, v128.load(q += ldb), u); v = madd(x3, v128.load(q += ldb), v);
        u = madd(x4, v128.load(q += ldb), u); v = madd(x5, v128.load(q += ldb), v);
        u = madd(x6, v128.load(q += ldb), u); v = madd(x7, v128.load(q += ldb), v);
        v128.store(row + j, f32x4.add(u, v));
      }
    }
    if (vectors < bytes) rowsEdge(m, 8, vectors, bytes, alpha, a, rowA, stepA, b, ldb, c, ldc);
  }
  rowsEdge(m, k - p, 0, bytes, alpha, a, rowA, stepA, b, ldb, c, ldc);
}

/** The same one number at a time, for the columns from byte `from` to byte `to`. */
function rowsEdge(m: i32, k: i32, from: usize, to: usize, alpha: f32, a: usize, rowA: usize, stepA: usize, b: usize, ldb: usize, c: usize, ldc: usize): void {
  for (let i = 0; i < m; i++, a += rowA, c += ldc) {
    for (let p: usize = 0; p < <usize>k; p++) {
      const x = alpha * load<f32>(a + p * stepA);
      for (let j = from; j < to; j += 4) store<f32>(c + j, load<f32>(c + j) + x * load<f32>(b + p * ldb + j));
    }
  }
}

/** One row: C += alpha a B', where the rows of the stored B are dotted with the k numbers at a, four rows at a time. */
function rowTimesBt(n: i32, k: i32, alpha: f32, a: usize, b: usize, ldb: usize, c: usize): void {
  const vectors = <usize>(k & ~3) << 2, bytes = <usize>k << 2;
  for (let j = 0; j < n; j += 4, b += 4 * ldb, c += 16) {
    // Rows past the last one repeat it; their sums are not stored.
    const b1 = b + (j + 1 < n ? ldb : 0), b2 = b1 + (j + 2 < n ? ldb : 0), b3 = b2 + (j + 3 < n ? ldb : 0);
    let s0 = f32x4.splat(0), s1 = s0, s2 = s0, s3 = s0;
    let p: usize = 0;
    for (; p < vectors; p += 16) {
      const x = v128.load(a + p);
      s0 = madd(x, v128.load(b + p), s0); s1 = madd(x, v128.load(b1 + p), s1);
      s2 = madd(x, v128.load(b2 + p), s2); s3 = madd(x, v128.load(b3 + p), s3);
    }
    for (; p < bytes; p += 4) {
      const x = v128.load32_zero(a + p);
      s0 = madd(x, v128.load32_zero(b + p), s0); s1 = madd(x, v128.load32_zero(b1 + p), s1);
      s2 = madd(x, v128.load32_zero(b2 + p), s2); s3 = madd(x, v128.load32_zero(b3 + p), s3);
    }
    addSum(c, alpha, s0);
    if (j + 1 < n) addSum(c + 4, alpha, s1);
    if (j + 2 < n) addSum(c + 8, alpha, s2);
    if (j + 3 < n) addSum(c + 12, alpha, s3);
  }
}

// @ts-ignore: decorator
@inline function addSum(c: usize, alpha: f32, s: v128): void {
  s = f32x4.add(s, v128.shuffle<f32>(s, s, 2, 3, 0, 1));
  store<f32>(c, load<f32>(c) + alpha * (f32x4.extract_lane(s, 0) + f32x4.extract_lane(s, 1)));
}

/** C = alpha op(A) op(B) + beta C; strides count elements, `scratch` is gemmScratchBytes() of the caller's own. */
export function gemm(transA: i32, transB: i32, m: i32, n: i32, k: i32, alpha: f32, a: usize, lda: i32, b: usize, ldb: i32,
  beta: f32, c: usize, ldc: i32, scratch: usize): void {
  if (m <= 0 || n <= 0) return;
  const bytesA = <usize>lda << 2, bytesB = <usize>ldb << 2, bytesC = <usize>ldc << 2;
  if (k <= 0 || alpha == 0) return scaleC(m, n, beta, c, bytesC);
  const rowA = transA ? <usize>4 : bytesA, stepA = transA ? bytesA : <usize>4;

  if (m <= FEW_ROWS && !transB) {
    scaleC(m, n, beta, c, bytesC);
    return rowsTimesB(m, n, k, alpha, a, rowA, stepA, b, bytesB, c, bytesC);
  }
  if (m <= FEW_ROWS && (!transA || <usize>k << 2 <= SCRATCH)) {
    scaleC(m, n, beta, c, bytesC);
    for (let i = 0; i < m; i++, a += rowA, c += bytesC) {
      if (transA) for (let p: usize = 0; p < <usize>k; p++) store<f32>(scratch + (p << 2), load<f32>(a + p * stepA));
      rowTimesBt(n, k, alpha, transA ? scratch : a, b, bytesB, c);
    }
    return;
  }

  const panelsB = scratch + PANEL_A, edge = panelsB + PANELS_B, zeros = edge + MR * NR * 4;
  memory.fill(zeros, 0, 32);
  const colB = transB ? bytesB : <usize>4, stepB = transB ? <usize>4 : bytesB;
  for (let j0 = 0; j0 < n; j0 += NC) {
    const cols = min(NC, n - j0);
    for (let p0 = 0; p0 < k; p0 += KC) {
      const depth = min(KC, k - p0);
      const padded = (depth + UNROLL - 1) & -UNROLL;
      const keep: f32 = p0 ? 1 : beta;
      const blockB = b + <usize>j0 * colB + <usize>p0 * stepB;
      if (depth < padded || (cols & (NR - 1))) memory.fill(panelsB, 0, <usize>(((cols + NR - 1) & -NR) * padded) << 2);
      if (transB) packBt(cols, depth, padded, blockB, bytesB, panelsB);
      else packB(cols, depth, padded, blockB, bytesB, panelsB);
      for (let i = 0; i < m; i += MR) {
        const rows = min(MR, m - i);
        packA(transA, rows, depth, padded, alpha, a + <usize>i * rowA + <usize>p0 * stepA, bytesA, scratch);
        let to = c + <usize>i * bytesC + (<usize>j0 << 2), panel = panelsB;
        for (let j = 0; j < cols; j += NR, to += 32, panel += <usize>padded << 5) {
          if (rows == MR && cols - j >= NR) {
            tile(padded, scratch, panel, keep, keep == 0 ? zeros : to, keep == 0 ? 0 : bytesC, to, bytesC);
          } else {
            tile(padded, scratch, panel, 0, zeros, 0, edge, NR * 4);
            addEdge(edge, rows, min(NR, cols - j), keep, to, bytesC);
          }
        }
      }
    }
  }
}

/** C = max(C, 0) for a block of m x n, rows `ldc` numbers apart: what follows a product while it is in the cache. NaN stays NaN. */
export function reluBlock(c: usize, ldc: i32, m: i32, n: i32): void {
  const zero = f32x4.splat(0);
  for (let i = 0; i < m; i++, c += (<usize>ldc) << 2) {
    let j = 0;
    for (; j <= n - 4; j += 4) v128.store(c + ((<usize>j) << 2), f32x4.max(v128.load(c + ((<usize>j) << 2)), zero));
    for (; j < n; j++) {
      const at = c + ((<usize>j) << 2);
      store<f32>(at, max<f32>(load<f32>(at), 0));
    }
  }
}

/** C = 0 where the block at `mask`, laid out as C, is not above 0: the gradient of relu. */
export function maskBlock(c: usize, mask: usize, ldc: i32, m: i32, n: i32): void {
  const zero = f32x4.splat(0);
  for (let i = 0; i < m; i++, c += (<usize>ldc) << 2, mask += (<usize>ldc) << 2) {
    let j = 0;
    for (; j <= n - 4; j += 4) {
      const at = (<usize>j) << 2;
      v128.store(c + at, v128.and(v128.load(c + at), f32x4.gt(v128.load(mask + at), zero)));
    }
    for (; j < n; j++) {
      const at = (<usize>j) << 2;
      if (!(load<f32>(mask + at) > 0)) store<f32>(c + at, 0);
    }
  }
}

/**
 * dst[j][i] = src[i][j] + beta dst[j][i] for i < rows, j < cols; strides count elements. With beta 0 what was in dst is not read. Eight columns at a time, so
 * that lines of src and of dst are near until they are done with.
 */
export function transposeBlock(src: usize, srcStride: i32, rows: i32, cols: i32, dst: usize, dstStride: i32, beta: f32): void {
  const from = <usize>srcStride << 2, to = <usize>dstStride << 2;
  let j = 0;
  for (; j + 8 <= cols; j += 8) {
    let p = src + (<usize>j << 2), q = dst + to * <usize>j, i = 0;
    for (; i + 4 <= rows; i += 4) {
      transpose4(p, from, q, to, beta);
      transpose4(p + 16, from, q + 4 * to, to, beta);
      p += 4 * from;
      q += 16;
    }
    for (; i < rows; i++) {
      for (let l = 0; l < 8; l++) storeScaled(q + to * <usize>l, load<f32>(p + (<usize>l << 2)), beta);
      p += from;
      q += 4;
    }
  }
  for (; j < cols; j++) {
    let p = src + (<usize>j << 2), q = dst + to * <usize>j;
    for (let i = 0; i < rows; i++) {
      storeScaled(q, load<f32>(p), beta);
      p += from;
      q += 4;
    }
  }
}

// @ts-ignore: decorator
@inline function storeScaled(q: usize, value: f32, beta: f32): void { store<f32>(q, beta == 0 ? value : value + beta * load<f32>(q)); }
