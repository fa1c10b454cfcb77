/** The configuration of a training run: its fields, their defaults and where these come from, and the reading of files, environment and flags. */

import { readFileSync } from "node:fs";
import { z } from "zod";
import { ConfigError, FileError } from "../core/errors.js";

const positive = z.number().int().min(1);

/** snake_case, as in config.json. Every default carries its reason. */
export const trainConfigSchema = z.strictObject({
  /** Text files, plain or .gz. */
  train: z.string().min(1),
  valid: z.string().min(1).optional(),
  test: z.string().min(1).optional(),
  /** One sentence a line, shuffled and independent; or one running text. */
  text_mode: z.enum(["sentences", "continuous"]).default("sentences"),
  /** A closed vocabulary, one word a line; otherwise words are counted, or subwords trained. */
  vocab: z.string().min(1).optional(),
  tokenizer: z.enum(["bpe", "words"]).default("bpe"),
  vocab_size: z.number().int().min(2).default(8192),
  /** The end-of-sentence symbol of a word vocabulary. */
  eos: z.string().min(1).default("</s>"),

  /** The paper's names (Table 7). */
  model: z.string().default("MoE-32"),
  /** The paper has 512; 128 trains in minutes on two cores. */
  hidden_size: positive.default(128),
  expert_hidden_size: positive.optional(),
  lstm_size: positive.optional(),
  top_k: positive.default(4),
  importance_weight: z.number().min(0).default(0.1),
  load_weight: z.number().min(0).default(0.1),
  dropout: z.number().min(0).max(0.99).default(0.1),
  sigmoid: z.boolean().default(true),
  residual: z.boolean().default(true),
  init_scale: z.number().positive().optional(),

  batch_size: positive.default(32),
  time_steps: positive.default(32),
  max_steps: positive.default(2000),
  /** Adam: Kingma & Ba 2015. SGD for Zaremba et al. 2014. */
  optimizer: z.enum(["adam", "sgd"]).default("adam"),
  beta1: z.number().min(0).max(0.999999).default(0.9),
  beta2: z.number().min(0).max(0.99999999).default(0.999),
  /** Factored second moments for expert matrices (App. D). */
  factored_experts: z.boolean().default(false),
  learning_rate: z.number().positive().default(3e-3),
  schedule: z.enum(["inverse-sqrt", "constant", "step"]).default("inverse-sqrt"),
  warmup_steps: positive.default(200),
  decay_hold_steps: z.number().int().min(0).default(0),
  decay_every_steps: positive.default(1000),
  decay_factor: z.number().min(0).max(1).default(0.5),
  max_grad_norm: z.number().positive().optional(),
  /** Classes of the sampled softmax in training; 0: the exact softmax. */
  sampled_softmax: z.number().int().min(0).default(0),

  seed: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).default(0),
  output_dir: z.string().min(1).default("runs/train"),
  eval_steps: positive.default(500),
  save_steps: positive.default(500),
  save_total_limit: positive.default(2),
  logging_steps: positive.default(10),
});

export type TrainConfig = z.infer<typeof trainConfigSchema>;

/** snake_case → kebab-case flag, and back. */
export const flagOf = (key: string): string => `--${key.replaceAll("_", "-")}`;

/**
 * Merges flags over environment (SPARSEGATE_TRAIN_<KEY>) over file, fills in the defaults and checks everything.
 * @throws ConfigError listing every value that cannot be used, by its name
 */
export function resolveConfig({ file, env, flags }: { file?: string | undefined; env: NodeJS.ProcessEnv; flags: Record<string, unknown> }): TrainConfig {
  const fromEnv: Record<string, unknown> = {};
  for (const key of Object.keys(trainConfigSchema.shape)) {
    const value = env[`SPARSEGATE_TRAIN_${key.toUpperCase()}`];
    if (value !== undefined) fromEnv[key] = parseScalar(value);
  }
  return checkConfig({ ...(file === undefined ? {} : readConfigFile(file)), ...fromEnv, ...flags }, file ?? "the flags");
}

/** @throws ConfigError */
export function checkConfig(values: unknown, where: string): TrainConfig {
  const parsed = trainConfigSchema.safeParse(values);
  if (!parsed.success) {
    const lines = parsed.error.issues.map((issue) => {
      const key = String(issue.path[0] ?? "");
      if (issue.code === "unrecognized_keys") return `unknown ${issue.keys.map((k) => JSON.stringify(k)).join(", ")}`;
      const given = (values as Record<string, unknown>)[key];
      return given === undefined ? `${key} (${flagOf(key)}) is needed` : `${key} (${flagOf(key)}): ${issue.message}, got ${JSON.stringify(given)}`;
    });
    throw new ConfigError(`Configuration from ${where}: ${lines.join("; ")}.`);
  }
  const config = parsed.data;
  if (config.warmup_steps > config.max_steps * 10) throw new ConfigError(`Configuration from ${where}: warmup_steps ${config.warmup_steps} is far beyond max_steps ${config.max_steps}.`);
  return config;
}

function readConfigFile(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new FileError(`--config: cannot read ${path} (${(error as NodeJS.ErrnoException).code}).`);
  }
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  } catch (error) {
    throw new FileError(`--config: ${path} is not JSON: ${(error as Error).message}.`);
  }
  throw new FileError(`--config: expected ${path} to hold a JSON object.`);
}

/** Numbers and booleans out of flag and environment text; everything else stays text. */
export function parseScalar(value: string): unknown {
  if (value === "true") return true;
  if (value === "false") return false;
  return value.trim() !== "" && Number.isFinite(Number(value)) ? Number(value) : value;
}
