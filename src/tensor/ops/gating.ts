/** What gates are made of (Shazeer et al. 2017, section 2.1, App. A and F): noisy selection with its load estimate, batchwise masks, capacity, CV². */

import type { RandomKey } from "../../backend/backend.js";
import { checkIndices } from "../../backend/indices.js";
import { TensorError } from "../../core/errors.js";
import { checkOperands, rowsAndCols } from "../shapes.js";
import { record } from "../tape.js";
import { empty, full, sameShape, type Tensor } from "../tensor.js";
import { checkOffsets } from "./offsets.js";
import { reshape, slice } from "./shape.js";

/** Rows in groups, group g having the rows offsets[g]..offsets[g+1]: the rows that a primary gate gave to each of its groups. */
export interface Groups {
  /** int32 (G+1). Rows beyond the last offset belong to no group. */
  offsets: Tensor;
  count: number;
}

/** Groups, checked: their offsets, if there are any, and number. */
function segmentsOf(where: string, x: Tensor, groups: Groups | undefined): { offsets: Tensor | undefined; count: number } {
  if (!groups) return { offsets: undefined, count: 1 };
  const { offsets, count } = groups;
  checkOperands(where, "int32", offsets);
  if (offsets.backend !== x.backend) throw new TensorError(`${where}: expected tensors of one backend, got ${x.backend.name} and ${offsets.backend.name}.`);
  if (!Number.isInteger(count) || count < 1 || offsets.size !== count + 1) {
    throw new TensorError(`${where}: expected offsets (G+1) of G = ${count} groups, at least one, got [${offsets.shape.join(", ")}].`);
  }
  checkOffsets(where, offsets, rowsAndCols(where, x)[0]);
  return { offsets, count };
}

/** What `noisyTopK` gives. */
export interface NoisyTopK {
  /** (N, min(k+1, E)) the largest noisy logits, largest first; zeros for rows of no group. */
  values: Tensor;
  /** (N, min(k+1, E)) int32, their experts; -1 for rows of no group. */
  indices: Tensor;
  /** (G·E) or (E): Σ over rows of P(x, i), the smooth load of App. A. */
  load: Tensor;
}

/** Rows of a part, when rows are in no groups: few enough for every thread to get some, enough that the parts' sums are a small share of the memory. */
const PART = 32;

/**
 * Noisy top-k selection: H_i = clean_i + ε_i·softplus(raw_i), the k + 1 largest of each row, and the load
 * Σ_rows Φ((clean_i − kth_excluding(H, k, i)) / softplus(raw_i)): the probability that expert i is among the k chosen if only its own noise is drawn again.
 * Gradients of both outputs flow into clean and raw. With k = E every probability is 1.
 *
 * @param clean (N, E) x·W_g; @param raw (N, E) x·W_noise
 * @param options.start the global index of the first row; options.rowIds int32 (N) the global index of each row, less `start`: a row's noise depends on it alone
 * @see Shazeer et al. 2017, eq. 3-5 and 8-11. One node for both outputs: they share the pass over (N, E).
 */
export function noisyTopK(clean: Tensor, raw: Tensor, k: number, options: { key: RandomKey; start: number; rowIds?: Tensor; groups?: Groups }): NoisyTopK {
  checkOperands("noisyTopK", "float32", clean, raw);
  const [rows, cols] = rowsAndCols("noisyTopK", clean);
  if (!sameShape(raw.shape, clean.shape)) throw new TensorError(`noisyTopK: expected clean and raw of one shape, got [${clean.shape.join(", ")}] and [${raw.shape.join(", ")}].`);
  if (!Number.isInteger(k) || k < 1 || k > cols) throw new TensorError(`noisyTopK: expected k from 1 to ${cols} (experts), got ${k}.`);
  const { key, start, rowIds, groups } = options;
  if (rowIds) checkOperands("noisyTopK", "int32", rowIds);
  if (rowIds && rowIds.size !== rows) throw new TensorError(`noisyTopK: expected ${rows} row ids (one a row), got ${rowIds.size}.`);
  const { offsets, count } = segmentsOf("noisyTopK", clean, groups);
  const { backend } = clean;
  const width = Math.min(k + 1, cols);
  const segments = groups ? count : Math.max(1, Math.ceil(rows / PART));
  const loads = count * cols;
  // The values, then the load: both outputs in one tensor, so that one node gets the gradients of both.
  const both = empty([rows * width + loads], "float32", backend);
  const indices = empty([rows, width], "int32", backend);
  const partial = groups ? undefined : empty([segments, cols], "float32", backend);
  const load = both.buffer.at(rows * width);
  backend.noisyTopK(clean.buffer, raw.buffer, key, start, rowIds?.buffer ?? null, offsets?.buffer ?? null, segments, both.buffer, indices.buffer, partial?.buffer ?? load, rows, cols, k);
  if (partial) backend.spreadSum(partial.buffer, { div: 1, mod: cols }, 1, load, partial.size);
  const saved = both.alias();
  record("noisyTopK", both, [clean, raw], (dy) => {
    const [dClean, dRaw] = [empty(clean.shape, "float32", backend), empty(raw.shape, "float32", backend)];
    backend.noisyTopKGrad(clean.buffer, raw.buffer, saved.buffer, indices.buffer, dy.buffer, dy.buffer.at(rows * width), offsets?.buffer ?? null, segments, dClean.buffer, dRaw.buffer, rows, cols, k);
    return [dClean, dRaw];
  });
  return { values: reshape(slice(both, 0, 0, rows * width), [rows, width]), indices, load: slice(both, 0, rows * width, rows * width + loads) };
}

