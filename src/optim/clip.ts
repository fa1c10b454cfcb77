/** The global norm of gradients: clipping, and the check that they are finite. */

import { ConfigError, NonFiniteError, expectation } from "../core/errors.js";
import { scope } from "../tensor/scope.js";
import { zeros, type Gradient, type Tensor } from "../tensor/tensor.js";

/** √Σ g² over all gradients present, reading only the rows in use. */
export function globalNorm(parameters: readonly Tensor[]): number {
  return Math.sqrt(sumOfSquares(parameters));
}

function sumOfSquares(parameters: readonly Tensor[]): number {
  return scope(() => {
    const withGrad = parameters.filter((p) => p.grad);
    if (withGrad.length === 0) return 0;
    const total = zeros([1], "float32", withGrad[0]!.backend);
    for (const p of withGrad) addSquares(p, total);
    return total.dataSync()[0]!;
  });
}

function addSquares(p: Tensor, total: Tensor): void {
  const { value, rows } = p.grad!;
  const width = rows ? value.size / Math.max(rows.size, 1) : value.size;
  p.backend.sumSquares(value.buffer, value.size, rows?.buffer ?? null, width, total.buffer);
}

/**
 * The factor by which gradients have to be multiplied so that their norm is at most `maxNorm` (Pascanu et al. 2013).
 * @throws NonFiniteError naming a parameter whose gradient is not finite: the last in the model's order, which back-propagation reaches early
 * @param sumOverRanks adds up a number of each rank, where parts of parameters (`Tensor.shard`) are on several: the norm is that of all of them
 */
export function clipScale(parameters: readonly Tensor[], maxNorm: number | undefined, sumOverRanks?: (value: number) => number): { norm: number; scale: number } {
  if (maxNorm !== undefined && !(maxNorm > 0)) throw new ConfigError(expectation("clipScale", "maxNorm to be a number above 0", maxNorm));
  const norm = sumOverRanks
    ? Math.sqrt(sumOfSquares(parameters.filter(({ shard }) => !shard)) + sumOverRanks(sumOfSquares(parameters.filter(({ shard }) => shard))))
    : globalNorm(parameters);
  if (!Number.isFinite(norm)) throw new NonFiniteError(`${whyNotFinite(parameters, sumOverRanks !== undefined)} Lower the learning rate, clip harder (maxGradNorm), or check the input for NaN.`);
  return { norm, scale: maxNorm !== undefined && norm > maxNorm ? maxNorm / norm : 1 };
}

/** Parameters come about in the order of computation, and gradients the other way: what broke first is near the end, what it spoiled before it. */
function whyNotFinite(parameters: readonly Tensor[], ranks: boolean): string {
  const culprit = parameters.findLast((p) => p.grad && !gradientInUse(p.grad).every(Number.isFinite));
  if (!culprit && ranks) return "Gradients are so large that their squares overflow, or one of another rank is not finite.";
  if (!culprit) return "Gradients are so large that their squares overflow.";
  return `Gradient of ${culprit.name || `a parameter [${culprit.shape.join(", ")}]`} is not finite.`;
}

/** The elements of a gradient, without the slots that belong to no row. */
function gradientInUse({ value, rows }: Gradient): number[] {
  const flags = rows?.dataSync();
  const width = flags ? value.size / Math.max(flags.length, 1) : 1;
  return Array.from(value.dataSync()).filter((_, i) => !flags || flags[Math.floor(i / width)]! >= 0);
}
