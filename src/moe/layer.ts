/** The sparsely-gated mixture-of-experts layer: y = Σ_i G(x)_i · E_i(x) over the experts the gate picks (Shazeer et al. 2017, eq. 1). */

import { checkInteger, checkOptions } from "../core/checks.js";
import type { Communicator } from "../comm/communicator.js";
import { ConfigError, expectation, TensorError } from "../core/errors.js";
import { Module, type RunContext } from "../nn/module.js";
import { add } from "../tensor/ops/elementwise.js";
import { gatherIndices } from "../tensor/ops/gating.js";
import { combine, dispatch, routeByExpert, type Routing } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import { checkTensor } from "../tensor/shapes.js";
import { tensor, type Tensor } from "../tensor/tensor.js";
import { CAPACITY_OPTIONS, type CapacityOptions } from "./capacity.js";
import { ModuleExperts, type ExpertModule, type Experts } from "./experts.js";
import { FeedForwardExperts, hiddenWidths, type Activation } from "./feed-forward.js";
import type { Gate } from "./gates/gate.js";
import { isGate, LOSSES, makeGate, withOptions, type GateConfig } from "./gates/index.js";
import { HierarchicalGate } from "./gates/hierarchical.js";
import { addLosses, balanceLoss } from "./losses.js";
import { placedOn, placeExperts, RowExchange } from "./exchange.js";
import { RankRows, type Assigned } from "./ranks.js";

/** Experts of an `MoE` layer. */
export interface ExpertOptions {
  /** Hidden width F of the feed-forward experts, or the widths of several hidden layers. Default 2·hiddenSize, as in the paper (512 → 1024 → 512). */
  expertHiddenSize?: number | readonly number[];
  /** Between the layers of an expert: relu (default, the paper's), gelu or swiglu. */
  activation?: Activation;
  /** Biases in the feed-forward experts. Default false, as in the paper. */
  bias?: boolean;
  /** Dropout on the experts' hidden activations. Default 0. */
  expertDropout?: number;
  /** Compute the experts' hidden activations again in the backward pass instead of keeping them (App. D). Default false. */
  recompute?: boolean;
  /**
   * Experts that every row uses, whatever the gate says (DeepSeek): their outputs are added with weight 1. Default 0. They are one network of so many times
   * the hidden width, which is their sum where there is one hidden layer.
   */
  sharedExperts?: number;
  /**
   * One module per expert, or a function making expert i, instead of the built-in feed-forward ones. They map (rows, D) to (rows, D).
   * Name each differently: parameters of one name start with the same random numbers.
   */
  experts?: readonly ExpertModule[] | ((index: number) => ExpertModule);
}

/** Losses and limits that every gate knows; left out, each gate has its own defaults. */
export interface BalanceOptions extends CapacityOptions {
  /** Weight of the importance loss. Noisy top-k: 0.1 (App. C). */
  importanceWeight?: number;
  /** Weight of the load loss, for gates with a smooth load. Noisy top-k: 0.1 (App. C). */
  loadWeight?: number;
  /** Weight of the router z-loss (ST-MoE: 0.001). Default 0. */
  zLossWeight?: number;
}

/** Sizes, gate, balance losses and experts of an `MoE` layer. */
export interface MoEOptions extends ExpertOptions, BalanceOptions {
  /** Width D of input and output. */
  hiddenSize: number;
  /** E */
  numExperts: number;
  /**
   * K, experts a row uses. Default 4 with noisy top-k, the paper's flat layers (App. C), or numExperts when there are fewer; other gates have their own.
   * With 1 the softmax over the kept logit is constant 1: a noisy top-k gate then learns from the balance losses alone (the paper asks for k > 1, section
   * 2.1; the Switch gate is made for one expert a row).
   */
  topK?: number;
  /** Name of a gate, name and options, or a gate. Default noisy-top-k. A gate made elsewhere has its own topK, losses and limits; those of the layer are then refused. */
  gate?: GateConfig | Gate;
  /**
   * Spreads the experts over ranks: each has its share of them, as even as can be, one after the other, and rows travel to them. `forward` is then called by
   * all ranks at once, each with its own rows, and so is `backward`. The gradients of all other parameters are to be added up over ranks.
   */
  comm?: Communicator | undefined;
  /** Path in the model. Layers of one name draw the same noise, and with one seed start with the same parameters: give each its own. Default "moe". */
  name?: string;
  /** An integer: what parameters start with. Noise goes by the seed of `forward`'s context. */
  seed?: number;
}

