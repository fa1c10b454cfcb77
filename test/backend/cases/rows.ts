/** Rows by index: gathering, combining, routing, sums by segment, and lists of indices. */

import { blank, blankInts, CaseList, computed, Draw, SHAPES, SIZES, sumOf } from "./list.js";

const draw = new Draw(1703);
export const rows = new CaseList();
const { add, worked } = rows;

// ---- rows ---------------------------------------------------------------------------------------------------------------
for (const [rows, width] of SHAPES) {
  const n = rows;
  const label = `${rows}×${width}`;
  add("gatherRows", label, { src: draw.floats(rows * width), index: draw.ints(2 * rows, -1, rows), out: blank(2 * rows * width) },
    (b, { src, index, out }) => b.gatherRows(src, index, out, 2 * rows, width));
  for (const k of [1, 2, 4]) {
    const position = draw.distinct(n * k, 5);
    const operands = () => ({ src: draw.floats(n * k * width), position, weights: draw.floats(n * k) });
    add("combineRows", `${label}, ${k} a row`, { ...operands(), y: blank(n * width) }, (b, { src, position, weights, y }) => b.combineRows(src, position, weights, null, y, n, k, width), { y: sumOf(k) });
    add("combineRows", `${label}, ${k} a row, no weights`, { ...operands(), y: blank(n * width) }, (b, { src, position, y }) => b.combineRows(src, position, null, null, y, n, k, width), { y: sumOf(k) });
    const grad = { ...operands(), dy: draw.floats(n * width), dSrc: blank(n * k * width), dWeights: blank(n * k) };
    const scale = { dWeights: sumOf(width) };
    add("combineRowsGrad", `${label}, ${k} a row`, grad, (b, m) => b.combineRowsGrad(m.src, m.position, m.weights, null, m.dy, m.dSrc, m.dWeights, n, k, width), scale);
    add("combineRowsGrad", `${label}, ${k} a row, of src`, grad, (b, m) => b.combineRowsGrad(m.src, m.position, m.weights, null, m.dy, m.dSrc, null, n, k, width));
    add("combineRowsGrad", `${label}, ${k} a row, of weights`, grad, (b, m) => b.combineRowsGrad(m.src, m.position, m.weights, null, m.dy, null, m.dWeights, n, k, width), scale);
    add("gatherLast", `${label}, ${k} a row`, { src: draw.floats(rows * width), index: draw.ints(rows * k, -1, width), out: blank(rows * k) },
      (b, { src, index, out }) => b.gatherLast(src, index, out, rows, width, k));
    add("scatterAddLast", `${label}, ${k} a row`, { src: draw.floats(rows * k), index: draw.ints(rows * k, -1, width), dst: draw.floats(rows * width) },
      (b, { src, index, dst }) => b.scatterAddLast(src, index, dst, rows, width, k), { dst: sumOf(k) });
  }
  for (const most of [1, 3]) {
    // 0 to `most` assignments a row, and two of no row at the end.
    const counts = draw.ints(n, 0, most + 1);
    const rowOffsets = Int32Array.of(0, ...counts.map((_, r) => counts.slice(0, r + 1).reduce((s, c) => s + c, 0)));
    const m = rowOffsets[n]! + 2;
    const listed = { src: draw.floats(m * width), position: draw.distinct(m, 5), weights: draw.floats(m), rowOffsets };
    const of = `${label}, a list of up to ${most} a row`;
    add("combineRows", of, { ...listed, y: blank(n * width) }, (b, l) => b.combineRows(l.src, l.position, l.weights, l.rowOffsets, l.y, n, 0, width), { y: sumOf(most) });
    add("combineRows", `${of}, no weights`, { ...listed, y: blank(n * width) }, (b, l) => b.combineRows(l.src, l.position, null, l.rowOffsets, l.y, n, 0, width), { y: sumOf(most) });
    const grad = { ...listed, dy: draw.floats(n * width), dSrc: blank(m * width), dWeights: blank(m) };
    const scale = { dWeights: sumOf(width) };
    add("combineRowsGrad", of, grad, (b, l) => b.combineRowsGrad(l.src, l.position, l.weights, l.rowOffsets, l.dy, l.dSrc, l.dWeights, n, 0, width), scale);
    add("combineRowsGrad", `${of}, of src`, grad, (b, l) => b.combineRowsGrad(l.src, l.position, l.weights, l.rowOffsets, l.dy, l.dSrc, null, n, 0, width));
    add("combineRowsGrad", `${of}, of weights`, grad, (b, l) => b.combineRowsGrad(l.src, l.position, l.weights, l.rowOffsets, l.dy, null, l.dWeights, n, 0, width), scale);
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
  const index = draw.ints(m, -1, 50);
  add("gatherIndices", `${m}`, { src: draw.ints(50, -1, 1000), index, out: blankInts(m) }, (b, { src, index, out }) => b.gatherIndices(src, index, out, m));
  add("maskIndices", `${m}`, { index, keep: draw.floats(m), out: blankInts(m) }, (b, { index, keep, out }) => b.maskIndices(index, keep, out, m));
  add("maskIndices", `${m} in place`, { index, keep: draw.floats(m) }, (b, { index, keep }) => b.maskIndices(index, keep, index, m));
  for (const [scale, divisor] of [[1, 1], [7, 1], [256, 4], [-3, 3]] as const) {
    add("addIndices", `${m}, ${scale} times one for ${divisor}`, { first: index, second: draw.ints(Math.ceil(m / divisor), -1, 40), out: blankInts(m) },
      (b, { first, second, out }) => b.addIndices(first, second, scale, divisor, out, m));
  }
  for (const divisor of [1, 3, 4]) {
    add("divideIndex", `${m} by ${divisor}`, { index: draw.ints(m, -1, 1000), out: blankInts(m) }, (b, { index, out }) => b.divideIndex(index, divisor, out, m));
  }
}
const EDGES = Float64Array.of(1, -1, 0, -0, NaN, Infinity, -Infinity, 1e-30, -1e-30);
add("maskIndices", "flags of every kind", { index: Int32Array.from(EDGES, (_, i) => i), keep: EDGES, out: blankInts(EDGES.length) },
  (b, { index, keep, out }) => b.maskIndices(index, keep, out, EDGES.length));

// ---- limits ---------------------------------------------------------------------------------------------------------------------
for (const [n, k, groups] of [[0, 2, 3], [1, 1, 1], [1, 3, 5], [5, 2, 1], [17, 4, 3], [100, 2, 64], [700, 1, 7], [2000, 4, 300]] as const) {
  const m = n * k;
  const expert = draw.ints(m, -1, groups);
  const even = Math.ceil(m / groups);
  const priorities = {
    "": draw.floats(m), ", ties": Float64Array.from(draw.ints(m, 0, 3)), ", all equal": new Float64Array(m).fill(0.5),
    ", NaN and ±∞": Float64Array.from(draw.ints(m, 0, 5), (v) => [NaN, Infinity, -Infinity, 0, 1][v]!), ", all NaN": new Float64Array(m).fill(NaN),
  };
  for (const capacity of new Set([0, 1, 2, even, m + 1])) {
    const label = `${n}×${k} to ${groups}, at most ${capacity}`;
    add("limitPerExpert", `${label}, by arrival`, { expert }, (b, l) => b.limitPerExpert(l.expert, null, n, k, groups, capacity));
    for (const [name, priority] of Object.entries(priorities)) {
      add("limitPerExpert", `${label}, by priority${name}`, { expert, priority }, (b, l) => b.limitPerExpert(l.expert, l.priority, n, k, groups, capacity));
    }
  }
}

// ---- worked by hand -------------------------------------------------------------------------------------------------------------
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
  (b, { src, position, weights, y }) => b.combineRows(src, position, weights, null, y, 2, 2, 2),
  // 0.5·(5, 6) + 2·(1, 2) = (4.5, 7); 0.25·(3, 4) = (0.75, 1).
  { y: [4.5, 7, 0.75, 1] });
