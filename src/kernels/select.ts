/** Selection: the m-th largest of n numbers, and the places that hold the m largest. */

import { number } from "./vectors";

/** What numbers are compared by: NaN counts as −∞. */
// @ts-ignore: decorator
@inline
export function orderOf(v: f32): f32 {
  return v == v ? v : -Infinity;
}

// @ts-ignore: decorator
@inline
function setNumber(p: usize, i: i32, v: f32): void {
  store<f32>(p + ((<usize>i) << 2), v);
}

/** The m-th largest (1 ≤ m ≤ n) of n numbers without NaN, which are reordered: Hoare's selection around the median of three. */
export function mthLargest(x: usize, n: i32, m: i32): f32 {
  let low = 0, high = n - 1;
  const want = m - 1;
  while (low < high) {
    const a = number(x, low), b = number(x, (low + high) >> 1), c = number(x, high);
    const pivot = max(min(a, b), min(max(a, b), c));
    let i = low, j = high;
    while (i <= j) {
      while (number(x, i) > pivot) i++;
      while (number(x, j) < pivot) j--;
      if (i > j) break;
      const v = number(x, i);
      setNumber(x, i++, number(x, j));
      setNumber(x, j--, v);
    }
    if (want <= j) high = j;
    else if (want >= i) low = i;
    else break;
  }
  return number(x, want);
}

/**
 * Where the m largest of n numbers, `step` bytes apart, end: the smallest of them, and the last place at which a number equal to it is still among
 * them (equal ones by lower place). scratch holds n numbers.
 * @returns that place; the number stands at `cut`
 */
export function cutOf(x: usize, step: usize, n: i32, m: i32, scratch: usize, cut: usize): i32 {
  for (let i = 0; i < n; i++) setNumber(scratch, i, orderOf(load<f32>(x + <usize>i * step)));
  const bar = mthLargest(scratch, n, m);
  store<f32>(cut, bar);
  let left = m;
  for (let i = 0; i < n; i++) if (number(scratch, i) > bar) left--;
  for (let i = 0; i < n; i++) if (orderOf(load<f32>(x + <usize>i * step)) == bar && --left == 0) return i;
  return n - 1;
}
