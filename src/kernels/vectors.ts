/** Building blocks of every kernel: where rows and elements of 4 bytes are, parts of vectors at the ends of rows, sums in a fixed order, whole rows copied and added, rows in groups. */

/** Where element i is. */
// @ts-ignore: decorator
@inline
export function place(p: usize, i: i32): usize {
  return p + ((<usize>i) << 2);
}

/** Where row r of rows of `width` elements begins. */
// @ts-ignore: decorator
@inline
export function row(p: usize, r: i32, width: i32): usize {
  return p + (<usize>r * <usize>width << 2);
}

/** Element i, a float32. */
// @ts-ignore: decorator
@inline
export function number(p: usize, i: i32): f32 {
  return load<f32>(place(p, i));
}

/** Element i, an int32. */
// @ts-ignore: decorator
@inline
export function int(p: usize, i: i32): i32 {
  return load<i32>(place(p, i));
}

/** a·b + c; fused where the build has relaxed SIMD. A kernel that uses it must use it for its last, partial vector too. */
// @ts-ignore: decorator
@inline
export function madd(a: v128, b: v128, c: v128): v128 {
  if (isDefined(RELAXED)) return f32x4.relaxed_madd(a, b, c);
  else return f32x4.add(f32x4.mul(a, b), c);
}

/** 1 to 3 elements at p, in a vector that ends with `pad`. */
// @ts-ignore: decorator
@inline
export function loadPartOr(p: usize, count: i32, pad: f32): v128 {
  let v = f32x4.replace_lane(f32x4.splat(pad), 0, load<f32>(p));
  if (count > 1) v = f32x4.replace_lane(v, 1, load<f32>(p, 4));
  if (count > 2) v = f32x4.replace_lane(v, 2, load<f32>(p, 8));
  return v;
}

// @ts-ignore: decorator
@inline
export function loadPart(p: usize, count: i32): v128 {
  return loadPartOr(p, count, 0);
}

/** The first 1 to 3 elements of v to p. */
// @ts-ignore: decorator
@inline
export function storePart(p: usize, v: v128, count: i32): void {
  store<f32>(p, f32x4.extract_lane(v, 0));
  if (count > 1) store<f32>(p, f32x4.extract_lane(v, 1), 4);
  if (count > 2) store<f32>(p, f32x4.extract_lane(v, 2), 8);
}

/** Four elements at p, or the `count` that are left of a row and zeros. */
// @ts-ignore: decorator
@inline
export function loadUpTo4(p: usize, count: i32): v128 {
  return count >= 4 ? v128.load(p) : loadPart(p, count);
}

/** The four elements of v to p, or the first `count` where fewer are left of a row. */
// @ts-ignore: decorator
@inline
export function storeUpTo4(p: usize, v: v128, count: i32): void {
  if (count >= 4) v128.store(p, v);
  else storePart(p, v, count);
}

/** Sum of the four lanes in float64. */
// @ts-ignore: decorator
@inline
export function lanes(v: v128): f64 {
  return (<f64>f32x4.extract_lane(v, 0) + <f64>f32x4.extract_lane(v, 1)) + (<f64>f32x4.extract_lane(v, 2) + <f64>f32x4.extract_lane(v, 3));
}

/** Elements added in float32 before the sum goes over to float64: few enough to keep the rounding near that of one element. */
export const BLOCK: i32 = 512;

