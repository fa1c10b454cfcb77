/** Feed-forward experts, all at once as grouped products: the experts of the paper (App. C, E), and the variants that later systems use. */

import { checkInteger, checkNumber, checkOneOf } from "../core/checks.js";
import { ConfigError, expectation } from "../core/errors.js";
import { streamId } from "../core/random.js";
import { Module, parameter, type RunContext } from "../nn/module.js";
import { gelu, mul, relu, silu } from "../tensor/ops/elementwise.js";
import { groupedBias, groupedFeedForward, groupedMatmul } from "../tensor/ops/products.js";
import { dropoutRows } from "../tensor/ops/random.js";
import { recompute } from "../tensor/tape.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Experts } from "./experts.js";

/** Between the layers of an expert. swiglu: silu(x·W)·(x·V), with a second input matrix V (Shazeer 2020). */
export type Activation = "relu" | "gelu" | "swiglu";

/** Sizes and variants of `FeedForwardExperts`. */
export interface FeedForwardOptions {
  numExperts: number;
  hiddenSize: number;
  /** F, or the widths of several hidden layers. */
  expertHiddenSize: number | readonly number[];
  /** Default relu, as in the paper. */
  activation?: Activation;
  /** Biases are off by default: the paper's 1M-parameter expert (512 × 1024 × 2) has none (App. C). */
  bias?: boolean;
  /** Dropout on the hidden activations, larger than elsewhere in Switch (0.4; Fedus et al. 2021, section 2.4). Default 0. */
  expertDropout?: number;
  /** Keep no hidden activations: compute them again in the backward pass (App. D). The gradients are the same. Default false. */
  recompute?: boolean;
  /** Only so many of the experts, from `first` on: the others are on other ranks. Default: all. */
  placed?: { first: number; count: number } | undefined;
  name?: string;
  seed?: number;
}

/** The widths of the hidden layers, one or several; what is no list is a width, right or wrong. */
export const hiddenWidths = (given: number | readonly number[]): readonly number[] => (Array.isArray(given) ? (given as readonly number[]) : [given as number]);

/** One layer of every expert. */
interface Layer {
  /** (E, in, out) */
  weight: Tensor;
  /** (E, out) */
  bias: Tensor | undefined;
  /** (E, in, out) of swiglu: what the activated values are multiplied by. */
  gateWeight: Tensor | undefined;
}

/** E_i(x) = activation(x·W1_i)·W2_i for all experts at once, one product per expert that has rows. Where experts are on other ranks, E of the weights is the number of those here. */
export class FeedForwardExperts extends Module implements Experts {
  readonly numExperts: number;
  readonly activation: Activation;
  readonly expertDropout: number;
  readonly recompute: boolean;
  /** (E, D, F) */
  readonly inputWeight: Tensor;
  /** (E, F, D) */
  readonly outputWeight: Tensor;
  /** (E, F) */
  readonly inputBias: Tensor | undefined;
  /** (E, D) */
  readonly outputBias: Tensor | undefined;
  /** Of swiglu: (E, D, F) */
  readonly gateWeight: Tensor | undefined;
  /** Of further hidden layers, in order: (E, F, F'), (E, F'). */
  readonly hiddenWeights: readonly Tensor[];
  readonly hiddenBiases: readonly Tensor[];
  readonly hiddenGateWeights: readonly Tensor[];
  readonly #stream: number;
  /** The first of the experts that are here. */
  readonly #first: number;

