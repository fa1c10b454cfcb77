/**
 * Philox 4x32-10 and what is drawn from it; core/random.ts is the definition. Four blocks (sixteen elements) at a time: lane j of word w is word w of
 * block 4·group + j. Groups are counted from element 0 of the stream, so an element does not depend on where a part begins.
 */

import { log4, turn4 } from "./math";
import { groupAt, int } from "./vectors";

/** Low halves of the products of the even and the odd lanes, in order. */
// @ts-ignore: decorator
@inline
function lowWords(a: v128, b: v128): v128 {
  return v128.shuffle<i32>(a, b, 0, 2, 4, 6);
}

// @ts-ignore: decorator
@inline
function highWords(a: v128, b: v128): v128 {
  return v128.shuffle<i32>(a, b, 1, 3, 5, 7);
}

/** What a group is turned into. */
// @ts-ignore: decorator
@inline const UNIFORM = 0;
// @ts-ignore: decorator
@inline const NORMAL = 1;
// @ts-ignore: decorator
@inline const DROPOUT = 2;

/** Words to [0, 1): the upper 24 bits. */
// @ts-ignore: decorator
@inline
function unit(w: v128): v128 {
  return f32x4.mul(f32x4.convert_i32x4_u(i32x4.shr_u(w, 8)), f32x4.splat(5.9604644775390625e-8));
}

// @ts-ignore: decorator
@inline
function radius(w: v128): v128 {
  const u = f32x4.mul(f32x4.convert_i32x4_u(i32x4.add(i32x4.shr_u(w, 8), i32x4.splat(1))), f32x4.splat(5.9604644775390625e-8));
  return f32x4.sqrt(f32x4.mul(f32x4.splat(-2), log4(u)));
}

/** Lanes [from, to) of v, which are elements at.. of y; `x` gives what dropout lets through. */
// @ts-ignore: decorator
@inline
function put(kind: i32, v: v128, x: usize, y: usize, from: i32, to: i32, a: v128, b: v128): void {
  if (from <= 0 && to >= 4) {
    if (kind == DROPOUT) v128.store(y, v128.and(f32x4.ge(v, a), f32x4.mul(v128.load(x), b)));
    else v128.store(y, v);
    return;
  }
  for (let i = max(from, 0); i < min(to, 4); i++) {
    let lane = f32x4.extract_lane(v, 0);
    if (i == 1) lane = f32x4.extract_lane(v, 1);
    if (i == 2) lane = f32x4.extract_lane(v, 2);
    if (i == 3) lane = f32x4.extract_lane(v, 3);
    const at = (<usize>i) << 2;
    if (kind == DROPOUT) store<f32>(y + at, lane >= f32x4.extract_lane(a, 0) ? load<f32>(x + at) * f32x4.extract_lane(b, 0) : 0);
    else store<f32>(y + at, lane);
  }
}

