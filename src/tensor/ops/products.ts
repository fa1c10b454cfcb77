/** Matrix products: plain, batched, and grouped over ragged groups of rows (the experts of an MoE layer). */

import { TensorError } from "../../core/errors.js";
import { checkOperands } from "../shapes.js";
import { record, type InputGradient } from "../tape.js";
import { empty, sameShape, sizeOf, type Tensor } from "../tensor.js";
import { checkOffsets } from "./offsets.js";

/**
 * a·b over the last two axes. `a` (..., m, k) with `b` (k, n): all leading axes of a are rows. With leading axes on both they must be equal
 * (batched product).
 * @throws TensorError when the inner sizes differ
 */
export function matmul(a: Tensor, b: Tensor): Tensor {
  checkOperands("matmul", "float32", a, b);
  if (a.rank < 1 || b.rank < 2) throw new TensorError(`matmul: expected at least a vector and a matrix, got [${a.shape.join(", ")}] and [${b.shape.join(", ")}].`);
  const k = a.shape.at(-1)!;
  const [inner, n] = b.shape.slice(-2) as [number, number];
  if (k !== inner) throw new TensorError(`matmul: expected inner sizes to agree, got [${a.shape.join(", ")}] and [${b.shape.join(", ")}].`);
  return b.rank === 2 ? rowsTimesMatrix(a, b, k, n) : batched(a, b, k, n);
}

function rowsTimesMatrix(a: Tensor, b: Tensor, k: number, n: number): Tensor {
  const backend = a.backend;
  const m = sizeOf(a.shape.slice(0, -1));
  const y = empty([...a.shape.slice(0, -1), n], "float32", backend);
  backend.gemm(false, false, m, n, k, 1, a.buffer, k, b.buffer, n, 0, y.buffer, n);
  return record("matmul", y, [a, b], (dy, needs) => [needs[0] ? rowGradient(dy, b) : undefined, needs[1] ? weightGradient(a, dy) : undefined]);
}

/** Of rows·weights, the gradient of rows: dy·weightsᵀ over the last axis. Off the tape. */
export function rowGradient(dy: Tensor, weights: Tensor): Tensor {
  const [k, n] = weights.shape as [number, number];
  const gradient = empty([...dy.shape.slice(0, -1), k], "float32", dy.backend);
  dy.backend.gemm(false, true, sizeOf(dy.shape.slice(0, -1)), k, n, 1, dy.buffer, n, weights.buffer, n, 0, gradient.buffer, k);
  return gradient;
}

/** Of rows·weights, the gradient of weights: rowsᵀ·dy over all leading axes, one product. Off the tape. */
export function weightGradient(rows: Tensor, dy: Tensor): Tensor {
  const [k, n] = [rows.shape.at(-1)!, dy.shape.at(-1)!];
  const gradient = empty([k, n], "float32", rows.backend);
  rows.backend.gemm(true, false, k, n, sizeOf(rows.shape.slice(0, -1)), 1, rows.buffer, k, dy.buffer, n, 0, gradient.buffer, n);
  return gradient;
}

function batched(a: Tensor, b: Tensor, k: number, n: number): Tensor {
  const backend = a.backend;
  const lead = a.shape.slice(0, -2);
  if (a.rank < 3 || !sameShape(lead, b.shape.slice(0, -2))) {
    throw new TensorError(`matmul: expected equal leading axes, got [${a.shape.join(", ")}] and [${b.shape.join(", ")}].`);
  }
  const m = a.shape.at(-2)!;
  const batch = lead.reduce((product, size) => product * size, 1);
  const y = empty([...lead, m, n], "float32", backend);
  backend.gemmBatched(batch, false, false, m, n, k, 1, a.buffer, k, m * k, b.buffer, n, k * n, 0, y.buffer, n, m * n);
  return record("matmul", y, [a, b], (dy, needs) => {
    const gradients: InputGradient[] = [undefined, undefined];
    if (needs[0]) {
      const da = empty(a.shape, "float32", backend);
      backend.gemmBatched(batch, false, true, m, k, n, 1, dy.buffer, n, m * n, b.buffer, n, k * n, 0, da.buffer, k, m * k);
      gradients[0] = da;
    }
    if (needs[1]) {
      const db = empty(b.shape, "float32", backend);
      backend.gemmBatched(batch, true, false, k, n, m, 1, a.buffer, k, m * k, dy.buffer, n, m * n, 0, db.buffer, n, k * n);
      gradients[1] = db;
    }
    return gradients;
  });
}

/**
 * y[r] = x[r]·w[e] for the rows r in offsets[e]..offsets[e+1]: one product per group, each with its own matrix.
 * Groups without rows cost nothing and get no gradient: that of `w` is by rows (see `Gradient`), one row a group.
 * @param x (M, p) grouped rows; @param w (E, p, q); @param offsets int32 (E+1), from 0 to at most M. Rows beyond the last offset give zeros.
 * @throws TensorError naming the first offset that is out of order or beyond the rows
 */
