/** The two functions of noisy top-k gating that are no compositions: the probability of being chosen, and CV² (Shazeer et al. 2017, App. A). */

import { TensorError } from "../../core/errors.js";
import { checkOperands, rowsAndCols } from "../shapes.js";
import { record } from "../tape.js";
import { empty, sameShape, type Tensor } from "../tensor.js";

/**
 * P(x, i) = Φ((clean_i − kth_excluding(noisy, k, i)) / std_i): the probability that expert i is among the k chosen if only its own noise is
 * drawn again. The threshold is a noisy LOGIT, never a softmaxed value; gradients flow into clean, std and the threshold.
 *
 * @param clean (N, E) x·W_g; @param std (N, E) softplus(x·W_noise), positive
 * @param topValues (N, min(k+1, E)) largest noisy logits, from `topK`; @param topIndices their experts
 * @returns (N, E); each row sums to about k, exactly k in expectation over the noise. With k = E every entry is 1. Where std is 0 (softplus underflows
 *   in float32 from −104 on) drawing again changes nothing: 1 for the chosen, 0 for the others, and no gradient.
 */
export function loadProbability(clean: Tensor, std: Tensor, topValues: Tensor, topIndices: Tensor, k: number): Tensor {
  checkOperands("loadProbability", "float32", clean, std, topValues);
  checkOperands("loadProbability", "int32", topIndices);
  const [rows, cols] = rowsAndCols("loadProbability", clean);
  const width = Math.min(k + 1, cols);
  if (!sameShape(std.shape, clean.shape)) throw new TensorError(`loadProbability: expected std of shape [${clean.shape.join(", ")}], got [${std.shape.join(", ")}].`);
  if (topValues.shape.at(-1) !== width) throw new TensorError(`loadProbability: expected the ${width} largest logits, got ${topValues.shape.at(-1)}.`);
  if (topValues.size !== rows * width || topIndices.size !== rows * width) {
    throw new TensorError(`loadProbability: expected topValues and topIndices of ${rows} rows, got [${topValues.shape.join(", ")}] and [${topIndices.shape.join(", ")}].`);
  }
  const backend = clean.backend;
  const p = empty(clean.shape, "float32", backend);
  backend.loadProbability(clean.buffer, std.buffer, topValues.buffer, topIndices.buffer, p.buffer, rows, cols, k);
  return record("loadProbability", p, [clean, std, topValues], (dp) => {
    const dClean = empty(clean.shape, "float32", backend);
    const dStd = empty(std.shape, "float32", backend);
    const dTop = empty(topValues.shape, "float32", backend);
    backend.loadProbabilityGrad(clean.buffer, std.buffer, topValues.buffer, topIndices.buffer, dp.buffer, dClean.buffer, dStd.buffer, dTop.buffer, rows, cols, k);
    return [dClean, dStd, dTop];
  });
}

/** CV(x)²: population variance over squared mean, a scalar; 0 for one element or a mean of 0. */
export function cvSquared(x: Tensor): Tensor {
  checkOperands("cvSquared", "float32", x);
  const y = empty([], "float32", x.backend);
  x.backend.cvSquared(x.buffer, x.size, y.buffer);
  return record("cvSquared", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.cvSquaredGrad(x.buffer, x.size, dy.buffer, dx.buffer);
    return [dx];
  });
}
