/** Top-2 gating of GShard (Lepikhin et al. 2020, Algorithm 1) and of Tensor2Tensor's and Mesh TensorFlow's MoE layers, with their policies for the second expert. */

import { checkNumber, checkOneOf } from "../../core/checks.js";
import { ConfigError, expectation } from "../../core/errors.js";
import { streamId } from "../../core/random.js";
import { fanInUniform } from "../../nn/module.js";
import { affine, div, sub } from "../../tensor/ops/elementwise.js";
import { maskIndices } from "../../tensor/ops/gating.js";
import { softmax, sum, topK } from "../../tensor/ops/reduce.js";
import { concat, reshape, slice } from "../../tensor/ops/shape.js";
import { noGrad } from "../../tensor/tape.js";
import { full, type Tensor } from "../../tensor/tensor.js";
import { switchLoss } from "../losses.js";
import { RouterGate, type Choice, type GateContext, type GateOptions, type GroupedRows } from "./gate.js";
import { numberThrough } from "./groups.js";
import { rowsOfUniform } from "./switch.js";

/** Whether the second expert is used: always, never, where its weight exceeds the threshold, or with probability min(1, weight / threshold). */
export type SecondPolicy = "all" | "none" | "threshold" | "random";

/** Options of `GShardGate`. */
export interface GShardOptions extends GateOptions {
  /** In training. Default random. */
  secondPolicy?: SecondPolicy;
  /** In evaluation, which is deterministic: random is refused. Default threshold where secondPolicy is random, else the same as in training. */
  evalSecondPolicy?: Exclude<SecondPolicy, "random">;
  /** Of the policies threshold and random, on the second expert's renormalised weight. Default 0.2 (Tensor2Tensor). */
  secondThreshold?: number;
  /** The same in evaluation. Default: secondThreshold. */
  evalSecondThreshold?: number;
  /** Weight of the loss n²·mean_e(f_e·P_e). Default 0.01. */
  auxLossWeight?: number;
}

/** What keeps g1 + g2 from being zero, in Tensor2Tensor as here. */
const EPSILON = 1e-9;

/**
 * p = softmax(x·W_g); g1, g2 its two largest, divided by their sum; the second expert used according to the policy. Capacity factors of 1.25 in training
 * and 2 in evaluation are usual (`capacityFactor`, `evalCapacityFactor`); without them no row is dropped.
 */
export class GShardGate extends RouterGate {
  readonly topK = 2;
  readonly secondPolicy: SecondPolicy;
  readonly evalSecondPolicy: SecondPolicy;
  readonly secondThreshold: number;
  readonly evalSecondThreshold: number;
  readonly auxLossWeight: number;
  readonly #stream: number;

  constructor(options: GShardOptions) {
    const where = "GShardGate";
    super(where, options, { name: "gate", init: fanInUniform(options.hiddenSize), importanceWeight: 0, loadWeight: 0 });
    const { secondPolicy = "random", numExperts, name = "gate", secondThreshold = 0.2 } = options;
    if (numExperts < 2) throw new ConfigError(expectation(where, "numExperts of at least 2 (a first and a second expert)", numExperts, "Use the Switch gate for one expert a row."));
    this.secondPolicy = checkOneOf<SecondPolicy>(where, "secondPolicy", secondPolicy, ["all", "none", "threshold", "random"]);
    const inEvaluation: string = options.evalSecondPolicy ?? (secondPolicy === "random" ? "threshold" : secondPolicy);
    if (inEvaluation === "random") {
      throw new ConfigError(expectation(where, "evalSecondPolicy all, none or threshold", "random", "Evaluation is deterministic; threshold uses the second experts that random always uses."));
    }
    this.evalSecondPolicy = checkOneOf<SecondPolicy>(where, "evalSecondPolicy", inEvaluation, ["all", "none", "threshold"]);
    this.secondThreshold = checkNumber(where, "secondThreshold", secondThreshold, { min: 1e-9, max: 1 });
    this.evalSecondThreshold = checkNumber(where, "evalSecondThreshold", options.evalSecondThreshold ?? secondThreshold, { min: 1e-9, max: 1 });
    this.auxLossWeight = checkNumber(where, "auxLossWeight", options.auxLossWeight ?? 0.01, { min: 0 });
    this.#stream = streamId("second expert", name);
  }

  protected choose(logits: Tensor, _x: Tensor, context: GateContext, groups: GroupedRows | undefined): Choice {
    const probabilities = softmax(logits);
    const { values, indices } = topK(probabilities, 2);
    const gates = div(values, reshape(affine(sum(values, 1), 1, EPSILON), [-1, 1]));
    const first = numberThrough(reshape(slice(indices, 1, 0, 1), [-1]), this.numExperts, groups);
    const keep = noGrad(() => this.#keepSecond(slice(gates, 1, 1, 2), context, groups));
    return {
      ...(keep ? { experts: maskIndices(indices, keep), varies: true } : { experts: indices }),
      gates,
      loss: affine(switchLoss(probabilities, first, groups), this.auxLossWeight),
      probabilities,
    };
  }

  /** (N, 2): above 0 where an expert is used. @param second (N, 1) its weight */
  #keepSecond(second: Tensor, context: GateContext, groups: GroupedRows | undefined): Tensor | undefined {
    const policy = context.training ? this.secondPolicy : this.evalSecondPolicy;
    const threshold = context.training ? this.secondThreshold : this.evalSecondThreshold;
    const flag = (value: number): Tensor => full(second.shape, value, "float32", second.backend);
    if (policy === "all") return undefined;
    let keep: Tensor;
    if (policy === "none") keep = flag(0);
    else if (policy === "threshold") keep = affine(second, 1, -threshold);
    else keep = sub(affine(second, 1 / threshold), rowsOfUniform(second, 0, 1, { seed: context.seed, stream: this.#stream, step: context.step }, context.firstRow, groups));
    return concat([flag(1), keep], 1);
  }
}
