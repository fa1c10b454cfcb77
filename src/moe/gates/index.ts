/** Gates by name: what the configuration and the options of a layer choose from. */

import { ConfigError, expectation } from "../../core/errors.js";
import { didYouMean } from "../../core/suggest.js";
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
type Given = "hiddenSize" | "numExperts" | "topK" | "name" | "seed" | "numGroups" | "init";
type Own<Options> = Omit<Options, Given>;

/** Options of each gate by its name. */
export interface GateTypes {
  "noisy-top-k": Own<NoisyTopKOptions>;
  softmax: Own<GateOptions>;
  "strictly-balanced": Own<StrictlyBalancedOptions>;
  switch: Own<SwitchOptions>;
  gshard: Own<GShardOptions>;
  "expert-choice": Own<ExpertChoiceOptions>;
  "top-k": Own<TopKOptions>;
  sigmoid: Own<SigmoidOptions>;
}

export type GateName = keyof GateTypes;

/** A gate's name, or its name with options: `"switch"`, `{ type: "switch", jitter: 0 }`. */
export type GateConfig = GateName | { [Name in GateName]: { type: Name } & GateTypes[Name] }[GateName];

/** Each gate with the experts a row uses where nothing else is said. */
const GATES: Record<GateName, { make: (options: never) => RouterGate; topK: (numExperts: number) => number; fixed?: boolean }> = {
  // Flat layers of the paper use 4 (App. C).
  "noisy-top-k": { make: (options: NoisyTopKOptions) => new NoisyTopKGate(options), topK: (E) => Math.min(4, E) },
  softmax: { make: (options: GateOptions) => new SoftmaxGate(options), topK: (E) => E, fixed: true },
  "strictly-balanced": { make: (options: StrictlyBalancedOptions) => new StrictlyBalancedGate(options), topK: (E) => Math.min(4, E) },
  switch: { make: (options: SwitchOptions) => new SwitchGate(options), topK: () => 1, fixed: true },
  gshard: { make: (options: GShardOptions) => new GShardGate(options), topK: () => 2, fixed: true },
  "expert-choice": { make: (options: ExpertChoiceOptions) => new ExpertChoiceGate(options), topK: (E) => Math.min(2, E) },
  "top-k": { make: (options: TopKOptions) => new TopKGate(options), topK: (E) => Math.min(2, E) },
  sigmoid: { make: (options: SigmoidOptions) => new SigmoidGate(options), topK: (E) => Math.min(8, E) },
};

export const GATE_NAMES = Object.keys(GATES) as GateName[];

/** @throws ConfigError for an unknown name, or a number of experts a row that the gate does not have */
export function makeGate(config: GateConfig, given: Pick<GateOptions, "hiddenSize" | "numExperts" | "numGroups" | "name" | "seed"> & { topK?: number | undefined }): RouterGate {
  const { type, ...own } = typeof config === "string" ? { type: config } : config;
  const known = Object.hasOwn(GATES, type) ? GATES[type] : undefined;
  if (!known) throw new ConfigError(expectation("gate", `one of ${GATE_NAMES.join(", ")}`, type, didYouMean(String(type), GATE_NAMES)));
  const fixed = known.topK(given.numExperts);
  if (known.fixed && given.topK !== undefined && given.topK !== fixed) {
    throw new ConfigError(expectation(`gate ${type}`, `topK ${fixed}, which this gate always has`, given.topK, "Leave topK out, or take another gate."));
  }
  return known.make({ ...own, ...given, topK: given.topK ?? fixed } as never);
}

/** Whether an object is a gate and no configuration. */
export function isGate(value: GateConfig | Gate | undefined): value is Gate {
  return typeof value === "object" && "forward" in value;
}
