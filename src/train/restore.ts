/** From a checkpoint back to a model: finding it, checking that it fits, filling tensors; and what goes into one. */

import { existsSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Communicator } from "../comm/communicator.js";
import { firstNonFinite } from "../core/checks.js";
import { ConfigError, FileError, NonFiniteError, expectation } from "../core/errors.js";
import { LanguageModel } from "../models/language-model.js";
import { presetLstm } from "../models/presets.js";
import type { Shard, Tensor } from "../tensor/tensor.js";
import { loadTokenizer } from "../text/load.js";
import type { Tokenizer } from "../text/tokenizer.js";
import { checkpointSteps, latestCheckpoint, loadCheckpoint, type Checkpoint, type TensorFiles } from "./checkpoint.js";
import { checkConfig, flagOf, type TrainConfig } from "./config.js";
import { effectiveMoe } from "./moe-config.js";
import type { StoredTensor, TensorData } from "./safetensors.js";
import { makeSchedule, modelConfig } from "./setup.js";
import { checkEntry, narrow } from "./tensors-file.js";

/**
 * The checkpoint at a path: a checkpoint folder itself, or the one of the highest step in a run's folder. A damaged one is an error and not passed over,
 * since training would silently lose steps; the message names the last whole one before it.
 * @param where what the user asked for, at the head of messages: "--resume", "eval"
 * @throws FileError when there is none, or naming the file that is missing, cut short or damaged
 */
export function openCheckpoint(where: string, path: string): Checkpoint {
  if (statSync(path, { throwIfNoEntry: false })?.isFile())
    throw new FileError(expectation(where, `a folder ${path}`, "a file", "Name a run's --output-dir."));
  if (isCheckpointFolder(path)) {
    if (existsSync(path)) return withAlternative(path, () => loadCheckpoint(path));
    const others = checkpointSteps(dirname(path)).map((step) => `checkpoint-${step}`);
    throw new FileError(
      expectation(
        where,
        `a folder ${path}`,
        "none",
        others.length > 0 ? `Those there are: ${others.join(", ")}.` : "Check the path.",
      ),
    );
  }
  const step = checkpointSteps(path).at(-1);
  if (step === undefined) {
    const hint =
      where === "--resume"
        ? "Killed before the first one was written, a run begins anew without --resume."
        : "Name a run's --output-dir, or a folder checkpoint-<step> in it.";
    throw new FileError(expectation(where, `a checkpoint in ${path}`, "none", hint));
  }
  const folder = join(path, `checkpoint-${step}`);
  return withAlternative(folder, () => loadCheckpoint(folder));
}

/** Whether a path is that of a checkpoint and not of a run. */
function isCheckpointFolder(path: string): boolean {
  return /(^|[/\\])checkpoint-\d+[/\\]*$/.test(path);
}

/** The run's folder of a checkpoint. */
export function runFolder({ path }: Checkpoint): string {
  return dirname(path);
}

/** Adds to a complaint about a damaged checkpoint which other one can be used. */
function withAlternative<T>(path: string, use: () => T): T {
  try {
    return use();
  } catch (error) {
    if (!(error instanceof FileError)) throw error;
    const step = Number(/checkpoint-(\d+)[/\\]*$/.exec(path)?.[1]);
    const other = latestCheckpoint(dirname(path), step);
    if (other === null) throw error;
    throw new FileError(
      `${error.message} The last whole one before it is ${other}; to train on from there: --resume ${other} --overwrite.`,
      { cause: error },
    );
  }
}

/** The tokenizer a checkpoint's model was trained with. @throws FileError */
export function tokenizerOf(checkpoint: Checkpoint): Tokenizer {
  for (const name of ["tokenizer.json", "vocab.txt"]) {
    const text = checkpoint.files.get(name);
    const eos = checkpoint.config["eos"];
    if (text !== undefined)
      return loadTokenizer(join(checkpoint.path, name), text, typeof eos === "string" && name === "vocab.txt" ? { eos } : {});
  }
  throw new FileError(expectation(checkpoint.path, "tokenizer.json or vocab.txt", "neither"));
}

/** A trained model from its checkpoint, for evaluation and generation. @throws FileError, ConfigError */
export function loadModel(checkpoint: Checkpoint): { model: LanguageModel; config: TrainConfig; tokenizer: Tokenizer } {
  const config = checkConfig(checkpoint.config, join(checkpoint.path, "config.json"));
  if (config.task !== "language-model") throw new ConfigError(expectation(checkpoint.path, "a language model", config.task, "For it there are train, eval and translate."));
  const tokenizer = tokenizerOf(checkpoint);
  const model = new LanguageModel(modelConfig(config, tokenizer.vocabSize));
  fillTensors(checkpoint, checkpoint.model, model.namedState());
  return { model, config, tokenizer };
}

/** Fields that shape the model, its tokens or the course through the text: they must not change on resuming. */
const FIXED = [
  "text_mode", "vocab", "tokenizer", "vocab_size", "eos", "model", "branching", "hidden_size", "expert_hidden_size", "expert_layers", "lstm_size",
  "gate", "secondary_gate", "top_k", "secondary_top_k", "expert_activation", "expert_bias", "shared_experts", "sigmoid", "residual", "init_scale",
  "batch_size", "time_steps", "optimizer", "beta1", "factored_experts", "seed",
  "task", "attention", "attention_size", "context_to", "embeddings", "pairs", "bpe_dropout", "batch_tokens", "sampling_temperature", "max_source_tokens", "max_target_tokens",
] as const; // prettier-ignore

