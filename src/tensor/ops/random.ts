/** Random tensors and dropout. Every element is a function of seed, stream, step and its own index; see core/random.ts. */

import type { Backend, RandomKey, RowGroups } from "../../backend/backend.js";
import { checkInteger } from "../../core/checks.js";
import { ConfigError, TensorError } from "../../core/errors.js";
import { streamId } from "../../core/random.js";
import { defaultBackend } from "../default-backend.js";
import { checkOperands } from "../shapes.js";
import { record } from "../tape.js";
import { empty, type Shape, type Tensor } from "../tensor.js";

/** Draws of the free functions that name no seed are numbered, so that two calls differ and one program run equals the next. */
let draws = 0;

/** What the random tensors take besides their shape. */
export interface RandomOptions {
  /** An integer; the same one gives the same numbers. Left out: 0, and each call draws anew. */
  seed?: number;
  mean?: number;
  std?: number;
  backend?: Backend;
}

function keyOf(where: string, purpose: string, seed: number | undefined): RandomKey {
  if (seed === undefined) return { seed: 0, stream: streamId(purpose, "unseeded"), step: draws++ };
  return { seed: checkInteger(where, "seed", seed), stream: streamId(purpose, "seeded"), step: 0 };
}

/** Standard normal numbers (times std, plus mean). */
export function randomNormal(shape: Shape, { seed, mean = 0, std = 1, backend = defaultBackend() }: RandomOptions = {}): Tensor {
  const y = empty(shape, "float32", backend);
  backend.randomNormal(y.buffer, y.size, keyOf("randomNormal", "normal", seed), 0, mean, std);
  return y;
}

/** Numbers uniform in [low, high). */
export function randomUniform(shape: Shape, low = 0, high = 1, { seed, backend = defaultBackend() }: RandomOptions = {}): Tensor {
  const y = empty(shape, "float32", backend);
  backend.randomUniform(y.buffer, y.size, keyOf("randomUniform", "uniform", seed), 0, low, high);
  return y;
}

/**
 * Inverted dropout: each element is 0 with probability `rate`, else divided by 1 − rate. The mask is drawn again in the backward pass, not kept.
 * @param start index of the first element in the stream: global row times width
 */
export function dropout(x: Tensor, rate: number, key: RandomKey, start = 0): Tensor {
  checkOperands("dropout", "float32", x);
  if (!(rate >= 0 && rate < 1)) throw new ConfigError(`dropout: expected a rate from 0 to below 1, got ${rate}.`);
  if (rate === 0) return x;
  const y = empty(x.shape, "float32", x.backend);
  x.backend.dropout(x.buffer, y.buffer, x.size, rate, key, start);
  return record("dropout", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.dropout(dy.buffer, dx.buffer, x.size, rate, key, start);
    return [dx];
  });
}

/**
 * `dropout` of rows (N, width) that stand in another order than their own: row r draws what row `start + rowIds[r]` would. Rows of no id become zero.
 * @param groups where rows are grouped: row n draws what row n·total + first + g would in group g, so that each pair of a row and a group has numbers of its own
 */
export function dropoutRows(x: Tensor, rate: number, key: RandomKey, rowIds: Tensor, start = 0, groups?: RowGroups<Tensor>): Tensor {
  checkOperands("dropoutRows", "float32", x);
  checkOperands("dropoutRows", "int32", rowIds);
  if (!(rate >= 0 && rate < 1)) throw new ConfigError(`dropoutRows: expected a rate from 0 to below 1, got ${rate}.`);
  if (x.rank !== 2 || rowIds.size !== x.shape[0]) throw new TensorError(`dropoutRows: expected x (N, width) and N row ids, got [${x.shape.join(", ")}] and [${rowIds.shape.join(", ")}].`);
  if (groups && (groups.offsets.dtype !== "int32" || groups.offsets.size !== groups.count + 1)) {
    throw new TensorError(`dropoutRows: expected int32 offsets (${groups.count + 1}) of ${groups.count} groups, got ${groups.offsets.dtype} [${groups.offsets.shape.join(", ")}].`);
  }
  const [rows, width] = x.shape as [number, number];
  const drop = (from: Tensor): Tensor => {
    const to = empty(x.shape, "float32", x.backend);
    x.backend.dropoutRows(from.buffer, to.buffer, rowIds.buffer, groups ? { ...groups, offsets: groups.offsets.buffer } : null, rows, width, rate, key, start);
    return to;
  };
  return record("dropoutRows", drop(x), [x], (dy) => {
    return [drop(dy)];
  });
}
