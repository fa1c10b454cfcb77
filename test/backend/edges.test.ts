/**
 * The CPU kernels against the float64 reference where numbers are large, infinite or none: what is finite in float32 must be right, and NaN and infinities
 * must stand where the reference has them, and nowhere else.
 */

import { afterAll, describe, expect, it } from "vitest";
import { BINARY_OPS, UNARY_OPS, type AdamSettings, type Backend, type Buf, type UnaryOp } from "#sparsegate/backend/backend.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { computed } from "./cases/list.js";
import { blank, blankInts, configurations, disagreements, Draw, kernelCase, outcome, sumOf, type Case } from "./helpers.js";

const draw = new Draw(2024);
const cases: Case[] = [];
const add: typeof kernelCase = (...args) => {
  const made = kernelCase(...args);
  cases.push(made);
  return made;
};
const ID = (n: number): { div: number; mod: number } => ({ div: 1, mod: n });
const INF = Infinity;

// ---- elementwise ---------------------------------------------------------------------------------------------------------
/** Every point stands in every lane and in the last, partial vector. */
const spreadOut = (points: readonly number[]): Float64Array =>
  Float64Array.from(
    { length: points.length * 5 + 3 },
    (_, i) => points[(i * 3 + Math.floor(i / points.length)) % points.length]!,
  );
