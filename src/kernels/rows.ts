/** Rows by index: gather, combine, route, segment sums, and additions at given places. */

import { cutOf, orderOf } from "./select";
import { addRow, copyRow, dotOf, fillRow, groupAt, int, madd, row, sumRows } from "./vectors";

// @ts-ignore: decorator
@inline
function setInt(p: usize, i: i32, value: i32): void {
  store<i32>(p + ((<usize>i) << 2), value);
}

export function gatherRows(begin: i32, end: i32, src: usize, index: usize, out: usize, rows: i32, width: i32): void {
  for (let r = begin; r < end; r++) {
    const from = int(index, r);
    if (from < 0) fillRow(row(out, r, width), i32x4.splat(0), width);
    else copyRow(row(src, from, width), row(out, r, width), width);
  }
}

/** y = weight·x, or y += weight·x. `add` is a constant at each call; elements are treated alike in vectors and alone. */
// @ts-ignore: decorator
@inline
function scaledRow(x: usize, weight: f32, y: usize, n: i32, add: bool): void {
  const w = f32x4.splat(weight);
  let i = 0;
  for (; i <= n - 4; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(y + at, add ? madd(v128.load(x + at), w, v128.load(y + at)) : f32x4.mul(v128.load(x + at), w));
  }
  for (; i < n; i++) {
    const at = (<usize>i) << 2;
    const v = v128.load32_splat(x + at);
    v128.store_lane<f32>(y + at, add ? madd(v, w, v128.load32_splat(y + at)) : f32x4.mul(v, w), 0);
  }
}

export function combineRows(begin: i32, end: i32, src: usize, position: usize, weights: usize, rowOffsets: usize, y: usize, n: i32, k: i32, width: i32): void {
  for (let r = begin; r < end; r++) {
    const to = row(y, r, width);
    let first = true;
    const stop = rowOffsets ? int(rowOffsets, r + 1) : (r + 1) * k;
    for (let a = rowOffsets ? int(rowOffsets, r) : r * k; a < stop; a++) {
      const at = int(position, a);
      if (at < 0) continue;
      const from = row(src, at, width);
      const weight: f32 = weights ? load<f32>(weights + ((<usize>a) << 2)) : 1;
      if (first) scaledRow(from, weight, to, width, false);
      else scaledRow(from, weight, to, width, true);
      first = false;
    }
    if (first) fillRow(to, f32x4.splat(0), width);
  }
}

export function combineRowsGrad(begin: i32, end: i32, src: usize, position: usize, weights: usize, rowOffsets: usize, dy: usize, dSrc: usize, dWeights: usize, n: i32, k: i32, width: i32): void {
  for (let r = begin; r < end; r++) {
    const from = row(dy, r, width);
    const stop = rowOffsets ? int(rowOffsets, r + 1) : (r + 1) * k;
    for (let a = rowOffsets ? int(rowOffsets, r) : r * k; a < stop; a++) {
      const at = int(position, a);
      const here = (<usize>a) << 2;
      if (dWeights) store<f32>(dWeights + here, at < 0 ? 0 : <f32>dotOf(from, row(src, at, width), width));
      if (dSrc && at >= 0) scaledRow(from, load<f32>(weights + here), row(dSrc, at, width), width, false);
    }
  }
}

/** Returns 1 at an expert past the end, else 0. scratch: a counter for each expert; with priorities also groups + 1 offsets, a place and a number for each assignment, and a number. */
export function limitPerExpert(begin: i32, end: i32, expert: usize, priority: usize, n: i32, k: i32, groups: i32, capacity: i32, scratch: usize): i32 {
  const m = n * k;
  const counts = scratch;
  for (let e = 0; e <= groups; e++) setInt(counts, e, 0);
  if (!priority) {
    for (let a = 0; a < k; a++) {
      for (let j = a; j < m; j += k) {
        const e = int(expert, j);
        if (<u32>e >= <u32>groups) {
          if (e >= 0) return 1;
          continue;
        }
        const count = int(counts, e);
        setInt(counts, e, count + 1);
        if (count >= capacity) setInt(expert, j, -1);
      }
    }
    return 0;
  }
  // Group the assignments by expert, in the order of arrival, as in routeByExpert; then cut each expert's list.
  const order = scratch + ((<usize>(groups + 1)) << 2), values = order + ((<usize>m) << 2), cut = values + ((<usize>m) << 3);
  for (let j = 0; j < m; j++) {
    const e = int(expert, j);
    if (<u32>e < <u32>groups) setInt(counts, e, int(counts, e) + 1);
    else if (e >= 0) return 1;
  }
  let total = 0;
  for (let e = 0; e < groups; e++) {
    const count = int(counts, e);
    setInt(counts, e, total);
    total += count;
  }
  for (let a = 0; a < k; a++) {
    for (let j = a; j < m; j += k) {
      const e = int(expert, j);
      if (e < 0) continue;
      const at = int(counts, e);
      setInt(counts, e, at + 1);
      setInt(order, at, j);
      store<f32>(values + ((<usize>at) << 2), load<f32>(priority + ((<usize>j) << 2)));
    }
  }
  for (let e = 0, from = 0; e < groups; e++) {
    const stop = int(counts, e);
    if (stop - from > capacity) {
      const mine = values + ((<usize>from) << 2);
      const last = capacity > 0 ? cutOf(mine, 4, stop - from, capacity, values + ((<usize>m) << 2), cut) : -1;
      for (let at = from; at < stop; at++) {
        const v = orderOf(load<f32>(values + ((<usize>at) << 2)));
        if (last < 0 || v < load<f32>(cut) || (v == load<f32>(cut) && at - from > last)) setInt(expert, int(order, at), -1);
      }
    }
    from = stop;
  }
  return 0;
}