worked("combineRows takes as many assignments a row as its list says, none included",
  { src: Float64Array.of(1, 2, 3, 4, 5, 6), position: Int32Array.of(2, 0, -1, 1), weights: Float64Array.of(0.5, 2, 9, 0.25), rowOffsets: Int32Array.of(0, 1, 1, 4), y: blank(6) },
  (b, { src, position, weights, rowOffsets, y }) => b.combineRows(src, position, weights, rowOffsets, y, 3, 0, 2),
  // 0.5·(5, 6); none; 2·(1, 2) + 0.25·(3, 4).
  { y: [2.5, 3, 0, 0, 2.75, 5] });
worked("combineRowsGrad of a list gives each place its row's gradient and leaves alone what belongs to no row",
  { src: Float64Array.of(1, 2, 3, 4, 5), position: Int32Array.of(2, 0, -1, 1), weights: Float64Array.of(0.5, 2, 9, 0.25), rowOffsets: Int32Array.of(0, 1, 1, 3), dy: Float64Array.of(10, 20, 30), dSrc: blank(5), dWeights: blank(4) },
  (b, l) => b.combineRowsGrad(l.src, l.position, l.weights, l.rowOffsets, l.dy, l.dSrc, l.dWeights, 3, 0, 1),
  // Assignment 0 is row 0's at place 2; 1 and 2 are row 2's, at place 0 and nowhere; 3 is nobody's.
  { dSrc: [60, 7.25, 5, 7.25, 7.25], dWeights: [30, 30, 0, 7.25] });
