/** Matrix products, alone, batched and grouped, and biases by group. */

import { blank, blankInts, CaseList, Draw, sumOf } from "./list.js";

const draw = new Draw(1702);
export const products = new CaseList();
const { add, worked } = products;

// ---- matrix products --------------------------------------------------------------------------------------------------
for (const [m, n, k] of [[1, 1, 1], [1, 5, 3], [3, 4, 5], [5, 17, 4], [4, 4, 64], [17, 3, 100], [64, 100, 17], [33, 1, 40], [2, 3, 0], [130, 170, 90]] as const) {
  for (const [transA, transB] of [[false, false], [false, true], [true, false], [true, true]] as const) {
    for (const [alpha, beta, more] of [[1, 0, 0], [0.5, 1, 3], [-1.5, 0.25, 1]] as const) {
      const [rowsA, colsA] = transA ? [k, m] : [m, k];
      const [rowsB, colsB] = transB ? [n, k] : [k, n];
      const [lda, ldb, ldc] = [Math.max(colsA, 1) + more, Math.max(colsB, 1) + more, n + more];
      const label = `${m}×${n}×${k}${transA ? " Aᵀ" : ""}${transB ? " Bᵀ" : ""}, alpha ${alpha}, beta ${beta}, rows ${more} apart`;
      // beta 0 must not read C, so that NaN in it is gone.
      const c = beta === 0 ? new Float64Array(m * ldc).fill(NaN) : draw.floats(m * ldc);
      add("gemm", label, { a: draw.floats(rowsA * lda), b: draw.floats(rowsB * ldb), c }, (kernels, { a, b, c }) =>
        kernels.gemm(transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), { c: sumOf(k) });
      for (const shareB of [false, true]) {
        const buffers = { a: draw.floats(3 * rowsA * lda), b: draw.floats((shareB ? 1 : 3) * rowsB * ldb), c: draw.floats(3 * m * ldc) };
        add("gemmBatched", `3 of ${label}${shareB ? ", B shared" : ""}`, buffers, (kernels, { a, b, c }) =>
          kernels.gemmBatched(3, transA, transB, m, n, k, alpha, a, lda, rowsA * lda, b, ldb, shareB ? 0 : rowsB * ldb, beta, c, ldc, m * ldc), { c: sumOf(k) });
      }
    }
  }
}
const withNaN = draw.floats(20).with(7, NaN);
add("gemm", "NaN spoils its row and no other", { a: withNaN, b: draw.floats(30), c: blank(24) }, (kernels, { a, b, c }) =>
  kernels.gemm(false, false, 4, 6, 5, 1, a, 5, b, 6, 0, c, 6), { c: sumOf(5) });

for (const [groups, rows, p, q] of [[1, 1, 1, 1], [3, 4, 5, 3], [4, 17, 4, 4], [7, 5, 17, 5], [5, 100, 17, 64], [6, 300, 65, 70], [3, 0, 4, 5]] as const) {
  const offsets = draw.offsets(groups, rows);
  // Three rows more than the groups have. Of them groupedGemm is told two, which become zero (groupedBias: stay as in x); the last is left alone.
  const all = rows + 3;
  const label = `${groups} groups over ${rows} rows, ${p}×${q}`;
  for (const transW of [false, true]) {
    const operands = { offsets, x: draw.floats(all * p), w: draw.floats(groups * p * q), y: blank(all * q) };
    for (const m of [rows, rows + 2]) {
      add("groupedGemm", `${label} of ${m}${transW ? ", wᵀ" : ""}`, operands, (b, { offsets, x, w, y }) => b.groupedGemm(offsets, groups, m, x, w, transW, y, p, q), { y: sumOf(p) });
    }
  }
  for (const accumulate of [false, true]) {
    const before = Int32Array.from({ length: groups }, (_, e) => (e % 2 === 0 ? e : -1));
    add("groupedGemmWeight", `${label}${accumulate ? ", accumulating" : ""}`,
      { offsets, x: draw.floats(all * p), dy: draw.floats(all * q), dw: draw.floats(groups * p * q), touched: before },
      (b, { offsets, x, dy, dw, touched }) => b.groupedGemmWeight(offsets, groups, x, dy, dw, touched, p, q, accumulate), { dw: sumOf(rows) });
  }
  const width = q;
  for (const m of [rows, rows + 2]) {
    add("groupedBias", `${label} of ${m}`, { offsets, x: draw.floats(all * width), bias: draw.floats(groups * width), y: blank(all * width) },
      (b, { offsets, x, bias, y }) => b.groupedBias(offsets, groups, m, x, bias, y, width));
    add("groupedBias", `${label} of ${m}, in place`, { offsets, x: draw.floats(all * width), bias: draw.floats(groups * width) },
      (b, { offsets, x, bias }) => b.groupedBias(offsets, groups, m, x, bias, x, width));
    add("zeroTail", `${label} of ${m}`, { offsets, x: draw.floats(all * width) }, (b, { offsets, x }) => b.zeroTail(offsets, groups, m, x, width));
  }
  add("groupedBiasGrad", label, { offsets, dy: draw.floats(all * width), dBias: blank(groups * width), touched: blankInts(groups) },
    (b, { offsets, dy, dBias, touched }) => b.groupedBiasGrad(offsets, groups, dy, dBias, touched, width), { dBias: sumOf(rows) });
}

// ---- worked by hand -------------------------------------------------------------------------------------------------------------
worked("groupedGemm multiplies each group by its own matrix, and gives zeros to rows of no group",
  { offsets: Int32Array.of(0, 1, 1, 2), x: Float64Array.of(1, 2, 3, 4, 5, 6, 7, 8), w: Float64Array.of(1, 10, 7, 7, 2, 20), y: blank(4) },
  (b, { offsets, x, w, y }) => b.groupedGemm(offsets, 3, 3, x, w, false, y, 2, 1),
  // (1, 2)·(1, 10) = 21; the second group has no row; (3, 4)·(2, 20) = 86; row 2 belongs to none, and row 3 is not among the 3.
  { y: [21, 86, 0, 7.25] });
worked("groupedBias adds each group's own bias, and leaves rows of no group as they are",
  { offsets: Int32Array.of(0, 1, 1, 2), x: Float64Array.of(1, 2, 3, 4), bias: Float64Array.of(10, 20, 30), y: blank(4) },
  (b, { offsets, x, bias, y }) => b.groupedBias(offsets, 3, 3, x, bias, y, 1),
  { y: [11, 32, 3, 7.25] });
worked("zeroTail zeroes the rows of no group, and no more", { offsets: Int32Array.of(0, 1, 1), x: Float64Array.of(1, 2, 3, 4, 5, 6, 7, 8) },
  (b, { offsets, x }) => b.zeroTail(offsets, 2, 3, x, 2),
  { x: [1, 2, 0, 0, 0, 0, 7, 8] });