/**
 * The batchwise mask (App. F; expert choice, Zhou et al. 2022): for each column the m = clamp(floor(k·rows/E), 1, rows) largest values over the rows (of
 * each group), as a list of (row, expert) in the order of rows. Every expert has exactly m rows.
 * @returns int32 lists of length `length` (-1 in an unused tail) and rowOffsets (N+1)
 */
export function columnTopK(x: Tensor, k: number, groups?: Groups): ElementList {
  checkOperands("columnTopK", "float32", x);
  const [rows, cols] = rowsAndCols("columnTopK", x);
  if (!(k > 0)) throw new TensorError(`columnTopK: expected k above 0, got ${k}.`);
  const { backend } = x;
  const { offsets, count } = segmentsOf("columnTopK", x, groups);
  const cut = empty([count, cols], "float32", backend);
  const cutRow = empty([count, cols], "int32", backend);
  backend.columnCuts(x.buffer, offsets?.buffer ?? null, count, rows, cols, k, cut.buffer, cutRow.buffer);
  // Without groups the length is known; in groups each expert may have one row more than its share.
  const length = groups ? Math.floor(k * rows) + count * cols : cols * Math.min(rows, Math.max(1, Math.floor((k * rows) / cols)));
  const list = emptyList(x, rows, length);
  backend.listAbove(x.buffer, cut.buffer, cutRow.buffer, offsets?.buffer ?? null, count, rows, cols, list.experts.buffer, list.rows.buffer, list.rowOffsets.buffer, length);
  return list;
}

/** Elements of an (N, E) matrix, in the order of rows. All int32. */
export interface ElementList {
  /** (M) column of each, -1 in an unused tail. */
  experts: Tensor;
  /** (M) row of each, -1 in an unused tail. */
  rows: Tensor;
  /** (N+1) row n has the elements rowOffsets[n]..rowOffsets[n+1]. */
  rowOffsets: Tensor;
}

function emptyList(x: Tensor, rows: number, length: number): ElementList {
  return { experts: empty([length], "int32", x.backend), rows: empty([length], "int32", x.backend), rowOffsets: empty([rows + 1], "int32", x.backend) };
}

/**
 * The threshold mask (App. F, inference): every element greater than its column's threshold.
 * @param threshold (E), or (G, E) for rows in groups
 * The length of the list depends on the data, so that this one op waits for its count.
 */
export function aboveThreshold(x: Tensor, threshold: Tensor, groups?: Groups): ElementList {
  checkOperands("aboveThreshold", "float32", x, threshold);
  const [rows, cols] = rowsAndCols("aboveThreshold", x);
  const { offsets, count } = segmentsOf("aboveThreshold", x, groups);
  if (threshold.size !== count * cols) throw new TensorError(`aboveThreshold: expected ${count * cols} thresholds, got ${threshold.size}.`);
  const { backend } = x;
  const counts = empty([rows + 1], "int32", backend);
  backend.listAbove(x.buffer, threshold.buffer, null, offsets?.buffer ?? null, count, rows, cols, null, null, counts.buffer, 0);
  const length = backend.readSync(counts.buffer.at(rows, 1))[0]!;
  const list = emptyList(x, rows, length);
  backend.listAbove(x.buffer, threshold.buffer, null, offsets?.buffer ?? null, count, rows, cols, list.experts.buffer, list.rows.buffer, list.rowOffsets.buffer, length);
  return list;
}

