/** `sparsegate train`: as one rank, as ranks that mpirun started, or as so many threads of this process (`--ranks`). */

import { communicator, runRanks, type Communicator } from "../comm/index.js";
import { ConfigError, expectation } from "../core/errors.js";
import { expertsPerRow, totalExperts } from "../models/cost.js";
import { defaultBackend } from "../tensor/default-backend.js";
import type { Checkpoint } from "../train/checkpoint.js";
import { mergeSources, resolveConfig, trainConfigSchema, type Sources, type TrainConfig } from "../train/config.js";
import { planRun } from "../train/plan.js";
import { Progress } from "../train/progress.js";
import { changedCourse, checkSameModel, openCheckpoint, runFolder, tokenizerOf } from "../train/restore.js";
import { caveats, effectiveMoe } from "../train/moe-config.js";
import { batchStream, corporaOf, makeDatasets, modelConfig } from "../train/setup.js";
import { checkpointsInTheWay } from "../train/run.js";
import { trainOn, type TrainResult } from "../train/trainer.js";
import { isTranslation } from "../train/translation/config.js";
import { translationPreset } from "../train/translation/presets.js";
import { openBackend } from "./backend.js";
import { bytes, compact, table } from "./format.js";
import { makeOutputFolder } from "./output.js";
import { shareStop, stopSignal, type Stop } from "./stop.js";
import { dryRunTranslation, trainTranslationRank } from "./translation.js";

type Options = Record<string, unknown>;

/** What a rank's thread is given. */
export interface RankData {
  options: Options;
  /** Of `shareStop`. */
  stop: SharedArrayBuffer;
}

export async function trainCommand(options: Options): Promise<void> {
  // Whatever can be refused is, before ranks are started and text is read.
  const run = prepare(options);
  if (options["dryRun"] === true) {
    if (isTranslation(run.config)) return dryRunTranslation(run.config, run.checkpoint, new Progress({ enabled: run.progress }), run.json);
    return dryRun(run.config, run.checkpoint, run.json);
  }
  const ranks = options["ranks"] as number | undefined;
  if (ranks !== undefined && ranks > 1) return trainInThreads(ranks, options, run);
  const comm = await communicator();
  const first = comm.rank === 0;
  if (first) claimOutput(run);
  const progress = new Progress({ enabled: run.progress && first });
  let stop: Stop | undefined;
  // Not before the text is read: until then a signal ends the process at once.
  const listen = (): AbortSignal => (stop = stopSignal(() => first && progress.announce(STOPPING))).signal;
  const { finished } = await trainRank(run, comm, listen, progress);
  // mpirun takes any other code than 0 for a failure.
  if (!finished && comm.kind !== "mpi") process.exitCode = stop!.exitCode();
  stop!.end();
}

const STOPPING = "Stopping after this step; then a checkpoint is written. Once more to stop at once, without one.";

/** Runs the command in threads, each with a part of the cores. */
async function trainInThreads(ranks: number, options: Options, run: Prepared): Promise<void> {
  const { kind } = await communicator();
  if (kind !== "alone") throw new ConfigError(expectation("train", "no --ranks under mpirun, which starts the ranks", ranks, "Give their number to mpirun: -n."));
  claimOutput(run);
  const stop = stopSignal(() => process.stderr.write(`${STOPPING}\n`));
  // Threads get what can be cloned; the checkpoint is opened by each.
  const data: RankData = { options, stop: shareStop(stop) };
  const finished = await runRanks<boolean>(ranks, new URL("./train-rank.js", import.meta.url), data);
  if (!finished[0]) process.exitCode = stop.exitCode();
  stop.end();
}

/** A run as it was asked for. */
interface Prepared {
  config: TrainConfig;
  checkpoint: Checkpoint | undefined;
  overwrite: boolean;
  json: boolean;
  /** Whether progress is shown. */
  progress: boolean;
}

/** @throws ConfigError, FileError for what cannot be */
export function prepare(options: Options): Prepared {
  const sources: Sources = { file: options["config"] as string | undefined, env: process.env, flags: flagsOf(options) };
  const checkpoint = checkpointOf(options["resume"], sources);
  const preset = options["preset"] as string | undefined;
  const config = resolveConfig({
    ...sources,
    base: checkpoint
      ? { values: { ...checkpoint.config, output_dir: runFolder(checkpoint) }, where: `${checkpoint.path}/config.json` }
      : preset === undefined
        ? undefined
        : { values: translationPreset(preset), where: `--preset ${preset}` },
  });
  if (checkpoint) checkSameModel(config, checkpoint);
  return { config, checkpoint, overwrite: options["overwrite"] === true, json: options["json"] === true, progress: options["progress"] !== false };
}

/** @throws ConfigError, FileError where the output folder cannot be used */
function claimOutput({ config, checkpoint, overwrite }: Prepared): void {
  makeOutputFolder(config.output_dir);
  checkpointsInTheWay(config, { overwrite }, checkpoint);
}

