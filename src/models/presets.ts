/** The paper's language models by name (Table 7), at any width: the shape is the name's, the width is the caller's. */

import { ConfigError, expectation } from "../core/errors.js";
import { didYouMean } from "../core/suggest.js";
import type { MiddleConfig } from "./language-model.js";

/** Sizes that the middle of a preset follows. */
export interface PresetOptions {
  /** D. The paper's models have 512. */
  hiddenSize: number;
  /** F, one expert's hidden width. Default 2·hiddenSize (512 → 1024). */
  expertHiddenSize?: number | undefined;
  /** K. Default 4. */
  topK?: number | undefined;
  importanceWeight?: number | undefined;
  loadWeight?: number | undefined;
}

/** Names that `presetMiddle` knows; MoE-<n> stands for any number of experts from topK on. */
export const PRESET_NAMES = ["MoE-1-Wide", "MoE-1-Deep", "4xLSTM", "LSTM", "MoE-4", "MoE-32", "MoE-256"] as const;

/**
 * What a named model has between its LSTM layers. All of MoE-1-Wide, MoE-1-Deep, 4xLSTM and MoE-n do the same number of multiply-adds (the gate aside)
 * when expertHiddenSize is 2·hiddenSize and topK is 4.
 * @throws ConfigError for an unknown name
 */
export function presetMiddle(name: string, { hiddenSize, expertHiddenSize = 2 * hiddenSize, topK = 4, importanceWeight = 0.1, loadWeight = 0.1 }: PresetOptions): MiddleConfig {
  const key = name.toLowerCase();
  if (key === "moe-1-wide") return { kind: "dense", hiddenSizes: [topK * expertHiddenSize] };
  if (key === "moe-1-deep") return { kind: "dense", hiddenSizes: new Array<number>(4).fill(expertHiddenSize) };
  if (key === "4xlstm") return { kind: "lstm", layers: 2 };
  if (key === "lstm") return { kind: "none" };
  const match = /^moe-(\d+)$/.exec(key);
  if (!match) throw new ConfigError(expectation("model (--model)", `one of ${PRESET_NAMES.join(", ")} (or MoE-<experts>)`, name, didYouMean(name, PRESET_NAMES)));
  const numExperts = Number(match[1]);
  if (numExperts < topK) throw new ConfigError(expectation("model (--model)", `at least the ${topK} experts that a token uses (--top-k)`, name, "Take more experts, or lower --top-k."));
  return { kind: "moe", numExperts, topK, expertHiddenSize, importanceWeight, loadWeight };
}
