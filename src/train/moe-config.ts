/** Options of a run's mixture of experts: their fields, which gate has which of them, and the model they make. */

import { z } from "zod";
import { gateLevels, nameOf } from "../models/cost.js";
import type { MiddleConfig } from "../models/language-model.js";
import { presetExpertSize, presetMiddle } from "../models/presets.js";
import { GATE_NAMES, type GateConfig, type GateName } from "../moe/gates/index.js";
import type { TrainConfig } from "./config.js";

/** Far above what fits into memory, far below where array lengths overflow. */
const count = z.number().int().min(1).max(65_536);
const weight = z.number().min(0).optional();
const gateName = z.enum(GATE_NAMES as [GateName, ...GateName[]]);
const factor = z.number().positive().optional();

/** Fields of `trainConfigSchema`. Those without a default leave it to the gate: "Default" says what it then is, and why. */
export const moeFields = {
  /** Short for a model's name: 64 for MoE-64, or MoE-64-h where there is a branching. */
  num_experts: count.max(2 ** 20).optional(),
  /** Groups of a hierarchical mixture. Default the paper's for models that end in -h: 16, and 128 or 256 for the three largest; other models are flat. */
  branching: count.optional(),
  /** noisy-top-k is the paper's. */
  gate: gateName.default("noisy-top-k"),
  /** Inside the groups of a hierarchical mixture. Default: as gate, as in the paper. */
  secondary_gate: gateName.optional(),
  /** Experts a token uses, or groups of a hierarchical mixture. Default: noisy-top-k and strictly-balanced 4, as the paper's flat models; top-k and expert-choice 2 (Mixtral; Zhou et al.); sigmoid 8 (DeepSeek-V3); hierarchical 2 (App. C). */
  top_k: count.optional(),
  /** Experts a token uses in each group. Default: as top_k where the gate lets one choose. */
  secondary_top_k: count.optional(),
  /** w_importance. Default 0.1 for noisy-top-k (App. C), 0 for gates with losses of their own. */
  importance_weight: weight,
  /** w_load, of gates with a smooth load. Default 0.1 for noisy-top-k (App. C). */
  load_weight: weight,
  /** Router z-loss. ST-MoE has 0.001; 0 as the paper of 2017 has none. */
  z_loss_weight: z.number().min(0).default(0),
  /** Balance loss of the gate's own. Default: switch and gshard 0.01, top-k 0.02, as published. */
  aux_loss_weight: weight,
  /** ε of switch: what the router sees is shaken by up to this share. Default 0.01, as published. */
  jitter: z.number().min(0).max(1).optional(),
  /** Rows an expert takes at most in training, over its equal share. Default: none, as the paper drops no row. */
  capacity_factor: factor,
  /** The same in evaluation. Default: capacity_factor. */
  eval_capacity_factor: factor,
  /** Who stays when there are more. Default arrival, as GShard. */
  drop_policy: z.enum(["arrival", "probability"]).optional(),
  /** Whether gshard's second expert is used. Default random, as GShard. */
  second_policy: z.enum(["all", "none", "threshold", "random"]).optional(),
  /** The same in evaluation, which is deterministic. Default: as in training, threshold for random. */
  eval_second_policy: z.enum(["all", "none", "threshold"]).optional(),
  /** Of the policies threshold and random. Default 0.2, as Tensor2Tensor. */
  second_threshold: z.number().min(1e-9).max(1).optional(),
  /** The same in evaluation. Default: second_threshold. */
  eval_second_threshold: z.number().min(1e-9).max(1).optional(),
  /** Weight of strictly-balanced's L_batchwise. Default 1: it alone teaches the thresholds. */
  threshold_weight: weight,
  /** γ by which sigmoid's biases move a step. Default 0.001 (DeepSeek-V3). */
  bias_update_rate: weight,
  /** What sigmoid's gate values are multiplied by. Default 1; DeepSeek-V3 has 2.5. */
  gate_scale: weight,
  /** Learning rate of the gate over that of everything else. Default 1. Less keeps a gate with many experts from deciding before they have learnt. */
  gate_learning_rate_scale: weight,
  /** Learning rate of the experts, or of the dense layer in their place, over that of everything else. Default 1. */
  expert_learning_rate_scale: weight,
  /** Hidden layers of an expert, each of expert_hidden_size. 1 as in the paper. */
  expert_layers: z.number().int().min(1).max(64).default(1),
  /** relu as in the paper. */
  expert_activation: z.enum(["relu", "gelu", "swiglu"]).default("relu"),
  /** The paper's 1M-parameter expert has no biases. */
  expert_bias: z.boolean().default(false),
  /** Dropout inside experts: 0 as in the paper; Switch takes 0.4 when it fine-tunes. */
  expert_dropout: z.number().min(0).max(0.99).default(0),
  /** Experts that every token uses (DeepSeek). 0 as in the paper. */
  shared_experts: z.number().int().min(0).max(65_536).default(0),
  /** Compute hidden activations again instead of keeping them (App. D). Off: it costs a third forward product for memory that small models have. */
  recompute_experts: z.boolean().default(false),
} as const;

