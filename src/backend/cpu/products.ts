/** Cuts matrix products into lists of smaller ones for the pool. Where a cut falls depends on sizes and the number of threads alone. */

import { ITEM_SIZE } from "./executor.js";
import { MAX_ITEMS, PRODUCTS } from "./control.js";
import type { Pool } from "./pool.js";

/** Multiply-adds below which waking the other threads costs more than it saves. */
const SMALL = 100_000;
/** Pieces a thread when a single product is cut. */
const PIECES = 2;
/** A list whose largest product is so many times the average is put in order. */
const UNEVEN = 1.5;
/** Pieces of C are multiples of this many rows or columns: whole register tiles of every BLAS. */
const TILE = 48;

export class ProductList {
  readonly #costs = new Float64Array(MAX_ITEMS);
  #count = 0;
  #work = 0;
  #most = 0;

  constructor(
    readonly pool: Pool,
    readonly items: Float64Array,
  ) {}

  /** Adds a product, in one piece. @param epilogue see EPILOGUE; @param mask where it reads, beside c */
  add(transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number, a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number, epilogue = 0, mask = 0): void {
    if (m === 0 || n === 0) return;
    if (this.#count === MAX_ITEMS) this.flush();
    const cost = m * n * k;
    this.#costs[this.#count] = cost;
    const at = this.#count++ * ITEM_SIZE;
    const { items } = this;
    items[at] = transA ? 1 : 0;
    items[at + 1] = transB ? 1 : 0;
    items[at + 2] = m;
    items[at + 3] = n;
    items[at + 4] = k;
    items[at + 5] = alpha;
    items[at + 6] = a;
    items[at + 7] = lda;
    items[at + 8] = b;
    items[at + 9] = ldb;
    items[at + 10] = beta;
    items[at + 11] = c;
    items[at + 12] = ldc;
    items[at + 13] = epilogue;
    items[at + 14] = mask;
    this.#work += cost;
    this.#most = Math.max(this.#most, cost);
  }

  /** Adds a product cut along the longer side of C into at most `pieces`. */
  addCut(pieces: number, transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number, a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number, epilogue = 0, mask = 0): void {
    const byRows = m >= n;
    const side = byRows ? m : n;
    const size = pieces <= 1 ? side : Math.max(TILE, Math.ceil(side / pieces / TILE) * TILE);
    for (let from = 0; from < side; from += size) {
      const part = Math.min(size, side - from);
      if (byRows) this.add(transA, transB, part, n, k, alpha, a + 4 * from * (transA ? 1 : lda), lda, b, ldb, beta, c + 4 * from * ldc, ldc, epilogue, mask + 4 * from * ldc);
      else this.add(transA, transB, m, part, k, alpha, a, lda, b + 4 * from * (transB ? ldb : 1), ldb, beta, c + 4 * from, ldc, epilogue, mask + 4 * from);
    }
  }

  /** Pieces into which one product of so many multiply-adds should be cut when the whole job has `total`. */
  pieces(work: number, total: number): number {
    if (this.pool.threads === 1 || total < SMALL) return 1;
    return Math.max(1, Math.min(this.pool.threads * PIECES, Math.round((work / total) * this.pool.threads * PIECES)));
  }

  /** Carries out everything added. */
  flush(): void {
    const count = this.#count;
    const work = this.#work;
    if (work >= SMALL && this.#most * count > UNEVEN * work) this.#largestFirst(count);
    this.#count = 0;
    this.#work = 0;
    this.#most = 0;
    if (count > 0) this.pool.run(PRODUCTS, count, work < SMALL ? count : 1, []);
  }

  /** Orders the list by work, so that no thread is left alone with a large product at the end. Equal ones keep their order. */
  #largestFirst(count: number): void {
    const order = Array.from({ length: count }, (_, i) => i).sort((i, j) => this.#costs[j]! - this.#costs[i]!);
    const before = this.items.slice(0, count * ITEM_SIZE);
    for (const [to, from] of order.entries()) this.items.set(before.subarray(from * ITEM_SIZE, (from + 1) * ITEM_SIZE), to * ITEM_SIZE);
  }
}