  constructor(options: FeedForwardOptions) {
    super();
    const where = "FeedForwardExperts";
    const { numExperts: E, hiddenSize: D, expertHiddenSize, activation = "relu", bias = false, name = "experts", seed = 0 } = options;
    this.numExperts = checkInteger(where, "numExperts", E, { min: 1 });
    checkInteger(where, "hiddenSize", D, { min: 1 });
    const widths = hiddenWidths(expertHiddenSize);
    if (widths.length === 0) throw new ConfigError(expectation(where, "expertHiddenSize to name at least one hidden layer", widths));
    for (const width of widths) checkInteger(where, "expertHiddenSize", width, { min: 1 });
    this.activation = checkOneOf(where, "activation", activation, ["relu", "gelu", "swiglu"]);
    this.expertDropout = checkNumber(where, "expertDropout", options.expertDropout ?? 0, { min: 0, max: 0.999 });
    this.recompute = options.recompute ?? false;
    this.#stream = streamId("expert dropout", name);

    const here = options.placed?.count ?? E;
    this.#first = options.placed?.first ?? 0;
    const shard = options.placed && { first: options.placed.first, total: E };
    const weight = (path: string, rows: number, cols: number, variance: number): Tensor =>
      parameter(`${name}.${path}`, [here, rows, cols], { kind: "uniform", bound: Math.sqrt((3 * variance) / rows) }, seed, shard);
    const biasOf = (path: string, width: number): Tensor => parameter(`${name}.${path}`, [here, width], { kind: "zeros" }, seed, shard);
    // He et al. 2015 before a ReLU (half of the variance is lost in it), LeCun at the output and beside a gate.
    const before = activation === "relu" ? 2 : 1;
    const last = widths.at(-1)!;
    this.inputWeight = weight("inputWeight", D, widths[0]!, before);
    this.outputWeight = weight("outputWeight", last, D, 1);
    this.gateWeight = activation === "swiglu" ? weight("gateWeight", D, widths[0]!, 1) : undefined;
    this.inputBias = bias ? biasOf("inputBias", widths[0]!) : undefined;
    this.outputBias = bias ? biasOf("outputBias", D) : undefined;
    const further = widths.slice(1);
    this.hiddenWeights = further.map((width, i) => weight(`hiddenWeights.${i}`, widths[i]!, width, before));
    this.hiddenBiases = bias ? further.map((width, i) => biasOf(`hiddenBiases.${i}`, width)) : [];
    this.hiddenGateWeights = activation === "swiglu" ? further.map((width, i) => weight(`hiddenGateWeights.${i}`, widths[i]!, width, 1)) : [];
  }

  forward(x_MD: Tensor, offsets_E1: Tensor, context: RunContext, rowIds: () => Tensor): Tensor {
    const ids = context.training && this.expertDropout > 0 ? rowIds() : undefined;
    const body = (x: Tensor): Tensor => this.#compute(x, offsets_E1, context, ids);
    return this.recompute ? recompute(body, [x_MD], this.parameters()) : body(x_MD);
  }

  #compute(x_MD: Tensor, offsets: Tensor, { seed, step, firstRow }: RunContext, ids: Tensor | undefined): Tensor {
    if (this.activation === "relu" && !this.inputBias && this.hiddenWeights.length === 0 && !ids) return groupedFeedForward(x_MD, this.inputWeight, this.outputWeight, offsets);
    const layers: Layer[] = [
      { weight: this.inputWeight, bias: this.inputBias, gateWeight: this.gateWeight },
      ...this.hiddenWeights.map((weight, i) => ({ weight, bias: this.hiddenBiases[i], gateWeight: this.hiddenGateWeights[i] })),
    ];
    let h = x_MD;
    for (const [i, { weight, bias, gateWeight }] of layers.entries()) {
      let z = groupedMatmul(h, weight, offsets);
      if (bias) z = groupedBias(z, bias, offsets);
      if (this.activation === "relu") z = relu(z);
      else if (this.activation === "gelu") z = gelu(z);
      else z = mul(silu(z), groupedMatmul(h, gateWeight!, offsets));
      // Each layer draws its own, for each pair of a row and an expert.
      h = ids ? dropoutRows(z, this.expertDropout, { seed, stream: this.#stream + i, step }, ids, firstRow, { offsets, count: offsets.size - 1, first: this.#first, total: this.numExperts }) : z;
    }
    const y = groupedMatmul(h, this.outputWeight, offsets);
    return this.outputBias ? groupedBias(y, this.outputBias, offsets) : y;
  }
}
