/**
 * Threads over one shared memory. A job is one kernel (or a list of products) cut into chunks; all threads, the main one too, take chunks from an atomic
 * counter until none are left. How a job is cut depends on its size and the number of threads alone, and no result depends on who did a chunk.
 */

import { Worker } from "node:worker_threads";
import { SparsegateError } from "../../core/errors.js";
import { ITEM_SIZE, type Executor } from "./executor.js";

/** Places in the control block (int32). */
export const CTL = { epoch: 0, next: 1, done: 2, kernel: 3, argCount: 4, chunks: 5, chunkSize: 6, total: 7, ready: 8, failed: 9, stop: 10 } as const;
export const CTL_INTS = 64;
export const MAX_ARGS = 32;
/** Most products in one job's list. */
export const MAX_ITEMS = 4096;
/** The kernel number that means "products of the list". */
export const PRODUCTS = -1;

/** Looks at the control block before a thread goes to sleep: about 50 µs. */
export const SPINS = 20_000;
const START_TIMEOUT_MS = 20_000;

export interface WorkerSetup {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  names: string[];
  control: SharedArrayBuffer;
  scratch: number;
  blas: string;
}

/** Views of the control block, the same in every thread. */
export function controlViews(control: ArrayBufferLike): { ctl: Int32Array; args: Float64Array; items: Float64Array } {
  const args = CTL_INTS * 4;
  return { ctl: new Int32Array(control, 0, CTL_INTS), args: new Float64Array(control, args, MAX_ARGS), items: new Float64Array(control, args + MAX_ARGS * 8, MAX_ITEMS * ITEM_SIZE) };
}

export const CONTROL_BYTES = CTL_INTS * 4 + MAX_ARGS * 8 + MAX_ITEMS * ITEM_SIZE * 8;

/** Takes chunks of the present job until none are left. */
export function takeChunks(ctl: Int32Array, args: readonly number[], executor: Executor): void {
  const [kernel, chunks, size, total] = [ctl[CTL.kernel]!, ctl[CTL.chunks]!, ctl[CTL.chunkSize]!, ctl[CTL.total]!];
  for (let chunk = Atomics.add(ctl, CTL.next, 1); chunk < chunks; chunk = Atomics.add(ctl, CTL.next, 1)) {
    const begin = chunk * size;
    const end = Math.min(total, begin + size);
    if (kernel === PRODUCTS) executor.products(begin, end);
    else executor.kernel(kernel, begin, end, args);
  }
}

export class Pool {
  readonly #workers: Worker[] = [];
  readonly #ctl: Int32Array;
  readonly #args: Float64Array;
  #started = false;

  constructor(
    readonly threads: number,
    readonly executor: Executor,
    control: ArrayBufferLike,
    setups: readonly WorkerSetup[],
  ) {
    ({ ctl: this.#ctl, args: this.#args } = controlViews(control));
    for (const setup of setups) {
      const worker = new Worker(new URL("./worker.js", import.meta.url), { workerData: setup });
      worker.unref();
      worker.on("error", () => Atomics.store(this.#ctl, CTL.failed, 1));
      this.#workers.push(worker);
    }
  }

  /**
   * Runs kernel `id` over [0, total) of its parallel axis, in chunks of at least `grain`.
   * @throws SparsegateError when a worker failed
   */
  run(id: number, total: number, grain: number, args: readonly number[]): void {
    if (total <= 0) return;
    if (this.threads === 1 || total <= grain) {
      if (id === PRODUCTS) this.executor.products(0, total);
      else this.executor.kernel(id, 0, total, args);
      return;
    }
    // Four chunks a thread even out unequal ones; a multiple of 16 keeps vectors and cache lines whole.
    const size = id === PRODUCTS ? 1 : Math.max(grain, Math.ceil(total / (this.threads * 4) / 16) * 16);
    this.#fork(id, Math.ceil(total / size), size, total, args);
  }

  #fork(id: number, chunks: number, size: number, total: number, args: readonly number[]): void {
    const ctl = this.#ctl;
    if (!this.#started) this.#awaitWorkers();
    this.#args.set(args);
    ctl[CTL.kernel] = id;
    ctl[CTL.argCount] = args.length;
    ctl[CTL.chunks] = chunks;
    ctl[CTL.chunkSize] = size;
    ctl[CTL.total] = total;
    Atomics.store(ctl, CTL.next, 0);
    Atomics.store(ctl, CTL.done, 0);
    Atomics.add(ctl, CTL.epoch, 1);
    Atomics.notify(ctl, CTL.epoch);
    takeChunks(ctl, args, this.executor);
    const workers = this.#workers.length;
    for (let spins = 0; ; spins++) {
      const done = Atomics.load(ctl, CTL.done);
      if (done === workers) break;
      // Someone else has the core that a worker needs: let go of this one.
      if (spins > SPINS) Atomics.wait(ctl, CTL.done, done, 1);
    }
    if (Atomics.load(ctl, CTL.failed) !== 0) throw new SparsegateError("A worker thread failed in a kernel. Set SPARSEGATE_THREADS=1 to run without workers, and please report it.");
  }

  /** Workers start by themselves while this thread waits. */
  #awaitWorkers(): void {
    const until = Date.now() + START_TIMEOUT_MS;
    for (;;) {
      const ready = Atomics.load(this.#ctl, CTL.ready);
      if (ready === this.#workers.length) break;
      if (Date.now() > until) throw new SparsegateError(`Worker threads did not start within ${START_TIMEOUT_MS / 1000} s. Set SPARSEGATE_THREADS=1 to run without them.`);
      Atomics.wait(this.#ctl, CTL.ready, ready, 100);
    }
    this.#started = true;
  }

  dispose(): void {
    Atomics.store(this.#ctl, CTL.stop, 1);
    Atomics.add(this.#ctl, CTL.epoch, 1);
    Atomics.notify(this.#ctl, CTL.epoch);
    for (const worker of this.#workers) void worker.terminate();
    this.#workers.length = 0;
  }
}
