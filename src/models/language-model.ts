/**
 * The paper's language model (Shazeer et al. 2017, Figure 1 and App. C): embedding → LSTM → MoE → LSTM → softmax. With the MoE replaced it is one
 * of the dense baselines of equal computation.
 */

import type { Communicator } from "../comm/communicator.js";
import { checkInteger, checkNumber, checkOneOf } from "../core/checks.js";
import { ConfigError, type NonFiniteError, expectation } from "../core/errors.js";
import type { GateConfig } from "../moe/gates/index.js";
import { HierarchicalMoE } from "../moe/hierarchical.js";
import { MoE, type BalanceOptions, type ExpertOptions, type MoEOutput } from "../moe/layer.js";
import { Dropout, Embedding, Linear, Lstm } from "../nn/layers.js";
import { Module, fanInUniform, parameter, type Init, type RunContext } from "../nn/module.js";
import { add, relu, sigmoid } from "../tensor/ops/elementwise.js";
import { linearCrossEntropy, sampledCrossEntropy, type Candidates } from "../tensor/ops/losses.js";
import type { LstmState } from "../tensor/ops/lstm.js";
import { reshape } from "../tensor/ops/shape.js";
import type { Tensor } from "../tensor/tensor.js";
import { explainNonFinite, type LayerWatch } from "./non-finite.js";

/**
 * A mixture of experts between the LSTM layers: the options of `MoE`, or of `HierarchicalMoE` where `numExperts` has two levels. A capacity is that of
 * experts, at the second level then.
 */
export interface MoeMiddle extends Omit<ExpertOptions, "experts">, BalanceOptions {
  kind: "moe";
  /** E, or [groups, experts of each group]. */
  numExperts: number | readonly [groups: number, perGroup: number];
  /** K, or [groups a row goes to, experts it uses in each]. Default: the gate's. */
  topK?: number | readonly [groups: number, perGroup: number];
  /** Default noisy-top-k. */
  gate?: GateConfig;
  /** Inside the groups of a hierarchical mixture. Default: as `gate`. */
  secondaryGate?: GateConfig;
}

/** What stands between the two LSTM layers. */
export type MiddleConfig =
  | MoeMiddle
  /** One feed-forward network that every token uses: MoE-1-Wide has one hidden layer, MoE-1-Deep four. */
  | { kind: "dense"; hiddenSizes: readonly number[] }
  /** Further LSTM layers: 4xLSTM has two. */
  | { kind: "lstm"; layers: number }
  | { kind: "none" }
  /** Nothing, nor the second LSTM layer: LSTM-2048-512 and its like. */
  | { kind: "single" };

const MIDDLES = ["moe", "dense", "lstm", "none", "single"] as const satisfies readonly MiddleConfig["kind"][];

/** LSTM layers of a model with this middle. */
export function lstmLayers(middle: MiddleConfig): number {
  if (middle.kind === "single") return 1;
  return 2 + (middle.kind === "lstm" ? middle.layers : 0);
}

/** Sizes and regularisation of a `LanguageModel`. */
export interface LanguageModelConfig {
  vocabSize: number;
  /** Width of every layer's input and output. */
  hiddenSize: number;
  /** Units of an LSTM layer; with more than hiddenSize they are projected back (LSTM-2048-512). */
  lstmSize: number;
  /** Project even as many units as hiddenSize (LSTM-512-512). Default: where lstmSize is not hiddenSize. */
  projection?: boolean | undefined;
  middle: MiddleConfig;
  /** On the output of embedding, LSTM and MoE. */
  dropout: number;
  /** Sigmoid on the MoE's output (App. C). */
  sigmoid: boolean;
  /** Add each layer's input to its output. */
  residual: boolean;
  /** Every weight starts uniform in [−initScale, initScale] (Zaremba et al. 2014) instead of by fan-in. */
  initScale?: number | undefined;
  seed: number;
}

/** Whether the LSTM layers have a projection. @throws ConfigError for units that fit no layer without one */
export function isProjected({ hiddenSize, lstmSize, projection = lstmSize !== hiddenSize }: Pick<LanguageModelConfig, "hiddenSize" | "lstmSize" | "projection">): boolean {
  if (projection || lstmSize === hiddenSize) return projection;
  throw new ConfigError(expectation("LanguageModel", `a projection of ${lstmSize} units (lstmSize) to ${hiddenSize} (hiddenSize)`, "projection false"));
}

/** What `LanguageModel.forward` gives. */
export interface LanguageModelOutput {
  /** Mean cross-entropy over the targets that count, in nats. */
  loss: Tensor;
  /** Balance losses of the MoE, if there is one. */
  auxLoss?: Tensor;
  moe?: MoEOutput;
  /** To be passed to the next batch of the same text. */
  states: LstmState[];
}

