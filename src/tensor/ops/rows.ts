/** Operations that move whole rows by index: embedding look-up, and the dispatch and combination of an MoE layer. */

import { TensorError } from "../../core/errors.js";
import { checkOperands } from "../shapes.js";
import { record } from "../tape.js";
import { empty, sameShape, type Gradient, type Tensor } from "../tensor.js";

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
  checkIndices("embedding", index, rows);
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

/** @throws TensorError naming the first value outside [0, limit) and where it stands */
export function checkIndices(where: string, index: Tensor, limit: number): void {
  const values = index.dataSync();
  for (let i = 0; i < values.length; i++) {
    if (!(values[i]! >= 0 && values[i]! < limit)) throw new TensorError(`${where}: expected indices from 0 to ${limit - 1}, got ${values[i]} at position ${i}.`);
  }
}

/** Where the assignments of rows to experts go; see `Backend.routeByExpert`. All int32. */
export interface Routing {
  /** (E+1) expert e has the grouped rows offsets[e]..offsets[e+1]. */
  offsets_E1: Tensor;
  /** (M) row of x at each place of the grouped order, -1 in an unused tail. */
  row_M: Tensor;
  /** (N, K) place of each assignment in the grouped order, -1 where dropped. */
  position_NK: Tensor;
}

/**
 * Groups assignments (N, K) by expert: a stable counting sort, so earlier rows come first.
 * @param experts_NK from -1 (dropped) to numExperts − 1; a gate's word is taken for it, since reading them back would make the layer wait
 */
export function routeByExpert(experts_NK: Tensor, numExperts: number): Routing {
  checkOperands("routeByExpert", "int32", experts_NK);
  if (experts_NK.rank !== 2) throw new TensorError(`routeByExpert: expected experts (N, K), got [${experts_NK.shape.join(", ")}].`);
  const backend = experts_NK.backend;
  const [, k] = experts_NK.shape as [number, number];
  const m = experts_NK.size;
  const offsets_E1 = empty([numExperts + 1], "int32", backend);
  const row_M = empty([m], "int32", backend);
  const position_NK = empty(experts_NK.shape, "int32", backend);
  backend.routeByExpert(experts_NK.buffer, m, numExperts, offsets_E1.buffer, row_M.buffer, position_NK.buffer);
  backend.divideIndex(row_M.buffer, k, row_M.buffer, m);
  return { offsets_E1, row_M, position_NK };
}

/** x gathered into the grouped order: (M, D). Its gradient is a sum over the K places of each row. */
export function dispatch(x_ND: Tensor, { row_M, position_NK }: Routing): Tensor {
  checkOperands("dispatch", "float32", x_ND);
  checkOperands("dispatch", "int32", row_M, position_NK);
  const backend = x_ND.backend;
  const [n, width] = x_ND.shape as [number, number];
  if (x_ND.rank !== 2 || position_NK.shape[0] !== n) {
    throw new TensorError(`dispatch: expected x (N, D) with the N = ${position_NK.shape[0]} rows of the routing, got [${x_ND.shape.join(", ")}].`);
  }
  const k = position_NK.shape[1]!;
  const y = empty([row_M.size, width], "float32", backend);
  backend.gatherRows(x_ND.buffer, row_M.buffer, y.buffer, row_M.size, width);
  return record("dispatch", y, [x_ND], (dy) => {
    const dx = empty(x_ND.shape, "float32", backend);
    backend.combineRows(dy.buffer, position_NK.buffer, null, dx.buffer, n, k, width);
    return [dx];
  });
}

/** y[n] = Σ_k gates[n, k] · out[position[n, k]]: the sum of Shazeer et al. 2017, eq. 1. Dropped assignments add nothing. */
export function combine(out_MD: Tensor, gates_NK: Tensor, { position_NK }: Routing): Tensor {
  checkOperands("combine", "float32", out_MD, gates_NK);
  checkOperands("combine", "int32", position_NK);
  const backend = out_MD.backend;
  const [n, k] = gates_NK.shape as [number, number];
  const [m, width] = out_MD.shape as [number, number];
  if (out_MD.rank !== 2 || !sameShape(gates_NK.shape, position_NK.shape) || m !== position_NK.size) {
    throw new TensorError(
      `combine: expected outputs (M, D) and gates (N, K) of a routing with (N, K) = (${position_NK.shape.join(", ")}), got [${out_MD.shape.join(", ")}] and [${gates_NK.shape.join(", ")}].`,
    );
  }
  const y = empty([n, width], "float32", backend);
  backend.combineRows(out_MD.buffer, position_NK.buffer, gates_NK.buffer, y.buffer, n, k, width);
  return record("combine", y, [out_MD, gates_NK], (dy, needs) => {
    const dOut = needs[0] ? empty([m, width], "float32", backend) : undefined;
    const dGates = needs[1] ? empty(gates_NK.shape, "float32", backend) : undefined;
    backend.combineRowsGrad(out_MD.buffer, position_NK.buffer, gates_NK.buffer, dy.buffer, dOut?.buffer ?? null, dGates?.buffer ?? null, n, k, width);
    return [dOut, dGates];
  });
}

/** out[i] = Σ of values whose index is i: importance and load of experts. @param index from -1 (left out) to size − 1; @param size length of the result */
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
