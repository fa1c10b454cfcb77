/** What can be done with a trained model: `eval` and `generate`. */

import { ConfigError, expectation } from "../core/errors.js";
import type { BalanceStatistics } from "../moe/statistics.js";
import { readLines } from "../text/corpus.js";
import { tokenizeCorpus } from "../text/dataset.js";
import type { Tokenizer } from "../text/tokenizer.js";
import { splitWords } from "../text/word-vocab.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { checkGenerateOptions, generateBatch } from "../train/generate.js";
import { caveats } from "../train/moe-config.js";
import { loadModel } from "../train/restore.js";
import { checkWhich, openWhich } from "../train/run-folder.js";
import { evaluateOn } from "../train/trainer.js";
import { openBackend } from "./backend.js";
import { print } from "./output.js";

type Options = Record<string, unknown>;

/** Figures of balance as the command line names them. */
function balanceFigures({ cvImportance, cvLoad, maxOverMeanLoad, unused }: BalanceStatistics): Record<string, number> {
  return { cv_importance: cvImportance, cv_load: cvLoad, max_over_mean_load: maxOverMeanLoad, unused_experts: unused };
}

/** @param forTranslation flags that the user gave and that translation models alone have */
export async function evalCommand(run: string, options: Options, forTranslation: readonly string[]): Promise<void> {
  const checkpoint = openWhich("eval", run, checkWhich(options["checkpoint"]));
  if (checkpoint.config["task"] === "translation") return (await import("./eval-translation.js")).evalTranslationCommand(run, options);
  if (forTranslation.length > 0) throw new ConfigError(expectation(`eval ${forTranslation[0]}`, "a translation model", run));
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
  const file = options["prompts"] as string | undefined;
  const given = options["prompt"] as string[] | undefined;
  const prompts = [...(given ?? []), ...(file === undefined ? [] : readLines(file))];
  if (prompts.length === 0) prompts.push("");
  const settings = checkGenerateOptions({
    maxTokens: options["maxTokens"] as number,
    temperature: options["temperature"] as number,
    topK: options["topK"] as number,
    topP: options["topP"] as number,
    seed: options["seed"] as number,
  });
  openBackend();
  const { model, tokenizer } = loadModel(openWhich("generate", run, checkWhich(options["checkpoint"])));
  const unknown = unknownWords(prompts, tokenizer);
  if (unknown.length > 0) process.stderr.write(`Unknown to the model, which reads ${tokenizer.tokenText(tokenizer.unkId!)} in their place: ${unknown.map((word) => JSON.stringify(word)).join(", ")}.\n`);
  if (options["json"] === true) {
    const texts = generateBatch(model, tokenizer, prompts, settings);
    process.stdout.write(`${JSON.stringify({ texts: texts.map((text, i) => ({ prompt: prompts[i], text })) })}\n`);
  } else {
    stream(prompts, (onText, onEnd) => void generateBatch(model, tokenizer, prompts, { ...settings, onText, onEnd }));
  }
  defaultBackend().dispose();
}

/** Words of the prompts that the vocabulary has not, each once. */
function unknownWords(prompts: readonly string[], tokenizer: Tokenizer): string[] {
  if (tokenizer.unkId === undefined) return [];
  const words = new Set(prompts.flatMap(splitWords));
  return [...words].filter((word) => word !== tokenizer.tokenText(tokenizer.unkId!) && tokenizer.encode(word).includes(tokenizer.unkId!));
}

/** Writes texts that come side by side one below the other: the first that is not at its end as it comes, those after it when their turn comes. */
function stream(prompts: readonly string[], run: (onText: (text: string, prompt: number) => void, onEnd: (prompt: number) => void) => void): void {
  const waiting = [...prompts];
  const ended = new Set<number>();
  let first = 0;
  const flush = (): void => {
    process.stdout.write(waiting[first]!);
    waiting[first] = "";
  };
  flush();
  const onText = (text: string, prompt: number): void => {
    waiting[prompt] += text;
    if (prompt === first) flush();
  };
  run(onText, (prompt) => {
    ended.add(prompt);
    while (ended.has(first)) {
      process.stdout.write("\n");
      if (++first < prompts.length) flush();
    }
  });
}
