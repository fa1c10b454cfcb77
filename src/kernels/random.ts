// Philox 4x32-10 and what is drawn from it; core/random.ts is the definition, word for word. Blocks of four elements at a time.

import { log4 } from "./math";
import { splat } from "./lanes";

// @ts-ignore: decorator
@inline
function mulHigh(a: u32, b: u32): u32 {
  return <u32>((<u64>a * <u64>b) >> 32);
}

/** The four words of a block as lanes. */
function words(block: u64, seedLo: u32, seedHi: u32, stream: u32, step: u32): v128 {
  let c0 = <u32>block;
  let c1 = <u32>(block >> 32);
  let c2 = step;
  let c3 = stream;
  let k0 = seedLo;
  let k1 = seedHi;
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(0xd2511f53, c0);
    const high1 = mulHigh(0xcd9e8d57, c2);
    const low0: u32 = 0xd2511f53 * c0;
    const low1: u32 = 0xcd9e8d57 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9e3779b9;
    k1 += 0xbb67ae85;
  }
  let v = i32x4.splat(c0);
  v = i32x4.replace_lane(v, 1, c1);
  v = i32x4.replace_lane(v, 2, c2);
  return i32x4.replace_lane(v, 3, c3);
}

/** Uniform in [0, 1): the upper 24 bits. */
// @ts-ignore: decorator
@inline
function uniform4(w: v128): v128 {
  return f32x4.mul(f32x4.convert_i32x4_s(i32x4.shr_u(w, 8)), splat(5.9604644775390625e-8));
}

/** cos 2πu and sin 2πu of lanes 1 and 3 (u in [0, 1)) as (cos₁, sin₁, cos₃, sin₃). */
function turn4(u: v128): v128 {
  // Quarter turns and a rest in [−1/8, 1/8] turns.
  const q = f32x4.nearest(f32x4.mul(u, splat(4)));
  const x = f32x4.mul(f32x4.sub(u, f32x4.mul(q, splat(0.25))), splat(6.283185307179586));
  const z = f32x4.mul(x, x);
  let s = splat(-1.9515295891e-4);
  s = f32x4.add(f32x4.mul(s, z), splat(8.3321608736e-3));
  s = f32x4.add(f32x4.mul(s, z), splat(-1.6666654611e-1));
  s = f32x4.add(f32x4.mul(f32x4.mul(s, z), x), x);
  let c = splat(2.443315711809948e-5);
  c = f32x4.add(f32x4.mul(c, z), splat(-1.388731625493765e-3));
  c = f32x4.add(f32x4.mul(c, z), splat(4.166664568298827e-2));
  c = f32x4.add(f32x4.mul(f32x4.mul(c, z), z), f32x4.sub(splat(1), f32x4.mul(splat(0.5), z)));
  const quarter = i32x4.trunc_sat_f32x4_s(q);
  const odd = i32x4.eq(v128.and(quarter, i32x4.splat(1)), i32x4.splat(1));
  const sine = v128.bitselect(c, s, odd);
  const cosine = v128.bitselect(s, c, odd);
  // Signs by quarter: sin is negative in 2 and 3, cos in 1 and 2.
  const sinSign = i32x4.shl(v128.and(quarter, i32x4.splat(2)), 30);
  const cosSign = i32x4.shl(v128.and(i32x4.add(quarter, i32x4.splat(1)), i32x4.splat(2)), 30);
  const signedSin = v128.xor(sine, sinSign);
  const signedCos = v128.xor(cosine, cosSign);
  return v128.shuffle<f32>(signedCos, signedSin, 1, 5, 3, 7);
}

/** Four standard normals of a block (Box-Muller). */
function normal4(w: v128): v128 {
  const u = uniform4(w);
  // Lanes 0 and 2, each twice: the radius of a pair. u₁ in (0, 1].
  const u1 = f32x4.add(v128.shuffle<f32>(u, u, 0, 0, 2, 2), splat(5.9604644775390625e-8));
  const radius = f32x4.sqrt(f32x4.mul(splat(-2), log4(u1)));
  return f32x4.mul(radius, turn4(u));
}

// @ts-ignore: decorator
@inline
function lane(v: v128, i: i32): f32 {
  if (i == 0) return f32x4.extract_lane(v, 0);
  if (i == 1) return f32x4.extract_lane(v, 1);
  if (i == 2) return f32x4.extract_lane(v, 2);
  return f32x4.extract_lane(v, 3);
}

export function randomUniform(begin: i32, end: i32, out: usize, n: i32, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64, low: f32, high: f32): void {
  const first = <u64>start;
  for (let i = begin; i < end; ) {
    const at = first + <u64>i;
    const v = f32x4.add(splat(low), f32x4.mul(splat(high - low), uniform4(words(at >> 2, seedLo, seedHi, stream, step))));
    let j = <i32>(at & 3);
    if (j == 0 && i + 4 <= end) {
      v128.store(out + (<usize>i << 2), v);
      i += 4;
    } else for (; j < 4 && i < end; j++, i++) store<f32>(out + (<usize>i << 2), lane(v, j));
  }
}

export function randomNormal(begin: i32, end: i32, out: usize, n: i32, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64, mean: f32, std: f32): void {
  const first = <u64>start;
  for (let i = begin; i < end; ) {
    const at = first + <u64>i;
    const v = f32x4.add(splat(mean), f32x4.mul(splat(std), normal4(words(at >> 2, seedLo, seedHi, stream, step))));
    let j = <i32>(at & 3);
    if (j == 0 && i + 4 <= end) {
      v128.store(out + (<usize>i << 2), v);
      i += 4;
    } else for (; j < 4 && i < end; j++, i++) store<f32>(out + (<usize>i << 2), lane(v, j));
  }
}

export function dropout(begin: i32, end: i32, x: usize, y: usize, n: i32, rate: f32, seedLo: u32, seedHi: u32, stream: u32, step: u32, start: f64): void {
  const first = <u64>start;
  const keep: f32 = 1 / (1 - rate);
  for (let i = begin; i < end; ) {
    const at = first + <u64>i;
    const u = uniform4(words(at >> 2, seedLo, seedHi, stream, step));
    let j = <i32>(at & 3);
    if (j == 0 && i + 4 <= end) {
      const scaled = f32x4.mul(v128.load(x + (<usize>i << 2)), splat(keep));
      v128.store(y + (<usize>i << 2), v128.and(scaled, f32x4.ge(u, splat(rate))));
      i += 4;
    } else {
      for (; j < 4 && i < end; j++, i++) store<f32>(y + (<usize>i << 2), lane(u, j) >= rate ? load<f32>(x + (<usize>i << 2)) * keep : 0);
    }
  }
}
