/** The training loop of either task: steps, evaluation, metrics, checkpoints; on one rank or several, interrupted without loss and resumed bit for bit. */

import { join } from "node:path";
import type { Communicator } from "../comm/communicator.js";
import { ConfigError, FileError, NonFiniteError, expectation } from "../core/errors.js";
import type { Module } from "../nn/module.js";
import type { Optimizer } from "../optim/optimizers.js";
import { defaultBackend } from "../tensor/default-backend.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Tokenizer } from "../text/tokenizer.js";
import { writeFileAtomic } from "./atomic.js";
import { checkpointSteps, copyCheckpoint, deleteCheckpoints, isIn, loadCheckpoint, saveCheckpoint, type Checkpoint, type CheckpointContents } from "./checkpoint.js";
import type { TrainConfig } from "./config.js";
import { EarlyStopping } from "./early-stopping.js";
import { checkUnlocked, lockFolder } from "./lock.js";
import { MetricsWriter } from "./metrics.js";
import { Progress } from "./progress.js";
import { onAnyRank, several } from "./ranks.js";
import { fillTensors, openCheckpoint, runFolder, sendParts, stored } from "./restore.js";
import { makeSchedule } from "./setup.js";
import { TensorBoardWriter } from "./tensorboard.js";

/** Texts that are evaluated: the one every `eval_steps` and at the end, the other at the end alone. */
export type EvaluatedText = "valid" | "test";
const TAGS = { valid: "eval", test: "test" } as const;

/** Where in the run's folder the best checkpoint is, without an optimiser's state. */
export const BEST_FOLDER = "best";

/** What a step gives, whatever the task. */
export interface StepFigures {
  /** Mean cross-entropy, nats per token. */
  loss: number;
  gradNorm: number;
  /** Targets of the batch, on all ranks together. */
  tokens: number;
}

/** What an evaluation gives, whatever the task. */
export interface EvaluationFigures {
  /** Mean cross-entropy, nats per token: evaluations of the validation text are compared by it. */
  loss: number;
}

/** What a step is told. */
export interface StepOptions {
  learningRate: number;
  /** Whether the statistics of mixtures are read: for now and then. */
  statistics: boolean;
}

/** What is trained: a model on its text, whose steps and evaluations the loop asks for. On ranks all do so at once. */
export interface Task<R extends StepFigures, E extends EvaluationFigures, M extends Module = Module> {
  readonly model: M;
  readonly optimizer: Optimizer;
  readonly tokenizer: Tokenizer;
  /** Where the text is read, as JSON. */
  readonly stream: { state(): object; restore(state: never): void };
  /** Checksum of the training ids, so that a run is not resumed on another text. */
  readonly corpus: number;
  /** The options that name the training text, for messages. */
  readonly corpusFlags: string;
  /** What `tokens` of a step are called. */
  readonly unit: string;
  /** Whether the model of the best evaluation is kept. */
  readonly keepsBest: boolean;
  /** The step on the next batch. @throws NonFiniteError; parameters are then as they were before */
  step(options: StepOptions): R;
  /** What else of a step goes into its record. */
  stepMetrics(result: R): Record<string, number>;
  /** What the line of progress says before the loss. */
  position(): string;
  /** An evaluation that rests now and then, and can be given up. */
  evaluation(text: EvaluatedText): Generator<unknown, E>;
  evaluationMetrics(evaluation: E): Record<string, number>;
  /** What goes from step to step beside parameters and optimiser, where there is something: tensors, and other state as JSON, for checkpoints. */
  carried?(): (readonly [string, Tensor])[];
  state?(): Record<string, unknown>;
  restore?(checkpoint: Checkpoint): void;
  dispose?(): void;
}

