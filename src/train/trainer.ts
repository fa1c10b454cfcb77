/** The training loop: steps, evaluation, metrics, checkpoints; interrupted without loss and resumed bit for bit. */

import { join } from "node:path";
import { ConfigError, FileError } from "../core/errors.js";
import { LanguageModel } from "../models/language-model.js";
import type { Optimizer } from "../optim/optimizers.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { keep } from "../tensor/scope.js";
import { empty, sameShape, type Tensor } from "../tensor/tensor.js";
import { BatchStream, evaluationBatches } from "../text/batches.js";
import { loadTokenizer } from "../text/load.js";
import { latestCheckpoint, loadCheckpoint, saveCheckpoint, type Checkpoint } from "./checkpoint.js";
import { checkConfig, type TrainConfig } from "./config.js";
import { carryStates, evaluate, type EvaluateOptions, type Evaluation } from "./evaluate.js";
import { MetricsWriter } from "./metrics.js";
import { Progress } from "./progress.js";
import type { StoredTensor } from "./safetensors.js";
import { makeDatasets, makeOptimizer, makeSchedule, modelConfig, type Corpora, type Datasets } from "./setup.js";
import { trainStep, type StepResult, type TrainingState } from "./step.js";
import { TensorBoardWriter } from "./tensorboard.js";

export interface TrainOptions {
  /** A checkpoint folder, or the run's folder for its latest; undefined starts anew. */
  resume?: string | undefined;
  progress?: Progress;
  /** Aborted: the step at hand is finished, a checkpoint written, and `train` returns. */
  signal?: AbortSignal;
  /** Called after each step with its figures: the demo's curves. */
  onStep?: (step: number, result: StepResult) => void;
  onEvaluation?: (step: number, evaluation: Evaluation) => void;
  /** Keep no files: metrics and checkpoints are not written. */
  ephemeral?: boolean;
}

export interface TrainResult {
  model: LanguageModel;
  datasets: Datasets;
  steps: number;
  /** True when every step was taken, false after an interruption. */
  finished: boolean;
  tokensPerSecond: number;
  valid?: Evaluation;
  test?: Evaluation;
  peakBytes: number;
}

/** @throws ConfigError, FileError, NonFiniteError (the last good checkpoint stays) */
export async function train(config: TrainConfig, corpora: Corpora, options: TrainOptions = {}): Promise<TrainResult> {
  const checkpoint = options.resume === undefined ? undefined : openCheckpoint(options.resume);
  if (checkpoint) checkSameModel(config, checkpoint);
  return trainOn(config, makeDatasets(config, corpora, checkpoint && tokenizerOf(checkpoint)), options, checkpoint);
}

/** `train` on text that is tokenised already. */
export async function trainOn(config: TrainConfig, datasets: Datasets, options: TrainOptions = {}, checkpoint?: Checkpoint): Promise<TrainResult> {
  if (config.sampled_softmax > datasets.tokenizer.vocabSize) {
    throw new ConfigError(`sampled_softmax (--sampled-softmax): expected at most the vocabulary's ${datasets.tokenizer.vocabSize} entries, got ${config.sampled_softmax}.`);
  }
  const model = new LanguageModel(modelConfig(config, datasets.tokenizer.vocabSize));
  const optimizer = makeOptimizer(config, model);
  const run = new Run(config, model, optimizer, datasets, options);
  if (checkpoint) run.restore(checkpoint);
  return run.go();
}

/** The checkpoint at a path: a checkpoint folder itself, or the latest of a run. */
export function openCheckpoint(path: string): Checkpoint {
  const latest = /checkpoint-\d+\/?$/.test(path) ? path : latestCheckpoint(path);
  if (latest === null) throw new FileError(`--resume: expected a checkpoint in ${path}, found none. Start without --resume, or name the folder checkpoint-<step>.`);
  return loadCheckpoint(latest);
}

export function tokenizerOf(checkpoint: Checkpoint): ReturnType<typeof loadTokenizer> {
  for (const name of ["tokenizer.json", "vocab.txt"]) {
    const text = checkpoint.files.get(name);
    const eos = checkpoint.config["eos"];
    if (text !== undefined) return loadTokenizer(name, text, typeof eos === "string" && name === "vocab.txt" ? { eos } : {});
  }
  throw new FileError(`${checkpoint.path}: expected tokenizer.json or vocab.txt, found neither.`);
}