/** A feed-forward network of one or more hidden ReLU layers: the single expert of MoE-1-Wide and MoE-1-Deep. */
export class FeedForward extends Module {
  readonly layers: readonly Linear[];

  constructor({ hiddenSize, hiddenSizes, name, seed }: { hiddenSize: number; hiddenSizes: readonly number[]; name: string; seed: number }) {
    super();
    if (hiddenSizes.length === 0) throw new ConfigError(expectation(name, "hiddenSizes of at least one layer", hiddenSizes));
    const widths = [hiddenSize, ...hiddenSizes, hiddenSize];
    this.layers = widths.slice(1).map((outputSize, i) => {
      const inputSize = widths[i]!;
      // He et al. 2015 before a ReLU, LeCun at the output.
      const init: Init = i < hiddenSizes.length ? { kind: "uniform", bound: Math.sqrt(6 / inputSize) } : fanInUniform(inputSize);
      return new Linear({ name: `${name}.${i}`, seed, inputSize, outputSize, bias: false, init });
    });
  }

  /** Layer after layer, ReLU between them. @param x (..., hiddenSize) @returns as x */
  forward(x: Tensor): Tensor {
    return this.layers.reduce((h, layer, i) => layer.forward(i === 0 ? h : relu(h)), x);
  }
}

/** The layer of a mixture's options. @param where at the head of messages @throws ConfigError for levels that do not fit together */
export function makeMoE({ kind: _, numExperts, topK, secondaryGate, ...rest }: MoeMiddle, hiddenSize: number, seed: number, { name = "moe", where = "LanguageModel", comm }: { name?: string; where?: string; comm?: Communicator | undefined } = {}): MoE {
  const common = { hiddenSize, name, seed, comm };
  if (typeof numExperts === "number" && (topK === undefined || typeof topK === "number")) {
    if (secondaryGate !== undefined) throw new ConfigError(expectation(where, "a secondaryGate only where numExperts is [groups, experts of each group]", numExperts));
    return new MoE({ ...rest, ...common, numExperts, ...(topK === undefined ? {} : { topK }) });
  }
  if (typeof numExperts === "number" || typeof topK === "number") {
    throw new ConfigError(expectation(where, "numExperts and topK of as many levels", [numExperts, topK]));
  }
  const { capacityFactor, evalCapacityFactor, dropPolicy, gate = "noisy-top-k", ...others } = rest;
  // Capacities are options of a gate there: these are of the gate that chooses experts.
  const capacity = Object.fromEntries(Object.entries({ capacityFactor, evalCapacityFactor, dropPolicy }).filter(([, value]) => value !== undefined));
  const inner = secondaryGate ?? gate;
  const secondary = { ...(typeof inner === "string" ? { type: inner } : inner), ...capacity } as GateConfig;
  return new HierarchicalMoE({ ...others, ...common, numExperts, gate, secondaryGate: secondary, ...(topK === undefined ? {} : { topK }) });
}

/** Embedding → LSTM → MoE (or what stands in its place) → LSTM → softmax, over sequences (time, batch). */
export class LanguageModel extends Module {
  readonly config: LanguageModelConfig;
  readonly embedding: Embedding;
  readonly lstm: readonly Lstm[];
  readonly moe: MoE | undefined;
  readonly dense: FeedForward | undefined;
  /** (V, D) and (V) */
  readonly softmaxWeight: Tensor;
  readonly softmaxBias: Tensor;
  readonly #dropouts: readonly Dropout[];

