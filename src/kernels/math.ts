/**
 * Functions of four float32 lanes, right to about 2e-7 relative. Range reductions and polynomials of exp, log, tanh, sine and cosine are those of
 * Moshier's Cephes; Φ is our own fit. NaN stays NaN, and infinities give limits. Each lane depends on its own input alone.
 */

import { madd } from "./vectors";

// @ts-ignore: decorator
@inline
function c(x: f32): v128 {
  return f32x4.splat(x);
}

/** eˣ = 2ⁿ·eʳ, |r| ≤ ln 2 / 2. Overflows to ∞ and underflows through the subnormals to 0. */
// @ts-ignore: decorator
@inline
export function exp4(x0: v128): v128 {
  const x = f32x4.pmin(f32x4.pmax(x0, c(-105)), c(89));
  // Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
  const t = f32x4.add(f32x4.mul(x, c(1.44269504088896341)), c(12582912));
  const n = i32x4.sub(t, i32x4.splat(0x4b400000));
  const k = f32x4.sub(t, c(12582912));
  const r = madd(k, c(2.12194440e-4), madd(k, c(-0.693359375), x));
  let y = madd(c(1.9875691500e-4), r, c(1.3981999507e-3));
  y = madd(y, r, c(8.3334519073e-3));
  y = madd(y, r, c(4.1665795894e-2));
  y = madd(y, r, c(1.6666665459e-1));
  y = madd(y, r, c(5.0000001201e-1));
  y = f32x4.add(madd(y, f32x4.mul(r, r), r), c(1));
  // Two powers of two, as one could leave the range of exponents.
  const half = i32x4.shr_s(n, 1);
  const rest = i32x4.sub(n, half);
  y = f32x4.mul(y, i32x4.shl(i32x4.add(half, i32x4.splat(127)), 23));
  return f32x4.mul(y, i32x4.shl(i32x4.add(rest, i32x4.splat(127)), 23));
}

/** ln x; −∞ at 0, NaN below. */
// @ts-ignore: decorator
@inline
export function log4(x0: v128): v128 {
  // Subnormals are scaled up by 2²⁵ first.
  const small = f32x4.lt(x0, c(1.17549435e-38));
  const x = v128.bitselect(f32x4.mul(x0, c(33554432)), x0, small);
  // Mantissa in [√½, √2): subtracting the bits of √½ carries into the exponent where it is below.
  const bits = i32x4.sub(x, i32x4.splat(0x3f3504f3));
  const e = f32x4.sub(f32x4.convert_i32x4_s(i32x4.shr_s(bits, 23)), v128.and(small, c(25)));
  const m = f32x4.sub(i32x4.add(v128.and(bits, i32x4.splat(0x007fffff)), i32x4.splat(0x3f3504f3)), c(1));
  const z = f32x4.mul(m, m);
  let y = madd(c(7.0376836292e-2), m, c(-1.1514610310e-1));
  y = madd(y, m, c(1.1676998740e-1));
  y = madd(y, m, c(-1.2420140846e-1));
  y = madd(y, m, c(1.4249322787e-1));
  y = madd(y, m, c(-1.6668057665e-1));
  y = madd(y, m, c(2.0000714765e-1));
  y = madd(y, m, c(-2.4999993993e-1));
  y = madd(y, m, c(3.3333331174e-1));
  y = f32x4.mul(y, f32x4.mul(z, m));
  y = madd(e, c(-2.12194440e-4), y);
  y = madd(z, c(-0.5), y);
  y = madd(e, c(0.693359375), f32x4.add(m, y));
  // Not a positive finite number: 0 gives −∞, ∞ and NaN themselves, the rest NaN.
  const special = v128.bitselect(v128.bitselect(c(-Infinity), c(NaN), f32x4.eq(x0, c(0))), x0, f32x4.le(x0, c(0)));
  return v128.bitselect(y, special, v128.and(f32x4.gt(x0, c(0)), f32x4.lt(x0, c(Infinity))));
}

/** tanh x: an odd polynomial near 0, 1 − 2/(e²ˣ + 1) elsewhere. */
// @ts-ignore: decorator
@inline
export function tanh4(x: v128): v128 {
  const a = f32x4.abs(x);
  const z = f32x4.mul(x, x);
  let y = madd(c(-5.70498872745e-3), z, c(2.06390887954e-2));
  y = madd(y, z, c(-5.37397155531e-2));
  y = madd(y, z, c(1.33314422036e-1));
  y = madd(y, z, c(-3.33332819422e-1));
  const near = madd(f32x4.mul(y, z), x, x);
  const far = f32x4.sub(c(1), f32x4.div(c(2), f32x4.add(exp4(f32x4.add(a, a)), c(1))));
  return v128.bitselect(near, v128.or(far, v128.and(x, i32x4.splat(0x80000000))), f32x4.lt(a, c(0.625)));
}

/** 1/(1 + e⁻ˣ). */
// @ts-ignore: decorator
@inline
export function sigmoid4(x: v128): v128 {
  return f32x4.div(c(1), f32x4.add(c(1), exp4(f32x4.neg(x))));
}

