/**
 * The block of shared memory by which threads hand jobs to each other.
 *
 * A job is one kernel over [0, total) of its parallel axis, in `chunks` chunks; or the list of matrix products, one a chunk. `left` counts the chunks
 * that nobody has taken. Who lowers it from c to c − 1 owns chunk `chunks − c`, and until its owner has raised `done`, the main thread waits and the job's
 * description stays as it is. So a thread reads the description only while it owns a chunk, and one that comes late finds `left` at 0 and does no harm.
 */

import { ITEM_SIZE, type Executor } from "./executor.js";

/** Places in the control block (int32); what several threads write lies on cache lines of its own. */
export const CTL = {
  epoch: 0, kernel: 1, argCount: 2, chunks: 3, chunkSize: 4, total: 5, stop: 6, job: 7,
  left: 16, done: 32, mainWaits: 48, sleeping: 64, ready: 80, failed: 81, messageLength: 82, loading: 83, threadIds: 96,
} as const;
export const MAX_THREADS = 256;
/** Most products in one job's list. */
export const MAX_ITEMS = 4096;
/** The kernel number that means "products of the list". */
export const PRODUCTS = -1;

const CTL_INTS = CTL.threadIds + MAX_THREADS;
const MAX_ARGS = 32;
const MESSAGE_BYTES = 1024;
const ARGS_AT = CTL_INTS * 4;
const ITEMS_AT = ARGS_AT + MAX_ARGS * 8;
const MESSAGE_AT = ITEMS_AT + MAX_ITEMS * ITEM_SIZE * 8;

export class Control {
  static readonly BYTES = MESSAGE_AT + MESSAGE_BYTES;
  readonly ctl: Int32Array;
  readonly args: Float64Array;
  readonly items: Float64Array;
  readonly #message: Uint8Array;
  /** The present job's arguments, in this thread's own memory. */
  readonly #jobArgs: number[] = [];

  constructor(readonly buffer: ArrayBufferLike) {
    this.ctl = new Int32Array(buffer, 0, CTL_INTS);
    this.args = new Float64Array(buffer, ARGS_AT, MAX_ARGS);
    this.items = new Float64Array(buffer, ITEMS_AT, MAX_ITEMS * ITEM_SIZE);
    this.#message = new Uint8Array(buffer, MESSAGE_AT, MESSAGE_BYTES);
  }

  /** Takes chunks of the present job until none are left. A failure is reported, and its chunk counts as done: the job ends, and the main thread throws. */
  takeChunks(executor: Executor): void {
    const { ctl } = this;
    let job: number | undefined;
    const args = this.#jobArgs;
    for (;;) {
      const left = Atomics.load(ctl, CTL.left);
      if (left <= 0) return;
      if (Atomics.compareExchange(ctl, CTL.left, left, left - 1) !== left) continue;
      // One call may span several jobs.
      if (ctl[CTL.job] !== job) {
        job = ctl[CTL.job];
        args.length = ctl[CTL.argCount]!;
        for (let i = 0; i < args.length; i++) args[i] = this.args[i]!;
      }
      const chunks = ctl[CTL.chunks]!;
      const begin = (chunks - left) * ctl[CTL.chunkSize]!;
      try {
        const end = Math.min(ctl[CTL.total]!, begin + ctl[CTL.chunkSize]!);
        if (ctl[CTL.kernel] === PRODUCTS) executor.products(begin, end);
        else executor.kernel(ctl[CTL.kernel]!, begin, end, args);
      } catch (error) {
        this.fail(error);
      }
      if (Atomics.add(ctl, CTL.done, 1) + 1 === chunks && Atomics.load(ctl, CTL.mainWaits) !== 0) Atomics.notify(ctl, CTL.done);
    }
  }

  /** Reports a failure; the first one is kept. */
  fail(error: unknown): void {
    if (Atomics.compareExchange(this.ctl, CTL.failed, 0, 1) !== 0) return;
    const text = new TextEncoder().encode(error instanceof Error ? `${error.name}: ${error.message}` : String(error)).subarray(0, MESSAGE_BYTES);
    this.#message.set(text);
    Atomics.store(this.ctl, CTL.messageLength, text.length);
  }

  /** The failure reported since the last call, if any. */
  takeFailure(): string | undefined {
    if (Atomics.load(this.ctl, CTL.failed) === 0) return undefined;
    const text = new TextDecoder().decode(this.#message.slice(0, Atomics.load(this.ctl, CTL.messageLength)));
    Atomics.store(this.ctl, CTL.failed, 0);
    return text;
  }
}