/** Where a function has a value or a limit that float32 holds; the rest is asked in `unaryGrad` or nowhere. */
const POINTS: Record<UnaryOp, number[]> = {
  neg: [0, 1e30, -1e30, INF, -INF, NaN],
  abs: [0, -0, 1e30, -1e30, INF, -INF, NaN],
  square: [0, 1e19, -1e18, INF, -INF, NaN, 3],
  reciprocal: [1e30, -1e30, INF, -INF, NaN, 1e-30],
  exp: [0, 88, -80, 100, -1e4, 1e4, INF, -INF, NaN],
  log: [1, 1e-30, 1e30, INF, 0, -1, -INF, NaN],
  sqrt: [0, 1e30, 1e-30, INF, -1, NaN],
  tanh: [0, 1e-8, 9, -9, 1e4, -1e4, INF, -INF, NaN],
  sigmoid: [0, 20, -80, 1e4, -1e4, INF, -INF, NaN],
  relu: [0, -0, 1e30, -1e30, INF, -INF, NaN],
  gelu: [0, 5, -5, 30, -30, 1e4, -1e4, INF, -INF, NaN],
  silu: [0, 20, -20, 1e4, -1e4, INF, -INF, NaN],
  softplus: [0, 20, -20, 100, -80, 1e4, -1e4, INF, -INF, NaN],
  normalCdf: [0, 3, -3, 6, -6, 40, -40, 1e4, -1e4, INF, -INF, NaN],
};
for (const op of UNARY_OPS) {
  const x = spreadOut(POINTS[op]);
  add("unary", `${op} at large and infinite points`, { x, y: blank(x.length) }, (b, { x, y }) => b.unary(op, x, y, x.length));
  // Derivatives at finite points, with y as the operation gives it.
  const finite = spreadOut(
    POINTS[op].filter((v) => Number.isFinite(v) && !(v <= 0 && (op === "log" || op === "sqrt")) && Math.abs(v) < 1e19),
  );
  const { contents } = outcome(new ReferenceBackend(), {
    buffers: { x: finite.map(Math.fround), y: blank(finite.length) },
    run: (b, m) => b.unary(op, m["x"]!, m["y"]!, finite.length),
  });
  const y = Float64Array.from(contents["y"] as Float64Array).slice(3, 3 + finite.length);
  if (op !== "exp")
    add(
      "unaryGrad",
      `${op} at large points`,
      { x: finite, y, dy: draw.floats(finite.length), dx: blank(finite.length) },
      (b, m) => b.unaryGrad(op, m.x, m.y, m.dy, m.dx, finite.length),
    );
}
for (const op of ["gelu", "silu"] as const) {
  const x = spreadOut([INF, -INF, 0, NaN, 200, -200]);
  add("unaryGrad", `${op} at infinite points`, { x, dy: draw.floats(x.length), dx: blank(x.length) }, (b, m) => b.unaryGrad(op, m.x, m.x, m.dy, m.dx, x.length));
}
for (const op of BINARY_OPS) {
  const pairs = [1, -2, 0, INF, -INF, NaN, 1e30].flatMap((p) => [1, -2, INF, -INF, NaN, 1e-3].map((q) => [p, q] as const));
  const n = pairs.length;
  add(
    "binary",
    `${op} of every pair of edges`,
    { a: Float64Array.from(pairs, ([p]) => p), b: Float64Array.from(pairs, ([, q]) => q), out: blank(n) },
    (k, { a, b, out }) => k.binary(op, a, ID(n), b, ID(n), out, n),
  );
}
add("affine", "infinite", { x: Float64Array.of(1, INF, -INF, NaN, 1e30), y: blank(5) }, (b, { x, y }) =>
  b.affine(x, -2, 1, y, 5),
);
add(
  "axpy",
  "infinite",
  { x: Float64Array.of(1, INF, -INF, NaN, 1, INF), y: Float64Array.of(INF, INF, INF, 1, NaN, -INF) },
  (b, { x, y }) => b.axpy(1, x, y, 6),
);
for (const n of [5, 700]) {
  for (const [name, bad] of [
    ["NaN", NaN],
    ["∞", INF],
  ] as const) {
    add(
      "spreadSum",
      `of ${n} with one ${name}`,
      { x: draw.floats(n).with(n - 2, bad), out: blank(1) },
      (b, { x, out }) => b.spreadSum(x, { div: 1, mod: 1 }, 1, out, n),
      { out: sumOf(n) },
    );
    add(
      "spreadSum",
      `over ${n} rows of 3, one ${name}`,
      { x: draw.floats(3 * n).with(3 * n - 2, bad), out: blank(3) },
      (b, { x, out }) => b.spreadSum(x, { div: 1, mod: 3 }, 1, out, 3 * n),
      { out: sumOf(n) },
    );
    add(
      "sumSquares",
      `of ${n} with one ${name}`,
      { x: draw.floats(n).with(n - 2, bad), out: Float64Array.of(0) },
      (b, { x, out }) => b.sumSquares(x, n, null, 0, out),
    );
    add(
      "rowDot",
      `of ${n} with one ${name}`,
      { a: draw.floats(2 * n).with(n - 2, bad), b: draw.floats(2 * n), out: blank(2) },
      (k, { a, b, out }) => k.rowDot(a, b, out, 2, n),
      { out: sumOf(n) },
    );
    add("cvSquared", `of ${n} with one ${name}`, { x: draw.floats(n, 0, 2).with(n - 2, bad), out: blank(1) }, (b, { x, out }) =>
      b.cvSquared(x, n, out),
    );
  }
}
add(
  "sumSquares",
  "rows that are not in use may hold anything",
  { x: Float64Array.of(1, 2, NaN, INF, 3, 4), rows: Int32Array.of(0, -1, 1), out: Float64Array.of(0) },
  (b, { x, rows, out }) => b.sumSquares(x, 6, rows, 2, out),
);
add(
  "dropout",
  "NaN and ∞ go with the elements that are dropped",
  { x: spreadOut([NaN, INF, -INF, 1]), y: blank(23) },
  (b, { x, y }) => b.dropout(x, y, 23, 0.5, { seed: 1, stream: 2, step: 3 }, 0),
);

