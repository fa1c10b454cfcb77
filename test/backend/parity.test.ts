/**
 * Every kernel of the CPU backend against the float64 reference, in every configuration: with and without BLAS, one thread and two, relaxed SIMD, private memory.
 * All buffers are compared after each call, inputs and canaries around them too, so a kernel that writes where it should not is found.
 * Over 500 lines, as it is one list: a short paragraph for each kernel, in the order of the interface.
 */

import { afterAll, describe, expect, it } from "vitest";
import { BINARY_OPS, UNARY_OPS, type AdamSettings, type Backend, type Buf, type UnaryOp } from "#sparsegate/backend/backend.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import {
  blank, blankInts, configurations, differences, disagreements, Draw, kernelCase, MEMORY_METHODS, outcome, sumOf, type Case, type Data, type Kernel,
} from "./helpers.js";

/** Below, on and beside the SIMD widths of 4 and 16; the last is cut among threads. */
const SIZES = [1, 3, 4, 5, 17, 64, 100, 40_001];
/** Rows × columns, likewise. */
const SHAPES = [[1, 1], [1, 5], [3, 4], [5, 17], [4, 64], [17, 3], [7, 100], [64, 1001]] as const;

const draw = new Draw(1701);
const cases: Case[] = [];
const add: typeof kernelCase = (...args) => {
  const made = kernelCase(...args);
  cases.push(made);
  return made;
};
/** What the reference computes, as input of a later kernel; rounded to float32 so that both backends start from the same. */
function computed<Name extends string>(buffers: Record<Name, Data>, run: (b: Backend, m: Record<Name, Buf>) => void): Record<Name, Data> {
  const backend = new ReferenceBackend();
  const bufs = {} as Record<Name, Buf>;
  for (const [name, data] of Object.entries<Data>(buffers)) {
    const buf = backend.alloc(data instanceof Float64Array ? "float32" : "int32", data.length);
    backend.write(buf, data);
    bufs[name as Name] = buf;
  }
  run(backend, bufs);
  const rounded = (data: Data): Data => (data instanceof Float64Array ? data.map(Math.fround) : data);
  return Object.fromEntries(Object.entries<Buf>(bufs).map(([name, buf]) => [name, rounded(backend.readSync(buf) as Data)])) as Record<Name, Data>;
}
const IDENTITY = (n: number) => ({ div: 1, mod: n });

// ---- memory ---------------------------------------------------------------------------------------------------------
for (const n of SIZES) {
  add("copy", `${n}`, { x: draw.floats(n), y: blank(n) }, (b, { x, y }) => b.copy(x, y, n));
  add("copy", `${n} integers`, { x: draw.ints(n, -(2 ** 31), 2 ** 31), y: blankInts(n) }, (b, { x, y }) => b.copy(x, y, n));
  add("copy", `all but one of ${n}`, { x: draw.floats(n), y: blank(n) }, (b, { x, y }) => b.copy(x, y, n - 1));
  add("fill", `${n}`, { y: blank(n) }, (b, { y }) => b.fill(y, -0.75, n));
  add("fill", `${n} integers`, { y: blankInts(n) }, (b, { y }) => b.fill(y, -123_456_789, n));
}

