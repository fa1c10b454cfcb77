/** A bidirectional LSTM layer over sentences of different lengths, and where such sentences and their padding stand. */

import { TensorError, expectation } from "../core/errors.js";
import { add } from "../tensor/ops/elementwise.js";
import { moveBack, moveRows, rowMove, type RowMove } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import { tensor, type Tensor } from "../tensor/tensor.js";
import { Lstm, type LayerOptions } from "./layers.js";
import { Module, type Init } from "./module.js";

/** Score of a position that must not be attended to: e to it is 0 in any precision, and no infinity that could give NaN. */
const NEVER = -1e30;

/** B sentences side by side, (time, batch), of T steps at most: each fills the first steps of its lane, and padding the rest. */
export class Lanes {
  readonly batchSize: number;
  #packing: RowMove | undefined;
  /** @param whole on ranks: the lengths of all lanes of the batch, of which these are those from `first` on @throws TensorError for a length above `steps` */
  constructor(
    readonly lengths: Int32Array,
    readonly steps: number,
    readonly whole?: { readonly first: number; readonly lengths: Int32Array } | undefined,
  ) {
    this.batchSize = lengths.length;
    for (const length of lengths) if (!(length >= 0 && length <= steps)) throw new TensorError(expectation("Lanes", `lengths from 0 to ${steps} steps`, length));
  }

  /** Turns each sentence around within its own length; rows of padding become zero. It is its own way back. */
  reversal(): RowMove {
    const index = new Int32Array(this.steps * this.batchSize).fill(-1);
    this.#visit((row, t, lane) => (index[row] = (this.lengths[lane]! - 1 - t) * this.batchSize + lane));
    return rowMove(index, index.length);
  }

  /** Leaves out the padding: rows of the sentences alone, by step and then lane. `moveBack` of it puts zeros there again. Made once. */
  packing(): RowMove {
    if (this.#packing) return this.#packing;
    const rows: number[] = [];
    this.#visit((row) => rows.push(row));
    return (this.#packing = rowMove(rows, this.steps * this.batchSize));
  }

  /** int32 (T·B): where each row stands among those of all ranks; undefined where the lanes are the whole batch. */
  rowIds(): Tensor | undefined {
    if (!this.whole) return undefined;
    const { first, lengths } = this.whole;
    const ids = Int32Array.from({ length: this.steps * this.batchSize }, (_, i) => Math.floor(i / this.batchSize) * lengths.length + first + (i % this.batchSize));
    return tensor(ids, [ids.length], "int32");
  }

  /** int32: the same of the rows that `packing` leaves. */
  packedRowIds(): Tensor | undefined {
    if (!this.whole) return undefined;
    const { first, lengths } = this.whole;
    const ids: number[] = [];
    let id = 0;
    for (let t = 0; t < this.steps; t++) {
      for (const [lane, length] of lengths.entries()) {
        if (t >= length) continue;
        if (lane >= first && lane < first + this.batchSize) ids.push(id);
        id++;
      }
    }
    return tensor(ids, [ids.length], "int32");
  }

  /** (B, S) what is added to scores of attention: 0, and −1e30 in the padding. */
  attentionBias(): Tensor {
    const bias = new Float32Array(this.batchSize * this.steps).fill(NEVER);
    this.#visit((_, t, lane) => (bias[lane * this.steps + t] = 0));
    return tensor(bias, [this.batchSize, this.steps]);
  }

  #visit(see: (row: number, t: number, lane: number) => void): void {
    for (let t = 0; t < this.steps; t++) {
      for (let lane = 0; lane < this.batchSize; lane++) if (t < this.lengths[lane]!) see(t * this.batchSize + lane, t, lane);
    }
  }
}

/** Moves the rows of a sequence (T, B, D) and keeps its shape. */
function move(x: Tensor, by: RowMove): Tensor {
  return reshape(moveRows(reshape(x, [-1, x.shape[2]!]), by), x.shape);
}

/**
 * Two LSTM layers, one of which reads each sentence from its end; the output is the sum of both. With a projection that is one projection of the units of
 * both, so that the width stays the layer's own (concatenating them, as others do, doubles it).
 */
export class BidirectionalLstm extends Module {
  readonly forwards: Lstm;
  readonly backwards: Lstm;

  constructor(options: LayerOptions & { inputSize: number; hiddenSize: number; projectionSize?: number | undefined; init?: Init }) {
    super();
    const { name = "bidirectional", ...rest } = options;
    this.forwards = new Lstm({ ...rest, name: `${name}.forwards` });
    this.backwards = new Lstm({ ...rest, name: `${name}.backwards` });
  }

  /**
   * Rows of padding have no meaning in the output, and no influence on the others.
   * @param x (T, B, D) @returns (T, B, P)
   */
  forward(x: Tensor, lanes: Lanes): Tensor {
    if (x.rank !== 3 || x.shape[0] !== lanes.steps || x.shape[1] !== lanes.batchSize) {
      throw new TensorError(`BidirectionalLstm.forward: expected x (${lanes.steps}, ${lanes.batchSize}, D) as the lanes have it, got [${x.shape.join(", ")}].`);
    }
    const reversal = lanes.reversal();
    const { output } = this.backwards.forward(move(x, reversal));
    return add(this.forwards.forward(x).output, move(output, moveBack(reversal)));
  }
}
