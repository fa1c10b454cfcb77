/** Elementwise functions and arithmetic with NumPy broadcasting. */

import type { BinaryOp, UnaryOp } from "../../backend/backend.js";
import { broadcastShapes, checkOperands, expandedStrides, spreadOf } from "../shapes.js";
import { record } from "../tape.js";
import { empty, full, sameShape, type Shape, type Tensor } from "../tensor.js";

function unary(op: UnaryOp, x: Tensor): Tensor {
  checkOperands(op, "float32", x);
  const y = empty(x.shape, "float32", x.backend);
  x.backend.unary(op, x.buffer, y.buffer, x.size);
  // The node keeps y's memory, not y itself: y holds the node, and a cycle would be freed late.
  const saved = y.alias();
  return record(op, y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.unaryGrad(op, x.buffer, saved.buffer, dy.buffer, dx.buffer, x.size);
    return [dx];
  });
}

/** −x. */
export const neg = (x: Tensor): Tensor => unary("neg", x);
/** eˣ. */
export const exp = (x: Tensor): Tensor => unary("exp", x);
/** Natural logarithm. */
export const log = (x: Tensor): Tensor => unary("log", x);
/** √x. */
export const sqrt = (x: Tensor): Tensor => unary("sqrt", x);
/** x². */
export const square = (x: Tensor): Tensor => unary("square", x);
/** |x|; its gradient at 0 is 0. */
export const abs = (x: Tensor): Tensor => unary("abs", x);
/** 1/x. */
export const reciprocal = (x: Tensor): Tensor => unary("reciprocal", x);
/** Hyperbolic tangent. */
export const tanh = (x: Tensor): Tensor => unary("tanh", x);
/** 1 / (1 + e⁻ˣ). */
export const sigmoid = (x: Tensor): Tensor => unary("sigmoid", x);
/** max(x, 0); its gradient at 0 is 0. */
export const relu = (x: Tensor): Tensor => unary("relu", x);
/** GELU, tanh approximation. */
export const gelu = (x: Tensor): Tensor => unary("gelu", x);
/** x · sigmoid(x), also called swish. */
export const silu = (x: Tensor): Tensor => unary("silu", x);
/** log(1 + eˣ). */
export const softplus = (x: Tensor): Tensor => unary("softplus", x);
/** Φ, the standard normal distribution function. */
export const normalCdf = (x: Tensor): Tensor => unary("normalCdf", x);

/** scale·x + shift, for numbers. */
export function affine(x: Tensor, scale: number, shift = 0): Tensor {
  checkOperands("affine", "float32", x);
  const y = empty(x.shape, "float32", x.backend);
  x.backend.affine(x.buffer, scale, shift, y.buffer, x.size);
  return record("affine", y, [x], (dy) => {
    const dx = empty(x.shape, "float32", x.backend);
    x.backend.affine(dy.buffer, scale, 0, dx.buffer, x.size);
    return [dx];
  });
}

/** Sum of `gradient` (shape `from`) over the axes along which `to` was broadcast. */
function reduceTo(gradient: Tensor, to: Shape): Tensor {
  if (sameShape(gradient.shape, to)) return gradient;
  const spread = spreadOf(to, gradient.shape);
  const result = empty(to, "float32", gradient.backend);
  if (spread) {
    gradient.backend.spreadSum(gradient.buffer, spread, 1, result.buffer, gradient.size);
  } else {
    gradient.backend.fill(result.buffer, 0, result.size);
    gradient.backend.stridedAdd(gradient.shape, gradient.buffer, expandedStrides(gradient.shape, gradient.shape), result.buffer, expandedStrides(to, gradient.shape));
  }
  return result;
}

/** A tensor repeated to `shape` by broadcasting. */
export function expand(x: Tensor, shape: Shape): Tensor {
  checkOperands("expand", "float32", x);
  const target = broadcastShapes("expand", x.shape, shape);
  const y = empty(target, "float32", x.backend);
  x.backend.stridedCopy(target, x.buffer, expandedStrides(x.shape, target), y.buffer, expandedStrides(target, target));
  return record("expand", y, [x], (dy) => [reduceTo(dy, x.shape)]);
}

