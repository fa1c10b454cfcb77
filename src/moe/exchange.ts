/** The way of rows to the ranks of their experts and back (Shazeer et al. 2017, section 3.1). Gradients go the same ways in the other direction. */

import type { Communicator } from "../comm/communicator.js";
import type { Routing } from "../tensor/ops/rows.js";
import { record } from "../tensor/tape.js";
import { empty, tensor, zeros, type Tensor } from "../tensor/tensor.js";
import { arrayLike } from "./ranks.js";

/** Experts of rank r are those from bounds[r] to bounds[r + 1]: as even as can be. @param unit experts that stay together, as those of a group */
export function placeExperts(numExperts: number, ranks: number, unit = 1): number[] {
  const units = numExperts / unit;
  return Array.from({ length: ranks + 1 }, (_, r) => Math.floor((r * units) / ranks) * unit);
}

/** Of these, what rank `rank` has. */
export function placedOn(bounds: readonly number[], rank: number): { first: number; count: number } {
  return { first: bounds[rank]!, count: bounds[rank + 1]! - bounds[rank]! };
}

/** An exchange of rows that are grouped by expert. Made by all ranks at once; each then calls the same methods in the same order. */
export class RowExchange {
  /** int32: the experts here have the rows offsets[e]..offsets[e + 1] of what comes. */
  readonly offsets: Tensor;
  readonly #comm: Communicator;
  /** Rows for and from each rank. */
  readonly #sent: number[];
  readonly #received: number[];
  /** int32: for each place of the order by expert, which of the received rows it has, and the other way. */
  readonly #order: Tensor;
  readonly #place: Tensor;

  /** @param bounds of `placeExperts`; @param routing of this rank's rows to all experts */
  constructor(comm: Communicator, bounds: readonly number[], { offsets, rows: { backend } }: Pick<Routing, "offsets" | "rows">) {
    this.#comm = comm;
    const { rank, size } = comm;
    const starts = offsets.dataSync();
    const ofRank = Array.from({ length: size }, (_, r) => bounds[r + 1]! - bounds[r]!);
    const here = ofRank[rank]!;
    this.#sent = ofRank.map((_, r) => starts[bounds[r + 1]!]! - starts[bounds[r]!]!);
    // From each rank, its rows for each of the experts here.
    const counts = new Int32Array(size * here);
    comm.allToAll(Int32Array.from({ length: starts.length - 1 }, (_, e) => starts[e + 1]! - starts[e]!), ofRank, counts, new Array<number>(size).fill(here));
    this.#received = ofRank.map((_, r) => counts.subarray(r * here, (r + 1) * here).reduce((sum, n) => sum + n, 0));
    const total = this.#received.reduce((sum, n) => sum + n, 0);
    const next: number[] = [];
    for (let r = 0, at = 0; r < size; r++) {
      next.push(at);
      at += this.#received[r]!;
    }
    const [own, order, place] = [new Int32Array(here + 1), new Int32Array(total), new Int32Array(total)];
    for (let e = 0, to = 0; e < here; e++) {
      for (let r = 0; r < size; r++) {
        for (let n = counts[r * here + e]!; n > 0; n--) {
          place[next[r]!] = to;
          order[to++] = next[r]!++;
        }
      }
      own[e + 1] = to;
    }
    const int = (data: Int32Array): Tensor => tensor(data, [data.length], "int32", backend);
    [this.offsets, this.#order, this.#place] = [int(own), int(order), int(place)];
  }

  /** This rank's rows (M, D), those of an expert one after the other, to the ranks of their experts. @returns the rows for the experts here, by expert */
  toExperts(x: Tensor): Tensor {
    return record("rows to experts", this.#there(x), [x], (dy) => [this.#back(dy, x.shape[0]!)]);
  }

  /**
   * What the experts here made of their rows, to where these came from. @param m as of `toExperts`; places of dropped rows are zero
   * @param here the rows that y was made from, where it may have been made of none of them, as by modules that are not called without rows: gradients go the
   * same way on all ranks or on none, and so they go back from here too, as zeros
   */
  fromExperts(y: Tensor, m: number, here?: Tensor): Tensor {
    if (!here) return record("rows from experts", this.#back(y, m), [y], (dy) => [this.#there(dy)]);
    const always = zeros([0], "float32", y.backend);
    always.requiresGrad = true;
    return record("rows from experts", this.#back(y, m), [y, here, always], (dy, needs) => [this.#there(dy), needs[1] ? zeros(here.shape, "float32", y.backend) : undefined, undefined]);
  }

  /** As `toExperts`, a number for each row. */
  numbersToExperts(numbers: Tensor): Tensor {
    const all = new Int32Array(this.#order.size);
    this.#comm.allToAll(numbers.dataSync() as Int32Array, this.#sent, all, this.#received);
    const order = this.#order.dataSync();
    return tensor(Int32Array.from(order, (from) => all[from]!), [order.length], "int32", numbers.backend);
  }

  #there(x: Tensor): Tensor {
    const width = x.shape[1]!;
    const send = x.dataSync();
    const all = arrayLike(send, this.#order.size * width);
    this.#comm.allToAll(send, scaled(this.#sent, width), all, scaled(this.#received, width));
    const received = empty([this.#order.size, width], "float32", x.backend);
    x.backend.write(received.buffer, all);
    return gatherRows(received, this.#order);
  }

  #back(y: Tensor, m: number): Tensor {
    const width = y.shape[1]!;
    const send = gatherRows(y, this.#place).dataSync();
    const all = arrayLike(send, m * width);
    this.#comm.allToAll(send, scaled(this.#received, width), all, scaled(this.#sent, width));
    const result = empty([m, width], "float32", y.backend);
    y.backend.write(result.buffer, all);
    return result;
  }
}

function gatherRows(rows: Tensor, index: Tensor): Tensor {
  const { backend } = rows;
  const width = rows.shape[1]!;
  const result = empty([index.size, width], "float32", backend);
  backend.gatherRows(rows.buffer, index.buffer, result.buffer, index.size, width);
  return result;
}

const scaled = (counts: readonly number[], width: number): number[] => counts.map((n) => n * width);
