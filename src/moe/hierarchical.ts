/** The hierarchical mixture of experts: groups of experts, a gate over the groups and one in each (Shazeer et al. 2017, section 3.3 and App. B). */

import { checkInteger, checkOptions } from "../core/checks.js";
import { ConfigError, expectation } from "../core/errors.js";
import { CAPACITY_OPTIONS, type CapacityOptions } from "./capacity.js";
import { placedOn, placeExperts } from "./exchange.js";
import { HierarchicalGate } from "./gates/hierarchical.js";
import { gateTopK, LOSSES, makeGate, withOptions, type GateConfig } from "./gates/index.js";
import { MoE, OF_EXPERTS, type BalanceOptions, type ExpertOptions, type MoEOptions } from "./layer.js";

/** Sizes, gates and experts of a `HierarchicalMoE`. */
export interface HierarchicalMoEOptions extends ExpertOptions, Omit<BalanceOptions, "capacityFactor" | "evalCapacityFactor" | "dropPolicy"> {
  /** Width D of input and output. */
  hiddenSize: number;
  /** Groups, and experts of each group; their product is E. */
  numExperts: readonly [groups: number, perGroup: number];
  /** [groups a row goes to, experts it uses in each]. Default: what the gates take, at most 2 at each level as in the paper. */
  topK?: readonly [groups: number, perGroup: number];
  /** Gate over the groups: a name, or a name with options (capacity among them). Default noisy-top-k. */
  gate?: GateConfig;
  /** Gates inside the groups. Default: as `gate`. Losses on importance and load are over all experts: weights of these belong to the layer, and to `gate`. */
  secondaryGate?: GateConfig;
  /** Spreads the groups over ranks, each with its gate and its experts on one; otherwise as that of `MoE`. */
  comm?: MoEOptions["comm"];
  /** Path in the model. Layers of one name draw the same noise, and with one seed start with the same parameters: give each its own. Default "moe". */
  name?: string;
  /** An integer: what parameters start with. Noise goes by the seed of `forward`'s context. */
  seed?: number;
}

const OPTIONS = ["hiddenSize", "numExperts", "topK", "gate", "secondaryGate", ...LOSSES, "comm", "name", "seed", ...OF_EXPERTS] as const satisfies readonly (keyof HierarchicalMoEOptions)[];

/** Two experts a level, where the gate lets one choose. */
const TOP_K = 2;

/**
 * Groups of experts of which each row uses a few, and in each of these a few experts.
 *
 * ```ts
 * const moe = new HierarchicalMoE({ hiddenSize: 512, numExperts: [4, 4] }); // 4 groups of 4 experts
 * const { output, auxLoss } = moe.forward(randomNormal([4, 1024, 512]));
 * ```
 * Gates cost D·(groups + topK·perGroup) a row instead of D·E; experts run as one grouped product, as in the flat layer.
 */
export class HierarchicalMoE extends MoE {
  /** @throws ConfigError for an option that it does not know, and sizes or gates that do not fit together */
  constructor(options: HierarchicalMoEOptions) {
    const where = "HierarchicalMoE";
    const given = options as object as CapacityOptions | undefined;
    const limits = CAPACITY_OPTIONS.filter((name) => given?.[name] !== undefined);
    if (limits.length > 0) throw new ConfigError(expectation(where, `no ${limits.join(", ")} beside its gates`, given![limits[0]!], 'Give them to one, as in secondaryGate: { type: "switch", capacityFactor: 1.25 }.'));
    checkOptions(where, options, OPTIONS);
    const { numExperts, topK, gate = "noisy-top-k", secondaryGate = gate, importanceWeight, loadWeight, zLossWeight, ...rest } = options;
    if (!Array.isArray(numExperts) || numExperts.length !== 2) throw new ConfigError(expectation(where, "numExperts [groups, experts of each group]", numExperts));
    const [groups, perGroup] = numExperts;
    checkInteger(where, "numExperts[0] (groups)", groups, { min: 1 });
    checkInteger(where, "numExperts[1] (experts of each group)", perGroup, { min: 1 });
    if (topK !== undefined && (!Array.isArray(topK) || topK.length !== 2)) throw new ConfigError(expectation(where, "topK [groups a row goes to, experts it uses in each]", topK));
    const { hiddenSize, comm, name = "moe", seed = 0 } = rest;
    const placed = comm && comm.size > 1 ? placedOn(placeExperts(groups, comm.size), comm.rank) : undefined;
    const z = zLossWeight === undefined ? {} : { zLossWeight };
    const level = (config: GateConfig, numExperts: number, k: number | undefined, numGroups?: number) => {
      const named = withOptions(config);
      const chosen = k ?? (gateTopK(named.type, numExperts).fixed ? undefined : Math.min(TOP_K, numExperts));
      return makeGate({ ...named, ...z } as GateConfig, { hiddenSize, numExperts, numGroups, placed: numGroups === undefined ? undefined : placed, topK: chosen, name: `${name}.gate.${numGroups === undefined ? "primary" : "secondary"}`, seed });
    };
    super({
      ...rest,
      numExperts: groups * perGroup,
      gate: new HierarchicalGate({
        primary: level(gate, groups, topK?.[0]),
        secondary: level(secondaryGate, perGroup, topK?.[1], groups),
        ...(importanceWeight === undefined ? {} : { importanceWeight }),
        ...(loadWeight === undefined ? {} : { loadWeight }),
      }),
    });
  }
}
