/** From a configuration to data, model, optimiser and schedule. */

import { ConfigError, expectation } from "../core/errors.js";
import type { LanguageModelConfig } from "../models/language-model.js";
import { presetLstm } from "../models/presets.js";
import { Adam, Sgd, type Optimizer } from "../optim/optimizers.js";
import { constant, inverseSquareRoot, linearDecay, stepDecay, type Schedule } from "../optim/schedules.js";
import type { Tensor } from "../tensor/tensor.js";
import { BatchStream } from "../text/batches.js";
import { trainBpe } from "../text/bpe.js";
import { readLines } from "../text/corpus.js";
import { tokenizeCorpus, type TokenDataset } from "../text/dataset.js";
import type { Tokenizer } from "../text/tokenizer.js";
import { WordVocabulary } from "../text/word-vocab.js";
import type { TrainConfig } from "./config.js";
import { moeMiddle } from "./moe-config.js";

/** The texts of a run: paths, or lines already at hand (the demo's). */
export interface Corpora {
  train: Iterable<string>;
  valid?: Iterable<string>;
  test?: Iterable<string>;
}

export interface Datasets {
  tokenizer: Tokenizer;
  train: TokenDataset;
  valid?: TokenDataset;
  test?: TokenDataset;
}

export function corporaOf(config: TrainConfig): Corpora {
  return {
    train: readLines(config.train),
    ...(config.valid === undefined ? {} : { valid: readLines(config.valid) }),
    ...(config.test === undefined ? {} : { test: readLines(config.test) }),
  };
}

/** A run's batches of a text, from the first. @throws ConfigError where the text is too short for one */
export function batchStream({ batch_size: batchSize, time_steps: timeSteps, text_mode: mode, seed }: TrainConfig, text: TokenDataset): BatchStream {
  return new BatchStream(text, { batchSize, timeSteps, mode, seed });
}

/** @param tokenizer of the checkpoint that is resumed; otherwise read from the vocabulary file, counted or trained on the training text */
export function makeDatasets(config: TrainConfig, corpora: Corpora, tokenizer: Tokenizer = makeTokenizer(config, corpora.train)): Datasets {
  return {
    tokenizer,
    train: tokenizeCorpus(corpora.train, tokenizer),
    ...(corpora.valid ? { valid: tokenizeCorpus(corpora.valid, tokenizer) } : {}),
    ...(corpora.test ? { test: tokenizeCorpus(corpora.test, tokenizer) } : {}),
  };
}

export function makeTokenizer(config: TrainConfig, lines: Iterable<string>): Tokenizer {
  if (config.vocab !== undefined) return WordVocabulary.fromFile(config.vocab, { eos: config.eos });
  if (config.tokenizer === "words") return WordVocabulary.fromCounts(lines, { eos: config.eos, maxSize: config.vocab_size });
  return trainBpe(lines, { vocabSize: config.vocab_size });
}

/** @param where what is being done @throws ConfigError for a run of translation */
export function checkLanguageModel(where: string, { task }: TrainConfig): void {
  if (task !== "language-model") throw new ConfigError(expectation(where, "a language model (--task language-model)", task, "Translation models have train, eval, translate and inspect."));
}

/** @throws ConfigError for a run of translation */
export function modelConfig(config: TrainConfig, vocabSize: number): LanguageModelConfig {
  checkLanguageModel("LanguageModel", config);
  const middle = moeMiddle(config);
  const { lstmSize, projection } = presetLstm(config.model, config.hidden_size);
  return {
    vocabSize,
    hiddenSize: config.hidden_size,
    ...(config.lstm_size === undefined ? { lstmSize, projection } : { lstmSize: config.lstm_size }),
    middle,
    dropout: config.dropout,
    sigmoid: config.sigmoid && (middle.kind === "moe" || middle.kind === "dense"),
    residual: config.residual,
    initScale: config.init_scale,
    seed: config.seed,
  };
}

/** The optimiser of a run of either task. Its state is made at once: behind a step's gradients it would cut the free memory after them in two for good. */
export function makeOptimizer(config: TrainConfig, parameters: ReadonlyMap<string, Tensor>): Optimizer {
  const { gate_learning_rate_scale: gateScale = 1, expert_learning_rate_scale: expertScale = 1 } = config;
  const learningRateScale = (name: string): number => (isGate(name) ? gateScale : isOfMiddle(name) ? expertScale : 1);
  const factored = (name: string): boolean => config.factored_experts && isExpertMatrix(name);
  const optimizer = config.optimizer === "sgd" ? new Sgd(parameters, { learningRateScale }) : new Adam(parameters, { beta1: config.beta1, beta2: config.beta2, weightDecay: config.weight_decay, factored, learningRateScale });
  optimizer.prepare();
  return optimizer;
}

export function makeSchedule(config: TrainConfig): Schedule {
  if (config.schedule === "constant") return constant(config.learning_rate);
  if (config.schedule === "inverse-sqrt") return inverseSquareRoot(config.learning_rate, config.warmup_steps, config.decay_hold_steps);
  if (config.schedule === "linear") return linearDecay(config.learning_rate, config.max_steps, config.warmup_steps, config.decay_hold_steps);
  return stepDecay(config.learning_rate, { holdSteps: config.decay_hold_steps, everySteps: config.decay_every_steps, factor: config.decay_factor });
}

/** Whether a parameter of either task's model is the matrix of a layer of all experts: what a factored second moment is kept for. */
function isExpertMatrix(name: string): boolean {
  return /^(moe|(en|de)coderMiddle)\.(experts|shared)\.\w*Weights?(\.\d+)?$/.test(name);
}

/** Whether it is of a mixture, its gate and its experts, or of the dense layer in its place. */
function isOfMiddle(name: string): boolean {
  return /^(dense|moe|(en|de)coderMiddle)\./.test(name);
}

/** Whether it is of a gate, at either level. */
function isGate(name: string): boolean {
  return /^(moe|(en|de)coderMiddle)\.gate\./.test(name);
}
