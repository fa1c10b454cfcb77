/** The LSTM cell and its gradient; gates in the order i, f, g, o. */

import { sigmoid4, tanh4 } from "./math";
import { loadPart, storePart } from "./vectors";

// @ts-ignore: decorator
@inline
function get(p: usize, count: i32): v128 {
  return count >= 4 ? v128.load(p) : loadPart(p, count);
}

// @ts-ignore: decorator
@inline
function put(p: usize, v: v128, count: i32): void {
  if (count >= 4) v128.store(p, v);
  else storePart(p, v, count);
}

/** Four cells (fewer at a row's end): gates at `at`, their own places at offset `one`. */
// @ts-ignore: decorator
@inline
function cells(at: usize, width: usize, cPrev: usize, c: usize, h: usize, count: i32): void {
  const i = sigmoid4(get(at, count));
  const f = sigmoid4(get(at + width, count));
  const g = tanh4(get(at + 2 * width, count));
  const o = sigmoid4(get(at + 3 * width, count));
  const cell = f32x4.add(f32x4.mul(f, get(cPrev, count)), f32x4.mul(i, g));
  put(at, i, count);
  put(at + width, f, count);
  put(at + 2 * width, g, count);
  put(at + 3 * width, o, count);
  put(c, cell, count);
  put(h, f32x4.mul(o, tanh4(cell)), count);
}

export function lstmCell(begin: i32, end: i32, gates: usize, cPrev: usize, c: usize, h: usize, rows: i32, hidden: i32): void {
  const width = (<usize>hidden) << 2;
  for (let r = begin; r < end; r++) {
    const at = gates + 4 * width * <usize>r;
    const one = width * <usize>r;
    let j = 0;
    for (; j <= hidden - 4; j += 4) {
      const o = (<usize>j) << 2;
      cells(at + o, width, cPrev + one + o, c + one + o, h + one + o, 4);
    }
    const o = (<usize>j) << 2;
    if (j < hidden) cells(at + o, width, cPrev + one + o, c + one + o, h + one + o, hidden - j);
  }
}

// @ts-ignore: decorator
@inline
function cellsGrad(gates: usize, width: usize, cPrev: usize, c: usize, dh: usize, dc: usize, dGates: usize, count: i32): void {
  const unit = f32x4.splat(1);
  const i = get(gates, count), f = get(gates + width, count), g = get(gates + 2 * width, count), o = get(gates + 3 * width, count);
  const t = tanh4(get(c, count));
  const up = get(dh, count);
  const dCell = f32x4.add(get(dc, count), f32x4.mul(f32x4.mul(up, o), f32x4.sub(unit, f32x4.mul(t, t))));
  const previous = get(cPrev, count);
  put(dGates, f32x4.mul(f32x4.mul(dCell, g), f32x4.mul(i, f32x4.sub(unit, i))), count);
  put(dGates + width, f32x4.mul(f32x4.mul(dCell, previous), f32x4.mul(f, f32x4.sub(unit, f))), count);
  put(dGates + 2 * width, f32x4.mul(f32x4.mul(dCell, i), f32x4.sub(unit, f32x4.mul(g, g))), count);
  put(dGates + 3 * width, f32x4.mul(f32x4.mul(up, t), f32x4.mul(o, f32x4.sub(unit, o))), count);
  put(dc, f32x4.mul(dCell, f), count);
}

export function lstmCellGrad(begin: i32, end: i32, gates: usize, cPrev: usize, c: usize, dh: usize, dc: usize, dGates: usize, rows: i32, hidden: i32): void {
  const width = (<usize>hidden) << 2;
  for (let r = begin; r < end; r++) {
    const four: usize = 4 * width * <usize>r;
    const one = width * <usize>r;
    let j = 0;
    for (; j <= hidden - 4; j += 4) {
      const o = (<usize>j) << 2;
      cellsGrad(gates + four + o, width, cPrev + one + o, c + one + o, dh + one + o, dc + one + o, dGates + four + o, 4);
    }
    const o = (<usize>j) << 2;
    if (j < hidden) cellsGrad(gates + four + o, width, cPrev + one + o, c + one + o, dh + one + o, dc + one + o, dGates + four + o, hidden - j);
  }
}
