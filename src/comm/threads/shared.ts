/**
 * The shared memory by which rank threads exchange messages.
 *
 * One block holds, for each rank, some words of state, and for each two ranks a ring of entries, written by one and read by the other. An entry announces a
 * piece of a message. The pieces themselves lie in the sender's outbox: slots of one size in a shared memory that grows as more of them are in use. The
 * reader of a piece frees its slot.
 */

/** Words of a rank's state (int32), two cache lines: what others write, and what they only read. */
export const RANK = { bell: 0, sleeping: 16, backlog: 17, ended: 18, exited: 19, exitCode: 20, reportLength: 21 } as const;
const RANK_WORDS = 32;
const REPORT_BYTES = 256;
/** Words at the beginning of the block. */
const HEAD = { failing: 0, failed: 1, failedRank: 2, messageLength: 3, ids: 4 } as const;
const HEAD_WORDS = 16;
const MESSAGE_BYTES = 8192;

/** Words of a ring: where it is written next and read next, on cache lines of their own, then the entries. */
const RING = { written: 0, read: 16, entries: 32 } as const;
/** Entries of a ring. One that is full holds up its writer until the reader is in a call. */
export const ENTRIES = 64;
const RING_WORDS = RING.entries + ENTRIES * 8;
/** Words of an entry: whose message, what it is, how long the whole is (in 2^30 bytes, and the rest), and this piece: its bytes and slot (-1: none). */
export const ENTRY = { group: 0, tag: 1, high: 2, low: 3, bytes: 4, slot: 5, words: 8 } as const;

/** Slots of an outbox at most: as many pieces may be on their way from one rank. */
export const MOST_SLOTS = 4096;
type Growable = SharedArrayBuffer & { grow(bytes: number): void };

/** What a rank's thread is given of the shared memory. */
export interface SharedParts {
  size: number;
  pieceBytes: number;
  block: SharedArrayBuffer;
  outboxes: SharedArrayBuffer[];
}

export function makeShared(size: number, pieceBytes: number): SharedParts {
  const bytes = 4 * (HEAD_WORDS + size * RANK_WORDS + size * size * RING_WORDS) + MESSAGE_BYTES + size * REPORT_BYTES;
  const Shared = SharedArrayBuffer as unknown as new (bytes: number, options: { maxByteLength: number }) => SharedArrayBuffer;
  const outbox = (): SharedArrayBuffer => new Shared(4 * MOST_SLOTS, { maxByteLength: 4 * MOST_SLOTS + MOST_SLOTS * pieceBytes });
  return { size, pieceBytes, block: new SharedArrayBuffer(bytes), outboxes: Array.from({ length: size }, outbox) };
}

/** The shared state of all ranks, as one thread sees it. */
export class Shared {
  readonly words: Int32Array;
  readonly #message: Uint8Array;
  readonly #reports: Uint8Array;

  constructor(readonly parts: SharedParts) {
    const { size, block } = parts;
    const end = 4 * (HEAD_WORDS + size * RANK_WORDS + size * size * RING_WORDS);
    this.words = new Int32Array(block, 0, end / 4);
    this.#message = new Uint8Array(block, end, MESSAGE_BYTES);
    this.#reports = new Uint8Array(block, end + MESSAGE_BYTES, size * REPORT_BYTES);
  }

  /** Place of a word of a rank's state. */
  place(rank: number, word: number): number {
    return HEAD_WORDS + rank * RANK_WORDS + word;
  }

  /** Tells a rank that something has changed for it. */
  ring(rank: number): void {
    const bell = this.place(rank, RANK.bell);
    Atomics.add(this.words, bell, 1);
    // Whoever goes to sleep after this sees the bell's new number, and does not.
    if (Atomics.load(this.words, this.place(rank, RANK.sleeping)) !== 0) Atomics.notify(this.words, bell);
  }

  ringAll(): void {
    for (let rank = 0; rank < this.parts.size; rank++) this.ring(rank);
  }

  /** The ring from one rank to another. */
  queue(from: number, to: number): Ring {
    return new Ring(this.words, HEAD_WORDS + this.parts.size * (RANK_WORDS + from * RING_WORDS) + to * RING_WORDS);
  }

  freshId(): number {
    return Atomics.add(this.words, HEAD.ids, 1) + 1;
  }

