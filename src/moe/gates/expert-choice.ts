/** Expert choice routing (Zhou et al. 2022): experts pick rows, each the same number; the same idea as the batchwise mask of Shazeer et al. 2017, App. F. */

import { checkNumber } from "../../core/checks.js";
import { fanInUniform } from "../../nn/module.js";
import { columnTopK } from "../../tensor/ops/gating.js";
import { softmax } from "../../tensor/ops/reduce.js";
import type { Tensor } from "../../tensor/tensor.js";
import { RouterGate, type Choice, type GateContext, type GateOptions, type GroupedRows } from "./gate.js";
import { gatesAt } from "./list.js";

/** Options of `ExpertChoiceGate`; its experts are never over-full, so that it has no capacity. */
export interface ExpertChoiceOptions extends Omit<GateOptions, "capacityFactor" | "evalCapacityFactor" | "dropPolicy"> {
  /** Experts a row uses on average: each expert picks ⌊topK · rows / numExperts⌋ rows, at least one. Zhou et al. call it the capacity factor. */
  topK: number;
}

/**
 * S = softmax(x·W_g) over the experts; each expert takes the rows with the largest entries of its column, weighted by those entries. Every load is equal,
 * no loss is needed, and a row may have any number of experts, none included.
 *
 * The choice looks at all rows of the batch, in evaluation too: in a language model a position then depends on later ones (Zhou et al., section 6). For
 * autoregressive use take strictly balanced gating, which learns thresholds.
 */
export class ExpertChoiceGate extends RouterGate {
  readonly topK: number;

  constructor(options: ExpertChoiceOptions) {
    super("ExpertChoiceGate", options, { name: "gate", init: fanInUniform(options.hiddenSize), importanceWeight: 0, loadWeight: 0 });
    this.topK = checkNumber("ExpertChoiceGate", "topK", options.topK, { min: 1e-6, max: options.numExperts });
  }

  protected choose(logits: Tensor, _x: Tensor, _context: GateContext, groups: GroupedRows | undefined): Choice {
    const scores = softmax(logits);
    const list = columnTopK(scores, this.topK, groups);
    return { ...list, gates: gatesAt(scores, list), probabilities: scores };
  }
}
