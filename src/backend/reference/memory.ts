/** Memory of the reference backend: ordinary typed arrays, filled with values that show when something reads what nobody wrote. */

import { TensorError } from "../../core/errors.js";
import type { Buf, DType, MemoryUse } from "../backend.js";

export type Floats = Float64Array;

export class ReferenceBuf implements Buf {
  constructor(
    readonly dtype: DType,
    readonly data: Float64Array | Int32Array,
  ) {}

  get length(): number {
    return this.data.length;
  }

  at(offset: number, length = this.length - offset): Buf {
    if (offset < 0 || length < 0 || offset + length > this.length) {
      throw new TensorError(`Buf.at: expected a part of ${this.length} elements, got ${length} from ${offset}.`);
    }
    return new ReferenceBuf(this.dtype, this.data.subarray(offset, offset + length));
  }
}

/** The float64 elements of a buffer. */
export function floats(buf: Buf): Float64Array {
  return (buf as ReferenceBuf).data as Float64Array;
}

/** The int32 elements of a buffer. */
export function ints(buf: Buf): Int32Array {
  return (buf as ReferenceBuf).data as Int32Array;
}

export class ReferenceMemory {
  readonly #live = new Set<Buf>();
  #used = 0;
  #peak = 0;

  alloc(dtype: DType, length: number): Buf {
    const data = dtype === "float32" ? new Float64Array(length).fill(Number.NaN) : new Int32Array(length).fill(0x7fffffff);
    const buf = new ReferenceBuf(dtype, data);
    this.#live.add(buf);
    this.#used += data.byteLength;
    this.#peak = Math.max(this.#peak, this.#used);
    return buf;
  }

  free(buf: Buf): void {
    if (!this.#live.delete(buf)) throw new TensorError("free: expected a live buffer from alloc, got one that was freed before or is a part of another.");
    const { data } = buf as ReferenceBuf;
    this.#used -= data.byteLength;
    // Whoever still reads it sees it.
    if (data instanceof Float64Array) data.fill(Number.NaN);
    else data.fill(0x7fffffff);
  }

  use(): MemoryUse {
    return { used: this.#used, peak: this.#peak, reserved: this.#used, limit: Number.POSITIVE_INFINITY };
  }

  resetPeak(): void {
    this.#peak = this.#used;
  }
}
