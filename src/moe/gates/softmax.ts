/** Softmax gating: every row uses every expert, G_σ(x) = softmax(x·W_g) (Shazeer et al. 2017, section 2.1; Jordan & Jacobs 1994). Dense: for small layers. */

import { softmax, topK } from "../../tensor/ops/reduce.js";
import type { Tensor } from "../../tensor/tensor.js";
import { RouterGate, type Choice, type GateContext, type GateOptions, type GroupedRows } from "./gate.js";

/** All experts for every row, best first. No balance loss by default: there is no choice to balance. */
export class SoftmaxGate extends RouterGate {
  readonly topK: number;

  constructor(options: GateOptions) {
    super("SoftmaxGate", options, { name: "gate", init: { kind: "zeros" }, importanceWeight: 0, loadWeight: 0 });
    this.topK = options.numExperts;
  }

  protected choose(logits: Tensor, _x: Tensor, _context: GateContext, _groups: GroupedRows | undefined): Choice {
    const probabilities = softmax(logits);
    const { values, indices } = topK(probabilities, this.numExperts);
    return { experts: indices, gates: values, probabilities };
  }
}
