/** `sparsegate reproduce`: a table of the paper, trained in kind in minutes, with the paper's figures beside. */

import { cpus } from "node:os";
import { join } from "node:path";
import { ConfigError, expectation } from "../core/errors.js";
import { didYouMean } from "../core/suggest.js";
import { writeFileAtomic } from "../train/atomic.js";
import { checkConfig } from "../train/config.js";
import { Progress } from "../train/progress.js";
import { reproductionText, tokenised } from "../train/reproduce/corpus.js";
import { TABLES } from "../train/reproduce/index.js";
import { claimsOf, comparison, renderReproduction, type Reproduction } from "../train/reproduce/report.js";
import { reproduce } from "../train/reproduce/run.js";
import { openBackend } from "./backend.js";
import { table as textTable } from "./format.js";
import { makeOutputFolder } from "./output.js";
import { stopSignal } from "./stop.js";

/** What the command line gives. */
interface Options {
  data?: string;
  outputDir?: string;
  maxSteps?: number;
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
  const { data, outputDir = join("runs", name), maxSteps, seed = 0 } = options;
  const changes = { seed, ...(maxSteps === undefined ? {} : { max_steps: maxSteps }) };
  // Refused before the text is read.
  const { vocab_size } = checkConfig({ train: "x", ...table.config, ...changes }, `reproduce ${name}`);
  makeOutputFolder(outputDir);
  const progress = new Progress({ enabled: options.progress !== false });
  const text = reproductionText(data, seed);
  const datasets = tokenised(text, vocab_size);
  const backend = openBackend();
  const stop = stopSignal(() =>
    progress.announce("Stopping after this step; then a checkpoint is written. Once more to stop at once, without one."),
  );
  const done = await reproduce(table, datasets, {
    outputDir,
    changes,
    overwrite: options.overwrite === true,
    progress,
    signal: stop.signal,
  }).catch((error: unknown) => {
    progress.finish(); // an error message begins on a line of its own
    throw error;
  });
  progress.finish("");
  const command = [
    "sparsegate reproduce",
    name,
    ...(data === undefined ? [] : ["--data", data]),
    ...(outputDir === join("runs", name) ? [] : ["--output-dir", outputDir]),
    ...(maxSteps === undefined ? [] : ["--max-steps", maxSteps]),
    ...(seed === 0 ? [] : ["--seed", seed]),
  ].join(" ");
  const reproduction: Reproduction = {
    table,
    done,
    text: text.description,
    trainTokens: datasets.train.tokens.length,
    testTokens: datasets.test!.tokens.length,
    command,
    machine: `${cpus()[0]?.model.trim() ?? "Unknown CPU"}, ${backend.threads} threads, ${backend.description}`,
    createdAt: new Date().toISOString(),
  };
  const path = join(outputDir, "report.html");
  if (done.length > 0) writeFileAtomic(path, await renderReproduction(reproduction));
  const finished = done.length === table.rows.length;
  print(reproduction, { json: options.json === true, finished, path });
  if (!finished) {
    process.stderr.write(`Interrupted after ${done.length} of ${table.rows.length} rows. Go on with: ${command}\n`);
    process.exitCode = stop.exitCode();
  }
  stop.end();
  backend.dispose();
}

function print(reproduction: Reproduction, { json, finished, path }: { json: boolean; finished: boolean; path: string }): void {
  const { table, done } = reproduction;
  const claims = claimsOf(reproduction);
  if (json) {
    const rows = done.map(({ row, figures }) => ({ key: row.key, ...row.changes, figures, paper: row.paper }));
    process.stdout.write(`${JSON.stringify({ table: table.name, finished, rows, claims, report: path })}\n`);
    return;
  }
  const { head, rows } = comparison(reproduction);
  const verdicts = claims.map(({ says, holds, because }) => `${holds ? "holds" : "DOES NOT HOLD"}: ${says} ${because}.`);
  process.stdout.write(`${table.title}\n\n${textTable(head, rows)}\n\n${verdicts.map((verdict) => `${verdict}\n`).join("")}`);
  if (done.length > 0) process.stdout.write(`Report with figures: ${path}\n`);
}
