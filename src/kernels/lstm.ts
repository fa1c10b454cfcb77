/** The LSTM cell and its gradient; gates in the order i, f, g, o. */

import { sigmoid4, tanh4 } from "./math";
import { loadUpTo4, storeUpTo4 } from "./vectors";

/** Four cells (fewer at a row's end): gates at `at`, their own places at offset `one`. */
// @ts-ignore: decorator
@inline
function cells(at: usize, width: usize, cPrev: usize, c: usize, h: usize, count: i32): void {
  const i = sigmoid4(loadUpTo4(at, count));
  const f = sigmoid4(loadUpTo4(at + width, count));
  const g = tanh4(loadUpTo4(at + 2 * width, count));
  const o = sigmoid4(loadUpTo4(at + 3 * width, count));
  const cell = f32x4.add(f32x4.mul(f, loadUpTo4(cPrev, count)), f32x4.mul(i, g));
  storeUpTo4(at, i, count);
  storeUpTo4(at + width, f, count);
  storeUpTo4(at + 2 * width, g, count);
  storeUpTo4(at + 3 * width, o, count);
  storeUpTo4(c, cell, count);
  storeUpTo4(h, f32x4.mul(o, tanh4(cell)), count);
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
  const i = loadUpTo4(gates, count), f = loadUpTo4(gates + width, count), g = loadUpTo4(gates + 2 * width, count), o = loadUpTo4(gates + 3 * width, count);
  const t = tanh4(loadUpTo4(c, count));
  const up = loadUpTo4(dh, count);
  const dCell = f32x4.add(loadUpTo4(dc, count), f32x4.mul(f32x4.mul(up, o), f32x4.sub(unit, f32x4.mul(t, t))));
  const previous = loadUpTo4(cPrev, count);
  storeUpTo4(dGates, f32x4.mul(f32x4.mul(dCell, g), f32x4.mul(i, f32x4.sub(unit, i))), count);
  storeUpTo4(dGates + width, f32x4.mul(f32x4.mul(dCell, previous), f32x4.mul(f, f32x4.sub(unit, f))), count);
  storeUpTo4(dGates + 2 * width, f32x4.mul(f32x4.mul(dCell, i), f32x4.sub(unit, f32x4.mul(g, g))), count);
  storeUpTo4(dGates + 3 * width, f32x4.mul(f32x4.mul(up, t), f32x4.mul(o, f32x4.sub(unit, o))), count);
  storeUpTo4(dc, f32x4.mul(dCell, f), count);
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