export function addIndices(begin: i32, end: i32, a: usize, b: usize, scale: i32, divisor: i32, out: usize, n: i32): void {
  for (let i = begin; i < end; i++) {
    const first = int(a, i), second = int(b, i / divisor);
    setInt(out, i, first < 0 || second < 0 ? -1 : first + scale * second);
  }
}

export function maskIndices(begin: i32, end: i32, index: usize, keep: usize, out: usize, n: i32): void {
  for (let i = begin; i < end; i++) setInt(out, i, load<f32>(keep + ((<usize>i) << 2)) > 0 ? int(index, i) : -1);
}

export function gatherIndices(begin: i32, end: i32, src: usize, index: usize, out: usize, n: i32): void {
  for (let i = begin; i < end; i++) {
    const at = int(index, i);
    setInt(out, i, at < 0 ? -1 : int(src, at));
  }
}

export function groupedBias(begin: i32, end: i32, offsets: usize, groups: i32, x: usize, bias: usize, y: usize, width: i32): void {
  let group = groupAt(offsets, groups, begin);
  const stop = min(end, int(offsets, groups));
  for (let r = begin; r < stop; r++) {
    while (r >= int(offsets, group + 1)) group++;
    const from = row(x, r, width), to = row(y, r, width), add = row(bias, group, width);
    let i = 0;
    for (; i <= width - 4; i += 4) {
      const at = (<usize>i) << 2;
      v128.store(to + at, f32x4.add(v128.load(from + at), v128.load(add + at)));
    }
    for (; i < width; i++) {
      const at = (<usize>i) << 2;
      store<f32>(to + at, load<f32>(from + at) + load<f32>(add + at));
    }
  }
}

export function groupedBiasGrad(begin: i32, end: i32, offsets: usize, groups: i32, dy: usize, dBias: usize, width: i32): void {
  for (let e = begin; e < end; e++) {
    const first = int(offsets, e);
    sumRows(row(dy, first, width), width, int(offsets, e + 1) - first, row(dBias, e, width), width);
  }
}

/** Counting sort in three passes: count, place (each offset moves to its group's end), move offsets back by one. Returns 1 at an expert past the end, else 0. */
export function routeByExpert(begin: i32, end: i32, expert: usize, m: i32, groups: i32, offsets: usize, order: usize, position: usize): i32 {
  for (let e = 0; e <= groups; e++) setInt(offsets, e, 0);
  for (let j = 0; j < m; j++) {
    const e = int(expert, j);
    if (<u32>e < <u32>groups) setInt(offsets, e, int(offsets, e) + 1);
    else if (e >= 0) return 1;
  }
  let total = 0;
  for (let e = 0; e < groups; e++) {
    const count = int(offsets, e);
    setInt(offsets, e, total);
    total += count;
  }
  for (let j = 0; j < m; j++) {
    const e = int(expert, j);
    if (e < 0) {
      setInt(position, j, -1);
      continue;
    }
    const place = int(offsets, e);
    setInt(offsets, e, place + 1);
    setInt(order, place, j);
    setInt(position, j, place);
  }
  for (let e = groups; e > 0; e--) setInt(offsets, e, int(offsets, e - 1));
  setInt(offsets, 0, 0);
  for (let j = total; j < m; j++) setInt(order, j, -1);
  return 0;
}

