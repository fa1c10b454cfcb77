/** `sparsegate sweep`: trains every combination of some options' values on the same text and budget, and says which gives the lowest perplexity of the validation text. */

import { join } from "node:path";
import { ConfigError, expectation } from "../core/errors.js";
import { writeFileAtomic } from "../train/atomic.js";
import { flagOf, mergeSources, resolveSettings, trainConfigSchema, type TrainConfig } from "../train/config.js";
import { Progress } from "../train/progress.js";
import { reproduce, type DoneRow } from "../train/reproduce/run.js";
import { checkLanguageModel, corporaOf, makeDatasets } from "../train/setup.js";
import { sweepResults, sweepTable, type SweepResult } from "../train/sweep.js";
import { openBackend } from "./backend.js";
import { table as textTable } from "./format.js";
import { makeOutputFolder } from "./output.js";
import { stopSignal } from "./stop.js";
import { flagsOf } from "./train.js";

export async function sweepCommand(options: Record<string, unknown>): Promise<void> {
  const flags = flagsOf(options);
  // A sweep has a folder of its own, and seeds of its own.
  const { output_dir = join("runs", "sweep"), ...given } = flags;
  // Once: the file may be a pipe.
  const settings = mergeSources({ file: options["config"] as string | undefined, env: process.env, flags: { ...given, output_dir } });
  const { values } = settings;
  const resolve = (trial: Readonly<Record<string, unknown>>): TrainConfig => resolveSettings(settings, trial, "sweep");
  if (values["valid"] === undefined)
    throw new ConfigError(
      expectation("sweep", "--valid, a text to compare trials on", "none", "Comparing them on --test would tune them to it."),
    );
  const table = sweepTable({
    base: values,
    resolve,
    vary: (options["vary"] as string[] | undefined) ?? [],
    // One that is no number is refused as the trials are resolved.
    seeds: seedsOf(options["seeds"] as string | undefined, (values["seed"] ?? trainConfigSchema.shape.seed.parse(undefined)) as number),
    combinations: options["combinations"] as number | undefined,
    tokens: options["tokens"] as number | undefined,
  });
  // What the text is made of is the same in all trials.
  const one = resolve(table.rows[0]!.changes);
  checkLanguageModel("sweep", one);
  const outputDir = one.output_dir;
  makeOutputFolder(outputDir);
  const progress = new Progress({ enabled: options["progress"] !== false });
  const backend = openBackend();
  // The test text has no say in a search.
  const { test: _test, ...corpora } = corporaOf(one);
  const datasets = makeDatasets(one, corpora);
  const stop = stopSignal(() =>
    progress.announce("Stopping after this step; then a checkpoint is written. Once more to stop at once, without one."),
  );
  const path = join(outputDir, "results.json");
  const write = (done: readonly DoneRow[]): void =>
    writeFileAtomic(path, `${JSON.stringify(report(sweepResults(table, done), done), null, 1)}\n`);
  const done = await reproduce(table, datasets, {
    outputDir,
    overwrite: options["overwrite"] === true,
    progress,
    signal: stop.signal,
    onRow: (rows) => Promise.resolve(write(rows)),
  }).catch((error: unknown) => {
    progress.finish(); // an error message begins on a line of its own
    throw error;
  });
  progress.finish("");
  const results = sweepResults(table, done);
  const finished = done.length === table.rows.length;
  if (options["json"] === true)
    process.stdout.write(`${JSON.stringify({ finished, ...report(results, done), output_dir: outputDir })}\n`);
  else print(results);
  if (!finished) {
    process.stderr.write(
      `Interrupted after ${done.length} of ${table.rows.length} trials. The same command goes on from there.\n`,
    );
    process.exitCode = stop.exitCode();
  }
  stop.end();
  backend.dispose();
}

function seedsOf(list: string | undefined, seed: number): number[] {
  if (list === undefined) return [seed];
  return list.split(",").map((text) => {
    const value = Number(text);
    if (text.trim() !== "" && Number.isSafeInteger(value) && value >= 0) return value;
    throw new ConfigError(expectation("--seeds", "whole numbers separated by commas", list, "Like 0,1,2."));
  });
}

function report(results: readonly SweepResult[], done: readonly DoneRow[]): Record<string, unknown> {
  return {
    results: results.map(({ settings, mean, min, max, seeds, tokensPerSecond }) => ({
      settings,
      valid_perplexity: mean,
      min,
      max,
      seeds,
      tokens_per_second: Number.isFinite(tokensPerSecond) ? Math.round(tokensPerSecond) : null,
    })),
    trials: done.map(({ row, figures }) => ({ ...row.changes, valid_perplexity: figures["perplexity"] })),
  };
}

function print(results: readonly SweepResult[]): void {
  const [best] = results;
  if (!best) return;
  const head = [...Object.keys(best.settings), "valid perplexity", "lowest", "highest", "seeds", "tokens/s"];
  const rows = results.map(({ settings, mean, min, max, seeds, tokensPerSecond }) => [
    ...Object.values(settings),
    mean.toFixed(2),
    min.toFixed(2),
    max.toFixed(2),
    String(seeds),
    Number.isFinite(tokensPerSecond) ? tokensPerSecond.toFixed(0) : "-",
  ]);
  const flags = Object.entries(best.settings).map(([key, value]) => `${flagOf(key)} ${value}`);
  process.stdout.write(`${textTable(head, rows)}\n\nBest: ${flags.join(" ")}\n`);
}