// ---- elementwise ------------------------------------------------------------------------------------------------------
const DOMAINS: Partial<Record<UnaryOp, [number, number]>> = { exp: [-20, 20], log: [1e-3, 50], sqrt: [1e-3, 50], reciprocal: [0.1, 2], square: [-9, 9] };
/** Edges of the domain and NaN, which must stay NaN. The derivative is not asked there. */
const EDGES: Partial<Record<UnaryOp, number[]>> = { exp: [-120, 100, 0, -Infinity, NaN], log: [0, -1, 1, Infinity, NaN], sqrt: [0, -1, Infinity, NaN], reciprocal: [-0.5, 0, Infinity, NaN] };
/** Where a result of any size is wanted to seven digits, not only next to 1. */
const RELATIVE: readonly UnaryOp[] = ["neg", "exp", "sqrt", "square", "relu", "abs", "reciprocal"];
for (const op of UNARY_OPS) {
  const [low, high] = DOMAINS[op] ?? [-6, 6];
  const scale = RELATIVE.includes(op) ? 1e-30 : 1;
  for (const n of SIZES) {
    const x = draw.floats(n, low, high);
    add("unary", `${op} of ${n}`, { x, y: blank(n) }, (b, { x, y }) => b.unary(op, x, y, n), { y: scale });
    add("unary", `${op} of ${n} in place`, { x }, (b, { x }) => b.unary(op, x, x, n), { x: scale });
    const { y } = computed({ x, y: blank(n) }, (b, m) => b.unary(op, m.x, m.y, n));
    add("unaryGrad", `${op} of ${n}`, { x, y, dy: draw.floats(n), dx: blank(n) }, (b, { x, y, dy, dx }) => b.unaryGrad(op, x, y, dy, dx, n));
    add("unaryGrad", `${op} of ${n}, dx = dy`, { x, y, dy: draw.floats(n) }, (b, { x, y, dy }) => b.unaryGrad(op, x, y, dy, dy, n));
  }
  const edges = Float64Array.from(EDGES[op] ?? [0, 30, -30, 90, -90, NaN, 1]);
  add("unary", `${op} at its edges`, { x: edges, y: blank(edges.length) }, (b, { x, y }) => b.unary(op, x, y, edges.length), { y: scale });
}
for (const op of BINARY_OPS) {
  for (const [r, c] of SHAPES) {
    const n = r * c;
    const spreads = { "the same shape": [n, IDENTITY(n)], "a row": [c, { div: 1, mod: c }], "a column": [r, { div: c, mod: r }], "a scalar": [1, { div: 1, mod: 1 }] } as const;
    for (const [name, [length, spread]] of Object.entries(spreads)) {
      // Away from 0, for the sake of division; of both signs.
      const second = draw.floats(length, 0.3, 2).map((v, i) => (i % 3 === 0 ? -v : v));
      const first = draw.floats(n, 0.3, 2);
      add("binary", `${r}×${c} ${op} ${name}`, { a: first, b: second, out: blank(n) }, (k, { a, b, out }) => k.binary(op, a, IDENTITY(n), b, spread, out, n));
      add("binary", `${name} ${op} ${r}×${c}`, { a: second, b: first, out: blank(n) }, (k, { a, b, out }) => k.binary(op, a, spread, b, IDENTITY(n), out, n));
      add("binary", `${r}×${c} ${op} ${name} in place`, { a: first, b: second }, (k, { a, b }) => k.binary(op, a, IDENTITY(n), b, spread, a, n));
    }
    add("binary", `column ${op} row, ${r}×${c}`, { a: draw.floats(r, 1, 2), b: draw.floats(c, 1, 2), out: blank(n) },
      (k, { a, b, out }) => k.binary(op, a, { div: c, mod: r }, b, { div: 1, mod: c }, out, n));
  }
  const [a, b] = [Float64Array.of(NaN, 1, NaN, 1, -0, 1, 2), Float64Array.of(1, NaN, NaN, 2, 1, -1, 1)];
  add("binary", `${op} of NaN on either side`, { a, b, out: blank(7) }, (k, { a, b, out }) => k.binary(op, a, IDENTITY(7), b, IDENTITY(7), out, 7));
}
for (const n of SIZES) {
  add("affine", `${n}`, { x: draw.floats(n), y: blank(n) }, (b, { x, y }) => b.affine(x, 1.7, -0.3, y, n));
  add("affine", `${n} in place`, { x: draw.floats(n) }, (b, { x }) => b.affine(x, -0.7, 0, x, n));
  add("axpy", `${n}`, { x: draw.floats(n), y: draw.floats(n) }, (b, { x, y }) => b.axpy(-1.3, x, y, n));
}
for (const [r, c] of SHAPES) {
  const n = r * c;
  const sums = { "to one": { div: 1, mod: 1 }, "over rows": { div: 1, mod: c }, "over columns": { div: c, mod: r }, "not at all": IDENTITY(n) };
  for (const [name, spread] of Object.entries(sums)) {
    add("spreadSum", `${r}×${c} ${name}`, { x: draw.floats(n), out: blank(spread.mod) }, (b, { x, out }) => b.spreadSum(x, spread, 0.5, out, n), { out: sumOf(n / spread.mod) });
  }
  const threefold = { x: draw.floats(3 * n), out: blank(r) };
  add("spreadSum", `3×${r}×${c} to its middle axis`, threefold, (b, { x, out }) => b.spreadSum(x, { div: c, mod: r }, 1, out, 3 * n), { out: sumOf(3 * c) });

  add("stridedCopy", `${r}×${c} transposed`, { x: draw.floats(n), y: blank(n) }, (b, { x, y }) => b.stridedCopy([r, c], x, [c, 1], y, [1, r]));
  add("stridedCopy", `a row spread over ${r}×${c}`, { x: draw.floats(c), y: blank(n) }, (b, { x, y }) => b.stridedCopy([r, c], x, [0, 1], y, [c, 1]));
  add("stridedCopy", `a column spread over ${r}×${c}`, { x: draw.floats(r), y: blank(n) }, (b, { x, y }) => b.stridedCopy([r, c], x, [1, 0], y, [c, 1]));
  add("stridedCopy", `${r}×${c} into columns of a wider matrix`, { x: draw.floats(n), y: blank(r * (c + 3)) }, (b, { x, y }) => b.stridedCopy([r, c], x, [c, 1], y.at(2), [c + 3, 1]));
  add("stridedAdd", `${r}×${c}`, { x: draw.floats(n), y: draw.floats(n) }, (b, { x, y }) => b.stridedAdd([r, c], x, [c, 1], y, [c, 1]));
  add("stridedAdd", `${r}×${c} transposed`, { x: draw.floats(n), y: draw.floats(n) }, (b, { x, y }) => b.stridedAdd([r, c], x, [c, 1], y, [1, r]));
  add("stridedAdd", `${r}×${c} summed over rows`, { x: draw.floats(n), y: draw.floats(c) }, (b, { x, y }) => b.stridedAdd([r, c], x, [c, 1], y, [0, 1]), { y: sumOf(r) });
  add("stridedAdd", `${r}×${c} summed over columns`, { x: draw.floats(n), y: draw.floats(r) }, (b, { x, y }) => b.stridedAdd([r, c], x, [c, 1], y, [1, 0]), { y: sumOf(c) });
}
add("stridedCopy", "six axes reversed", { x: draw.floats(720), y: blank(720) }, (b, { x, y }) => b.stridedCopy([1, 2, 3, 4, 5, 6], x, [720, 360, 120, 30, 6, 1], y, [1, 1, 2, 6, 24, 120]));
add("stridedCopy", "no axes", { x: draw.floats(1), y: blank(1) }, (b, { x, y }) => b.stridedCopy([], x, [], y, []));
add("stridedCopy", "an empty axis", { x: draw.floats(4), y: blank(4) }, (b, { x, y }) => b.stridedCopy([2, 0], x, [2, 1], y, [2, 1]));
add("stridedCopy", "integers", { x: draw.ints(35, -(2 ** 31), 2 ** 31), y: blankInts(35) }, (b, { x, y }) => b.stridedCopy([5, 7], x, [7, 1], y, [1, 5]));
add("stridedAdd", "no axes", { x: draw.floats(1), y: draw.floats(1) }, (b, { x, y }) => b.stridedAdd([], x, [], y, []));
add("stridedAdd", "to one element", { x: draw.floats(60), y: draw.floats(1) }, (b, { x, y }) => b.stridedAdd([3, 4, 5], x, [20, 5, 1], y, [0, 0, 0]), { y: sumOf(60) });

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
  // Two rows more than the groups have: they are left alone.
  const all = rows + 2;
  const label = `${groups} groups over ${rows} rows, ${p}×${q}`;
  for (const transW of [false, true]) {
    add("groupedGemm", `${label}${transW ? ", wᵀ" : ""}`, { offsets, x: draw.floats(all * p), w: draw.floats(groups * p * q), y: blank(all * q) },
      (b, { offsets, x, w, y }) => b.groupedGemm(offsets, groups, x, w, transW, y, p, q), { y: sumOf(p) });
  }
  for (const accumulate of [false, true]) {
    const before = Int32Array.from({ length: groups }, (_, e) => (e % 2 === 0 ? e : -1));
    add("groupedGemmWeight", `${label}${accumulate ? ", accumulating" : ""}`,
      { offsets, x: draw.floats(all * p), dy: draw.floats(all * q), dw: draw.floats(groups * p * q), touched: before },
      (b, { offsets, x, dy, dw, touched }) => b.groupedGemmWeight(offsets, groups, x, dy, dw, touched, p, q, accumulate), { dw: sumOf(rows) });
  }
  const width = q;
  add("groupedBias", label, { offsets, x: draw.floats(all * width), bias: draw.floats(groups * width), y: blank(all * width) },
    (b, { offsets, x, bias, y }) => b.groupedBias(offsets, groups, x, bias, y, width));
  add("groupedBias", `${label} in place`, { offsets, x: draw.floats(all * width), bias: draw.floats(groups * width) },
    (b, { offsets, x, bias }) => b.groupedBias(offsets, groups, x, bias, x, width));
  add("groupedBiasGrad", label, { offsets, dy: draw.floats(all * width), dBias: blank(groups * width), touched: blankInts(groups) },
    (b, { offsets, dy, dBias, touched }) => b.groupedBiasGrad(offsets, groups, dy, dBias, touched, width), { dBias: sumOf(rows) });
}

