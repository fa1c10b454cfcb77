/** The paper's language models by name (Table 7), at any width: the shape is the name's, the width is the caller's. */

import { ConfigError, expectation } from "../core/errors.js";
import { didYouMean } from "../core/suggest.js";
import { gateTopK } from "../moe/gates/index.js";
import { nameOf } from "./cost.js";
import type { MiddleConfig, MoeMiddle } from "./language-model.js";

/** What the middle of a preset follows: sizes, and where it is a mixture of experts the options of that. */
export interface PresetOptions extends Omit<MoeMiddle, "kind" | "numExperts" | "expertHiddenSize" | "topK"> {
  /** D. The paper's models have 512. */
  hiddenSize: number;
  /** F, one expert's hidden width (or widths). Default 2·hiddenSize (512 → 1024), of MoE-143M 8·hiddenSize. */
  expertHiddenSize?: number | readonly number[] | undefined;
  /** K, or the groups a row goes to in a hierarchical mixture. Default: the gate's, which is 4 for noisy top-k, and 2 in a hierarchical mixture. */
  topK?: number | undefined;
  /** Experts a row uses in each group of a hierarchical mixture. Default: as topK where the gate lets one choose. */
  secondaryTopK?: number | undefined;
  /** Groups of a hierarchical mixture. Default for names that end in -h: 16 (App. C); 128 for 16384 experts, 256 for 65536 and 131072 (App. D). Others are flat without it. */
  branching?: number | undefined;
}

/** Names that `presetMiddle` knows; MoE-<n> and MoE-<n>-h stand for any number of experts, LSTM-<units>-<width> and 2xLSTM-<units>-<width> for any ratio of the two. */
export const PRESET_NAMES = [
  "MoE-1-Wide", "MoE-1-Deep", "4xLSTM", "LSTM", "MoE-4", "MoE-32", "MoE-256", "MoE-256-h", "MoE-1024-h", "MoE-4096-h",
  "LSTM-512-512", "LSTM-1024-512", "LSTM-2048-512", "2xLSTM-8192-1024", "MoE-34M", "MoE-143M", "MoE-16384-h", "MoE-65536-h", "MoE-131072-h",
] as const; // prettier-ignore

/** Experts a token uses in the paper's flat models, which the dense ones match in computation. */
const PAPER_TOP_K = 4;
/** Experts a token uses at each level of its hierarchical models. */
const PAPER_LEVEL_TOP_K = 2;
/** First-level branching of the paper's hierarchical models (App. C), and of those that are in App. D alone. */
const PAPER_BRANCHING = 16;
const LARGE_BRANCHING: ReadonlyMap<number, number> = new Map([[16_384, 128], [65_536, 256], [131_072, 256]]); // prettier-ignore

/** Models that the paper names by their operations: MoE-<n>-h of other widths. */
const BY_OPERATIONS: ReadonlyMap<string, string> = new Map([["moe-34m", "moe-1024-h"], ["moe-143m", "moe-256-h"]]); // prettier-ignore

/** LSTM-2048-512, 2xLSTM-8192-1024: layers, units and the width they are projected to. */
function lstmName(name: string): { layers: 1 | 2; units: number; width: number } | undefined {
  const match = /^(2x)?lstm-([1-9]\d{0,5})-([1-9]\d{0,5})$/.exec(name.toLowerCase());
  return match ? { layers: match[1] ? 2 : 1, units: Number(match[2]), width: Number(match[3]) } : undefined;
}

/** Units of a preset's LSTM layers at width hiddenSize, in the proportion of the paper's, and whether they are projected: those of LSTM-512-512 are too. */
export function presetLstm(name: string, hiddenSize: number): { lstmSize: number; projection: boolean } {
  const lstm = lstmName(name);
  if (lstm) return { lstmSize: Math.max(1, Math.round((hiddenSize * lstm.units) / lstm.width)), projection: true };
  return name.toLowerCase() === "moe-143m" ? { lstmSize: 4 * hiddenSize, projection: true } : { lstmSize: hiddenSize, projection: false };
}

/** Hidden width of one of a preset's experts at width hiddenSize: 512 → 1024 of most, 1024 → 8192 of MoE-143M. */
export function presetExpertSize(name: string, hiddenSize: number): number {
  return (name.toLowerCase() === "moe-143m" ? 8 : 2) * hiddenSize;
}

/** The width that the paper has a preset at. */
export function presetWidth(name: string): number {
  return lstmName(name)?.width ?? (BY_OPERATIONS.has(name.toLowerCase()) ? 1024 : 512);
}

/**
 * What a named model has between its LSTM layers. All of MoE-1-Wide, MoE-1-Deep, 4xLSTM, MoE-n and MoE-n-h do the same number of multiply-adds (the gate
 * aside) when expertHiddenSize is 2·hiddenSize and a token uses 4 experts.
 * @throws ConfigError for an unknown name, or experts that do not make up the groups or the choices asked for
 */