/** Radix sort by digits of 10 bits, lowest first. scratch: n keys, n places, n keys, n places, 1,024 counters, int32 each. */
export function uniqueIndices(begin: i32, end: i32, index: usize, n: i32, limit: i32, rows: usize, offsets: usize, order: usize, scratch: usize): void {
  const bytes = (<usize>n) << 2;
  let keys = scratch, places = scratch + bytes;
  let keysTo = scratch + 2 * bytes, placesTo = scratch + 3 * bytes;
  const counts = scratch + 4 * bytes;
  for (let i = 0; i < n; i++) {
    setInt(keys, i, int(index, i));
    setInt(places, i, i);
  }
  for (let shift = 0; shift < 31 && (limit - 1) >> shift > 0; shift += 10) {
    for (let d = 0; d < 1024; d++) setInt(counts, d, 0);
    for (let i = 0; i < n; i++) {
      const d = (int(keys, i) >> shift) & 1023;
      setInt(counts, d, int(counts, d) + 1);
    }
    let total = 0;
    for (let d = 0; d < 1024; d++) {
      const count = int(counts, d);
      setInt(counts, d, total);
      total += count;
    }
    for (let i = 0; i < n; i++) {
      const key = int(keys, i);
      const d = (key >> shift) & 1023;
      const place = int(counts, d);
      setInt(counts, d, place + 1);
      setInt(keysTo, place, key);
      setInt(placesTo, place, int(places, i));
    }
    const k = keys, p = places;
    keys = keysTo;
    places = placesTo;
    keysTo = k;
    placesTo = p;
  }
  let slots = 0;
  for (let i = 0; i < n; i++) {
    const key = int(keys, i);
    setInt(order, i, int(places, i));
    if (i > 0 && key == int(keys, i - 1)) continue;
    setInt(rows, slots, key);
    setInt(offsets, slots, i);
    slots++;
  }
  for (let s = slots; s < n; s++) setInt(rows, s, -1);
  for (let s = slots; s <= n; s++) setInt(offsets, s, n);
}

export function segmentSumRows(begin: i32, end: i32, src: usize, order: usize, offsets: usize, slots: i32, out: usize, width: i32): void {
  for (let s = begin; s < end; s++) {
    const first = int(offsets, s);
    const stop = int(offsets, s + 1);
    const to = row(out, s, width);
    if (first == stop) fillRow(to, f32x4.splat(0), width);
    else copyRow(row(src, int(order, first), width), to, width);
    for (let p = first + 1; p < stop; p++) addRow(row(src, int(order, p), width), to, width);
  }
}

export function addRowsAt(begin: i32, end: i32, src: usize, rows: usize, slots: i32, dst: usize, width: i32): void {
  for (let s = begin; s < end; s++) {
    const to = int(rows, s);
    if (to >= 0) addRow(row(src, s, width), row(dst, to, width), width);
  }
}

export function maskRows(begin: i32, end: i32, flags: usize, src: usize, dst: usize, rows: i32, width: i32): void {
  for (let r = begin; r < end; r++) {
    if (int(flags, r)) fillRow(row(dst, r, width), i32x4.splat(0), width);
    else if (src != dst) copyRow(row(src, r, width), row(dst, r, width), width);
  }
}

/** An index past the end gives 0, and a mark in `beyond`. */
export function gatherLast(begin: i32, end: i32, src: usize, index: usize, out: usize, rows: i32, cols: i32, k: i32, beyond: usize): void {
  for (let r = begin; r < end; r++) {
    const from = row(src, r, cols);
    for (let i = r * k; i < (r + 1) * k; i++) {
      const j = int(index, i);
      const inside = <u32>j < <u32>cols;
      if (!inside && j >= 0) setInt(beyond, 0, 1);
      store<f32>(out + ((<usize>i) << 2), inside ? load<f32>(from + ((<usize>j) << 2)) : 0);
    }
  }
}

/** What has an index past the end is left out, with a mark in `beyond`. */
export function scatterAddLast(begin: i32, end: i32, src: usize, index: usize, dst: usize, rows: i32, cols: i32, k: i32, beyond: usize): void {
  for (let r = begin; r < end; r++) {
    const to = row(dst, r, cols);
    for (let i = r * k; i < (r + 1) * k; i++) {
      const j = int(index, i);
      if (<u32>j >= <u32>cols) {
        if (j >= 0) setInt(beyond, 0, 1);
        continue;
      }
      const at = to + ((<usize>j) << 2);
      store<f32>(at, load<f32>(at) + load<f32>(src + ((<usize>i) << 2)));
    }
  }
}

/** Returns 1 when an index past the end was left out, else 0. */
export function bincount(begin: i32, end: i32, src: usize, index: usize, n: i32, out: usize, size: i32): i32 {
  let beyond = 0;
  fillRow(out, f32x4.splat(0), size);
  for (let i = 0; i < n; i++) {
    const j = int(index, i);
    if (<u32>j >= <u32>size) {
      if (j >= 0) beyond = 1;
      continue;
    }
    const at = out + ((<usize>j) << 2);
    store<f32>(at, load<f32>(at) + load<f32>(src + ((<usize>i) << 2)));
  }
  return beyond;
}