/** out = a op b of broadcast shape, without a tape. */
function apply(op: BinaryOp, a: Tensor, b: Tensor, shape: Shape): Tensor {
  const out = empty(shape, "float32", a.backend);
  let [left, right] = [a, b];
  let [aSpread, bSpread] = [spreadOf(a.shape, shape), spreadOf(b.shape, shape)];
  if (!aSpread) [left, aSpread] = [expandPlain(a, shape), spreadOf(shape, shape)!];
  if (!bSpread) [right, bSpread] = [expandPlain(b, shape), spreadOf(shape, shape)!];
  a.backend.binary(op, left.buffer, aSpread, right.buffer, bSpread, out.buffer, out.size);
  return out;
}

function expandPlain(x: Tensor, shape: Shape): Tensor {
  const y = empty(shape, "float32", x.backend);
  x.backend.stridedCopy(shape, x.buffer, expandedStrides(x.shape, shape), y.buffer, expandedStrides(shape, shape));
  return y;
}

/** Numbers become scalars of the other operand's backend. */
function operands(op: string, a: Tensor | number, b: Tensor | number): [Tensor, Tensor, Shape] {
  const like = typeof a === "number" ? (b as Tensor) : a;
  const left = typeof a === "number" ? full([], a, "float32", like.backend) : a;
  const right = typeof b === "number" ? full([], b, "float32", like.backend) : b;
  checkOperands(op, "float32", left, right);
  return [left, right, broadcastShapes(op, left.shape, right.shape)];
}

/** a + b with broadcasting. */
export function add(a: Tensor | number, b: Tensor | number): Tensor {
  const [x, y, shape] = operands("add", a, b);
  return record("add", apply("add", x, y, shape), [x, y], (dy, needs) => [needs[0] ? reduceTo(dy, x.shape) : undefined, needs[1] ? reduceTo(dy, y.shape) : undefined]);
}

/** a − b with broadcasting. */
export function sub(a: Tensor | number, b: Tensor | number): Tensor {
  const [x, y, shape] = operands("sub", a, b);
  return record("sub", apply("sub", x, y, shape), [x, y], (dy, needs) => [needs[0] ? reduceTo(dy, x.shape) : undefined, needs[1] ? reduceTo(affine(dy, -1), y.shape) : undefined]);
}

/** a · b, element by element, with broadcasting. */
export function mul(a: Tensor | number, b: Tensor | number): Tensor {
  const [x, y, shape] = operands("mul", a, b);
  return record("mul", apply("mul", x, y, shape), [x, y], (dy, needs) => [
    needs[0] ? reduceTo(apply("mul", dy, y, shape), x.shape) : undefined,
    needs[1] ? reduceTo(apply("mul", dy, x, shape), y.shape) : undefined,
  ]);
}

/** a / b with broadcasting. */
export function div(a: Tensor | number, b: Tensor | number): Tensor {
  const [x, y, shape] = operands("div", a, b);
  return record("div", apply("div", x, y, shape), [x, y], (dy, needs) => {
    const overY = apply("div", dy, y, shape);
    return [
      needs[0] ? reduceTo(overY, x.shape) : undefined,
      needs[1] ? reduceTo(affine(apply("mul", overY, apply("div", x, y, shape), shape), -1), y.shape) : undefined,
    ];
  });
}

/** The larger of two, elementwise; equal ones share the gradient (of equal infinities it is NaN). */
export function maximum(a: Tensor | number, b: Tensor | number): Tensor {
  return extreme("maximum", a, b);
}

/** The smaller of two, elementwise; equal ones share the gradient (of equal infinities it is NaN). */
export function minimum(a: Tensor | number, b: Tensor | number): Tensor {
  return extreme("minimum", a, b);
}

function extreme(op: "maximum" | "minimum", a: Tensor | number, b: Tensor | number): Tensor {
  const [x, y, shape] = operands(op, a, b);
  return record(op, apply(op, x, y, shape), [x, y], (dy, needs) => {
    // The larger one's share is (1 + sign(x − y)) / 2: 1 where it is x, 0 where it is y, a half at ties. The sign is the slope of |x − y|.
    const d = apply("sub", x, y, shape);
    const signed = empty(shape, "float32", x.backend);
    x.backend.unaryGrad("abs", d.buffer, d.buffer, dy.buffer, signed.buffer, d.size);
    const [ofX, ofY] = op === "maximum" ? (["add", "sub"] as const) : (["sub", "add"] as const);
    return [
      needs[0] ? reduceTo(affine(apply(ofX, dy, signed, shape), 0.5), x.shape) : undefined,
      needs[1] ? reduceTo(affine(apply(ofY, dy, signed, shape), 0.5), y.shape) : undefined,
    ];
  });
}