// ---- matrix products: a row or column with a bad number is bad, others are not ---------------------------------------------
for (const [m, n, k] of [
  [3, 5, 7],
  [17, 33, 9],
] as const) {
  for (const [name, bad] of [
    ["NaN", NaN],
    ["∞", INF],
  ] as const) {
    add(
      "gemm",
      `${m}×${n}×${k}, ${name} in A`,
      { a: draw.floats(m * k, 0.5, 2).with(k + 1, bad), b: draw.floats(k * n, 0.5, 2), c: blank(m * n) },
      (K, { a, b, c }) => K.gemm(false, false, m, n, k, 1, a, k, b, n, 0, c, n),
      { c: 4 * k },
    );
    add(
      "gemm",
      `${m}×${n}×${k}, ${name} in B`,
      { a: draw.floats(m * k, 0.5, 2), b: draw.floats(k * n, 0.5, 2).with(n + 1, bad), c: blank(m * n) },
      (K, { a, b, c }) => K.gemm(false, false, m, n, k, 1, a, k, b, n, 0, c, n),
      { c: 4 * k },
    );
  }
  add(
    "gemm",
    `${m}×${n}×${k}, NaN in C with beta 0`,
    { a: draw.floats(m * k), b: draw.floats(k * n), c: new Float64Array(m * n).fill(NaN) },
    (K, { a, b, c }) => K.gemm(false, false, m, n, k, 1, a, k, b, n, 0, c, n),
    { c: sumOf(k) },
  );
}
const rowsOf = (...rows: readonly number[][]): Float64Array => Float64Array.from(rows.flat());
add(
  "groupedGemm",
  "NaN in one group's row",
  { offsets: Int32Array.of(0, 2, 2, 3), x: rowsOf([1, 2], [NaN, 1], [3, 4]), w: draw.floats(3 * 2 * 3), y: blank(9) },
  (b, m) => b.groupedGemm(m.offsets, 3, 3, m.x, m.w, false, m.y, 2, 3),
  { y: 16 },
);
add(
  "combineRows",
  "NaN in a row that nobody takes",
  {
    src: rowsOf([1, 2], [NaN, NaN], [3, 4]),
    position: Int32Array.of(0, 2, -1, 0),
    weights: Float64Array.of(0.5, 2, NaN, 1),
    y: blank(4),
  },
  (b, m) => b.combineRows(m.src, m.position, m.weights, null, m.y, 2, 2, 2),
);
add(
  "bincount",
  "NaN in its own bin alone",
  { src: Float64Array.of(1, NaN, 2, INF), index: Int32Array.of(0, 1, 0, 2), out: blank(4) },
  (b, m) => b.bincount(m.src, m.index, 4, m.out, 4),
);
add(
  "bincount",
  "NaN that is left out",
  { src: Float64Array.of(1, NaN, 2), index: Int32Array.of(0, -1, 0), out: blank(2) },
  (b, m) => b.bincount(m.src, m.index, 3, m.out, 2),
);

