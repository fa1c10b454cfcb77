/** Training of language models: what the loop of run.ts asks of them. */

import type { Communicator } from "../comm/communicator.js";
import { LanguageModel } from "../models/language-model.js";
import { UnusedExperts } from "../moe/statistics.js";
import type { Optimizer } from "../optim/optimizers.js";
import { keep } from "../tensor/scope.js";
import { empty, type Tensor } from "../tensor/tensor.js";
import { evaluationBatches, type BatchStream } from "../text/batches.js";
import type { Tokenizer } from "../text/tokenizer.js";
import type { Checkpoint } from "./checkpoint.js";
import type { TrainConfig } from "./config.js";
import { carryStates, evaluate, evaluationSteps, type EvaluateOptions, type Evaluation } from "./evaluate.js";
import { checkMemory } from "./plan.js";
import { lanesOf, several } from "./ranks.js";
import { checkSameModel, fillTensors, openCheckpoint, tokenizerOf } from "./restore.js";
import { runTask, type EvaluatedText, type RunOptions, type RunResult, type StepOptions, type Task } from "./run.js";
import { crc32 } from "./safetensors.js";
import { batchStream, makeDatasets, makeOptimizer, modelConfig, type Corpora, type Datasets } from "./setup.js";
import { trainStep, type StepResult, type TrainingState } from "./step.js";

export interface TrainOptions extends RunOptions<StepResult, Evaluation> {
  /** A checkpoint folder, or the run's folder for its latest; undefined starts anew. */
  resume?: string | undefined;
}

export interface TrainResult extends RunResult<Evaluation, LanguageModel> {
  datasets: Datasets;
}

/** @throws ConfigError, FileError, NonFiniteError (the last good checkpoint stays) */
export async function train(config: TrainConfig, corpora: Corpora, options: TrainOptions = {}): Promise<TrainResult> {
  const checkpoint = options.resume === undefined ? undefined : openCheckpoint("--resume", options.resume);
  if (checkpoint) checkSameModel(config, checkpoint);
  return trainOn(config, makeDatasets(config, corpora, checkpoint && tokenizerOf(checkpoint)), options, checkpoint);
}

/** `train` on text that is tokenised already. */
export async function trainOn(
  config: TrainConfig,
  datasets: Datasets,
  options: TrainOptions = {},
  checkpoint?: Checkpoint,
): Promise<TrainResult> {
  const comm = several(options.comm);
  checkMemory(config, datasets.tokenizer.vocabSize, comm?.size);
  return { datasets, ...(await runTask(config, datasets, options, checkpoint, () => new LanguageModelTask(config, datasets, comm))) };
}

/** A language model on its text. */
class LanguageModelTask implements Task<StepResult, Evaluation, LanguageModel> {
  readonly model: LanguageModel;
  readonly optimizer: Optimizer;
  readonly tokenizer: Tokenizer;
  readonly stream: BatchStream;
  readonly corpus: number;
  readonly corpusFlags = "--train";
  readonly unit = "tokens";
  readonly keepsBest: boolean;
  readonly #training: TrainingState;
  /** Steps that each expert has been without rows. */
  #unused: UnusedExperts;

  constructor(
    readonly config: TrainConfig,
    readonly datasets: Datasets,
    readonly comm: Communicator | undefined,
  ) {
    this.tokenizer = datasets.tokenizer;
    this.model = new LanguageModel(modelConfig(config, datasets.tokenizer.vocabSize), comm);
    this.optimizer = makeOptimizer(config, this.model.namedParameters());
    this.#training = { model: this.model, optimizer: this.optimizer, states: undefined, comm };
    this.#unused = new UnusedExperts(this.model.moe?.numExperts ?? 0);
    this.keepsBest = config.patience !== undefined;
    this.stream = batchStream(config, datasets.train);
    const { buffer, byteOffset, byteLength } = datasets.train.tokens;
    this.corpus = crc32(new Uint8Array(buffer, byteOffset, byteLength));
  }

