/** What a rank's thread is started with. */

import { workerData } from "node:worker_threads";
import { SparsegateError } from "../../core/errors.js";
import type { SharedParts } from "./shared.js";

export interface RankStart {
  rank: number;
  parts: SharedParts;
  /** Seconds; see `CommunicatorOptions`. */
  timeout: number | undefined;
  /** Address of the module to run. */
  entry: string;
  /** What the program is given. */
  data: unknown;
}

/** What this thread was started with, where it is a rank's. */
export function rankStart(): RankStart | undefined {
  const data: unknown = workerData;
  return typeof data === "object" && data !== null && "sparsegateRank" in data ? (data.sparsegateRank as RankStart) : undefined;
}

/** An error in a line: those of sparsegate say it all in their message. One that comes from another thread is of no class of this one, but has its name. */
export function textOf(error: unknown): string {
  if (error instanceof SparsegateError) return error.message;
  return error instanceof Error ? (OWN.has(error.name) ? error.message : `${error.name}: ${error.message}`) : String(error);
}

const OWN = new Set(["SparsegateError", "CommError", "ConfigError", "FileError", "NonFiniteError", "TensorError"]);
