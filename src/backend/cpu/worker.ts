/** A worker thread of the pool: the same kernels on the same memory, waiting for jobs. */

import { workerData } from "node:worker_threads";
import { findCblas } from "./cblas.js";
import { Executor } from "./executor.js";
import { controlViews, CTL, SPINS, takeChunks, type WorkerSetup } from "./pool.js";
import { instantiate } from "./wasm.js";

const { module, memory, names, control, scratch, blas } = workerData as WorkerSetup;
const { ctl, args, items } = controlViews(control);
const executor = new Executor(instantiate(module, memory), names, items, scratch, memory, findCblas(blas).found);

let seen = 0;
Atomics.add(ctl, CTL.ready, 1);
Atomics.notify(ctl, CTL.ready);
for (;;) {
  for (let spins = 0; Atomics.load(ctl, CTL.epoch) === seen; spins++) if (spins > SPINS) Atomics.wait(ctl, CTL.epoch, seen, 1000);
  seen++;
  if (Atomics.load(ctl, CTL.stop) !== 0) break;
  try {
    takeChunks(ctl, Array.from(args.subarray(0, ctl[CTL.argCount])), executor);
  } catch {
    Atomics.store(ctl, CTL.failed, 1);
  }
  Atomics.add(ctl, CTL.done, 1);
  Atomics.notify(ctl, CTL.done);
}
