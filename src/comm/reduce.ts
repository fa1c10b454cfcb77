/** `allReduce`: which rank combines what, and the arithmetic. One loop for every kind of communicator: the bits of a sum depend on the ranks' order alone. */

import type { CommArray, ReduceOp } from "./communicator.js";
import type { Operation } from "./engine.js";

/** All-reduces of up to so many bytes go to everybody whole: one message's time instead of two. */
export const SHORT_BYTES = 16 * 1024;
/** Longer ones go in segments, which bounds what a rank keeps of others' data. */
export const SEGMENT_BYTES = 16 * 2 ** 20;

/** Everyone sends everything to everyone, and combines it. */
export function* reduceShort(operation: Operation, op: ReduceOp, data: CommArray, rank: number, size: number): Generator<void> {
  const { length } = data;
  const scratch = operation.engine.scratch.take(data, length * (size - 1));
  const parts = new Array<CommArray>(size).fill(data);
  for (let i = 1; i < size; i++) {
    const peer = (rank + i) % size;
    const at = (i - 1) * length;
    parts[peer] = scratch.subarray(at, at + length);
    operation.receive(peer, scratch, at, length);
    operation.send(peer, data, 0, length);
  }
  yield;
  combine(op, data, parts);
  oneNaN(data);
  operation.engine.scratch.give(scratch);
}

/** In each segment, a rank receives its part from everyone, combines it, and sends the result to everyone. */
export function* reduceLong(operation: Operation, op: ReduceOp, data: CommArray, rank: number, size: number): Generator<void> {
  const most = SEGMENT_BYTES / data.BYTES_PER_ELEMENT;
  for (let from = 0; from < data.length; from += most) {
    const length = Math.min(most, data.length - from);
    // Whole cache lines, so the last parts may be shorter, or empty.
    const each = Math.ceil(length / size / 16) * 16;
    const start = (peer: number): number => from + Math.min(peer * each, length);
    const count = (peer: number): number => start(peer + 1) - start(peer);
    const own = count(rank);
    const scratch = operation.engine.scratch.take(data, own * (size - 1));
    const part = data.subarray(start(rank), start(rank) + own);
    const parts = new Array<CommArray>(size).fill(part);
    for (let i = 1; i < size; i++) {
      const peer = (rank + i) % size;
      const at = (i - 1) * own;
      parts[peer] = scratch.subarray(at, at + own);
      operation.receive(peer, scratch, at, own);
      operation.send(peer, data, start(peer), count(peer));
    }
    yield;
    combine(op, part, parts);
    operation.engine.scratch.give(scratch);
    for (let i = 1; i < size; i++) {
      const peer = (rank + i) % size;
      operation.receive(peer, data, start(peer), count(peer));
      operation.send(peer, data, start(rank), own);
    }
    yield;
  }
}

/** The elements at a time of more than four ranks: their float64 sums stay in the processor's first cache. */
const BLOCK = 1024;

/** out[i] ← parts[0][i] ∘ parts[1][i] ∘ …, all of one length; `out` may be one of the parts. Sums are float64 until they are stored, which rounds them, or wraps them around. */
function combine(op: ReduceOp, out: CommArray, parts: readonly CommArray[]): void {
  if (op !== "sum") return extreme(op === "max" ? Math.max : Math.min, out, parts);
  if (parts.length <= 4) return add(out, parts);
  const block = new Float64Array(Math.min(BLOCK, out.length));
  for (let from = 0; from < out.length; from += BLOCK) {
    const to = Math.min(from + BLOCK, out.length);
    const sums = block.subarray(0, to - from);
    let pieces = parts.map((part) => part.subarray(from, to));
    for (; pieces.length > 4; pieces = [sums, ...pieces.slice(4)]) add(sums, pieces.slice(0, 4));
    add(out.subarray(from, to), pieces);
  }
}

/** Two to four at once: each pass over memory costs as much as the additions. */
function add(out: CommArray, [a, b, c, d]: readonly CommArray[]): void {
  const n = out.length;
  if (d !== undefined) for (let i = 0; i < n; i++) out[i] = a![i]! + b![i]! + c![i]! + d[i]!;
  else if (c !== undefined) for (let i = 0; i < n; i++) out[i] = a![i]! + b![i]! + c[i]!;
  else for (let i = 0; i < n; i++) out[i] = a![i]! + b![i]!;
}

function extreme(choose: (a: number, b: number) => number, out: CommArray, parts: readonly CommArray[]): void {
  for (let i = 0; i < out.length; i++) {
    let value = parts[0]![i]!;
    for (let p = 1; p < parts.length; p++) value = choose(value, parts[p]![i]!);
    out[i] = value;
  }
}

/** Which of two NaNs is passed on is up to the processor, and to how a loop was compiled: where each rank combines for itself, there is one NaN alone. */
function oneNaN(data: CommArray): void {
  for (let i = 0; i < data.length; i++) if (data[i] !== data[i]) data[i] = NaN;
}
