/**
 * A whole LSTM layer over time as one operation (Hochreiter & Schmidhuber 1997; projection: Sak et al. 2014). The products with the input and all weight
 * gradients are single large products over every step; only the recurrent product runs step by step.
 */

import type { Buf } from "../../backend/backend.js";
import { TensorError } from "../../core/errors.js";
import { checkOperands } from "../shapes.js";
import { record } from "../tape.js";
import { empty, sameShape, zeros, type Tensor } from "../tensor.js";
import { rowGradient, weightGradient } from "./products.js";

/** Parameters of an LSTM layer of H units over inputs of width D. */
export interface LstmWeights {
  /** (D, 4H), gates in the order input, forget, cell, output. */
  inputWeight: Tensor;
  /** (P, 4H), P the width of what recurs: the projection's, or H. */
  recurrentWeight: Tensor;
  /** (4H) */
  bias: Tensor;
  /** (H, P), optional: the output is h·projection, and that is what recurs. */
  projection?: Tensor | undefined;
}

/** State between two stretches of a sequence; gradients stop here (truncated back-propagation). */
export interface LstmState {
  /** (B, P) */
  h: Tensor;
  /** (B, H) */
  c: Tensor;
}

/**
 * @param x (T, B, D), time first; @param state where to start, zeros when left out
 * @param resets int32 (T, B): 1 makes the state zero before that position (a new sentence begins)
 * @returns output (T, B, P) and the final state, detached from the tape
 */