  /** @param comm spreads the experts over its ranks, see `MoEOptions.comm`; contexts then have `rowIds` */
  constructor(config: LanguageModelConfig, comm?: Communicator) {
    super();
    this.config = config;
    const { vocabSize, hiddenSize, lstmSize, middle, dropout, initScale, seed } = config;
    checkInteger("LanguageModel", "vocabSize", vocabSize, { min: 2 });
    checkInteger("LanguageModel", "hiddenSize", hiddenSize, { min: 1 });
    checkInteger("LanguageModel", "lstmSize", lstmSize, { min: 1 });
    checkNumber("LanguageModel", "dropout", dropout, { min: 0, max: 0.99 });
    if (initScale !== undefined) checkNumber("LanguageModel", "initScale", initScale, { min: 0 });
    // Anything else would be a model without a middle.
    checkOneOf("LanguageModel", "middle.kind", (middle as MiddleConfig | undefined)?.kind, MIDDLES);
    if (middle.kind === "lstm") checkInteger("LanguageModel", "middle.layers", middle.layers, { min: 1 });
    const init = initScale === undefined ? undefined : ({ kind: "uniform", bound: initScale } as const);
    const withInit = init ? { init } : {};
    this.embedding = new Embedding({ name: "embedding", seed, vocabSize, hiddenSize, ...withInit });
    const projectionSize = isProjected(config) ? hiddenSize : undefined;
    this.lstm = Array.from({ length: lstmLayers(middle) }, (_, i) => new Lstm({ name: `lstm.${i}`, seed, inputSize: hiddenSize, hiddenSize: lstmSize, projectionSize, ...withInit }));
    if (middle.kind === "moe") this.moe = makeMoE(middle, hiddenSize, seed, { comm });
    if (middle.kind === "dense") this.dense = new FeedForward({ hiddenSize, hiddenSizes: middle.hiddenSizes, name: "dense", seed });
    this.softmaxWeight = parameter("softmaxWeight", [vocabSize, hiddenSize], init ?? { kind: "normal", std: 1 / Math.sqrt(hiddenSize) }, seed);
    this.softmaxBias = parameter("softmaxBias", [vocabSize], init ?? { kind: "zeros" }, seed);
    this.#dropouts = ["embedding", ...this.lstm.map((_, i) => `lstm.${i}`), "middle"].map((name) => new Dropout(dropout, name));
  }

  /**
   * The vectors that the softmax sees.
   * @param inputs int32 (T, B), time first; @param resets int32 (T, B), 1 where a new text begins; @param states from the batch before
   * @param watch sees what each layer gives, by the layer's name, in the order of computation
   */
  hidden(
    inputs: Tensor,
    context: RunContext,
    states?: readonly LstmState[],
    resets?: Tensor,
    watch: LayerWatch = () => {},
  ): { output: Tensor; states: LstmState[]; moe?: MoEOutput } {
    const drop = (x: Tensor, i: number): Tensor => this.#dropouts[i]!.forward(x, context);
    const next: LstmState[] = [];
    let moe: MoEOutput | undefined;
    let x = drop(this.embedding.forward(inputs), 0);
    watch("embedding", x);
    for (const [i, layer] of this.lstm.entries()) {
      const { output, state } = layer.forward(x, states?.[i], resets);
      next.push(state);
      x = this.#residual(drop(output, 1 + i), x);
      watch(`lstm.${i}`, x, state.c);
      if (i > 0 || (!this.moe && !this.dense)) continue;
      let y: Tensor;
      if (this.moe) {
        moe = this.moe.forward(x, context);
        y = moe.output;
        watch("moe.gate", moe.gates, moe.importance, moe.load, moe.auxLoss);
        watch("moe.experts", y);
      } else {
        y = this.dense!.forward(x);
        watch("dense", y);
      }
      if (this.config.sigmoid) y = sigmoid(y);
      x = this.#residual(drop(y, this.#dropouts.length - 1), x);
    }
    return { output: x, states: next, ...(moe ? { moe } : {}) };
  }

  #residual(y: Tensor, x: Tensor): Tensor {
    return this.config.residual ? add(y, x) : y;
  }

  /**
   * Mean cross-entropy of predicting `targets` (T, B; -1 is left out).
   * @param candidates classes of a sampled softmax; the exact softmax over the vocabulary when left out (always so in evaluation)
   */
  forward(
    { inputs, targets, resets }: { inputs: Tensor; targets: Tensor; resets?: Tensor },
    context: RunContext = this.ownContext(),
    states?: readonly LstmState[],
    candidates?: Candidates,
  ): LanguageModelOutput {
    const { output, states: next, moe } = this.hidden(inputs, context, states, resets);
    const rows = reshape(output, [-1, this.config.hiddenSize]);
    const loss = candidates
      ? sampledCrossEntropy(rows, this.softmaxWeight, this.softmaxBias, targets, candidates)
      : linearCrossEntropy(rows, this.softmaxWeight, this.softmaxBias, targets);
    return { loss, states: next, ...(moe ? { auxLoss: moe.auxLoss, moe } : {}) };
  }

  /**
   * The error for a loss that is not finite, naming what is the first not to be: a parameter, or else the output of a layer (embedding, lstm.0, moe.gate,
   * moe.experts, dense, lstm.1, softmax). It runs the model once more on the same inputs, so that a finite loss pays nothing for it.
   * @param where what was being done, at the head of the message; @param loss what came out
   */
  explainNonFinite(where: string, loss: number, { inputs, resets }: { inputs: Tensor; resets?: Tensor }, context: RunContext, states?: readonly LstmState[]): NonFiniteError {
    return explainNonFinite(this, where, loss, (watch) => void this.hidden(inputs, context, states, resets, watch));
  }
}
