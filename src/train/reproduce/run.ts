/**
 * Trains the rows of a paper's table, one after another. A row that is done leaves its figures in its folder and is not trained again; one that was
 * interrupted goes on from its checkpoint. So a reproduction may be stopped at any time, and ends with the figures it would have had. Rows of a table that can be
 * carried on go on from their checkpoints when more steps are asked for.
 */

import { existsSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { ConfigError, FileError, expectation } from "../../core/errors.js";
import { writeFileAtomic } from "../atomic.js";
import { balanceHistory, type BalanceRecord } from "../balance-report.js";
import { checkpointSteps, deleteCheckpoints } from "../checkpoint.js";
import { checkConfig, flagOf, type TrainConfig } from "../config.js";
import { checkUnlocked } from "../lock.js";
import { readMetrics, type MetricRecord } from "../metrics.js";
import { checkMemory } from "../plan.js";
import type { Progress } from "../progress.js";
import { openCheckpoint } from "../restore.js";
import { BEST_FOLDER } from "../run.js";
import { crc32 } from "../safetensors.js";
import { batchStream, type Datasets } from "../setup.js";
import { trainOn } from "../trainer.js";
import type { Figures, PaperTable, TableRow } from "./table.js";

export interface ReproduceOptions {
  /** Its folders, one a row, are in here. */
  outputDir: string;
  /** What the rows' configurations take besides the table's: seed, steps. */
  changes?: Readonly<Record<string, unknown>>;
  /** The same of single rows, by key. */
  rowChanges?: ReadonlyMap<string, Readonly<Record<string, unknown>>>;
  /** Keys of the rows to train. Others come back where they are done already. Default: the table's usual ones. */
  rows?: readonly string[] | undefined;
  /** Train all rows anew, whatever is in the folder. */
  overwrite?: boolean;
  progress: Progress;
  /** Aborted: the step at hand is finished, a checkpoint written, and the rows that are done come back. */
  signal?: AbortSignal;
  /** Called as each row is done with all that are, so that a report grows with them. */
  onRow?: (done: readonly DoneRow[]) => Promise<void>;
}

/** A row that is done. */
export interface DoneRow {
  row: TableRow;
  figures: Figures;
  /** Tokens that it was trained on. */
  tokens: number;
  /** Median over its training. */
  tokensPerSecond: number;
  /** Balance over its training. */
  history: BalanceRecord[];
  /** Perplexity of the validation text over its training. */
  curve: { tokens: number; perplexity: number }[];
}

/** What stands in a row's result.json. */
interface SavedRow {
  config: TrainConfig;
  /** Checksum of the training tokens. */
  corpus: number;
  figures: Figures;
  /** Steps made, which a patience may end early. Results of earlier versions lack it. */
  steps?: number;
}

/** A row to be trained to a number of steps. */
interface Planned {
  row: TableRow;
  folder: string;
  /** Its configuration at each of its stops. */
  stops: TrainConfig[];
  /** Whether it was named, or is one of the usual ones. */
  chosen: boolean;
}

/**
 * @param datasets makes the text, when a row has to be trained or compared
 * @returns rows that are done, in the order of the table: all that were chosen unless it was interrupted, and others that are done already
 * @throws ConfigError where the folder holds rows of other settings and `overwrite` is not set
 */
export async function reproduce(table: PaperTable, datasets: Datasets, options: ReproduceOptions): Promise<DoneRow[]> {
  const { overwrite = false, progress, signal, onRow } = options;
  const { buffer, byteOffset, byteLength } = datasets.train.tokens;
  const corpus = crc32(new Uint8Array(buffer, byteOffset, byteLength));
  const planned = plannedRows(table, options);
  const chosen = planned.filter((plan) => plan.chosen);
  // All rows are looked at before the first is trained: what cannot be, or cannot be mixed, is said at once.
  for (const { folder, stops } of chosen) {
    checkMemory(stops.at(-1)!, datasets.tokenizer.vocabSize);
    void batchStream(stops.at(-1)!, datasets.train);
    if (overwrite) checkUnlocked(folder);
    else for (const config of stops) if (!savedRow(table, folder, config, corpus)) isStarted(table, folder, config, config !== stops.at(-1));
  }
  if (overwrite) for (const { folder } of chosen) discard(folder);
  const done: DoneRow[] = [];
  for (const plan of planned) {
    const { row, folder, stops } = plan;
    const measured: SavedRow[] = [];
    for (const config of stops) {
      let saved = plan.chosen ? savedRow(table, folder, config, corpus) : savedOrNone(table, folder, config, corpus);
      if (!saved && (!plan.chosen || signal?.aborted)) break;
      if (!saved) {
        const started = isStarted(table, folder, config);
        const name = row.labels.map((label, j) => `${table.labels[j]} ${label}`).join(", ");
        const upTo = stops.length > 1 ? ` to step ${config.max_steps}` : "";
        progress.note(
          `Row ${chosen.indexOf(plan) + 1} of ${chosen.length}: ${name}${upTo}${started ? ", from its checkpoint" : ""}`,
        );
        saved = await trainRow(
          table,
          datasets,
          { folder, config, corpus, started },
          { progress, ...(signal ? { signal } : {}) },
        );
        if (!saved) break;
      }
      measured.push(saved);
    }
    if (measured.length < stops.length) {
      if (plan.chosen) break;
      continue;
    }
    const last = measured.at(-1)!;
    const figures = table.combine?.(measured.map((stop) => stop.figures)) ?? last.figures;
    done.push({ row, figures, ...recorded(folder, stops.at(-1)!, last.steps) });
    if (plan.chosen) await onRow?.(done);
  }
  return done;
}

function plannedRows(
  table: PaperTable,
  { outputDir, changes = {}, rowChanges, rows = table.usual }: ReproduceOptions,
): Planned[] {
  return table.rows.map((row) => {
    const folder = join(outputDir, row.key);
    const values = {
      train: "(the text of the table)",
      ...table.config,
      ...row.changes,
      ...changes,
      ...rowChanges?.get(row.key),
      output_dir: folder,
    };
    const config = checkConfig(values, table.name);
    const stops = table.stops?.(config.max_steps) ?? [config.max_steps];
    if (stops.length > 1 && endsAtLastStep(config)) {
      const hint = `${table.name} measures rows on their way too, at step ${stops[0]}.`;
      throw new ConfigError(expectation(`schedule of row ${row.key}`, "one that does not depend on the last step", config.schedule, hint));
    }
    return { row, folder, stops: stops.map((max_steps) => ({ ...config, max_steps })), chosen: rows?.includes(row.key) ?? true };
  });
}

/** Whether the rate of every step depends on the number of steps, so that more of them are not the same training carried on. */
const endsAtLastStep = ({ schedule }: TrainConfig): boolean => schedule === "linear";

/** Trains a row to the last step of its configuration and keeps what comes out. @returns undefined after an interruption */
async function trainRow(
  table: PaperTable,
  datasets: Datasets,
  { folder, config, corpus, started }: { folder: string; config: TrainConfig; corpus: number; started: boolean },
  options: { progress: Progress; signal?: AbortSignal },
): Promise<SavedRow | undefined> {
  const checkpoint = started ? openCheckpoint(table.name, folder) : undefined;
  const result = await trainOn(config, datasets, { ...options, overwrite: !started }, checkpoint);
  if (!result.finished) {
    result.model.dispose();
    return undefined;
  }
  const figures = table.measure({ model: result.model, datasets, config, result });
  result.model.dispose();
  const record: SavedRow = { config, corpus, figures, steps: result.steps };
  writeFileAtomic(join(folder, resultName(table, config)), `${JSON.stringify(record, null, 2)}\n`);
  return record;
}

const RESULT = /^result(-\d+)?\.json$/;

/** A table that can be carried on has a result for each number of steps. */
function resultName(table: PaperTable, { max_steps }: TrainConfig): string {
  return table.stops ? `result-${max_steps}.json` : "result.json";
}

/**
 * Deletes what a row has come to. Checkpoints too, and before any row is trained: an interrupted reproduction is gone on with without --overwrite, and a row
 * that had not begun by then would be carried on from those that were to be thrown away.
 */
function discard(folder: string): void {
  if (!existsSync(folder)) return;
  for (const name of readdirSync(folder)) if (RESULT.test(name)) rmSync(join(folder, name), { force: true });
  for (const run of [folder, join(folder, BEST_FOLDER)]) deleteCheckpoints(run, checkpointSteps(run));
}

/** @throws ConfigError where a result is of other settings; FileError where it is no result */
function savedRow(table: PaperTable, folder: string, config: TrainConfig, corpus: number): SavedRow | undefined {
  const path = join(folder, resultName(table, config));
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
  // Earlier versions took the last evaluation where there is a patience. Measured again from its checkpoint, without training, where that is still there.
  const again = config.patience !== undefined && saved.steps === undefined && !table.stops;
  return again && checkpointSteps(folder).length > 0 ? undefined : saved;
}

/** A row that nobody asked for is shown only where it fits. */
function savedOrNone(table: PaperTable, folder: string, config: TrainConfig, corpus: number): SavedRow | undefined {
  try {
    return savedRow(table, folder, config, corpus);
  } catch (error) {
    if (error instanceof ConfigError || error instanceof FileError) return undefined;
    throw error;
  }
}

/** @param onTheWay whether the row is carried on after this stop @throws ConfigError where the checkpoint is of other settings, or of a step after the stop */
function isStarted(table: PaperTable, folder: string, config: TrainConfig, onTheWay = false): boolean {
  const step = checkpointSteps(folder).at(-1);
  if (step === undefined) return false;
  const then = openCheckpoint("--output-dir", folder).config as unknown as TrainConfig;
  checkSettings(folder, config, table.stops ? { ...then, max_steps: config.max_steps } : then);
  if (table.stops && endsAtLastStep(config) && then.max_steps !== config.max_steps) {
    const got = `a row of ${then.max_steps} steps whose rate has its end there (schedule ${config.schedule})`;
    throw mixed(`rows of ${config.max_steps} steps in ${folder}`, got);
  }
  if (step > config.max_steps) {
    const why = onTheWay ? `, where ${table.name} measures it too,` : "";
    throw mixed(`a row of at most ${config.max_steps} steps${why} in ${folder}`, `a checkpoint of step ${step}`);
  }
  return true;
}

/** What has no say in what a row comes to. */
const INDIFFERENT: readonly string[] = ["output_dir", "save_steps", "save_total_limit", "logging_steps"];

/** A patience counts evaluations: how often they come then says where a row ends, and which step is its best. */
function isIndifferent(key: string, { patience }: TrainConfig): boolean {
  return INDIFFERENT.includes(key) || (key === "eval_steps" && patience === undefined);
}

function checkSettings(folder: string, now: TrainConfig, then: TrainConfig): void {
  for (const key of Object.keys({ ...now, ...then }) as (keyof TrainConfig)[]) {
    if (isIndifferent(key, now) || JSON.stringify(now[key]) === JSON.stringify(then[key])) continue;
    throw mixed(`rows of ${key} ${String(now[key])} in ${folder}`, `${flagOf(key).slice(2)} ${String(then[key])}`);
  }
}

function mixed(expected: string, got: string): ConfigError {
  return new ConfigError(
    expectation("--output-dir", expected, got, "Give another folder, or --overwrite to train all rows anew."),
  );
}

/** What a row's metrics say of its training up to the last step of a configuration. @param steps that were made */
function recorded(folder: string, config: TrainConfig, steps = config.max_steps): Pick<DoneRow, "tokens" | "tokensPerSecond" | "history" | "curve"> {
  const path = join(folder, "metrics.jsonl");
  const records = (existsSync(path) ? readMetrics(path) : []).filter(({ step }) => step <= steps);
  const tokens = config.batch_size * config.time_steps;
  const of = (tag: string): { tokens: number; value: number }[] =>
    records.flatMap(({ step, ...record }) =>
      typeof record[tag] === "number" ? [{ tokens: step * tokens, value: record[tag] }] : [],
    );
  const speeds = of("train/tokens_per_second").map(({ value }) => value).sort((a, b) => a - b); // prettier-ignore
  return {
    tokens: steps * tokens,
    tokensPerSecond: speeds[Math.floor(speeds.length / 2)] ?? NaN,
    history: balances(records),
    curve: of("eval/perplexity").map(({ tokens: at, value }) => ({ tokens: at, perplexity: value })),
  };
}

function balances(records: readonly MetricRecord[]): BalanceRecord[] {
  const experts = records
    .flatMap((record) => Object.keys(record))
    .reduce((most, tag) => Math.max(most, Number(/^moe\/expert_load\/moe\/(\d+)$/.exec(tag)?.[1] ?? -1) + 1), 0);
  return balanceHistory(records, experts);
}
