/**
 * Threads over one shared memory. A job is one kernel (or a list of products) cut into chunks; all threads, the main one too, take chunks from an atomic
 * counter until none are left. How a job is cut depends on its size and the number of threads alone, and no result depends on who did a chunk.
 *
 * The main thread never waits for a worker to come, only for chunks that one has taken: while workers start, or sleep, or have lost their core to another
 * process, it does the work itself.
 */

import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { SparsegateError } from "../../core/errors.js";
import { CTL, PRODUCTS, type Control } from "./control.js";
import type { Executor } from "./executor.js";

/** Looks at a shared word before a thread goes to sleep, about 50 µs; next to none where threads share cores, since the one waited for needs this one's. */
const SPINS = 20_000;
const SPINS_OVERSUBSCRIBED = 100;
/** Waiting so long for a chunk, look whether its thread still lives. */
const STALL_MS = 500;
/** No chunk takes this long: where dead threads cannot be told from busy ones, give up. */
const LOST_MS = 600_000;

export interface WorkerSetup {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  names: string[];
  control: SharedArrayBuffer;
  scratch: number;
  /** Path of the CBLAS that the main thread tried and trusts. */
  blas: string | undefined;
}

/** What a worker gets: its setup, its number from 0, and how long to look for a job before it sleeps. */
export interface WorkerStart extends WorkerSetup {
  slot: number;
  spins: number;
}

/**
 * A thread that is stopped while it loads a native library takes the process down with it ("napi_throw"). So no worker is ever terminated: told to stop, it
 * ends by itself. And a process that ends, which stops its workers whatever they do, waits for those that are loading.
 */
const controls = new Set<Control>();
/** Loading takes milliseconds, on a busy machine tenths of seconds. */
const LOADING_MS = 10_000;

process.once("exit", () => {
  for (const { ctl } of controls) Atomics.store(ctl, CTL.stop, 1);
  const until = Date.now() + LOADING_MS;
  for (const { ctl } of controls) {
    for (let loading = 0; (loading = Atomics.load(ctl, CTL.loading)) > 0 && Date.now() < until; ) Atomics.wait(ctl, CTL.loading, loading, 50);
  }
});

export class Pool {
  readonly #workers: Worker[] = [];
  readonly #spins: number;
  /** Why no more jobs can be run. */
  #broken: string | undefined;