/** Σ x over n elements. */
export function sumOf(x: usize, n: i32): f64 {
  let total: f64 = 0;
  let i = 0;
  while (n - i >= 16) {
    const stop = i + min(BLOCK, (n - i) & ~15);
    let a = f32x4.splat(0), b = a, c = a, d = a;
    for (; i < stop; i += 16) {
      const p = x + ((<usize>i) << 2);
      a = f32x4.add(a, v128.load(p));
      b = f32x4.add(b, v128.load(p, 16));
      c = f32x4.add(c, v128.load(p, 32));
      d = f32x4.add(d, v128.load(p, 48));
    }
    total += lanes(f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
  }
  for (; i < n; i++) total += <f64>load<f32>(x + ((<usize>i) << 2));
  return total;
}

/** Σ x·y over n elements. */
export function dotOf(x: usize, y: usize, n: i32): f64 {
  let total: f64 = 0;
  let i = 0;
  while (n - i >= 16) {
    const stop = i + min(BLOCK, (n - i) & ~15);
    let a = f32x4.splat(0), b = a, c = a, d = a;
    for (; i < stop; i += 16) {
      const at = (<usize>i) << 2;
      const p = x + at, q = y + at;
      a = madd(v128.load(p), v128.load(q), a);
      b = madd(v128.load(p, 16), v128.load(q, 16), b);
      c = madd(v128.load(p, 32), v128.load(q, 32), c);
      d = madd(v128.load(p, 48), v128.load(q, 48), d);
    }
    total += lanes(f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
  }
  for (; i < n; i++) total += <f64>load<f32>(x + ((<usize>i) << 2)) * <f64>load<f32>(y + ((<usize>i) << 2));
  return total;
}

/** Largest of n elements, NaN left out, −∞ of none. */
export function largestOf(x: usize, n: i32): f32 {
  let a = f32x4.splat(-Infinity), b = a, c = a, d = a;
  let i = 0;
  for (; i <= n - 16; i += 16) {
    const p = x + ((<usize>i) << 2);
    a = f32x4.pmax(a, v128.load(p));
    b = f32x4.pmax(b, v128.load(p, 16));
    c = f32x4.pmax(c, v128.load(p, 32));
    d = f32x4.pmax(d, v128.load(p, 48));
  }
  a = f32x4.pmax(f32x4.pmax(a, b), f32x4.pmax(c, d));
  for (; i <= n - 4; i += 4) a = f32x4.pmax(a, v128.load(x + ((<usize>i) << 2)));
  let most = max(max(f32x4.extract_lane(a, 0), f32x4.extract_lane(a, 1)), max(f32x4.extract_lane(a, 2), f32x4.extract_lane(a, 3)));
  for (; i < n; i++) {
    const v = load<f32>(x + ((<usize>i) << 2));
    most = v > most ? v : most;
  }
  return most;
}

/** dst = src, n elements of 4 bytes. */
export function copyRow(src: usize, dst: usize, n: i32): void {
  let i = 0;
  for (; i <= n - 8; i += 8) {
    const at = (<usize>i) << 2;
    const a = v128.load(src + at), b = v128.load(src + at, 16);
    v128.store(dst + at, a);
    v128.store(dst + at, b, 16);
  }
  for (; i < n; i++) store<i32>(dst + ((<usize>i) << 2), load<i32>(src + ((<usize>i) << 2)));
}

/** n elements of 4 bytes with the bits of v's lanes, which are all alike. */
export function fillRow(dst: usize, v: v128, n: i32): void {
  let i = 0;
  for (; i <= n - 4; i += 4) v128.store(dst + ((<usize>i) << 2), v);
  const bits = i32x4.extract_lane(v, 0);
  for (; i < n; i++) store<i32>(dst + ((<usize>i) << 2), bits);
}

/** dst += src. */
export function addRow(src: usize, dst: usize, n: i32): void {
  let i = 0;
  for (; i <= n - 4; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(dst + at, f32x4.add(v128.load(dst + at), v128.load(src + at)));
  }
  for (; i < n; i++) {
    const at = (<usize>i) << 2;
    store<f32>(dst + at, load<f32>(dst + at) + load<f32>(src + at));
  }
}

/** out[j] = Σ over `rows` rows, `stride` elements apart, of src[j], j < n. Eight rows are added among themselves first. */
export function sumRows(src: usize, stride: i32, rows: i32, out: usize, n: i32): void {
  fillRow(out, f32x4.splat(0), n);
  const step = (<usize>stride) << 2;
  let r = 0;
  for (; r <= rows - 8; r += 8) {
    let j = 0;
    const p = src + step * <usize>r;
    for (; j <= n - 4; j += 4) {
      const q = p + ((<usize>j) << 2);
      const o = out + ((<usize>j) << 2);
      const a = f32x4.add(f32x4.add(v128.load(q), v128.load(q + step)), f32x4.add(v128.load(q + 2 * step), v128.load(q + 3 * step)));
      const b = f32x4.add(f32x4.add(v128.load(q + 4 * step), v128.load(q + 5 * step)), f32x4.add(v128.load(q + 6 * step), v128.load(q + 7 * step)));
      v128.store(o, f32x4.add(v128.load(o), f32x4.add(a, b)));
    }
    for (; j < n; j++) {
      const q = p + ((<usize>j) << 2);
      const o = out + ((<usize>j) << 2);
      const a = (load<f32>(q) + load<f32>(q + step)) + (load<f32>(q + 2 * step) + load<f32>(q + 3 * step));
      const b = (load<f32>(q + 4 * step) + load<f32>(q + 5 * step)) + (load<f32>(q + 6 * step) + load<f32>(q + 7 * step));
      store<f32>(o, load<f32>(o) + (a + b));
    }
  }
  for (; r < rows; r++) addRow(src + step * <usize>r, out, n);
}

// @ts-ignore: decorator
@inline
export function splat(x: f32): v128 {
  return f32x4.splat(x);
}

/** The group that row r is in or after: the last of `groups` that begins at or before it, empty ones before that passed over. */
export function groupAt(offsets: usize, groups: i32, r: i32): i32 {
  let group = 0;
  let high = groups;
  while (high - group > 1) {
    const middle = (group + high) >>> 1;
    if (load<i32>(offsets + ((<usize>middle) << 2)) <= r) group = middle;
    else high = middle;
  }
  return group;
}
