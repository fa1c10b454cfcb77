/**
 * `sparsegate demo translation`: one model for twelve pairs of languages, as in App. E of the paper, on the compiler messages of TypeScript 5: with experts,
 * and without them at equal computation. Prints a table like the paper's Table 5.
 */

import { join } from "node:path";
import { ConfigError, expectation } from "../core/errors.js";
import { translationCost } from "../models/cost.js";
import { countPlaceholders, messagePairs, type PlaceholderCount } from "../text/message-pairs.js";
import { writeFileAtomic } from "../train/atomic.js";
import { checkConfig } from "../train/config.js";
import { isTranslation, type TranslationConfig } from "../train/translation/config.js";
import { makeTranslationDatasets, type TranslationDatasets } from "../train/translation/data.js";
import type { TextEvaluation } from "../train/translation/evaluate.js";
import { translationPreset } from "../train/translation/presets.js";
import { trainTranslation } from "../train/translation/trainer.js";
import { beginDemo } from "./begin-demo.js";
import { compact, table } from "./format.js";

const MODELS = ["dense", "moe"] as const;
type Model = (typeof MODELS)[number];
const FULL_STEPS = 4800;
const QUICK_STEPS = 10;
const BEAM_SIZE = 4;
/** Nothing is chosen by a validation text. BLEU of a tenth of the messages, some two hundred, still moves by a point from one run to the next. */
const HELD_OUT = { validShare: 0, testShare: 0.1 };

interface Result {
  model: Model;
  /** As the table has it. */
  name: string;
  parameters: number;
  opsPerTimestep: number;
  tokensPerSecond: number;
  seconds: number;
  perplexity: number;
  bleu: number;
  texts: TextEvaluation[];
  placeholders: PlaceholderCount;
}

function configOf(model: Model, outputDir: string, steps: number, seed: number): TranslationConfig {
  const values = translationPreset(`messages-${model}`);
  const name = "(TypeScript's messages)";
  // Nothing is evaluated on the way, so that a beam, as the paper's figures have it, costs seconds; short trials leave the rise of the learning rate all the same.
  const course = { max_steps: steps, eval_steps: steps, eval_beam_size: BEAM_SIZE, save_steps: steps, save_total_limit: 1, warmup_steps: Math.min(Number(values["warmup_steps"]), Math.ceil(steps / 4)) };
  const config = checkConfig({ ...values, ...course, train: name, train_target: name, seed, output_dir: join(outputDir, model) }, "the demo");
  if (!isTranslation(config)) throw new ConfigError(expectation("demo", "a preset of translation", config.task));
  return config;
}

/** The share of placeholders that survive, over all texts. */
function placeholdersOf(texts: readonly TextEvaluation[], { test }: TranslationDatasets): PlaceholderCount {
  const sources = test!.flatMap(({ corpus }) => corpus.sources);
  return countPlaceholders(sources, texts.flatMap(({ translations }) => translations));
}

export async function demoTranslation(options: Record<string, unknown>): Promise<void> {
  const { backend, progress, steps, seed, outputDir, stop, split } = beginDemo(options, FULL_STEPS, QUICK_STEPS, HELD_OUT);
  const corpora = { train: messagePairs(split.train), test: messagePairs(split.test) };
  const datasets = makeTranslationDatasets(configOf("moe", outputDir, steps, seed), corpora);
  progress.note(`Text: ${datasets.train.pairs} pairs of messages in ${corpora.train.length} directions; of ${corpora.test[0]!.sources.length} messages for testing no translation is trained on.`);

  const results: Result[] = [];
  for (const model of MODELS) {
    const config = configOf(model, outputDir, steps, seed);
    const result = await trainTranslation(config, datasets, { progress, signal: stop.signal, overwrite: true });
    if (!result.finished || !result.test) {
      progress.finish("Interrupted.");
      process.exitCode = stop.exitCode();
      break;
    }
    const { perplexity, bleu, texts } = result.test;
    results.push({
      model,
      name: model === "moe" ? config.model : model,
      parameters: result.model.numParameters(),
      opsPerTimestep: translationCost(result.model.config).opsPerTimestep,
      tokensPerSecond: result.tokensPerSecond,
      seconds: result.seconds,
      perplexity,
      bleu,
      texts,
      placeholders: placeholdersOf(texts, datasets),
    });
    progress.note(`${config.model}: test perplexity ${perplexity.toFixed(2)}, BLEU ${bleu.toFixed(2)}, ${Math.round(result.tokensPerSecond).toLocaleString("en")} target tokens/s`);
    result.model.dispose();
  }
  progress.finish("");
  stop.end();
  if (results.length === MODELS.length) {
    const report = `${JSON.stringify(jsonOf(results, steps, seed))}\n`;
    writeFileAtomic(join(outputDir, "report.json"), report);
    process.stdout.write(options["json"] === true ? report : `${textOf(results, datasets, outputDir)}\n`);
  }
  backend.dispose();
}

function jsonOf(results: readonly Result[], steps: number, seed: number): object {
  return {
    steps,
    seed,
    models: results.map(({ model, parameters, opsPerTimestep, tokensPerSecond, seconds, perplexity, bleu, texts, placeholders }) => ({
      model,
      parameters,
      ops_per_timestep: opsPerTimestep,
      tokens_per_second: Math.round(tokensPerSecond),
      seconds: Math.round(seconds),
      perplexity,
      bleu,
      placeholders,
      pairs: texts.map((text) => ({ pair: text.name, perplexity: text.perplexity, bleu: text.bleu.score, signature: text.bleu.signature })),
    })),
  };
}

/** The results as the terminal shows them. */
function textOf(results: readonly Result[], { test }: TranslationDatasets, outputDir: string): string {
  const [dense, moe] = results as [Result, Result];
  const models = results.map(({ name, parameters, opsPerTimestep, tokensPerSecond, perplexity, bleu, placeholders }) => [
    name,
    compact(parameters),
    compact(opsPerTimestep),
    Math.round(tokensPerSecond).toLocaleString("en"),
    perplexity.toFixed(2),
    bleu.toFixed(2),
    `${(100 * placeholders.share).toFixed(1)}%`,
  ]);
  const pairs = dense.texts.map((one, i) => {
    const other = moe.texts[i]!;
    return [one.name, one.perplexity.toFixed(2), other.perplexity.toFixed(2), one.bleu.score.toFixed(2), other.bleu.score.toFixed(2), (other.bleu.score - one.bleu.score).toFixed(2)];
  });
  const ahead = (better: (i: number) => boolean): number => dense.texts.filter((_, i) => better(i)).length;
  const sample = moe.texts.map(({ name, translations }, i) => `  ${name}: ${test![i]!.corpus.sources[0]}\n     -> ${translations[0]}`);
  return [
    table(["model", "parameters", "ops/timestep", "target tokens/s", "test perplexity", "mean BLEU", "placeholders kept"], models),
    "",
    table(["pair", "dense perplexity", "MoE perplexity", "dense BLEU", "MoE BLEU", "difference"], pairs),
    "",
    `MoE ahead in perplexity on ${ahead((i) => moe.texts[i]!.perplexity < dense.texts[i]!.perplexity)} of ${pairs.length} pairs, in BLEU on ${ahead((i) => moe.texts[i]!.bleu.score > dense.texts[i]!.bleu.score)}.`,
    `BLEU: ${dense.texts[0]!.bleu.signature}; by characters into Japanese.`,
    "",
    "A test message and what MoE makes of it:",
    ...sample,
    "",
    `Try: sparsegate translate ${join(outputDir, "moe")} --language de "Cannot find module '{0}'."`,
  ].join("\n");
}
