/** One rank of the benchmark `comm`: started by runRanks, or by mpirun with the options and a file for the result as arguments. */

import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { isMainThread } from "node:worker_threads";
import { communicator, type Communicator } from "#sparsegate/comm/index.js";
import { mpiStart } from "#sparsegate/comm/mpi/environment.js";
import { loadMpi, type Mpi } from "#sparsegate/comm/mpi/library.js";
import { timingOf } from "./harness.js";

export interface Measured {
  call: "barrier" | "allToAll" | "allReduce";
  /** Bytes that each rank has. */
  bytes: number;
  /** Median, and fastest. */
  micros: number;
  fastest: number;
  /** The same by MPI's own blocking call. */
  own: { micros: number; fastest: number } | undefined;
}

interface Options {
  bytes: number[];
  seconds: number;
}

export default function main(comm: Communicator, { bytes, seconds }: Options): Measured[] {
  const mpi = comm.kind === "mpi" ? ownCalls() : undefined;
  const measured: Measured[] = [];
  const time = (call: Measured["call"], size: number, ours: () => void, own: (() => void) | undefined): void => {
    const [mine, theirs] = alternate(comm, seconds, own === undefined ? [ours] : [ours, own]);
    measured.push({
      call,
      bytes: size,
      micros: mine!.median * 1e6,
      fastest: mine!.fastest * 1e6,
      own: theirs && { micros: theirs.median * 1e6, fastest: theirs.fastest * 1e6 },
    });
  };
  time("barrier", 0, () => comm.barrier(), mpi && (() => mpi.barrier()));
  for (const size of bytes) {
    const each = size / 4 / comm.size;
    const counts = new Array<number>(comm.size).fill(each);
    // In shared memory, where the tensors of a backend lie.
    const [send, receive] = [0, 1].map(() => new Float32Array(new SharedArrayBuffer(size))) as [Float32Array, Float32Array];
    send.fill(comm.rank);
    time("allToAll", size, () => comm.allToAll(send, counts, receive, counts), mpi && (() => mpi.allToAll(send, receive, each)));
    if (receive.some((value, i) => value !== Math.floor(i / each)))
      throw new Error("allToAll: expected each rank's number in its part");
    const sum = send.fill(1).slice();
    comm.allReduce(sum);
    if (sum.some((value) => value !== comm.size)) throw new Error("allReduce: expected the number of ranks everywhere");
    // Sums of sums would grow beyond all bounds.
    send.fill(0);
    time("allReduce", size, () => comm.allReduce(send), mpi && (() => mpi.allReduce(send)));
  }
  return measured;
}

/** Times cases in turn, in blocks of calls, for so many seconds each. All ranks make as many calls: rank 0 decides how many. */
function alternate(comm: Communicator, seconds: number, cases: readonly (() => void)[]): ReturnType<typeof timingOf>[] {
  const run = (work: () => void, calls: number): number => {
    comm.barrier();
    const begun = performance.now();
    for (let i = 0; i < calls; i++) work();
    return (performance.now() - begun) / 1000 / calls;
  };
  const ROUNDS = 15;
  const blocks = cases.map((work) => {
    run(work, 20);
    const calls = Float64Array.of(Math.min(2000, Math.max(1, Math.round(seconds / ROUNDS / run(work, 5)))));
    comm.broadcast(calls, 0);
    return calls[0]!;
  });
  const times = cases.map((): number[] => []);
  for (let round = 0; round < ROUNDS; round++) for (const [i, work] of cases.entries()) times[i]!.push(run(work, blocks[i]!));
  return times.map(timingOf);
}

/** MPI's own collectives, on the communicator of all ranks. */
function ownCalls(): {
  barrier(): void;
  allToAll(send: Float32Array, receive: Float32Array, each: number): void;
  allReduce(data: Float32Array): void;
} {
  const mpi: Mpi = loadMpi(mpiStart()!, process.env["SPARSEGATE_MPI"]);
  const koffi = createRequire(import.meta.url)("koffi") as {
    load(path: string): { func(signature: string): (...args: number[]) => number; symbol(name: string): bigint };
  };
  const library = koffi.load(mpi.path);
  const open = mpi.vendor === "Open MPI";
  const handle = open ? "uintptr_t" : "int";
  const [float, sum, inPlace] = open
    ? [Number(library.symbol("ompi_mpi_float")), Number(library.symbol("ompi_mpi_op_sum")), 1]
    : [0x4c00040a, 0x58000003, -1];
  const barrier = library.func(`int MPI_Barrier(${handle})`);
  const allToAll = library.func(`int MPI_Alltoall(intptr_t, int, ${handle}, intptr_t, int, ${handle}, ${handle})`);
  const allReduce = library.func(`int MPI_Allreduce(intptr_t, intptr_t, int, ${handle}, ${handle}, ${handle})`);
  const check = (code: number): void => mustBeZero(code);
  return {
    barrier: () => check(barrier(mpi.world)),
    allToAll: (send, receive, each) =>
      check(allToAll(mpi.address(send), each, float, mpi.address(receive), each, float, mpi.world)),
    allReduce: (data) => check(allReduce(inPlace, mpi.address(data), data.length, float, sum, mpi.world)),
  };
}

function mustBeZero(code: number): void {
  if (code !== 0) throw new Error(`expected MPI's own call to succeed, got error ${code}`);
}

if (isMainThread && process.argv[3] !== undefined) {
  const comm = await communicator();
  const measured = main(comm, JSON.parse(process.argv[2]!) as Options);
  if (comm.rank === 0) writeFileSync(process.argv[3], JSON.stringify(measured));
}
