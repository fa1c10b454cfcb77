/** The configuration of a training run: its fields, their defaults and where these come from, and the reading of files, environment and flags. */

import { readFileSync } from "node:fs";
import { z } from "zod";
import { ConfigError, FileError, expectation } from "../core/errors.js";
import { didYouMean, nearest } from "../core/suggest.js";
import { presetWidth } from "../models/presets.js";
import { fileError } from "./atomic.js";
import { moeFields, uselessOptions } from "./moe-config.js";
import { misplacedOptions, translationFields, withTranslationDefaults } from "./translation/config.js";

/** Widths and lanes: far above what fits into memory, far below where array lengths overflow. */
const size = z.number().int().min(1).max(65_536);
/** Counts of steps: the optimiser keeps them in 32-bit integers. */
const steps = z
  .number()
  .int()
  .min(1)
  .max(2 ** 31 - 1);
/** Rows of one batch, so that its arrays stay within 16 MiB each. */
const MAX_ROWS = 2 ** 22;

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
  vocab_size: z
    .number()
    .int()
    .min(3)
    .max(2 ** 24 - 1)
    .default(8192),
  /** The end-of-sentence symbol of a word vocabulary. */
  eos: z.string().min(1).default("</s>"),
  ...translationFields,

  /** The paper's names (Table 7). Default MoE-32, or that of num_experts. */
  model: z.string().min(1).optional(),
  /** The paper has 512; 128 trains in minutes on two cores. */
  hidden_size: size.default(128),
  /** Short for a hidden_size: this share of the width that the paper has the model at, 512 or 1024. */
  scale: z.number().positive().max(64).optional(),
  expert_hidden_size: size.optional(),
  lstm_size: size.optional(),
  ...moeFields,
  dropout: z.number().min(0).max(0.99).default(0.1),
  sigmoid: z.boolean().default(true),
  residual: z.boolean().default(true),
  init_scale: z.number().positive().optional(),

  batch_size: size.default(32),
  time_steps: size.default(32),
  max_steps: steps.default(2000),
  /** Adam: Kingma & Ba 2015. SGD for Zaremba et al. 2014. */
  optimizer: z.enum(["adam", "sgd"]).default("adam"),
  beta1: z.number().min(0).max(0.999999).default(0.9),
  beta2: z.number().min(0).max(0.99999999).default(0.999),
  /** Of all parameters, apart from the gradient (Loshchilov & Hutter 2019): a step at rate r also takes r · weight_decay of each away. */
  weight_decay: z.number().min(0).max(1).default(0),
  /** Factored second moments for expert matrices (App. D). */
  factored_experts: z.boolean().default(false),
  learning_rate: z.number().positive().default(3e-3),
  schedule: z.enum(["inverse-sqrt", "linear", "constant", "step"]).default("inverse-sqrt"),
  /** 200, and in runs of fewer than 2000 steps a tenth of them, so that a short trial leaves the warm-up. */
  warmup_steps: steps.optional(),
  decay_hold_steps: z
    .number()
    .int()
    .min(0)
    .max(2 ** 31 - 1)
    .default(0),
  decay_every_steps: steps.default(1000),
  decay_factor: z.number().min(0).max(1).default(0.5),
  max_grad_norm: z.number().positive().optional(),
  /** Classes of the sampled softmax in training; 0: the exact softmax. */
  sampled_softmax: z
    .number()
    .int()
    .min(0)
    .max(2 ** 24 - 1)
    .default(0),

  seed: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).default(0),
  output_dir: z.string().min(1).default("runs/train"),
  eval_steps: steps.default(500),
  /** Evaluations without a lower perplexity after which training ends. Default: none, as the paper trains for so many epochs. */
  patience: steps.optional(),
  save_steps: steps.default(500),
  save_total_limit: steps.default(2),
  logging_steps: steps.default(10),
});

export type TrainConfig = Omit<z.infer<typeof trainConfigSchema>, "num_experts" | "scale"> & { model: string; warmup_steps: number };

/** What the schema says of a field, for messages and for reading text. */
interface Field {
  type: "string" | "integer" | "number" | "boolean";
  enum?: readonly string[];
  minimum?: number;
  exclusiveMinimum?: number;
  maximum?: number;
}

const FIELDS = new Map(Object.entries(z.toJSONSchema(trainConfigSchema, { io: "input" }).properties ?? {}) as [string, Field][]);

/** What the fields are where nothing is set. */
const DEFAULTS: Readonly<Record<string, unknown>> = trainConfigSchema.parse({ train: "-" });

/** snake_case → kebab-case flag. */
export const flagOf = (key: string): string => `--${key.replaceAll("_", "-")}`;

const ENV_PREFIX = "SPARSEGATE_TRAIN_";
const envOf = (key: string): string => ENV_PREFIX + key.toUpperCase();

