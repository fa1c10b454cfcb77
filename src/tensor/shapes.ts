/** Shape arithmetic that several operations share: broadcasting, strides, axes. */

import type { Spread } from "../backend/backend.js";
import { expectation, TensorError } from "../core/errors.js";
import { sameShape, sizeOf, type Shape, type Tensor } from "./tensor.js";

/** NumPy's broadcasting of two shapes. @throws TensorError naming both shapes when they do not fit */
export function broadcastShapes(where: string, a: Shape, b: Shape): Shape {
  const rank = Math.max(a.length, b.length);
  const result = new Array<number>(rank);
  for (let i = 1; i <= rank; i++) {
    const m = a.at(-i) ?? 1;
    const n = b.at(-i) ?? 1;
    if (m !== n && m !== 1 && n !== 1) {
      throw new TensorError(`${where}: expected shapes that broadcast together, got [${a.join(", ")}] and [${b.join(", ")}].`);
    }
    result[rank - i] = m === 1 ? n : m;
  }
  return result;
}

/**
 * How an operand of shape `from` is read to fill `to`, when its own axes stand together: all of it, a trailing block, a leading block or
 * a single run in between. Undefined for the rest (for example [2, 1, 3, 1] in [2, 4, 3, 5]), which `expand` handles.
 */
export function spreadOf(from: Shape, to: Shape): Spread | undefined {
  const padded = [...new Array<number>(to.length - from.length).fill(1), ...from];
  let first = 0;
  while (first < to.length && padded[first] === 1) first++;
  let last = to.length;
  while (last > first && padded[last - 1] === 1) last--;
  if (!sameShape(padded.slice(first, last), to.slice(first, last))) return undefined;
  return { div: sizeOf(to.slice(last)), mod: Math.max(sizeOf(to.slice(first, last)), 1) };
}

/** Row-major strides in elements. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  for (let i = shape.length - 1, step = 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i]!;
  }
  return strides;
}

/** Strides with which a tensor of shape `from` is read as `to`: 0 along broadcast axes. */
export function expandedStrides(from: Shape, to: Shape): number[] {
  const strides = stridesOf(from);
  const missing = to.length - from.length;
  return to.map((_, i) => (i < missing || from[i - missing] === 1 ? 0 : strides[i - missing]!));
}

/** A valid axis from one that may count from the end. */
export function axisOf(where: string, axis: number, rank: number): number {
  const positive = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || positive < 0 || positive >= rank) {
    throw new TensorError(`${where}: expected an axis from ${-rank} to ${rank - 1}, got ${axis}.`);
  }
  return positive;
}

/** The last axis and the product of those before it. */
export function rowsAndCols(where: string, x: Tensor): [rows: number, cols: number] {
  const cols = x.shape.at(-1);
  if (cols === undefined) throw new TensorError(`${where}: expected a tensor with at least one axis, got a scalar.`);
  return [sizeOf(x.shape.slice(0, -1)), cols];
}

/** @throws TensorError for what is no tensor, and when dtypes or backends do not fit the operation */
export function checkOperands(where: string, dtype: "float32" | "int32", ...tensors: readonly Tensor[]): void {
  for (const t of tensors) {
    checkTensor(where, t);
    if (t.dtype !== dtype) throw new TensorError(`${where}: expected dtype ${dtype}, got ${t.dtype} (shape [${t.shape.join(", ")}]).`);
    if (t.backend !== tensors[0]!.backend) throw new TensorError(`${where}: expected tensors of one backend, got ${tensors[0]!.backend.name} and ${t.backend.name}.`);
  }
}

/** @throws TensorError for what is no tensor, as an array */
export function checkTensor(where: string, value: unknown): void {
  if (typeof value === "object" && value !== null && "storage" in value) return;
  throw new TensorError(expectation(where, "a tensor", value, Array.isArray(value) ? "Make one of it: tensor([[1, 2], [3, 4]])." : ""));
}
