/** Gating (Shazeer et al. 2017): noisy top-k with its load and gradients, batchwise masks and the lists made from them, CV². */

import { normalAt } from "#sparsegate/core/random.js";
import type { Backend, Buf } from "#sparsegate/backend/backend.js";
import { blank, blankInts, CaseList, computed, Draw, SIZES, sumOf } from "./list.js";

const draw = new Draw(1705);
export const gating = new CaseList();
const { add, worked } = gating;

/** How rows are cut into segments: offsets or none, and their number. */
interface Cut {
  name: string;
  offsets: Int32Array;
  /** Whether the kernel is given the offsets. */
  given: boolean;
  segments: number;
}
/** All rows, equal parts, more parts than rows; groups over all rows and over some, some of them empty, or all. Of a large matrix, which takes long, two. */
function cuts(rows: number, cols: number): Cut[] {
  const parts = (segments: number): Cut => ({ name: `${segments} parts`, offsets: Int32Array.of(0), given: false, segments });
  const groups = (segments: number, used: number): Cut => ({ name: `${segments} groups over ${used}`, offsets: draw.offsets(segments, used), given: true, segments });
  const some = [parts(3), groups(4, rows - Math.ceil(rows / 4))];
  return rows * cols > LARGE ? some : [...some, parts(1), parts(rows + 2), groups(1, rows), groups(4, rows), groups(2, 0)];
}
const LARGE = 4000;
const of = (buf: Buf, { given }: Cut): Buf | null => (given ? buf : null);

// ---- noisy top-k ---------------------------------------------------------------------------------------------------------------
const KEYS = [{ seed: 7, stream: 11, step: 3 }, { seed: 2 ** 52 + 12345, stream: 0xfedcba98, step: 2 ** 31 + 5 }];
/** What the gate computes of its inputs: buffers, and the call. */
function noisy(clean: Float64Array, raw: Float64Array, rowIds: Int32Array, cut: Cut, rows: number, cols: number, k: number, start: number, withIds: boolean, key = KEYS[0]!) {
  const tops = rows * Math.min(k + 1, cols);
  const buffers = { clean, raw, rowIds, offsets: cut.offsets, topValues: blank(tops), topIndices: blankInts(tops), load: blank(cut.segments * cols) };
  const run = (b: Backend, m: Record<keyof typeof buffers, Buf>): void =>
    b.noisyTopK(m.clean, m.raw, key, start, withIds ? m.rowIds : null, of(m.offsets, cut), cut.segments, m.topValues, m.topIndices, m.load, rows, cols, k);
  return { buffers, run };
}
for (const [rows, cols, k] of [[1, 1, 1], [1, 5, 2], [7, 1, 1], [3, 4, 4], [3, 4, 3], [3, 5, 1], [5, 17, 2], [4, 64, 4], [9, 9, 9], [17, 256, 4], [300, 64, 2], [0, 5, 2]] as const) {
  const n = rows * cols;
  const size = `${k} of ${cols} experts, ${rows} rows`;
  // Deviations of 0.3 to 2.1.
  const [clean, raw] = [draw.floats(n), draw.floats(n, -1, 2)];
  const rowIds = draw.distinct(rows).map((id) => 3 * id + 2 ** 20);
  // Every third without noise, those with values of 0 to 3, so that some tie with each other and with their threshold.
  const quietClean = clean.map((v, i) => (i % 3 === 0 ? Math.round(v + 1.5) : v));
  const quietRaw = raw.map((v, i) => (i % 3 === 0 ? -Infinity : v));
  const inputs: Record<string, [clean: Float64Array, raw: Float64Array]> = {
    "": [clean, raw],
    ", some without noise": [quietClean, quietRaw],
    // softplus(−200) is 0 in float32 and below 1e-86 in float64, where it changes nothing: values are not 0.
    ", ties without noise": [Float64Array.from(draw.ints(n, 1, 4)), new Float64Array(n).fill(-200)],
    ", a NaN": [clean.map((v, i) => (i === n - 1 ? NaN : v)), raw],
    ", a NaN among deviations": [clean, raw.map((v, i) => (i === n - 1 ? NaN : v))],
    ", ±∞": [clean.map((v, i) => [v, v, Infinity, v, -Infinity][i % 5]!), raw],
    ", one noise infinite": [clean, raw.map((v, i) => (i === 0 ? Infinity : v))],
  };
  for (const cut of cuts(rows, cols)) {
    const scale = { topValues: 3, load: 4 * sumOf(rows) };
    for (const [name, [c, r]] of Object.entries(inputs).slice(0, n > LARGE ? 3 : undefined)) {
      const label = `${size}${name}, ${cut.name}`;
      const plain = noisy(c, r, rowIds, cut, rows, cols, k, 0, false);
      add("noisyTopK", label, plain.buffers, plain.run, scale);
      const { topValues, topIndices } = computed(plain.buffers, plain.run);
      const loads = cut.given ? cut.segments * cols : cols;
      const grad = { clean: c, raw: r, topValues, topIndices, dTop: draw.floats(topValues.length), dLoad: draw.floats(loads), offsets: cut.offsets, dClean: blank(n), dRaw: blank(n) };
      for (const [what, top, load] of [["both", true, true], ["the values", true, false], ["the load", false, true], ["neither", false, false]] as const) {
        add("noisyTopKGrad", `${label}, of ${what}`, grad, (b, m) =>
          b.noisyTopKGrad(m.clean, m.raw, m.topValues, m.topIndices, top ? m.dTop : null, load ? m.dLoad : null, cut.given ? m.offsets : null, cut.segments, m.dClean, m.dRaw, rows, cols, k),
          { dClean: 4 * sumOf(cols), dRaw: 4 * sumOf(cols) });
      }
    }
    for (const [key, start] of [[KEYS[0]!, 5], [KEYS[1]!, 2 ** 33 + 1]] as const) {
      const numbered = noisy(clean, raw, rowIds, cut, rows, cols, k, start, true, key);
      add("noisyTopK", `${size}, rows in another order from ${start}, ${cut.name}`, numbered.buffers, numbered.run, scale);
    }
  }
}

