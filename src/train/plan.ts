/** What a run will need, reckoned from its configuration without training: for --dry-run, and to refuse a model that cannot fit. */

import { ConfigError, expectation } from "../core/errors.js";
import { computeCost, type LanguageModelConfig } from "../models/language-model.js";
import { defaultBackend } from "../tensor/default-backend.js";
import type { TrainConfig } from "./config.js";
import { modelConfig } from "./setup.js";

export interface Plan {
  /** Trainable scalars, and those of them in experts. */
  parameters: number;
  moeParameters: number;
  /** Multiply-adds of a forward pass per token, without embedding and softmax. */
  opsPerTimestep: number;
  /** Peak of the tensors in memory during training. The program itself, its text and the BLAS take some more. */
  bytes: number;
  /** The part of `bytes` that does not depend on the batch: parameters, their gradients and the optimiser's state. */
  fixedBytes: number;
}

/** @throws ConfigError for a model that cannot be */
export function planRun(config: TrainConfig, vocabSize: number): Plan {
  if (config.sampled_softmax > vocabSize) {
    throw new ConfigError(
      expectation(
        "sampled_softmax (--sampled-softmax)",
        `at most the ${vocabSize} entries of the vocabulary`,
        config.sampled_softmax,
        "Lower it; 0 takes the exact softmax.",
      ),
    );
  }
  const model = modelConfig(config, vocabSize);
  const { hiddenSize: D, middle } = model;
  const expert = middle.kind === "moe" ? middle.numExperts * 2 * D * middle.expertHiddenSize : 0;
  const { opsPerTimestep, parameters: inner } = computeCost(model);
  const biases = lstmLayers(model) * 4 * model.lstmSize;
  const tables = vocabSize * D;
  const parameters = inner + biases + 2 * tables + vocabSize;
  const rows = config.batch_size * config.time_steps;

  const moments = config.optimizer === "sgd" ? 0 : config.beta1 === 0 ? 1 : 2;
  // Factored: means of rows and columns are small beside the matrices.
  const expertMoments = config.factored_experts && config.optimizer === "adam" ? 0 : moments;
  const state = parameters + (parameters - expert) * moments + expert * expertMoments;
  // Gradients by rows hold a slot for each token that was looked up, not the whole table.
  const classes = config.sampled_softmax > 0 ? rows + config.sampled_softmax : vocabSize;
  const gradients = inner + biases + rows * D + classes * D;
  const forward = forwardScalars(model, config, classes);
  // The most is in use either in the softmax, with its logits, or at the end of the way back, in the first LSTM.
  const logits =
    Math.min(rows * (config.sampled_softmax || vocabSize), LOGITS_AT_ONCE) + (config.sampled_softmax > 0 ? rows * D : 0);
  const wayBack = gradients + rows * (4 * model.lstmSize + 3 * D);
  const bytes = 4 * (state + forward + Math.max(logits, wayBack));
  return { parameters, moeParameters: expert, opsPerTimestep, bytes, fixedBytes: 4 * (state + inner + biases) };
}

/** As `linearCrossEntropy` cuts its rows. */
const LOGITS_AT_ONCE = 8 * 2 ** 20;

/** What the forward pass of one batch leaves in memory for the way back: all outputs, since a step frees them at its end. */
function forwardScalars(model: LanguageModelConfig, config: TrainConfig, classes: number): number {
  const { hiddenSize: D, lstmSize: H, middle } = model;
  const N = config.batch_size * config.time_steps;
  const dropped = config.dropout > 0 ? N * D : 0;
  const around = dropped + (config.residual ? N * D : 0);
  const embedding = N * (D + 3) + dropped;
  // Gates, cells, the cells and outputs that each step starts from, the output; before a projection also the units.
  const lstm = N * (4 * H + 2 * H + 2 * D + (H === D ? 0 : H)) + around;
  let between = 0;
  if (middle.kind === "dense") between = N * (2 * middle.hiddenSizes.reduce((sum, width) => sum + width, 0) + D);
  if (middle.kind === "moe") {
    const { numExperts: E, topK: K, expertHiddenSize: F } = middle;
    // Two matrices of the gate (x·W_g, x·W_noise) and the loads of parts of 32 rows; the k + 1 best; then rows × K: choices, rows gathered, hidden before and after ReLU, output.
    between = N * (2 + 1 / 32) * E + N * 3 * (K + 1) + N * K * (6 + 2 * D + 2 * F) + N * D;
  }
  if (between > 0) between += around + (model.sigmoid ? N * D : 0);
  // The softmax takes its gradients in the forward pass; sampled, it also gathers the rows of its classes.
  const softmax = N * D + classes * D * (config.sampled_softmax > 0 ? 2 : 1);
  return embedding + lstmLayers(model) * lstm + between + softmax;
}

function lstmLayers({ middle }: LanguageModelConfig): number {
  return 2 + (middle.kind === "lstm" ? middle.layers : 0);
}

/** @throws ConfigError, naming what is needed and what there is, for a model that no batch is small enough for; as `planRun` for one that cannot be */
export function checkMemory(config: TrainConfig, vocabSize: number): void {
  const { fixedBytes } = planRun(config, vocabSize);
  const { limit } = defaultBackend().memory();
  if (fixedBytes <= limit) return;
  const gib = (n: number): string => `${(n / 2 ** 30).toFixed(1)} GiB`;
  const hint = "Lower --hidden-size, --vocab-size or the number of experts, or take --factored-experts.";
  throw new ConfigError(
    expectation(`model ${config.model}`, `parameters, gradients and optimiser state within ${gib(limit)}`, gib(fixedBytes), hint),
  );
}
