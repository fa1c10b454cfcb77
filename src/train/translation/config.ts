/** Options of a translation run: their fields, what they are where left out, and which options belong to which task. */

import { z } from "zod";
import type { TranslationModelConfig } from "../../models/translation-model.js";
import type { TrainConfig } from "../config.js";
import { moeMiddle, type Refusal } from "../moe-config.js";
import { pairRefusals } from "./pairs.js";

const size = z.number().int().min(1).max(65_536).optional();
const text = z.string().min(1).optional();

/** Fields of `trainConfigSchema`. Those of translation alone have no default there, so that no other run names them. */
export const translationFields = {
  task: z.enum(["language-model", "translation"]).default("language-model"),
  /** Line i translates line i of the text of the same part. */
  train_target: text,
  valid_target: text,
  test_target: text,
  /** Pairs of languages that one model learns, as en-de,de-en: {source}, {target} and {pair} in the names of files and columns stand for each pair's. Default: one pair, whose languages nobody told. */
  pairs: text,
  /** Columns of .tsv, .jsonl or parquet files, in place of target files. */
  source_column: text,
  target_column: text,
  /** Default product: the paper's, which costs less. */
  attention: z.enum(["product", "additive"]).optional(),
  /** Default: the hidden size, as in the paper. */
  attention_size: size,
  /** The decoder's layers that are fed what attention read. Default first, as in the paper; GNMT has all. */
  context_to: z.enum(["first", "all"]).optional(),
  /** Whether the softmax has weights of its own. Default tied: less to learn from little text. */
  embeddings: z.enum(["tied", "shared"]).optional(),
  /** Default 0: the paper has none. */
  label_smoothing: z.number().min(0).max(0.99).optional(),
  /** Probability of leaving out a merge of byte pairs in training, so that each epoch has other subwords. Default 0. */
  bpe_dropout: z.number().min(0).max(1).optional(),
  /** Probability of a token to come without its embedding in training, on either side. Default 0. */
  word_dropout: z.number().min(0).max(0.99).optional(),
  /** Batch size times the longer of source and target. Default 2048: enough rows for each expert, few enough for two cores. */
  batch_tokens: z
    .number()
    .int()
    .min(2)
    .max(2 ** 22)
    .optional(),
  /** T of the sampling between pairs of languages: one of n sentences has a share proportional to n^(1/T). Default 1: each sentence comes once an epoch. */
  sampling_temperature: z.number().min(1).optional(),
  /** Pairs with a longer side are left out of training. Default 100, beyond which pairs are rarely translations. */
  max_source_tokens: size,
  max_target_tokens: size,
  /** Beams for the BLEU of the validation text. Default 1, which is several times faster than 4. */
  eval_beam_size: z.number().int().min(1).max(64).optional(),
} as const;

/** A configuration of a translation run: nothing is left out. */
export type TranslationConfig = TrainConfig &
  Required<Pick<TrainConfig, "attention" | "attention_size" | "context_to" | "embeddings" | "label_smoothing" | "bpe_dropout" | "word_dropout" | "batch_tokens" | "sampling_temperature" | "max_source_tokens" | "max_target_tokens" | "eval_beam_size">>;

/** What a language model has and a translation model has not, with what to do instead. */
const OF_LANGUAGE_MODELS: Readonly<Record<string, string>> = {
  text_mode: "Pairs are sentences.",
  vocab: "Subwords are trained on both sides (--vocab-size).",
  tokenizer: "Subwords are trained on both sides (--vocab-size).",
  eos: "",
  init_scale: "",
  batch_size: "Take --batch-tokens.",
  time_steps: "Take --batch-tokens.",
  sampled_softmax: "",
};

/** Fills in what was left out, where the task is translation. */
export function withTranslationDefaults<C extends Partial<TrainConfig> & Pick<TrainConfig, "task" | "hidden_size">>(config: C): C {
  if (config.task !== "translation") return config;
  return {
    ...config,
    attention: config.attention ?? "product",
    attention_size: config.attention_size ?? config.hidden_size,
    context_to: config.context_to ?? "first",
    embeddings: config.embeddings ?? "tied",
    label_smoothing: config.label_smoothing ?? 0,
    bpe_dropout: config.bpe_dropout ?? 0,
    word_dropout: config.word_dropout ?? 0,
    batch_tokens: config.batch_tokens ?? 2048,
    sampling_temperature: config.sampling_temperature ?? 1,
    max_source_tokens: config.max_source_tokens ?? 100,
    max_target_tokens: config.max_target_tokens ?? 100,
    eval_beam_size: config.eval_beam_size ?? 1,
  };
}

/** Whether a run is one of translation. */
export function isTranslation(config: TrainConfig): config is TranslationConfig {
  return config.task === "translation";
}

/** Options that are missing, or of the other task. @param defaults what the schema gives where nothing is set */
export function misplacedOptions(config: TrainConfig, wasSet: (key: string) => boolean, defaults: Readonly<Record<string, unknown>>): Refusal[] {
  if (config.task !== "translation") {
    return Object.keys(translationFields)
      .filter((key) => key !== "task" && wasSet(key))
      .map((key) => ({ key, expected: "left out without --task translation", hint: "" }));
  }
  const refused = Object.entries(OF_LANGUAGE_MODELS)
    .filter(([key]) => wasSet(key) && config[key as keyof TrainConfig] !== defaults[key])
    .map(([key, hint]): Refusal => ({ key, expected: "left out with --task translation", hint }));
  const columns = config.source_column !== undefined || config.target_column !== undefined;
  for (const key of ["source_column", "target_column"] as const) {
    if (columns && config[key] === undefined) refused.push({ key, expected: "the name of a column", hint: "Name those of both sides." });
  }
  for (const part of ["train", "valid", "test"] as const) {
    const key = `${part}_target` as const;
    if (columns && config[key] !== undefined) refused.push({ key, expected: "left out beside --source-column and --target-column", hint: "Both sides are in one file." });
    const hint = `Name the file with the translations of ${config[part]}, or the columns of a table (--source-column, --target-column).`;
    if (!columns && config[part] !== undefined && config[key] === undefined) refused.push({ key, expected: "a text file", hint });
    if (config[part] === undefined && config[key] !== undefined) refused.push({ key, expected: `left out without --${part}`, hint: "" });
  }
  refused.push(...pairRefusals(config));
  // The other names say layers and widths of language models, which would be ignored. Names of no model at all are told by `presetMiddle`.
  if (!/^(moe-\d+(-h)?|moe-1-(wide|deep)|lstm)$/i.test(config.model)) {
    const hint = "Layers are those of the paper's translation models; their sizes are named by --hidden-size and --lstm-size.";
    refused.push({ key: "model", expected: "MoE-<experts>, MoE-<experts>-h, MoE-1-Wide, MoE-1-Deep or LSTM with --task translation", hint });
  }
  return refused;
}

/** The model of a run. @throws ConfigError as `presetMiddle` */
export function translationModelConfig(config: TranslationConfig, vocabSize: number): TranslationModelConfig {
  const middle = moeMiddle(config);
  return {
    vocabSize,
    hiddenSize: config.hidden_size,
    lstmSize: config.lstm_size ?? config.hidden_size,
    attentionSize: config.attention_size,
    attention: config.attention,
    contextTo: config.context_to,
    middle,
    dropout: config.dropout,
    wordDropout: config.word_dropout,
    sigmoid: config.sigmoid && middle.kind !== "none",
    residual: config.residual,
    tied: config.embeddings === "tied",
    labelSmoothing: config.label_smoothing,
    seed: config.seed,
  };
}