// ---- batchwise masks and lists ---------------------------------------------------------------------------------------------------
for (const [rows, cols, k] of [[1, 1, 1], [5, 1, 1], [1, 5, 2], [17, 3, 1], [7, 5, 5], [50, 8, 1.5], [50, 8, 0.01], [33, 16, 2], [100, 17, 3], [300, 64, 2], [64, 1001, 4], [0, 3, 1]] as const) {
  const n = rows * cols;
  const inputs: Record<string, Float64Array> = {
    "": draw.floats(n), ", ties": Float64Array.from(draw.ints(n, 0, 4)), ", all equal": new Float64Array(n).fill(0.25),
    ", NaN and ±∞": Float64Array.from(draw.ints(n, 0, 5), (v) => [NaN, Infinity, -Infinity, 0, 1][v]!), ", all NaN": new Float64Array(n).fill(NaN),
  };
  for (const cut of cuts(rows, cols)) {
    for (const [name, x] of Object.entries(inputs).slice(0, n > LARGE ? 2 : undefined)) {
      const label = `${k} of ${rows}×${cols}${name}, ${cut.name}`;
      const mask = { x, offsets: cut.offsets, cut: blank(cut.segments * cols), cutRow: blankInts(cut.segments * cols) };
      const columnCuts = (b: Backend, m: Record<keyof typeof mask, Buf>): void => b.columnCuts(m.x, of(m.offsets, cut), cut.segments, rows, cols, k, m.cut, m.cutRow);
      add("columnCuts", label, mask, columnCuts);
      const found = computed(mask, columnCuts);
      for (const [what, bars, ties] of [["the cuts", found.cut, true], ["their values alone", found.cut, false], ["other bars", draw.floats(cut.segments * cols), false]] as const) {
        const count = { x, bars, cutRow: found.cutRow, offsets: cut.offsets, rowOffsets: blankInts(rows + 1) };
        const counting = (b: Backend, m: Record<keyof typeof count, Buf>): void =>
          b.listAbove(m.x, m.bars, ties ? m.cutRow : null, of(m.offsets, cut), cut.segments, rows, cols, null, null, m.rowOffsets, 0);
        add("listAbove", `${label}: above ${what}, counted`, count, counting);
        if (n > LARGE && what === "other bars") continue;
        const length = computed(count, counting).rowOffsets[rows]!;
        for (const more of [0, 3]) {
          const listed = { ...count, column: blankInts(length + more), row: blankInts(length + more) };
          const list = (columns: boolean, rowList: boolean) => (b: Backend, m: Record<keyof typeof listed, Buf>): void =>
            b.listAbove(m.x, m.bars, ties ? m.cutRow : null, of(m.offsets, cut), cut.segments, rows, cols, columns ? m.column : null, rowList ? m.row : null, m.rowOffsets, length + more);
          add("listAbove", `${label}: above ${what}, ${more} more`, listed, list(true, true));
          if (more === 0 || n > LARGE) continue;
          add("listAbove", `${label}: above ${what}, columns alone`, listed, list(true, false));
          add("listAbove", `${label}: above ${what}, rows alone`, listed, list(false, true));
        }
      }
    }
  }
}

