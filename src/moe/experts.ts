/** Experts: the feed-forward ones that run as grouped products, and any module of matching widths. */

import { checkInteger } from "../core/checks.js";
import { show, TensorError } from "../core/errors.js";
import { Module, parameter, type RunContext } from "../nn/module.js";
import { relu } from "../tensor/ops/elementwise.js";
import { groupedBias, groupedMatmul } from "../tensor/ops/products.js";
import { concat, slice } from "../tensor/ops/shape.js";
import { sameShape, Tensor, zeros } from "../tensor/tensor.js";

/** All experts of a layer: rows grouped by expert in, rows grouped by expert out. */
export interface Experts extends Module {
  readonly numExperts: number;
  /** @param x_MD rows grouped by expert; @param offsets_E1 int32, expert e has rows offsets[e]..offsets[e+1]; @returns (M, D) */
  forward(x_MD: Tensor, offsets_E1: Tensor, context: RunContext): Tensor;
}

/** A single module D → D, called with the rows of one expert, never with none. */
export interface ExpertModule extends Module {
  /** The outputs of one expert for its rows, (rows, D) to (rows, D). @param context of the layer's call, for modules that differ in training; its firstRow counts rows in the grouped order */
  forward(x: Tensor, context: RunContext): Tensor;
}

/** Sizes of `FeedForwardExperts`. */
export interface FeedForwardOptions {
  numExperts: number;
  hiddenSize: number;
  expertHiddenSize: number;
  /** Biases are off by default: the paper's 1M-parameter expert (512 × 1024 × 2) has none (App. C). */
  bias?: boolean;
  name?: string;
  seed?: number;
}

/** E_i(x) = relu(x·W1_i)·W2_i for all experts at once, one product per expert that has rows. */
export class FeedForwardExperts extends Module implements Experts {
  readonly numExperts: number;
  /** (E, D, F) */
  readonly inputWeight: Tensor;
  /** (E, F, D) */
  readonly outputWeight: Tensor;
  /** (E, F) */
  readonly inputBias: Tensor | undefined;
  /** (E, D) */
  readonly outputBias: Tensor | undefined;

  constructor({ numExperts, hiddenSize, expertHiddenSize, bias = false, name = "experts", seed = 0 }: FeedForwardOptions) {
    super();
    this.numExperts = numExperts;
    const [E, D, F] = [numExperts, hiddenSize, checkInteger("FeedForwardExperts", "expertHiddenSize", expertHiddenSize, { min: 1 })];
    // He et al. 2015 before a ReLU, LeCun after it.
    this.inputWeight = parameter(`${name}.inputWeight`, [E, D, F], { kind: "uniform", bound: Math.sqrt(6 / D) }, seed);
    this.outputWeight = parameter(`${name}.outputWeight`, [E, F, D], { kind: "uniform", bound: Math.sqrt(3 / F) }, seed);
    this.inputBias = bias ? parameter(`${name}.inputBias`, [E, F], { kind: "zeros" }, seed) : undefined;
    this.outputBias = bias ? parameter(`${name}.outputBias`, [E, D], { kind: "zeros" }, seed) : undefined;
  }

  forward(x_MD: Tensor, offsets_E1: Tensor): Tensor {
    let h_MF = groupedMatmul(x_MD, this.inputWeight, offsets_E1);
    if (this.inputBias) h_MF = groupedBias(h_MF, this.inputBias, offsets_E1);
    const y_MD = groupedMatmul(relu(h_MF), this.outputWeight, offsets_E1);
    return this.outputBias ? groupedBias(y_MD, this.outputBias, offsets_E1) : y_MD;
  }
}

/** Experts that are modules of their own, run one after another on their rows. Those without rows are not called and get no gradient. */
export class ModuleExperts extends Module implements Experts {
  readonly numExperts: number;
  readonly modules: readonly ExpertModule[];

  constructor(modules: readonly ExpertModule[]) {
    super();
    this.modules = modules;
    this.numExperts = modules.length;
  }

  forward(x_MD: Tensor, offsets_E1: Tensor, context: RunContext): Tensor {
    const offsets = offsets_E1.dataSync();
    const [m, width] = x_MD.shape as [number, number];
    const parts: Tensor[] = [];
    for (const [e, module] of this.modules.entries()) {
      if (offsets[e] === offsets[e + 1]) continue;
      const rows = slice(x_MD, 0, offsets[e]!, offsets[e + 1]!);
      const y: unknown = module.forward(rows, { ...context, firstRow: context.firstRow + offsets[e]! });
      if (!(y instanceof Tensor) || !sameShape(y.shape, rows.shape)) {
        const got = y instanceof Tensor ? `[${y.shape.join(", ")}]` : show(y);
        throw new TensorError(`MoE expert ${e}: expected an output of shape [${rows.shape.join(", ")}], got ${got}. Experts map width D to width D.`);
      }
      parts.push(y);
    }
    const used = offsets[this.numExperts]!;
    // Places of dropped assignments; and a batch without rows has no parts at all.
    if (used < m || parts.length === 0) parts.push(zeros([m - used, width], "float32", x_MD.backend));
    return concat(parts, 0);
  }
}
