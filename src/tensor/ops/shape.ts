/** Operations that move elements and compute nothing: reshape, permute, slice, concat. */

import { TensorError } from "../../core/errors.js";
import { axisOf, checkOperands, stridesOf } from "../shapes.js";
import { record } from "../tape.js";
import { empty, sameShape, sizeOf, zeros, type Shape, type Tensor } from "../tensor.js";

/** The same elements under another shape; one axis may be -1. No copy is made. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  const known = shape.reduce((product, n) => (n === -1 ? product : product * n), 1);
  const target = shape.map((n) => (n === -1 ? x.size / Math.max(known, 1) : n));
  if (sizeOf(target) !== x.size || target.some((n) => !Number.isInteger(n) || n < 0)) {
    throw new TensorError(`reshape: expected a shape of ${x.size} elements for [${x.shape.join(", ")}], got [${shape.join(", ")}].`);
  }
  const y = x.alias(target);
  return record("reshape", y, [x], (dy) => [dy.alias(x.shape)]);
}

/** Axes in another order: axis i of the result is axis `axes[i]` of x. */
export function permute(x: Tensor, axes: readonly number[]): Tensor {
  if (!sameShape([...axes].sort((a, b) => a - b), x.shape.map((_, i) => i))) {
    throw new TensorError(`permute: expected an order of the ${x.rank} axes, got [${axes.join(", ")}].`);
  }
  const shape = axes.map((axis) => x.shape[axis]!);
  const y = empty(shape, x.dtype, x.backend);
  const strides = stridesOf(x.shape);
  const permuted = axes.map((axis) => strides[axis]!);
  x.backend.stridedCopy(shape, x.buffer, permuted, y.buffer, stridesOf(shape));
  return record("permute", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.stridedCopy(shape, dy.buffer, stridesOf(shape), dx.buffer, permuted);
    return [dx];
  });
}

/** The last two axes exchanged. */
export function transpose(x: Tensor): Tensor {
  if (x.rank < 2) throw new TensorError(`transpose: expected at least two axes, got shape [${x.shape.join(", ")}].`);
  const axes = x.shape.map((_, i) => i);
  [axes[x.rank - 2], axes[x.rank - 1]] = [x.rank - 1, x.rank - 2];
  return permute(x, axes);
}

/** Elements begin..end of one axis (end excluded). */
export function slice(x: Tensor, axis: number, begin: number, end: number): Tensor {
  const a = axisOf("slice", axis, x.rank);
  if (!(Number.isInteger(begin) && Number.isInteger(end) && 0 <= begin && begin <= end && end <= x.shape[a]!)) {
    throw new TensorError(`slice: expected 0 <= begin <= end <= ${x.shape[a]} on axis ${a}, got ${begin} and ${end}.`);
  }
  const shape = x.shape.map((n, i) => (i === a ? end - begin : n));
  const strides = stridesOf(x.shape);
  const y = empty(shape, x.dtype, x.backend);
  // Of nothing there is no place `begin` to start at.
  if (y.size > 0) x.backend.stridedCopy(shape, x.buffer.at(begin * strides[a]!), strides, y.buffer, stridesOf(shape));
  return record("slice", y, [x], (dy) => {
    const dx = zeros(x.shape, "float32", x.backend);
    if (dy.size > 0) x.backend.stridedCopy(shape, dy.buffer, stridesOf(shape), dx.buffer.at(begin * strides[a]!), strides);
    return [dx];
  });
}

/** Tensors one after another along an axis. */
export function concat(parts: readonly Tensor[], axis = 0): Tensor {
  const first = parts[0];
  if (!first) throw new TensorError("concat: expected at least one tensor, got none.");
  const a = axisOf("concat", axis, first.rank);
  checkOperands("concat", first.dtype, ...parts);
  for (const part of parts) {
    if (part.rank !== first.rank || part.shape.some((n, i) => i !== a && n !== first.shape[i])) {
      throw new TensorError(`concat: expected shapes equal but for axis ${a}, got [${first.shape.join(", ")}] and [${part.shape.join(", ")}].`);
    }
  }
  const shape = first.shape.map((n, i) => (i === a ? parts.reduce((sum, part) => sum + part.shape[a]!, 0) : n));
  const strides = stridesOf(shape);
  const y = empty(shape, first.dtype, first.backend);
  const starts: number[] = [];
  let position = 0;
  for (const part of parts) {
    starts.push(position * strides[a]!);
    if (part.size > 0) part.backend.stridedCopy(part.shape, part.buffer, stridesOf(part.shape), y.buffer.at(starts.at(-1)!), strides);
    position += part.shape[a]!;
  }
  return record("concat", y, parts, (dy) =>
    parts.map((part, i) => {
      const dx = empty(part.shape, "float32", part.backend);
      if (part.size > 0) part.backend.stridedCopy(part.shape, dy.buffer.at(starts[i]!), strides, dx.buffer, stridesOf(part.shape));
      return dx;
    }),
  );
}