for (const n of [0, ...SIZES]) {
  for (const [name, x] of [["", draw.floats(n, 0, 2)], [" zeros", new Float64Array(n)], [" equal values", new Float64Array(n).fill(0.7)]] as const) {
    add("cvSquared", `${n}${name}`, { x, out: blank(1) }, (b, { x, out }) => b.cvSquared(x, n, out));
    add("cvSquaredGrad", `${n}${name}`, { x, dy: draw.floats(1), dx: blank(n) }, (b, { x, dy, dx }) => b.cvSquaredGrad(x, n, dy, dx), { dx: 1 / Math.max(n, 1) });
  }
}

// ---- worked by hand -------------------------------------------------------------------------------------------------------------
/** What softplus makes s of. */
const inverseSoftplus = (s: number): number => Math.log(Math.expm1(s));
const SILENT = -Infinity;
{
  // Clean logits and deviations such that the noisy logits of the row at place 2 are 3 (expert 0), then that of expert 2, then that of expert 1.
  const key = KEYS[0]!;
  const [e0, e1, e2] = [0, 1, 2].map((i) => normalAt(key, 2 * 3 + i)) as [number, number, number];
  const second = 3 + 2 * (e2 - 0.5);
  const std0 = (3 - second) / (1 + e0);
  const clean = Float64Array.of(second + std0, 3 - 2, 3 - 2 / 2);
  if (!(std0 > 0 && clean[1]! + e1 < second)) throw new Error("expected another key");
  worked("noisyTopK compares a chosen expert with the one after, any other with the last chosen, in deviations of its own noise",
    { clean, raw: Float64Array.of(std0, 1, 2).map(inverseSoftplus), topValues: blank(2), topIndices: blankInts(2), load: blank(3), rowIds: Int32Array.of(1) },
    (b, m) => b.noisyTopK(m.clean, m.raw, key, 1, m.rowIds, null, 1, m.topValues, m.topIndices, m.load, 1, 3, 1),
    // Chosen: expert 0, (second + std0 − second)/std0 = 1 above. Others, threshold 3: (1 − 3)/1 = −2 and (2 − 3)/2 = −1/2. Φ from tables.
    { topValues: [3, second], topIndices: [0, 2], load: [0.8413447461, 0.0227501319, 0.3085375387] });
}
worked("noisyTopK takes every expert for certain where all are chosen, whatever the noise",
  { clean: Float64Array.of(3, 1, 5, 9), raw: Float64Array.of(1, SILENT, 2, 0), topValues: blank(4), topIndices: blankInts(4), load: blank(2) },
  (b, m) => b.noisyTopK(m.clean, m.raw, KEYS[0]!, 0, null, null, 1, m.topValues, m.topIndices, m.load, 2, 2, 2), { load: [2, 2] });
worked("noisyTopK without noise is topK, ties by the lower index, and counts rows group by group, those of no group not",
  { clean: Float64Array.of(2, 5, 2, 7, 7, 7, 1, 2, 3, 9, 8, 7), raw: new Float64Array(12).fill(SILENT), offsets: Int32Array.of(0, 2, 2, 3), topValues: blank(8), topIndices: blankInts(8), load: blank(9) },
  (b, m) => b.noisyTopK(m.clean, m.raw, KEYS[0]!, 0, null, m.offsets, 3, m.topValues, m.topIndices, m.load, 4, 3, 1),
  { topValues: [5, 2, 7, 7, 3, 2, 0, 0], topIndices: [1, 0, 0, 1, 2, 1, -1, -1], load: [1, 1, 0, 0, 0, 0, 0, 0, 1] });
worked("noisyTopKGrad of two experts, one chosen",
  // Deviations of 1: softplus(0.5413…) = 1, where its slope is 1 − 1/e = 0.6321. Noise 0.5 and 0.25.
  { clean: Float64Array.of(1, 0), raw: Float64Array.of(1, 1).map(inverseSoftplus), topValues: Float64Array.of(1.5, 0.25), topIndices: Int32Array.of(0, 1), dTop: Float64Array.of(2, 1), dLoad: Float64Array.of(1, 10), dClean: blank(2), dRaw: blank(2) },
  (b, m) => b.noisyTopKGrad(m.clean, m.raw, m.topValues, m.topIndices, m.dTop, m.dLoad, null, 1, m.dClean, m.dRaw, 1, 2, 1),
  // P0 = Φ(1 − 0.25), P1 = Φ(0 − 1.5): slopes φ(0.75) = 0.3011374322 and 10·φ(1.5) = 1.2951759567. The thresholds get what these push away:
  // H0: 2 − 1.2951759567, H1: 1 − 0.3011374322. dRaw = (−0.75·0.3011374322 + 0.5·dH0)·0.6321 and (1.5·1.2951759567 + 0.25·dH1)·0.6321.
  { dClean: [1.0059614755, 1.9940385245], dRaw: [0.0800005127, 1.3385023735] });
