/** What every gate gives: the experts of each row, their weights, and the losses that keep experts in balance. */

import { checkInteger, checkNumber } from "../../core/checks.js";
import { ConfigError, expectation, TensorError } from "../../core/errors.js";
import { Module, parameter, type Init, type RunContext } from "../../nn/module.js";
import { affine } from "../../tensor/ops/elementwise.js";
import type { Groups } from "../../tensor/ops/gating.js";
import { groupedMatmul, matmul } from "../../tensor/ops/products.js";
import { bincount, type Assignments } from "../../tensor/ops/rows.js";
import { slice } from "../../tensor/ops/shape.js";
import { full, type Tensor } from "../../tensor/tensor.js";
import { limitToCapacity, type CapacityOptions } from "../capacity.js";
import { addLosses, zLoss } from "../losses.js";
import type { GroupPlaces } from "../group-places.js";
import type { RankRows } from "../ranks.js";

/** What a gate decides about rows, before losses of balance and limits of capacity. */
export interface Choice extends Assignments {
  /** As `experts`: weights of the chosen experts. Those of an unused tail of a list are never read. */
  gates: Tensor;
  /** (E), or (G·E) for rows in groups: the smooth estimate of the rows per expert, where the gate has one (App. A). */
  load?: Tensor;
  /** Whether a row may use fewer than K experts by the gate's own choice, as GShard's second one: those left out are -1. */
  varies?: boolean;
  /** Scalar: weighted losses of the gate's own, such as Switch's; those on importance and load are added by who calls. */
  loss?: Tensor;
  /** (N, E): the distribution over all experts that the choice was made from, where the gate has one; for statistics. */
  probabilities?: Tensor;
}

/** What a layer needs. Assignments are (N, K), best first, or a list in the order of rows (`rows`, `rowOffsets`). */
export interface GateOutput extends Choice {
  /** (E) Σ over rows of the gate values (Shazeer et al. 2017, eq. 6), before anything is dropped. */
  importance: Tensor;
  /** (E) rows per expert: the smooth estimate while training, where the gate has one (`smoothLoad`); else those counted, before anything is dropped. */
  load: Tensor;
  smoothLoad: boolean;
  /** Assignments before capacity dropped any, where each row has the same number; elsewhere the load is counted, and its sum is their number. */
  requested?: number;
}

/** Rows that a primary gate dealt to groups, as a secondary gate sees them. */
export interface GroupedRows extends Groups {
  /** int32 (N): the group of each row, -1 for none. */
  groupOf: Tensor;
  /** int32 (N): a number of each pair of row and group, row·G + group: what the row's noise depends on. */
  rowIds: Tensor;
  /** On ranks: where the gates of the groups are, and the rows with them. */
  places?: GroupPlaces;
}

/** What a gate is called with: on ranks, also how its rows are spread over them. */
export interface GateContext extends RunContext {
  ranks?: RankRows;
}

/** A gate of a layer. */
export interface Gate extends Module {
  readonly numExperts: number;
  /** w_importance and w_load: weights of the losses CV(Importance)² and CV(Load)² (Shazeer et al. 2017, section 4). */
  readonly importanceWeight: number;
  readonly loadWeight: number;
  /** Experts, weights and losses for the rows of a layer. @param x (N, D); on ranks those of this one, and what is returned is that of the rows of all */
  forward(x: Tensor, context: GateContext): GateOutput;
}

/** What every gate takes. */
export interface GateOptions extends CapacityOptions {
  /** Width D of the rows. */
  hiddenSize: number;
  /** E, in each group. */
  numExperts: number;
  /** w_importance. */
  importanceWeight?: number;
  /** w_load. */
  loadWeight?: number;
  /** Weight of the router z-loss, mean(logsumexp(logits)²) (ST-MoE, Zoph et al. 2022: 0.001). Default 0. */
  zLossWeight?: number;
  /** Path in the model: names the random streams of parameters and noise. Gates of one name draw the same noise, and with one seed start alike. */
  name?: string;
  seed?: number;
  /** How W_g starts. */
  init?: Init;
  /** Makes the gate a secondary one: each of so many groups has weights of its own. */
  numGroups?: number | undefined;
  /** Of a secondary gate: W_g and its like for so many of the groups alone, from `first` on. The others are on other ranks. Default: all. */
  placed?: { first: number; count: number } | undefined;
}

/** A gate whose decision rests on logits x·W_g: all of them, so far. */
export abstract class RouterGate extends Module implements Gate {
  readonly numExperts: number;
  readonly importanceWeight: number;
  readonly loadWeight: number;
  readonly zLossWeight: number;
  readonly capacity: CapacityOptions;
  readonly numGroups: number | undefined;
  /** W_g (D, E), or (G, D, E) for the groups that are here */
  readonly weight: Tensor;

