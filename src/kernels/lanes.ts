// Shorthands.
// @ts-ignore: decorator
@inline
export function splat(x: f32): v128 { return f32x4.splat(x); }
// @ts-ignore: decorator
@inline
export function sum4(v: v128): f32 {
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1) + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}