// ---- rows ---------------------------------------------------------------------------------------------------------------
for (const [rows, width] of SHAPES) {
  const n = rows;
  const label = `${rows}×${width}`;
  add("gatherRows", label, { src: draw.floats(rows * width), index: draw.ints(2 * rows, -1, rows), out: blank(2 * rows * width) },
    (b, { src, index, out }) => b.gatherRows(src, index, out, 2 * rows, width));
  for (const k of [1, 2, 4]) {
    const position = draw.distinct(n * k, 5);
    const operands = () => ({ src: draw.floats(n * k * width), position, weights: draw.floats(n * k) });
    add("combineRows", `${label}, ${k} a row`, { ...operands(), y: blank(n * width) }, (b, { src, position, weights, y }) => b.combineRows(src, position, weights, y, n, k, width), { y: sumOf(k) });
    add("combineRows", `${label}, ${k} a row, no weights`, { ...operands(), y: blank(n * width) }, (b, { src, position, y }) => b.combineRows(src, position, null, y, n, k, width), { y: sumOf(k) });
    const grad = { ...operands(), dy: draw.floats(n * width), dSrc: blank(n * k * width), dWeights: blank(n * k) };
    const scale = { dWeights: sumOf(width) };
    add("combineRowsGrad", `${label}, ${k} a row`, grad, (b, m) => b.combineRowsGrad(m.src, m.position, m.weights, m.dy, m.dSrc, m.dWeights, n, k, width), scale);
    add("combineRowsGrad", `${label}, ${k} a row, of src`, grad, (b, m) => b.combineRowsGrad(m.src, m.position, m.weights, m.dy, m.dSrc, null, n, k, width));
    add("combineRowsGrad", `${label}, ${k} a row, of weights`, grad, (b, m) => b.combineRowsGrad(m.src, m.position, m.weights, m.dy, null, m.dWeights, n, k, width), scale);
    add("gatherLast", `${label}, ${k} a row`, { src: draw.floats(rows * width), index: draw.ints(rows * k, -1, width), out: blank(rows * k) },
      (b, { src, index, out }) => b.gatherLast(src, index, out, rows, width, k));
    add("scatterAddLast", `${label}, ${k} a row`, { src: draw.floats(rows * k), index: draw.ints(rows * k, -1, width), dst: draw.floats(rows * width) },
      (b, { src, index, dst }) => b.scatterAddLast(src, index, dst, rows, width, k), { dst: sumOf(k) });
  }
  add("addRowsAt", label, { src: draw.floats(rows * width), rows: draw.distinct(rows, 4), dst: draw.floats(rows * width) }, (b, m) => b.addRowsAt(m.src, m.rows, rows, m.dst, width));
  add("maskRows", label, { flags: draw.ints(rows, 0, 3), src: draw.floats(rows * width), dst: blank(rows * width) }, (b, { flags, src, dst }) => b.maskRows(flags, src, dst, rows, width));
  add("maskRows", `${label} in place`, { flags: draw.ints(rows, 0, 2), src: draw.floats(rows * width) }, (b, { flags, src }) => b.maskRows(flags, src, src, rows, width));

  const limit = Math.max(1, Math.ceil(rows / 2));
  const index = draw.ints(rows, 0, limit);
  const { distinct, offsets, order } = computed({ index, distinct: blankInts(rows), offsets: blankInts(rows + 1), order: blankInts(rows) },
    (b, m) => b.uniqueIndices(m.index, rows, limit, m.distinct, m.offsets, m.order));
  add("segmentSumRows", `${label}, slots of ${distinct.filter((v) => v >= 0).length} values`, { src: draw.floats(rows * width), order, offsets, out: blank(rows * width) },
    (b, { src, order, offsets, out }) => b.segmentSumRows(src, order, offsets, rows, out, width), { out: sumOf(4) });
}
for (const m of [...SIZES, 0]) {
  for (const groups of [1, 4, 37, 300]) {
    add("routeByExpert", `${m} assignments to ${groups}`, { expert: draw.ints(m, -1, groups), offsets: blankInts(groups + 1), order: blankInts(m), position: blankInts(m) },
      (b, { expert, offsets, order, position }) => b.routeByExpert(expert, m, groups, offsets, order, position));
    add("bincount", `${m} into ${groups}`, { src: draw.floats(m), index: draw.ints(m, -1, groups), out: blank(groups) },
      (b, { src, index, out }) => b.bincount(src, index, m, out, groups), { out: sumOf(m / groups) });
  }
  for (const limit of [1, 7, 256, 257, 70_000, 20_000_000]) {
    add("uniqueIndices", `${m} below ${limit}`, { index: draw.ints(m, 0, limit), rows: blankInts(m), offsets: blankInts(m + 1), order: blankInts(m) },
      (b, { index, rows, offsets, order }) => b.uniqueIndices(index, m, limit, rows, offsets, order));
  }
  for (const divisor of [1, 3, 4]) {
    add("divideIndex", `${m} by ${divisor}`, { index: draw.ints(m, -1, 1000), out: blankInts(m) }, (b, { index, out }) => b.divideIndex(index, divisor, out, m));
  }
}