export function groupedMatmul(x: Tensor, w: Tensor, offsets: Tensor): Tensor {
  checkOperands("groupedMatmul", "float32", x, w);
  checkOperands("groupedMatmul", "int32", offsets);
  const [m, p] = x.shape as [number, number];
  const [groups, inner, q] = w.shape as [number, number, number];
  if (x.rank !== 2 || w.rank !== 3 || inner !== p || offsets.size !== groups + 1) {
    throw new TensorError(`groupedMatmul: expected x (M, p), w (E, p, q), offsets (E+1), got [${x.shape.join(", ")}], [${w.shape.join(", ")}], [${offsets.shape.join(", ")}].`);
  }
  checkOffsets("groupedMatmul", offsets, m);
  const backend = x.backend;
  const y = empty([m, q], "float32", backend);
  backend.groupedGemm(offsets.buffer, groups, m, x.buffer, w.buffer, false, y.buffer, p, q);
  return record("groupedMatmul", y, [x, w], (dy, needs) => {
    const gradients: InputGradient[] = [undefined, undefined];
    if (needs[0]) {
      const dx = empty([m, p], "float32", backend);
      backend.groupedGemm(offsets.buffer, groups, m, dy.buffer, w.buffer, true, dx.buffer, q, p);
      gradients[0] = dx;
    }
    if (needs[1]) {
      const dw = empty(w.shape, "float32", backend);
      const touched = empty([groups], "int32", backend);
      backend.groupedGemmWeight(offsets.buffer, groups, x.buffer, dy.buffer, dw.buffer, touched.buffer, p, q, false);
      gradients[1] = { value: dw, rows: touched };
    }
    return gradients;
  });
}

/**
 * relu(x[r]·w1[e])·w2[e] for the rows r of group e: the paper's expert (Shazeer et al. 2017, App. C) as one operation, so that the activations are cut off
 * while they are in the cache, and only they are kept for the gradient. Groups without rows cost nothing, as in `groupedMatmul`.
 * @param x (M, D) grouped rows; @param w1 (E, D, F); @param w2 (E, F, D2); @param offsets int32 (E+1), as there
 */
export function groupedFeedForward(x: Tensor, w1: Tensor, w2: Tensor, offsets: Tensor): Tensor {
  checkOperands("groupedFeedForward", "float32", x, w1, w2);
  checkOperands("groupedFeedForward", "int32", offsets);
  const [m, d] = x.shape as [number, number];
  const [groups, inner, f] = w1.shape as [number, number, number];
  const [groups2, f2, out] = w2.shape as [number, number, number];
  if (x.rank !== 2 || w1.rank !== 3 || w2.rank !== 3 || inner !== d || groups2 !== groups || f2 !== f || offsets.size !== groups + 1) {
    const shapes = [x, w1, w2, offsets].map(({ shape }) => `[${shape.join(", ")}]`).join(", ");
    throw new TensorError(`groupedFeedForward: expected x (M, D), w1 (E, D, F), w2 (E, F, D2), offsets (E+1), got ${shapes}.`);
  }
  checkOffsets("groupedFeedForward", offsets, m);
  const backend = x.backend;
  const hidden = empty([m, f], "float32", backend);
  const y = empty([m, out], "float32", backend);
  backend.groupedGemm(offsets.buffer, groups, m, x.buffer, w1.buffer, false, hidden.buffer, d, f, "relu");
  backend.groupedGemm(offsets.buffer, groups, m, hidden.buffer, w2.buffer, false, y.buffer, f, out);
  return record("groupedFeedForward", y, [x, w1, w2], (dy, needs) => {
    const weights = (left: Tensor, right: Tensor, w: Tensor, rows: number, cols: number): InputGradient => {
      const dw = empty(w.shape, "float32", backend);
      const touched = empty([groups], "int32", backend);
      backend.groupedGemmWeight(offsets.buffer, groups, left.buffer, right.buffer, dw.buffer, touched.buffer, rows, cols, false);
      return { value: dw, rows: touched };
    };
    const dHidden = empty([m, f], "float32", backend);
    backend.groupedGemm(offsets.buffer, groups, m, dy.buffer, w2.buffer, true, dHidden.buffer, out, f, { mask: hidden.buffer });
    let dx: Tensor | undefined;
    if (needs[0]) {
      dx = empty([m, d], "float32", backend);
      backend.groupedGemm(offsets.buffer, groups, m, dHidden.buffer, w1.buffer, true, dx.buffer, f, d);
    }
    return [dx, needs[1] ? weights(x, dHidden, w1, d, f) : undefined, needs[2] ? weights(hidden, dy, w2, f, out) : undefined];
  });
}

/** x[r] + bias[e] for the rows of group e; rows beyond the last offset stay as they are. The gradient of `bias` is by rows, as that of `groupedMatmul`'s w. @param bias (E, width) */
export function groupedBias(x: Tensor, bias: Tensor, offsets: Tensor): Tensor {
  checkOperands("groupedBias", "float32", x, bias);
  checkOperands("groupedBias", "int32", offsets);
  const [groups, width] = bias.shape as [number, number];
  if (x.rank !== 2 || bias.rank !== 2 || x.shape[1] !== width || offsets.size !== groups + 1) {
    throw new TensorError(`groupedBias: expected x (M, width), bias (E, width), offsets (E+1), got [${x.shape.join(", ")}], [${bias.shape.join(", ")}], [${offsets.shape.join(", ")}].`);
  }
  checkOffsets("groupedBias", offsets, x.shape[0]!);
  const y = empty(x.shape, "float32", x.backend);
  x.backend.groupedBias(offsets.buffer, groups, x.shape[0]!, x.buffer, bias.buffer, y.buffer, width);
  return record("groupedBias", y, [x, bias], (dy, needs) => {
    if (!needs[1]) return [dy, undefined];
    const dBias = empty(bias.shape, "float32", x.backend);
    const touched = empty([groups], "int32", x.backend);
    x.backend.groupedBiasGrad(offsets.buffer, groups, dy.buffer, dBias.buffer, touched.buffer, width);
    return [dy, { value: dBias, rows: touched }];
  });
}
