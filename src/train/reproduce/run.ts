/**
 * Trains the rows of a paper's table, one after another. A row that is done leaves its figures in its folder and is not trained again; one that was
 * interrupted goes on from its checkpoint. So a reproduction may be stopped at any time, and ends with the figures it would have had.
 */

import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { ConfigError, FileError, expectation } from "../../core/errors.js";
import { writeFileAtomic } from "../atomic.js";
import { balanceHistory, type BalanceRecord } from "../balance-report.js";
import { checkpointSteps } from "../checkpoint.js";
import { checkConfig, flagOf, type TrainConfig } from "../config.js";
import { readMetrics } from "../metrics.js";
import type { Progress } from "../progress.js";
import { openCheckpoint } from "../restore.js";
import { crc32 } from "../safetensors.js";
import type { Datasets } from "../setup.js";
import { trainOn } from "../trainer.js";
import type { Figures, PaperTable, TableRow } from "./table.js";

export interface ReproduceOptions {
  /** Its folders, one a row, are in here. */
  outputDir: string;
  /** What the rows' configurations take besides the table's: seed, steps. */
  changes?: Readonly<Record<string, unknown>>;
  /** Train all rows anew, whatever is in the folder. */
  overwrite?: boolean;
  progress: Progress;
  /** Aborted: the step at hand is finished, a checkpoint written, and the rows that are done come back. */
  signal?: AbortSignal;
}

/** A row that is done. */
export interface DoneRow {
  row: TableRow;
  figures: Figures;
  /** Balance over its training. */
  history: BalanceRecord[];
}

/** What stands in a row's result.json. */
interface SavedRow {
  config: TrainConfig;
  /** Checksum of the training tokens. */
  corpus: number;
  figures: Figures;
}

/**
 * @param datasets makes the text, when a row has to be trained or compared
 * @returns rows that are done, in the order of the table: all of them unless it was interrupted
 * @throws ConfigError where the folder holds rows of other settings and `overwrite` is not set
 */
export async function reproduce(table: PaperTable, datasets: Datasets, options: ReproduceOptions): Promise<DoneRow[]> {
  const { outputDir, changes = {}, overwrite = false, progress, signal } = options;
  const { buffer, byteOffset, byteLength } = datasets.train.tokens;
  const corpus = crc32(new Uint8Array(buffer, byteOffset, byteLength));
  const planned = table.rows.map((row) => {
    const folder = join(outputDir, row.key);
    const config = checkConfig(
      { train: "(the text of the table)", ...table.config, ...row.changes, ...changes, output_dir: folder },
      table.name,
    );
    if (overwrite) rmSync(join(folder, RESULT), { force: true });
    // All rows are looked at before the first is trained: what cannot be mixed is said at once.
    return { row, folder, config, saved: savedRow(folder, config, corpus), started: !overwrite && isStarted(folder, config) };
  });
  const done: DoneRow[] = [];
  for (const [i, { row, folder, config, saved, started }] of planned.entries()) {
    let figures = saved?.figures;
    if (!figures) {
      if (signal?.aborted) break;
      progress.note(
        `Row ${i + 1} of ${planned.length}: ${row.labels.map((label, j) => `${table.labels[j]} ${label}`).join(", ")}${started ? ", from its checkpoint" : ""}`,
      );
      const checkpoint = started ? openCheckpoint(table.name, folder) : undefined;
      const result = await trainOn(
        config,
        datasets,
        { progress, ...(signal ? { signal } : {}), overwrite: !started },
        checkpoint,
      );
      if (!result.finished) {
        result.model.dispose();
        break;
      }
      figures = table.measure({ model: result.model, datasets, config, result });
      result.model.dispose();
      const record: SavedRow = { config, corpus, figures };
      writeFileAtomic(join(folder, RESULT), `${JSON.stringify(record, null, 2)}\n`);
    }
    done.push({ row, figures, history: historyOf(folder) });
  }
  return done;
}

const RESULT = "result.json";

/** @throws ConfigError where a result is of other settings; FileError where it is no result */
function savedRow(folder: string, config: TrainConfig, corpus: number): SavedRow | undefined {
  const path = join(folder, RESULT);
  if (!existsSync(path)) return undefined;
  let saved: SavedRow;
  try {
    saved = JSON.parse(readFileSync(path, "utf8")) as SavedRow;
    if (typeof saved.config !== "object" || typeof saved.figures !== "object") throw new Error("something else");
  } catch (error) {
    throw new FileError(
      expectation(path, "the result of a row", (error as Error).message, "Add --overwrite to train all rows anew."),
      { cause: error },
    );
  }
  checkSettings(folder, config, saved.config);
  if (saved.corpus !== corpus) throw mixed(`rows of this text (--data) in ${folder}`, "of another");
  return saved;
}

function isStarted(folder: string, config: TrainConfig): boolean {
  if (checkpointSteps(folder).length === 0) return false;
  checkSettings(folder, config, openCheckpoint("--output-dir", folder).config as unknown as TrainConfig);
  return true;
}

function checkSettings(folder: string, now: TrainConfig, then: TrainConfig): void {
  for (const key of Object.keys({ ...now, ...then }) as (keyof TrainConfig)[]) {
    if (key === "output_dir" || JSON.stringify(now[key]) === JSON.stringify(then[key])) continue;
    throw mixed(`rows of ${key} ${String(now[key])} in ${folder}`, `${flagOf(key).slice(2)} ${String(then[key])}`);
  }
}

function mixed(expected: string, got: string): ConfigError {
  return new ConfigError(
    expectation("--output-dir", expected, got, "Give another folder, or --overwrite to train all rows anew."),
  );
}

function historyOf(folder: string): BalanceRecord[] {
  const path = join(folder, "metrics.jsonl");
  const records = existsSync(path) ? readMetrics(path) : [];
  const experts = records
    .flatMap((record) => Object.keys(record))
    .reduce((most, tag) => Math.max(most, Number(/^moe\/expert_load\/moe\/(\d+)$/.exec(tag)?.[1] ?? -1) + 1), 0);
  return balanceHistory(records, experts);
}