// ---- row-wise functions and losses ------------------------------------------------------------------------------------------
for (const [rows, cols] of SHAPES) {
  const n = rows * cols;
  const label = `${rows}×${cols}`;
  const x = draw.floats(n, -8, 8);
  const masked = cols > 1 ? x.map((v, i) => (i % cols === 1 ? -Infinity : v)) : x;
  for (const [name, input] of [["", x], [", a masked column", masked], [", one NaN", x.with(n - 1, NaN)], [", far from 0", x.map((v) => v + 512)]] as const) {
    // x − logSumExp(x): the latter is rounded to float32, whose last place at 512 is 6e-5.
    const coarse = name.includes("far") ? 6 : 1;
    add("softmax", `${label}${name}`, { x: input, y: blank(n) }, (b, { x, y }) => b.softmax(x, y, rows, cols));
    add("logSoftmax", `${label}${name}`, { x: input, y: blank(n) }, (b, { x, y }) => b.logSoftmax(x, y, rows, cols), { y: coarse });
    add("logSumExp", `${label}${name}`, { x: input, out: blank(rows) }, (b, { x, out }) => b.logSumExp(x, out, rows, cols));
  }
  const { soft, logSoft } = computed({ x, soft: blank(n), logSoft: blank(n) }, (b, m) => {
    b.softmax(m.x, m.soft, rows, cols);
    b.logSoftmax(m.x, m.logSoft, rows, cols);
  });
  add("softmaxGrad", label, { y: soft, dy: draw.floats(n), dx: blank(n) }, (b, { y, dy, dx }) => b.softmaxGrad(y, dy, dx, rows, cols));
  add("logSoftmaxGrad", label, { y: logSoft, dy: draw.floats(n), dx: blank(n) }, (b, { y, dy, dx }) => b.logSoftmaxGrad(y, dy, dx, rows, cols), { dx: sumOf(cols) });

  const norm = { x: draw.floats(n, 1, 5), gamma: draw.floats(cols), beta: draw.floats(cols), y: blank(n), mean: blank(rows), rstd: blank(rows) };
  const layerNorm = (b: Backend, m: Record<keyof typeof norm, Buf>): void => b.layerNorm(m.x, m.gamma, m.beta, m.y, m.mean, m.rstd, rows, cols, 1e-5);
  const { mean, rstd } = computed(norm, layerNorm);
  // (x − mean)·rstd: where a short row happens to vary little, the rounding of x (up to 5) grows by rstd.
  const sharpest = Math.max(...rstd) * (cols === 1 ? 0.01 : 1);
  add("layerNorm", label, norm, layerNorm, { y: 5 * Math.max(1, sharpest), rstd: 1 });
  add("layerNorm", `${label}, one NaN`, { ...norm, x: norm.x.with(0, NaN) }, layerNorm, { y: 5 * Math.max(1, sharpest) });
  add("layerNormGrad", label, { x: norm.x, gamma: norm.gamma, mean, rstd, dy: draw.floats(n), dx: blank(n), dGamma: blank(cols), dBeta: blank(cols) },
    (b, m) => b.layerNormGrad(m.x, m.gamma, m.mean, m.rstd, m.dy, m.dx, m.dGamma, m.dBeta, rows, cols),
    { dx: 5 * Math.max(1, sharpest ** 2), dGamma: 5 * Math.max(1, sharpest) * sumOf(rows), dBeta: sumOf(rows) });
  add("rowDot", label, { a: draw.floats(n), b: draw.floats(n), out: blank(rows) }, (k, { a, b, out }) => k.rowDot(a, b, out, rows, cols), { out: sumOf(cols) });

  for (const k of new Set([1, 2, 4, 5, 9, cols].filter((k) => k <= Math.min(cols, 100)))) {
    const outputs = { values: blank(rows * k), indices: blankInts(rows * k) };
    const topK = (b: Backend, m: { x: Buf; values: Buf; indices: Buf }): void => b.topK(m.x, m.values, m.indices, rows, cols, k);
    add("topK", `${k} of ${label}`, { x, ...outputs }, topK);
    add("topK", `${k} of ${label} with many ties`, { x: Float64Array.from(draw.ints(n, 0, 3)), ...outputs }, topK);
    add("topK", `${k} of ${label}, one NaN a row`, { x: x.map((v, i) => (i % cols === 0 ? NaN : v)), ...outputs }, topK);
  }

  for (const gradScale of [0, 0.25]) {
    add("crossEntropy", `${label}, gradient times ${gradScale}`, { logits: x, target: draw.ints(rows, -1, cols), loss: blank(rows) },
      (b, { logits, target, loss }) => b.crossEntropy(logits, target, loss, rows, cols, gradScale));
    const sampled = {
      logits: x, shift: draw.floats(cols, -3, 3), samples: draw.ints(cols, 0, 30), trueLogit: draw.floats(rows), trueShift: draw.floats(rows, -3, 3),
      target: draw.ints(rows, -1, 30), loss: blank(rows),
    };
    const kernel = (b: Backend, m: Record<keyof typeof sampled, Buf>): void =>
      b.sampledCrossEntropy(m.logits, m.shift, m.samples, m.trueLogit, m.trueShift, m.target, m.loss, rows, cols, gradScale);
    add("sampledCrossEntropy", `${label}, gradient times ${gradScale}`, sampled, kernel);
    add("sampledCrossEntropy", `${label}, all accidental hits`, { ...sampled, samples: new Int32Array(cols).fill(3), target: new Int32Array(rows).fill(3) }, kernel);
  }

  // ---- LSTM cell: `cols` hidden units --------------------------------------------------------------------------------------
  const cell = { gates: draw.floats(4 * n, -4, 4), cPrev: draw.floats(n), c: blank(n), h: blank(n) };
  const lstmCell = (b: Backend, m: Record<keyof typeof cell, Buf>): void => b.lstmCell(m.gates, m.cPrev, m.c, m.h, rows, cols);
  const after = computed(cell, lstmCell);
  add("lstmCell", label, cell, lstmCell);
  const cellGrad = { ...after, dh: draw.floats(n), dc: draw.floats(n), dGates: blank(4 * n) };
  add("lstmCellGrad", label, cellGrad, (b, m) => b.lstmCellGrad(m.gates, m.cPrev, m.c, m.dh, m.dc, m.dGates, rows, cols));
  add("lstmCellGrad", `${label}, dGates = gates`, cellGrad, (b, m) => b.lstmCellGrad(m.gates, m.cPrev, m.c, m.dh, m.dc, m.gates, rows, cols));
}

