/**
 * What ranks say to each other: the interface that everything above is written against, whether its ranks are one process, threads of one, or processes
 * on many hosts. For expert parallelism (Shazeer et al. 2017, section 3.1): ordinary layers stand on every rank, each expert on one, and rows travel by
 * `allToAll`.
 */

import { SparsegateError } from "../core/errors.js";

/** What can be sent: a typed array, or a part of one (`subarray`). Where it lies in shared WebAssembly memory, it is sent from there. */
export type CommArray = Float32Array | Int32Array | Float64Array;

/** Element by element over ranks. `max` and `min` are those of Math: NaN wins, and 0 is more than -0. */
export type ReduceOp = "sum" | "max" | "min";

/** Elements for each rank, in rank order. */
export type Counts = ArrayLike<number>;

/** An operation that was begun. Its array must be left alone until `wait` has returned. */
export interface Pending {
  /** Whether it has ended, without waiting for it. */
  readonly done: boolean;
  /** Returns when the operation has ended; at once when it has ended before. @throws CommError as the blocking operation does */
  wait(): void;
}

/** What went between this rank and others since the communicator was made. What a rank sends to itself does not count. */
export interface Traffic {
  /** Payload, without what goes around it. */
  bytesSent: number;
  bytesReceived: number;
  /** Operations begun, by name. */
  calls: Record<string, number>;
}

/** Something between ranks that cannot go on: a wrong call, ranks that do not make the same call, or one that died or hangs. */
export class CommError extends SparsegateError {
  override readonly name = "CommError";
}

/**
 * A group of ranks that call the same operations in the same order. Every call but `sendTo`, `receiveFrom` and `abort` is made by all ranks of the group;
 * it blocks until this rank has its result and may use its arrays again, not until the others do. Lengths and counts are in elements. An array longer
 * than it has to be is used from its beginning.
 *
 * Wrong arguments are refused on the rank that gives them, before anything is sent. Ranks that call different operations, or the same one with other
 * types or counts, are found out by what arrives; the error then ends the communicator for good. An error that is not caught ends its rank, and a rank
 * that ends before its time ends all the others, each with a message that names it.
 */
export interface Communicator {
  /** How ranks are run: one process alone, threads of one process (`runRanks`), or processes that mpirun started. */
  readonly kind: "alone" | "threads" | "mpi";
  /** This rank's place in the group, from 0. */
  readonly rank: number;
  /** Number of ranks in the group. */
  readonly size: number;
  /** Payload between this rank and others, in this communicator alone. */
  readonly traffic: Readonly<Traffic>;

  /** Returns when every rank has called it. */
  barrier(): void;

  /** Gives every rank the data of the root, in place. Sent along a binomial tree. */
  broadcast(data: CommArray, root: number): void;

  /**
   * data[i] ← data[i] of rank 0 ∘ … ∘ data[i] of the last rank, in place, of equal length on all ranks.
   *
   * The bits of the result are the same on every rank, in every run, and for every kind of communicator: each element is combined in rank order, by the
   * same loop, on values that have all arrived; nothing depends on who was first. Sums of float32 are added in float64 and rounded once; sums of int32
   * wrap around at 32 bits. How: up to 16 KiB every rank sends everything to every other, and each combines for itself. Of more, rank r receives the
   * r-th part from all, combines it, and sends the result to all, in segments of 16 MiB.
   */
  allReduce(data: CommArray, op?: ReduceOp): void;

  /**
   * `allReduce`, begun now and ended by `wait`. Several may be open, and be waited for in any order, on each rank another. An open one goes on
   * whenever this rank is in a call of the communicator or of one that was split from it, and rests while it computes.
   */
  allReduceStart(data: CommArray, op?: ReduceOp): Pending;

  /**
   * Puts the arrays of all ranks one after the other into `receive`, on every rank.
   * @param send may be its own place in `receive`, which is then not copied
   * @param counts length of each rank's array, the same on every rank; default: as many each as `send` has
   */
  allGather(send: CommArray, receive: CommArray, counts?: Counts): void;

  /**
   * Sends the r-th part of `send` to rank r, and receives from it the r-th part of `receive`. Parts lie one after the other in rank order.
   * @param sendCounts elements for each rank
   * @param receiveCounts elements from each rank: what that rank has in its `sendCounts` for this one
   */
  allToAll(send: CommArray, sendCounts: Counts, receive: CommArray, receiveCounts: Counts): void;

  /**
   * Puts the arrays of all ranks one after the other into `receive` on the root.
   * @param receive undefined except on the root
   * @param counts length of each rank's array, needed on the root alone; default: as many each as `send` has
   */
  gather(send: CommArray, receive: CommArray | undefined, root: number, counts?: Counts): void;

  /**
   * The opposite of `gather`: the r-th part of the root's `send` goes to rank r.
   * @param send undefined except on the root
   * @param counts elements for each rank, needed on the root alone; default: as many each as `receive` has
   */
  scatter(send: CommArray | undefined, receive: CommArray, root: number, counts?: Counts): void;

  /**
   * Sends to one rank, which calls `receiveFrom` with the same tag and length. Returns when `data` may be used again. Short messages, of up to 2 KiB, only wait
   * for the other to be in a call, whatever it asks for and however many there are. Long ones may wait until it has begun to receive them, so that two ranks that
   * both send first may wait for each other; and where 4096 pieces of long ones wait in threads, short ones do too.
   * @param tag from 0 to 8191; messages of one tag arrive in the order they were sent
   */
  sendTo(data: CommArray, to: number, tag?: number): void;

  /** Receives what one rank sends by `sendTo`. */
  receiveFrom(data: CommArray, from: number, tag?: number): void;

  /**
   * A communicator of those ranks that give the same color.
   * @param color an integer from 0
   * @param key order of the ranks in it; where equal, and by default, they keep their order
   */
  split(color: number, key?: number): Communicator;

  /** Ends all ranks, wherever they are, with this message and this rank's number. Under MPI the process ends in this call. */
  abort(message: string): never;

  /** Frees what the communicator holds; every rank calls it, when nothing is open any more. That of the whole program ends in good order by itself. */
  dispose(): void;
}
