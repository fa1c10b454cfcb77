/** What can be done with a trained model: `eval`, `generate`, `inspect`. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import { ConfigError, expectation } from "../core/errors.js";
import { balanceStatistics, type BalanceStatistics } from "../moe/statistics.js";
import { computeCost } from "../models/language-model.js";
import { readLines } from "../text/corpus.js";
import { tokenizeCorpus } from "../text/dataset.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { checkGenerateOptions, generate } from "../train/generate.js";
import { readMetrics } from "../train/metrics.js";
import { loadModel, openCheckpoint, runFolder } from "../train/restore.js";
import { evaluateOn } from "../train/trainer.js";
import { openBackend } from "./backend.js";
import { compact, table } from "./format.js";

type Options = Record<string, unknown>;

function print(values: Record<string, unknown>, json: unknown): void {
  if (json === true) process.stdout.write(`${JSON.stringify(values)}\n`);
  else for (const [key, value] of Object.entries(values)) process.stdout.write(`${key}: ${String(value)}\n`);
}

/** Figures of balance as the command line names them. */
function balanceFigures({ cvImportance, cvLoad, maxOverMeanLoad, unused }: BalanceStatistics): Record<string, number> {
  return { cv_importance: cvImportance, cv_load: cvLoad, max_over_mean_load: maxOverMeanLoad, unused_experts: unused };
}

export function evalCommand(run: string, options: Options): void {
  const checkpoint = openCheckpoint("eval", run);
  const path = (options["data"] as string | undefined) ?? checkpoint.config["test"] ?? checkpoint.config["valid"];
  if (typeof path !== "string") throw new ConfigError(expectation("eval", "--data, a text file", "none", `${run} was trained without --test and --valid.`));
  const lines = readLines(path);
  openBackend();
  const { model, config, tokenizer } = loadModel(checkpoint);
  const result = evaluateOn(model, tokenizeCorpus(lines, tokenizer), config);
  print({ data: path, tokens: result.tokens, loss: result.loss, perplexity: result.perplexity, ...(result.balance && balanceFigures(result.balance)) }, options["json"]);
  defaultBackend().dispose();
}

export function generateCommand(run: string, options: Options): void {
  const prompt = String(options["prompt"]);
  const settings = checkGenerateOptions({
    maxTokens: options["maxTokens"] as number,
    temperature: options["temperature"] as number,
    topK: options["topK"] as number,
    topP: options["topP"] as number,
    seed: options["seed"] as number,
  });
  openBackend();
  const { model, tokenizer } = loadModel(openCheckpoint("generate", run));
  process.stdout.write(prompt);
  generate(model, tokenizer, prompt, { ...settings, onText: (text) => void process.stdout.write(text) });
  process.stdout.write("\n");
  defaultBackend().dispose();
}

export function inspectCommand(run: string, options: Options): void {
  const checkpoint = openCheckpoint("inspect", run);
  openBackend();
  const { model, config } = loadModel(checkpoint);
  const cost = computeCost(model.config);
  // Of the folder the checkpoint lies in: a run may have been moved. Records after the checkpoint are of steps it does not know.
  const path = join(runFolder(checkpoint), "metrics.jsonl");
  const records = existsSync(path) ? readMetrics(path).filter(({ step }) => step <= checkpoint.step) : [];
  const latest = (tag: string): number | undefined => {
    const found = records.findLast((record) => typeof record[tag] === "number");
    return found && (found[tag] as number);
  };
  const loads = Array.from({ length: model.moe?.numExperts ?? 0 }, (_, i) => latest(`moe/expert_load/moe/${i}`) ?? 0);
  const balance = loads.length > 0 ? balanceStatistics(loads, loads) : undefined;
  const summary = {
    checkpoint: checkpoint.path,
    step: checkpoint.step,
    model: config.model,
    parameters: model.numParameters(),
    ops_per_timestep: cost.opsPerTimestep,
    train_loss: latest("train/loss"),
    eval_perplexity: latest("eval/perplexity"),
    test_perplexity: latest("test/perplexity"),
    ...(balance ? { cv_load: balance.cvLoad, max_over_mean_load: balance.maxOverMeanLoad, unused_experts: balance.unused } : {}),
  };
  if (options["json"] === true) print({ ...summary, expert_load: loads }, true);
  else {
    print(Object.fromEntries(Object.entries(summary).map(([key, value]) => [key, typeof value === "number" && value >= 10_000 ? compact(value) : (value ?? "not recorded")])), false);
    if (loads.length > 0) {
      const mean = loads.reduce((sum, n) => sum + n, 0) / loads.length || 1;
      const order = loads.map((_, i) => i).sort((a, b) => loads[b]! - loads[a]!).slice(0, 16);
      const rows = order.map((i) => [String(i), String(loads[i]), (loads[i]! / mean).toFixed(2), "#".repeat(Math.round((10 * loads[i]!) / mean))]);
      process.stdout.write(`\n${table(["expert", "rows in the last step", "of the mean", ""], rows)}\n`);
    }
  }
  defaultBackend().dispose();
}
