/** The training loop of translation models: steps, evaluation, metrics, checkpoints; interrupted without loss and resumed bit for bit. */

import { join } from "node:path";
import { ConfigError, FileError, NonFiniteError, expectation } from "../../core/errors.js";
import { TranslationModel } from "../../models/translation-model.js";
import type { Optimizer } from "../../optim/optimizers.js";
import { defaultBackend } from "../../tensor/default-backend.js";
import { PairBatchStream } from "../../text/pair-batches.js";
import type { PairDataset } from "../../text/pair-dataset.js";
import { writeFileAtomic } from "../atomic.js";
import { deleteCheckpoints, saveCheckpoint, type Checkpoint, type CheckpointContents } from "../checkpoint.js";
import { MetricsWriter } from "../metrics.js";
import { Progress } from "../progress.js";
import { fillTensors, stored } from "../restore.js";
import { crc32 } from "../safetensors.js";
import { makeOptimizer, makeSchedule } from "../setup.js";
import { TensorBoardWriter } from "../tensorboard.js";
import { checkpointsInTheWay } from "../trainer.js";
import { translationModelConfig, type TranslationConfig } from "./config.js";
import type { TranslationDatasets } from "./data.js";
import { translationEvaluationSteps, type EvaluationOptions, type TranslationEvaluation } from "./evaluate.js";
import { PARTS, translationStep, type TranslationStep } from "./step.js";

export interface TranslationTrainOptions {
  /** Discard checkpoints that are in the way. Without it they are an error. */
  overwrite?: boolean;
  progress?: Progress;
  /** Aborted: the step at hand is finished, a checkpoint written, and training returns. */
  signal?: AbortSignal;
  /** Called after each step. */
  onStep?: (step: number, result: TranslationStep) => void;
  /** Keep no files: metrics and checkpoints are not written. */
  ephemeral?: boolean;
}

export interface TranslationTrainResult {
  model: TranslationModel;
  steps: number;
  /** True when every step was taken and every text evaluated, false after an interruption. */
  finished: boolean;
  /** Target tokens, padding not counted, and seconds of training alone. */
  tokensPerSecond: number;
  seconds: number;
  valid?: TranslationEvaluation;
  test?: TranslationEvaluation;
  /** The step whose validation BLEU was highest, and that BLEU. */
  best?: Best;
  peakBytes: number;
}

/** The best step so far by validation BLEU. */
export interface Best {
  step: number;
  bleu: number;
}

/** Where in the run's folder the best checkpoint is, without an optimiser's state. */
export const BEST_FOLDER = "best";

/** Texts that are evaluated: the one every `eval_steps` and at the end, the other at the end alone. */
type Text = "valid" | "test";
const TAGS = { valid: "eval", test: "test" } as const;