/** A trained model from its checkpoint, for evaluation and generation. */
export function loadModel(checkpoint: Checkpoint): { model: LanguageModel; config: TrainConfig; tokenizer: ReturnType<typeof loadTokenizer> } {
  const config = checkConfig(checkpoint.config, join(checkpoint.path, "config.json"));
  const tokenizer = tokenizerOf(checkpoint);
  const model = new LanguageModel(modelConfig(config, tokenizer.vocabSize));
  fillTensors(checkpoint, checkpoint.model, model.namedParameters());
  return { model, config, tokenizer };
}

/** Fields that shape the model or the course of training: they must not change on resuming. */
const FIXED = ["train", "text_mode", "model", "hidden_size", "expert_hidden_size", "lstm_size", "top_k", "batch_size", "time_steps", "optimizer", "beta1", "factored_experts", "seed"] as const;

function checkSameModel(config: TrainConfig, checkpoint: Checkpoint): void {
  for (const key of FIXED) {
    const [now, then] = [config[key], checkpoint.config[key]];
    if (now !== then) throw new ConfigError(`--resume: expected ${key} ${JSON.stringify(then)} as in ${checkpoint.path}, got ${JSON.stringify(now)}. Start a new run for another model.`);
  }
}

/** Fills parameters or optimiser state from a checkpoint. @throws FileError naming what is missing or of another shape */
function fillTensors(checkpoint: Checkpoint, files: Checkpoint["model"], tensors: ReadonlyMap<string, Tensor>): void {
  for (const [name, tensor] of tensors) {
    if (!files.has(name)) throw new FileError(`${checkpoint.path}: expected a tensor ${name}, found none. Is it of another model?`);
    const { shape } = files.info(name);
    if (!sameShape(shape, tensor.shape)) throw new FileError(`${checkpoint.path}: expected ${name} of shape [${tensor.shape.join(", ")}], got [${shape.join(", ")}].`);
    tensor.backend.write(tensor.buffer, files.read(name));
  }
}

function stored(name: string, tensor: Tensor): StoredTensor {
  const dtype = tensor.dtype === "int32" ? "I32" : "F32";
  return { name, shape: tensor.shape, dtype, data: () => (dtype === "I32" ? (tensor.dataSync() as Int32Array) : Float32Array.from(tensor.dataSync())) };
}

class Run {
  readonly #training: TrainingState;
  readonly #stream: BatchStream;
  readonly #progress: Progress;
  #resumedAt: number | undefined;

  constructor(
    readonly config: TrainConfig,
    readonly model: LanguageModel,
    readonly optimizer: Optimizer,
    readonly datasets: Datasets,
    readonly options: TrainOptions,
  ) {
    this.#training = { model, optimizer, states: undefined };
    this.#stream = new BatchStream(datasets.train, { batchSize: config.batch_size, timeSteps: config.time_steps, mode: config.text_mode, seed: config.seed });
    this.#progress = options.progress ?? new Progress({ enabled: false });
  }

