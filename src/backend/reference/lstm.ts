/** The LSTM cell and its gradient. */

import type { Buf } from "../backend.js";
import { sigmoid } from "./elementwise.js";
import { floats } from "./memory.js";

export function lstmCell(gates: Buf, cPrev: Buf, c: Buf, h: Buf, rows: number, hidden: number): void {
  const [G, P, C, H] = [floats(gates), floats(cPrev), floats(c), floats(h)];
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < hidden; j++) {
      const at = r * 4 * hidden + j;
      const i = (G[at] = sigmoid(G[at]!));
      const f = (G[at + hidden] = sigmoid(G[at + hidden]!));
      const g = (G[at + 2 * hidden] = Math.tanh(G[at + 2 * hidden]!));
      const o = (G[at + 3 * hidden] = sigmoid(G[at + 3 * hidden]!));
      const cell = f * P[r * hidden + j]! + i * g;
      C[r * hidden + j] = cell;
      H[r * hidden + j] = o * Math.tanh(cell);
    }
  }
}

export function lstmCellGrad(gates: Buf, cPrev: Buf, c: Buf, dh: Buf, dc: Buf, dGates: Buf, rows: number, hidden: number): void {
  const [G, P, C, dH, dC, dG] = [floats(gates), floats(cPrev), floats(c), floats(dh), floats(dc), floats(dGates)];
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < hidden; j++) {
      const at = r * 4 * hidden + j;
      const one = r * hidden + j;
      const [i, f, g, o] = [G[at]!, G[at + hidden]!, G[at + 2 * hidden]!, G[at + 3 * hidden]!];
      const t = Math.tanh(C[one]!);
      const dCell = dC[one]! + dH[one]! * o * (1 - t * t);
      dG[at] = dCell * g * i * (1 - i);
      dG[at + hidden] = dCell * P[one]! * f * (1 - f);
      dG[at + 2 * hidden] = dCell * i * (1 - g * g);
      dG[at + 3 * hidden] = dH[one]! * t * o * (1 - o);
      dC[one] = dCell * f;
    }
  }
}