  /** Ends all ranks with a message; the first one counts. */
  fail(rank: number, message: string): void {
    if (Atomics.compareExchange(this.words, HEAD.failing, 0, 1) !== 0) return;
    const { written } = new TextEncoder().encodeInto(message, this.#message.subarray());
    this.words[HEAD.messageLength] = written;
    this.words[HEAD.failedRank] = rank;
    Atomics.store(this.words, HEAD.failed, 1);
    this.ringAll();
  }

  get hasFailed(): boolean {
    return Atomics.load(this.words, HEAD.failed) !== 0;
  }

  /** Who failed first, and how. */
  get failure(): { rank: number; message: string } | undefined {
    if (!this.hasFailed) return undefined;
    return { rank: this.words[HEAD.failedRank]!, message: new TextDecoder().decode(this.#message.slice(0, this.words[HEAD.messageLength])) };
  }

  /** The thread's own last word: that it ends by itself, and how. */
  exit(rank: number, code: number): void {
    Atomics.store(this.words, this.place(rank, RANK.exitCode), code);
    Atomics.store(this.words, this.place(rank, RANK.exited), 1);
  }

  /** For all to see: the thread is no more. */
  end(rank: number): void {
    Atomics.store(this.words, this.place(rank, RANK.ended), 1);
    this.ringAll();
  }

  hasEnded(rank: number): boolean {
    return Atomics.load(this.words, this.place(rank, RANK.ended)) !== 0;
  }

  /** How a rank that is no more has ended. A thread that is terminated has no last word. */
  endOf(rank: number): string {
    if (Atomics.load(this.words, this.place(rank, RANK.exited)) === 0) return "its thread was terminated from outside";
    return `it ended by itself (exit code ${Atomics.load(this.words, this.place(rank, RANK.exitCode))})`;
  }

  report(rank: number, text: string): void {
    const { written } = new TextEncoder().encodeInto(text, this.#reports.subarray(rank * REPORT_BYTES, (rank + 1) * REPORT_BYTES));
    Atomics.store(this.words, this.place(rank, RANK.reportLength), written);
  }

  /** Where a rank waits, "" when it does not. */
  reportOf(rank: number): string {
    const at = rank * REPORT_BYTES;
    return new TextDecoder().decode(this.#reports.slice(at, at + Atomics.load(this.words, this.place(rank, RANK.reportLength))));
  }
}

/** A ring of entries from one rank to another; each of its methods belongs to one of the two. */
export class Ring {
  constructor(
    readonly words: Int32Array,
    readonly at: number,
  ) {}

  /** The writer's: place of the next entry to fill in, -1 when there is no room. */
  get room(): number {
    const written = this.words[this.at + RING.written]!;
    const used = (written - Atomics.load(this.words, this.at + RING.read)) | 0;
    return used >= ENTRIES ? -1 : this.at + RING.entries + (written & (ENTRIES - 1)) * ENTRY.words;
  }

  /** The writer's: hands over the entry that was filled in. */
  push(): void {
    Atomics.add(this.words, this.at + RING.written, 1);
  }

  /** The reader's: place of the next entry, -1 when there is none. */
  get next(): number {
    const read = this.words[this.at + RING.read]!;
    return Atomics.load(this.words, this.at + RING.written) === read ? -1 : this.at + RING.entries + (read & (ENTRIES - 1)) * ENTRY.words;
  }

  /** The reader's: gives the entry back. */
  pop(): void {
    Atomics.add(this.words, this.at + RING.read, 1);
  }
}

/** The slots in which one rank lays out pieces for others. */
export class Outbox {
  readonly #states: Int32Array;
  readonly #views: Uint8Array[] = [];
  #slots = 0;

  constructor(
    readonly memory: SharedArrayBuffer,
    readonly pieceBytes: number,
  ) {
    this.#states = new Int32Array(memory, 0, MOST_SLOTS);
  }

  /** The owner's: a slot that is now in use, the lowest free one so that few pages are touched; -1 when there are no more. */
  take(): number {
    for (let slot = 0; slot < this.#slots; slot++) {
      if (Atomics.load(this.#states, slot) !== 0) continue;
      Atomics.store(this.#states, slot, 1);
      return slot;
    }
    if (this.#slots === MOST_SLOTS) return -1;
    const slot = this.#slots;
    this.#slots = Math.min(MOST_SLOTS, Math.max(4, 2 * slot));
    (this.memory as Growable).grow(4 * MOST_SLOTS + this.#slots * this.pieceBytes);
    Atomics.store(this.#states, slot, 1);
    return slot;
  }

  /** Whether there is no slot to take. Slow: for finding out what went wrong. */
  get isFull(): boolean {
    return this.#slots === MOST_SLOTS && this.#states.every((_, slot) => !this.isFree(slot));
  }

  isFree(slot: number): boolean {
    return Atomics.load(this.#states, slot) === 0;
  }

  free(slot: number): void {
    Atomics.store(this.#states, slot, 0);
  }

  view(slot: number): Uint8Array {
    return (this.#views[slot] ??= new Uint8Array(this.memory, 4 * MOST_SLOTS + slot * this.pieceBytes, this.pieceBytes));
  }
}