/** A run as one rank, which may be the only one; the first says how it went. @returns whether it was finished */
export async function trainRank(
  { config, checkpoint, overwrite, json }: Prepared,
  comm: Communicator,
  listen: () => Pick<AbortSignal, "aborted">,
  progress: Progress,
): Promise<{ finished: boolean }> {
  const first = comm.rank === 0;
  const course = first && checkpoint ? changedCourse(config, checkpoint) : undefined;
  if (course !== undefined) process.stderr.write(`${course}\n`);
  if (isTranslation(config)) return trainTranslationRank(config, { checkpoint, overwrite, json }, comm, listen, progress);
  const datasets = makeDatasets(config, corporaOf(config), checkpoint && tokenizerOf(checkpoint));
  openBackend({ quiet: !first });
  if (first) for (const note of caveats(config)) process.stderr.write(`${note}\n`);
  const result = await trainOn(config, datasets, { progress, signal: listen(), overwrite, comm }, checkpoint).catch((error: unknown) => {
    progress.finish(); // an error message begins on a line of its own
    throw error;
  });
  if (first) {
    progress.finish(`${config.model}: ${result.steps} steps, ${Math.round(result.tokensPerSecond)} tokens/s`);
    report(config, result, json);
    if (!result.finished) {
      process.stderr.write(
        `Interrupted at step ${result.steps} of ${config.max_steps}. Go on with: sparsegate train --resume ${config.output_dir}\n`,
      );
    }
  }
  defaultBackend().dispose();
  return result;
}

/** What the user set: flags by key of the configuration. */
export function flagsOf(options: Options): Record<string, unknown> {
  const flags: Record<string, unknown> = {};
  for (const key of Object.keys(trainConfigSchema.shape)) {
    const value = options[key.replaceAll(/_(.)/g, (_, c: string) => c.toUpperCase())];
    // commander gives --no-x flags the value true when absent.
    if (!(value === true && (key === "sigmoid" || key === "residual"))) flags[key] = value;
  }
  return flags;
}

/** --resume alone takes the run in --output-dir; with a folder, that run or checkpoint, and its configuration for what is not given again. */
function checkpointOf(resume: unknown, sources: Sources): Checkpoint | undefined {
  if (resume === undefined) return undefined;
  if (typeof resume === "string") return openCheckpoint("--resume", resume);
  const given = mergeSources(sources).values["output_dir"];
  return openCheckpoint("--resume", typeof given === "string" ? given : trainConfigSchema.shape.output_dir.parse(undefined));
}

function report(config: TrainConfig, result: TrainResult, json: boolean): void {
  const summary = {
    model: config.model,
    steps: result.steps,
    finished: result.finished,
    tokens_per_second: Math.round(result.tokensPerSecond),
    peak_bytes: result.peakBytes,
    valid_perplexity: result.valid?.perplexity ?? null,
    test_perplexity: result.test?.perplexity ?? null,
    ...(result.best === undefined ? {} : { best_step: result.best.step }),
    output_dir: config.output_dir,
  };
  if (json) process.stdout.write(`${JSON.stringify(summary)}\n`);
  else for (const [key, value] of Object.entries(summary)) if (value !== null) process.stdout.write(`${key}: ${value}\n`);
}

function dryRun(config: TrainConfig, checkpoint: Checkpoint | undefined, json: boolean): void {
  const { tokenizer, train } = makeDatasets(config, corporaOf(config), checkpoint && tokenizerOf(checkpoint));
  const plan = planRun(config, tokenizer.vocabSize);
  const model = modelConfig(config, tokenizer.vocabSize);
  // Complains where the text is too short for the batches.
  void batchStream(config, train);
  const values = {
    model: config.model,
    vocab_size: tokenizer.vocabSize,
    parameters: plan.parameters,
    moe_parameters: plan.moeParameters,
    ops_per_timestep: plan.opsPerTimestep,
    memory_bytes: plan.bytes,
    ...(model.middle.kind === "moe"
      ? {
          gate: config.gate,
          num_experts: totalExperts(model.middle),
          ...effectiveMoe(config),
          experts_per_token: expertsPerRow(model.middle),
          bytes_per_expert_parameter: Math.round(1000 * plan.bytesPerExpertParameter) / 1000,
        }
      : {}),
  };
  if (json) process.stdout.write(`${JSON.stringify(values)}\n`);
  else {
    const row = [
      config.model,
      String(tokenizer.vocabSize),
      compact(plan.parameters),
      compact(plan.moeParameters),
      compact(plan.opsPerTimestep),
      bytes(plan.bytes),
      plan.bytesPerExpertParameter > 0 ? plan.bytesPerExpertParameter.toFixed(2) : "-",
    ];
    const head = ["model", "vocabulary", "parameters", "in experts", "ops/timestep", "memory", "bytes/expert parameter"];
    process.stdout.write(`${table(head, [row])}\n`);
  }
}
