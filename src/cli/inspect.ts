/** `sparsegate inspect`: what a run's model is, its latest metrics, and how its experts were used, as text, JSON or a page with figures. */

import { computeCost, expertsPerRow } from "../models/cost.js";
import { ConfigError, expectation } from "../core/errors.js";
import { balanceStatistics } from "../moe/statistics.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { writeFileAtomic } from "../train/atomic.js";
import { BALANCE_COLUMNS, balanceHistory, evenly, renderBalance } from "../train/balance-report.js";
import { effectiveMoe } from "../train/moe-config.js";
import { planRun } from "../train/plan.js";
import { loadModel, openCheckpoint } from "../train/restore.js";
import { recordsOf } from "../train/run-folder.js";
import { openBackend } from "./backend.js";
import { compact, table } from "./format.js";
import { print } from "./output.js";

/** Records of balance that the terminal shows. */
const SHOWN_RECORDS = 8;
/** Experts that the terminal shows: the busiest. */
const SHOWN_EXPERTS = 16;

export async function inspectCommand(run: string, options: Record<string, unknown>): Promise<void> {
  if (options["contexts"] !== true && options["data"] !== undefined) throw new ConfigError("inspect --data: expected --contexts beside it, got none.");
  const checkpoint = openCheckpoint("inspect", run);
  if (checkpoint.config["task"] === "translation") return (await import("./inspect-translation.js")).inspectTranslationCommand(run, checkpoint, options);
  if (options["language"] !== undefined) throw new ConfigError(expectation("inspect --language", "a translation model", run));
  if (options["contexts"] === true) return (await import("./contexts.js")).contextsCommand(checkpoint, run, options);
  openBackend();
  const { model, config, tokenizer } = loadModel(checkpoint);
  const records = recordsOf(checkpoint);
  const latest = (tag: string): number | undefined => {
    const found = records.findLast((record) => typeof record[tag] === "number");
    return found && (found[tag] as number);
  };
  const E = model.moe?.numExperts ?? 0;
  const history = balanceHistory(records, E);
  // Nothing is said of what was not recorded: loads of 0 would read as a perfect balance.
  const loads = history.at(-1)?.load;
  const balance = loads && balanceStatistics(loads, loads);
  const saved = checkpoint.state["unused"];
  const unused = Array.isArray(saved) ? (saved as number[]) : undefined;
  const { middle } = model.config;
  const summary = {
    checkpoint: checkpoint.path,
    step: checkpoint.step,
    model: config.model,
    ...(middle.kind === "moe"
      ? { gate: config.gate, ...effectiveMoe(config), num_experts: E, experts_per_token: expertsPerRow(middle) }
      : {}),
    parameters: model.numParameters(),
    ops_per_timestep: computeCost(model.config).opsPerTimestep,
    ...(E > 0 ? { bytes_per_expert_parameter: round(planRun(config, tokenizer.vocabSize).bytesPerExpertParameter) } : {}),
    train_loss: latest("train/loss"),
    eval_perplexity: latest("eval/perplexity"),
    test_perplexity: latest("test/perplexity"),
    ...(E > 0 ? { cv_load: balance?.cvLoad, max_over_mean_load: balance?.maxOverMeanLoad, unused_experts: balance?.unused, dropped_fraction: history.at(-1)?.droppedFraction ?? undefined } : {}),
  };
  const facts = Object.entries(summary).map(([key, value]) => [key, textOf(value)] as const);
  if (options["json"] === true) {
    const recorded = history.map(({ load: _, ...rest }) => rest);
    print({ ...summary, expert_load: loads, steps_without_rows: unused, balance: recorded.map(inSnakeCase) }, true);
  } else {
    print(Object.fromEntries(facts), false);
    if (loads) process.stdout.write(`\n${balanceText(history)}${expertText(loads, unused)}`);
  }
  const file = options["html"];
  if (typeof file === "string") {
    const title = `Balance of ${config.model}${E > 0 ? `, gate ${config.gate}` : ""}`;
    const command = `sparsegate inspect ${run} --html ${file}`;
    writeFileAtomic(file, await renderBalance({ title, command, createdAt: new Date().toISOString(), facts, history }));
    process.stderr.write(`Page with figures: ${file}\n`);
  }
  defaultBackend().dispose();
}

function balanceText(history: ReturnType<typeof balanceHistory>): string {
  const rows = evenly(history, SHOWN_RECORDS).map((record) => BALANCE_COLUMNS.map(([, cell]) => cell(record)));
  return `${table(
    BALANCE_COLUMNS.map(([heading]) => heading),
    rows,
  )}\n\n`;
}

function expertText(loads: readonly number[], unused: readonly number[] | undefined): string {
  const mean = loads.reduce((sum, n) => sum + n, 0) / loads.length || 1;
  const order = loads
    .map((_, i) => i)
    .sort((a, b) => loads[b]! - loads[a]!)
    .slice(0, SHOWN_EXPERTS);
  const rows = order.map((i) => [
    String(i),
    String(loads[i]),
    (loads[i]! / mean).toFixed(2),
    unused ? String(unused[i] ?? 0) : "-",
    "#".repeat(Math.round((10 * loads[i]!) / mean)),
  ]);
  return `${table(["expert", "rows in the last step", "of the mean", "steps without rows", ""], rows)}\n`;
}

const round = (x: number): number => Math.round(x * 1000) / 1000;

function textOf(value: string | number | undefined): string {
  if (value === undefined) return "not recorded";
  return typeof value === "number" && value >= 10_000 ? compact(value) : String(value);
}

function inSnakeCase(record: object): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(record).map(([key, value]) => [key.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`), value]),
  );
}