/** How a run is made, whatever the task. */
export interface RunOptions<R, E> {
  /** Discard checkpoints that are in the way: an earlier run's, or those after the one resumed from. Without it they are an error. */
  overwrite?: boolean;
  progress?: Progress;
  /** Aborted: the step at hand is finished, a checkpoint written, and training returns. */
  signal?: Pick<AbortSignal, "aborted">;
  /** Called after each step with its figures: the demo's curves. */
  onStep?: (step: number, result: R) => void;
  /** Called after each evaluation of the validation text. */
  onEvaluation?: (step: number, evaluation: E) => void;
  /** Keep no files: metrics and checkpoints are not written. */
  ephemeral?: boolean;
  /** Ranks that train together: all call at once with the same configuration and text. The first writes files and shows progress. */
  comm?: Communicator | undefined;
}

/** How a run went. */
export interface RunResult<E, M extends Module = Module> {
  model: M;
  steps: number;
  /** True when every step was taken and every text evaluated, false after an interruption. */
  finished: boolean;
  /** Targets, padding not counted, and seconds of training alone. */
  tokensPerSecond: number;
  seconds: number;
  /** The step at which the loss of the validation text was lowest, where its model is kept, and that loss. */
  best?: { step: number; loss: number };
  /** Of the last evaluation; that of a finished run is of its end, but the test text's with a patience, which is of the best step. */
  valid?: E;
  test?: E;
  peakBytes: number;
}

/** Which texts there are beside that for training. */
type Texts = { readonly [text in EvaluatedText]?: unknown };

/**
 * Trains to the end, or until told to stop.
 * @param makeTask is called once nothing that can be seen before can be wrong with the request
 * @throws ConfigError, FileError, NonFiniteError (the last good checkpoint stays)
 */
