/** Operations that move whole rows by index: embedding look-up, the dispatch and combination of an MoE layer, and plain moves. */

import type { Backend } from "../../backend/backend.js";
import { checkIndices } from "../../backend/indices.js";
import { TensorError } from "../../core/errors.js";
import { checkOperands } from "../shapes.js";
import { record } from "../tape.js";
import { empty, sameShape, tensor, zeros, type Gradient, type Tensor } from "../tensor.js";
import { checkOffsets, trustOffsets } from "./offsets.js";

/**
 * table[index]: (..., width). The gradient of the table holds only the rows in use (see `Gradient`).
 * @param index int32, each in [0, rows of table)
 * @throws TensorError naming the first index out of range
 */
export function embedding(table: Tensor, index: Tensor): Tensor {
  checkOperands("embedding", "float32", table);
  checkOperands("embedding", "int32", index);
  if (table.rank !== 2) throw new TensorError(`embedding: expected a table (rows, width), got [${table.shape.join(", ")}].`);
  const [rows, width] = table.shape as [number, number];
  checkIndices("embedding", index.dataSync(), index.size, 0, rows);
  const backend = table.backend;
  const n = index.size;
  const y = empty([...index.shape, width], "float32", backend);
  backend.gatherRows(table.buffer, index.buffer, y.buffer, n, width);
  return record("embedding", y, [table], (dy) => [rowGradient(dy, index, n, rows, width)]);
}

/** Gradient by rows of a table from the gradients of gathered rows: equal indices are added, in order. */
export function rowGradient(dy: Tensor, index: Tensor, n: number, limit: number, width: number): Gradient {
  const backend = dy.backend;
  const rows = empty([n], "int32", backend);
  const offsets = empty([n + 1], "int32", backend);
  const order = empty([n], "int32", backend);
  backend.uniqueIndices(index.buffer, n, limit, rows.buffer, offsets.buffer, order.buffer);
  const value = empty([n, width], "float32", backend);
  backend.segmentSumRows(dy.buffer, order.buffer, offsets.buffer, n, value.buffer, width);
  return { value, rows };
}

/** Which experts each row goes to: K for each, or a list in the order of rows where their number differs. */
export interface Assignments {
  /** int32 (N, K) or (M); -1 where an assignment was dropped. */
  experts: Tensor;
  /** Of a list: int32 (M), the row of each (-1 in an unused tail), and (N+1) where each row's assignments begin. */
  rows?: Tensor;
  rowOffsets?: Tensor;
}

/** Where assignments go; see `Backend.routeByExpert`. All int32. */
export interface Routing {
  /** (E+1) expert e has the grouped rows offsets[e]..offsets[e+1]. */
  offsets: Tensor;
  /** (M) assignment at each place of the grouped order, -1 in an unused tail. */
  order: Tensor;
  /** (M) row of x at each place of the grouped order, -1 in an unused tail. */
  rows: Tensor;
  /** As `Assignments.experts`: the place of each assignment in the grouped order, -1 where it was dropped. */
  position: Tensor;
  /** Of a list: where each row's assignments begin. */
  rowOffsets?: Tensor;
  /** Rows of x. */
  numRows: number;
}

/**
 * Groups assignments by expert: a stable counting sort, so earlier ones come first.
 * @throws TensorError naming the first expert that there is not, and of a list the first place where `rows` and `rowOffsets` disagree
 */
export function routeByExpert({ experts, rows: listed, rowOffsets }: Assignments, numExperts: number): Routing {
  checkOperands("routeByExpert", "int32", experts);
  const backend = experts.backend;
  const m = experts.size;
  if (listed ? !rowOffsets || experts.rank !== 1 || listed.size !== m || rowOffsets.size === 0 : rowOffsets !== undefined || experts.rank !== 2) {
    const got = [experts, listed, rowOffsets].map((t) => (t ? `[${t.shape.join(", ")}]` : "none")).join(", ");
    throw new TensorError(`routeByExpert: expected experts (N, K), or lists of experts (M) and rows (M) with rowOffsets (N+1), got ${got}.`);
  }
  if (listed && rowOffsets) {
    checkOperands("routeByExpert", "int32", experts, listed, rowOffsets);
    checkLists("routeByExpert", listed, rowOffsets);
  }
  const offsets = empty([numExperts + 1], "int32", backend);
  const order = empty([m], "int32", backend);
  const position = empty(experts.shape, "int32", backend);
  backend.routeByExpert(experts.buffer, m, numExperts, offsets.buffer, order.buffer, position.buffer);
  const rows = empty([m], "int32", backend);
  if (listed) backend.gatherIndices(listed.buffer, order.buffer, rows.buffer, m);
  else backend.divideIndex(order.buffer, experts.shape[1]!, rows.buffer, m);
  const routing = { offsets, order, rows, position, numRows: rowOffsets ? rowOffsets.size - 1 : experts.shape[0]!, ...(rowOffsets ? { rowOffsets } : {}) };
  trustOffsets(offsets, m);
  sound.add(routing);
  return routing;
}

