/** What scalar.ts lacks for the gates and experts of the later systems: sums of products as one node, sigmoid and its kin, log-sum-exp, sums over groups. */

import { add, div, exp, log, mul, Scalar, scalar, sub, type Matrix, type Vector } from "../scalar.js";

/** Σ a·b, as one node: products of matrices are most of what a layer computes. */
export const dotOf = (a: Vector, b: Vector): Scalar =>
  new Scalar(
    a.reduce((sum, v, i) => sum + v.value * b[i]!.value, 0),
    [...a, ...b],
    [...b.map((v) => v.value), ...a.map((v) => v.value)],
  );

/** x·W for a vector x of width D and W (D, E). */
export const rowTimes = (x: Vector, w: Matrix): Vector =>
  (w[0] ?? []).map((_, j) =>
    dotOf(
      x,
      w.map((row) => row[j]!),
    ),
  );

export const sum = (terms: Vector): Scalar => add(...terms);

export function sigmoid(a: Scalar): Scalar {
  const s = 1 / (1 + Math.exp(-a.value));
  return new Scalar(s, [a], [s * (1 - s)]);
}

/** x·sigmoid(x). */
export const silu = (a: Scalar): Scalar => mul(a, sigmoid(a));

export function tanh(a: Scalar): Scalar {
  const t = Math.tanh(a.value);
  return new Scalar(t, [a], [1 - t * t]);
}

/** ½x(1 + tanh(√(2/π)(x + 0.044715x³))), Hendrycks & Gimpel 2016. */
export function gelu(a: Scalar): Scalar {
  const cube = mul(a, mul(a, a));
  const inner = tanh(
    new Scalar(
      Math.sqrt(2 / Math.PI) * (a.value + 0.044715 * cube.value),
      [a, cube],
      [Math.sqrt(2 / Math.PI), Math.sqrt(2 / Math.PI) * 0.044715],
    ),
  );
  return mul(new Scalar(a.value / 2, [a], [0.5]), add(scalar(1), inner));
}

/** Less the largest, so that nothing overflows. */
const shifted = (v: Vector): { powers: Vector; largest: Scalar } => {
  const largest = scalar(Math.max(...v.map((s) => s.value)));
  return { powers: v.map((s) => exp(sub(s, largest))), largest };
};

export function softmax(v: Vector): Vector {
  const { powers } = shifted(v);
  const total = sum(powers);
  return powers.map((p) => div(p, total));
}

export function logSumExp(v: Vector): Scalar {
  const { powers, largest } = shifted(v);
  return add(log(sum(powers)), largest);
}