// ---- gating -------------------------------------------------------------------------------------------------------------------
for (const [rows, cols, k] of [[1, 1, 1], [3, 4, 4], [3, 4, 3], [3, 5, 1], [5, 17, 2], [4, 64, 4], [17, 256, 4], [300, 64, 2]] as const) {
  const [n, tops] = [rows * cols, rows * Math.min(k + 1, cols)];
  const label = `${k} of ${cols} experts, ${rows} rows`;
  const inputs = { clean: draw.floats(n), std: draw.floats(n, 0.3, 2), noisy: draw.floats(n, -3, 3), topValues: blank(tops), topIndices: blankInts(tops) };
  const { clean, std, topValues, topIndices } = computed(inputs, (b, m) => b.topK(m.noisy, m.topValues, m.topIndices, rows, cols, Math.min(k + 1, cols)));
  const operands = { clean, std, topValues, topIndices };
  add("loadProbability", label, { ...operands, p: blank(n) }, (b, m) => b.loadProbability(m.clean, m.std, m.topValues, m.topIndices, m.p, rows, cols, k));
  add("loadProbability", `${label}, a NaN`, { ...operands, clean: (clean as Float64Array).with(0, NaN), p: blank(n) },
    (b, m) => b.loadProbability(m.clean, m.std, m.topValues, m.topIndices, m.p, rows, cols, k));
  // Every third without noise; some of those are ties with their threshold.
  const silent = (std as Float64Array).map((s, i) => (i % 3 === 0 ? 0 : s));
  const tied = (clean as Float64Array).map((c, i) => (i % 2 === 0 ? topValues[Math.floor(i / cols) * Math.min(k + 1, cols) + Math.min(k, cols - 1)]! : c));
  const quiet = { ...operands, clean: tied, std: silent };
  add("loadProbability", `${label}, some without noise`, { ...quiet, p: blank(n) }, (b, m) => b.loadProbability(m.clean, m.std, m.topValues, m.topIndices, m.p, rows, cols, k));
  add("loadProbabilityGrad", `${label}, some without noise`, { ...quiet, dp: draw.floats(n), dClean: blank(n), dStd: blank(n), dTopValues: blank(tops) },
    (b, m) => b.loadProbabilityGrad(m.clean, m.std, m.topValues, m.topIndices, m.dp, m.dClean, m.dStd, m.dTopValues, rows, cols, k), { dTopValues: sumOf(cols) });
  add("loadProbabilityGrad", label, { ...operands, dp: draw.floats(n), dClean: blank(n), dStd: blank(n), dTopValues: blank(tops) },
    (b, m) => b.loadProbabilityGrad(m.clean, m.std, m.topValues, m.topIndices, m.dp, m.dClean, m.dStd, m.dTopValues, rows, cols, k), { dTopValues: sumOf(cols) });
}
for (const n of [0, ...SIZES]) {
  for (const [name, x] of [["", draw.floats(n, 0, 2)], [" zeros", new Float64Array(n)], [" equal values", new Float64Array(n).fill(0.7)]] as const) {
    add("cvSquared", `${n}${name}`, { x, out: blank(1) }, (b, { x, out }) => b.cvSquared(x, n, out));
    add("cvSquaredGrad", `${n}${name}`, { x, dy: draw.floats(1), dx: blank(n) }, (b, { x, dy, dx }) => b.cvSquaredGrad(x, n, dy, dx), { dx: 1 / Math.max(n, 1) });
  }
}

// ---- random numbers -------------------------------------------------------------------------------------------------------------
const KEYS = [{ seed: 1, stream: 2, step: 3 }, { seed: 2 ** 52 + 12345, stream: 0xfedcba98, step: 2 ** 31 + 5 }];
/** On and off the blocks of four, and where the number of the block no longer fits 32 bits. */
const STARTS = [0, 1, 2, 3, 7, 2 ** 31 - 2, 2 ** 32 - 1, 2 ** 34 - 3, 2 ** 45 + 6];
for (const key of KEYS) {
  for (const start of STARTS) {
    for (const n of start === 3 ? SIZES : [1, 5, 100]) {
      const label = `${n} from ${start}, seed ${key.seed}`;
      add("randomUniform", label, { out: blank(n) }, (b, { out }) => b.randomUniform(out, n, key, start, -0.5, 1.5), {}, 1e-6);
      // A normal number is radius times cosine; the radius of 24 bits goes up to 5.8.
      add("randomNormal", label, { out: blank(n) }, (b, { out }) => b.randomNormal(out, n, key, start, 0.5, 2), { out: 2 * 5.8 }, 1e-6);
      // x is nowhere 0, so a wrong mask is a wrong value.
      for (const rate of [0, 0.1, 0.5]) {
        add("dropout", `${label}, rate ${rate}`, { x: draw.floats(n, 0.5, 2), y: blank(n) }, (b, { x, y }) => b.dropout(x, y, n, rate, key, start), {}, 1e-6);
        add("dropout", `${label}, rate ${rate} in place`, { x: draw.floats(n, 0.5, 2) }, (b, { x }) => b.dropout(x, x, n, rate, key, start), {}, 1e-6);
      }
    }
  }
}

