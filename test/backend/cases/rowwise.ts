/** Functions of whole rows, losses over classes, and the LSTM cell. */

import type { Backend, Buf } from "#sparsegate/backend/backend.js";
import { blank, blankInts, CaseList, computed, Draw, SHAPES, sumOf } from "./list.js";

const draw = new Draw(1704);
export const rowwise = new CaseList();
const { add, worked } = rowwise;

// ---- row-wise functions and losses ------------------------------------------------------------------------------------------
for (const [rows, cols] of SHAPES) {
  const n = rows * cols;
  const label = `${rows}×${cols}`;
  const x = draw.floats(n, -8, 8);
  const masked = cols > 1 ? x.map((v, i) => (i % cols === 1 ? -Infinity : v)) : x;
  for (const [name, input] of [["", x], [", a masked column", masked], [", one NaN", x.with(n - 1, NaN)], [", far from 0", x.map((v) => v + 512)]] as const) {
    // x − logSumExp(x): the latter is rounded to float32, whose last place at 512 is 6e-5.
    const coarse = name.includes("far") ? 6 : 1;
    add("softmax", `${label}${name}`, { x: input, y: blank(n) }, (b, { x, y }) => b.softmax(x, y, rows, cols));
    add("logSoftmax", `${label}${name}`, { x: input, y: blank(n) }, (b, { x, y }) => b.logSoftmax(x, y, rows, cols), { y: coarse });
    add("logSumExp", `${label}${name}`, { x: input, out: blank(rows) }, (b, { x, out }) => b.logSumExp(x, out, rows, cols));
  }
  const { soft, logSoft } = computed({ x, soft: blank(n), logSoft: blank(n) }, (b, m) => {
    b.softmax(m.x, m.soft, rows, cols);
    b.logSoftmax(m.x, m.logSoft, rows, cols);
  });
  add("softmaxGrad", label, { y: soft, dy: draw.floats(n), dx: blank(n) }, (b, { y, dy, dx }) => b.softmaxGrad(y, dy, dx, rows, cols));
  add("logSoftmaxGrad", label, { y: logSoft, dy: draw.floats(n), dx: blank(n) }, (b, { y, dy, dx }) => b.logSoftmaxGrad(y, dy, dx, rows, cols), { dx: sumOf(cols) });

  const norm = { x: draw.floats(n, 1, 5), gamma: draw.floats(cols), beta: draw.floats(cols), y: blank(n), mean: blank(rows), rstd: blank(rows) };
  const layerNorm = (b: Backend, m: Record<keyof typeof norm, Buf>): void => b.layerNorm(m.x, m.gamma, m.beta, m.y, m.mean, m.rstd, rows, cols, 1e-5);
  const { mean, rstd } = computed(norm, layerNorm);
  // (x − mean)·rstd: where a short row happens to vary little, the rounding of x (up to 5) grows by rstd.
  const sharpest = Math.max(...rstd) * (cols === 1 ? 0.01 : 1);
  add("layerNorm", label, norm, layerNorm, { y: 5 * Math.max(1, sharpest), rstd: 1 });
  add("layerNorm", `${label}, one NaN`, { ...norm, x: norm.x.with(0, NaN) }, layerNorm, { y: 5 * Math.max(1, sharpest) });
  add("layerNormGrad", label, { x: norm.x, gamma: norm.gamma, mean, rstd, dy: draw.floats(n), dx: blank(n), dGamma: blank(cols), dBeta: blank(cols) },
    (b, m) => b.layerNormGrad(m.x, m.gamma, m.mean, m.rstd, m.dy, m.dx, m.dGamma, m.dBeta, rows, cols),
    { dx: 5 * Math.max(1, sharpest ** 2), dGamma: 5 * Math.max(1, sharpest) * sumOf(rows), dBeta: sumOf(rows) });
  add("rowDot", label, { a: draw.floats(n), b: draw.floats(n), out: blank(rows) }, (k, { a, b, out }) => k.rowDot(a, b, out, rows, cols), { out: sumOf(cols) });

  for (const k of new Set([1, 2, 4, 5, 9, cols].filter((k) => k <= Math.min(cols, 100)))) {
    const outputs = { values: blank(rows * k), indices: blankInts(rows * k) };
    const topK = (b: Backend, m: { x: Buf; values: Buf; indices: Buf }): void => b.topK(m.x, m.values, m.indices, rows, cols, k);
    add("topK", `${k} of ${label}`, { x, ...outputs }, topK);
    add("topK", `${k} of ${label} with many ties`, { x: Float64Array.from(draw.ints(n, 0, 3)), ...outputs }, topK);
    add("topK", `${k} of ${label}, one NaN a row`, { x: x.map((v, i) => (i % cols === 0 ? NaN : v)), ...outputs }, topK);
  }

  for (const gradScale of [0, 0.25]) {
    add("crossEntropy", `${label}, gradient times ${gradScale}`, { logits: x, target: draw.ints(rows, -1, cols), loss: blank(rows) },
      (b, { logits, target, loss }) => b.crossEntropy(logits, target, loss, rows, cols, gradScale));
    const sampled = {
      logits: x, shift: draw.floats(cols, -3, 3), samples: draw.ints(cols, 0, 30), trueLogit: draw.floats(rows), trueShift: draw.floats(rows, -3, 3),
      target: draw.ints(rows, -1, 30), loss: blank(rows),
    };
    const kernel = (b: Backend, m: Record<keyof typeof sampled, Buf>): void =>
      b.sampledCrossEntropy(m.logits, m.shift, m.samples, m.trueLogit, m.trueShift, m.target, m.loss, rows, cols, gradScale);
    add("sampledCrossEntropy", `${label}, gradient times ${gradScale}`, sampled, kernel);
    add("sampledCrossEntropy", `${label}, all accidental hits`, { ...sampled, samples: new Int32Array(cols).fill(3), target: new Int32Array(rows).fill(3) }, kernel);
  }

  // ---- LSTM cell: `cols` hidden units --------------------------------------------------------------------------------------
  const cell = { gates: draw.floats(4 * n, -4, 4), cPrev: draw.floats(n), c: blank(n), h: blank(n) };
  const lstmCell = (b: Backend, m: Record<keyof typeof cell, Buf>): void => b.lstmCell(m.gates, m.cPrev, m.c, m.h, rows, cols);
  const after = computed(cell, lstmCell);
  add("lstmCell", label, cell, lstmCell);
  const cellGrad = { ...after, dh: draw.floats(n), dc: draw.floats(n), dGates: blank(4 * n) };
  add("lstmCellGrad", label, cellGrad, (b, m) => b.lstmCellGrad(m.gates, m.cPrev, m.c, m.dh, m.dc, m.dGates, rows, cols));
  add("lstmCellGrad", `${label}, dGates = gates`, cellGrad, (b, m) => b.lstmCellGrad(m.gates, m.cPrev, m.c, m.dh, m.dc, m.gates, rows, cols));
}