/** What `MoE.forward` gives: the output, the loss to add, and what the balance statistics are made from. On ranks the output is that of this rank's rows, all else of the whole batch. */
export interface MoEOutput {
  /** (..., D) as the input. */
  output: Tensor;
  /** Scalar: add it to the loss. */
  auxLoss: Tensor;
  /** (E) Σ gate values, and (E) rows per expert (a smooth estimate while training, where the gate has one), before an expert's capacity dropped any. */
  importance: Tensor;
  load: Tensor;
  /** The chosen experts, -1 where dropped, and their weights: (N, K), best first; or (M) in the order of rows, `rowOffsets` (N+1) saying where each begins. */
  experts: Tensor;
  gates: Tensor;
  rowOffsets?: Tensor;
  /** (E+1) int32: expert e got routing.offsets[e+1] − routing.offsets[e] rows. */
  routing: Routing;
  /**
   * Assignments before capacity dropped any, where each row has the same number; less routing.offsets[E] it is how many were dropped. Left out where rows
   * differ (GShard's second expert, gates whose experts pick): the sum of `load`, which is counted then, is the number. In groups that number lacks what rows
   * would have asked of a group whose capacity dropped them, since no secondary gate has seen them.
   */
  requested?: number;
  /** (N, E): the gate's distribution over all experts, where it has one. */
  probabilities?: Tensor;
}

/**
 * A layer of many experts of which each row uses `topK`.
 *
 * ```ts
 * const moe = new MoE({ hiddenSize: 512, numExperts: 16, topK: 4, expertHiddenSize: 1024 });
 * const { output, auxLoss } = moe.forward(randomNormal([4, 1024, 512]));
 * ```
 * Experts without rows cost nothing and get no update. No row is dropped, unless `capacityFactor` is set. A batch without rows gives an empty output and no loss. A row that is
 * not finite gives NaN in its own output and in the losses; other rows' outputs are right. (Where experts pick rows, they pick it last; not picked, it gives zero.)
 */
export class MoE extends Module {
  readonly hiddenSize: number;
  readonly numExperts: number;
  readonly gate: Gate;
  readonly experts: Experts;
  /** The experts that every row uses, as one wide feed-forward network. */
  readonly shared: FeedForwardExperts | undefined;
  readonly #comm: Communicator | undefined;
  /** Rank r has the experts from bounds[r] to bounds[r + 1]. */
  readonly #bounds: readonly number[];

  constructor(options: MoEOptions) {
    super();
    checkOptions("MoE", options, MOE_OPTIONS);
    const { hiddenSize, numExperts, topK, gate = "noisy-top-k", sharedExperts = 0, name = "moe", seed = 0 } = options;
    this.hiddenSize = checkInteger("MoE", "hiddenSize", hiddenSize, { min: 1 });
    this.numExperts = checkInteger("MoE", "numExperts", numExperts, { min: 1 });
    const ofGate = balanceOf(options);
    if (isGate(gate)) {
      const extra = Object.keys({ ...ofGate, ...(topK === undefined ? {} : { topK }) });
      if (extra.length > 0) throw new ConfigError(expectation("MoE", `no ${extra.join(", ")} beside a gate made elsewhere`, gate, "Give them to the gate."));
      this.gate = gate;
    } else this.gate = makeGate({ ...withOptions(gate), ...ofGate } as GateConfig, { hiddenSize, numExperts, topK, name: `${name}.gate`, seed });
    if (this.gate.numExperts !== numExperts) throw new ConfigError(expectation("MoE", `a gate of ${numExperts} experts (numExperts)`, this.gate.numExperts));
    const unused = options.experts && sharedExperts === 0 ? OF_FEED_FORWARD.filter((name) => options[name] !== undefined) : [];
    if (unused.length > 0) throw new ConfigError(expectation("MoE", `no ${unused.join(", ")} beside experts made elsewhere`, options[unused[0]!], "Give them to the experts."));
    const { expertHiddenSize = 2 * hiddenSize, activation = "relu", bias = false, expertDropout = 0, recompute = false } = options;
    const ofExperts = { hiddenSize, activation, bias, expertDropout, recompute, seed };
    this.#comm = options.comm && options.comm.size > 1 ? options.comm : undefined;
    // Each secondary mixture is on one rank (section 3.1).
    this.#bounds = placeExperts(numExperts, this.#comm?.size ?? 1, this.gate instanceof HierarchicalGate ? this.gate.secondary.numExperts : 1);
    const placed = this.#comm && placedOn(this.#bounds, this.#comm.rank);
    this.experts = options.experts
      ? customExperts(options.experts, numExperts, placed)
      : new FeedForwardExperts({ ...ofExperts, numExperts, expertHiddenSize, placed, name: `${name}.experts` });
    checkInteger("MoE", "sharedExperts", sharedExperts, { min: 0 });
    const widths = hiddenWidths(expertHiddenSize);
    if (sharedExperts > 0) this.shared = new FeedForwardExperts({ ...ofExperts, numExperts: 1, expertHiddenSize: widths.map((width) => width * sharedExperts), name: `${name}.shared` });
  }

