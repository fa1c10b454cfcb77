/** The beginning of a rank's thread: makes its communicator, and runs the program it was started for. */

import { parentPort, workerData } from "node:worker_threads";
import { communicator } from "../open.js";
import { Shared } from "./shared.js";
import { textOf, type RankStart } from "./start.js";

const { sparsegateRank: start } = workerData as { sparsegateRank: RankStart };
const shared = new Shared(start.parts);
process.once("exit", (code) => shared.exit(start.rank, code));
// The others learn of it here and now, and in these words: not every error survives the way to another thread.
process.on("uncaughtExceptionMonitor", (error: unknown) => shared.fail(start.rank, textOf(error)));

const program = (await import(start.entry)) as { default?: unknown };
if (typeof program.default === "function") {
  const main = program.default as (...args: unknown[]) => unknown;
  parentPort!.postMessage({ result: await main(await communicator(), start.data) });
}
