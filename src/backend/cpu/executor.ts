/** What every thread of the backend can do: run a part of a kernel, or some of a list of matrix products. */

import type { Cblas } from "./cblas.js";
import { multiply, type Workspace } from "./pieces.js";
import type { Kernels } from "./wasm.js";

/** Numbers that describe one product in the list of a job: see `Executor.products`. */
export const ITEM_SIZE = 15;

/** Epilogues of a product, as the list names them. */
export const EPILOGUE = { none: 0, relu: 1, mask: 2 } as const;

export class Executor {
  readonly #kernels: Kernels;
  readonly #functions: ((...args: number[]) => number)[];
  readonly #items: Float64Array;
  readonly #scratch: number;
  readonly #blas: Cblas | undefined;
  readonly #base: number;
  readonly #workspace: Workspace;

  constructor(kernels: Kernels, names: readonly string[], items: Float64Array, scratch: number, memory: WebAssembly.Memory, blas: Cblas | undefined) {
    this.#kernels = kernels;
    this.#functions = names.map((name) => kernels[name]!);
    this.#items = items;
    this.#scratch = scratch;
    this.#blas = blas;
    const base = (this.#base = blas ? blas.addressOf(memory) : 0);
    this.#workspace = {
      address: base + scratch,
      transpose: (from, fromStride, rows, columns, to, toStride, beta) => {
        kernels["transposeBlock"]!(from - base, fromStride, rows, columns, to - base, toStride, beta);
      },
    };
  }

  /** Kernel number `id` over [begin, end) of its parallel axis. */
  kernel(id: number, begin: number, end: number, args: readonly number[]): void {
    this.#functions[id]!(begin, end, ...args);
  }

  /** Products begin..end of the list: each transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, epilogue, its mask (in the place of c, rows as far apart). */
  products(begin: number, end: number): void {
    const flush = this.#blas?.flushDenormals;
    flush?.(true);
    try {
      this.#products(begin, end);
    } finally {
      flush?.(false);
    }
  }

  #products(begin: number, end: number): void {
    const items = this.#items;
    for (let i = begin; i < end; i++) {
      const at = i * ITEM_SIZE;
      this.gemm(items[at] !== 0, items[at + 1] !== 0, items[at + 2]!, items[at + 3]!, items[at + 4]!, items[at + 5]!, items[at + 6]!, items[at + 7]!,
        items[at + 8]!, items[at + 9]!, items[at + 10]!, items[at + 11]!, items[at + 12]!);
      if (items[at + 13] === EPILOGUE.relu) this.#kernels["reluBlock"]!(items[at + 11]!, items[at + 12]!, items[at + 2]!, items[at + 3]!);
      else if (items[at + 13] === EPILOGUE.mask) this.#kernels["maskBlock"]!(items[at + 11]!, items[at + 14]!, items[at + 12]!, items[at + 2]!, items[at + 3]!);
    }
  }

  gemm(transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
    a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number): void {
    // CBLAS may return before scaling C when there is nothing to add, and insists on strides of at least 1.
    if (this.#blas && k > 0) multiply(this.#blas, this.#workspace, transA, transB, m, n, k, alpha, this.#base + a, Math.max(lda, 1), this.#base + b, Math.max(ldb, 1), beta, this.#base + c, Math.max(ldc, 1));
    else this.#kernels["gemm"]!(transA ? 1 : 0, transB ? 1 : 0, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, this.#scratch);
  }
}
