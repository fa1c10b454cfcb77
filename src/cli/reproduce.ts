/** `sparsegate reproduce`: a table of the paper, trained in kind, with the paper's figures beside. */

import { cpus } from "node:os";
import { join } from "node:path";
import { ConfigError, expectation } from "../core/errors.js";
import { didYouMean } from "../core/suggest.js";
import { writeFileAtomic } from "../train/atomic.js";
import { checkConfig, parseSettings } from "../train/config.js";
import { Progress } from "../train/progress.js";
import { reproductionDatasets } from "../train/reproduce/corpus.js";
import { TABLES } from "../train/reproduce/index.js";
import { writeResults } from "../train/reproduce/markdown.js";
import { claimsOf, comparison, renderReproduction, type Reproduction } from "../train/reproduce/report.js";
import { reproduce, type DoneRow } from "../train/reproduce/run.js";
import type { PaperTable } from "../train/reproduce/table.js";
import { openBackend } from "./backend.js";
import { table as textTable } from "./format.js";
import { makeOutputFolder } from "./output.js";
import { stopSignal } from "./stop.js";

/** What the command line gives. */
interface Options {
  data?: string;
  outputDir?: string;
  maxSteps?: number;
  tokens?: number;
  scale?: number;
  rows?: string;
  set?: string[];
  results?: string;
  seed?: number;
  overwrite?: boolean;
  progress?: boolean;
  json?: boolean;
}

export async function reproduceCommand(name: string, options: Options): Promise<void> {
  const table = TABLES.get(name);
  if (!table)
    throw new ConfigError(
      expectation("reproduce", `one of ${[...TABLES.keys()].join(", ")}`, name, didYouMean(name, TABLES.keys())),
    );
  const { data, outputDir = join("runs", name), results } = options;
  const rows = rowsOf(table, options.rows);
  const { changes, rowChanges } = changesOf(table, options);
  // Refused before the text is read.
  const first = table.rows.find(({ key }) => rows.includes(key))!;
  const config = checkConfig({ train: "x", ...table.config, ...first.changes, ...changes, ...rowChanges.get(first.key) }, name);
  makeOutputFolder(outputDir);
  if (results !== undefined) makeOutputFolder(results);
  const progress = new Progress({ enabled: options.progress !== false });
  const backend = openBackend();
  const { description, datasets } = reproductionDatasets(data, config, table.stops !== undefined);
  const stop = stopSignal(() =>
    progress.announce("Stopping after this step; then a checkpoint is written. Once more to stop at once, without one."),
  );
  const command = commandLine(name, options);
  // A table that is carried on has a report for each number of steps.
  const path = join(outputDir, table.stops ? `report-${config.max_steps}.html` : "report.html");
  const reproductionOf = (done: readonly DoneRow[]): Reproduction => ({
    table,
    done,
    text: description,
    trainTokens: datasets.train.tokens.length,
    testTokens: datasets.test!.tokens.length,
    command,
    machine: `${cpus()[0]?.model.trim() ?? "Unknown CPU"}, ${backend.description}`,
    createdAt: new Date().toISOString(),
  });
  const write = async (done: readonly DoneRow[]): Promise<void> => {
    writeFileAtomic(path, await renderReproduction(reproductionOf(done)));
    if (results !== undefined) await writeResults(results, reproductionOf(done));
  };
  const done = await reproduce(table, datasets, {
    outputDir,
    changes,
    rowChanges,
    rows,
    overwrite: options.overwrite === true,
    progress,
    signal: stop.signal,
    onRow: write,
  }).catch((error: unknown) => {
    progress.finish(); // an error message begins on a line of its own
    throw error;
  });
  progress.finish("");
  const reproduction = reproductionOf(done);
  if (done.length > 0) await write(done);
  const count = rows.filter((key) => done.some(({ row }) => row.key === key)).length;
  const finished = count === rows.length;
  print(reproduction, { json: options.json === true, finished, path });
  if (!finished) {
    process.stderr.write(`Interrupted after ${count} of ${rows.length} rows. Go on with: ${command}\n`);
    process.exitCode = stop.exitCode();
  }
  stop.end();
  backend.dispose();
}

