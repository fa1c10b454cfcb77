/** Where results go: stdout, and the folder that --output-dir names. */

import { join } from "node:path";
import { rmSync } from "node:fs";
import { fileError, makeFolder, writeFileAtomic } from "../train/atomic.js";

/** Makes the folder of --output-dir before any work is done, so that one that cannot be written to is no loss of hours. @throws FileError when it cannot be made, or nothing can be written into it */
export function makeOutputFolder(path: string): void {
  try {
    makeFolder(path);
  } catch (error) {
    throw fileError("--output-dir", path, "write", error);
  }
  // Named as what a killed process leaves half-written, so that the next save clears it too.
  const trial = join(path, `.writable.tmp-${process.pid}-0`);
  writeFileAtomic(trial, "");
  rmSync(trial, { force: true });
}

/** Results on stdout: as one line of JSON, or a line each. */
export function print(values: Record<string, unknown>, json: unknown): void {
  if (json === true) process.stdout.write(`${JSON.stringify(values)}\n`);
  else for (const [key, value] of Object.entries(values)) process.stdout.write(`${key}: ${String(value)}\n`);
}

/** Text without line breaks: a line of output for each of input, so that a break that a model makes up does not shift the rest. */
export function oneLine(text: string): string {
  return text.replaceAll(/[\r\n\u2028\u2029]+/g, " ");
}
