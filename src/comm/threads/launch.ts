/** Runs a program as several ranks, each a thread of this process, and ends them all when one of them fails. */

import { availableParallelism } from "node:os";
import { SHARE_ENV, Worker } from "node:worker_threads";
import { checkInteger } from "../../core/checks.js";
import { ConfigError, expectation } from "../../core/errors.js";
import { CommError } from "../communicator.js";
import { Shared, makeShared } from "./shared.js";
import { textOf, type RankStart } from "./start.js";

/** Ranks that have been told that another one failed end in their next call; those that make none are terminated. */
const GRACE_MS = 5000;
/** Small enough that both sides' copies of it stay in a processor's cache. */
const PIECE_BYTES = 256 * 1024;
const MOST_RANKS = 256;

/** What a caller may do with a rank's thread: a type of our own, for programs that have no types of Node. */
export interface RankThread {
  readonly threadId: number;
  /** Ends the thread where it stands. @returns its exit code */
  terminate(): Promise<number>;
}

/** What ranks are given beside their data, and what becomes of what they say. */
export interface RunRanksOptions {
  /** The program's arguments: `process.argv` from its third element on. */
  argv?: readonly string[];
  /** Seconds a call may wait without anything moving, 0 for ever; default: SPARSEGATE_COMM_TIMEOUT, else 300. */
  timeout?: number;
  /** Takes what the ranks write; by default this process writes it. */
  onOutput?: (rank: number, stream: "stdout" | "stderr", text: string) => void;
  /** Gets the threads (of `node:worker_threads`) as soon as they have been started. */
  onStart?: (threads: readonly RankThread[]) => void;
  /** Ends all ranks when it is aborted. */
  signal?: AbortSignal;
  /** @internal Bytes of a piece of a long message, a multiple of 8. */
  pieceBytes?: number;
}

/**
 * Runs the module `entry` in `size` threads, the ranks. A function that it exports as default is called with the rank's communicator and `data`; in any
 * other program `communicator()` gives it. Each rank has a program's variables and memory of its own; environment and working directory are one.
 * While ranks run, SPARSEGATE_THREADS is an even share of the cores, unless it was set before.
 *
 * @param data anything that can be cloned, the same for each rank; shared memory stays shared
 * @returns what the functions returned, in rank order
 * @throws CommError when a rank failed: by an error, an exit code other than 0, or its thread's end. Within ten seconds all others have ended too, and
 * have said on stderr why.
 */
export async function runRanks<T = unknown>(size: number, entry: URL | string, data?: unknown, options: RunRanksOptions = {}): Promise<T[]> {
  const { argv = [], timeout, onOutput = write, onStart, signal, pieceBytes = PIECE_BYTES } = options;
  checkInteger("runRanks", "size", size, { min: 1, max: MOST_RANKS });
  checkInteger("runRanks", "pieceBytes", pieceBytes, { min: 8 });
  if (pieceBytes % 8 !== 0) throw new ConfigError(expectation("runRanks", "pieceBytes to be a multiple of 8", pieceBytes));
  if (typeof SharedArrayBuffer === "undefined") throw new CommError("runRanks: expected SharedArrayBuffer, by which threads exchange messages, got a Node that has none.");
  signal?.throwIfAborted();

  const parts = makeShared(size, pieceBytes);
  const shared = new Shared(parts);
  const results = new Array<T>(size);
  const restore = shareCores(size);
  let ending: NodeJS.Timeout | undefined;
  const workers: Worker[] = [];
  const fail = (rank: number, message: string): void => {
    shared.fail(rank, message);
    ending ??= setTimeout(() => workers.forEach((worker) => void worker.terminate()), GRACE_MS);
  };
  const stop = (): void => fail(0, "all ranks were told to end (signal)");

  const run = (rank: number): Promise<void> => {
    const start: RankStart = { rank, parts, timeout, entry: String(entry), data };
    // One environment for all threads: what one sets for native libraries has to reach them.
    const worker = new Worker(new URL("./thread.js", import.meta.url), { workerData: { sparsegateRank: start }, argv: [...argv], env: SHARE_ENV, execArgv: [], stdout: true, stderr: true });
    workers.push(worker);
    const closed = (["stdout", "stderr"] as const).map((name) => new Promise((resolve) => {
      worker[name].setEncoding("utf8").on("data", (text: string) => onOutput(rank, name, text)).once("close", resolve);
    }));
    return new Promise<void>((resolve, reject) => {
      worker.on("message", (message: { result: T }) => (results[rank] = message.result));
      worker.on("error", (error: unknown) => {
        const text = error instanceof Error ? textOf(error) : (shared.failure?.message ?? textOf(error));
        fail(rank, text);
        // A stack is for bugs, and those are not sparsegate's own errors.
        const stack = error instanceof Error && text !== error.message ? error.stack : undefined;
        onOutput(rank, "stderr", `rank ${rank} of ${size}: ${stack ?? text}\n`);
      });
      worker.on("exit", (code) => {
        if (code !== 0) fail(rank, shared.endOf(rank));
        shared.end(rank);
        Promise.all(closed).then(() => resolve(), reject);
      });
    });
  };

  try {
    signal?.addEventListener("abort", stop, { once: true });
    const runs = Array.from({ length: size }, (_, rank) => run(rank));
    onStart?.(workers);
    await Promise.all(runs);
  } finally {
    clearTimeout(ending);
    signal?.removeEventListener("abort", stop);
    restore();
  }
  const { failure } = shared;
  if (failure !== undefined) throw new CommError(`runRanks: expected ${size} ranks to come to their end, got a failure of rank ${failure.rank}: ${failure.message}`);
  return results;
}

function write(_rank: number, stream: "stdout" | "stderr", text: string): void {
  process[stream].write(text);
}

/** Lets each rank's backend take its share of the cores. @returns what undoes it */
function shareCores(size: number): () => void {
  if (process.env["SPARSEGATE_THREADS"] !== undefined) return () => {};
  process.env["SPARSEGATE_THREADS"] = String(Math.max(1, Math.floor(availableParallelism() / size)));
  return () => delete process.env["SPARSEGATE_THREADS"];
}
