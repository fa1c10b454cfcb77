/** What can be done with a trained model: `eval` and `generate`. */

import { ConfigError, expectation } from "../core/errors.js";
import type { BalanceStatistics } from "../moe/statistics.js";
import { readLines } from "../text/corpus.js";
import { tokenizeCorpus } from "../text/dataset.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { checkGenerateOptions, generate } from "../train/generate.js";
import { caveats } from "../train/moe-config.js";
import { loadModel, openCheckpoint } from "../train/restore.js";
import { evaluateOn } from "../train/trainer.js";
import { openBackend } from "./backend.js";
import { print } from "./output.js";

type Options = Record<string, unknown>;

/** Figures of balance as the command line names them. */
function balanceFigures({ cvImportance, cvLoad, maxOverMeanLoad, unused }: BalanceStatistics): Record<string, number> {
  return { cv_importance: cvImportance, cv_load: cvLoad, max_over_mean_load: maxOverMeanLoad, unused_experts: unused };
}

export async function evalCommand(run: string, options: Options): Promise<void> {
  const checkpoint = openCheckpoint("eval", run);
  if (checkpoint.config["task"] === "translation") return (await import("./translation.js")).evalTranslationCommand(run, options);
  for (const flag of ["target", "language", "average"]) {
    if (options[flag] !== undefined) throw new ConfigError(expectation(`eval --${flag}`, "a translation model", run));
  }
  const path = (options["data"] as string | undefined) ?? checkpoint.config["test"] ?? checkpoint.config["valid"];
  if (typeof path !== "string") throw new ConfigError(expectation("eval", "--data, a text file", "none", `${run} was trained without --test and --valid.`));
  const lines = readLines(path);
  openBackend();
  const { model, config, tokenizer } = loadModel(checkpoint);
  for (const note of caveats(config)) process.stderr.write(`${note}\n`);
  const result = evaluateOn(model, tokenizeCorpus(lines, tokenizer), config);
  print({ data: path, tokens: result.tokens, loss: result.loss, perplexity: result.perplexity, ...(result.balance && balanceFigures(result.balance)), ...(result.balance && { dropped_fraction: result.droppedFraction }) }, options["json"]);
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