/** Rows and offsets say the same thing twice, and kernels follow either without asking. */
function checkLists(where: string, listed: Tensor, rowOffsets: Tensor): void {
  checkOffsets(where, rowOffsets, listed.size);
  const [rows, offsets] = [listed.dataSync(), rowOffsets.dataSync()];
  for (let row = 0; row < rowOffsets.size; row++) {
    const [begin, end] = [offsets[row]!, offsets[row + 1] ?? listed.size];
    const of = row + 1 < rowOffsets.size ? row : -1;
    for (let j = begin; j < end; j++) {
      if (rows[j] !== of) throw new TensorError(`${where}: expected the row of assignments ${begin} to ${end - 1} to be ${of}, as rowOffsets say, got ${rows[j]!} at position ${j}.`);
    }
  }
}

/** Routings that are as they should be: those of `routeByExpert`, and others that were looked through once. */
const sound = new WeakSet<Routing>();

/** Kernels follow a routing without asking, to wherever it leads. */
function checkRouting(where: string, routing: Routing): void {
  if (sound.has(routing)) return;
  const { offsets, order, rows, position, rowOffsets, numRows } = routing;
  checkOperands(where, "int32", offsets, order, rows, position, ...(rowOffsets ? [rowOffsets] : []));
  const m = position.size;
  if (rows.size !== m || order.size !== m || (rowOffsets ? rowOffsets.size !== numRows + 1 : position.rank !== 2 || position.shape[0] !== numRows)) {
    const got = [order, rows, position, rowOffsets].map((t) => (t ? `[${t.shape.join(", ")}]` : "none")).join(", ");
    throw new TensorError(`${where}: expected a routing of ${numRows} rows as routeByExpert makes them, got order, rows, position and rowOffsets of ${got}.`);
  }
  checkOffsets(where, offsets, m);
  if (rowOffsets) checkOffsets(where, rowOffsets, m);
  checkIndices(where, rows.dataSync(), m, -1, numRows);
  checkIndices(where, position.dataSync(), m, -1, m);
  sound.add(routing);
}

/** Assignments of each row, where it is the same for all. */
const perRow = ({ position, rowOffsets }: Routing): number => (rowOffsets ? 0 : position.shape[1]!);

/** x gathered into the grouped order: (M, D). Its gradient is a sum over the places of each row. */
export function dispatch(x: Tensor, routing: Routing): Tensor {
  checkOperands("dispatch", "float32", x);
  const backend = x.backend;
  const [n, width] = x.shape as [number, number];
  const { rows, position, rowOffsets, numRows } = routing;
  if (x.rank !== 2 || n !== numRows) throw new TensorError(`dispatch: expected x (N, D) with the N = ${numRows} rows of the routing, got [${x.shape.join(", ")}].`);
  checkRouting("dispatch", routing);
  const y = empty([rows.size, width], "float32", backend);
  backend.gatherRows(x.buffer, rows.buffer, y.buffer, rows.size, width);
  return record("dispatch", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", backend);
    backend.combineRows(dy.buffer, position.buffer, null, rowOffsets?.buffer ?? null, dx.buffer, n, perRow(routing), width);
    return [dx];
  });
}

/**
 * y[n] = Σ gates[j] · out[position[j]] over the assignments j of row n: the sum of Shazeer et al. 2017, eq. 1. Dropped assignments add nothing.
 * @param gates as `Routing.position`: (N, K) or (M)
 */