// ---- whole rows -----------------------------------------------------------------------------------------------------------
for (const cols of [1, 3, 5, 17, 64, 101]) {
  const rows = 7;
  const n = rows * cols;
  const inputs: Record<string, Float64Array> = {
    "±1e4": draw.floats(n, -1e4, 1e4),
    "all 1e4": new Float64Array(n).fill(1e4),
    "all −1e4": new Float64Array(n).fill(-1e4),
    "±1e30": draw.floats(n, -1e30, 1e30),
    "all −∞": new Float64Array(n).fill(-INF),
    "every other −∞": draw.floats(n).map((v, i) => (i % 2 === 1 ? -INF : v)),
    "one +∞": draw.floats(n).with(n - 1, INF),
    "one NaN in the first row": draw.floats(n).with(0, NaN),
    "all NaN": new Float64Array(n).fill(NaN),
  };
  for (const [name, x] of Object.entries(inputs)) {
    const label = `${rows}×${cols}, ${name}`;
    // x − logSumExp(x) of numbers up to 1e4, whose last place is 1e-3; softmax depends on their differences, which float32 keeps.
    const coarse = name === "±1e30" ? 1e30 : 1e4;
    add("softmax", label, { x, y: blank(n) }, (b, { x, y }) => b.softmax(x, y, rows, cols));
    add("logSoftmax", label, { x, y: blank(n) }, (b, { x, y }) => b.logSoftmax(x, y, rows, cols), { y: coarse });
    add("logSumExp", label, { x, out: blank(rows) }, (b, { x, out }) => b.logSumExp(x, out, rows, cols));
    const outputs = { values: blank(rows), indices: blankInts(rows) };
    add("topK", `1 of ${label}`, { x, ...outputs }, (b, m) => b.topK(m.x, m.values, m.indices, rows, cols, 1));
    if (cols >= 3)
      add("topK", `3 of ${label}`, { x, values: blank(3 * rows), indices: blankInts(3 * rows) }, (b, m) =>
        b.topK(m.x, m.values, m.indices, rows, cols, 3),
      );
    const target = draw.ints(rows, -1, cols);
    for (const gradScale of [0, 0.5]) {
      add(
        "crossEntropy",
        `${label}, gradient times ${gradScale}`,
        { logits: x, target, loss: blank(rows) },
        (b, m) => b.crossEntropy(m.logits, m.target, m.loss, rows, cols, gradScale),
        { loss: coarse },
      );
      // Multiples of 1/64, so that they can be taken from 1e4 without rounding.
      const shift = Float64Array.from(draw.ints(cols, -128, 128), (v) => v / 64);
      const sampled = {
        logits: x,
        shift,
        samples: draw.ints(cols, 0, 9),
        trueLogit: draw.floats(rows),
        trueShift: draw.floats(rows),
        target: draw.ints(rows, -1, 9),
        loss: blank(rows),
      };
      const run = (b: Backend, m: Record<keyof typeof sampled, Buf>): void =>
        b.sampledCrossEntropy(m.logits, m.shift, m.samples, m.trueLogit, m.trueShift, m.target, m.loss, rows, cols, gradScale);
      add("sampledCrossEntropy", `${label}, gradient times ${gradScale}`, sampled, run, { loss: coarse });
    }
  }
  const norm = { gamma: draw.floats(cols), beta: draw.floats(cols), y: blank(n), mean: blank(rows), rstd: blank(rows) };
  const layerNorm = (b: Backend, m: Record<"x" | keyof typeof norm, Buf>): void =>
    b.layerNorm(m.x, m.gamma, m.beta, m.y, m.mean, m.rstd, rows, cols, 1e-5);
  // Constant rows have variance 0: y = beta, whatever the constant.
  add(
    "layerNorm",
    `${rows}×${cols}, constant rows`,
    { x: Float64Array.from({ length: n }, (_, i) => 2 ** Math.floor(i / cols)), ...norm },
    layerNorm,
    { rstd: 1 / Math.sqrt(1e-5) },
  );
  add("layerNorm", `${rows}×${cols}, one NaN`, { x: draw.floats(n).with(n - 1, NaN), ...norm }, layerNorm, { y: 400, rstd: 400 });
  add("layerNorm", `${rows}×${cols}, spread over 1e4`, { x: draw.floats(n, -1e4, 1e4), ...norm }, layerNorm, {
    mean: 1e4,
    rstd: cols === 1 ? 400 : 1e-2,
  });
}

