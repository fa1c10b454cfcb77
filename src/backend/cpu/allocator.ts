/** Memory blocks inside one growing address space: best fit over power-of-two-and-eighths classes, with neighbours joined when freed. */

import { TensorError } from "../../core/errors.js";

const ALIGN = 64;
/** Blocks from this size on begin a page of memory, as products of few rows want of their weights (docs/decisions/013). */
const [LARGE, PAGE] = [2 ** 20, 4096];
/** Pages left out after such a block: without, tensors of a power of two bytes made one after the other would lie at the same places of the caches, and drive each other out (docs/decisions/014). */
const APART = 4;
const CLASSES_PER_OCTAVE = 8;
/** Blocks of the exact class that are looked at before a larger one is cut. */
const TRIES = 16;
/** The space grows by at least this much, so that growing stays rare. */
const STEP = 4 * 2 ** 20;

interface Block {
  start: number;
  size: number;
  free: boolean;
  /** Neighbours by address, so that freed blocks can be joined. */
  before: Block | undefined;
  after: Block | undefined;
}

/** Index of the size class that holds blocks of at least 2^o·(1 + e/8) bytes. */
function classOf(size: number): number {
  const octave = 31 - Math.clz32(Math.floor(size / ALIGN));
  const eighth = Math.floor((size / ALIGN / 2 ** octave - 1) * CLASSES_PER_OCTAVE);
  return octave * CLASSES_PER_OCTAVE + eighth;
}

/**
 * Hands out addresses; what lies there is the caller's. All bookkeeping is outside the space, so that wild writes cannot break it.
 * @param grow makes the space reach at least `end`; returns where it ends then, less than `end` when it cannot
 */
export class Allocator {
  readonly #classes: Set<Block>[] = [];
  readonly #live = new Map<number, Block>();
  #last: Block | undefined;
  #end: number;
  used = 0;
  peak = 0;

  constructor(
    readonly start: number,
    end: number,
    readonly limit: number,
    readonly grow: (end: number) => number,
  ) {
    this.#end = end;
    if (end > start) this.#addFree(start, end - start);
  }

  /** The address of at least `bytes` bytes, aligned to 64, and where they are a MiB or more to a page. @throws TensorError when the space is exhausted */
  alloc(bytes: number): number {
    if (!(Number.isInteger(bytes) && bytes >= 0)) throw new TensorError(`alloc: expected a whole number of bytes of at least 0, got ${bytes}.`);
    const align = bytes >= LARGE ? PAGE : ALIGN;
    const spare = bytes >= LARGE ? (1 + APART) * PAGE - ALIGN : 0;
    const size = Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN) + spare;
    const block = this.#find(size) ?? this.#extend(size, bytes);
    this.#unlist(block);
    if (block.size - size >= ALIGN) this.#split(block, size);
    block.free = false;
    const address = Math.ceil(block.start / align) * align;
    this.#live.set(address, block);
    this.used += block.size;
    this.peak = Math.max(this.peak, this.used);
    return address;
  }

  /** @throws TensorError for an address that is not in use */
  free(address: number): void {
    const block = this.#live.get(address);
    if (!block) throw new TensorError(`free: expected the address of a live buffer, got ${address}. Was it freed twice?`);
    this.#live.delete(address);
    this.used -= block.size;
    block.free = true;
    this.#list(this.#join(block));
  }

  /** Where the space ends now. */
  get reserved(): number {
    return this.#end;
  }

  /** Free blocks, lowest address first: for tests of joining. */
  freeBlocks(): { start: number; size: number }[] {
    return this.#classes.flatMap((blocks) => [...blocks].map(({ start, size }) => ({ start, size }))).sort((a, b) => a.start - b.start);
  }

  /** A block of the exact class where one of a few fits, else one of the next class that has any; before the space grows, whatever fits. */
  #find(size: number): Block | undefined {
    const exact = classOf(size);
    let tries = TRIES;
    for (const block of this.#classes[exact] ?? []) {
      if (block.size >= size) return block;
      if (--tries === 0) break;
    }
    // Most classes are empty, and their size costs less than an iterator.
    for (let c = exact + 1; c < this.#classes.length; c++) if (this.#classes[c]!.size > 0) for (const block of this.#classes[c]!) return block;
    if (tries === 0) for (const block of this.#classes[exact]!) if (block.size >= size) return block;
    return undefined;
  }

  #extend(size: number, bytes: number): Block {
    const tail = this.#last?.free ? this.#last.size : 0;
    const needed = this.#end + size - tail;
    let end = this.#end;
    if (needed <= this.limit) {
      end = this.grow(Math.min(this.limit, Math.max(needed, this.#end + STEP, Math.floor(this.#end * (17 / 16)))));
      // The system may refuse the step and still have what is needed.
      if (end < needed) end = this.grow(needed);
    }
    if (end < needed) {
      throw new TensorError(
        `Memory exhausted: ${megabytes(bytes)} asked for, ${megabytes(this.used)} in use, ${megabytes(this.limit)} can be had. ` +
          "Run each step in a scope(), which frees what it made, or use a smaller batch or model, or the factored optimiser for experts.",
      );
    }
    const added = this.#addFree(this.#end, end - this.#end);
    this.#end = end;
    return added;
  }

  #addFree(start: number, size: number): Block {
    const block: Block = { start, size, free: true, before: this.#last, after: undefined };
    if (this.#last) this.#last.after = block;
    this.#last = block;
    const joined = this.#join(block);
    this.#list(joined);
    return joined;
  }

  #split(block: Block, size: number): void {
    const rest: Block = { start: block.start + size, size: block.size - size, free: true, before: block, after: block.after };
    if (block.after) block.after.before = rest;
    else this.#last = rest;
    block.after = rest;
    block.size = size;
    this.#list(rest);
  }

  /** Joins a free block, not listed, with its free neighbours. */
  #join(block: Block): Block {
    const { before, after } = block;
    if (after?.free) {
      this.#unlist(after);
      block.size += after.size;
      block.after = after.after;
      if (after.after) after.after.before = block;
      else this.#last = block;
    }
    if (!before?.free) return block;
    this.#unlist(before);
    before.size += block.size;
    before.after = block.after;
    if (block.after) block.after.before = before;
    else this.#last = before;
    return before;
  }

  #list(block: Block): void {
    const c = classOf(block.size);
    while (this.#classes.length <= c) this.#classes.push(new Set());
    this.#classes[c]!.add(block);
  }

  #unlist(block: Block): void {
    this.#classes[classOf(block.size)]?.delete(block);
  }
}

function megabytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
