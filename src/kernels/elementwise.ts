/** Elementwise kernels. Op numbers are the places in UNARY_OPS and BINARY_OPS of backend/backend.ts. */

import { copyRow, fillRow, loadPart, storePart } from "./vectors";
import { exp4, gelu4, geluSlope4, log4, normalCdf4, normalPdf4, sigmoid4, softplus4, tanh4 } from "./math";

/** One op on four lanes. `op` is a constant at every call, so only its branch is compiled. */
// @ts-ignore: decorator
@inline
function apply(op: i32, x: v128): v128 {
  if (op == 0) return f32x4.neg(x);
  if (op == 1) return exp4(x);
  if (op == 2) return log4(x);
  if (op == 3) return f32x4.sqrt(x);
  if (op == 4) return f32x4.mul(x, x);
  if (op == 5) return tanh4(x);
  if (op == 6) return sigmoid4(x);
  if (op == 7) return f32x4.pmax(x, f32x4.splat(0));
  if (op == 8) return gelu4(x);
  // Below −100 σ is 0, and −∞·0 would be NaN.
  if (op == 9) return f32x4.mul(f32x4.pmax(x, f32x4.splat(-100)), sigmoid4(x));
  if (op == 10) return softplus4(x);
  if (op == 11) return normalCdf4(x);
  if (op == 12) return f32x4.abs(x);
  return f32x4.div(f32x4.splat(1), x);
}

// @ts-ignore: decorator
@inline
function applyAll(op: i32, begin: i32, end: i32, x: usize, y: usize): void {
  let i = begin;
  for (; i <= end - 4; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(y + at, apply(op, v128.load(x + at)));
  }
  if (i < end) {
    const at = (<usize>i) << 2;
    storePart(y + at, apply(op, loadPart(x + at, end - i)), end - i);
  }
}

export function unary(begin: i32, end: i32, op: i32, x: usize, y: usize, n: i32): void {
  switch (op) {
    case 0: return applyAll(0, begin, end, x, y);
    case 1: return applyAll(1, begin, end, x, y);
    case 2: return applyAll(2, begin, end, x, y);
    case 3: return applyAll(3, begin, end, x, y);
    case 4: return applyAll(4, begin, end, x, y);
    case 5: return applyAll(5, begin, end, x, y);
    case 6: return applyAll(6, begin, end, x, y);
    case 7: return applyAll(7, begin, end, x, y);
    case 8: return applyAll(8, begin, end, x, y);
    case 9: return applyAll(9, begin, end, x, y);
    case 10: return applyAll(10, begin, end, x, y);
    case 11: return applyAll(11, begin, end, x, y);
    case 12: return applyAll(12, begin, end, x, y);
    default: return applyAll(13, begin, end, x, y);
  }
}

/** dy · op'(x), given y = op(x). */
// @ts-ignore: decorator
@inline
function slope(op: i32, x: v128, y: v128, dy: v128): v128 {
  const one = f32x4.splat(1);
  if (op == 0) return f32x4.neg(dy);
  if (op == 1) return f32x4.mul(dy, y);
  if (op == 2) return f32x4.div(dy, x);
  if (op == 3) return f32x4.div(f32x4.mul(dy, f32x4.splat(0.5)), y);
  if (op == 4) return f32x4.mul(dy, f32x4.add(x, x));
  if (op == 5) return f32x4.mul(dy, f32x4.sub(one, f32x4.mul(y, y)));
  if (op == 6) return f32x4.mul(dy, f32x4.mul(y, f32x4.sub(one, y)));
  if (op == 7) return v128.and(dy, f32x4.gt(x, f32x4.splat(0)));
  if (op == 8) return f32x4.mul(dy, geluSlope4(x));
  if (op == 9) {
    const s = sigmoid4(x), near = f32x4.pmin(f32x4.pmax(x, f32x4.splat(-100)), f32x4.splat(100));
    return f32x4.mul(f32x4.mul(dy, s), f32x4.add(one, f32x4.mul(near, f32x4.sub(one, s))));
  }
  if (op == 10) return f32x4.mul(dy, sigmoid4(x));
  if (op == 11) return f32x4.mul(dy, normalPdf4(x));
  if (op == 12) {
    const zero = f32x4.splat(0);
    const sign = f32x4.sub(v128.and(f32x4.gt(x, zero), one), v128.and(f32x4.lt(x, zero), one));
    return f32x4.mul(dy, v128.or(sign, v128.and(f32x4.ne(x, x), x)));
  }
  return f32x4.neg(f32x4.mul(dy, f32x4.mul(y, y)));
}

// @ts-ignore: decorator
@inline
function slopeAll(op: i32, begin: i32, end: i32, x: usize, y: usize, dy: usize, dx: usize): void {
  let i = begin;
  for (; i <= end - 4; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(dx + at, slope(op, v128.load(x + at), v128.load(y + at), v128.load(dy + at)));
  }
  if (i < end) {
    const at = (<usize>i) << 2;
    const left = end - i;
    storePart(dx + at, slope(op, loadPart(x + at, left), loadPart(y + at, left), loadPart(dy + at, left)), left);
  }
}

export function unaryGrad(begin: i32, end: i32, op: i32, x: usize, y: usize, dy: usize, dx: usize, n: i32): void {
  switch (op) {
    case 0: return slopeAll(0, begin, end, x, y, dy, dx);
    case 1: return slopeAll(1, begin, end, x, y, dy, dx);
    case 2: return slopeAll(2, begin, end, x, y, dy, dx);
    case 3: return slopeAll(3, begin, end, x, y, dy, dx);
    case 4: return slopeAll(4, begin, end, x, y, dy, dx);
    case 5: return slopeAll(5, begin, end, x, y, dy, dx);
    case 6: return slopeAll(6, begin, end, x, y, dy, dx);
    case 7: return slopeAll(7, begin, end, x, y, dy, dx);
    case 8: return slopeAll(8, begin, end, x, y, dy, dx);
    case 9: return slopeAll(9, begin, end, x, y, dy, dx);
    case 10: return slopeAll(10, begin, end, x, y, dy, dx);
    case 11: return slopeAll(11, begin, end, x, y, dy, dx);
    case 12: return slopeAll(12, begin, end, x, y, dy, dx);
    default: return slopeAll(13, begin, end, x, y, dy, dx);
  }
}