/** @throws ConfigError, FileError, NonFiniteError (the last good checkpoint stays) */
export async function trainTranslation(
  config: TranslationConfig,
  datasets: TranslationDatasets,
  options: TranslationTrainOptions = {},
  checkpoint?: Checkpoint,
): Promise<TranslationTrainResult> {
  const inTheWay = options.ephemeral ? [] : checkpointsInTheWay(config, { overwrite: options.overwrite === true }, checkpoint);
  const model = new TranslationModel(translationModelConfig(config, datasets.tokenizer.vocabSize));
  const run = new Run(config, model, makeOptimizer(config, model.namedParameters()), datasets, options);
  if (checkpoint) run.restore(checkpoint);
  if (!options.ephemeral) {
    // Only now, when nothing can be wrong with the request any more, is anything touched.
    deleteCheckpoints(config.output_dir, inTheWay);
    writeFileAtomic(join(config.output_dir, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
  }
  return run.go();
}

/** How a run's texts are evaluated. */
export function evaluationOptions(config: TranslationConfig, multilingual: boolean): EvaluationOptions {
  return { batchTokens: config.batch_tokens, multilingual, beamSize: config.eval_beam_size, maxSourceTokens: config.max_source_tokens };
}

class Run {
  readonly #stream: PairBatchStream;
  readonly #progress: Progress;
  /** Of the training ids, so that a run is not resumed on another text. */
  readonly #corpus: number;
  #resumedAt: number | undefined;
  #savedAt = -1;
  /** Sum of the losses, and tokens, since the last record of metrics. Saved: a checkpoint may fall between two records. */
  #interval = { loss: 0, tokens: 0 };
  /** Evaluations of this step still to be made. Saved: an interruption may give them up. */
  #due: Text[] = [];
  #best: Best | undefined;
  readonly #evaluations: { [text in Text]?: TranslationEvaluation } = {};

  constructor(
    readonly config: TranslationConfig,
    readonly model: TranslationModel,
    readonly optimizer: Optimizer,
    readonly datasets: TranslationDatasets,
    readonly options: TranslationTrainOptions,
  ) {
    this.#stream = new PairBatchStream(datasets.train, { batchTokens: config.batch_tokens, seed: config.seed });
    this.#progress = options.progress ?? new Progress({ enabled: false });
    this.#corpus = checksum(datasets.train);
  }

  /** @throws FileError for a checkpoint that is damaged or lacks something; ConfigError for one of another text */
  restore(checkpoint: Checkpoint): void {
    const { data, corpus, interval, due, best } = checkpoint.state;
    if (!checkpoint.optimizer || [data, corpus, interval, due].includes(undefined)) {
      throw new FileError(expectation(checkpoint.path, "the optimiser's state and the position in the text", "none", "It was saved for use, not for resuming."));
    }
    if (corpus !== this.#corpus) {
      const hint = "Its tokens differ: name the first run's --train and --train-target, or start a new run.";
      throw new ConfigError(expectation("--resume", `the text that ${checkpoint.path} was trained on`, this.config.train, hint));
    }
    fillTensors(checkpoint, checkpoint.model, this.model.namedState());
    fillTensors(checkpoint, checkpoint.optimizer, this.optimizer.prepare());
    this.optimizer.steps = checkpoint.step;
    this.#resumedAt = this.#savedAt = checkpoint.step;
    this.#stream.restore(data as ReturnType<PairBatchStream["state"]>);
    this.#interval = { ...(interval as { loss: number; tokens: number }) };
    this.#due = (due as Text[]).filter((text) => this.datasets[text]);
    this.#best = best ? { ...(best as Best) } : undefined;
  }

  #contents(): CheckpointContents {
    const { file, text } = this.datasets.tokenizer.save();
    return {
      config: this.config,
      model: [...this.model.namedState()].map(([name, tensor]) => stored(name, tensor)),
      files: new Map([[file, text]]),
    };
  }

  /** @throws FileError; NonFiniteError when a tensor holds NaN or an infinity. Checkpoints before stay. */
  #save(): void {
    const { config, optimizer } = this;
    if (!this.options.ephemeral) {
      saveCheckpoint(
        config.output_dir,
        optimizer.steps,
        {
          ...this.#contents(),
          optimizer: [...optimizer.prepare()].map(([name, tensor]) => stored(name, tensor)),
          state: { data: this.#stream.state(), corpus: this.#corpus, interval: this.#interval, due: this.#due, ...(this.#best ? { best: this.#best } : {}) },
        },
        { saveTotalLimit: config.save_total_limit },
      );
    }
    this.#savedAt = optimizer.steps;
  }

  async go(): Promise<TranslationTrainResult> {
    const { config, model, optimizer, options } = this;
    const resume = this.#resumedAt === undefined ? {} : { resumeStep: this.#resumedAt, redo: this.#due.map((text) => `${TAGS[text]}/loss`) };
    const metrics = options.ephemeral ? undefined : new MetricsWriter(join(config.output_dir, "metrics.jsonl"), resume);
    const board = options.ephemeral ? undefined : new TensorBoardWriter(join(config.output_dir, "tensorboard"), { resumeStep: this.#resumedAt ?? 0 });
    const log = (values: Record<string, number>): void => {
      metrics?.write(optimizer.steps, values);
      board?.write(optimizer.steps, values);
    };
    const schedule = makeSchedule(config);
    let [seconds, tokens] = [0, 0];
    const last = (): boolean => optimizer.steps >= config.max_steps;
    try {
      // What an interruption left undone.
      if (this.#due.length > 0 && (await this.#evaluateDue(log))) this.#save();
      while (!last() && !options.signal?.aborted) {
        const begun = performance.now();
        const learningRate = schedule(optimizer.steps + 1);
        const logs = (optimizer.steps + 1) % config.logging_steps === 0;
        const result = translationStep(model, optimizer, this.#stream.next(), { seed: config.seed, learningRate, maxGradNorm: config.max_grad_norm, statistics: logs });
        const took = (performance.now() - begun) / 1000;
        seconds += took;
        tokens += result.tokens;
        this.#interval.loss += result.loss * result.tokens;
        this.#interval.tokens += result.tokens;
        const { steps } = optimizer;
        options.onStep?.(steps, result);
        this.#progress.update(
          () => `${config.model} step ${steps}/${config.max_steps}  epoch ${this.#stream.epoch + 1}  loss ${result.loss.toFixed(3)}  ${Math.round(tokens / seconds).toLocaleString("en")} target tokens/s`,
        );
        if (logs) {
          log(stepMetrics(result, this.#interval.loss / this.#interval.tokens, learningRate, result.tokens / took));
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
      if (options.signal?.aborted) await new Promise((resolve) => setTimeout(resolve, 20));
      if (optimizer.steps !== this.#savedAt) this.#save();
      return {
        model,
        steps: optimizer.steps,
        finished: last() && this.#due.length === 0,
        tokensPerSecond: seconds > 0 ? tokens / seconds : 0,
        seconds,
        ...this.#evaluations,
        ...(this.#best ? { best: this.#best } : {}),
        peakBytes: defaultBackend().memory().peak,
      };
    } catch (error) {
      if (error instanceof NonFiniteError && !options.ephemeral) error.message += this.#lastGood();
      throw error;
    } finally {
      optimizer.dispose();
      metrics?.close();
      board?.close();
    }
  }

  /** @returns whether all are made; false after an abort, the rest still due */
  async #evaluateDue(log: (values: Record<string, number>) => void): Promise<boolean> {
    const { model, datasets, config } = this;
    for (const text of this.#due) {
      const steps = translationEvaluationSteps(model, datasets.tokenizer, datasets[text]!, evaluationOptions(config, datasets.multilingual));
      let state = steps.next();
      while (!state.done && !this.options.signal?.aborted) {
        await turn();
        state = steps.next();
      }
      if (!state.done) return false;
      const evaluation = (this.#evaluations[text] = state.value);
      log(evaluationMetrics(TAGS[text], evaluation));
      if (text === "valid") this.#rememberBest(evaluation.bleu);
      this.#due = this.#due.filter((other) => other !== text);
    }
    return true;
  }

  /** Keeps the model of the highest validation BLEU beside the last checkpoints; of equal ones the later. */
  #rememberBest(bleu: number): void {
    if (this.#best && bleu < this.#best.bleu) return;
    this.#best = { step: this.optimizer.steps, bleu };
    if (!this.options.ephemeral) saveCheckpoint(join(this.config.output_dir, BEST_FOLDER), this.optimizer.steps, this.#contents(), { saveTotalLimit: 1 });
  }

  #lastGood(): string {
    return this.#savedAt < 0 ? " No checkpoint had been written yet." : ` The last good checkpoint is ${join(this.config.output_dir, `checkpoint-${this.#savedAt}`)}.`;
  }
}

function checksum({ sources, targets }: PairDataset): number {
  const bytes = (ids: Int32Array): Uint8Array => new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
  return crc32(Buffer.concat([sources.ids, sources.starts, targets.ids, targets.starts].map(bytes)));
}

/** Lets signals and timers in. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function evaluationMetrics(tag: string, { loss, perplexity, bleu, texts }: TranslationEvaluation): Record<string, number> {
  const values: Record<string, number> = { [`${tag}/loss`]: loss, [`${tag}/perplexity`]: perplexity, [`${tag}/bleu`]: bleu };
  if (texts.length > 1) {
    for (const text of texts) {
      values[`${tag}/perplexity/${text.name}`] = text.perplexity;
      values[`${tag}/bleu/${text.name}`] = text.bleu.score;
    }
  }
  return values;
}

function stepMetrics(result: TranslationStep, meanLoss: number, learningRate: number, tokensPerSecond: number): Record<string, number> {
  const values: Record<string, number> = {
    "train/loss": meanLoss,
    "train/learning_rate": learningRate,
    "train/grad_norm": result.gradNorm,
    "train/tokens_per_second": tokensPerSecond,
  };
  for (const part of PARTS) {
    const statistics = result.statistics[part];
    if (!statistics) continue;
    values["moe/aux_loss"] = result.auxLoss;
    values[`moe/importance_cv2/${part}`] = statistics.importanceCv2;
    values[`moe/load_cv2/${part}`] = statistics.loadCv2;
    values[`moe/max_over_mean_load/${part}`] = statistics.maxOverMeanLoad;
    values[`moe/dropped_fraction/${part}`] = statistics.droppedFraction;
    for (const [i, load] of statistics.load.entries()) values[`moe/expert_load/${part}/${i}`] = load;
  }
  return values;
}