export function presetMiddle(name: string, { hiddenSize, expertHiddenSize = presetExpertSize(name, hiddenSize), branching, ...moe }: PresetOptions): MiddleConfig {
  const key = BY_OPERATIONS.get(name.toLowerCase()) ?? name.toLowerCase();
  const width = typeof expertHiddenSize === "number" ? expertHiddenSize : expertHiddenSize[0]!;
  if (key === "moe-1-wide") return { kind: "dense", hiddenSizes: [(moe.topK ?? PAPER_TOP_K) * width] };
  if (key === "moe-1-deep") return { kind: "dense", hiddenSizes: new Array<number>(4).fill(width) };
  if (key === "4xlstm" || key === "4xlstm-512") return { kind: "lstm", layers: 2 };
  if (key === "lstm") return { kind: "none" };
  const lstm = lstmName(key);
  if (lstm) return lstm.layers === 1 ? { kind: "single" } : { kind: "none" };
  const match = /^moe-(\d+)(-h)?$/.exec(key);
  if (!match || Number(match[1]) < 1) {
    throw new ConfigError(expectation("model (--model)", `one of ${PRESET_NAMES.join(", ")} (or MoE-<experts>, MoE-<experts>-h, LSTM-<units>-<width>)`, name, didYouMean(name, PRESET_NAMES)));
  }
  const numExperts = Number(match[1]);
  const groups = branching ?? (match[2] ? (LARGE_BRANCHING.get(numExperts) ?? PAPER_BRANCHING) : undefined);
  return groups === undefined ? flat(name, numExperts, { ...moe, expertHiddenSize }) : hierarchical(name, numExperts, groups, { ...moe, expertHiddenSize });
}

type Rest = Omit<PresetOptions, "hiddenSize" | "branching">;

function flat(name: string, numExperts: number, { topK, secondaryTopK, ...rest }: Rest): MoeMiddle {
  for (const [option, value] of Object.entries({ "secondary gate (--secondary-gate)": rest.secondaryGate, "topK of a group (--secondary-top-k)": secondaryTopK })) {
    if (value !== undefined) throw new ConfigError(expectation(option, "a hierarchical model, MoE-<experts>-h", name));
  }
  const k = checkTopK("topK (--top-k)", rest.gate, topK, numExperts);
  if (numExperts < k) throw new ConfigError(expectation("model (--model)", `at least the ${k} experts that a token uses (--top-k)`, name, "Take more experts, or lower --top-k."));
  return { kind: "moe", numExperts, topK: k, ...rest };
}

function hierarchical(name: string, numExperts: number, groups: number, { topK, secondaryTopK, ...rest }: Rest): MoeMiddle {
  const perGroup = numExperts / groups;
  if (!Number.isInteger(perGroup)) {
    throw new ConfigError(expectation("branching (--branching)", `a divisor of the ${numExperts} experts of ${name}`, groups, "It is the number of groups, which have as many experts each."));
  }
  const inner = rest.secondaryGate ?? rest.gate;
  const k1 = checkTopK("topK (--top-k)", rest.gate, topK, groups, PAPER_LEVEL_TOP_K);
  const second = secondaryTopK ?? (gateTopK(nameOf(inner ?? "noisy-top-k"), perGroup).fixed ? undefined : topK);
  const k2 = checkTopK("topK of a group (--secondary-top-k)", inner, second, perGroup, PAPER_LEVEL_TOP_K);
  if (groups < k1) throw new ConfigError(expectation("branching (--branching)", `at least the ${k1} groups that a token goes to (--top-k)`, groups));
  if (perGroup < k2) {
    const hint = "Take more experts, fewer groups (--branching), or lower --secondary-top-k.";
    throw new ConfigError(expectation("model (--model)", `groups of at least the ${k2} experts that a token uses in each`, `${name}, whose groups have ${perGroup}`, hint));
  }
  return { kind: "moe", numExperts: [groups, perGroup], topK: [k1, k2], ...rest };
}

/**
 * Experts a row uses of `numExperts`: those asked for, else the gate's number. A gate that has no choice of it keeps to its own.
 * @throws ConfigError for a number that the gate does not have
 */
function checkTopK(where: string, gate: MoeMiddle["gate"] = "noisy-top-k", topK: number | undefined, numExperts: number, usual?: number): number {
  const type = nameOf(gate);
  const { topK: own, fixed } = gateTopK(type, numExperts);
  // Not lowered to the number of experts: fewer than the gate's number are an error, and no smaller model.
  if (!fixed) return topK ?? usual ?? gateTopK(type, Infinity).topK;
  if (topK === undefined || topK === own) return own;
  throw new ConfigError(expectation(where, `${own} with gate ${type}, which always takes as many`, topK, "Leave it out, or take another gate."));
}