// @ts-ignore: decorator
@inline
function combine(op: i32, a: v128, b: v128): v128 {
  if (op == 0) return f32x4.add(a, b);
  if (op == 1) return f32x4.sub(a, b);
  if (op == 2) return f32x4.mul(a, b);
  if (op == 3) return f32x4.div(a, b);
  if (op == 4) return f32x4.max(a, b);
  return f32x4.min(a, b);
}

/** A run of elements in which each operand either goes along (aAlong, bAlong) or stays. */
// @ts-ignore: decorator
@inline
function combineRun(op: i32, aAlong: bool, bAlong: bool, a: usize, b: usize, out: usize, n: i32): void {
  let i = 0;
  const a0 = v128.load32_splat(a), b0 = v128.load32_splat(b);
  for (; i <= n - 4; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(out + at, combine(op, aAlong ? v128.load(a + at) : a0, bAlong ? v128.load(b + at) : b0));
  }
  for (; i < n; i++) {
    const at = (<usize>i) << 2;
    v128.store_lane<f32>(out + at, combine(op, aAlong ? v128.load32_splat(a + at) : a0, bAlong ? v128.load32_splat(b + at) : b0), 0);
  }
}

// @ts-ignore: decorator
@inline
function combineShape(op: i32, aAlong: bool, bAlong: bool, a: usize, b: usize, out: usize, n: i32): void {
  if (aAlong) {
    if (bAlong) combineRun(op, true, true, a, b, out, n);
    else combineRun(op, true, false, a, b, out, n);
  } else if (bAlong) combineRun(op, false, true, a, b, out, n);
  else combineRun(op, false, false, a, b, out, n);
}

function combineOp(op: i32, aAlong: bool, bAlong: bool, a: usize, b: usize, out: usize, n: i32): void {
  switch (op) {
    case 0: return combineShape(0, aAlong, bAlong, a, b, out, n);
    case 1: return combineShape(1, aAlong, bAlong, a, b, out, n);
    case 2: return combineShape(2, aAlong, bAlong, a, b, out, n);
    case 3: return combineShape(3, aAlong, bAlong, a, b, out, n);
    case 4: return combineShape(4, aAlong, bAlong, a, b, out, n);
    default: return combineShape(5, aAlong, bAlong, a, b, out, n);
  }
}

/** Goes in runs that end where either operand wraps round or moves on. */
export function binary(begin: i32, end: i32, op: i32, a: usize, aDiv: i32, aMod: i32, b: usize, bDiv: i32, bMod: i32, out: usize, n: i32): void {
  const aAlong = aDiv == 1 && aMod > 1;
  const bAlong = bDiv == 1 && bMod > 1;
  let i = begin;
  while (i < end) {
    let run = end - i;
    const aAt = (i / aDiv) % aMod;
    const bAt = (i / bDiv) % bMod;
    if (aMod > 1) run = min(run, aAlong ? aMod - aAt : aDiv - (i % aDiv));
    if (bMod > 1) run = min(run, bAlong ? bMod - bAt : bDiv - (i % bDiv));
    combineOp(op, aAlong, bAlong, a + ((<usize>aAt) << 2), b + ((<usize>bAt) << 2), out + ((<usize>i) << 2), run);
    i += run;
  }
}

export function affine(begin: i32, end: i32, x: usize, scale: f32, shift: f32, y: usize, n: i32): void {
  const scale4 = f32x4.splat(scale), shift4 = f32x4.splat(shift);
  let i = begin;
  for (; i <= end - 4; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(y + at, f32x4.add(f32x4.mul(v128.load(x + at), scale4), shift4));
  }
  for (; i < end; i++) {
    const at = (<usize>i) << 2;
    store<f32>(y + at, load<f32>(x + at) * scale + shift);
  }
}

export function axpy(begin: i32, end: i32, scale: f32, x: usize, y: usize, n: i32): void {
  const scale4 = f32x4.splat(scale);
  let i = begin;
  for (; i <= end - 4; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(y + at, f32x4.add(f32x4.mul(v128.load(x + at), scale4), v128.load(y + at)));
  }
  for (; i < end; i++) {
    const at = (<usize>i) << 2;
    store<f32>(y + at, load<f32>(x + at) * scale + load<f32>(y + at));
  }
}

export function copy(begin: i32, end: i32, src: usize, dst: usize, n: i32): void {
  const at = (<usize>begin) << 2;
  copyRow(src + at, dst + at, end - begin);
}

export function fill(begin: i32, end: i32, dst: usize, value: f32, n: i32): void {
  fillRow(dst + ((<usize>begin) << 2), f32x4.splat(value), end - begin);
}

export function fillInt(begin: i32, end: i32, dst: usize, value: i32, n: i32): void {
  fillRow(dst + ((<usize>begin) << 2), i32x4.splat(value), end - begin);
}

export function divideIndex(begin: i32, end: i32, index: usize, divisor: i32, out: usize, n: i32): void {
  for (let i = begin; i < end; i++) {
    const at = (<usize>i) << 2;
    const v = load<i32>(index + at);
    store<i32>(out + at, v < 0 ? -1 : v / divisor);
  }
}