  /**
   * @param x (..., D): all leading axes are rows, so the time steps of a sequence form one big batch (section 2)
   * @param context training or not, and what noise depends on; by default the module's own mode and a new step each call
   * @throws TensorError when the width of x is not `hiddenSize`
   */
  forward(x: Tensor, context: RunContext = this.ownContext()): MoEOutput {
    checkTensor("MoE.forward", x);
    if (x.rank < 1 || x.shape.at(-1) !== this.hiddenSize) {
      throw new TensorError(`MoE.forward: expected x of width ${this.hiddenSize} (hiddenSize), got ${x.shape.at(-1) ?? "a scalar"}. Did the embedding size change?`);
    }
    for (const name of ["seed", "step", "firstRow"] as const) checkInteger("MoE.forward", `context.${name}`, context[name]);
    const x_ND = x.rank === 2 ? x : reshape(x, [-1, this.hiddenSize]);
    const ranks = this.#comm && new RankRows(this.#comm, x_ND.shape[0]!, x_ND, context.rowIds);
    const gated = this.gate.forward(x_ND, ranks ? { ...context, ranks } : context);
    const { experts, gates, rows, rowOffsets, importance, load, requested, probabilities } = gated;
    const routing = routeByExpert(gated, this.numExperts);
    let y_ND = ranks ? this.#acrossRanks(x_ND, gated, ranks, context) : this.#byExperts(x_ND, gated, routing, context);
    if (this.shared) y_ND = add(y_ND, this.#sharedOutput(x_ND, context, ranks?.own));
    return {
      output: x.rank === 2 ? y_ND : reshape(y_ND, x.shape),
      auxLoss: addLosses(gated.loss, balanceLoss(importance, gated.smoothLoad ? load : undefined, this.gate)),
      importance,
      load,
      experts,
      gates,
      ...(rows && rowOffsets ? { rowOffsets } : {}),
      routing,
      ...(requested === undefined ? {} : { requested }),
      ...(probabilities ? { probabilities } : {}),
    };
  }

  #byExperts(x_ND: Tensor, { gates }: Assigned, routing: Routing, context: RunContext): Tensor {
    const rowIds = (): Tensor => (context.rowIds ? gatherIndices(context.rowIds, routing.rows) : routing.rows);
    return combine(this.experts.forward(dispatch(x_ND, routing), routing.offsets, context, rowIds), gates, routing);
  }

  /** This rank's rows go to the ranks of their experts and come back, while those of others come here. */
  #acrossRanks(x_ND: Tensor, gated: Assigned, ranks: RankRows, context: RunContext): Tensor {
    const { experts, gates, ...list } = ranks.take(gated);
    const routing = routeByExpert({ experts, ...list }, this.numExperts);
    const exchange = new RowExchange(this.#comm!, this.#bounds, routing);
    // As on one rank: by the row among those of all.
    const rowIds = (): Tensor => exchange.numbersToExperts(gatherIndices(ranks.own, routing.rows));
    const here = exchange.toExperts(dispatch(x_ND, routing));
    const computed = this.experts.forward(here, exchange.offsets, context, rowIds);
    return combine(exchange.fromExperts(computed, routing.rows.size, this.experts instanceof FeedForwardExperts ? undefined : here), gates, routing);
  }

  #sharedOutput(x_ND: Tensor, context: RunContext, rowIds: Tensor | undefined): Tensor {
    const rows = x_ND.shape[0]!;
    const offsets = tensor([0, rows], [2], "int32", x_ND.backend);
    return this.shared!.forward(x_ND, offsets, context, () => rowIds ?? context.rowIds ?? tensor(Int32Array.from({ length: rows }, (_, i) => i), [rows], "int32", x_ND.backend));
  }
}

/** Options of the built-in experts, which those made elsewhere do without. */
const OF_FEED_FORWARD = ["expertHiddenSize", "activation", "bias", "expertDropout", "recompute"] as const;
/** Options of a layer, flat or hierarchical, that are not those of its gates. */
export const OF_EXPERTS = [...OF_FEED_FORWARD, "sharedExperts", "experts"] as const satisfies readonly (keyof ExpertOptions)[];
const OF_BALANCE = [...LOSSES, ...CAPACITY_OPTIONS] as const satisfies readonly (keyof BalanceOptions)[];
const MOE_OPTIONS = ["hiddenSize", "numExperts", "topK", "gate", "comm", "name", "seed", ...OF_EXPERTS, ...OF_BALANCE] as const satisfies readonly (keyof MoEOptions)[];

/** The options of balance and capacity that are set. */
function balanceOf(options: BalanceOptions): BalanceOptions {
  return Object.fromEntries(OF_BALANCE.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]));
}

function customExperts(given: NonNullable<MoEOptions["experts"]>, numExperts: number, placed: { first: number; count: number } | undefined): Experts {
  const { first, count } = placed ?? { first: 0, count: numExperts };
  const here = (i: number): boolean => i >= first && i < first + count;
  if (typeof given !== "function" && !Array.isArray(given)) throw new ConfigError(expectation("MoE", "experts to be an array of modules, or a function that makes expert i", given));
  const modules = typeof given === "function" ? Array.from({ length: numExperts }, (_, i) => (here(i) ? given(i) : undefined)) : given.map((one, i) => (here(i) ? one : undefined));
  if (modules.length !== numExperts) throw new ConfigError(`MoE: expected ${numExperts} experts (numExperts), got ${modules.length}.`);
  const wrong = modules.findIndex((one, i) => here(i) && typeof one?.forward !== "function");
  if (wrong >= 0) throw new ConfigError(expectation("MoE", `expert ${wrong} to be a module with a method forward(x)`, modules[wrong]));
  return new ModuleExperts(modules, first);
}
