/** Memory, elementwise kernels, sums and strided copies. */

import { BINARY_OPS, UNARY_OPS, type UnaryOp } from "#sparsegate/backend/backend.js";
import { blank, blankInts, CaseList, computed, Draw, IDENTITY, SHAPES, SIZES, sumOf } from "./list.js";

const draw = new Draw(1701);
export const elementwise = new CaseList();
const { add } = elementwise;

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

// ---- worked by hand -------------------------------------------------------------------------------------------------------------
for (const op of ["gelu", "silu"] as const) {
  elementwise.worked(`${op} and its slope have limits at ±∞`, { x: Float64Array.of(-Infinity, Infinity, NaN), y: blank(3), dy: Float64Array.of(2, 2, 2), dx: blank(3) }, (b, { x, y, dy, dx }) => {
    b.unary(op, x, y, 3);
    b.unaryGrad(op, x, y, dy, dx, 3);
  }, { y: [0, Infinity, NaN], dx: [0, 2, NaN] });
}
