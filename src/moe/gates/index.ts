/** Gates by name: what the configuration and the options of a layer choose from. */

import { ConfigError, expectation } from "../../core/errors.js";
import { didYouMean } from "../../core/suggest.js";
import { CAPACITY_OPTIONS } from "../capacity.js";
import { ExpertChoiceGate, type ExpertChoiceOptions } from "./expert-choice.js";
import type { Gate, GateOptions, RouterGate } from "./gate.js";
import { GShardGate, type GShardOptions } from "./gshard.js";
import { NoisyTopKGate, type NoisyTopKOptions } from "./noisy-top-k.js";
import { SigmoidGate, type SigmoidOptions } from "./sigmoid.js";
import { SoftmaxGate } from "./softmax.js";
import { StrictlyBalancedGate, type StrictlyBalancedOptions } from "./strictly-balanced.js";
import { SwitchGate, type SwitchOptions } from "./switch.js";
import { TopKGate, type TopKOptions } from "./top-k.js";

/** What a layer tells its gate; the rest are options of the gate's own. */
export type LayerGiven = "hiddenSize" | "numExperts" | "topK" | "name" | "seed" | "numGroups" | "placed" | "init";
const GIVEN: ReadonlySet<string> = new Set<LayerGiven>(["hiddenSize", "numExperts", "topK", "name", "seed", "numGroups", "placed", "init"]);
/** Options of a gate's own: without those that the layer tells it. */
export type OwnOptions<Options> = Omit<Options, LayerGiven>;

/** Options of each gate by its name. */
export interface GateTypes {
  "noisy-top-k": OwnOptions<NoisyTopKOptions>;
  softmax: OwnOptions<GateOptions>;
  "strictly-balanced": OwnOptions<StrictlyBalancedOptions>;
  switch: OwnOptions<SwitchOptions>;
  gshard: OwnOptions<GShardOptions>;
  "expert-choice": OwnOptions<ExpertChoiceOptions>;
  "top-k": OwnOptions<TopKOptions>;
  sigmoid: OwnOptions<SigmoidOptions>;
}

/** A gate's name. */
export type GateName = keyof GateTypes;

/** A gate's name, or its name with options: `"switch"`, `{ type: "switch", jitter: 0 }`. */
export type GateConfig = GateName | { [Name in GateName]: { type: Name } & GateTypes[Name] }[GateName];

/** Weights of the losses that every gate takes. */
export const LOSSES = ["importanceWeight", "loadWeight", "zLossWeight"] as const;

/** A gate with the experts a row uses where nothing else is said, and its options by name. */
interface Entry<Name extends GateName> {
  make: (options: never) => RouterGate;
  topK: (numExperts: number) => number;
  /** Whether topK cannot be chosen. */
  fixed?: boolean;
  options: readonly (keyof GateTypes[Name])[];
}

const GATES: { readonly [Name in GateName]: Entry<Name> } = {
  // Flat layers of the paper use 4 (App. C).
  "noisy-top-k": { make: (options: NoisyTopKOptions) => new NoisyTopKGate(options), topK: (E) => Math.min(4, E), options: [...LOSSES, ...CAPACITY_OPTIONS] },
  softmax: { make: (options: GateOptions) => new SoftmaxGate(options), topK: (E) => E, fixed: true, options: [...LOSSES, ...CAPACITY_OPTIONS] },
  "strictly-balanced": { make: (options: StrictlyBalancedOptions) => new StrictlyBalancedGate(options), topK: (E) => Math.min(4, E), options: [...LOSSES, "thresholdWeight"] },
  switch: { make: (options: SwitchOptions) => new SwitchGate(options), topK: () => 1, fixed: true, options: [...LOSSES, ...CAPACITY_OPTIONS, "auxLossWeight", "jitter"] },
  gshard: {
    make: (options: GShardOptions) => new GShardGate(options),
    topK: () => 2,
    fixed: true,
    options: [...LOSSES, ...CAPACITY_OPTIONS, "auxLossWeight", "secondPolicy", "evalSecondPolicy", "secondThreshold", "evalSecondThreshold"],
  },
  "expert-choice": { make: (options: ExpertChoiceOptions) => new ExpertChoiceGate(options), topK: (E) => Math.min(2, E), options: LOSSES },
  "top-k": { make: (options: TopKOptions) => new TopKGate(options), topK: (E) => Math.min(2, E), options: [...LOSSES, ...CAPACITY_OPTIONS, "auxLossWeight"] },
  sigmoid: { make: (options: SigmoidOptions) => new SigmoidGate(options), topK: (E) => Math.min(8, E), options: [...LOSSES, ...CAPACITY_OPTIONS, "biasUpdateRate", "scale"] },
};

/** The gates there are, by name. */
export const GATE_NAMES = Object.keys(GATES) as GateName[];

/** Experts a row uses with a gate where nothing else is said, and whether it always uses so many. @throws ConfigError for an unknown name */
export function gateTopK(name: GateName, numExperts: number): { topK: number; fixed: boolean } {
  const { topK, fixed = false } = knownGate(name);
  return { topK: topK(numExperts), fixed };
}

function knownGate(name: GateName): (typeof GATES)[GateName] {
  if (Object.hasOwn(GATES, name)) return GATES[name];
  throw new ConfigError(expectation("gate", `one of ${GATE_NAMES.join(", ")}`, name, didYouMean(String(name), GATE_NAMES)));
}

/** @throws ConfigError for an unknown name, an option that the gate does not know, or a number of experts a row that it does not have */
export function makeGate(config: GateConfig, given: Pick<GateOptions, "hiddenSize" | "numExperts" | "numGroups" | "placed" | "name" | "seed"> & { topK?: number | undefined }): RouterGate {
  const { type, ...own } = withOptions(config);
  const known = knownGate(type);
  for (const [name, value] of Object.entries(own)) if (value !== undefined) checkOption(type, name, known.options);
  const fixed = known.topK(given.numExperts);
  if (known.fixed && given.topK !== undefined && given.topK !== fixed) {
    throw new ConfigError(expectation(`gate ${type}`, `topK ${fixed}, which this gate always has`, given.topK, "Leave topK out, or take another gate."));
  }
  return known.make({ ...own, ...given, topK: given.topK ?? fixed } as never);
}

/** A gate's name with the options that it was given. What is neither stands for the name, to be refused by `makeGate`. */
export function withOptions(config: GateConfig): Exclude<GateConfig, string> {
  return typeof config === "object" && config !== null ? config : { type: config };
}

function checkOption(type: GateName, name: string, options: readonly string[]): void {
  if (options.includes(name)) return;
  let hint = didYouMean(name, options);
  if (GIVEN.has(name)) hint = "It is an option of the layer.";
  if (CAPACITY_OPTIONS.some((one) => one === name)) hint = "The experts of this gate pick their rows; there is nothing to limit.";
  throw new ConfigError(expectation(`gate ${type}`, `options among ${options.join(", ")}`, name, hint));
}

/** Whether an object is a gate and no configuration. */
export function isGate(value: GateConfig | Gate | undefined): value is Gate {
  return typeof value === "object" && value !== null && "forward" in value;
}
