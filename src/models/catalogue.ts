/** The models of the paper's Tables 7 and 8 (Shazeer et al. 2017, App. C and D) as configurations, with what it prints of each. Nothing is allocated here. */

import { checkNumber } from "../core/checks.js";
import { ConfigError, expectation } from "../core/errors.js";
import type { LanguageModelConfig } from "./language-model.js";
import { presetLstm, presetMiddle, presetWidth } from "./presets.js";

/** A row of one of the tables. */
export interface PaperModel {
  name: string;
  table: 7 | 8;
  /** Groups of a hierarchical mixture: of the same name, 16 in Table 7, and more in Table 8. */
  branching?: number;
  /** As the paper prints them: millions of multiply-adds a token without the softmax, millions of parameters without embedding and softmax. */
  ops: number;
  parameters: number;
  /** Test perplexity: Table 7 after 10 epochs of the 1-billion-word benchmark, Table 8 after 100 billion words. */
  perplexity: number;
  /** Table 8: after 10 billion words. */
  perplexityTenth?: number;
  /** Table 7. */
  dropout?: number;
}

const table7 = (
  name: string,
  perplexity: number,
  ops: number,
  parameters: number,
  dropout: number,
  branching?: number,
): PaperModel => ({
  name,
  table: 7,
  ...(branching === undefined ? {} : { branching }),
  ops,
  parameters,
  perplexity,
  dropout,
});

const table8 = (
  name: string,
  perplexityTenth: number,
  perplexity: number,
  ops: number,
  parameters: number,
  branching?: number,
): PaperModel => ({
  name,
  table: 8,
  ...(branching === undefined ? {} : { branching }),
  ops,
  parameters,
  perplexity,
  perplexityTenth,
});

/** In the order of the tables; the Kneser-Ney models are left out. */
export const PAPER_MODELS: readonly PaperModel[] = [
  table7("LSTM-512-512", 54.1, 2.4, 2.4, 0.1),
  table7("LSTM-1024-512", 48.2, 4.7, 4.7, 0.1),
  table7("LSTM-2048-512", 44.7, 9.4, 9.4, 0.1),
  table7("4xLSTM-512", 46.0, 8.4, 8.4, 0.1),
  table7("MoE-1-Wide", 46.1, 8.4, 8.4, 0.1),
  table7("MoE-1-Deep", 45.7, 8.4, 8.4, 0.1),
  table7("MoE-4", 45.0, 8.4, 8.4, 0.1),
  table7("MoE-32", 39.7, 8.4, 37.8, 0.1),
  table7("MoE-256", 35.7, 8.6, 272.9, 0.1),
  table7("MoE-256-h", 36.0, 8.4, 272.9, 0.1, 16),
  table7("MoE-1024-h", 34.6, 8.5, 1079.0, 0.2, 16),
  table7("MoE-4096-h", 34.1, 8.9, 4303.4, 0.2, 16),
  table7("2xLSTM-8192-1024", 34.7, 151.0, 151.0, 0.25),
  table7("MoE-34M", 31.3, 33.8, 4313.9, 0.3, 16),
  table7("MoE-143M", 28.0, 142.7, 4371.1, 0.4, 16),
  table8("4xLSTM-512", 54.5, 47.0, 8.4, 8.4),
  table8("MoE-32", 48.5, 40.4, 8.4, 37.8),
  table8("MoE-256-h", 42.8, 35.3, 8.4, 272.9, 32),
  table8("MoE-1024-h", 40.3, 32.7, 8.5, 1079.0, 32),
  table8("MoE-4096-h", 38.9, 30.9, 8.6, 4303.4, 64),
  table8("MoE-16384-h", 38.2, 29.7, 8.8, 17201.0, 128),
  table8("MoE-65536-h", 38.2, 28.9, 9.2, 68791.0, 256),
  table8("MoE-131072-h", 39.8, 29.2, 9.7, 137577.6, 256),
];

/**
 * The configuration of a row with widths in proportion to the paper's and its number of experts.
 * @param scale 1 is the paper's width, 0.25 a quarter of it
 * @throws ConfigError for a scale at which the width is no whole number
 */
export function paperConfig(
  { name, branching, dropout = 0.1 }: PaperModel,
  { scale = 1, vocabSize = 793_471 } = {},
): LanguageModelConfig {
  checkNumber("models", "scale (--scale)", scale, { min: Number.MIN_VALUE });
  const hiddenSize = presetWidth(name) * scale;
  if (!Number.isInteger(hiddenSize)) {
    throw new ConfigError(
      expectation(
        "models",
        `a scale (--scale) at which the ${presetWidth(name)} units of ${name} are a whole number`,
        scale,
        "Like 0.25.",
      ),
    );
  }
  return {
    vocabSize,
    hiddenSize,
    ...presetLstm(name, hiddenSize),
    middle: presetMiddle(name, { hiddenSize, ...(branching === undefined ? {} : { branching }) }),
    dropout,
    sigmoid: true,
    residual: true,
    seed: 0,
  };
}