export function lstm(x: Tensor, weights: LstmWeights, state?: LstmState, resets?: Tensor): { output: Tensor; state: LstmState } {
  const { inputWeight, recurrentWeight, bias, projection } = weights;
  checkOperands("lstm", "float32", x, inputWeight, recurrentWeight, bias, ...(projection ? [projection] : []), ...(state ? [state.h, state.c] : []));
  const [T, B, D] = x.shape as [number, number, number];
  const P = recurrentWeight.shape[0]!;
  const H = (projection ?? recurrentWeight).shape[0]!;
  if (x.rank !== 3 || D !== inputWeight.shape[0]) {
    throw new TensorError(`lstm: expected x (time, batch, ${inputWeight.shape[0]}), got [${x.shape.join(", ")}].`);
  }
  const expected = { inputWeight: [D, 4 * H], recurrentWeight: [P, 4 * H], bias: [4 * H], ...(projection ? { projection: [H, P] } : {}) };
  for (const [name, shape] of Object.entries(expected)) {
    const got = weights[name as keyof LstmWeights]!.shape;
    if (!sameShape(got, shape)) throw new TensorError(`lstm: expected ${name} of shape [${shape.join(", ")}], got [${got.join(", ")}].`);
  }
  if (resets && (resets.dtype !== "int32" || resets.size !== T * B)) throw new TensorError(`lstm: expected int32 resets (${T}, ${B}), got ${resets.dtype} [${resets.shape.join(", ")}].`);
  if (state && (state.h.size !== B * P || state.c.size !== B * H)) {
    throw new TensorError(`lstm: expected a state of (${B}, ${P}) and (${B}, ${H}), got [${state.h.shape.join(", ")}] and [${state.c.shape.join(", ")}].`);
  }
  const backend = x.backend;
  const inputs = projection ? [x, inputWeight, recurrentWeight, bias, projection] : [x, inputWeight, recurrentWeight, bias];
  const gates = empty([T, B, 4 * H], "float32", backend);
  const cells = empty([T, B, H], "float32", backend);
  const hidden = projection ? empty([T, B, H], "float32", backend) : undefined;
  const output = empty([T, B, P], "float32", backend);
  // What each step starts from, after resets.
  const hPrevious = empty([T, B, P], "float32", backend);
  const cPrevious = empty([T, B, H], "float32", backend);

  const step = (buffer: Buf, t: number, width: number): Buf => buffer.at(t * B * width, B * width);
  const start = (flagsAt: number, src: Buf, dst: Buf, width: number): void => {
    if (resets) backend.maskRows(resets.buffer.at(flagsAt * B, B), src, dst, B, width);
    else backend.copy(src, dst, B * width);
  };
  backend.gemm(false, false, T * B, 4 * H, D, 1, x.buffer, D, inputWeight.buffer, 4 * H, 0, gates.buffer, 4 * H);
  backend.binary("add", gates.buffer, { div: 1, mod: Math.max(gates.size, 1) }, bias.buffer, { div: 1, mod: 4 * H }, gates.buffer, gates.size);
  const first = state ?? { h: zeros([B, P], "float32", backend), c: zeros([B, H], "float32", backend) };
  for (let t = 0; t < T; t++) {
    const hBefore = step(hPrevious.buffer, t, P);
    const cBefore = step(cPrevious.buffer, t, H);
    start(t, t === 0 ? first.h.buffer : step(output.buffer, t - 1, P), hBefore, P);
    start(t, t === 0 ? first.c.buffer : step(cells.buffer, t - 1, H), cBefore, H);
    const gate = step(gates.buffer, t, 4 * H);
    backend.gemm(false, false, B, 4 * H, P, 1, hBefore, P, recurrentWeight.buffer, 4 * H, 1, gate, 4 * H);
    const h = hidden ? step(hidden.buffer, t, H) : step(output.buffer, t, P);
    backend.lstmCell(gate, cBefore, step(cells.buffer, t, H), h, B, H);
    if (projection) backend.gemm(false, false, B, P, H, 1, h, H, projection.buffer, P, 0, step(output.buffer, t, P), P);
  }
  const end: LstmState = { h: empty([B, P], "float32", backend), c: empty([B, H], "float32", backend) };
  if (T > 0) {
    backend.copy(step(output.buffer, T - 1, P), end.h.buffer, B * P);
    backend.copy(step(cells.buffer, T - 1, H), end.c.buffer, B * H);
  } else {
    backend.copy(first.h.buffer, end.h.buffer, B * P);
    backend.copy(first.c.buffer, end.c.buffer, B * H);
  }

  record("lstm", output, inputs, (dy, needs) => {
    const dGates = empty([T, B, 4 * H], "float32", backend);
    const dc = zeros([B, H], "float32", backend);
    const dhNext = zeros([B, P], "float32", backend);
    // Gradient of each step's output, from above and from the step after.
    const dOut = empty([T, B, P], "float32", backend);
    const dHidden = projection ? empty([B, H], "float32", backend) : undefined;
    const whole = { div: 1, mod: Math.max(B * P, 1) };
    for (let t = T - 1; t >= 0; t--) {
      const dh = step(dOut.buffer, t, P);
      backend.binary("add", step(dy.buffer, t, P), whole, dhNext.buffer, whole, dh, B * P);
      if (projection && dHidden) backend.gemm(false, true, B, H, P, 1, dh, P, projection.buffer, P, 0, dHidden.buffer, H);
      const dGate = step(dGates.buffer, t, 4 * H);
      backend.lstmCellGrad(step(gates.buffer, t, 4 * H), step(cPrevious.buffer, t, H), step(cells.buffer, t, H), dHidden ? dHidden.buffer : dh, dc.buffer, dGate, B, H);
      if (t === 0) break;
      backend.gemm(false, true, B, P, 4 * H, 1, dGate, 4 * H, recurrentWeight.buffer, 4 * H, 0, dhNext.buffer, P);
      if (resets) {
        backend.maskRows(resets.buffer.at(t * B, B), dhNext.buffer, dhNext.buffer, B, P);
        backend.maskRows(resets.buffer.at(t * B, B), dc.buffer, dc.buffer, B, H);
      }
    }
    const dBias = empty([4 * H], "float32", backend);
    backend.spreadSum(dGates.buffer, { div: 1, mod: 4 * H }, 1, dBias.buffer, dGates.size);
    return [
      needs[0] ? rowGradient(dGates, inputWeight) : undefined,
      weightGradient(x, dGates),
      weightGradient(hPrevious, dGates),
      dBias,
      projection && hidden ? weightGradient(hidden, dOut) : undefined,
    ];
  });
  return { output, state: end };
}
