/** Label smoothing (Szegedy et al. 2016, section 7): targets that leave a share of the probability to all other classes. */

import { checkNumber } from "../core/checks.js";
import { TensorError } from "../core/errors.js";
import { add, affine, mul, sub } from "../tensor/ops/elementwise.js";
import { linearCrossEntropy } from "../tensor/ops/losses.js";
import { mean, sum } from "../tensor/ops/reduce.js";
import { embedding } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import { tensor, type Tensor } from "../tensor/tensor.js";

/** `loss` is what to train by, `crossEntropy` what perplexity is of; without smoothing they are one. */
export interface SmoothedLoss {
  loss: Tensor;
  crossEntropy: Tensor;
}

/**
 * Mean cross-entropy of softmax(x·weightᵀ + bias) against (1 − ε)·onehot(target) + ε/V, in nats.
 *
 * With logits z it is CE(target) + ε·(z_target − mean z), and the second part needs no logits: z_target − mean z = x·(w_target − mean w) + b_target − mean b.
 * @param x (N, D) @param weight (V, D) @param bias (V) @param targets int32 (N), −1 leaves a row out @param epsilon ε from 0 to below 1
 */
export function smoothedCrossEntropy(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, epsilon: number): SmoothedLoss {
  checkNumber("smoothedCrossEntropy", "epsilon", epsilon, { min: 0, max: 0.999 });
  const crossEntropy = linearCrossEntropy(x, weight, bias, targets);
  if (epsilon === 0) return { loss: crossEntropy, crossEntropy };
  if (bias.size !== weight.shape[0]) throw new TensorError(`smoothedCrossEntropy: expected bias (${weight.shape[0]}), got [${bias.shape.join(", ")}].`);
  const list = targets.dataSync();
  const counted = Array.from(list).filter((t) => t >= 0).length;
  const classes = tensor(Int32Array.from(list, (t) => Math.max(t, 0)), [list.length], "int32", x.backend);
  const share = tensor(Float32Array.from(list, (t) => (t >= 0 ? 1 / counted : 0)), [list.length], "float32", x.backend);
  const byWeight = sum(mul(x, sub(embedding(weight, classes), mean(weight, 0))), 1);
  const byBias = sub(reshape(embedding(reshape(bias, [-1, 1]), classes), [-1]), mean(bias));
  return { loss: add(crossEntropy, affine(sum(mul(add(byWeight, byBias), share)), epsilon)), crossEntropy };
}
