/** From checkpoints back to a translation model: the last of a run, its best, or the average of its last ones. */

import { join } from "node:path";
import { checkInteger } from "../../core/checks.js";
import { ConfigError, expectation } from "../../core/errors.js";
import { TranslationModel } from "../../models/translation-model.js";
import { sameShape, type Tensor } from "../../tensor/tensor.js";
import { BpeTokenizer } from "../../text/bpe.js";
import type { Tokenizer } from "../../text/tokenizer.js";
import { checkpointSteps, type Checkpoint } from "../checkpoint.js";
import { checkConfig } from "../config.js";
import { fillTensors, openCheckpoint, tokenizerOf } from "../restore.js";
import { openWhich, type Which } from "../run-folder.js";
import { isTranslation, translationModelConfig, type TranslationConfig } from "./config.js";

/** Where the parameters come from. */
export interface Origin {
  /** Default best. */
  checkpoint?: Which;
  /** The average of the parameters of so many last checkpoints, in place of one of them (Junczys-Dowmunt et al. 2016). */
  average?: number | undefined;
}

/** A translation model ready for use. */
export interface LoadedTranslation {
  model: TranslationModel;
  config: TranslationConfig;
  tokenizer: Tokenizer;
  /** Whether a token of the target language stands in front of each source. */
  multilingual: boolean;
  /** Where it came from, for messages. */
  from: string;
}

/**
 * A trained model. @param where what the user asked for, at the head of messages; @param path a run's folder, or one checkpoint of it
 * @throws FileError, ConfigError: no checkpoint, a damaged one, too few for an average, or a model of another kind
 */
export function loadTranslationModel(where: string, path: string, { checkpoint = "best", average }: Origin = {}): LoadedTranslation {
  const checkpoints = average === undefined ? [openWhich(where, path, checkpoint)] : lastOnes(where, path, average);
  const newest = checkpoints[0]!;
  const config = checkConfig(newest.config, join(newest.path, "config.json"));
  if (!isTranslation(config)) throw new ConfigError(expectation(where, "a translation model", `${newest.path}, a ${config.task}`, "For it there are eval and generate."));
  const tokenizer = tokenizerOf(newest);
  const model = new TranslationModel(translationModelConfig(config, tokenizer.vocabSize));
  const state = model.namedState();
  fillTensors(newest, newest.model, state);
  if (checkpoints.length > 1) averageInto(state, checkpoints);
  const multilingual = tokenizer instanceof BpeTokenizer && tokenizer.specialTokens.some((token) => token.startsWith("<2"));
  return { model, config, tokenizer, multilingual, from: checkpoints.map(({ path }) => path).join(", ") };
}

/** The last checkpoints of a run, newest first. */
function lastOnes(where: string, path: string, count: number): Checkpoint[] {
  checkInteger(where, "average (--average)", count, { min: 1 });
  const steps = checkpointSteps(path);
  if (steps.length < count) {
    const hint = "Train with a --save-total-limit of at least as many.";
    throw new ConfigError(expectation(where, `${count} checkpoints in ${path} (--average)`, steps.length, hint));
  }
  return steps.slice(-count).reverse().map((step) => openCheckpoint(where, join(path, `checkpoint-${step}`)));
}

/** Mean of each tensor over checkpoints, summed in float64. */
function averageInto(state: ReadonlyMap<string, Tensor>, checkpoints: readonly Checkpoint[]): void {
  for (const [name, tensor] of state) {
    const sum = new Float64Array(tensor.size);
    for (const { model, path } of checkpoints) {
      if (!sameShape(model.info(name).shape, tensor.shape)) throw new ConfigError(expectation(path, `${name} of shape [${tensor.shape.join(", ")}]`, model.info(name).shape));
      model.read(name).forEach((v, i) => (sum[i]! += v));
    }
    tensor.backend.write(tensor.buffer, sum.map((v) => v / checkpoints.length));
  }
}
