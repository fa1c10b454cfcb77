/** Finds out what this program is a rank of. */

import { ConfigError, expectation } from "../core/errors.js";
import { checkNumber } from "../core/checks.js";
import { aloneTransport } from "./alone.js";
import type { Communicator } from "./communicator.js";
import { Engine } from "./engine.js";
import { GroupCommunicator } from "./group.js";
import { mpiStart } from "./mpi/environment.js";
import { rankStart } from "./threads/start.js";
import type { Transport } from "./transport.js";

/** How ranks wait, and by which MPI. */
export interface CommunicatorOptions {
  /** Seconds a call may wait without anything moving before it gives up, 0 for ever; default: SPARSEGATE_COMM_TIMEOUT, else 300. */
  timeout?: number;
  /** Path of the MPI library; default: SPARSEGATE_MPI, else the one that belongs to the mpirun that started this process. */
  library?: string;
  /** @internal Bytes of a piece of a long message between MPI ranks. */
  pieceBytes?: number;
  /** @internal Seconds after which a process ends whose MPI_Finalize has not returned. */
  finalizeSeconds?: number;
}

const TIMEOUT = 300;
let opened: Promise<Communicator> | undefined;

/**
 * The communicator of all ranks of this program: threads in a thread of `runRanks`, MPI in a process that mpirun started (its environment has OMPI_* or
 * PMI_* variables), else one rank alone. Every call gives the same one; options of the first count. Ranks of MPI that share a host also share its cores:
 * SPARSEGATE_THREADS is set to this rank's part, unless it is set already, so make backends after this call.
 *
 * @throws CommError when mpirun started this process but MPI cannot be used: no koffi, no library, or one of another vendor
 * @throws ConfigError for options or variables that cannot be used
 */
export function communicator(options: CommunicatorOptions = {}): Promise<Communicator> {
  opened ??= open(options).catch((error: unknown) => {
    opened = undefined;
    throw error;
  });
  return opened;
}

async function open(options: CommunicatorOptions): Promise<Communicator> {
  const start = rankStart();
  const timeout = start?.timeout ?? options.timeout ?? timeoutOfEnvironment();
  checkNumber("communicator", "timeout (seconds)", timeout, { min: 0 });
  const mpi = start === undefined ? mpiStart() : undefined;
  // Each kind is loaded where it is used: most programs are one rank.
  if (mpi !== undefined) return (await import("./mpi/open.js")).openMpi(mpi, timeout, options);
  const transport: Transport = start === undefined ? aloneTransport() : new (await import("./threads/transport.js")).ThreadTransport(start.parts, start.rank);
  return new GroupCommunicator(new Engine(transport, timeout), transport.whole, () => transport.close());
}

function timeoutOfEnvironment(): number {
  const text = process.env["SPARSEGATE_COMM_TIMEOUT"];
  if (text === undefined) return TIMEOUT;
  const seconds = Number(text);
  if (text.trim() === "" || !Number.isFinite(seconds) || seconds < 0) throw new ConfigError(expectation("SPARSEGATE_COMM_TIMEOUT", "seconds, 0 for ever", text));
  return seconds;
}