/** Where values come from. Text of flags and environment is read as the type its field has. */
export interface Sources {
  /** A JSON file. */
  file?: string | undefined;
  env?: NodeJS.ProcessEnv;
  /** By key; undefined where a flag was not given. */
  flags?: Record<string, unknown>;
  /** What counts below all of these, in place of the defaults: the configuration of the run that is resumed. */
  base?: { values: Record<string, unknown>; where: string } | undefined;
}

/** Values that were set, and by key the place that each came from, as messages name it. */
export interface Settings {
  values: Record<string, unknown>;
  origins: Map<string, string>;
}

/**
 * Flags over environment (SPARSEGATE_TRAIN_<KEY>) over file over `base`, not checked yet.
 * @throws ConfigError for a SPARSEGATE_TRAIN_ variable of no option; FileError for a file that is no JSON object
 */
export function mergeSources({ file, env = {}, flags = {}, base }: Sources): Settings {
  // Without a prototype, so that a key __proto__ is a key, and an unknown one.
  const settings: Settings = { values: Object.create(null) as Record<string, unknown>, origins: new Map() };
  const set = (key: string, value: unknown, origin: string): void => {
    if (value === undefined) return;
    settings.values[key] = typeof value === "string" && origin !== file && origin !== base?.where ? fromText(key, value) : value;
    settings.origins.set(key, origin);
  };
  for (const [key, value] of Object.entries(base?.values ?? {})) set(key, value, base!.where);
  if (file !== undefined) for (const [key, value] of Object.entries(readConfigFile(file))) set(key, value, file);
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith(ENV_PREFIX)) continue;
    const key = name.slice(ENV_PREFIX.length).toLowerCase();
    if (!FIELDS.has(key)) {
      const near = nearest(key, FIELDS.keys());
      throw new ConfigError(
        expectation(
          "environment",
          `${ENV_PREFIX}<OPTION of train>`,
          name,
          near === undefined ? "" : `Did you mean ${envOf(near)}?`,
        ),
      );
    }
    set(key, value, name);
  }
  for (const [key, value] of Object.entries(flags)) set(key, value, flagOf(key));
  return settings;
}

/**
 * Merges, fills in the defaults and checks everything.
 * @throws ConfigError with a line for every value that cannot be used, naming where it came from; FileError as from `mergeSources`
 */
export function resolveConfig(sources: Sources): TrainConfig {
  return resolveSettings(mergeSources(sources));
}

/** As `resolveConfig`, of settings that are merged already. @param changes count above all of them; @param where these come from */
export function resolveSettings({ values, origins }: Settings, changes: Readonly<Record<string, unknown>> = {}, where = ""): TrainConfig {
  return check({ ...values, ...changes }, (key) => (key in changes ? where : (origins.get(key) ?? flagOf(key))));
}

/** Settings KEY=VALUE in the type that their field has; keys in kebab-case are known too. @throws ConfigError for one that is no setting */
export function parseSettings(where: string, texts: readonly string[]): Record<string, unknown> {
  const settings: Record<string, unknown> = {};
  for (const text of texts) {
    const [, name, value] = /^([^=]+)=(.*)$/s.exec(text) ?? [];
    if (name === undefined) throw new ConfigError(expectation(where, "KEY=VALUE", text, "Like dropout=0.2."));
    const key = name.replaceAll("-", "_");
    if (!FIELDS.has(key)) throw new ConfigError(expectation(where, "the name of an option of train", name, didYouMean(key, FIELDS.keys())));
    settings[key] = fromText(key, value!);
  }
  return settings;
}

/** Checks values that all come from one place. @throws ConfigError as `resolveConfig` */
export function checkConfig(values: Record<string, unknown>, where: string): TrainConfig {
  return check(values, () => where);
}