  step({ learningRate, statistics }: StepOptions): StepResult {
    const { seed, max_grad_norm: maxGradNorm, sampled_softmax: sampledSoftmax } = this.config;
    const result = trainStep(this.#training, this.stream.next(), { seed, learningRate, maxGradNorm, sampledSoftmax, statistics });
    if (result.load) this.#unused.observe(result.load);
    return result;
  }

  stepMetrics({ statistics, auxLoss, tokens }: StepResult): Record<string, number> {
    if (!statistics) return {};
    return {
      "moe/aux_loss": auxLoss,
      "moe/importance_cv2": statistics.importanceCv2,
      "moe/load_cv2": statistics.loadCv2,
      "moe/max_over_mean_load": statistics.maxOverMeanLoad,
      "moe/dropped_fraction": statistics.droppedFraction,
      "moe/unrouted_fraction": statistics.unroutedRows / tokens,
      [`moe/${statistics.entropyOf}_entropy`]: statistics.entropy,
      "moe/unused_experts": statistics.unused,
      "moe/longest_unused_steps": this.#unused.longest,
      ...Object.fromEntries(statistics.load.map((load, i) => [`moe/expert_load/moe/${i}`, load])),
    };
  }

  position(): string {
    return "";
  }

  evaluation(text: EvaluatedText): Generator<void, Evaluation> {
    return evaluationSteps(this.model, batchesOf(this.datasets[text]!, this.config), { comm: this.comm });
  }

  evaluationMetrics({ loss, perplexity }: Evaluation): Record<string, number> {
    return { loss, perplexity };
  }

  carried(): (readonly [string, Tensor])[] {
    const states = (this.#training.states ?? []).flatMap(({ h, c }, i) => [[`carry.${i}.h`, h] as const, [`carry.${i}.c`, c] as const]);
    for (const [, tensor] of states) tensor.shard = this.#lanes();
    return states;
  }

  state(): Record<string, unknown> {
    return { unused: [...this.#unused.steps] };
  }

  restore(checkpoint: Checkpoint): void {
    const { optimizer, state } = checkpoint;
    const unused = state["unused"];
    if (Array.isArray(unused)) this.#unused = new UnusedExperts(unused as number[]);
    if (!optimizer?.has("carry.0.h")) return;
    const carried = new Map<string, Tensor>();
    const states = this.model.lstm.map((_, i) => {
      const make = (part: "h" | "c"): Tensor => {
        const name = `carry.${i}.${part}`;
        const { shape } = optimizer.info(name);
        const lanes = this.#lanes();
        const tensor = keep(empty(lanes ? [lanes.count, ...shape.slice(1)] : shape));
        tensor.shard = lanes;
        carried.set(name, tensor);
        return tensor;
      };
      return { h: make("h"), c: make("c") };
    });
    fillTensors(checkpoint, optimizer, carried, this.comm);
    this.#training.states = states;
  }

  dispose(): void {
    carryStates(this.#training.states, []);
  }

  /** Which lanes of a batch are this rank's. */
  #lanes(): ReturnType<typeof lanesOf> | undefined {
    return this.comm && lanesOf(this.config.batch_size, this.comm);
  }
}

/**
 * Perplexity of the validation text by the model that a run is judged by: the best where that is kept, as the last one has by then gone a patience without
 * getting better.
 */
export function validPerplexity({ best, valid }: Pick<TrainResult, "best" | "valid">): number | undefined {
  return best ? Math.exp(best.loss) : valid?.perplexity;
}

/** Perplexity of a dataset under the run's text mode, every token once. */
export function evaluateOn(
  model: LanguageModel,
  dataset: Datasets["train"],
  config: TrainConfig,
  options: EvaluateOptions = {},
): Evaluation {
  return evaluate(model, batchesOf(dataset, config), options);
}

function batchesOf(dataset: Datasets["train"], config: TrainConfig): ReturnType<typeof evaluationBatches> {
  return evaluationBatches(dataset, { batchSize: config.batch_size, timeSteps: config.time_steps, mode: config.text_mode });
}
