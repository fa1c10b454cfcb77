/** One model of `sparsegate demo translation`: trained by the command itself, or, where there are cores for both, in a thread of its own (the default export). */

import { join } from "node:path";
import type { Communicator } from "../comm/index.js";
import { ConfigError, SparsegateError, expectation } from "../core/errors.js";
import { translationCost } from "../models/cost.js";
import { countPlaceholders, type PlaceholderCount } from "../text/message-pairs.js";
import type { ParallelCorpus } from "../text/parallel.js";
import { checkConfig } from "../train/config.js";
import { Progress } from "../train/progress.js";
import { isTranslation, type TranslationConfig } from "../train/translation/config.js";
import { makeTranslationDatasets, type TranslationDatasets } from "../train/translation/data.js";
import type { TextEvaluation } from "../train/translation/evaluate.js";
import { translationPreset } from "../train/translation/presets.js";
import { trainTranslation, type TranslationTrainOptions } from "../train/translation/trainer.js";
import { openBackend } from "./backend.js";
import { tell, toldBy } from "./stop.js";

export const DEMO_MODELS = ["dense", "moe"] as const;
export type DemoModel = (typeof DEMO_MODELS)[number];
const BEAM_SIZE = 4;
/** Between two lines that a thread says of itself, which the command puts together. */
const HEARD_SECONDS = 0.2;

/** What both models have in common. */
export interface DemoCourse {
  steps: number;
  seed: number;
  outputDir: string;
  texts: { train: ParallelCorpus[]; test: ParallelCorpus[] };
}

export interface DemoResult {
  model: DemoModel;
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

/** What a model's thread is given. */
export interface DemoThreadData {
  course: DemoCourse;
  /** Of `shareStop`. */
  stop: SharedArrayBuffer;
}

/** What a model's thread ends with: a result, none when it was told to stop, or the message of what could not be done. */
export type DemoOutcome = { result: DemoResult | undefined } | { error: string };

function configOf(model: DemoModel, { steps, seed, outputDir }: DemoCourse): TranslationConfig {
  const values = translationPreset(`messages-${model}`);
  const name = "(TypeScript's messages)";
  // Nothing is evaluated on the way, so that a beam, as the paper's figures have it, costs seconds; short trials leave the rise of the learning rate all the same.
  const course = { max_steps: steps, eval_steps: steps, eval_beam_size: BEAM_SIZE, save_steps: steps, save_total_limit: 1, warmup_steps: Math.min(Number(values["warmup_steps"]), Math.ceil(steps / 4)) };
  const config = checkConfig({ ...values, ...course, train: name, train_target: name, seed, output_dir: join(outputDir, model) }, "the demo");
  if (!isTranslation(config)) throw new ConfigError(expectation("demo", "a preset of translation", config.task));
  return config;
}

/** The model as the table has it. */
const nameOf = (model: DemoModel): string => (model === "moe" ? String(translationPreset("messages-moe")["model"]) : model);

/** Of either model. */
export function demoDatasets(course: DemoCourse): TranslationDatasets {
  return makeTranslationDatasets(configOf("moe", course), course.texts);
}

/** @returns undefined when it was told to stop */
export async function trainDemoModel(model: DemoModel, course: DemoCourse, datasets: TranslationDatasets, options: TranslationTrainOptions): Promise<DemoResult | undefined> {
  const config = configOf(model, course);
  const result = await trainTranslation(config, datasets, { ...options, overwrite: true });
  try {
    if (!result.finished || !result.test) return undefined;
    const { perplexity, bleu, texts } = result.test;
    return {
      model,
      name: nameOf(model),
      parameters: result.model.numParameters(),
      opsPerTimestep: translationCost(result.model.config).opsPerTimestep,
      tokensPerSecond: result.tokensPerSecond,
      seconds: result.seconds,
      perplexity,
      bleu,
      texts,
      placeholders: countPlaceholders(
        course.texts.test.flatMap(({ sources }) => sources),
        texts.flatMap(({ translations }) => translations),
      ),
    };
  } finally {
    result.model.dispose();
  }
}

/**
 * A thread of the demo: the model of its number. What it says on stdout is how far it is, a line at a time. What cannot be done it says to the command alone,
 * and tells the other thread to stop, so that the user hears of it once and in its own words.
 */
export default async function main({ rank }: Communicator, { course, stop }: DemoThreadData): Promise<DemoOutcome> {
  const model = DEMO_MODELS[rank]!;
  const [name, { steps }] = [nameOf(model), course];
  const progress = new Progress({ stream: process.stdout, intervalSeconds: HEARD_SECONDS });
  const backend = openBackend({ quiet: true });
  try {
    const result = await trainDemoModel(model, course, demoDatasets(course), {
      signal: toldBy(stop),
      onStep: (step, { loss }) => (step < steps ? progress.update(`${name} step ${step}/${steps}  loss ${loss.toFixed(3)}`) : progress.note(`${name} translates the test text`)),
    });
    return { result };
  } catch (error) {
    if (!(error instanceof SparsegateError)) throw error;
    tell(stop);
    return { error: error.message };
  } finally {
    backend.dispose();
  }
}
