/** Top-k with renormalised softmax, as in Mixtral (Jiang et al. 2024): the softmax over the k largest logits, without noise. */

import { checkInteger, checkNumber } from "../../core/checks.js";
import { fanInUniform } from "../../nn/module.js";
import { affine } from "../../tensor/ops/elementwise.js";
import { softmax, topK } from "../../tensor/ops/reduce.js";
import { reshape, slice } from "../../tensor/ops/shape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { addLosses, switchLoss } from "../losses.js";
import { RouterGate, type Choice, type GateContext, type GateOptions, type GroupedRows } from "./gate.js";
import { numberThrough } from "./groups.js";

/** Options of `TopKGate`. */
export interface TopKOptions extends GateOptions {
  /** K, experts a row uses. */
  topK: number;
  /** Weight of n·Σ f·P, f_e being the choices of e, first to k-th, per row: k in perfect balance. Default 0.02, as in Mixtral's published configuration. */
  auxLossWeight?: number;
}

/** Softmax over all experts, the k largest kept and divided by their sum: the same as the softmax over the k largest logits. */
export class TopKGate extends RouterGate {
  readonly topK: number;
  readonly auxLossWeight: number;

  constructor(options: TopKOptions) {
    super("TopKGate", options, { name: "gate", init: fanInUniform(options.hiddenSize), importanceWeight: 0, loadWeight: 0 });
    const { topK: k, numExperts, auxLossWeight = 0.02 } = options;
    this.topK = checkInteger("TopKGate", "topK", k, { min: 1, max: numExperts, hint: `A row cannot use more experts than there are (numExperts ${numExperts}).` });
    this.auxLossWeight = checkNumber("TopKGate", "auxLossWeight", auxLossWeight, { min: 0 });
  }

  protected choose(logits: Tensor, _x: Tensor, _context: GateContext, groups: GroupedRows | undefined): Choice {
    const { values, indices } = topK(logits, this.topK);
    const choice: Choice = { experts: indices, gates: softmax(values) };
    if (this.auxLossWeight === 0) return choice;
    // Every choice of a row counts: its loss is the sum of those of the first, the second, ... choices.
    const probabilities = softmax(logits);
    let loss: Tensor | undefined;
    for (let j = 0; j < this.topK; j++) {
      const ofChoice = switchLoss(probabilities, numberThrough(reshape(slice(indices, 1, j, j + 1), [-1]), this.numExperts, groups), groups);
      loss = addLosses(loss, ofChoice);
    }
    return { ...choice, loss: affine(loss!, this.auxLossWeight), probabilities };
  }
}