  restore(checkpoint: Checkpoint): void {
    fillTensors(checkpoint, checkpoint.model, this.model.namedParameters());
    if (!checkpoint.optimizer) throw new FileError(`${checkpoint.path}: expected the optimiser's state, found none. It was saved for use, not for resuming.`);
    fillTensors(checkpoint, checkpoint.optimizer, this.optimizer.prepare());
    this.optimizer.steps = checkpoint.step;
    this.#resumedAt = checkpoint.step;
    this.#stream.restore(checkpoint.state["data"] as ReturnType<BatchStream["state"]>);
    if (!checkpoint.optimizer.has("carry.0.h")) return;
    this.#training.states = this.model.lstm.map((_, i) => {
      const read = (part: "h" | "c"): Tensor => {
        const name = `carry.${i}.${part}`;
        const tensor = keep(empty(checkpoint.optimizer!.info(name).shape));
        tensor.backend.write(tensor.buffer, checkpoint.optimizer!.read(name));
        return tensor;
      };
      return { h: read("h"), c: read("c") };
    });
  }

  save(): void {
    if (this.options.ephemeral) return;
    const { config, model, optimizer, datasets } = this;
    const carried = (this.#training.states ?? []).flatMap(({ h, c }, i) => [stored(`carry.${i}.h`, h), stored(`carry.${i}.c`, c)]);
    const { file, text } = datasets.tokenizer.save();
    saveCheckpoint(
      config.output_dir,
      optimizer.steps,
      {
        config,
        model: [...model.namedParameters()].map(([name, p]) => stored(name, p)),
        optimizer: [...[...optimizer.prepare()].map(([name, t]) => stored(name, t)), ...carried],
        state: { data: this.#stream.state(), seed: config.seed },
        files: new Map([[file, text]]),
      },
      { saveTotalLimit: config.save_total_limit },
    );
  }

  async go(): Promise<TrainResult> {
    const { config, model, optimizer, options } = this;
    const resume = this.#resumedAt === undefined ? {} : { resumeStep: this.#resumedAt };
    const metrics = options.ephemeral ? undefined : new MetricsWriter(join(config.output_dir, "metrics.jsonl"), resume);
    const board = options.ephemeral ? undefined : new TensorBoardWriter(join(config.output_dir, "tensorboard"), resume);
    const log = (values: Record<string, number>): void => {
      metrics?.write(optimizer.steps, values);
      board?.write(optimizer.steps, values);
    };
    const schedule = makeSchedule(config);
    let [seconds, tokens, saved, lossSum, lossTokens] = [0, 0, this.#resumedAt ?? -1, 0, 0];
    let valid: Evaluation | undefined;
    try {
      while (optimizer.steps < config.max_steps && !options.signal?.aborted) {
        const begun = performance.now();
        const learningRate = schedule(optimizer.steps + 1);
        const result = trainStep(this.#training, this.#stream.next(), { seed: config.seed, learningRate, maxGradNorm: config.max_grad_norm, sampledSoftmax: config.sampled_softmax });
        const took = (performance.now() - begun) / 1000;
        seconds += took;
        tokens += result.tokens;
        lossSum += result.loss * result.tokens;
        lossTokens += result.tokens;
        const { steps } = optimizer;
        options.onStep?.(steps, result);
        this.#progress.update(() => `${config.model} step ${steps}/${config.max_steps}  loss ${result.loss.toFixed(3)}  ${Math.round(tokens / seconds).toLocaleString("en")} tokens/s`);
        if (steps % config.logging_steps === 0) {
          log(stepMetrics(result, lossSum / lossTokens, learningRate, result.tokens / took));
          [lossSum, lossTokens] = [0, 0];
        }
        if (this.datasets.valid && steps % config.eval_steps === 0) {
          valid = evaluateOn(model, this.datasets.valid, config);
          log({ "eval/loss": valid.loss, "eval/perplexity": valid.perplexity });
          options.onEvaluation?.(steps, valid);
        }
        if (steps % config.save_steps === 0) {
          this.save();
          saved = steps;
        }
        // Lets signals and timers in.
        await new Promise((resolve) => setImmediate(resolve));
      }
      if (optimizer.steps !== saved) this.save();
      const finished = optimizer.steps >= config.max_steps;
      const test = finished && this.datasets.test ? evaluateOn(model, this.datasets.test, config) : undefined;
      return {
        model,
        datasets: this.datasets,
        steps: optimizer.steps,
        finished,
        tokensPerSecond: seconds > 0 ? tokens / seconds : 0,
        ...(valid ? { valid } : {}),
        ...(test ? { test } : {}),
        peakBytes: defaultBackend().memory().peak,
      };
    } finally {
      carryStates(this.#training.states, []);
      optimizer.dispose();
      metrics?.close();
      board?.close();
    }
  }
}

/** Perplexity of a dataset under the run's text mode, every token once. */
export function evaluateOn(model: LanguageModel, dataset: Datasets["train"], config: TrainConfig, options: EvaluateOptions = {}): Evaluation {
  return evaluate(model, evaluationBatches(dataset, { batchSize: config.batch_size, timeSteps: config.time_steps, mode: config.text_mode }), options);
}

function stepMetrics(result: StepResult, meanLoss: number, learningRate: number, tokensPerSecond: number): Record<string, number> {
  const values: Record<string, number> = {
    "train/loss": meanLoss,
    "train/learning_rate": learningRate,
    "train/grad_norm": result.gradNorm,
    "train/tokens_per_second": tokensPerSecond,
  };
  if (result.balance && result.load) {
    values["moe/aux_loss"] = result.auxLoss;
    values["moe/importance_cv2"] = result.balance.importanceCv2;
    values["moe/load_cv2"] = result.balance.loadCv2;
    values["moe/max_over_mean_load"] = result.balance.maxOverMeanLoad;
    values["moe/dropped_fraction"] = 0;
    for (const [i, load] of result.load.entries()) values[`moe/expert_load/moe/${i}`] = load;
  }
  return values;
}
