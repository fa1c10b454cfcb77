/** A worker thread of the pool: the same kernels on the same memory, waiting for jobs. */

import { readlinkSync } from "node:fs";
import { workerData } from "node:worker_threads";
import { openCblas } from "./cblas.js";
import { Control, CTL } from "./control.js";
import { Executor } from "./executor.js";
import type { WorkerStart } from "./pool.js";
import { instantiate } from "./wasm.js";

const start = workerData as WorkerStart;
const control = new Control(start.control);
const { ctl } = control;

/** The system's number of this thread, by which the main one can see that it lives; 0 where the system does not tell. */
function threadId(): number {
  try {
    return Number(readlinkSync("/proc/thread-self").split("/").at(-1));
  } catch {
    return 0;
  }
}

/** What this thread computes with; undefined when the pool was stopped before it came to it. */
function begin(): Executor | undefined {
  // Counted before looking at `stop`, which is set before the count is read: either this thread loads nothing, or it is waited for (see pool.ts).
  Atomics.add(ctl, CTL.loading, 1);
  try {
    if (Atomics.load(ctl, CTL.stop) !== 0) return undefined;
    const blas = start.blas === undefined ? undefined : openCblas(start.blas);
    return new Executor(instantiate(start.module, start.memory), start.names, control.items, start.scratch, start.memory, blas);
  } finally {
    Atomics.sub(ctl, CTL.loading, 1);
    Atomics.notify(ctl, CTL.loading);
  }
}

try {
  const executor = begin();
  Atomics.store(ctl, CTL.threadIds + start.slot, threadId());
  Atomics.add(ctl, CTL.ready, 1);
  Atomics.notify(ctl, CTL.ready);
  while (executor && Atomics.load(ctl, CTL.stop) === 0) {
    const seen = Atomics.load(ctl, CTL.epoch);
    control.takeChunks(executor);
    let spins = start.spins;
    while (Atomics.load(ctl, CTL.epoch) === seen && spins > 0) spins--;
    if (spins > 0) continue;
    Atomics.add(ctl, CTL.sleeping, 1);
    Atomics.wait(ctl, CTL.epoch, seen);
    Atomics.sub(ctl, CTL.sleeping, 1);
  }
} catch (error) {
  control.fail(error);
  throw error;
}