// Three rows of two: (0, 1), (1, 0), (0, 2).
const EXPERT = Int32Array.of(0, 1, 1, 0, 0, 2);
worked("limitPerExpert serves all first choices before all second ones", { expert: EXPERT }, (b, { expert }) => b.limitPerExpert(expert, null, 3, 2, 3, 1),
  // First choices: 0 to row 0, 1 to row 1, none left for row 2. Second: 1 and 0 are full, 2 is not.
  { expert: [0, -1, 1, -1, -1, 2] });
worked("limitPerExpert keeps the highest priorities", { expert: EXPERT, priority: Float64Array.of(0.1, 0.9, 0.5, 0.8, 0.7, 0.2) }, (b, l) => b.limitPerExpert(l.expert, l.priority, 3, 2, 3, 1),
  // Expert 0 was asked for with 0.1, 0.8 and 0.7; expert 1 with 0.9 and 0.5; expert 2 with 0.2.
  { expert: [-1, 1, -1, 0, -1, 2] });
worked("limitPerExpert keeps the first of equal priorities, and NaN last", { expert: EXPERT, priority: Float64Array.of(NaN, 0.5, 0.5, -Infinity, NaN, NaN) }, (b, l) => b.limitPerExpert(l.expert, l.priority, 3, 2, 3, 1),
  // NaN counts as −∞, so that expert 0's three requests are equal: the first choice of row 0 came first. Of expert 1's two the first choice is row 1's.
  { expert: [0, -1, 1, -1, -1, 2] });
worked("limitPerExpert of nothing drops all, and of enough none", { expert: EXPERT, other: EXPERT }, (b, { expert, other }) => {
  b.limitPerExpert(expert, null, 3, 2, 3, 0);
  b.limitPerExpert(other, null, 3, 2, 3, 3);
}, { expert: [-1, -1, -1, -1, -1, -1], other: [0, 1, 1, 0, 0, 2] });
worked("gatherIndices takes −1 for −1, from the list and from the index", { src: Int32Array.of(5, -1, 7), index: Int32Array.of(2, -1, 1, 0, 2), out: blankInts(5) },
  (b, { src, index, out }) => b.gatherIndices(src, index, out, 5), { out: [7, -1, -1, 5, 7] });
worked("addIndices adds the scaled index of each part, −1 where either is", { first: Int32Array.of(0, 1, -1, 2, 3), second: Int32Array.of(4, -1, 1), out: blankInts(5) },
  (b, { first, second, out }) => b.addIndices(first, second, 10, 2, out, 5), { out: [40, 41, -1, -1, 13] });
worked("maskIndices keeps what has a number above 0", { index: Int32Array.of(4, 5, 6, 7, -1), keep: Float64Array.of(0.1, 0, -1, NaN, 1), out: blankInts(5) },
  (b, { index, keep, out }) => b.maskIndices(index, keep, out, 5), { out: [4, -1, -1, -1, -1] });
