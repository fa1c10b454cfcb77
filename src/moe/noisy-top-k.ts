/** Noisy top-k gating with the importance and load losses (Shazeer et al. 2017, sections 2.1 and 4, App. A). */

import { streamId } from "../core/random.js";
import { checkInteger, checkNumber } from "../core/checks.js";
import { Module, parameter, type RunContext } from "../nn/module.js";
import { add, affine, mul, softplus } from "../tensor/ops/elementwise.js";
import { cvSquared, loadProbability } from "../tensor/ops/gating.js";
import { matmul } from "../tensor/ops/products.js";
import { softmax, sum, topK } from "../tensor/ops/reduce.js";
import { bincount } from "../tensor/ops/rows.js";
import { slice } from "../tensor/ops/shape.js";
import { empty, full, type Tensor } from "../tensor/tensor.js";
import type { Gate, GateOutput } from "./gate.js";

/** Sizes and loss weights of a `NoisyTopKGate`. */
export interface NoisyTopKOptions {
  hiddenSize: number;
  numExperts: number;
  topK: number;
  /** w_importance; 0.1 in the paper's language models (App. C). */
  importanceWeight?: number;
  /** w_load; 0.1 likewise. */
  loadWeight?: number;
  name?: string;
}

/**
 * H(x)_i = (x·W_g)_i + ε_i · softplus((x·W_noise)_i), G(x) = softmax over the k largest of H(x), ε ~ N(0, 1) drawn only while training.
 * Both weights start at zero: no signal, some noise, so that load starts out balanced.
 */
export class NoisyTopKGate extends Module implements Gate {
  readonly numExperts: number;
  readonly topK: number;
  readonly importanceWeight: number;
  readonly loadWeight: number;
  /** W_g (D, E) */
  readonly weight: Tensor;
  /** W_noise (D, E) */
  readonly noiseWeight: Tensor;
  readonly #stream: number;

  constructor({ hiddenSize, numExperts, topK: k, importanceWeight = 0.1, loadWeight = 0.1, name = "gate" }: NoisyTopKOptions) {
    super();
    this.numExperts = checkInteger("NoisyTopKGate", "numExperts", numExperts, { min: 1 });
    this.topK = checkInteger("NoisyTopKGate", "topK", k, { min: 1, max: numExperts, hint: `A row cannot use more experts than there are (numExperts ${numExperts}).` });
    this.importanceWeight = checkNumber("NoisyTopKGate", "importanceWeight", importanceWeight, { min: 0 });
    this.loadWeight = checkNumber("NoisyTopKGate", "loadWeight", loadWeight, { min: 0 });
    this.weight = parameter(`${name}.weight`, [hiddenSize, numExperts], { kind: "zeros" });
    this.noiseWeight = parameter(`${name}.noiseWeight`, [hiddenSize, numExperts], { kind: "zeros" });
    this.#stream = streamId("gate", name);
  }

  /** Noise and the load loss are there only in training. @param x_ND (N, D) */
  forward(x_ND: Tensor, context: RunContext): GateOutput {
    const clean_NE = matmul(x_ND, this.weight);
    return context.training ? this.#noisy(x_ND, clean_NE, context) : this.#clean(clean_NE);
  }

  #noisy(x_ND: Tensor, clean_NE: Tensor, context: RunContext): GateOutput {
    const std_NE = softplus(matmul(x_ND, this.noiseWeight));
    const noise_NE = empty(clean_NE.shape, "float32", clean_NE.backend);
    const key = { seed: context.seed, stream: this.#stream, step: context.step };
    clean_NE.backend.randomNormal(noise_NE.buffer, noise_NE.size, key, context.firstRow * this.numExperts, 0, 1);
    const noisy_NE = add(clean_NE, mul(noise_NE, std_NE));
    // One more than k: the threshold of the chosen is the best of those left out.
    const top = topK(noisy_NE, Math.min(this.topK + 1, this.numExperts));
    const gates_NK = softmax(slice(top.values, 1, 0, this.topK));
    const experts_NK = slice(top.indices, 1, 0, this.topK);
    const importance_E = bincount(gates_NK, experts_NK, this.numExperts);
    const load_E = sum(loadProbability(clean_NE, std_NE, top.values, top.indices, this.topK), 0);
    const auxLoss = add(affine(cvSquared(importance_E), this.importanceWeight), affine(cvSquared(load_E), this.loadWeight));
    return { gates_NK, experts_NK, importance_E, load_E, auxLoss };
  }

  /** Without noise the load estimate does not exist (it divides by the noise): rows are counted instead, and there is no load loss. */
  #clean(clean_NE: Tensor): GateOutput {
    const { values, indices: experts_NK } = topK(clean_NE, this.topK);
    const gates_NK = softmax(values);
    const importance_E = bincount(gates_NK, experts_NK, this.numExperts);
    const load_E = bincount(full(gates_NK.shape, 1, "float32", gates_NK.backend), experts_NK, this.numExperts);
    return { gates_NK, experts_NK, importance_E, load_E, auxLoss: affine(cvSquared(importance_E), this.importanceWeight) };
  }
}