  constructor(where: string, options: GateOptions, defaults: { name: string; init: Init; importanceWeight: number; loadWeight: number }) {
    super();
    const { hiddenSize, numExperts, numGroups, name = defaults.name, seed = 0, init = defaults.init } = options;
    checkInteger(where, "hiddenSize", hiddenSize, { min: 1 });
    this.numExperts = checkInteger(where, "numExperts", numExperts, { min: 1 });
    this.numGroups = numGroups === undefined ? undefined : checkInteger(where, "numGroups", numGroups, { min: 1 });
    this.importanceWeight = checkNumber(where, "importanceWeight", options.importanceWeight ?? defaults.importanceWeight, { min: 0 });
    this.loadWeight = checkNumber(where, "loadWeight", options.loadWeight ?? defaults.loadWeight, { min: 0 });
    this.zLossWeight = checkNumber(where, "zLossWeight", options.zLossWeight ?? 0, { min: 0 });
    this.capacity = checkCapacity(where, options);
    this.weight = this.matrix(`${name}.weight`, options, init, seed);
  }

  /** A parameter (D, E), or one such matrix a group. */
  protected matrix(name: string, { hiddenSize, numExperts, numGroups, placed }: GateOptions, init: Init, seed: number): Tensor {
    if (numGroups === undefined) return parameter(name, [hiddenSize, numExperts], init, seed);
    const shard = placed && { first: placed.first, total: numGroups };
    return parameter(name, [placed?.count ?? numGroups, hiddenSize, numExperts], init, seed, shard);
  }

  /**
   * x·W, with each group's own W for the rows of a group: (N, E). On ranks the rows of all, computed each where it is, or where its group is.
   */
  protected project(x: Tensor, weight: Tensor, { ranks }: GateContext, groups: GroupedRows | undefined): Tensor {
    if (groups?.count !== this.numGroups) {
      throw new TensorError(expectation(`${this.constructor.name}.route`, `rows in ${this.numGroups ?? "no"} groups (numGroups)`, groups?.count ?? "none"));
    }
    const places = groups?.places;
    if (places) {
      // A gate made elsewhere has the matrices of all groups.
      const here = weight.shard ? weight : slice(weight, 0, places.first, places.first + places.count);
      return places.gather(groupedMatmul(x, here, places.offsets));
    }
    if (groups) return groupedMatmul(x, weight, groups.offsets);
    const logits = matmul(x, weight);
    return ranks ? ranks.gather(logits) : logits;
  }

  /** Experts and weights of each row from its logits (N, E). */
  protected abstract choose(logits: Tensor, x: Tensor, context: GateContext, groups: GroupedRows | undefined): Choice;

  /** What the router multiplies by W_g; Switch shakes it. */
  protected routerInput(x: Tensor, _context: GateContext, _groups: GroupedRows | undefined): Tensor {
    return x;
  }

  /** The gate's choice with its own losses. @param groups of a secondary gate (`numGroups`): experts are numbered within each group; on ranks, x has the rows of the groups here (`GroupPlaces`) */
  route(x: Tensor, context: GateContext, groups?: GroupedRows): Choice {
    const logits = this.project(this.routerInput(x, context, groups), this.weight, context, groups);
    const choice = this.choose(logits, x, context, groups);
    if (this.zLossWeight === 0) return choice;
    return { ...choice, loss: addLosses(choice.loss, affine(zLoss(logits, groups), this.zLossWeight)) };
  }

  /** Experts, weights and losses for the rows of a layer. @param x (N, D) */
  forward(x: Tensor, context: GateContext): GateOutput {
    const choice = this.route(x, context);
    const { experts, gates } = choice;
    return {
      ...choice,
      ...measure(choice, this.numExperts),
      experts: limitToCapacity(experts, gates, this.numExperts, this.capacity, context.training),
    };
  }
}

/** Experts that each row asks for, where that is the same for all. */
export const perRow = ({ experts, varies }: Choice): number | undefined => (experts.rank === 2 && !varies ? experts.shape[1]! : undefined);

/** Importance and load of a choice. */
export function measure(choice: Choice, numExperts: number): Pick<GateOutput, "importance" | "load" | "smoothLoad" | "requested"> {
  const { experts, gates, load } = choice;
  const counted = (): Tensor => bincount(full(gates.shape, 1, "float32", gates.backend), experts, numExperts);
  return { importance: bincount(gates, experts, numExperts), load: load ?? counted(), smoothLoad: load !== undefined, ...(perRow(choice) === undefined ? {} : { requested: experts.size }) };
}

function checkCapacity(where: string, { capacityFactor, evalCapacityFactor, dropPolicy }: CapacityOptions): CapacityOptions {
  for (const [name, value] of Object.entries({ capacityFactor, evalCapacityFactor })) {
    if (value !== undefined && !(Number.isFinite(value) && value > 0)) throw new ConfigError(expectation(where, `${name} above 0 (rows an expert takes at most, over its equal share)`, value, "Leave it out to drop nothing."));
  }
  if (dropPolicy !== undefined && dropPolicy !== "arrival" && dropPolicy !== "probability") throw new ConfigError(expectation(where, "dropPolicy arrival or probability", dropPolicy));
  return {
    ...(capacityFactor === undefined ? {} : { capacityFactor }),
    ...(evalCapacityFactor === undefined ? {} : { evalCapacityFactor }),
    ...(dropPolicy === undefined ? {} : { dropPolicy }),
  };
}
