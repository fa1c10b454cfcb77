/** Metrics as JSON lines: one object a record, `{"step": 20, "time": 1764000000.5, "train/loss": 4.2, …}`. */

import { closeSync, existsSync, fstatSync, ftruncateSync, openSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { ConfigError, expectation, FileError } from "../core/errors.js";
import { fileError, makeFolder, quietly, writeAll, writeFileAtomic } from "./atomic.js";

/** A value under a tag: a number, or text such as the signature of a BLEU score. NaN and infinities, which JSON lacks, become null. */
export type MetricValue = number | string | null;

/** One line of the file. */
export interface MetricRecord {
  /** The optimiser step the values belong to. */
  step: number;
  /** Seconds since 1970. */
  time: number;
  [tag: string]: MetricValue;
}

/** Appends records to a file; each is in the hands of the operating system when `write` returns, so a killed process loses none. */
export class MetricsWriter {
  private fd: number;

  /**
   * @param path the file, such as `metrics.jsonl`; folders above are created
   * @param options.resumeStep keep the file's records up to this step and drop later ones, which the resumed run will write again.
   *   @default start an empty file
   * @param options.from where to take these records from, of a run that goes on in another folder. What is in the file is another run's then. @default the file itself
   * @param options.redo tags that will be written again for `resumeStep` itself: its records with one of them are dropped as well
   * @throws FileError when the file cannot be written, or is damaged
   */
  constructor(
    readonly path: string,
    { resumeStep, from = path, redo = [] }: { resumeStep?: number; from?: string; redo?: readonly string[] } = {},
  ) {
    const before = resumeStep === undefined || !existsSync(from) ? [] : readMetrics(from);
    const kept = before.filter((record) => record.step < resumeStep! || (record.step === resumeStep && !redo.some((tag) => Object.hasOwn(record, tag))));
    writeFileAtomic(path, kept.map((record) => `${JSON.stringify(record)}\n`).join(""));
    try {
      makeFolder(dirname(path));
      this.fd = openSync(path, "a");
    } catch (error) {
      throw fileError("MetricsWriter", path, "write", error);
    }
  }

  /**
   * Appends one record.
   * @param step the optimiser step
   * @param values by tag: `train/loss`, `eval/perplexity`, `moe/expert_load/<layer>/<i>`, …
   * @param time in seconds since 1970. @default now
   * @throws FileError when the disk is full: the file then ends with the record before; ConfigError for the tags `step` and `time`
   */
  write(step: number, values: Readonly<Record<string, MetricValue>>, time: number = Date.now() / 1000): void {
    if (Object.hasOwn(values, "step") || Object.hasOwn(values, "time")) {
      throw new ConfigError(expectation("MetricsWriter.write", "tags other than step and time", Object.keys(values)));
    }
    if (this.fd === -1) throw new FileError(expectation("MetricsWriter.write", `${this.path} to be open`, "closed"));
    const before = fstatSync(this.fd).size;
    try {
      writeAll(this.fd, Buffer.from(`${JSON.stringify({ step, time, ...values })}\n`, "utf8"));
    } catch (error) {
      quietly(() => ftruncateSync(this.fd, before)); // no half a line in the middle, should there be room again later
      throw fileError("MetricsWriter.write", this.path, "write", error);
    }
  }

  /** Closes the file; closing twice is harmless. */
  close(): void {
    const fd = this.fd;
    this.fd = -1;
    if (fd !== -1) closeSync(fd);
  }
}

/**
 * Reads all records of a file. A last line that is cut short, as by a power cut, is left out.
 * @throws FileError when the file is missing, or a line other than the last is no record
 */
export function readMetrics(path: string): MetricRecord[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw fileError("readMetrics", path, "read", error);
  }
  const lines = text.split("\n");
  const records: MetricRecord[] = [];
  lines.forEach((line, i) => {
    if (line === "") return;
    const record = parseRecord(line);
    if (record !== null) records.push(record);
    else if (i < lines.length - 1) throw new FileError(expectation(`readMetrics ${path}`, `a record on line ${i + 1}`, line, "Remove the line, or move the file away."));
  });
  return records;
}

function parseRecord(line: string): MetricRecord | null {
  try {
    const value = JSON.parse(line) as MetricRecord | null;
    return typeof value === "object" && typeof value?.step === "number" && typeof value.time === "number" ? value : null;
  } catch {
    return null;
  }
}
