/** The rows of a layer whose batch is spread over ranks: each has some of them, and a gate sees all (Shazeer et al. 2017, section 3.1). */

import type { CommArray, Communicator } from "../comm/communicator.js";
import { show, TensorError } from "../core/errors.js";
import { reshape } from "../tensor/ops/shape.js";
import { record } from "../tensor/tape.js";
import { empty, tensor, zeros, type Tensor } from "../tensor/tensor.js";
import { gatherIndices } from "../tensor/ops/gating.js";
import { pick } from "./gates/list.js";
import type { GateOutput } from "./gates/gate.js";

/** Assignments of a gate, without what is measured of them. */
export type Assigned = Pick<GateOutput, "experts" | "gates" | "rows" | "rowOffsets">;

/**
 * Which rows of the whole batch are here. Made by all ranks at once.
 *
 * What is computed from `gather` is the same on every rank, bit for bit, and so is its gradient: importance and load are those of the whole batch, and so
 * is whatever looks at all of it (capacity, batchwise masks). Each rank then takes the gradient of its own rows alone, so that the sum over ranks is the
 * gradient, and nothing is counted twice.
 */
export class RankRows {
  /** Rows on all ranks. */
  readonly total: number;
  /** int32 (n): where each row of this rank stands among all. */
  readonly own: Tensor;
  /** The ranks that the batch is spread over. */
  readonly comm: Communicator;
  readonly #counts: Int32Array;
  /** For each row of all, its place where those of each rank stand one after the other. */
  readonly places: Int32Array;
  readonly #order: Tensor;

  /** @param rows of this rank; @param rowIds where they stand among all; left out: after those of the ranks before @throws TensorError for ids that are no numbering */
  constructor(comm: Communicator, rows: number, x: Tensor, rowIds: Tensor | undefined) {
    this.comm = comm;
    const counts = new Int32Array(comm.size);
    comm.allGather(Int32Array.of(rows), counts);
    this.#counts = counts;
    this.total = counts.reduce((sum, n) => sum + n, 0);
    if (rowIds && rowIds.size !== rows) throw new TensorError(`MoE.forward: expected rowIds of ${rows} rows, got ${rowIds.size}.`);
    const before = counts.subarray(0, comm.rank).reduce((sum, n) => sum + n, 0);
    const own = rowIds ? (rowIds.dataSync() as Int32Array) : Int32Array.from({ length: rows }, (_, i) => before + i);
    const all = new Int32Array(this.total);
    comm.allGather(own, all, counts);
    const order = new Int32Array(this.total).fill(-1);
    for (const [place, row] of all.entries()) {
      if (!(row >= 0 && row < this.total) || order[row] !== -1) {
        throw new TensorError(`MoE.forward: expected rowIds that number the ${this.total} rows of all ranks, each once, got ${show(row)}. They count from firstRow.`);
      }
      order[row] = place;
    }
    const int = (data: Int32Array): Tensor => tensor(data, [data.length], "int32", x.backend);
    this.places = order;
    [this.own, this.#order] = [int(own), int(order)];
  }

  /** The rows of all ranks (total, width) from those of each (n, width). The gradient that reaches this rank's rows is theirs. */
  gather(x: Tensor): Tensor {
    return gatherOfRanks(this.comm, x, this.#counts, this.#order, this.own);
  }

  /** The rank that has a row. */
  rankOf(row: number): number {
    let place = this.places[row]!;
    let rank = 0;
    while (place >= this.#counts[rank]!) place -= this.#counts[rank++]!;
    return rank;
  }

  /** A parameter that every rank uses alike: its gradient is the first rank's, none the others'. */
  once(parameter: Tensor): Tensor {
    return record("once", parameter.alias(), [parameter], (dy) => [this.comm.rank === 0 ? dy : zeros(parameter.shape, "float32", parameter.backend)]);
  }

  /** The assignments of this rank's rows, in their order, out of those of all rows. */
  take({ experts, gates, rows, rowOffsets }: Assigned): Assigned {
    const own = this.own.dataSync();
    const k = rows ? 0 : experts.shape[1]!;
    const starts = rowOffsets?.dataSync();
    const begin = (row: number): number => (starts ? starts[row]! : row * k);
    const offsets = new Int32Array(own.length + 1);
    for (const [i, row] of own.entries()) offsets[i + 1] = offsets[i]! + begin(row + 1) - begin(row);
    const entries = new Int32Array(offsets.at(-1)!);
    const rowOf = new Int32Array(entries.length);
    for (const [i, row] of own.entries()) {
      for (let j = offsets[i]!; j < offsets[i + 1]!; j++) {
        entries[j] = begin(row) + j - offsets[i]!;
        rowOf[j] = i;
      }
    }
    const int = (data: Int32Array): Tensor => tensor(data, [data.length], "int32", experts.backend);
    const index = int(entries);
    const mine = { experts: gatherIndices(reshape(experts, [-1]), index), gates: pick(reshape(gates, [-1]), index) };
    if (rows) return { ...mine, rows: int(rowOf), rowOffsets: int(offsets) };
    return { experts: reshape(mine.experts, [own.length, k]), gates: reshape(mine.gates, [own.length, k]) };
  }
}

/**
 * The rows of all ranks, in an order that they share, from those of each. The gradient that reaches this rank's rows is theirs.
 * @param x (n, width), of which the first counts[rank] go to all; @param order int32: for each row of the result its place where those of each rank stand one
 * after the other; @param own int32 (n): for each row of x its place in the result. Of both, -1 for none
 */
export function gatherOfRanks(comm: Communicator, x: Tensor, counts: ArrayLike<number>, order: Tensor, own: Tensor): Tensor {
  const { backend } = x;
  const width = x.shape[1]!;
  const send = x.dataSync().subarray(0, counts[comm.rank]! * width);
  const numbers = Array.from(counts, (n) => n * width);
  const all = arrayLike(send, numbers.reduce((sum, n) => sum + n, 0));
  comm.allGather(send, all, numbers);
  const byRank = tensor(all, [all.length / width, width], "float32", backend);
  const y = empty([order.size, width], "float32", backend);
  backend.gatherRows(byRank.buffer, order.buffer, y.buffer, order.size, width);
  return record("gather of ranks", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", backend);
    backend.gatherRows(dy.buffer, own.buffer, dx.buffer, own.size, width);
    return [dx];
  });
}

/** An array of the type of another. */
export function arrayLike<A extends CommArray>(like: A, length: number): A {
  return new (like.constructor as new (length: number) => A)(length);
}