export async function runTask<R extends StepFigures, E extends EvaluationFigures, M extends Module>(
  config: TrainConfig,
  texts: Texts,
  options: RunOptions<R, E>,
  checkpoint: Checkpoint | undefined,
  makeTask: () => Task<R, E, M>,
): Promise<RunResult<E, M>> {
  if (config.patience !== undefined && !texts.valid) {
    throw new ConfigError(expectation("patience (--patience)", "a text for evaluation while training", "none", "Name it by --valid."));
  }
  const inTheWay = writes(options) ? checkpointsInTheWay(config, options, checkpoint) : [];
  const run = new Run(config, makeTask(), texts, options);
  if (checkpoint) run.restore(checkpoint);
  if (!writes(options)) return run.go();
  // Only now, when nothing can be wrong with the request any more, is anything touched.
  const unlock = lockFolder(config.output_dir);
  try {
    deleteCheckpoints(config.output_dir, inTheWay);
    const best = bestFolder(config);
    const ofThisRun = checkpoint && isIn(checkpoint, config.output_dir) ? checkpoint.step : -1;
    deleteCheckpoints(
      best,
      checkpointSteps(best).filter((step) => step > ofThisRun),
    );
    run.bringBest();
    writeFileAtomic(join(config.output_dir, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
    return await run.go();
  } finally {
    unlock();
  }
}

/** Whether files are kept, and this rank is the one that writes them. */
const writes = ({ ephemeral, comm }: Pick<RunOptions<never, never>, "ephemeral" | "comm">): boolean => !ephemeral && (comm?.rank ?? 0) === 0;

/**
 * Steps of checkpoints in --output-dir that are none of this run's past: of an earlier run, or after the one resumed from. Left there, the next --resume
 * would go on from them, and they would not fit the metrics.
 * @throws ConfigError where there are some and `overwrite` is not set, or another run is training there
 */
export function checkpointsInTheWay(config: TrainConfig, { overwrite = false }: { overwrite?: boolean }, checkpoint?: Checkpoint): number[] {
  checkUnlocked(config.output_dir);
  const sameRun = checkpoint !== undefined && isIn(checkpoint, config.output_dir);
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

/** Where the parameters of the best step are kept. */
function bestFolder({ output_dir }: TrainConfig): string {
  return join(output_dir, BEST_FOLDER);
}

class Run<R extends StepFigures, E extends EvaluationFigures, M extends Module> {
  readonly #progress: Progress;
  #resumedAt: number | undefined;
  /** Whether from another run's folder, and which that is. */
  #resumedElsewhere: string | undefined;
  /** The step last saved in this run's folder, and the checkpoint last known to be good, wherever it is. */
  #savedAt = -1;
  #lastGood: string | undefined;
  /** Sum of the losses, and tokens, since the last record of metrics. Saved: a checkpoint may fall between two records. */
  #interval = { loss: 0, tokens: 0 };
  /** Where there are several ranks. */
  readonly #comm: Communicator | undefined;
  /** Whether one of them was told to stop. */
  #stopped = false;
  /** Evaluations of this step still to be made. Saved: an interruption may give them up. */
  #due: EvaluatedText[] = [];
  readonly #stopping: EarlyStopping;
  /** The best step of a run that goes on in another folder. */
  #bestElsewhere: Checkpoint | undefined;
  readonly #evaluations: { [text in EvaluatedText]?: E } = {};

  constructor(
    readonly config: TrainConfig,
    readonly task: Task<R, E, M>,
    readonly texts: Texts,
    readonly options: RunOptions<R, E>,
  ) {
    this.#comm = several(options.comm);
    this.#stopping = new EarlyStopping(config.patience);
    this.#progress = options.progress ?? new Progress({ enabled: false });
  }

  /** @throws FileError for a checkpoint that is damaged or lacks something; ConfigError for one of another text */
  restore(checkpoint: Checkpoint): void {
    const { task } = this;
    const { data, corpus, interval, due } = checkpoint.state;
    if (!checkpoint.optimizer || [data, corpus, interval, due].includes(undefined)) {
      throw new FileError(
        expectation(checkpoint.path, "the optimiser's state and the position in the text", "none", "It was saved for use, not for resuming."),
      );
    }
    if (corpus !== task.corpus) {
      const hint = `Its tokens differ: name the first run's ${task.corpusFlags}, or start a new run.`;
      throw new ConfigError(expectation("--resume", `the text that ${checkpoint.path} was trained on`, this.config.train, hint));
    }
    fillTensors(checkpoint, checkpoint.model, task.model.namedState(), this.#comm);
    fillTensors(checkpoint, checkpoint.optimizer, task.optimizer.prepare(), this.#comm);
    task.optimizer.steps = checkpoint.step;
    this.#resumedAt = checkpoint.step;
    this.#lastGood = checkpoint.path;
    if (isIn(checkpoint, this.config.output_dir)) this.#savedAt = checkpoint.step;
    else this.#resumedElsewhere = runFolder(checkpoint);
    task.stream.restore(data as never);
    this.#interval = { ...(interval as { loss: number; tokens: number }) };
    this.#due = (due as EvaluatedText[]).filter((text) => this.texts[text]);
    this.#stopping.restore(checkpoint.state["stopping"]);
    if (task.keepsBest && !this.options.ephemeral) this.#findBest();
    task.restore?.(checkpoint);
  }

  /**
   * Finds the parameters of the best step, which other folders and older checkpoints may lack, and forgets the step where they are gone: at the end it would
   * be too late. All ranks look into the same folder, of which no rank deletes them.
   * @throws FileError where they are damaged
   */
  #findBest(): void {
    const step = this.#stopping.best?.step;
    if (step === undefined) return;
    const folder = join(this.#resumedElsewhere ?? this.config.output_dir, BEST_FOLDER);
    const path = join(folder, `checkpoint-${step}`);
    if (!checkpointSteps(folder).includes(step)) {
      this.#stopping.forgetBest();
      if ((this.#comm?.rank ?? 0) > 0) return;
      this.options.progress?.announce(`The best step so far, ${step}, is forgotten: its parameters are not in ${folder} any more. The next evaluation is the best until one is lower.`);
      return;
    }
    try {
      const best = loadCheckpoint(path);
      if (this.#resumedElsewhere) this.#bestElsewhere = best;
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
      throw new FileError(`${error.message} Or delete ${path}: the best step is then forgotten.`, { cause: error });
    }
  }

  /** Takes the best step along into this run's folder. @throws FileError */
  bringBest(): void {
    if (this.#bestElsewhere) copyCheckpoint(this.#bestElsewhere, bestFolder(this.config));
  }

  /** @throws FileError; NonFiniteError when a tensor holds NaN or an infinity. Checkpoints before stay. */
  #save(): void {
    if (!this.options.ephemeral) this.#write();
    this.#savedAt = this.task.optimizer.steps;
    this.#lastGood = join(this.config.output_dir, `checkpoint-${this.#savedAt}`);
  }

  #write(): void {
    const { config, task } = this;
    const kept = [...task.optimizer.prepare(), ...(task.carried?.() ?? [])];
    if (!writes(this.options)) {
      if (this.#comm) for (const tensors of [task.model.namedState(), kept]) sendParts(tensors, this.#comm);
      return;
    }
    saveCheckpoint(
      config.output_dir,
      task.optimizer.steps,
      {
        ...this.#contents(),
        optimizer: kept.map(([name, tensor]) => stored(name, tensor, this.#comm)),
        state: {
          data: task.stream.state(),
          corpus: task.corpus,
          interval: this.#interval,
          due: this.#due,
          ...task.state?.(),
          ...(task.keepsBest ? { stopping: this.#stopping.state() } : {}),
        },
      },
      { saveTotalLimit: config.save_total_limit },
    );
  }

  /** What a checkpoint has for use. */
  #contents(): CheckpointContents {
    const { file, text } = this.task.tokenizer.save();
    return {
      config: this.config,
      model: [...this.task.model.namedState()].map(([name, tensor]) => stored(name, tensor, this.#comm)),
      files: new Map([[file, text]]),
    };
  }

  /** Keeps the parameters of the best step so far, and those of the one before, lest this one is undone by a kill. */
  #saveBest(): void {
    if (this.options.ephemeral) return;
    if (!writes(this.options)) {
      if (this.#comm) sendParts(this.task.model.namedState(), this.#comm);
      return;
    }
    saveCheckpoint(bestFolder(this.config), this.task.optimizer.steps, this.#contents(), { saveTotalLimit: 2 });
  }

  /** Puts the parameters of the best step into the model, where there is a patience. @returns puts back what was there */
  #useBest(): () => void {
    const { model, optimizer } = this.task;
    const step = this.#stopping.best?.step;
    if (this.config.patience === undefined || this.options.ephemeral || step === undefined || step === optimizer.steps) return () => {};
    // The rank that writes may not be done yet.
    this.#comm?.barrier();
    const now = [...model.namedState().values()].map((tensor) => ({ tensor, values: tensor.dataSync().slice() }));
    const best = openCheckpoint("train", join(bestFolder(this.config), `checkpoint-${step}`));
    fillTensors(best, best.model, model.namedState(), this.#comm);
    return () => {
      for (const { tensor, values } of now) tensor.backend.write(tensor.buffer, values);
    };
  }

  /** Whether the run is to stop: all ranks ask at once, and are told the same. */
  #told(): boolean {
    return (this.#stopped ||= onAnyRank(this.#comm, this.options.signal?.aborted === true));
  }

  async go(): Promise<RunResult<E, M>> {
    const { config, task, options } = this;
    const { optimizer } = task;
    const file = (folder: string): string => join(folder, "metrics.jsonl");
    const elsewhere = this.#resumedElsewhere;
    const resume = this.#resumedAt === undefined ? {} : { resumeStep: this.#resumedAt, redo: this.#due.map((text) => `${TAGS[text]}/loss`), from: file(elsewhere ?? config.output_dir) };
    const metrics = writes(options) ? new MetricsWriter(file(config.output_dir), resume) : undefined;
    // A run that begins in the folder of one that was killed early purges that one's curves.
    const board = writes(options) ? new TensorBoardWriter(join(config.output_dir, "tensorboard"), { resumeStep: elsewhere === undefined ? (this.#resumedAt ?? 0) : 0 }) : undefined;
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
        const result = task.step({ learningRate, statistics: logs });
        const took = (performance.now() - begun) / 1000;
        seconds += took;
        tokens += result.tokens;
        this.#interval.loss += result.loss * result.tokens;
        this.#interval.tokens += result.tokens;
        const { steps } = optimizer;
        options.onStep?.(steps, result);
        this.#progress.update(
          () => `${config.model} step ${steps}/${config.max_steps}${task.position()}  loss ${result.loss.toFixed(3)}  ${Math.round(tokens / seconds).toLocaleString("en")} ${task.unit}/s`,
        );
        if (logs) {
          log({
            "train/loss": this.#interval.loss / this.#interval.tokens,
            "train/learning_rate": learningRate,
            "train/grad_norm": result.gradNorm,
            "train/tokens_per_second": result.tokens / took,
            ...task.stepMetrics(result),
          });
          this.#interval = { loss: 0, tokens: 0 };
        }
        if (this.texts.valid && (steps % config.eval_steps === 0 || last())) this.#due.push("valid");
        if (this.texts.test && last()) this.#due.push("test");
        await turn();
        await this.#evaluateDue(log);
        // After the step's records, so that metrics up to a checkpoint's step are whole.
        if (steps % config.save_steps === 0 || last()) this.#save();
      }
      // A second signal that comes close upon the first is still handled, and ends the process before anything is saved.
      if (this.#stopped) await new Promise((resolve) => setTimeout(resolve, 20));
      if (optimizer.steps !== this.#savedAt) this.#save();
      const finished = last() && this.#due.length === 0;
      const { best } = this.#stopping;
      return {
        model: task.model,
        steps: optimizer.steps,
        finished,
        tokensPerSecond: seconds > 0 ? tokens / seconds : 0,
        seconds,
        ...(task.keepsBest && best ? { best } : {}),
        ...(finished ? this.#atTheEnd() : this.#evaluations),
        peakBytes: defaultBackend().memory().peak,
      };
    } catch (error) {
      if (error instanceof NonFiniteError && !options.ephemeral) error.message += this.#lastGood === undefined ? " No checkpoint had been written yet." : ` The last good checkpoint is ${this.#lastGood}.`;
      throw error;
    } finally {
      task.dispose?.();
      optimizer.dispose();
      metrics?.close();
      board?.close();
    }
  }

  /** @returns whether all are made; false after an abort, the rest still due */
  async #evaluateDue(log: (values: Record<string, number>) => void): Promise<boolean> {
    const { task } = this;
    for (let text = this.#due[0]; text !== undefined; text = this.#due[0]) {
      const evaluation = await this.#evaluate(text);
      if (evaluation === undefined) return false;
      this.#evaluations[text] = evaluation;
      const tag = TAGS[text];
      log(Object.fromEntries(Object.entries(task.evaluationMetrics(evaluation)).map(([name, value]) => [`${tag}/${name}`, value])));
      this.#due = this.#due.slice(1);
      if (text !== "valid") continue;
      this.options.onEvaluation?.(task.optimizer.steps, evaluation);
      if (!task.keepsBest) continue;
      if (this.#stopping.observe(task.optimizer.steps, evaluation.loss)) this.#saveBest();
      // The end, which nobody knew of before: it is that of the test text too.
      if (this.#stopping.stops && this.texts.test && !this.#due.includes("test")) this.#due.push("test");
    }
    return true;
  }

  /** @returns undefined after an abort */
  async #evaluate(text: EvaluatedText): Promise<E | undefined> {
    const putBack = text === "test" ? this.#useBest() : () => {};
    try {
      const steps = this.task.evaluation(text);
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
  #atTheEnd(): { [text in EvaluatedText]?: E } {
    const at = (text: EvaluatedText): E | undefined => {
      if (this.#evaluations[text] || !this.texts[text]) return this.#evaluations[text];
      const putBack = text === "test" ? this.#useBest() : () => {};
      try {
        const steps = this.task.evaluation(text);
        for (;;) {
          const { done, value } = steps.next();
          if (done) return value;
        }
      } finally {
        putBack();
      }
    };
    const [valid, test] = [at("valid"), at("test")];
    return { ...(valid ? { valid } : {}), ...(test ? { test } : {}) };
  }
}

/** Lets signals and timers in. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
