/** Elementwise functions and their derivatives in float64, straight from the definitions. */

import type { BinaryOp, UnaryOp } from "../backend.js";

const GELU = Math.sqrt(2 / Math.PI);

/**
 * erfc(x) for x ≥ 0 to about 1e-15 relative: the Taylor series of erf below 1 (above, 1 − erf would cancel digits), the continued
 * fraction from there on, evaluated from its 200th term backwards, where it has long converged.
 */
function erfcPositive(x: number): number {
  if (x < 1) {
    // erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1)): all terms positive, no cancellation.
    let term = x;
    let sum = x;
    for (let n = 1; term > 1e-17 * sum; n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }
  if (x > 27.3) return 0; // below the smallest float64
  // erfc x = e^(−x²)/√π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …)))).
  let fraction = x;
  for (let n = 200; n >= 1; n--) fraction = x + n / 2 / fraction;
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction;
}

/** Φ, the standard normal distribution function. */
export function normalCdf(x: number): number {
  if (Number.isNaN(x)) return x;
  const z = Math.abs(x) / Math.SQRT2;
  return x < 0 ? erfcPositive(z) / 2 : 1 - erfcPositive(z) / 2;
}

/** φ, its density. */
export function normalPdf(x: number): number {
  return Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
}

export function sigmoid(x: number): number {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

export const UNARY: Record<UnaryOp, (x: number) => number> = {
  neg: (x) => -x,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  square: (x) => x * x,
  tanh: Math.tanh,
  sigmoid,
  relu: (x) => Math.max(x, 0), // NaN stays NaN
  gelu: (x) => (x === -Infinity ? 0 : 0.5 * x * (1 + Math.tanh(GELU * (x + 0.044715 * x ** 3)))),
  silu: (x) => (x === -Infinity ? 0 : x * sigmoid(x)),
  softplus: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))),
  normalCdf,
  abs: Math.abs,
  reciprocal: (x) => 1 / x,
};

/** Derivatives at x, given y = op(x). */
export const UNARY_DERIVATIVE: Record<UnaryOp, (x: number, y: number) => number> = {
  neg: () => -1,
  exp: (_, y) => y,
  log: (x) => 1 / x,
  sqrt: (_, y) => 0.5 / y,
  square: (x) => 2 * x,
  tanh: (_, y) => 1 - y * y,
  sigmoid: (_, y) => y * (1 - y),
  relu: (x) => (x > 0 ? 1 : 0),
  gelu: (x) => {
    if (Math.abs(x) === Infinity) return x > 0 ? 1 : 0;
    const t = Math.tanh(GELU * (x + 0.044715 * x ** 3));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU * (1 + 3 * 0.044715 * x * x);
  },
  silu: (x) => {
    if (Math.abs(x) === Infinity) return x > 0 ? 1 : 0;
    const s = sigmoid(x);
    return s * (1 + x * (1 - s));
  },
  softplus: (x) => sigmoid(x),
  normalCdf: (x) => normalPdf(x),
  abs: (x) => Math.sign(x),
  reciprocal: (_, y) => -y * y,
};

export const BINARY: Record<BinaryOp, (a: number, b: number) => number> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  maximum: Math.max,
  minimum: Math.min,
};