const COLUMNS = Float64Array.of(1, NaN, 3, 5, 3, -1, 2, 5);
worked("columnCuts ends each column's list at its m-th largest, equal ones by lower row, NaN last", { x: COLUMNS, cut: blank(6), cutRow: blankInts(6) }, (b, { x, cut, cutRow }) => {
  b.columnCuts(x, null, 1, 4, 2, 1, cut, cutRow);
  b.columnCuts(x, null, 1, 4, 2, 0.4, cut.at(2), cutRow.at(2));
  b.columnCuts(x, null, 1, 4, 2, 2, cut.at(4), cutRow.at(4));
  // m = 1·4/2 = 2: 3 and 3 at rows 1 and 2; 5 and 5 at rows 1 and 3. m = 0.8 down to 0, then up to 1: the first of these. m = 4: all, the last being 1 and NaN.
}, { cut: [3, 5, 3, 5, 1, -Infinity], cutRow: [2, 3, 1, 1, 0, 0] });
worked("columnCuts takes half a row more where the product with the rows is whole", { x: Float64Array.of(1, 2, 3, 4, 5, 6, 7, 8), cut: blank(2), cutRow: blankInts(2) },
  (b, { x, cut, cutRow }) => b.columnCuts(x, null, 1, 4, 2, 1.5, cut, cutRow),
  // m = 1.5·4/2 = 3.
  { cut: [3, 4], cutRow: [1, 1] });
worked("columnCuts cuts each group by itself, an empty one above everything", { x: COLUMNS, offsets: Int32Array.of(0, 2, 2, 3), cut: blank(6), cutRow: blankInts(6) },
  (b, { x, offsets, cut, cutRow }) => b.columnCuts(x, offsets, 3, 4, 2, 1, cut, cutRow),
  // Rows 0 and 1, m = 1: 3 and 5. None. Row 2, m = 1: 3 and −1.
  { cut: [3, 5, Infinity, Infinity, 3, -1], cutRow: [1, 1, -1, -1, 2, 2] });
worked("listAbove lists what is above the cuts in the order of rows, ties up to the cut's row",
  { x: COLUMNS, cut: Float64Array.of(3, 5), cutRow: Int32Array.of(1, 3), column: blankInts(5), row: blankInts(5), rowOffsets: blankInts(5) },
  (b, m) => b.listAbove(m.x, m.cut, m.cutRow, null, 1, 4, 2, m.column, m.row, m.rowOffsets, 5),
  // Row 1: both. Row 2: a 3 beyond the cut's row. Row 3: the second 5.
  { column: [0, 1, 1, -1, -1], row: [1, 1, 3, -1, -1], rowOffsets: [0, 0, 2, 2, 3] });
worked("listAbove without rows of cuts takes what is greater, group by group, and nothing of rows of no group",
  { x: COLUMNS, cut: Float64Array.of(0, 5, 2, -2), offsets: Int32Array.of(0, 2, 3), column: blankInts(4), row: blankInts(4), rowOffsets: blankInts(5) },
  (b, m) => b.listAbove(m.x, m.cut, null, m.offsets, 2, 4, 2, m.column, m.row, m.rowOffsets, 4),
  // Group 0, rows 0 and 1: 1 > 0 and 3 > 0, but no 5 > 5 and no NaN. Group 1, row 2: 3 > 2 and −1 > −2. Row 3 is in neither.
  { column: [0, 0, 0, 1], row: [0, 1, 2, 2], rowOffsets: [0, 1, 2, 4, 4] });
// Mean 2.5, variance (2.25 + 0.25 + 0.25 + 2.25)/4 = 1.25, CV² = 1.25/6.25 = 0.2.
worked("cvSquared of 1, 2, 3, 4 is 0.2", { x: Float64Array.of(1, 2, 3, 4), out: blank(1) }, (b, { x, out }) => b.cvSquared(x, 4, out), { out: [0.2] });
worked("cvSquared of one value, and of zeros, is 0", { x: Float64Array.of(5, 0, 0), out: blank(2) }, (b, { x, out }) => {
  b.cvSquared(x, 1, out);
  b.cvSquared(x.at(1), 2, out.at(1));
}, { out: [0, 0] });
worked("cvSquaredGrad of 1, 3 is (−0.375, 0.125) times dy", { x: Float64Array.of(1, 3), dy: Float64Array.of(2), dx: blank(2) }, (b, { x, dy, dx }) => b.cvSquaredGrad(x, 2, dy, dx),
  // CV² = ((a−b)/(a+b))², so ∂/∂a = 2·(a−b)/(a+b)·2b/(a+b)² = 2·(−1/2)·6/16 = −0.375, ∂/∂b = −2·(a−b)/(a+b)·2a/(a+b)² = 2·(1/2)·2/16 = 0.125.
  { dx: [-0.75, 0.25] });