// ---- optimisers -------------------------------------------------------------------------------------------------------------------
// A learning rate this large makes an error of the step an error of the parameter.
const ADAM: AdamSettings = { learningRate: 0.5, beta1: 0.9, beta2: 0.99, epsilon: 1e-6, weightDecay: 0.1, gradScale: 0.7 };
const ADAM_999 = { ...ADAM, beta2: 0.999, weightDecay: 0, gradScale: 1 };
const NO_MOMENTUM = { ...ADAM, beta1: 0 };
for (const n of SIZES) {
  add("sumSquares", `${n}`, { x: draw.floats(n), out: draw.floats(1) }, (b, { x, out }) => b.sumSquares(x, n, null, 0, out));
  const state = { param: draw.floats(n), grad: draw.floats(n), m: draw.floats(n), v: draw.floats(n, 0, 2) };
  for (const step of [1, 2, 1000]) {
    for (const settings of [ADAM, ADAM_999]) {
      add("adam", `${n}, step ${step}, beta2 ${settings.beta2}`, state, (b, { param, grad, m, v }) => b.adam(param, grad, m, v, n, step, settings), { param: 10 });
    }
    add("adam", `${n}, step ${step}, no momentum`, state, (b, { param, grad, v }) => b.adam(param, grad, null, v, n, step, NO_MOMENTUM), { param: 10 });
  }
  add("sgd", `${n}`, { param: draw.floats(n), grad: draw.floats(n) }, (b, { param, grad }) => b.sgd(param, grad, n, 0.5, 0.7));
}
for (const [slots, width] of SHAPES) {
  const n = slots * width;
  const label = `${slots} rows of ${width}`;
  const rows = draw.distinct(slots, 4);
  add("sumSquares", label, { x: draw.floats(n), rows, out: draw.floats(1) }, (b, { x, rows, out }) => b.sumSquares(x, n, rows, width, out));
  const state = { param: draw.floats(n), grad: draw.floats(n), rows, m: draw.floats(n), v: draw.floats(n, 0, 2), steps: draw.ints(slots, 0, 50) };
  add("adamRows", label, state, (b, s) => b.adamRows(s.param, s.grad, s.rows, slots, width, s.m, s.v, s.steps, ADAM), { param: 10 });
  add("adamRows", `${label}, no momentum`, state, (b, s) => b.adamRows(s.param, s.grad, s.rows, slots, width, null, s.v, s.steps, NO_MOMENTUM), { param: 10 });
  add("sgdRows", label, { param: draw.floats(n), grad: draw.floats(n), rows }, (b, { param, grad, rows }) => b.sgdRows(param, grad, rows, slots, width, 0.5, 0.7));
}
for (const [slots, height, width] of [[1, 1, 1], [3, 4, 5], [2, 17, 3], [5, 5, 64], [4, 100, 100]] as const) {
  const n = slots * height * width;
  const label = `${slots} of ${height}×${width}`;
  const state = {
    param: draw.floats(n), grad: draw.floats(n), rows: draw.distinct(slots, 4),
    rowMean: draw.floats(slots * height, 0.1, 2), colMean: draw.floats(slots * width, 0.1, 2), steps: draw.ints(slots, 0, 50),
  };
  add("factoredAdamRows", `${label} by index`, state, (b, s) => b.factoredAdamRows(s.param, s.grad, s.rows, slots, height, width, s.rowMean, s.colMean, s.steps, NO_MOMENTUM), { param: 10 });
  add("factoredAdamRows", `${label} in order`, state, (b, s) => b.factoredAdamRows(s.param, s.grad, null, slots, height, width, s.rowMean, s.colMean, s.steps, NO_MOMENTUM), { param: 10 });
  const fresh = { ...state, rowMean: new Float64Array(slots * height), colMean: new Float64Array(slots * width), steps: new Int32Array(slots) };
  add("factoredAdamRows", `${label}, first step`, fresh, (b, s) => b.factoredAdamRows(s.param, s.grad, null, slots, height, width, s.rowMean, s.colMean, s.steps, NO_MOMENTUM), { param: 10 });
}

// ---- golden cases, worked by hand ------------------------------------------------------------------------------------------------
interface Golden {
  claim: string;
  buffers: Record<string, Data>;
  run(backend: Backend, bufs: Record<string, Buf>): void;
  want: Record<string, number[]>;
}
const golden: Golden[] = [];
function worked<Name extends string>(claim: string, buffers: Record<Name, Data>, run: (b: Backend, m: Record<Name, Buf>) => void, want: Partial<Record<Name, number[]>>): void {
  golden.push({ claim, buffers, run, want: want as Record<string, number[]> });
}

worked("topK orders ties by the lower index", { x: Float64Array.of(1, 3, 3, 2, 3), values: blank(4), indices: blankInts(4) },
  (b, { x, values, indices }) => b.topK(x, values, indices, 1, 5, 4), { values: [3, 3, 3, 2], indices: [1, 2, 4, 3] });
worked("topK takes NaN last", { x: Float64Array.of(NaN, -5, NaN, -7), values: blank(2), indices: blankInts(2) },
  (b, { x, values, indices }) => b.topK(x, values, indices, 1, 4, 2), { values: [-5, -7], indices: [1, 3] });
worked("routeByExpert is a stable sort that leaves -1 out", { expert: Int32Array.of(2, 0, -1, 2, 0, 3), offsets: blankInts(5), order: blankInts(6), position: blankInts(6) },
  (b, { expert, offsets, order, position }) => b.routeByExpert(expert, 6, 4, offsets, order, position),
  // Expert 0: assignments 1, 4. Expert 1: none. Expert 2: 0, 3. Expert 3: 5.
  { offsets: [0, 2, 2, 4, 5], order: [1, 4, 0, 3, 5, -1], position: [2, 0, -1, 3, 1, 4] });
worked("uniqueIndices gives distinct values ascending with their places", { index: Int32Array.of(7, 2, 7, 9, 2), rows: blankInts(5), offsets: blankInts(6), order: blankInts(5) },
  (b, { index, rows, offsets, order }) => b.uniqueIndices(index, 5, 10, rows, offsets, order),
  // 2 at places 1, 4; 7 at 0, 2; 9 at 3.
  { rows: [2, 7, 9, -1, -1], offsets: [0, 2, 4, 5, 5, 5], order: [1, 4, 0, 2, 3] });
worked("segmentSumRows sums the rows of each slot, and zeros where a slot is empty", { src: Float64Array.of(1, 2, 10, 20, 100, 200), order: Int32Array.of(2, 0, 1), offsets: Int32Array.of(0, 2, 2, 3), out: blank(6) },
  (b, { src, order, offsets, out }) => b.segmentSumRows(src, order, offsets, 3, out, 2),
  // Slot 0: rows 2 and 0 = (100 + 1, 200 + 2). Slot 1: none. Slot 2: row 1.
  { out: [101, 202, 0, 0, 10, 20] });
worked("combineRows weighs the rows of each place, and -1 adds nothing",
  { src: Float64Array.of(1, 2, 3, 4, 5, 6), position: Int32Array.of(2, 0, -1, 1), weights: Float64Array.of(0.5, 2, 9, 0.25), y: blank(4) },
  (b, { src, position, weights, y }) => b.combineRows(src, position, weights, y, 2, 2, 2),
  // 0.5·(5, 6) + 2·(1, 2) = (4.5, 7); 0.25·(3, 4) = (0.75, 1).
  { y: [4.5, 7, 0.75, 1] });