/** With the values of options that were left to the model and the gate. */
function effective(config: TrainConfig): TrainConfig {
  return { ...config, lstm_size: config.lstm_size ?? presetLstm(config.model, config.hidden_size).lstmSize, ...effectiveMoe(config) };
}

/** @throws ConfigError naming the field that differs */
export function checkSameModel(config: TrainConfig, checkpoint: Checkpoint): void {
  const [ours, theirs] = [effective(config), effective(checkConfig(checkpoint.config, join(checkpoint.path, "config.json")))];
  for (const key of FIXED) {
    const [now, then] = [ours[key], theirs[key]];
    if (now !== then) {
      throw new ConfigError(
        expectation(
          "--resume",
          `${key} (${flagOf(key)}) ${JSON.stringify(then) ?? "not set"} as in ${checkpoint.path}`,
          now ?? "nothing",
          "Leave it out, or start a new run for another model.",
        ),
      );
    }
  }
}

/** Fields that a learning rate is made of. */
const COURSE = ["learning_rate", "schedule", "max_steps", "warmup_steps", "decay_hold_steps", "decay_factor", "decay_every_steps"] as const;

/**
 * What to say where a resumed run goes on at another learning rate than it would have had: as with more `max_steps` and a rate that was to be 0 by then.
 * Or that no step is left. Undefined where the course is the same.
 */
export function changedCourse(config: TrainConfig, checkpoint: Checkpoint): string | undefined {
  if (checkpoint.step >= config.max_steps) return `Nothing is left to train: the checkpoint is of step ${checkpoint.step}, and --max-steps is ${config.max_steps}.`;
  const theirs = checkConfig(checkpoint.config, join(checkpoint.path, "config.json"));
  const step = checkpoint.step + 1;
  const [now, then] = [config, theirs].map((options) => makeSchedule(options)(step)) as [number, number];
  if (now === then) return undefined;
  const short = (rate: number): string => String(Number(rate.toPrecision(3)));
  const keys = COURSE.filter((key) => config[key] !== theirs[key]).map((key) => `${flagOf(key)} ${config[key]} in place of ${theirs[key]}`);
  return `The learning rate goes on at ${short(now)}, which would have been ${short(then)} at step ${step}: ${keys.join(", ")}.`;
}

/**
 * Fills parameters or optimiser state from a checkpoint.
 * @param comm all ranks at once: each reads its own part of what is spread over them
 * @throws FileError naming what is missing, damaged or of another shape
 */
export function fillTensors(checkpoint: Checkpoint, files: TensorFiles, tensors: ReadonlyMap<string, Tensor>, comm?: Communicator): void {
  withAlternative(checkpoint.path, () => {
    for (const [name, tensor] of tensors) {
      checkEntry(checkpoint.path, files, name, wholeShape(tensor));
      tensor.backend.write(tensor.buffer, comm && tensor.shard ? readPart(files, name, tensor, tensor.shard, comm) : files.read(name));
    }
  });
}

/** The shape that a tensor has on all ranks together. */
function wholeShape({ shape, shard }: Tensor): readonly number[] {
  return shard ? [shard.total, ...shape.slice(1)] : shape;
}

function readPart(files: TensorFiles, name: string, { shape }: Tensor, { first }: Shard, comm: Communicator): TensorData {
  const { data, crc32 } = files.readRows(name, first, shape[0]!);
  const sums = new Float64Array(2 * comm.size);
  comm.allGather(Float64Array.of(crc32, data.byteLength), sums);
  files.checkParts(name, Array.from({ length: comm.size }, (_, r) => ({ crc32: sums[2 * r]!, bytes: sums[2 * r + 1]! })));
  return data;
}

/**
 * Sends the first rank, which saves a checkpoint, this one's parts of what is spread over ranks, one after the other as it writes them.
 * @param tensors as that rank has them, by name
 */
export function sendParts(tensors: Iterable<readonly [string, Tensor]>, comm: Communicator): void {
  const byName = [...tensors].filter(([, { shard }]) => shard).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  for (const [, tensor] of byName) wholeData(tensor, comm);
}

/** The elements of a tensor on all ranks together, on the first of them; nothing on the others. */
function wholeData(tensor: Tensor, comm: Communicator | undefined): ReturnType<Tensor["dataSync"]> {
  const own = tensor.dataSync();
  if (!comm || !tensor.shard) return own;
  const counts = comm.rank === 0 ? new Int32Array(comm.size) : undefined;
  comm.gather(Int32Array.of(own.length), counts, 0);
  const whole = counts && new (own.constructor as new (length: number) => typeof own)(counts.reduce((sum, n) => sum + n, 0));
  comm.gather(own, whole, 0, counts);
  return whole ?? own;
}

/**
 * A tensor for a checkpoint, read from the backend when its turn comes. Values that are not finite are refused: a checkpoint that cannot be trained on
 * must not take the place of one that can.
 * @param comm of the first rank: the others give their parts by `sendParts`
 * @throws NonFiniteError from `data`, naming the tensor
 */
export function stored(name: string, tensor: Tensor, comm?: Communicator): StoredTensor {
  const shape = wholeShape(tensor);
  if (tensor.dtype === "int32") return { name, shape, dtype: "I32", data: () => wholeData(tensor, comm) as Int32Array };
  const data = (): TensorData => {
    const values = narrow(wholeData(tensor, comm));
    const at = firstNonFinite(values);
    if (at >= 0)
      throw new NonFiniteError(
        expectation(
          "checkpoint",
          `finite values in ${name}`,
          values[at],
          "Lower the learning rate (--learning-rate) or clip the gradients harder (--max-grad-norm).",
        ),
      );
    return values;
  };
  return { name, shape, dtype: "F32", data };
}