// ---- LSTM cell and gating ---------------------------------------------------------------------------------------------------
for (const hidden of [1, 3, 5, 17]) {
  const gates = spreadOut([0, 1e4, -1e4, 80, -80, INF, -INF]).slice(0, 4 * hidden);
  const long = Float64Array.from({ length: 8 * hidden }, (_, i) => gates[i % gates.length]!);
  add(
    "lstmCell",
    `saturated gates, ${hidden} units`,
    { gates: long, cPrev: draw.floats(2 * hidden), c: blank(2 * hidden), h: blank(2 * hidden) },
    (b, m) => b.lstmCell(m.gates, m.cPrev, m.c, m.h, 2, hidden),
  );
  add(
    "lstmCell",
    `a NaN, ${hidden} units`,
    {
      gates: draw.floats(8 * hidden).with(0, NaN),
      cPrev: draw.floats(2 * hidden).with(2 * hidden - 1, NaN),
      c: blank(2 * hidden),
      h: blank(2 * hidden),
    },
    (b, m) => b.lstmCell(m.gates, m.cPrev, m.c, m.h, 2, hidden),
  );
}
for (const E of [3, 6, 17]) {
  // Deviations of 1e-3 to 1: thousands of them from the threshold, where the density is 0 and a quotient may be too large.
  const raw = draw.floats(2 * E, 1e-3, 1).map((s) => Math.log(Math.expm1(s)));
  const far = draw.floats(2 * E, -1e4, 1e4);
  const infinite = far.map((v, i) => [v, INF, -INF, NaN][i % 4]!);
  const key = { seed: 1, stream: 2, step: 3 };
  for (const [name, clean] of [
    ["far from the threshold", far],
    ["infinite", infinite],
  ] as const) {
    // Two segments of one row each: the load is the probabilities themselves.
    const forward = { clean, raw, topValues: blank(4), topIndices: blankInts(4), load: blank(2 * E) };
    const run = (b: Backend, m: Record<keyof typeof forward, Buf>): void =>
      b.noisyTopK(m.clean, m.raw, key, 0, null, null, 2, m.topValues, m.topIndices, m.load, 2, E, 1);
    add("noisyTopK", `${E} experts, ${name}`, forward, run);
    const { topValues, topIndices } = computed(forward, run);
    const backward = { clean, raw, topValues, topIndices, dTop: draw.floats(4), dLoad: draw.floats(E), dClean: blank(2 * E) };
    add("noisyTopKGrad", `${E} experts, ${name}`, { ...backward, dRaw: blank(2 * E) }, (b, m) =>
      b.noisyTopKGrad(m.clean, m.raw, m.topValues, m.topIndices, m.dTop, m.dLoad, null, 2, m.dClean, m.dRaw, 2, E, 1),
    );
  }
}

// ---- optimisers: a bad gradient spoils its own element, and zero gradients do no harm -------------------------------------------
const ADAM: AdamSettings = { learningRate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0, gradScale: 1 };
add(
  "adam",
  "NaN, ∞, 0 and tiny gradients",
  { param: draw.floats(6), grad: Float64Array.of(NaN, INF, 0, 1e-18, -1e18, 1), m: new Float64Array(6), v: new Float64Array(6) },
  (b, s) => b.adam(s.param, s.grad, s.m, s.v, 6, 1, ADAM),
  { param: 10 },
);
add(
  "adamRows",
  "NaN in a row that is not in use",
  {
    param: draw.floats(6),
    grad: rowsOf([1, 2], [NaN, INF]),
    rows: Int32Array.of(2, -1),
    m: new Float64Array(6),
    v: new Float64Array(6),
    steps: new Int32Array(3),
  },
  (b, s) => b.adamRows(s.param, s.grad, s.rows, 2, 2, s.m, s.v, s.steps, ADAM),
  { param: 10 },
);
add("sgd", "NaN and ∞", { param: draw.floats(5), grad: Float64Array.of(NaN, INF, 0, -INF, 1) }, (b, s) =>
  b.sgd(s.param, s.grad, 5, 0.5, 0.5),
);

const KERNELS = [...new Set(cases.map(({ kernel }) => kernel))];
for (const { title, backend, missing } of configurations()) {
  describe.skipIf(!backend)(`CPU backend, ${title}${missing ? ` (skipped: ${missing})` : ""}`, () => {
    afterAll(() => backend?.dispose());
    it.each(KERNELS)("%s agrees with the reference at the edges of float32", (kernel) => {
      expect(
        cases
          .filter((one) => one.kernel === kernel)
          .flatMap((one) => disagreements(backend!, one))
          .slice(0, 12),
      ).toEqual([]);
    });
  });
}