/** Keys of the rows that are asked for, in any case; the table's usual ones where none are. */
function rowsOf(table: PaperTable, list: string | undefined): string[] {
  const keys = table.rows.map(({ key }) => key);
  if (list === undefined) return [...(table.usual ?? keys)];
  return list.split(",").map((name) => {
    const found = keys.find((key) => key.toLowerCase() === name.trim().toLowerCase());
    if (found === undefined)
      throw new ConfigError(expectation("--rows", `rows of ${table.name}: ${keys.join(", ")}`, name, didYouMean(name, keys)));
    return found;
  });
}

/** What all rows and single ones take besides the table's settings. */
function changesOf(
  table: PaperTable,
  { maxSteps, tokens, scale, seed = 0, set = [] }: Options,
): { changes: Record<string, unknown>; rowChanges: Map<string, Record<string, unknown>> } {
  if (tokens !== undefined && maxSteps !== undefined)
    throw new ConfigError(expectation("--tokens", "left out beside --max-steps", tokens));
  if (scale !== undefined && !("scale" in table.config))
    throw new ConfigError(expectation("--scale", `left out for ${table.name}`, scale));
  const rowChanges = new Map<string, Record<string, unknown>>();
  const common = set.filter((text) => !/^[^=]*:/.test(text));
  for (const text of set.filter((one) => !common.includes(one))) {
    const at = text.indexOf(":");
    const [key] = rowsOf(table, text.slice(0, at)) as [string];
    rowChanges.set(key, { ...rowChanges.get(key), ...parseSettings("--set", [text.slice(at + 1)]) });
  }
  for (const values of rowChanges.values()) {
    for (const key of ["batch_size", "time_steps", "max_steps", "seed"]) {
      if (key in values)
        throw new ConfigError(expectation("--set", `${key} for all rows alike`, "for one", "Rows see the same batches."));
    }
  }
  const changes: Record<string, unknown> = { seed, ...(scale === undefined ? {} : { scale }), ...parseSettings("--set", common) };
  if (maxSteps !== undefined) changes["max_steps"] = maxSteps;
  if (tokens !== undefined) {
    const { batch_size, time_steps } = checkConfig({ train: "x", ...table.config, ...changes }, table.name);
    changes["max_steps"] = Math.max(1, Math.ceil(tokens / (batch_size * time_steps)));
  }
  return { changes, rowChanges };
}

/** The command that does the same again. */
function commandLine(
  name: string,
  { data, outputDir, maxSteps, tokens, scale, rows, set = [], results, seed = 0 }: Options,
): string {
  const flags = {
    data,
    rows,
    scale,
    tokens,
    "output-dir": outputDir,
    "max-steps": maxSteps,
    seed: seed === 0 ? undefined : seed,
    results,
  };
  return [
    "sparsegate reproduce",
    name,
    ...Object.entries(flags).flatMap(([flag, value]) => (value === undefined ? [] : [`--${flag}`, value])),
    ...set.flatMap((text) => ["--set", text]),
  ].join(" ");
}

function print(reproduction: Reproduction, { json, finished, path }: { json: boolean; finished: boolean; path: string }): void {
  const { table, done } = reproduction;
  const claims = claimsOf(reproduction);
  if (json) {
    const rows = done.map(({ row, figures, tokens, tokensPerSecond }) => ({
      key: row.key,
      ...row.changes,
      figures,
      paper: row.paper,
      tokens,
      tokens_per_second: Number.isFinite(tokensPerSecond) ? Math.round(tokensPerSecond) : null,
    }));
    process.stdout.write(`${JSON.stringify({ table: table.name, finished, rows, claims, report: path })}\n`);
    return;
  }
  const { head, rows } = comparison(reproduction);
  const verdicts = claims.map(({ says, holds, because }) => `${holds ? "holds" : "DOES NOT HOLD"}: ${says} ${because}.`);
  process.stdout.write(`${table.title}\n\n${textTable(head, rows)}\n\n${verdicts.map((verdict) => `${verdict}\n`).join("")}`);
  if (done.length > 0) process.stdout.write(`Report with figures: ${path}\n`);
}
