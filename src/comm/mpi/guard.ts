/**
 * A thread that ends the process when MPI_Finalize does not return. Nothing is on its way between ranks by then; but some libraries leave one rank
 * waiting for another that has gone on to wait for it (MPICH 4.0 over UCX and TCP does so in one run of four).
 */

import { writeSync } from "node:fs";
import { createRequire } from "node:module";
import { workerData } from "node:worker_threads";

/** What the guard is started with. */
export interface GuardStart {
  seconds: number;
  /** One word: 1 when MPI_Finalize has returned, whereupon the guard goes. */
  returned: Int32Array<SharedArrayBuffer>;
  /** What it says before it ends the process, and the exit code. */
  text: string;
  code: number;
  /** The system's library. */
  library: string;
}

const { seconds, returned, text, code, library } = workerData as GuardStart;
if (Atomics.wait(returned, 0, 0, 1000 * seconds) === "timed-out") {
  // Only now: a thread that is stopped while it loads a native library takes the process down.
  const koffi = createRequire(import.meta.url)("koffi") as { load(path: string): { func(signature: string): (code: number) => void } };
  const exit = koffi.load(library).func("void _exit(int)");
  // Loading takes a while too.
  if (Atomics.load(returned, 0) === 0) {
    writeSync(2, text);
    exit(code);
  }
}
