/**
 * A thread that ends the process when MPI_Finalize does not return. All ranks have come to their end by then, so nothing is lost; but some libraries leave one rank
 * waiting for another that has gone on to wait for it (MPICH 4.0 over UCX and TCP does so in one run of four).
 */

import { writeSync } from "node:fs";
import { createRequire } from "node:module";
import { workerData } from "node:worker_threads";

/** What the guard is started with. */
export interface GuardStart {
  seconds: number;
  /** What it says before it ends the process, with exit code 0. */
  text: string;
  /** The system's library. */
  library: string;
}

const { seconds, text, library } = workerData as GuardStart;
Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000 * seconds);
// Only now: a thread that is stopped while it loads a native library takes the process down.
const koffi = createRequire(import.meta.url)("koffi") as { load(path: string): { func(signature: string): (code: number) => void } };
const exit = koffi.load(library).func("void _exit(int)");
writeSync(2, text);
exit(0);
