/** What of a run's folder is meant by its name alone: its best checkpoint or its last, and the metrics that belong to either. */

import { existsSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { ConfigError, expectation } from "../core/errors.js";
import { checkpointSteps, type Checkpoint } from "./checkpoint.js";
import { readMetrics, type MetricRecord } from "./metrics.js";
import { openCheckpoint, runFolder } from "./restore.js";
import { BEST_FOLDER } from "./run.js";

/** Which checkpoint of a run. best: the lowest loss of the validation text, or the last one where none is kept; last: the highest step. */
export type Which = "best" | "last";

/** @throws ConfigError for what is neither */
export function checkWhich(which: unknown): Which {
  if (which === "best" || which === "last") return which;
  throw new ConfigError(expectation("--checkpoint", "best or last", which));
}

/** @param path a run's folder, or one checkpoint of it, which is then taken whatever `which` is @throws FileError as from `openCheckpoint` */
export function openWhich(where: string, path: string, which: Which): Checkpoint {
  const best = join(path, BEST_FOLDER);
  // The folder may be there and empty: a run that begins anew in it has deleted what there was.
  return openCheckpoint(where, which === "best" && checkpointSteps(best).length > 0 ? best : path);
}

/** A run's metrics up to a checkpoint of it: those after it are of steps it does not know. None where it was copied without them. @throws FileError */
export function recordsOf(checkpoint: Checkpoint): MetricRecord[] {
  // Of the folder it lies in: a run may have been moved.
  const folder = resolve(runFolder(checkpoint));
  const path = [folder, ...(basename(folder) === BEST_FOLDER ? [dirname(folder)] : [])].map((one) => join(one, "metrics.jsonl")).find((one) => existsSync(one));
  return path === undefined ? [] : readMetrics(path).filter(({ step }) => step <= checkpoint.step);
}
