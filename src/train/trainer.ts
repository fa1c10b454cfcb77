/** The training loop: steps, evaluation, metrics, checkpoints; interrupted without loss and resumed bit for bit. */

import { join, resolve } from "node:path";
import type { Communicator } from "../comm/communicator.js";
import { ConfigError, FileError, NonFiniteError, expectation } from "../core/errors.js";
import { LanguageModel } from "../models/language-model.js";
import { UnusedExperts } from "../moe/statistics.js";
import type { Optimizer } from "../optim/optimizers.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { keep } from "../tensor/scope.js";
import { empty, type Tensor } from "../tensor/tensor.js";
import { BatchStream, evaluationBatches } from "../text/batches.js";
import { writeFileAtomic } from "./atomic.js";
import { checkpointSteps, deleteCheckpoints, saveCheckpoint, type Checkpoint } from "./checkpoint.js";
import type { TrainConfig } from "./config.js";
import { EarlyStopping } from "./early-stopping.js";
import { carryStates, evaluate, evaluationSteps, type EvaluateOptions, type Evaluation } from "./evaluate.js";
import { MetricsWriter } from "./metrics.js";
import { checkMemory } from "./plan.js";
import { Progress } from "./progress.js";
import { lanesOf, onAnyRank, several } from "./ranks.js";
import { checkSameModel, fillTensors, openCheckpoint, runFolder, sendParts, stored, tokenizerOf } from "./restore.js";
import { crc32 } from "./safetensors.js";
import { makeDatasets, makeOptimizer, makeSchedule, modelConfig, type Corpora, type Datasets } from "./setup.js";
import { trainStep, type StepResult, type TrainingState } from "./step.js";
import { TensorBoardWriter } from "./tensorboard.js";

export interface TrainOptions {
  /** A checkpoint folder, or the run's folder for its latest; undefined starts anew. */
  resume?: string | undefined;
  /** Discard checkpoints that are in the way: an earlier run's, or those after the one resumed from. Without it they are an error. */
  overwrite?: boolean;
  progress?: Progress;
  /** Aborted: the step at hand is finished, a checkpoint written, and `train` returns. */
  signal?: Pick<AbortSignal, "aborted">;
  /** Called after each step with its figures: the demo's curves. */
  onStep?: (step: number, result: StepResult) => void;
  onEvaluation?: (step: number, evaluation: Evaluation) => void;
  /** Keep no files: metrics and checkpoints are not written. */
  ephemeral?: boolean;
  /** Ranks that train together: all call at once with the same configuration and text. The first writes files and shows progress. */
  comm?: Communicator | undefined;
}

export interface TrainResult {
  model: LanguageModel;
  datasets: Datasets;
  steps: number;
  /** True when every step was taken and every text evaluated, false after an interruption. */
  finished: boolean;
  tokensPerSecond: number;
  /** With a patience: the step at which the validation text was best, which is in the folder best/. */
  bestStep?: number;
  /** Of the last evaluation; that of a finished run is of its end, but the test text's with a patience, which is of the best step. */
  valid?: Evaluation;
  test?: Evaluation;
  peakBytes: number;
}