type MoeKey = keyof typeof moeFields;

/** Options of some gates alone: their names there, and those gates. */
const OF_GATES: { readonly [key in MoeKey]?: readonly [option: string, gates: readonly GateName[]] } = {
  aux_loss_weight: ["auxLossWeight", ["switch", "gshard", "top-k"]],
  jitter: ["jitter", ["switch"]],
  second_policy: ["secondPolicy", ["gshard"]],
  eval_second_policy: ["evalSecondPolicy", ["gshard"]],
  second_threshold: ["secondThreshold", ["gshard"]],
  eval_second_threshold: ["evalSecondThreshold", ["gshard"]],
  threshold_weight: ["thresholdWeight", ["strictly-balanced"]],
  bias_update_rate: ["biasUpdateRate", ["sigmoid"]],
  gate_scale: ["scale", ["sigmoid"]],
};

/** Gates with a smooth load, which the load loss is made of. */
const SMOOTH: readonly GateName[] = ["noisy-top-k"];

/** Gates that deal rows to experts instead of experts to rows: every expert has its share, and nothing overflows. */
const EVEN: readonly GateName[] = ["strictly-balanced", "expert-choice"];

/** What a value should have been, for messages that read `--jitter: expected …, got 0.1.` */
export interface Refusal {
  key: string;
  expected: string;
  hint: string;
}

/** What the fields are where nothing is set: a saved config.json names them for dense models too. */
const DEFAULTS = z.object(moeFields).parse({}) as Record<string, unknown>;

/** Options that were set and would do nothing with the model and gates of a configuration. */
export function uselessOptions(config: TrainConfig, wasSet: (key: string) => boolean): Refusal[] {
  const middle = moeMiddle(config);
  if (middle.kind !== "moe") {
    // Sizes and weights of the paper may stand in a file that several of its models share.
    const shared: readonly string[] = ["top_k", "importance_weight", "load_weight", ...(middle.kind === "dense" ? ["expert_learning_rate_scale"] : [])];
    return Object.keys(moeFields)
      .filter((key) => wasSet(key) && config[key as keyof TrainConfig] !== DEFAULTS[key] && !shared.includes(key))
      .map((key) => ({
        key,
        expected: `left out for ${config.model}, which has no experts to choose from`,
        hint: "Take a model MoE-<experts>.",
      }));
  }
  const refused: Refusal[] = [];
  const types = gateLevels(middle).map(({ type }) => nameOf(type));
  const named = types.length === 2 && types[0] !== types[1] ? `gates ${types.join(" and ")}` : `gate ${types[0]}`;
  for (const [key, [, gates]] of Object.entries(OF_GATES)) {
    if (wasSet(key) && !types.some((type) => gates.includes(type)))
      refused.push({ key, expected: `left out with ${named}`, hint: `It is an option of ${gates.join(", ")}.` });
  }
  // The load of a hierarchical mixture is smooth where that of both levels is.
  if ((config.load_weight ?? 0) > 0 && wasSet("load_weight") && !types.every((type) => SMOOTH.includes(type))) {
    refused.push({
      key: "load_weight",
      expected: `left out or 0 with ${named}`,
      hint: `The load loss needs the smooth load of ${SMOOTH.join(", ")}.`,
    });
  }
  const chooser = types.at(-1)!;
  for (const key of ["capacity_factor", "eval_capacity_factor", "drop_policy"]) {
    if (wasSet(key) && EVEN.includes(chooser))
      refused.push({
        key,
        expected: `left out with gate ${chooser}`,
        hint: "It gives every expert its equal share: nothing overflows.",
      });
  }
  if (wasSet("drop_policy") && config.capacity_factor === undefined && config.eval_capacity_factor === undefined) {
    refused.push({ key: "drop_policy", expected: "left out without a capacity", hint: "Set --capacity-factor." });
  }
  return refused;
}

