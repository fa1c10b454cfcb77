/** Gradients against central finite differences, for the float64 reference backend: parameters, a scalar out of any tensor, and the comparison. */

import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";

/** Truncation is of order h², rounding of order 1e-16/h: together about 1e-10. */
const H = 1e-5;

/** What analytic gradients are held to, relative to the slope, or to 1 where that is smaller. */
export const TOLERANCE = 1e-6;

/** Weighted sum of a tensor with fixed irregular weights, so that no gradient can hide behind a symmetry. */
export function project(y: Tensor): Tensor {
  const weights = sg.tensor(
    Float64Array.from({ length: y.size }, (_, i) => Math.sin(1.7 * i + 0.3)),
    y.shape,
    "float32",
    y.backend,
  );
  return sg.sum(sg.mul(y, weights));
}

/** A trainable tensor, uniform in [low, high). */
export function param(shape: readonly number[], seed: number, low = -1, high = 1): Tensor {
  const p = sg.keep(sg.randomUniform(shape, low, high, { seed }));
  p.requiresGrad = true;
  return p;
}

/** The gradient with the parameter's own shape, zeros where it has none. */
export function denseGradient(p: Tensor): Float64Array {
  const dense = new Float64Array(p.size);
  if (!p.grad) return dense;
  const values = p.grad.value.dataSync();
  if (!p.grad.rows) dense.set(values);
  else {
    const width = p.size / p.shape[0]!;
    p.grad.rows.dataSync().forEach((row, slot) => {
      if (row >= 0) for (let j = 0; j < width; j++) dense[row * width + j] = values[slot * width + j]!;
    });
  }
  return dense;
}

/** ∂value/∂p by central differences, leaving p as it was. */
export function slopes(p: Tensor, value: () => number): Float64Array {
  const data = p.dataSync();
  const at = (i: number, delta: number): number => {
    p.backend.write(
      p.buffer,
      data.map((v, j) => (j === i ? v + delta : v)),
    );
    return value();
  };
  const found = Float64Array.from({ length: p.size }, (_, i) => (at(i, H) - at(i, -H)) / (2 * H));
  p.backend.write(p.buffer, data);
  return found;
}

/**
 * Runs `f` and `backward` once (on its projection where it is no scalar) and compares the gradient of every input with finite differences.
 * @returns what differs, in words; none when all agree. NaN never agrees.
 */
export function gradientErrors(inputs: readonly Tensor[], f: () => Tensor, tolerance = TOLERANCE): string[] {
  for (const p of inputs) p.zeroGrad();
  const scalar = (): Tensor => {
    const y = f();
    return y.size === 1 ? y : project(y);
  };
  sg.scope(() => sg.backward(scalar()));
  const value = (): number => sg.scope(() => sg.noGrad(scalar).item());
  const lines: string[] = [];
  for (const [n, p] of inputs.entries()) {
    const got = denseGradient(p);
    slopes(p, value).forEach((slope, i) => {
      const close = Math.abs(slope - got[i]!) <= tolerance * Math.max(1, Math.abs(slope));
      if (!close && lines.length < 5)
        lines.push(`${p.name || `input ${n}`}[${i}]: expected ${slope} by finite differences, got ${got[i]}`);
    });
  }
  return lines;
}