/** Texts that are evaluated: the one every `eval_steps` and at the end, the other at the end alone. */
type Part = "valid" | "test";
const TAGS = { valid: "eval", test: "test" } as const;

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
  if (config.patience !== undefined && !datasets.valid) {
    throw new ConfigError(
      expectation("patience (--patience)", "a text for evaluation while training", "none", "Name it by --valid."),
    );
  }
  const comm = several(options.comm);
  checkMemory(config, datasets.tokenizer.vocabSize, comm?.size);
  const inTheWay = writes(options) ? checkpointsInTheWay(config, options, checkpoint) : [];
  const model = new LanguageModel(modelConfig(config, datasets.tokenizer.vocabSize), comm);
  const optimizer = makeOptimizer(config, model.namedParameters());
  const run = new Run(config, model, optimizer, datasets, options);
  if (checkpoint) run.restore(checkpoint);
  if (writes(options)) {
    // Only now, when nothing can be wrong with the request any more, is anything touched.
    deleteCheckpoints(config.output_dir, inTheWay);
    const best = bestFolder(config);
    deleteCheckpoints(
      best,
      checkpointSteps(best).filter((step) => step > (checkpoint?.step ?? -1)),
    );
    writeFileAtomic(join(config.output_dir, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
  }
  return run.go();
}

/** Whether files are kept, and this rank is the one that writes them. */
const writes = ({ ephemeral, comm }: TrainOptions): boolean => !ephemeral && (comm?.rank ?? 0) === 0;

/**
 * Steps of checkpoints in --output-dir that are none of this run's past: of an earlier run, or after the one resumed from. Left there, the next --resume
 * would go on from them, and they would not fit the metrics.
 * @throws ConfigError where there are some and `overwrite` is not set
 */
export function checkpointsInTheWay(config: TrainConfig, { overwrite = false }: TrainOptions, checkpoint?: Checkpoint): number[] {
  const sameRun = checkpoint !== undefined && resolve(runFolder(checkpoint)) === resolve(config.output_dir);
  const steps = checkpointSteps(config.output_dir).filter((step) => !sameRun || step > checkpoint.step);
  if (steps.length === 0 || overwrite) return steps;
  const found = `checkpoint-${steps.at(-1)}`;
  if (sameRun)
    throw new ConfigError(
      expectation(
        "--resume",
        `the last checkpoint of ${config.output_dir}`,
        checkpoint.path,
        `Add --overwrite to go back to it and discard ${found}, or give another --output-dir.`,
      ),
    );
  throw new ConfigError(
    expectation(
      "--output-dir",
      `a folder without checkpoints, as for a new run`,
      `${config.output_dir} with ${found}`,
      "Add --resume to go on from it, --overwrite to discard it, or give another --output-dir.",
    ),
  );
}

/** Where the parameters of the best step are kept, where there is a patience. */
function bestFolder({ output_dir }: TrainConfig): string {
  return join(output_dir, "best");
}

class Run {
  readonly #training: TrainingState;
  readonly #stream: BatchStream;
  readonly #progress: Progress;
  /** Of the training tokens, so that a run is not resumed on another text. */
  readonly #corpus: number;
  #resumedAt: number | undefined;
  #savedAt = -1;
  /** Sum of the losses, and tokens, since the last record of metrics. Saved: a checkpoint may fall between two records. */
  #interval = { loss: 0, tokens: 0 };
  /** Steps that each expert has been without rows. Saved likewise. */
  #unused: UnusedExperts;
  /** Where there are several ranks. */
  readonly #comm: Communicator | undefined;
  /** Whether one of them was told to stop. */
  #stopped = false;
  /** Evaluations of this step still to be made. Saved: an interruption may give them up. */
  #due: Part[] = [];
  readonly #stopping: EarlyStopping;
  readonly #evaluations: { [part in Part]?: Evaluation } = {};

  constructor(
    readonly config: TrainConfig,
    readonly model: LanguageModel,
    readonly optimizer: Optimizer,
    readonly datasets: Datasets,
    readonly options: TrainOptions,
  ) {
    this.#comm = several(options.comm);
    this.#training = { model, optimizer, states: undefined, comm: this.#comm };
    this.#unused = new UnusedExperts(model.moe?.numExperts ?? 0);
    this.#stopping = new EarlyStopping(config.patience);
    this.#stream = new BatchStream(datasets.train, {
      batchSize: config.batch_size,
      timeSteps: config.time_steps,
      mode: config.text_mode,
      seed: config.seed,
    });
    this.#progress = options.progress ?? new Progress({ enabled: false });
    const { buffer, byteOffset, byteLength } = datasets.train.tokens;
    this.#corpus = crc32(new Uint8Array(buffer, byteOffset, byteLength));
  }

  /** @throws FileError for a checkpoint that is damaged or lacks something; ConfigError for one of another text */
  restore(checkpoint: Checkpoint): void {
    const { data, corpus, interval, due, unused } = checkpoint.state;
    if (!checkpoint.optimizer || [data, corpus, interval, due].includes(undefined)) {
      throw new FileError(
        expectation(
          checkpoint.path,
          "the optimiser's state and the position in the text",
          "none",
          "It was saved for use, not for resuming.",
        ),
      );
    }
    if (corpus !== this.#corpus) {
      throw new ConfigError(
        expectation(
          "--resume",
          `the text that ${checkpoint.path} was trained on`,
          this.config.train,
          "Its tokens differ: name the first run's --train, or start a new run.",
        ),
      );
    }
    fillTensors(checkpoint, checkpoint.model, this.model.namedState(), this.#comm);
    fillTensors(checkpoint, checkpoint.optimizer, this.optimizer.prepare(), this.#comm);
    this.optimizer.steps = checkpoint.step;
    this.#resumedAt = this.#savedAt = checkpoint.step;
    this.#stream.restore(data as ReturnType<BatchStream["state"]>);
    this.#interval = { ...(interval as { loss: number; tokens: number }) };
    this.#due = (due as Part[]).filter((part) => this.datasets[part]);
    this.#stopping.restore(checkpoint.state["stopping"]);
    if (Array.isArray(unused)) this.#unused = new UnusedExperts(unused as number[]);
    if (!checkpoint.optimizer.has("carry.0.h")) return;
    const carried = new Map<string, Tensor>();
    const states = this.model.lstm.map((_, i) => {
      const make = (part: "h" | "c"): Tensor => {
        const name = `carry.${i}.${part}`;
        const { shape } = checkpoint.optimizer!.info(name);
        const lanes = this.#lanes();
        const tensor = keep(empty(lanes ? [lanes.count, ...shape.slice(1)] : shape));
        tensor.shard = lanes;
        carried.set(name, tensor);
        return tensor;
      };
      return { h: make("h"), c: make("c") };
    });
    fillTensors(checkpoint, checkpoint.optimizer, carried, this.#comm);
    this.#training.states = states;
  }

  /** @throws FileError; NonFiniteError when a tensor holds NaN or an infinity. Checkpoints before stay. */
  #save(): void {
    if (!this.options.ephemeral) this.#write();
    this.#savedAt = this.optimizer.steps;
  }

  #write(): void {
    const { config, model, optimizer, datasets } = this;
    const comm = this.#comm;
    const carried = (this.#training.states ?? []).flatMap(({ h, c }, i) => [[`carry.${i}.h`, h] as const, [`carry.${i}.c`, c] as const]);
    for (const [, tensor] of carried) tensor.shard = this.#lanes();
    const kept = [...optimizer.prepare(), ...carried];
    if (!writes(this.options)) {
      if (comm) for (const tensors of [model.namedState(), kept]) sendParts(tensors, comm);
      return;
    }
    const { file, text } = datasets.tokenizer.save();
    saveCheckpoint(
      config.output_dir,
      optimizer.steps,
      {
        config,
        model: [...model.namedState()].map(([name, tensor]) => stored(name, tensor, comm)),
        optimizer: kept.map(([name, tensor]) => stored(name, tensor, comm)),
        state: {
          data: this.#stream.state(),
          corpus: this.#corpus,
          interval: this.#interval,
          due: this.#due,
          unused: [...this.#unused.steps],
          ...(config.patience === undefined ? {} : { stopping: this.#stopping.state() }),
        },
        files: new Map([[file, text]]),
      },
      { saveTotalLimit: config.save_total_limit },
    );
  }

  /** Keeps the parameters of the best step so far, and those of the one before, lest this one is undone by a kill. */
  #saveBest(): void {
    const { config, model, optimizer, datasets } = this;
    const comm = this.#comm;
    if (this.options.ephemeral) return;
    if (!writes(this.options)) {
      if (comm) sendParts(model.namedState(), comm);
      return;
    }
    const { file, text } = datasets.tokenizer.save();
    const contents = {
      config,
      model: [...model.namedState()].map(([name, tensor]) => stored(name, tensor, comm)),
      files: new Map([[file, text]]),
    };
    saveCheckpoint(bestFolder(config), optimizer.steps, contents, { saveTotalLimit: 2 });
  }

  /** Puts the parameters of the best step into the model. @returns puts back what was there */
  #useBest(): () => void {
    const step = this.#stopping.bestStep;
    if (this.config.patience === undefined || this.options.ephemeral || step === undefined || step === this.optimizer.steps)
      return () => {};
    // The rank that writes may not be done yet.
    this.#comm?.barrier();
    const now = [...this.model.namedState().values()].map((tensor) => ({ tensor, values: tensor.dataSync().slice() }));
    const best = openCheckpoint("train", join(bestFolder(this.config), `checkpoint-${step}`));
    fillTensors(best, best.model, this.model.namedState(), this.#comm);
    return () => {
      for (const { tensor, values } of now) tensor.backend.write(tensor.buffer, values);
    };
  }

  /** Which lanes of a batch are this rank's. */
  #lanes(): ReturnType<typeof lanesOf> | undefined {
    return this.#comm && lanesOf(this.config.batch_size, this.#comm);
  }

  /** Whether the run is to stop: all ranks ask at once, and are told the same. */
  #told(): boolean {
    return (this.#stopped ||= onAnyRank(this.#comm, this.options.signal?.aborted === true));
  }

  async go(): Promise<TrainResult> {
    const { config, model, optimizer, options } = this;
    const resume =
      this.#resumedAt === undefined ? {} : { resumeStep: this.#resumedAt, redo: this.#due.map((part) => `${TAGS[part]}/loss`) };
    const metrics = writes(options) ? new MetricsWriter(join(config.output_dir, "metrics.jsonl"), resume) : undefined;
    // A run that begins anew in the folder of one that was killed early purges that one's curves.
    const board = writes(options)
      ? new TensorBoardWriter(join(config.output_dir, "tensorboard"), { resumeStep: this.#resumedAt ?? 0 })
      : undefined;
    const log = (values: Record<string, number>): void => {
      metrics?.write(optimizer.steps, values);
      board?.write(optimizer.steps, values);
    };
    const schedule = makeSchedule(config);
    let [seconds, tokens] = [0, 0];
    const last = (): boolean => optimizer.steps >= config.max_steps || this.#stopping.stops;
    try {
      // What an interruption left undone.
      if (this.#due.length > 0 && (await this.#evaluateDue(log))) this.#save();
      while (!last() && !this.#told()) {
        const begun = performance.now();
        const learningRate = schedule(optimizer.steps + 1);
        const logs = (optimizer.steps + 1) % config.logging_steps === 0;
        const result = trainStep(this.#training, this.#stream.next(), {
          seed: config.seed,
          learningRate,
          maxGradNorm: config.max_grad_norm,
          sampledSoftmax: config.sampled_softmax,
          statistics: logs,
        });
        const took = (performance.now() - begun) / 1000;
        seconds += took;
        tokens += result.tokens;
        this.#interval.loss += result.loss * result.tokens;
        this.#interval.tokens += result.tokens;
        if (result.load) this.#unused.observe(result.load);
        const { steps } = optimizer;
        options.onStep?.(steps, result);
        this.#progress.update(
          () =>
            `${config.model} step ${steps}/${config.max_steps}  loss ${result.loss.toFixed(3)}  ${Math.round(tokens / seconds).toLocaleString("en")} tokens/s`,
        );
        if (logs) {
          log(stepMetrics(result, this.#interval.loss / this.#interval.tokens, learningRate, result.tokens / took, this.#unused));
          this.#interval = { loss: 0, tokens: 0 };
        }
        if (this.datasets.valid && (steps % config.eval_steps === 0 || last())) this.#due.push("valid");
        if (this.datasets.test && last()) this.#due.push("test");
        await turn();
        await this.#evaluateDue(log);
        // After the step's records, so that metrics up to a checkpoint's step are whole.
        if (steps % config.save_steps === 0 || last()) this.#save();
      }
      // A second signal that comes close upon the first is still handled, and ends the process before anything is saved.
      if (this.#stopped) await new Promise((resolve) => setTimeout(resolve, 20));
      if (optimizer.steps !== this.#savedAt) this.#save();
      const finished = last() && this.#due.length === 0;
      return {
        model,
        datasets: this.datasets,
        steps: optimizer.steps,
        finished,
        tokensPerSecond: seconds > 0 ? tokens / seconds : 0,
        ...(config.patience === undefined || this.#stopping.bestStep === undefined ? {} : { bestStep: this.#stopping.bestStep }),
        ...(finished ? this.#atTheEnd() : this.#evaluations),
        peakBytes: defaultBackend().memory().peak,
      };
    } catch (error) {
      if (error instanceof NonFiniteError && !options.ephemeral) error.message += this.#lastGood();
      throw error;
    } finally {
      carryStates(this.#training.states, []);
      optimizer.dispose();
      metrics?.close();
      board?.close();
    }
  }

  /** @returns whether all are made; false after an abort, the rest still due */
  async #evaluateDue(log: (values: Record<string, number>) => void): Promise<boolean> {
    for (let part = this.#due[0]; part !== undefined; part = this.#due[0]) {
      const evaluation = await this.#evaluatePart(part);
      if (!evaluation) return false;
      const { loss, perplexity } = (this.#evaluations[part] = evaluation);
      log({ [`${TAGS[part]}/loss`]: loss, [`${TAGS[part]}/perplexity`]: perplexity });
      this.#due = this.#due.slice(1);
      if (part !== "valid") continue;
      this.options.onEvaluation?.(this.optimizer.steps, evaluation);
      if (this.config.patience === undefined) continue;
      if (this.#stopping.observe(this.optimizer.steps, loss)) this.#saveBest();
      // The end, which nobody knew of before: it is that of the test text too.
      if (this.#stopping.stops && this.datasets.test && !this.#due.includes("test")) this.#due.push("test");
    }
    return true;
  }

  /** @returns undefined after an abort */
  async #evaluatePart(part: Part): Promise<Evaluation | undefined> {
    const putBack = part === "test" ? this.#useBest() : () => {};
    try {
      const steps = evaluationSteps(this.model, batchesOf(this.datasets[part]!, this.config), { comm: this.#comm });
      let state = steps.next();
      while (!state.done && !this.#told()) {
        await turn();
        state = steps.next();
      }
      if (state.done) return state.value;
      steps.return(undefined as never); // frees its states
      return undefined;
    } finally {
      putBack();
    }
  }

  /** Evaluations of a finished run; made now, unlogged, where the run was finished before this process began. */
  #atTheEnd(): { [part in Part]?: Evaluation } {
    const at = (part: Part): Evaluation | undefined => {
      if (this.#evaluations[part] || !this.datasets[part]) return this.#evaluations[part];
      const putBack = part === "test" ? this.#useBest() : () => {};
      try {
        return evaluateOn(this.model, this.datasets[part], this.config, { comm: this.#comm });
      } finally {
        putBack();
      }
    };
    const [valid, test] = [at("valid"), at("test")];
    return { ...(valid ? { valid } : {}), ...(test ? { test } : {}) };
  }

  #lastGood(): string {
    return this.#savedAt < 0
      ? " No checkpoint had been written yet."
      : ` The last good checkpoint is ${join(this.config.output_dir, `checkpoint-${this.#savedAt}`)}.`;
  }
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

/** Lets signals and timers in. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function stepMetrics(
  result: StepResult,
  meanLoss: number,
  learningRate: number,
  tokensPerSecond: number,
  unused: UnusedExperts,
): Record<string, number> {
  const values: Record<string, number> = {
    "train/loss": meanLoss,
    "train/learning_rate": learningRate,
    "train/grad_norm": result.gradNorm,
    "train/tokens_per_second": tokensPerSecond,
  };
  const { statistics } = result;
  if (statistics) {
    values["moe/aux_loss"] = result.auxLoss;
    values["moe/importance_cv2"] = statistics.importanceCv2;
    values["moe/load_cv2"] = statistics.loadCv2;
    values["moe/max_over_mean_load"] = statistics.maxOverMeanLoad;
    values["moe/dropped_fraction"] = statistics.droppedFraction;
    values["moe/unrouted_fraction"] = statistics.unroutedRows / result.tokens;
    values[`moe/${statistics.entropyOf}_entropy`] = statistics.entropy;
    values["moe/unused_experts"] = statistics.unused;
    values["moe/longest_unused_steps"] = unused.longest;
    for (const [i, load] of statistics.load.entries()) values[`moe/expert_load/moe/${i}`] = load;
  }
  return values;
}
