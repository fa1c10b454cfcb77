/** Finds out where values stopped being finite. */

import { firstNonFinite } from "../core/checks.js";
import { NonFiniteError, expectation } from "../core/errors.js";
import type { Module } from "../nn/module.js";
import { scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import type { Tensor } from "../tensor/tensor.js";

/** Sees what each layer gives, by the layer's name, in the order of computation. */
export type LayerWatch = (layer: string, ...outputs: readonly Tensor[]) => void;

/**
 * The error for a loss that is not finite, naming what is the first not to be: a parameter, or else the output of a layer. It runs the model once more on
 * the same inputs, so that a finite loss pays nothing for it.
 * @param where what was being done, at the head of the message; @param loss what came out; @param run the model's forward pass, as it was
 */
export function explainNonFinite(model: Module, where: string, loss: number, run: (watch: LayerWatch) => void): NonFiniteError {
  const hint = "Lower the learning rate (--learning-rate) or clip the gradients harder (--max-grad-norm).";
  for (const [name, p] of model.namedState()) {
    const values = p.dataSync();
    const at = firstNonFinite(values);
    if (at >= 0) return new NonFiniteError(expectation(where, `finite values in parameter ${name}`, values[at], hint));
  }
  // Finite vectors before the softmax, and a loss that is not: it overflowed there.
  let [layer, value] = ["softmax", loss];
  const watch: LayerWatch = (name, ...outputs) => {
    if (layer !== "softmax") return;
    const bad = outputs.map((output) => output.dataSync()).find((values) => firstNonFinite(values) >= 0);
    if (bad) [layer, value] = [name, bad[firstNonFinite(bad)]!];
  };
  noGrad(() => scope(() => run(watch)));
  return new NonFiniteError(expectation(where, `a finite output of ${layer}`, value, hint));
}
