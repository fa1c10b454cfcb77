/** Sigmoid scores with bias-only balancing, as in DeepSeek-V3 (DeepSeek-AI 2024, section 2.1.2; Wang et al. 2024, "Auxiliary-loss-free load balancing"). */

import { checkInteger, checkNumber } from "../../core/checks.js";
import { buffer, fanInUniform } from "../../nn/module.js";
import { abs, add, affine, div, maximum, sigmoid, sub } from "../../tensor/ops/elementwise.js";
import { groupedBias } from "../../tensor/ops/products.js";
import { gatherLast, sum, topK } from "../../tensor/ops/reduce.js";
import { bincount } from "../../tensor/ops/rows.js";
import { reshape } from "../../tensor/ops/shape.js";
import { scope } from "../../tensor/scope.js";
import { oncePerPass } from "../../tensor/tape.js";
import { full, type Tensor } from "../../tensor/tensor.js";
import { RouterGate, type Choice, type GateContext, type GateOptions, type GroupedRows } from "./gate.js";
import { numberThrough } from "./groups.js";

/** Options of `SigmoidGate`. */
export interface SigmoidOptions extends GateOptions {
  /** K, experts a row uses. */
  topK: number;
  /** γ, by which a bias moves at each training step. Default 0.001. */
  biasUpdateRate?: number;
  /** Every gate value is multiplied by this after normalisation (DeepSeek-V3: 2.5). Default 1. */
  scale?: number;
}

/**
 * s = sigmoid(x·W_g); the experts with the k largest s_i + b_i are chosen, with weights s_i / Σ s of the chosen. The biases b are no parameters: after each
 * training batch b_i rises by γ if expert i had fewer rows than the mean, falls by γ if it had more, and else stays. They only choose; weights and gradients do without.
 */
export class SigmoidGate extends RouterGate {
  readonly topK: number;
  readonly biasUpdateRate: number;
  readonly scale: number;
  /** b (E), or (G, E): saved in checkpoints. */
  readonly bias: Tensor;

  constructor(options: SigmoidOptions) {
    const where = "SigmoidGate";
    super(where, options, { name: "gate", init: fanInUniform(options.hiddenSize), importanceWeight: 0, loadWeight: 0 });
    const { numExperts, topK: k, biasUpdateRate = 0.001, scale = 1, name = "gate" } = options;
    this.topK = checkInteger(where, "topK", k, { min: 1, max: numExperts, hint: `A row cannot use more experts than there are (numExperts ${numExperts}).` });
    this.biasUpdateRate = checkNumber(where, "biasUpdateRate", biasUpdateRate, { min: 0 });
    this.scale = checkNumber(where, "scale", scale, { min: 0 });
    this.bias = buffer(`${name}.bias`, this.numGroups === undefined ? [numExperts] : [this.numGroups, numExperts]);
  }

  protected choose(logits: Tensor, _x: Tensor, context: GateContext, groups: GroupedRows | undefined): Choice {
    const scores = sigmoid(logits);
    const experts = oncePerPass(() => this.#best(scores, context, groups));
    const chosen = gatherLast(scores, experts);
    // Scores are above 0 as long as sigmoid does not underflow; the bound keeps a row of zeros a row of zeros.
    const gates = affine(div(chosen, maximum(reshape(sum(chosen, 1), [-1, 1]), 1e-30)), this.scale);
    return { experts, gates };
  }

  /** The experts with the k largest biased scores; in training the biases then move. Not recorded. */
  #best(scores: Tensor, context: GateContext, groups: GroupedRows | undefined): Tensor {
    const experts = topK(groups ? groupedBias(scores, this.bias, groups.offsets) : add(scores, this.bias), this.topK).indices;
    if (context.training && this.biasUpdateRate > 0) this.#moveBias(numberThrough(experts, this.numExperts, groups));
    return experts;
  }

  #moveBias(experts: Tensor): void {
    scope(() => {
      const load = bincount(full(experts.shape, 1, "float32", experts.backend), experts, this.bias.size);
      const loads = reshape(load, [this.numGroups ?? 1, this.numExperts]);
      // E times the mean less E times the load: whole numbers, so that an expert at the mean is exactly there.
      const lack = sub(reshape(sum(loads, 1), [-1, 1]), affine(loads, this.numExperts));
      const direction = div(lack, maximum(abs(lack), 1));
      this.bias.backend.axpy(this.biasUpdateRate, direction.buffer, this.bias.buffer, this.bias.size);
    });
  }
}