/** What stands between the LSTM layers. @throws ConfigError as `presetMiddle` */
export function moeMiddle(config: TrainConfig): MiddleConfig {
  const { top_k, secondary_gate, secondary_top_k, gate, hidden_size, expert_layers } = config;
  const width = config.expert_hidden_size ?? presetExpertSize(config.model, hidden_size);
  return presetMiddle(config.model, {
    hiddenSize: hidden_size,
    expertHiddenSize: expert_layers === 1 ? width : new Array<number>(expert_layers).fill(width),
    topK: top_k,
    secondaryTopK: secondary_top_k,
    branching: config.branching,
    gate: gateWith(gate, config),
    secondaryGate: secondary_gate && gateWith(secondary_gate, config),
    importanceWeight: config.importance_weight,
    loadWeight: config.load_weight,
    zLossWeight: config.z_loss_weight,
    capacityFactor: config.capacity_factor,
    evalCapacityFactor: config.eval_capacity_factor,
    dropPolicy: config.drop_policy,
    activation: config.expert_activation,
    bias: config.expert_bias,
    expertDropout: config.expert_dropout,
    sharedExperts: config.shared_experts,
    recompute: config.recompute_experts,
  });
}

/** What a reader of a run's figures must know of its gates; a sentence each. */
export function caveats(config: TrainConfig): string[] {
  const middle = moeMiddle(config);
  if (middle.kind !== "moe") return [];
  const translates = config.task === "translation";
  const notes: string[] = [];
  if (gateLevels(middle).some(({ type }) => nameOf(type) === "expert-choice")) {
    const also = translates ? ", and a translation depends on the sentences beside it" : "";
    notes.push(`Note: gate expert-choice compares all positions of a batch, later ones too: perplexities are not those of a model that predicts${also}.`);
  }
  const capacity = config.eval_capacity_factor ?? config.capacity_factor;
  if (translates && capacity !== undefined) {
    notes.push(`Note: experts have a capacity in evaluation (${capacity} times their share): a translation depends on the sentences and beams beside it, which push each other out.`);
  }
  return notes;
}

/** A gate's name with those of the options that it has. */
function gateWith(type: GateName, config: TrainConfig): GateConfig {
  const own = Object.entries(OF_GATES)
    .map(([key, [option, gates]]) => [option, gates.includes(type) ? config[key as keyof TrainConfig] : undefined] as const)
    .filter(([, value]) => value !== undefined);
  return { type, ...Object.fromEntries(own) } as GateConfig;
}

/** What the options that were left to model and gate come to: for tables, and to compare two runs. */
export function effectiveMoe(
  config: TrainConfig,
): Partial<Pick<TrainConfig, "expert_hidden_size" | "top_k" | "branching" | "secondary_gate" | "secondary_top_k">> {
  const middle = moeMiddle(config);
  if (middle.kind !== "moe") return {};
  const [first, second] = gateLevels(middle);
  return {
    expert_hidden_size: config.expert_hidden_size ?? presetExpertSize(config.model, config.hidden_size),
    top_k: first!.topK,
    ...(second ? { branching: first!.numExperts, secondary_gate: nameOf(second.type), secondary_top_k: second.topK } : {}),
  };
}