/**
 * The assignments that are left when each expert takes at most `capacity` rows: a copy of `experts` with -1 for the others (GShard, Lepikhin et al. 2020;
 * Switch, Fedus et al. 2021).
 * @param experts int32 (N, K); @param priority (N, K): the highest stay; left out, all first choices come before all second ones, each in the order of rows
 * @throws TensorError naming the first expert that there is not
 */
export function limitPerExpert(experts: Tensor, numExperts: number, capacity: number, priority?: Tensor): Tensor {
  checkOperands("limitPerExpert", "int32", experts);
  const [n, k] = rowsAndCols("limitPerExpert", experts);
  if (!Number.isInteger(capacity) || capacity < 0) throw new TensorError(`limitPerExpert: expected a capacity of whole rows, got ${capacity}.`);
  if (priority) checkOperands("limitPerExpert", "float32", priority);
  if (priority && !sameShape(priority.shape, experts.shape)) {
    throw new TensorError(`limitPerExpert: expected priorities of shape [${experts.shape.join(", ")}], one an assignment, got [${priority.shape.join(", ")}].`);
  }
  const left = empty(experts.shape, "int32", experts.backend);
  experts.backend.copy(experts.buffer, left.buffer, experts.size);
  // More than there are is all of them, and what a kernel counts is an int32.
  experts.backend.limitPerExpert(left.buffer, priority?.buffer ?? null, n, k, numExperts, Math.min(capacity, experts.size));
  return left;
}

/** Sum of the rows of each group: (G, width). Rows of no group are left out. */
export function groupedSum(x: Tensor, groups: Groups): Tensor {
  checkOperands("groupedSum", "float32", x);
  const [rows, cols] = rowsAndCols("groupedSum", x);
  const { backend } = x;
  const { count } = segmentsOf("groupedSum", x, groups);
  const { offsets } = groups;
  const y = empty([count, cols], "float32", backend);
  const touched = empty([count], "int32", backend);
  backend.groupedBiasGrad(offsets.buffer, count, x.buffer, y.buffer, touched.buffer, cols);
  return record("groupedSum", y, [x], (dy) => {
    const dx = full([rows, cols], 0, "float32", backend);
    backend.groupedBias(offsets.buffer, count, rows, dx.buffer, dy.buffer, dx.buffer, cols);
    return [reshape(dx, x.shape)];
  });
}

/** src[index], int32, -1 where the index is -1. @throws TensorError naming the first index out of range */
export function gatherIndices(src: Tensor, index: Tensor): Tensor {
  checkOperands("gatherIndices", "int32", src, index);
  checkIndices("gatherIndices", index.dataSync(), index.size, -1, src.size);
  const y = empty(index.shape, "int32", src.backend);
  src.backend.gatherIndices(src.buffer, index.buffer, y.buffer, index.size);
  return y;
}

/** a[i] + scale·b[floor(i / divisor)], -1 where either is -1; int32. */
export function addIndices(a: Tensor, b: Tensor, scale: number, divisor = 1): Tensor {
  checkOperands("addIndices", "int32", a, b);
  if (!Number.isInteger(scale) || !Number.isInteger(divisor) || divisor < 1) throw new TensorError(`addIndices: expected a whole scale and a divisor of at least 1, got ${scale} and ${divisor}.`);
  if (b.size < Math.ceil(a.size / divisor)) throw new TensorError(`addIndices: expected ${Math.ceil(a.size / divisor)} second indices, got ${b.size}.`);
  const y = empty(a.shape, "int32", a.backend);
  a.backend.addIndices(a.buffer, b.buffer, scale, divisor, y.buffer, a.size);
  return y;
}

/** index where keep > 0, -1 elsewhere. */
export function maskIndices(index: Tensor, keep: Tensor): Tensor {
  checkOperands("maskIndices", "int32", index);
  checkOperands("maskIndices", "float32", keep);
  if (keep.size !== index.size) throw new TensorError(`maskIndices: expected ${index.size} flags, got ${keep.size}.`);
  const y = empty(index.shape, "int32", index.backend);
  index.backend.maskIndices(index.buffer, keep.buffer, y.buffer, index.size);
  return y;
}

/** CV(x)²: population variance over squared mean, a scalar; 0 for one element or a mean of 0. */
export function cvSquared(x: Tensor): Tensor {
  checkOperands("cvSquared", "float32", x);
  const y = empty([], "float32", x.backend);
  x.backend.cvSquared(x.buffer, x.size, y.buffer);
  return record("cvSquared", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.cvSquaredGrad(x.buffer, x.size, dy.buffer, dx.buffer);
    return [dx];
  });
}