export function combine(out: Tensor, gates: Tensor, routing: Routing): Tensor {
  checkOperands("combine", "float32", out, gates);
  const backend = out.backend;
  const { offsets, position, rowOffsets, numRows: n } = routing;
  const [m, width] = out.shape as [number, number];
  if (out.rank !== 2 || !sameShape(gates.shape, position.shape) || m !== position.size) {
    const expected = `outputs (M, D) of M = ${position.size} assignments and gates of their shape, [${position.shape.join(", ")}]`;
    throw new TensorError(`combine: expected ${expected}, got [${out.shape.join(", ")}] and [${gates.shape.join(", ")}].`);
  }
  checkRouting("combine", routing);
  const k = perRow(routing);
  const y = empty([n, width], "float32", backend);
  backend.combineRows(out.buffer, position.buffer, gates.buffer, rowOffsets?.buffer ?? null, y.buffer, n, k, width);
  return record("combine", y, [out, gates], (dy, needs) => {
    const dOut = needs[0] ? empty([m, width], "float32", backend) : undefined;
    // A list may end with assignments of no row, which the kernel does not visit.
    const dGates = needs[1] ? (rowOffsets ? zeros(gates.shape, "float32", backend) : empty(gates.shape, "float32", backend)) : undefined;
    backend.combineRowsGrad(out.buffer, position.buffer, gates.buffer, rowOffsets?.buffer ?? null, dy.buffer, dOut?.buffer ?? null, dGates?.buffer ?? null, n, k, width);
    // Nor the places that dropped assignments would have had.
    if (dOut) backend.zeroTail(offsets.buffer, offsets.size - 1, m, dOut.buffer, width);
    return [dOut, dGates];
  });
}

/**
 * out[i] = Σ of values whose index is i: importance and load of experts.
 * @param index from -1 (left out) to size − 1; @param size length of the result
 * @throws TensorError naming the first index beyond
 */
export function bincount(values: Tensor, index: Tensor, size: number): Tensor {
  checkOperands("bincount", "float32", values);
  checkOperands("bincount", "int32", index);
  if (values.size !== index.size) throw new TensorError(`bincount: expected one index a value (${values.size}), got ${index.size}.`);
  const backend = values.backend;
  const y = empty([size], "float32", backend);
  backend.bincount(values.buffer, index.buffer, values.size, y.buffer, size);
  return record("bincount", y, [values], (dy) => {
    const dx = empty(values.shape, "float32", backend);
    backend.gatherLast(dy.buffer, index.buffer, dx.buffer, 1, size, values.size);
    return [dx];
  });
}

/** Rows in other places: which row goes where, and back. Both int32. */
export interface RowMove {
  /** (M) the row of x that each row of the result is, -1 where it is zero. */
  index: Tensor;
  /** (N) the row of the result that each row of x becomes, -1 where it is left out. */
  inverse: Tensor;
}

/**
 * The move that makes row `index[r]` of `rows` ones row r, and zeros where the index is -1.
 * @throws TensorError for an index out of range, or one that is there twice
 */
export function rowMove(index: ArrayLike<number>, rows: number, backend?: Backend): RowMove {
  const inverse = new Int32Array(rows).fill(-1);
  for (let r = 0; r < index.length; r++) {
    const from = index[r]!;
    if (from === -1) continue;
    if (!(from >= 0 && from < rows) || inverse[from] !== -1) throw new TensorError(`rowMove: expected each row from 0 to ${rows - 1} at most once (or -1), got ${from} at position ${r}.`);
    inverse[from] = r;
  }
  return { index: tensor(index, [index.length], "int32", backend), inverse: tensor(inverse, [rows], "int32", backend) };
}

/** The move that puts rows back where they were; those that were left out become zero. */
export const moveBack = ({ index, inverse }: RowMove): RowMove => ({ index: inverse, inverse: index });

/** y[r] = x[index[r]], zeros where the index is -1. Its gradient moves rows back. @param x (N, D) @returns (M, D) */
export function moveRows(x: Tensor, { index, inverse }: RowMove): Tensor {
  checkOperands("moveRows", "float32", x);
  checkOperands("moveRows", "int32", index, inverse);
  const [n, width] = x.shape as [number, number];
  if (x.rank !== 2 || n !== inverse.size) throw new TensorError(`moveRows: expected x (N, D) with the N = ${inverse.size} rows of the move, got [${x.shape.join(", ")}].`);
  checkIndices("moveRows", index.dataSync(), index.size, -1, n);
  checkIndices("moveRows", inverse.dataSync(), n, -1, index.size);
  const y = empty([index.size, width], "float32", x.backend);
  x.backend.gatherRows(x.buffer, index.buffer, y.buffer, index.size, width);
  return record("moveRows", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.gatherRows(dy.buffer, inverse.buffer, dx.buffer, n, width);
    return [dx];
  });
}
