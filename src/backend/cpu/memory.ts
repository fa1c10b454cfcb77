/** The one WebAssembly memory of the backend, its allocator, and the views by which the host reads and writes it. */

import { TensorError } from "../../core/errors.js";
import type { Buf, DType, MemoryUse } from "../backend.js";
import { Allocator } from "./allocator.js";
import { HEAP_START, MEMORY_LIMIT, PAGE } from "./wasm.js";

/** A part of the memory. Addresses are numbers from 0 to 2³², never negative. */
export class CpuBuf implements Buf {
  constructor(
    readonly dtype: DType,
    readonly length: number,
    readonly pointer: number,
  ) {}

  at(offset: number, length = this.length - offset): CpuBuf {
    if (!(offset >= 0 && length >= 0 && offset + length <= this.length)) throw new TensorError(`Buf.at: expected a part of ${this.length} elements, got ${length} from ${offset}.`);
    return new CpuBuf(this.dtype, length, this.pointer + 4 * offset);
  }
}

/** Byte address of a buffer, 0 for none. */
export function ptr(buf: Buf | null): number {
  return buf === null ? 0 : (buf as CpuBuf).pointer;
}

export class CpuMemory {
  /** Where shared, it never moves as it grows; a private one gets new views only. */
  readonly wasm: WebAssembly.Memory;
  readonly #allocator: Allocator;
  #floats: Float32Array;
  #ints: Int32Array;

  constructor(readonly shared: boolean) {
    this.wasm = new WebAssembly.Memory(shared ? { initial: HEAP_START / PAGE, maximum: 65536, shared: true } : { initial: HEAP_START / PAGE, maximum: 65536 });
    this.#floats = new Float32Array(this.wasm.buffer);
    this.#ints = new Int32Array(this.wasm.buffer);
    this.#allocator = new Allocator(HEAP_START, HEAP_START, MEMORY_LIMIT, (end) => this.#grow(end));
  }

  /** @throws TensorError when exhausted */
  alloc(dtype: DType, length: number): CpuBuf {
    return new CpuBuf(dtype, length, this.#allocator.alloc(4 * length));
  }

  /** An area that is never freed. */
  allocBytes(bytes: number): number {
    return this.#allocator.alloc(bytes);
  }

  free(buf: Buf): void {
    this.#allocator.free(ptr(buf));
  }

  /** The elements themselves, valid until the next `alloc`. */
  view(buf: Buf): Float32Array | Int32Array {
    const from = ptr(buf) / 4;
    return (buf.dtype === "float32" ? this.#floats : this.#ints).subarray(from, from + buf.length);
  }

  use(): MemoryUse {
    const { used, peak } = this.#allocator;
    return { used, peak, reserved: this.wasm.buffer.byteLength, limit: MEMORY_LIMIT };
  }

  resetPeak(): void {
    this.#allocator.peak = this.#allocator.used;
  }

  #grow(end: number): number {
    const size = this.wasm.buffer.byteLength;
    const pages = Math.ceil((end - size) / PAGE);
    if (pages > 0) {
      try {
        this.wasm.grow(pages);
      } catch {
        return size;
      }
    }
    this.#floats = new Float32Array(this.wasm.buffer);
    this.#ints = new Int32Array(this.wasm.buffer);
    return this.wasm.buffer.byteLength;
  }
}