/** Elements [begin, end) of y: uniform in [a, a + b) but at most `most`; normal a + b·z; dropout of x with rate a and scale b. */
// @ts-ignore: decorator
@inline
function draw(kind: i32, begin: i32, end: i32, x: usize, y: usize, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64, a0: f32, b0: f32, most: f32): void {
  const a = f32x4.splat(a0), b = f32x4.splat(b0), top = f32x4.splat(most);
  const origin = <i64>start;
  const stop = origin + <i64>end;
  const m0 = i32x4.splat(0xd2511f53), m1 = i32x4.splat(0xcd9e8d57);
  for (let group = (origin + <i64>begin) >> 4; group << 4 < stop; group++) {
    // Blocks 4·group .. 4·group + 3 differ in their low two bits alone: no carry into the high word.
    let c0 = i32x4.add(i32x4.splat(<i32>(group << 2)), i32x4(0, 1, 2, 3));
    let c1 = i32x4.splat(<i32>(group >> 30));
    let c2 = i32x4.splat(step);
    let c3 = i32x4.splat(stream);
    let k0 = seedLo, k1 = seedHi;
    for (let round = 0; round < 10; round++) {
      const p = i64x2.extmul_low_i32x4_u(c0, m0), q = i64x2.extmul_high_i32x4_u(c0, m0);
      const s = i64x2.extmul_low_i32x4_u(c2, m1), t = i64x2.extmul_high_i32x4_u(c2, m1);
      c0 = v128.xor(v128.xor(highWords(s, t), c1), i32x4.splat(k0));
      c1 = lowWords(s, t);
      c2 = v128.xor(v128.xor(highWords(p, q), c3), i32x4.splat(k1));
      c3 = lowWords(p, q);
      k0 += 0x9e3779b9;
      k1 += 0xbb67ae85;
    }
    let v0: v128, v1: v128, v2: v128, v3: v128;
    if (kind == NORMAL) {
      const r = radius(c0), s = radius(c2), u = unit(c1), v = unit(c3);
      v0 = f32x4.add(f32x4.mul(f32x4.mul(r, turn4(u, false)), b), a);
      v1 = f32x4.add(f32x4.mul(f32x4.mul(r, turn4(u, true)), b), a);
      v2 = f32x4.add(f32x4.mul(f32x4.mul(s, turn4(v, false)), b), a);
      v3 = f32x4.add(f32x4.mul(f32x4.mul(s, turn4(v, true)), b), a);
    } else {
      v0 = unit(c0);
      v1 = unit(c1);
      v2 = unit(c2);
      v3 = unit(c3);
      if (kind == UNIFORM) {
        v0 = f32x4.pmin(f32x4.add(f32x4.mul(v0, b), a), top);
        v1 = f32x4.pmin(f32x4.add(f32x4.mul(v1, b), a), top);
        v2 = f32x4.pmin(f32x4.add(f32x4.mul(v2, b), a), top);
        v3 = f32x4.pmin(f32x4.add(f32x4.mul(v3, b), a), top);
      }
    }
    // From words of four blocks to blocks of four words.
    const e = v128.shuffle<i32>(v0, v1, 0, 4, 1, 5), f = v128.shuffle<i32>(v2, v3, 0, 4, 1, 5);
    const g = v128.shuffle<i32>(v0, v1, 2, 6, 3, 7), h = v128.shuffle<i32>(v2, v3, 2, 6, 3, 7);
    // Lane 0 is element `first` of y, which may lie before begin; so may all after end.
    const first = <i32>((group << 4) - origin);
    const from = begin - first, to = end - first;
    const at = (<usize>first) << 2;
    put(kind, v128.shuffle<i32>(e, f, 0, 1, 4, 5), x + at, y + at, from, to, a, b);
    put(kind, v128.shuffle<i32>(e, f, 2, 3, 6, 7), x + at + 16, y + at + 16, from - 4, to - 4, a, b);
    put(kind, v128.shuffle<i32>(g, h, 0, 1, 4, 5), x + at + 32, y + at + 32, from - 8, to - 8, a, b);
    put(kind, v128.shuffle<i32>(g, h, 2, 3, 6, 7), x + at + 48, y + at + 48, from - 12, to - 12, a, b);
  }
}

/** The float32 before `high`, so that rounding does not reach it; `high` itself where the range is empty. */
function below(low: f32, high: f32): f32 {
  if (!(high > low)) return Infinity;
  const bits = reinterpret<i32>(high);
  if (high == 0) return reinterpret<f32>(0x80000001);
  return reinterpret<f32>(high > 0 ? bits - 1 : bits + 1);
}

export function randomUniform(begin: i32, end: i32, out: usize, n: i32, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64, low: f32, high: f32): void {
  draw(UNIFORM, begin, end, out, out, seedLo, seedHi, stream, step, start, low, high - low, below(low, high));
}

export function randomNormal(begin: i32, end: i32, out: usize, n: i32, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64, mean: f32, std: f32): void {
  draw(NORMAL, begin, end, out, out, seedLo, seedHi, stream, step, start, mean, std, 0);
}

export function dropout(begin: i32, end: i32, x: usize, y: usize, n: i32, rate: f32, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64): void {
  draw(DROPOUT, begin, end, x, y, seedLo, seedHi, stream, step, start, rate, 1 / (1 - rate), 0);
}

export function randomUniformRows(begin: i32, end: i32, out: usize, rowIds: usize, rows: i32, width: i32, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64, low: f32, high: f32): void {
  const most = below(low, high);
  for (let r = begin; r < end; r++) {
    const at = out + (<usize>r * <usize>width << 2);
    const id = int(rowIds, r);
    if (id < 0) memory.fill(at, 0, (<usize>width) << 2);
    else draw(UNIFORM, 0, width, at, at, seedLo, seedHi, stream, step, (start + <f64>id) * <f64>width, low, high - low, most);
  }
}

export function dropoutRows(begin: i32, end: i32, x: usize, y: usize, rowIds: usize, offsets: usize, groups: i32, first: i32, total: i32, rows: i32, width: i32, rate: f32, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64): void {
  let group = offsets ? groupAt(offsets, groups, begin) : 0;
  for (let r = begin; r < end; r++) {
    const at = <usize>r * <usize>width << 2;
    const id = int(rowIds, r);
    if (id < 0) {
      memory.fill(y + at, 0, (<usize>width) << 2);
      continue;
    }
    while (offsets && group < groups - 1 && r >= int(offsets, group + 1)) group++;
    // In float64: a row and an expert have more pairs than an int32 has numbers.
    const row = (start + <f64>id) * <f64>total + <f64>(first + group);
    draw(DROPOUT, 0, width, x + at, y + at, seedLo, seedHi, stream, step, row * <f64>width, rate, 1 / (1 - rate), 0);
  }
}