  constructor(
    readonly threads: number,
    readonly executor: Executor,
    readonly control: Control,
    setups: readonly WorkerSetup[],
  ) {
    this.#spins = threads > availableParallelism() ? SPINS_OVERSUBSCRIBED : SPINS;
    for (const [slot, setup] of setups.entries()) {
      // No flags of the main thread: `node --input-type=module -e` would keep workers from starting.
      const worker = new Worker(new URL("./worker.js", import.meta.url), { workerData: { ...setup, slot, spins: this.#spins } satisfies WorkerStart, execArgv: [] });
      worker.unref();
      worker.on("error", (error) => (this.#broken ??= `A worker thread died (${error.message})`));
      worker.on("exit", () => (this.#broken ??= "A worker thread ended by itself"));
      this.#workers.push(worker);
    }
    for (const old of controls) if (Atomics.load(old.ctl, CTL.stop) !== 0 && Atomics.load(old.ctl, CTL.loading) === 0) controls.delete(old);
    if (setups.length > 0) controls.add(control);
  }

  /**
   * Runs kernel `id` over [0, total) of its parallel axis, in chunks of at least `grain`.
   * @throws SparsegateError when a worker failed
   */
  run(id: number, total: number, grain: number, args: readonly number[]): void {
    if (this.#broken !== undefined) throw this.#failure(this.#broken);
    if (total <= 0) return;
    if (this.#workers.length === 0 || total <= grain) {
      if (id === PRODUCTS) this.executor.products(0, total);
      else this.executor.kernel(id, 0, total, args);
      return;
    }
    // Four chunks a thread even out unequal ones. Where a chunk holds many small elements, multiples of 16 keep vectors and cache lines whole.
    const unit = grain >= 16 ? 16 : 1;
    const size = id === PRODUCTS ? 1 : Math.max(grain, Math.ceil(total / (this.threads * 4) / unit) * unit);
    this.#fork(id, Math.ceil(total / size), size, total, args);
  }

  /** Waits until all workers have started, for tests and benchmarks; jobs need not. */
  awaitWorkers(timeoutMs = 10_000): void {
    const { ctl } = this.control;
    const until = Date.now() + timeoutMs;
    for (let ready = 0; (ready = Atomics.load(ctl, CTL.ready)) < this.#workers.length; Atomics.wait(ctl, CTL.ready, ready, 50)) {
      const failure = this.control.takeFailure();
      if (failure !== undefined) throw this.#failure(failure);
      if (Date.now() > until) throw this.#failure(`Only ${ready} of ${this.#workers.length} worker threads started within ${timeoutMs / 1000} s`);
    }
  }

  /** Stops the workers. Any further job is an error. */
  dispose(): void {
    this.#broken = "The backend was disposed of";
    const { ctl } = this.control;
    if (this.#workers.length === 0) return;
    Atomics.store(ctl, CTL.stop, 1);
    Atomics.add(ctl, CTL.epoch, 1);
    Atomics.notify(ctl, CTL.epoch);
    this.#workers.length = 0;
  }

  #fork(id: number, chunks: number, size: number, total: number, args: readonly number[]): void {
    const { ctl } = this.control;
    for (let i = 0; i < args.length; i++) this.control.args[i] = args[i]!;
    ctl[CTL.kernel] = id;
    ctl[CTL.argCount] = args.length;
    ctl[CTL.chunks] = chunks;
    ctl[CTL.chunkSize] = size;
    ctl[CTL.total] = total;
    ctl[CTL.job]!++;
    Atomics.store(ctl, CTL.done, 0);
    Atomics.store(ctl, CTL.left, chunks);
    Atomics.add(ctl, CTL.epoch, 1);
    // A worker that goes to sleep after this sees the new epoch and does not.
    if (Atomics.load(ctl, CTL.sleeping) > 0) Atomics.notify(ctl, CTL.epoch, chunks - 1);
    this.control.takeChunks(this.executor);
    this.#join(chunks);
    const failure = this.control.takeFailure();
    if (failure !== undefined) throw this.#failure(`A thread failed (${failure})`);
  }

  /** Waits for chunks that workers have taken. */
  #join(chunks: number): void {
    const { ctl } = this.control;
    for (let spins = 0; spins < this.#spins; spins++) if (Atomics.load(ctl, CTL.done) === chunks) return;
    Atomics.store(ctl, CTL.mainWaits, 1);
    const since = Date.now();
    for (let done = 0; (done = Atomics.load(ctl, CTL.done)) < chunks; ) {
      if (Atomics.wait(ctl, CTL.done, done, STALL_MS) !== "timed-out" || !this.#lost(since)) continue;
      Atomics.store(ctl, CTL.mainWaits, 0);
      this.#broken = "A worker thread died in a job";
      throw this.#failure(this.#broken);
    }
    Atomics.store(ctl, CTL.mainWaits, 0);
  }

  /** Whether a worker is dead. Its events cannot arrive while this thread waits, so look for the thread itself where the system shows it. */
  #lost(since: number): boolean {
    const ids = this.#workers.map((_, slot) => Atomics.load(this.control.ctl, CTL.threadIds + slot)).filter((id) => id > 0);
    return ids.some((id) => !existsSync(`/proc/self/task/${id}`)) || Date.now() - since > LOST_MS;
  }

  #failure(what: string): SparsegateError {
    return new SparsegateError(`${what}. Set SPARSEGATE_THREADS=1 to run without workers, and please report it if that helps.`);
  }
}
