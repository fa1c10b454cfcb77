/** MPI from its beginning to its end: the library, the communicator of all ranks, and what happens when this process ends, in whatever way. */

import { availableParallelism, cpus } from "node:os";
import { isMainThread } from "node:worker_threads";
import { SparsegateError } from "../../core/errors.js";
import { CommError, type Communicator } from "../communicator.js";
import { Engine, Operation } from "../engine.js";
import { GroupCommunicator } from "../group.js";
import type { MpiStart } from "./environment.js";
import { loadMpi, type Mpi } from "./library.js";
import { MpiTransport } from "./transport.js";

/** MPI_THREAD_FUNNELED: there are other threads, which do not call MPI. */
const FUNNELED = 1;
/** Large enough to cost nothing, small enough that a slow network is seen to move. */
const PIECE_BYTES = 8 * 2 ** 20;
const FINALIZE_SECONDS = 5;

export interface OpenOptions {
  library?: string | undefined;
  pieceBytes?: number | undefined;
  finalizeSeconds?: number | undefined;
}

/** @throws CommError when MPI cannot be used in this process */
export function openMpi(start: MpiStart, timeout: number, options: OpenOptions): Communicator {
  if (!isMainThread) throw new CommError("communicator: expected the main thread of a process that mpirun started, got a worker thread. MPI is called by one thread, which has to outlive all communication.");
  const variable = process.env["SPARSEGATE_MPI"];
  const mpi = loadMpi(start, options.library ?? (variable === undefined || variable === "auto" ? undefined : variable));
  const { rank, size, handle } = initialise(mpi, start);
  const cores = cpus().length;
  const localSize = start.localSize ?? 1;
  // Affinity may leave this process fewer cores than there are.
  process.env["SPARSEGATE_THREADS"] ??= String(Math.max(1, Math.min(availableParallelism(), Math.floor(cores / localSize))));
  const { pieceBytes = PIECE_BYTES, finalizeSeconds = FINALIZE_SECONDS } = options;
  const transport: MpiTransport = new MpiTransport(mpi, handle, rank, size, { pieceBytes, finalizeSeconds, oversubscribed: localSize > cores });
  const engine = new Engine(transport, timeout);
  let over = false;

  const close = (atEnd: boolean): void => {
    if (over) return;
    // MPI_Finalize waits for all ranks, and would for ever: so they meet here first, where one that is missing is noticed.
    const goodbye = new Operation(engine, transport.whole, world.traffic, "dispose", "the end of the program", "nothing", 0);
    engine.begin(goodbye, farewell(goodbye, world.others));
    engine.wait(goodbye);
    engine.refuseStrays(transport.whole, "dispose");
    over = true;
    engine.failure = "the communicator of all ranks was disposed of";
    transport.close(atEnd);
  };
  const world = new GroupCommunicator(engine, transport.whole, () => close(false));

  // An error that nobody catches is printed after the exit event, and by then MPI has ended the process.
  let uncaught = "";
  process.on("uncaughtExceptionMonitor", (error: unknown) => (uncaught = error instanceof SparsegateError ? error.message : error instanceof Error ? (error.stack ?? error.message) : String(error)));
  process.on("exit", (code) => {
    if (over) return;
    let cause = uncaught === "" ? engine.failure : uncaught;
    if (code === 0 && cause === undefined) {
      try {
        return close(true);
      } catch (error) {
        cause = (error as Error).message;
      }
    }
    over = true;
    transport.endAll(`has ended before its time, and so all ranks end (exit code ${code})${cause === undefined ? "" : `: ${cause}`}`, code || 1);
    process.exitCode = code || 1;
  });
  return world;
}

function* farewell(operation: Operation, others: readonly number[]): Generator<void> {
  for (const peer of others) {
    operation.receive(peer);
    operation.send(peer);
  }
  yield;
}

function initialise(mpi: Mpi, start: MpiStart): { rank: number; size: number; handle: number } {
  const { call, address } = mpi;
  const out = new Int32Array(new ArrayBuffer(16));
  const at = address(out);
  const check = (what: string, code: number): void => {
    if (code !== 0) throw new CommError(`communicator: expected ${what} to succeed, got error ${code} of ${mpi.version} (${mpi.path}).`);
  };
  check("MPI_Initialized", call.MPI_Initialized(at));
  if (out[0] !== 0) throw new CommError("communicator: expected a process in which MPI has not begun, got one in which something else began it.");
  check("MPI_Init_thread", call.MPI_Init_thread(0, 0, FUNNELED, at));
  if (out[0]! < FUNNELED) throw new CommError(`communicator: expected an MPI library that can be used beside other threads (MPI_THREAD_FUNNELED), got level ${out[0]} of ${mpi.version}.`);
  check("MPI_Comm_set_errhandler", call.MPI_Comm_set_errhandler(mpi.world, mpi.errorsReturn));
  // A communicator of our own: what other users of MPI in this process send cannot be taken for ours.
  check("MPI_Comm_dup", call.MPI_Comm_dup(mpi.world, at));
  const handle = mpi.vendor === "MPICH" ? out[0]! : (out[0]! >>> 0) + out[1]! * 2 ** 32;
  check("MPI_Comm_set_errhandler", call.MPI_Comm_set_errhandler(handle, mpi.errorsReturn));
  check("MPI_Comm_rank", call.MPI_Comm_rank(handle, at));
  const rank = out[0]!;
  check("MPI_Comm_size", call.MPI_Comm_size(handle, at));
  const size = out[0]!;
  if (start.size !== undefined && start.size !== size) {
    throw new CommError(
      `communicator: expected ${start.size} ranks, as mpirun (${start.vendor}) started, got ${size} from ${mpi.version} (${mpi.path}). Is that library another one than mpirun's? Set SPARSEGATE_MPI to the path of mpirun's.`,
    );
  }
  return { rank, size, handle };
}
