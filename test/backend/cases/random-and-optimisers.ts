/** Random numbers, dropout, and the updates of optimisers. */

import type { AdamSettings } from "#sparsegate/backend/backend.js";
import { uniformAt } from "#sparsegate/core/random.js";
import { blank, CaseList, Draw, SHAPES, SIZES } from "./list.js";

const draw = new Draw(1706);
export const randomAndOptimisers = new CaseList();
const { add, worked } = randomAndOptimisers;

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
/** Rows in any order, some of them twice or not there, as far as an int32 goes. */
const idsOf = (rows: number): Int32Array => draw.ints(rows, -1, 2 * rows).map((id, r) => (r % 7 === 6 ? 2 ** 31 - 1 - id : id));
for (const [rows, width] of SHAPES) {
  const rowIds = idsOf(rows);
  for (const [key, start] of [[KEYS[0], 0], [KEYS[1], 5], [KEYS[0], 2 ** 40 + 3]] as const) {
    for (const rate of [0, 0.5]) {
      const label = `${rows}×${width} from row ${start}, seed ${key!.seed}, rate ${rate}`;
      const x = draw.floats(rows * width, 0.5, 2);
      add("dropoutRows", label, { x, y: blank(rows * width), rowIds }, (b, m) => b.dropoutRows(m.x, m.y, m.rowIds, null, rows, width, rate, key!, start), {}, 1e-6);
      add("dropoutRows", `${label} in place`, { x, rowIds }, (b, m) => b.dropoutRows(m.x, m.x, m.rowIds, null, rows, width, rate, key!, start), {}, 1e-6);
      // Five groups, two of them without rows; what is behind the last has no ids.
      const offsets = Int32Array.of(0, Math.floor(rows / 3), Math.floor(rows / 3), Math.floor((2 * rows) / 3), rows, rows);
      add("dropoutRows", `${label} in groups`, { x, y: blank(rows * width), rowIds, offsets }, (b, m) => b.dropoutRows(m.x, m.y, m.rowIds, { offsets: m.offsets, count: 5, first: 3, total: 2 ** 12 }, rows, width, rate, key!, start % 2 ** 20), {}, 1e-6);
    }
    add("randomUniformRows", `${rows}×${width} from row ${start}, seed ${key!.seed}`, { out: blank(rows * width), rowIds },
      (b, m) => b.randomUniformRows(m.out, m.rowIds, rows, width, key!, start, -2, 3), { out: 5 }, 1e-6);
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
for (const [slots, height, width] of [[1, 1, 1], [3, 4, 5], [2, 17, 3], [5, 5, 64], [4, 100, 100], [1, 3, 1030], [2, 200, 250]] as const) {
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

// ---- worked by hand -------------------------------------------------------------------------------------------------------------
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
const ONES = new Float64Array(15).fill(1);
worked("dropoutRows draws for row r what stands at its id in the stream, and nothing for no id", { x: ONES, y: blank(15), rowIds: Int32Array.of(2, -1, 0, 7, 2) },
  (b, { x, y, rowIds }) => b.dropoutRows(x, y, rowIds, null, 5, 3, 0.5, KEYS[0]!, 4),
  // Rows 6, 4 and 11 of a stream of rows of three; what stays is doubled.
  { y: [6, -1, 4, 11, 6].flatMap((row) => [0, 1, 2].map((j) => (row >= 0 && uniformAt(KEYS[0]!, 3 * row + j) >= 0.5 ? 2 : 0))) });
worked("dropoutRows in groups draws for each pair of a row and a group, more of which there may be than an int32 counts", { x: ONES, y: blank(15), rowIds: Int32Array.of(0, 2 ** 20, 7, 2 ** 20, -1), offsets: Int32Array.of(0, 2, 2, 4) },
  (b, { x, y, rowIds, offsets }) => b.dropoutRows(x, y, rowIds, { offsets, count: 3, first: 5, total: 2 ** 18 }, 5, 3, 0.5, KEYS[0]!, 1),
  // Group 5 has the first two rows, 7 the next two: (1 + id)·2¹⁸ + group.
  { y: [[0, 5], [2 ** 20, 5], [7, 7], [2 ** 20, 7], [-1, 0]].flatMap(([id, group]) => [0, 1, 2].map((j) => (id! >= 0 && uniformAt(KEYS[0]!, 3 * ((1 + id!) * 2 ** 18 + group!) + j) >= 0.5 ? 2 : 0))) });
worked("randomUniformRows gives row r what stands at its id in the stream, and zeros for no id", { out: blank(15), rowIds: Int32Array.of(2, -1, 0, 7, 2) },
  (b, { out, rowIds }) => b.randomUniformRows(out, rowIds, 5, 3, KEYS[0]!, 4, -1, 3),
  { out: [6, -1, 4, 11, 6].flatMap((row) => [0, 1, 2].map((j) => (row >= 0 ? -1 + 4 * uniformAt(KEYS[0]!, 3 * row + j) : 0))) });