function check(values: Record<string, unknown>, originOf: (key: string) => string): TrainConfig {
  const parsed = trainConfigSchema.safeParse(values);
  if (!parsed.success)
    throw new ConfigError([...new Set(parsed.error.issues.flatMap((issue) => explain(issue, values, originOf)))].join("\n"));
  const { num_experts: _, scale, ...config } = { ...parsed.data, model: modelName(parsed.data, originOf) };
  if (scale !== undefined) config.hidden_size = scaledWidth(config.model, scale, values["hidden_size"] === undefined ? undefined : config.hidden_size, originOf);
  const rows = config.batch_size * config.time_steps;
  if (rows > MAX_ROWS) {
    throw new ConfigError(
      expectation(
        "batch_size × time_steps (--batch-size, --time-steps)",
        `at most ${MAX_ROWS} tokens in a batch`,
        rows,
        "Lower one of them.",
      ),
    );
  }
  if (config.vocab === undefined && config.tokenizer === "bpe" && config.vocab_size < 257) {
    const hint = "Take more, or --tokenizer words.";
    throw new ConfigError(
      message(
        "vocab_size",
        originOf("vocab_size"),
        "at least 257 (the 256 bytes and </s>) for --tokenizer bpe",
        config.vocab_size,
        hint,
      ),
    );
  }
  const warmup_steps = config.warmup_steps ?? Math.max(1, Math.min(200, Math.floor(config.max_steps / 10)));
  const complete = withTranslationDefaults({ ...config, warmup_steps });
  const wasSet = (key: string): boolean => values[key] !== undefined;
  const decays = complete.optimizer === "adam" || complete.weight_decay === 0;
  const ofAdam = decays ? [] : [{ key: "weight_decay", expected: "0 with --optimizer sgd", hint: "It is Adam that has it." }];
  const useless = [...misplacedOptions(complete, wasSet, DEFAULTS), ...uselessOptions(complete, wasSet), ...ofAdam];
  if (useless.length > 0) throw new ConfigError(useless.map(({ key, expected, hint }) => message(key, originOf(key), expected, values[key], hint)).join("\n"));
  // In the order of the schema, so that config.json does not depend on which values were given.
  return Object.fromEntries(
    [...FIELDS.keys()].map((key) => [key, (complete as Record<string, unknown>)[key]]).filter(([, value]) => value !== undefined),
  ) as TrainConfig;
}

/** The model that was named, or that of so many experts. */
function modelName({ model, num_experts, branching }: z.infer<typeof trainConfigSchema>, originOf: (key: string) => string): string {
  if (num_experts === undefined) return model ?? "MoE-32";
  const named = `MoE-${num_experts}${branching === undefined ? "" : "-h"}`;
  const agrees = model === undefined || model.toLowerCase().replace(/-h$/, "") === `moe-${num_experts}`;
  if (!agrees) throw new ConfigError(message("num_experts", originOf("num_experts"), `left out, or that of --model ${model}`, num_experts, "The name of a model says its number of experts."));
  return model ?? named;
}

/** The width of a model at a scale. @throws ConfigError where it is no whole number, or one is given beside it */
function scaledWidth(model: string, scale: number, given: number | undefined, originOf: (key: string) => string): number {
  if (given !== undefined) throw new ConfigError(message("scale", originOf("scale"), `left out beside a hidden_size of ${given}`, scale, "It is short for one."));
  const width = presetWidth(model) * scale;
  if (Number.isInteger(width)) return width;
  throw new ConfigError(message("scale", originOf("scale"), `a share of the ${presetWidth(model)} units of ${model} that is a whole number of them`, scale));
}

function explain(issue: z.core.$ZodIssue, values: Record<string, unknown>, originOf: (key: string) => string): string[] {
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) =>
      expectation(originOf(key), "the name of an option of train", key, didYouMean(key, FIELDS.keys())),
    );
  }
  const key = String(issue.path[0]);
  if (values[key] === undefined) return [`train: expected ${key} (${flagOf(key)}), got nothing. Name a text file, plain or .gz.`];
  const field = FIELDS.get(key)!;
  const hint = field.enum && typeof values[key] === "string" ? didYouMean(values[key], field.enum) : "";
  return [message(key, originOf(key), describe(field), values[key], hint)];
}

/** `--hidden-size: expected …` where a flag or variable names the key already, else `c.json: expected hidden_size to be …`. */
function message(key: string, origin: string, expected: string, actual: unknown, hint = ""): string {
  const named = origin === flagOf(key) || origin === envOf(key);
  return expectation(origin, named ? expected : `${key} (${flagOf(key)}) to be ${expected}`, actual, hint);
}

/** "an integer from 1 to 65536". */
function describe({ type, enum: choices, minimum, exclusiveMinimum, maximum }: Field): string {
  if (choices) return `one of ${choices.join(", ")}`;
  if (type === "boolean") return "true or false";
  if (type === "string") return "text that is not empty";
  const noun = type === "integer" ? "an integer" : "a number";
  if (exclusiveMinimum !== undefined) return `${noun} above ${exclusiveMinimum}`;
  return maximum === undefined ? `${noun} of at least ${minimum}` : `${noun} from ${minimum} to ${maximum}`;
}

function readConfigFile(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw fileError("--config", path, "read", error);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new FileError(
      expectation(`--config ${path}`, "JSON", (error as Error).message, 'Like { "train": "text.txt", "hidden_size": 256 }.'),
    );
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw new FileError(
    expectation(`--config ${path}`, "a JSON object", value, 'Like { "train": "text.txt", "hidden_size": 256 }.'),
  );
}

/** A number or boolean where the field is one and the text reads as one; else the text, for the check to complain of. */
function fromText(key: string, text: string): unknown {
  const type = FIELDS.get(key)?.type;
  if (type === "boolean" && (text === "true" || text === "false")) return text === "true";
  if ((type === "integer" || type === "number") && text.trim() !== "" && Number.isFinite(Number(text))) return Number(text);
  return text;
}
