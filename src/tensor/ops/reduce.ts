/** Sums, and functions of whole rows: softmax, log-sum-exp, layer normalisation, top-k. */

import { TensorError } from "../../core/errors.js";
import { axisOf, checkOperands, expandedStrides, rowsAndCols, spreadOf, stridesOf } from "../shapes.js";
import { record } from "../tape.js";
import { empty, type Shape, type Tensor } from "../tensor.js";

/** Sum over the given axes (all when left out); reduced axes are dropped. */
export function sum(x: Tensor, axes?: number | readonly number[]): Tensor {
  return scaledSum("sum", x, axes, false);
}

/** Mean over the given axes (all when left out); reduced axes are dropped. The mean of nothing is 0. */
export function mean(x: Tensor, axes?: number | readonly number[]): Tensor {
  return scaledSum("mean", x, axes, true);
}

function scaledSum(name: string, x: Tensor, axes: number | readonly number[] | undefined, divide: boolean): Tensor {
  checkOperands(name, "float32", x);
  const list = axes === undefined ? x.shape.map((_, i) => i) : (typeof axes === "number" ? [axes] : axes).map((axis) => axisOf(name, axis, x.rank));
  const kept: Shape = x.shape.map((n, i) => (list.includes(i) ? 1 : n));
  const shape = x.shape.filter((_, i) => !list.includes(i));
  const y = empty(shape, "float32", x.backend);
  const scale = divide ? y.size / Math.max(x.size, 1) : 1;
  const spread = spreadOf(kept, x.shape);
  if (spread) x.backend.spreadSum(x.buffer, spread, scale, y.buffer, x.size);
  else {
    x.backend.fill(y.buffer, 0, y.size);
    x.backend.stridedAdd(x.shape, x.buffer, stridesOf(x.shape), y.buffer, expandedStrides(kept, x.shape));
    x.backend.affine(y.buffer, scale, 0, y.buffer, y.size);
  }
  return record(name, y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.stridedCopy(x.shape, dy.buffer, expandedStrides(kept, x.shape), dx.buffer, stridesOf(x.shape));
    if (scale !== 1) x.backend.affine(dx.buffer, scale, 0, dx.buffer, dx.size);
    return [dx];
  });
}

/** Softmax over the last axis. */
export function softmax(x: Tensor): Tensor {
  checkOperands("softmax", "float32", x);
  const [rows, cols] = rowsAndCols("softmax", x);
  const y = empty(x.shape, "float32", x.backend);
  x.backend.softmax(x.buffer, y.buffer, rows, cols);
  const saved = y.alias();
  return record("softmax", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.softmaxGrad(saved.buffer, dy.buffer, dx.buffer, rows, cols);
    return [dx];
  });
}

/** log(softmax) over the last axis, without the loss of precision of the composition. */
export function logSoftmax(x: Tensor): Tensor {
  checkOperands("logSoftmax", "float32", x);
  const [rows, cols] = rowsAndCols("logSoftmax", x);
  const y = empty(x.shape, "float32", x.backend);
  x.backend.logSoftmax(x.buffer, y.buffer, rows, cols);
  const saved = y.alias();
  return record("logSoftmax", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.logSoftmaxGrad(saved.buffer, dy.buffer, dx.buffer, rows, cols);
    return [dx];
  });
}

/** log Σ eˣ over the last axis; −∞ where that is empty, ∞ where an x is (the gradient of that row is NaN). */
export function logSumExp(x: Tensor): Tensor {
  checkOperands("logSumExp", "float32", x);
  const [rows, cols] = rowsAndCols("logSumExp", x);
  const y = empty(x.shape.slice(0, -1), "float32", x.backend);
  x.backend.logSumExp(x.buffer, y.buffer, rows, cols);
  return record("logSumExp", y, [x], (dy) => {
    // d logSumExp = softmax, scaled by dy of the row.
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.softmax(x.buffer, dx.buffer, rows, cols);
    x.backend.binary("mul", dx.buffer, { div: 1, mod: Math.max(x.size, 1) }, dy.buffer, { div: cols, mod: Math.max(rows, 1) }, dx.buffer, x.size);
    return [dx];
  });
}

/** (x − mean) / √(variance + epsilon) · gamma + beta over the last axis (Ba et al. 2016). */
export function layerNorm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon = 1e-5): Tensor {
  checkOperands("layerNorm", "float32", x, gamma, beta);
  const [rows, cols] = rowsAndCols("layerNorm", x);
  if (gamma.size !== cols || beta.size !== cols) {
    throw new TensorError(`layerNorm: expected gamma and beta of width ${cols}, got ${gamma.size} and ${beta.size}.`);
  }
  const backend = x.backend;
  const y = empty(x.shape, "float32", backend);
  const mean = empty([rows], "float32", backend);
  const rstd = empty([rows], "float32", backend);
  backend.layerNorm(x.buffer, gamma.buffer, beta.buffer, y.buffer, mean.buffer, rstd.buffer, rows, cols, epsilon);
  return record("layerNorm", y, [x, gamma, beta], (dy) => {
    const dx = empty(x.shape, "float32", backend);
    const dGamma = empty(gamma.shape, "float32", backend);
    const dBeta = empty(beta.shape, "float32", backend);
    backend.layerNormGrad(x.buffer, gamma.buffer, mean.buffer, rstd.buffer, dy.buffer, dx.buffer, dGamma.buffer, dBeta.buffer, rows, cols);
    return [dx, dGamma, dBeta];
  });
}

/**
 * The k largest of the last axis, largest first; equal values by the lower index. Gradients flow into the chosen values.
 * @returns values and int32 indices, both (..., k)
 */
export function topK(x: Tensor, k: number): { values: Tensor; indices: Tensor } {
  checkOperands("topK", "float32", x);
  const [rows, cols] = rowsAndCols("topK", x);
  if (!Number.isInteger(k) || k < 1 || k > cols) throw new TensorError(`topK: expected k from 1 to ${cols} (the last axis), got ${k}.`);
  const shape = [...x.shape.slice(0, -1), k];
  const values = empty(shape, "float32", x.backend);
  const indices = empty(shape, "int32", x.backend);
  x.backend.topK(x.buffer, values.buffer, indices.buffer, rows, cols, k);
  record("topK", values, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.fill(dx.buffer, 0, dx.size);
    x.backend.scatterAddLast(dy.buffer, indices.buffer, dx.buffer, rows, cols, k);
    return [dx];
  });
  return { values, indices };
}

/** out[..., j] = x[..., index[..., j]]; index -1 gives 0. @param index from -1 to the width of x less 1 @throws TensorError naming the first index beyond */
export function gatherLast(x: Tensor, index: Tensor): Tensor {
  checkOperands("gatherLast", "float32", x);
  checkOperands("gatherLast", "int32", index);
  const [rows, cols] = rowsAndCols("gatherLast", x);
  const [indexRows, k] = rowsAndCols("gatherLast", index);
  if (rows !== indexRows) throw new TensorError(`gatherLast: expected ${rows} rows of indices, got ${indexRows}.`);
  const y = empty(index.shape, "float32", x.backend);
  x.backend.gatherLast(x.buffer, index.buffer, y.buffer, rows, cols, k);
  return record("gatherLast", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.fill(dx.buffer, 0, dx.size);
    x.backend.scatterAddLast(dy.buffer, index.buffer, dx.buffer, rows, cols, k);
    return [dx];
  });
}
