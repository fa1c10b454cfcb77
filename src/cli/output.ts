/** The folder that --output-dir names: made before any work is done, so that one that cannot be written to is no loss of hours. */

import { join } from "node:path";
import { rmSync } from "node:fs";
import { fileError, makeFolder, writeFileAtomic } from "../train/atomic.js";

/** @throws FileError when it cannot be made, or nothing can be written into it */
export function makeOutputFolder(path: string): void {
  try {
    makeFolder(path);
  } catch (error) {
    throw fileError("--output-dir", path, "write", error);
  }
  const trial = join(path, `.writable-${process.pid}`);
  writeFileAtomic(trial, "");
  rmSync(trial, { force: true });
}
