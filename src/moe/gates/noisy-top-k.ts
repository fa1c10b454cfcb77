/** Noisy top-k gating with the importance and load losses (Shazeer et al. 2017, sections 2.1 and 4, App. A). */

import { checkInteger } from "../../core/checks.js";
import { streamId } from "../../core/random.js";
import { noisyTopK } from "../../tensor/ops/gating.js";
import { softmax, topK } from "../../tensor/ops/reduce.js";
import { slice } from "../../tensor/ops/shape.js";
import type { Tensor } from "../../tensor/tensor.js";
import { RouterGate, type Choice, type GateContext, type GateOptions, type GroupedRows } from "./gate.js";

/** Options of `NoisyTopKGate`. */
export interface NoisyTopKOptions extends GateOptions {
  /** K, experts a row uses. */
  topK: number;
}

/**
 * H(x)_i = (x·W_g)_i + ε_i · softplus((x·W_noise)_i), G(x) = softmax over the k largest of H(x), ε ~ N(0, 1) drawn only while training.
 * Both weights start at zero: no signal, some noise, so that load starts out balanced. Without noise the load estimate does not exist (it divides by the
 * noise): evaluation counts rows instead, and has no load loss. Weights of the losses: 0.1 each, as in the paper's language models (App. C).
 */
export class NoisyTopKGate extends RouterGate {
  readonly topK: number;
  /** W_noise (D, E), or (G, D, E) for the groups that are here */
  readonly noiseWeight: Tensor;
  readonly #stream: number;

  constructor(options: NoisyTopKOptions) {
    super("NoisyTopKGate", options, { name: "gate", init: { kind: "zeros" }, importanceWeight: 0.1, loadWeight: 0.1 });
    const { numExperts, topK: k, name = "gate", init = { kind: "zeros" }, seed = 0 } = options;
    this.topK = checkInteger("NoisyTopKGate", "topK", k, { min: 1, max: numExperts, hint: `A row cannot use more experts than there are (numExperts ${numExperts}).` });
    this.noiseWeight = this.matrix(`${name}.noiseWeight`, options, init, seed);
    this.#stream = streamId("gate", name);
  }

  protected choose(logits: Tensor, x: Tensor, context: GateContext, groups: GroupedRows | undefined): Choice {
    if (!context.training) {
      const { values, indices } = topK(logits, this.topK);
      return { experts: indices, gates: softmax(values) };
    }
    const { values, indices, load } = noisyTopK(logits, this.project(x, this.noiseWeight, context, groups), this.topK, {
      key: { seed: context.seed, stream: this.#stream, step: context.step },
      start: context.firstRow * (groups?.count ?? 1),
      ...(groups ? { groups, rowIds: groups.rowIds } : {}),
    });
    // One more than k was kept: the threshold of the chosen is the best of those left out.
    return { experts: slice(indices, 1, 0, this.topK), gates: softmax(slice(values, 1, 0, this.topK)), load };
  }
}