worked("loadProbability compares a chosen expert with the one after, any other with the last chosen",
  { clean: Float64Array.of(3, 1, 2), std: Float64Array.of(1, 1, 2), topValues: Float64Array.of(3, 2), topIndices: Int32Array.of(0, 2), p: blank(3) },
  (b, m) => b.loadProbability(m.clean, m.std, m.topValues, m.topIndices, m.p, 1, 3, 1),
  // Chosen: expert 0, threshold 2: Φ((3−2)/1) = Φ(1). Others, threshold 3: Φ((1−3)/1) = Φ(−2), Φ((2−3)/2) = Φ(−1/2). Values from tables.
  { p: [0.8413447461, 0.0227501319, 0.3085375387] });
worked("loadProbability is 1 where all experts are chosen",
  { clean: Float64Array.of(3, 1), std: Float64Array.of(1, 1), topValues: Float64Array.of(3, 1), topIndices: Int32Array.of(0, 1), p: blank(2) },
  (b, m) => b.loadProbability(m.clean, m.std, m.topValues, m.topIndices, m.p, 1, 2, 2), { p: [1, 1] });
// Mean 2.5, variance (2.25 + 0.25 + 0.25 + 2.25)/4 = 1.25, CV² = 1.25/6.25 = 0.2.
worked("cvSquared of 1, 2, 3, 4 is 0.2", { x: Float64Array.of(1, 2, 3, 4), out: blank(1) }, (b, { x, out }) => b.cvSquared(x, 4, out), { out: [0.2] });
worked("cvSquared of one value, and of zeros, is 0", { x: Float64Array.of(5, 0, 0), out: blank(2) }, (b, { x, out }) => {
  b.cvSquared(x, 1, out);
  b.cvSquared(x.at(1), 2, out.at(1));
}, { out: [0, 0] });
worked("cvSquaredGrad of 1, 3 is (−0.375, 0.125) times dy", { x: Float64Array.of(1, 3), dy: Float64Array.of(2), dx: blank(2) }, (b, { x, dy, dx }) => b.cvSquaredGrad(x, 2, dy, dx),
  // CV² = ((a−b)/(a+b))², so ∂/∂a = 2·(a−b)/(a+b)·2b/(a+b)² = 2·(−1/2)·6/16 = −0.375, ∂/∂b = −2·(a−b)/(a+b)·2a/(a+b)² = 2·(1/2)·2/16 = 0.125.
  { dx: [-0.75, 0.25] });
worked("lstmCell with gates at 0 halves the cell", { gates: new Float64Array(4), cPrev: Float64Array.of(2), c: blank(1), h: blank(1) }, (b, m) => b.lstmCell(m.gates, m.cPrev, m.c, m.h, 1, 1),
  // σ(0) = 1/2, tanh 0 = 0: c = 1/2·2 + 1/2·0 = 1; h = 1/2·tanh 1 = 0.380797.
  { gates: [0.5, 0.5, 0, 0.5], c: [1], h: [0.3807970780] });
worked("lstmCell takes its gates in the order i, f, g, o", { gates: Float64Array.of(40, 0, -40, 0, Math.fround(Math.log(3)), 0, 40, 0), cPrev: Float64Array.of(5, 5), c: blank(2), h: blank(2) },
  (b, m) => b.lstmCell(m.gates, m.cPrev, m.c, m.h, 1, 2),
  // Unit 0: i = 1, f = 0, g = tanh(ln 3) = (3 − 1/3)/(3 + 1/3) = 0.8, o = 1: c = 0.8, h = tanh 0.8 = 0.664037. Unit 1: c = 5/2, h = tanh(2.5)/2 = 0.493307.
  { gates: [1, 0.5, 0, 0.5, 0.8, 0, 1, 0.5], c: [0.8, 2.5], h: [0.6640367703, 0.4933071491] });
worked("factoredAdamRows divides by the root of row · column / mean",
  { param: Float64Array.of(1, 1, 1, 1), grad: Float64Array.of(1, 2, 2, 4), rowMean: new Float64Array(2), colMean: new Float64Array(2), steps: new Int32Array(1) },
  (b, m) => b.factoredAdamRows(m.param, m.grad, null, 1, 2, 2, m.rowMean, m.colMean, m.steps, { learningRate: 0.25, beta1: 0, beta2: 0.5, epsilon: 0, weightDecay: 0, gradScale: 1 }),
  // g² = (1, 4; 4, 16): row means 2.5, 10; column means 2.5, 10; times (1 − 0.5): 1.25, 5; mean of rows 3.125.
  // v = 1.25·1.25/3.125 = 0.5, 2, 2, 8; v̂ = v/(1 − 0.5) = 1, 4, 4, 16 = g² (it is of rank 1), so every step is 0.25·g/|g|.
  { param: [0.75, 0.75, 0.75, 0.75], rowMean: [1.25, 5], colMean: [1.25, 5], steps: [1] });
worked("factoredAdamRows touches only the matrices named",
  { param: Float64Array.of(1, 1, 1, 1), grad: Float64Array.of(3, -5), rows: Int32Array.of(2, -1), rowMean: new Float64Array(4), colMean: new Float64Array(4), steps: Int32Array.of(4, 4, 0, 4) },
  (b, m) => b.factoredAdamRows(m.param, m.grad, m.rows, 2, 1, 1, m.rowMean, m.colMean, m.steps, { learningRate: 0.25, beta1: 0, beta2: 0.5, epsilon: 0, weightDecay: 0, gradScale: 1 }),
  // Matrix 2 with g = 3: means 0.5·9 = 4.5; v̂ = 4.5/0.5 = 9; step 0.25·3/3.
  { param: [1, 1, 0.75, 1], rowMean: [0, 0, 4.5, 0], colMean: [0, 0, 4.5, 0], steps: [4, 4, 1, 4] });

function goldenErrors(backend: Backend, { buffers, run, want }: Golden): string[] {
  const { contents } = outcome(backend, { buffers, run });
  return Object.entries(want).flatMap(([name, list]) => {
    const got = Array.from(contents[name]).slice(3, 3 + list.length);
    const isFloat = buffers[name] instanceof Float64Array;
    return differences(name, [0, 0, 0, ...got], [0, 0, 0, ...list], 1e-3, isFloat ? 2e-6 : 0);
  });
}