// ---- worked by hand -------------------------------------------------------------------------------------------------------------
worked("topK orders ties by the lower index", { x: Float64Array.of(1, 3, 3, 2, 3), values: blank(4), indices: blankInts(4) },
  (b, { x, values, indices }) => b.topK(x, values, indices, 1, 5, 4), { values: [3, 3, 3, 2], indices: [1, 2, 4, 3] });
worked("topK takes NaN last", { x: Float64Array.of(NaN, -5, NaN, -7), values: blank(2), indices: blankInts(2) },
  (b, { x, values, indices }) => b.topK(x, values, indices, 1, 4, 2), { values: [-5, -7], indices: [1, 3] });
worked("logSumExp of a row with ∞ is ∞, of nothing but −∞ it is −∞, and NaN stays NaN", { x: Float64Array.of(Infinity, 0, Infinity, -Infinity, -Infinity, -Infinity, Infinity, NaN), out: blank(4) },
  (b, { x, out }) => b.logSumExp(x, out, 4, 2), { out: [Infinity, Infinity, -Infinity, NaN] });
worked("lstmCell with gates at 0 halves the cell", { gates: new Float64Array(4), cPrev: Float64Array.of(2), c: blank(1), h: blank(1) }, (b, m) => b.lstmCell(m.gates, m.cPrev, m.c, m.h, 1, 1),
  // σ(0) = 1/2, tanh 0 = 0: c = 1/2·2 + 1/2·0 = 1; h = 1/2·tanh 1 = 0.380797.
  { gates: [0.5, 0.5, 0, 0.5], c: [1], h: [0.3807970780] });
worked("lstmCell takes its gates in the order i, f, g, o", { gates: Float64Array.of(40, 0, -40, 0, Math.fround(Math.log(3)), 0, 40, 0), cPrev: Float64Array.of(5, 5), c: blank(2), h: blank(2) },
  (b, m) => b.lstmCell(m.gates, m.cPrev, m.c, m.h, 1, 2),
  // Unit 0: i = 1, f = 0, g = tanh(ln 3) = (3 − 1/3)/(3 + 1/3) = 0.8, o = 1: c = 0.8, h = tanh 0.8 = 0.664037. Unit 1: c = 5/2, h = tanh(2.5)/2 = 0.493307.
  { gates: [1, 0.5, 0, 0.5, 0.8, 0, 1, 0.5], c: [0.8, 2.5], h: [0.6640367703, 0.4933071491] });