/** ln(1 + eˣ) = max(x, 0) + ln(1 + t), t = e^−|x|, with what 1 + t rounds away put back. */
// @ts-ignore: decorator
@inline
export function softplus4(x: v128): v128 {
  const t = exp4(f32x4.neg(f32x4.abs(x)));
  const u = f32x4.add(t, c(1));
  const lost = f32x4.div(f32x4.sub(t, f32x4.sub(u, c(1))), u);
  return f32x4.add(f32x4.pmax(x, c(0)), f32x4.add(log4(u), lost));
}

/** The argument of gelu's logistic form: gelu x = x·σ(2√(2/π)(x + 0.044715x³)). */
// @ts-ignore: decorator
@inline
function geluArgument(x: v128): v128 {
  return f32x4.mul(f32x4.mul(x, c(1.5957691216057308)), madd(f32x4.mul(x, x), c(0.044715), c(1)));
}

// @ts-ignore: decorator
@inline
export function gelu4(x: v128): v128 {
  // Below −100 the logistic factor is 0, and −∞·0 would be NaN.
  return f32x4.mul(f32x4.pmax(x, c(-100)), sigmoid4(geluArgument(x)));
}

// @ts-ignore: decorator
@inline
export function geluSlope4(x0: v128): v128 {
  // Beyond 100 the slope is 0 or 1, but its parts would overflow.
  const x = f32x4.pmin(f32x4.pmax(x0, c(-100)), c(100));
  const s = sigmoid4(geluArgument(x));
  const inner = f32x4.mul(madd(f32x4.mul(x, x), c(3 * 0.044715), c(1)), c(1.5957691216057308));
  return madd(f32x4.mul(f32x4.mul(x, s), f32x4.sub(c(1), s)), inner, s);
}

/** e^(−x²/2), with the rounding of x² made good: it would cost digits where x² is large. */
// @ts-ignore: decorator
@inline
export function gaussian4(x: v128): v128 {
  const a = f32x4.pmin(f32x4.abs(x), c(14.5));
  const square = f32x4.mul(a, a);
  const high = v128.and(a, i32x4.splat(0xfffff000));
  const lost = f32x4.add(f32x4.sub(f32x4.mul(high, high), square), f32x4.mul(f32x4.sub(a, high), f32x4.add(a, high)));
  const g = exp4(f32x4.mul(square, c(-0.5)));
  return f32x4.sub(g, f32x4.mul(g, f32x4.mul(lost, c(0.5))));
}

/** φ, the standard normal density. */
// @ts-ignore: decorator
@inline
export function normalPdf4(x: v128): v128 {
  return f32x4.mul(gaussian4(x), c(0.3989422804014327));
}

/** cos 2πu and sin 2πu for u in [0, 1): quarter turns, then polynomials on |angle| ≤ π/4. `sine` is a constant at each call. */
// @ts-ignore: decorator
@inline
export function turn4(u: v128, sine: bool): v128 {
  const k = f32x4.nearest(f32x4.mul(u, c(4)));
  const a = f32x4.mul(f32x4.sub(u, f32x4.mul(k, c(0.25))), c(6.283185307179586));
  const q = i32x4.add(f32x4.add(k, c(12582912)), i32x4.splat(sine ? 0 : 1));
  const z = f32x4.mul(a, a);
  let s = madd(c(-1.9515295891e-4), z, c(8.3321608736e-3));
  s = madd(s, z, c(-1.6666654611e-1));
  s = madd(f32x4.mul(s, z), a, a);
  let o = madd(c(2.443315711809948e-5), z, c(-1.388731625493765e-3));
  o = madd(o, z, c(4.166664568298827e-2));
  o = madd(f32x4.mul(o, z), z, madd(z, c(-0.5), c(1)));
  // cos x = sin(x + a quarter): with the quarter counted in q, odd q takes the cosine, q of 2 and 3 (mod 4) the minus sign.
  const odd = i32x4.ne(v128.and(q, i32x4.splat(1)), i32x4.splat(0));
  const sign = i32x4.shl(v128.and(q, i32x4.splat(2)), 30);
  return v128.xor(v128.bitselect(o, s, odd), sign);
}

/** Φ, the standard normal distribution function: φ-shaped tail times a fit of erfcx(|x|/√2)/2. */
// @ts-ignore: decorator
@inline
export function normalCdf4(x: v128): v128 {
  const t = f32x4.div(c(1), madd(f32x4.pmin(f32x4.abs(x), c(14.5)), c(0.35), c(1)));
  let y = madd(c(-0.029158229), t, c(0.144032553));
  y = madd(y, t, c(-0.255842298));
  y = madd(y, t, c(0.15932332));
  y = madd(y, t, c(-0.0232147388));
  y = madd(y, t, c(0.105553456));
  y = madd(y, t, c(0.119821057));
  y = madd(y, t, c(0.139863536));
  y = madd(y, t, c(0.139621302));
  const tail = f32x4.mul(f32x4.mul(y, t), gaussian4(x));
  return v128.bitselect(f32x4.sub(c(1), tail), tail, f32x4.gt(x, c(0)));
}