// ---- what is asserted of a backend --------------------------------------------------------------------------------------------------
function kernelsOf(backend: Backend): string[] {
  const names = [...Object.getOwnPropertyNames(Object.getPrototypeOf(backend)), ...Object.keys(backend)];
  return names.filter((name) => name !== "constructor" && typeof Reflect.get(backend, name) === "function");
}
const KERNELS = kernelsOf(new ReferenceBackend()).filter((name) => !(MEMORY_METHODS as readonly string[]).includes(name)) as Kernel[];

describe("the parity tests", () => {
  it("cover every kernel of the interface, so that a new one without a case fails here", () => {
    const covered = new Set(cases.map(({ kernel }) => kernel));
    expect(KERNELS.filter((kernel) => !covered.has(kernel))).toEqual([]);
  });

  it("notice a kernel that is off by 3e-5 relative", () => {
    const wrong = new (class extends ReferenceBackend {
      override affine(x: Buf, scale: number, shift: number, y: Buf, n: number): void {
        super.affine(x, scale * (1 + 3e-5), shift * (1 + 3e-5), y, n);
      }
    })();
    const affine = cases.filter(({ kernel, label }) => kernel === "affine" && label === "100");
    expect(affine.flatMap((one) => disagreements(wrong, one)).length).toBeGreaterThan(0);
  });

  it("notice an element written past the end", () => {
    const wrong = new (class extends ReferenceBackend {
      override readSync(buf: Buf): Float64Array | Int32Array {
        const data = super.readSync(buf);
        data[data.length - 6] = 0;
        return data;
      }
    })();
    expect(disagreements(wrong, cases.find(({ kernel }) => kernel === "fill")!)).not.toEqual([]);
  });
});

describe("reference backend", () => {
  const backend = new ReferenceBackend();
  it.each(golden)("$claim", (one) => expect(goldenErrors(backend, one)).toEqual([]));
  itKeepsMemory(() => backend);

  it("fills memory that nobody wrote with NaN and 0x7fffffff", () => {
    expect(Array.from(backend.readSync(backend.alloc("float32", 2)))).toEqual([NaN, NaN]);
    expect(Array.from(backend.readSync(backend.alloc("int32", 2)))).toEqual([0x7fffffff, 0x7fffffff]);
  });

  it("has Φ to 1e-14 relative, tail included", () => {
    const x = [-10, -5, -3, -1.5, -1, -0.1, 0, 0.3, 2];
    // erfc(−x/√2)/2 by Python's math.erfc.
    const want = [7.619853024160593e-24, 2.866515718791946e-7, 0.0013498980316300957, 0.06680720126885809, 0.15865525393145707, 0.460172162722971, 0.5, 0.6179114221889526, 0.9772498680518208];
    const [from, to] = [backend.alloc("float32", x.length), backend.alloc("float32", x.length)];
    backend.write(from, x);
    backend.unary("normalCdf", from, to, x.length);
    const got = backend.readSync(to);
    for (const [i, w] of want.entries()) expect(Math.abs(got[i] - w)).toBeLessThanOrEqual(1e-14 * w);
  });

  it("has derivatives that match central differences", () => {
    for (const op of UNARY_OPS) {
      for (const x of [0.3, 0.9, 1.7, 2.4]) {
        const h = 1e-5;
        const at = (v: number): number => Number(computedOne(backend, (b, m) => b.unary(op, m.x, m.y, 1), v).y);
        const { dx } = computedOne(backend, (b, m) => {
          b.unary(op, m.x, m.y, 1);
          b.unaryGrad(op, m.x, m.y, m.dy, m.dx, 1);
        }, x);
        // Truncation is of order h², rounding of order 1e-16/h.
        expect(dx, `${op}'(${x})`).toBeCloseTo((at(x + h) - at(x - h)) / (2 * h), 7);
      }
    }
  });
});

for (const { title, backend, missing } of configurations()) {
  describe.skipIf(!backend)(`CPU backend, ${title}${missing ? ` (skipped: ${missing})` : ""}`, () => {
    const cpu = backend!;
    afterAll(() => cpu?.dispose());
    it.each(KERNELS)("%s agrees with the float64 reference on every shape", (kernel) => {
      expect(cases.filter((one) => one.kernel === kernel).flatMap((one) => disagreements(cpu, one)).slice(0, 12)).toEqual([]);
    });
    it.each(golden)("$claim", (one) => expect(goldenErrors(cpu, one)).toEqual([]));
    itKeepsMemory(() => cpu);
  });
}

function itKeepsMemory(get: () => Backend): void {
  it("counts live bytes and their peak, and takes them back", async () => {
    const backend = get();
    const before = backend.memory().used;
    backend.resetPeak();
    const buf = backend.alloc("float32", 1000);
    const during = backend.memory();
    // Four or eight bytes an element; an allocator may round up by a little.
    expect(during.used - before).toBeGreaterThanOrEqual(backend.name === "cpu" ? 4000 : 8000);
    expect(during.used - before).toBeLessThanOrEqual(8192);
    expect(during.peak).toBe(during.used);
    backend.write(buf, new Float32Array(1000).fill(0.5));
    expect(Array.from((await backend.read(buf.at(998))).values())).toEqual([0.5, 0.5]);
    backend.free(buf);
    expect(backend.memory().used).toBe(before);
    expect(backend.memory().peak).toBe(during.used);
  });

  it("refuses a part that reaches past its buffer, and to free a buffer twice", () => {
    const backend = get();
    const buf = backend.alloc("float32", 10);
    expect(() => buf.at(8, 3)).toThrow(/Buf\.at: expected a part of 10 elements, got 3 from 8/);
    backend.free(buf);
    expect(() => backend.free(buf)).toThrow(expect.objectContaining({ name: "TensorError" }));
  });
}

/** Runs on single elements x, y, dy = 1, dx and gives them back. */
function computedOne(backend: Backend, run: (b: Backend, m: Record<"x" | "y" | "dy" | "dx", Buf>) => void, x: number): Record<"x" | "y" | "dy" | "dx", number> {
  const bufs = { x: backend.alloc("float32", 1), y: backend.alloc("float32", 1), dy: backend.alloc("float32", 1), dx: backend.alloc("float32", 1) };
  backend.write(bufs.x, [x]);
  backend.write(bufs.dy, [1]);
  run(backend, bufs);
  const at = (buf: Buf): number => backend.readSync(buf)[0];
  return { x: at(bufs.x), y: at(bufs.y), dy: at(bufs.dy), dx: at(bufs.dx) };
}
