/** Translation models by name: those of the paper (Shazeer et al. 2017, App. E), and sizes that train on two cores. Values are options of `train`. */

import { ConfigError, expectation } from "../../core/errors.js";
import { didYouMean } from "../../core/suggest.js";

/** A named configuration. */
export interface TranslationPreset {
  about: string;
  /** Options of `train`, by key. */
  values: Readonly<Record<string, unknown>>;
  /** What the paper says of it, in millions: multiply-adds a timestep (Tables 2 to 5), and parameters with embedding and softmax. */
  published?: { opsPerTimestep: number; parameters?: number };
}

/** Adam with 2,000 steps of rise and 8,000 of plateau, dropout 0.4, 16,000 words a batch, 512 wide with LSTMs of 2,048 units. */
const PAPER = {
  task: "translation",
  vocab_size: 32_000,
  hidden_size: 512,
  lstm_size: 2048,
  embeddings: "shared",
  dropout: 0.4,
  batch_tokens: 16_384,
  warmup_steps: 2000,
  decay_hold_steps: 8000,
} as const;
/** Strictly balanced gates, importance loss 0.01. The loss on load has nothing to do where every expert has equally many rows. */
const BALANCED = { gate: "strictly-balanced", importance_weight: 0.01 } as const;
const PAPER_EXPERT = { expert_hidden_size: 2048 } as const;

/**
 * Multi30k's 29,000 captions, which a narrow model passes 35 times in the time that 256 units take for ten, with other subwords in each pass so that it does not
 * learn them by heart. So narrow, the models lack capacity, which experts give: a mixture uses 8 experts of 256 where a dense layer of as many ops/timestep,
 * 2,048 wide, has no more BLEU than one of half its width. The mixture has dropout in experts and a lower rate for them; what attention read goes to all layers of
 * the decoder. A rate that falls to nothing gave half a point of BLEU in fewer steps, and both models learn faster without the sigmoid (docs/results/multi30k.md).
 */
const CAPTIONS = {
  task: "translation",
  vocab_size: 6000,
  hidden_size: 64,
  context_to: "all",
  dropout: 0.1,
  bpe_dropout: 0.05,
  label_smoothing: 0.1,
  batch_tokens: 1536,
  max_steps: 14_000,
  learning_rate: 4e-3,
  schedule: "linear",
  warmup_steps: 400,
  decay_hold_steps: 2800,
  max_grad_norm: 1,
  eval_steps: 500,
  save_steps: 100,
  save_total_limit: 5,
  sigmoid: false,
  top_k: 8,
  expert_hidden_size: 256,
} as const;

/**
 * The compiler's messages in twelve directions: what `demo translation` trains. So narrow, the models lack capacity, which experts give; 128 wide both learn by
 * heart the few messages, each of which comes in twelve directions, and the mixture first. Against that a fifth of the words are left out on either side, which
 * costs less BLEU than dropout in the layers, and the mixture has strictly balanced gates in place of the noisy ones of the paper's multilingual model, a shared
 * expert, a low rate for experts and label smoothing (docs/results/translation-demo.md). Many small steps learn more than few large ones: 128 wide and after as
 * many tokens, perplexity was 21 with 1,024 a batch and 34 with 2,048. What attention read goes to all layers of the decoder, which is worth five points of
 * BLEU to both; a tenth of the words left out would give both three to four more, and experts less to add.
 */
const MESSAGES = {
  task: "translation",
  vocab_size: 4000,
  hidden_size: 64,
  expert_hidden_size: 128,
  context_to: "all",
  top_k: 4,
  dropout: 0,
  word_dropout: 0.2,
  batch_tokens: 1024,
  learning_rate: 5e-3,
  schedule: "linear",
  warmup_steps: 100,
  decay_hold_steps: 300,
  max_grad_norm: 1,
  label_smoothing: 0.1,
  expert_learning_rate_scale: 0.2,
  sigmoid: false,
} as const;

/** Presets by name. */
export const TRANSLATION_PRESETS: Readonly<Record<string, TranslationPreset>> = {
  "wmt-none": { about: "the paper's model without experts", values: { ...PAPER, model: "LSTM" } },
  "wmt-moe-32": {
    about: "the paper's: 32 experts, 4 of them for a position",
    values: { ...PAPER, ...PAPER_EXPERT, ...BALANCED, model: "MoE-32", top_k: 4 },
    published: { opsPerTimestep: 85 },
  },
  "wmt-moe-512-h": {
    about: "the paper's: 512 experts in groups, 2 of 2 groups",
    values: { ...PAPER, ...PAPER_EXPERT, ...BALANCED, model: "MoE-512-h", branching: 32, top_k: 2 },
    published: { opsPerTimestep: 85 },
  },
  "wmt-moe-2048-h": {
    about: "the paper's best: 2,048 experts in groups, 2 of 2 groups",
    values: { ...PAPER, ...PAPER_EXPERT, ...BALANCED, model: "MoE-2048-h", branching: 64, top_k: 2 },
    published: { opsPerTimestep: 85, parameters: 8700 },
  },
  "multilingual-moe-512": {
    about: "the paper's model of twelve directions: 512 wide experts, 2 of them for a position",
    values: { ...PAPER, model: "MoE-512", gate: "noisy-top-k", top_k: 2, expert_hidden_size: 8192, importance_weight: 0.01, load_weight: 0.01 },
    published: { opsPerTimestep: 102, parameters: 8700 },
  },
  "captions-dense": { about: "Multi30k on two cores, without experts at equal computation", values: { ...CAPTIONS, model: "MoE-1-Wide" } },
  "captions-moe": {
    about: "Multi30k on two cores: 64 experts, 8 of them for a position",
    values: { ...CAPTIONS, ...BALANCED, model: "MoE-64", expert_dropout: 0.2, expert_learning_rate_scale: 0.3 },
  },
  "messages-dense": { about: "compiler messages on two cores, without experts at equal computation", values: { ...MESSAGES, model: "MoE-1-Wide" } },
  "messages-moe": {
    about: "compiler messages on two cores: 32 experts, 3 of them for a position beside one for all",
    values: { ...MESSAGES, ...BALANCED, model: "MoE-32", top_k: 3, shared_experts: 1 },
  },
};

/** The options of a preset. @throws ConfigError for an unknown name */
export function translationPreset(name: string): Readonly<Record<string, unknown>> {
  const preset = Object.hasOwn(TRANSLATION_PRESETS, name) ? TRANSLATION_PRESETS[name] : undefined;
  if (preset) return preset.values;
  const names = Object.keys(TRANSLATION_PRESETS);
  throw new ConfigError(expectation("--preset", `one of ${names.join(", ")}`, name, didYouMean(name, names)));
}
