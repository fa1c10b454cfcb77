/**
 * Every operation's gradient against central finite differences on the float64 reference backend. The table is held to the list of exports: an operation
 * without a line here fails the last test.
 */

import { describe, expect, it } from "vitest";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Shape, Tensor } from "#sparsegate/tensor/index.js";
import { useBackend } from "../use-backend.js";
import { denseGradient, gradientErrors, param } from "./finite-differences.js";

/** Shape of an input, or shape and range. */
type Input = Shape | { shape: Shape; low: number; high: number };
interface Check {
  ops: string[];
  claim: string;
  inputs: readonly Input[];
  f: (...inputs: Tensor[]) => Tensor;
}
const checks: Check[] = [];
function check(ops: string, claim: string, inputs: readonly Input[], f: (...inputs: Tensor[]) => Tensor): void {
  checks.push({ ops: ops.split(" "), claim: `${ops}${claim && `: ${claim}`}`, inputs, f });
}
const between = (shape: Shape, low: number, high: number): Input => ({ shape, low, high });
const ints = (data: readonly number[], shape: Shape): Tensor => sg.tensor(data, shape, "int32");

// ---- elementwise --------------------------------------------------------------------------------------------------------
for (const op of ["neg", "exp", "square", "tanh", "sigmoid", "gelu", "silu", "softplus", "normalCdf"] as const)
  check(op, "", [between([3, 5], -3, 3)], sg[op]);
// log, sqrt and reciprocal end at 0; relu and abs bend there.
for (const op of ["log", "sqrt", "reciprocal", "relu", "abs"] as const) check(op, "above 0", [between([3, 5], 0.5, 2)], sg[op]);
for (const op of ["reciprocal", "relu", "abs"] as const) check(op, "below 0", [between([3, 5], -2, -0.5)], sg[op]);
const PAIRS: readonly [Shape, Shape][] = [
  [
    [2, 3],
    [2, 3],
  ],
  [[2, 3], [3]],
  [[3], [2, 3]],
  [
    [2, 3],
    [2, 1],
  ],
  [
    [2, 1],
    [1, 3],
  ],
  [[2, 3], []],
  [[], [4]],
  [
    [2, 1, 4],
    [3, 1],
  ],
  [
    [2, 1, 3, 1],
    [2, 4, 3, 2],
  ],
  [
    [1, 3],
    [2, 3],
  ],
];
for (const op of ["add", "sub", "mul", "div"] as const) {
  for (const [a, b] of PAIRS) check(op, `[${a.join()}] and [${b.join()}]`, [between(a, -2, 2), between(b, 0.5, 2)], sg[op]);
  check(op, "a number on the right", [[2, 3]], (x) => sg[op](x, 1.7));
  check(op, "a number on the left", [between([2, 3], 0.5, 2)], (x) => sg[op](1.7, x));
}
for (const op of ["maximum", "minimum"] as const) {
  for (const [a, b] of PAIRS) check(op, `[${a.join()}] and [${b.join()}]`, [between(a, -2, 2), between(b, -2, 2)], sg[op]);
  check(op, "a number on the right", [[2, 3]], (x) => sg[op](x, 0.1));
  check(op, "a number on the left", [[2, 3]], (x) => sg[op](0.1, x));
}
check("affine", "", [[2, 3]], (x) => sg.affine(x, -1.7, 0.4));
check("expand", "a row", [[3]], (x) => sg.expand(x, [2, 3]));
check("expand", "inner axes", [[2, 1, 3, 1]], (x) => sg.expand(x, [2, 2, 3, 4]));
check("expand", "a scalar", [[]], (x) => sg.expand(x, [2, 2]));

// ---- moving elements ------------------------------------------------------------------------------------------------------
check("reshape", "", [[2, 3, 4]], (x) => sg.reshape(x, [6, -1]));
check("permute", "", [[2, 3, 4]], (x) => sg.permute(x, [2, 0, 1]));
check("transpose", "", [[2, 3, 4]], (x) => sg.transpose(x));
check("slice", "inner axis", [[2, 5, 2]], (x) => sg.slice(x, 1, 1, 4));
check("slice", "last axis from the end", [[2, 5]], (x) => sg.slice(x, -1, 0, 2));
check(
  "concat",
  "first axis",
  [
    [1, 3],
    [2, 3],
  ],
  (...parts) => sg.concat(parts, 0),
);
check(
  "concat",
  "middle axis, one part empty",
  [
    [2, 1, 2],
    [2, 0, 2],
    [2, 3, 2],
  ],
  (...parts) => sg.concat(parts, 1),
);

check("moveRows", "one row left out, one zero", [[4, 3]], (x) => sg.moveRows(x, sg.rowMove([2, -1, 0, 3], 4)));
check("moveRows", "and back", [[2, 3]], (x) => sg.moveRows(x, sg.moveBack(sg.rowMove([3, 1], 4))));

// ---- products ---------------------------------------------------------------------------------------------------------------
check(
  "matmul",
  "matrices",
  [
    [3, 4],
    [4, 5],
  ],
  sg.matmul,
);
check("matmul", "a vector", [[4], [4, 5]], sg.matmul);
check(
  "matmul",
  "leading axes",
  [
    [2, 3, 4],
    [4, 5],
  ],
  sg.matmul,
);
check(
  "matmul",
  "batched",
  [
    [2, 2, 3, 4],
    [2, 2, 4, 3],
  ],
  sg.matmul,
);
check(
  "groupedMatmul groupedBias",
  "with empty groups",
  [
    [5, 3],
    [4, 3, 2],
    [4, 2],
  ],
  (x, w, bias) => {
    const offsets = ints([0, 2, 2, 5, 5], [5]);
    return sg.groupedBias(sg.groupedMatmul(x, w, offsets), bias, offsets);
  },
);
check("groupedBias", "with rows of no group", [[5, 3], [3, 3]], (x, bias) => sg.groupedBias(x, bias, ints([0, 2, 2, 3], [4])));
check(
  "groupedFeedForward",
  "with empty groups, and a row of none",
  [
    [6, 3],
    [4, 3, 5],
    [4, 5, 2],
  ],
  (x, w1, w2) => sg.groupedFeedForward(x, w1, w2, ints([0, 2, 2, 5, 5], [5])),
);
check(
  "groupedMatmul groupedBias",
  "weights that are no leaves",
  [
    [3, 2],
    [3, 2, 2],
    [3, 2],
  ],
  (x, w, bias) => {
    const offsets = ints([0, 0, 3, 3], [4]);
    return sg.groupedBias(sg.groupedMatmul(x, sg.square(w), offsets), sg.square(bias), offsets);
  },
);

// ---- reductions and whole rows ------------------------------------------------------------------------------------------------
for (const op of ["sum", "mean"] as const) {
  for (const axes of [undefined, 0, 1, -1, [0, 2], [0, 1], []])
    check(op, `axes ${JSON.stringify(axes) ?? "all"}`, [[2, 3, 4]], (x) => sg[op](x, axes));
}
for (const op of ["softmax", "logSoftmax", "logSumExp"] as const) {
  check(op, "", [between([3, 5], -3, 3)], sg[op]);
  check(op, "one column", [[3, 1]], sg[op]);
}
check("layerNorm", "", [[3, 5], [5], [5]], (x, gamma, beta) => sg.layerNorm(x, gamma, beta));
check("layerNorm", "a large epsilon", [[2, 2, 3], [3], [3]], (x, gamma, beta) => sg.layerNorm(x, gamma, beta, 0.5));
check("topK", "", [[3, 5]], (x) => sg.topK(x, 2).values);
check("topK", "all", [[2, 3]], (x) => sg.topK(x, 3).values);
check("gatherLast", "repeated and left out", [[3, 5]], (x) => sg.gatherLast(x, ints([0, 2, 2, -1, 1, 1], [3, 2])));

// ---- rows -------------------------------------------------------------------------------------------------------------------------
check("embedding", "repeated indices", [[6, 3]], (table) => sg.embedding(table, ints([1, 4, 1, 0], [2, 2])));
check("embedding", "a table that is no leaf", [[4, 2]], (table) => sg.embedding(sg.square(table), ints([3, 3, 1], [3])));
check(
  "dispatch combine",
  "with a dropped assignment and an expert without rows",
  [
    [3, 4],
    [3, 2],
  ],
  (x, gates) => {
    const routing = sg.routeByExpert({ experts: ints([1, 0, 3, -1, 1, 3], [3, 2]) }, 4);
    return sg.combine(sg.square(sg.dispatch(x, routing)), gates, routing);
  },
);
check("dispatch combine", "a list: a row without experts, one dropped, and two of no row", [[4, 3], [7]], (x, gates) => {
  const lists = {
    experts: ints([2, 0, 0, -1, 1, -1, -1], [7]),
    rows: ints([0, 0, 2, 2, 3, -1, -1], [7]),
    rowOffsets: ints([0, 2, 2, 4, 5], [5]),
  };
  const routing = sg.routeByExpert(lists, 3);
  return sg.combine(sg.square(sg.dispatch(x, routing)), gates, routing);
});
// The bias gets the gradient of every place, also of those that dropped assignments leave over.
for (const [claim, experts] of [["one", [1, 0, 3, -1, 1, 3]], ["all", [-1, -1, -1, -1, -1, -1]]] as const) {
  check("dispatch combine", `a dense operation in between, ${claim} dropped`, [[3, 4], [4], [3, 2]], (x, bias, gates) => {
    const routing = sg.routeByExpert({ experts: ints(experts, [3, 2]) }, 4);
    return sg.combine(sg.square(sg.add(sg.dispatch(x, routing), bias)), gates, routing);
  });
}
check("bincount", "with an index left out", [[3, 2]], (x) => sg.bincount(x, ints([0, 2, 2, -1, 4, 1], [3, 2]), 5));

// ---- gating -----------------------------------------------------------------------------------------------------------------------
const KEY = { seed: 3, stream: 5, step: 7 };
type NoisyOptions = Parameters<typeof sg.noisyTopK>[3];
/** Groups of two rows, none and one; the last row is in none. */
const GROUPED = (): NoisyOptions => ({
  key: KEY,
  start: 3,
  rowIds: ints([9, 0, 4, 1], [4]),
  groups: { offsets: ints([0, 2, 2, 3], [4]), count: 3 },
});
for (const k of [1, 2, 4, 5]) {
  for (const [name, rows, options] of [
    ["all rows", 3, () => ({ key: KEY, start: 2 })],
    ["numbered rows in groups", 4, GROUPED],
  ] as [string, number, () => NoisyOptions][]) {
    const inputs = [[rows, 5], between([rows, 5], -1, 1)];
    check("noisyTopK", `values, k = ${k} of 5, ${name}`, inputs, (clean, raw) => sg.noisyTopK(clean!, raw!, k, options()).values);
    check("noisyTopK", `load, k = ${k} of 5, ${name}`, inputs, (clean, raw) => sg.noisyTopK(clean!, raw!, k, options()).load);
    check("noisyTopK", `values and load, k = ${k} of 5, ${name}`, inputs, (clean, raw) => {
      const { values, load } = sg.noisyTopK(clean!, raw!, k, options());
      return sg.concat([sg.reshape(values, [-1]), load]);
    });
  }
}
check(
  "noisyTopK",
  "load of more rows than one part has",
  [[40, 3], between([40, 3], -1, 1)],
  (clean, raw) => sg.noisyTopK(clean, raw, 1, { key: KEY, start: 0 }).load,
);
check(
  "noisyTopK",
  "leading axes",
  [[2, 2, 3], between([2, 2, 3], -1, 1)],
  (clean, raw) => sg.noisyTopK(clean, raw, 2, { key: KEY, start: 0 }).values,
);
check("groupedSum", "with an empty group and a row of none", [[4, 3]], (x) =>
  sg.groupedSum(x, { offsets: ints([0, 2, 2, 3], [4]), count: 3 }),
);
check("cvSquared", "", [between([6], 0.5, 2)], sg.cvSquared);

// ---- random -----------------------------------------------------------------------------------------------------------------------
check("dropout", "the same mask backwards", [[4, 6]], (x) => sg.dropout(x, 0.4, KEY, 11));
check("dropoutRows", "the same masks backwards, a row of no id", [[4, 6]], (x) =>
  sg.dropoutRows(x, 0.4, KEY, ints([5, 0, -1, 2 ** 30], [4]), 11),
);

// ---- computed again ---------------------------------------------------------------------------------------------------------------
check("recompute", "two inputs and a parameter used twice", [[3, 4], [4, 4], [4]], (x, w, b) =>
  sg.recompute((x, b) => sg.tanh(sg.add(sg.matmul(sg.tanh(sg.matmul(x!, w)), w), b!)), [x, b], [w]),
);
check(
  "recompute",
  "in recompute, with dropout",
  [
    [3, 4],
    [4, 4],
  ],
  (x, w) => sg.recompute((x) => sg.recompute((h) => sg.dropout(sg.square(h!), 0.3, KEY), [sg.matmul(x!, w)], []), [x], [w]),
);

// ---- losses -----------------------------------------------------------------------------------------------------------------------
const CANDIDATES = {
  samples: Int32Array.of(1, 3, 5),
  logExpected: Float32Array.of(-0.5, -1, -2),
  logExpectedOf: (t: number) => -t / 4,
};
for (const biased of [true, false]) {
  const inputs = biased
    ? [[5, 3], [7, 3], [7]]
    : [
        [5, 3],
        [7, 3],
      ];
  const bias = biased ? "" : ", no bias";
  check("linearCrossEntropy", `a row left out${bias}`, inputs, (x, w, b) =>
    sg.linearCrossEntropy(x!, w!, b, ints([0, 6, -1, 3, 3], [5])),
  );
  check("sampledCrossEntropy", `accidental hits${bias}`, inputs, (x, w, b) =>
    sg.sampledCrossEntropy(x!, w!, b, ints([0, 6, -1, 3, 3], [5]), CANDIDATES),
  );
}

// ---- LSTM ---------------------------------------------------------------------------------------------------------------------------
const stateOf = (B: number, P: number, H: number) => ({
  h: sg.randomUniform([B, P], -1, 1, { seed: 38 }),
  c: sg.randomUniform([B, H], -1, 1, { seed: 39 }),
});
for (const [T, B] of [
  [3, 2],
  [1, 2],
  [4, 1],
] as const) {
  const resets = [0, 1, 0, 0, 1, 0].slice(0, T * B);
  check(
    "lstm",
    `T = ${T}, B = ${B}, resets and a starting state`,
    [[T, B, 3], [3, 16], [4, 16], [16]],
    (x, inputWeight, recurrentWeight, bias) =>
      sg.lstm(x, { inputWeight, recurrentWeight, bias }, stateOf(B, 4, 4), ints(resets, [T, B])).output,
  );
  check(
    "lstm",
    `T = ${T}, B = ${B}, projected, resets and a starting state`,
    [[T, B, 3], [3, 16], [2, 16], [16], [4, 2]],
    (x, inputWeight, recurrentWeight, bias, projection) =>
      sg.lstm(x, { inputWeight, recurrentWeight, bias, projection }, stateOf(B, 2, 4), ints(resets, [T, B])).output,
  );
}
check(
  "lstm",
  "from zero, no resets",
  [[3, 2, 2], [2, 12], [3, 12], [12]],
  (x, inputWeight, recurrentWeight, bias) => sg.lstm(x, { inputWeight, recurrentWeight, bias }).output,
);

for (const [T, projected, additive, withContexts] of [
  [3, true, true, true],
  [3, false, false, false],
  [3, true, false, false],
  [3, false, false, true],
  [1, false, true, true],
] as const) {
  const P = projected ? 2 : 4;
  check(
    "attentiveLstm",
    `T = ${T}${projected ? ", projected" : ""}, ${additive ? "additive" : "product"}, a lane of padding, a starting state${withContexts ? ", contexts" : ""}`,
    [[T, 2, 3], [3, 16], [P, 16], [16], [5, 16], [P, 3], [4, 2, 5], [4, 2, 3], ...(projected ? [[4, P]] : []), ...(additive ? [[3]] : [])],
    (x, inputWeight, recurrentWeight, bias, contextWeight, queryWeight, values, keys, ...rest) => {
      const projection = projected ? rest[0]! : undefined;
      const v = additive ? rest.at(-1)! : undefined;
      const padding = sg.tensor([0, 0, 0, 0, 0, 0, -1e30, -1e30], [2, 4]);
      const weights = { inputWeight, recurrentWeight, bias, projection, contextWeight, queryWeight };
      const { output, contexts } = sg.attentiveLstm(x, weights, { values, keys, bias: padding, v }, stateOf(2, P, 4), withContexts);
      return contexts ? sg.concat([output, contexts], 2) : output;
    },
  );
}
check(
  "attentiveLstm",
  "from zero",
  [[2, 1, 2], [2, 12], [3, 12], [12], [2, 12], [3, 2], [3, 1, 2], [3, 1, 2]],
  (x, inputWeight, recurrentWeight, bias, contextWeight, queryWeight, values, keys) =>
    sg.attentiveLstm(x, { inputWeight, recurrentWeight, bias, contextWeight, queryWeight }, { values, keys, bias: sg.zeros([1, 3]) })
      .output,
);

/** Exports that are no operations on float tensors, each with the reason. */
const NO_GRADIENT: Record<string, string> = {
  Tensor: "a class",
  tensor: "makes",
  empty: "makes",
  full: "makes",
  zeros: "makes",
  randomNormal: "makes",
  randomUniform: "makes",
  scope: "memory",
  keep: "memory",
  backward: "the tape itself",
  noGrad: "the tape itself",
  oncePerPass: "no gradient by its contract",
  defaultBackend: "a setting",
  setDefaultBackend: "a setting",
  routeByExpert: "integers to integers",
  rowMove: "integers to integers",
  moveBack: "integers to integers",
  limitPerExpert: "integers to integers",
  gatherIndices: "integers to integers",
  addIndices: "integers to integers",
  maskIndices: "integers to integers",
  columnTopK: "chooses: gives integers",
  aboveThreshold: "chooses: gives integers",
};
/** Operations that move elements of any dtype. */
const ANY_DTYPE = ["reshape", "permute", "transpose", "slice", "concat"];

useBackend(() => new ReferenceBackend());

const made = (inputs: readonly Input[]): Tensor[] =>
  inputs.map((input, i) => ("shape" in input ? param(input.shape, 10 + i, input.low, input.high) : param(input, 10 + i)));
const shapeOf = (input: Input): Shape => ("shape" in input ? input.shape : input);

describe("the gradient equals finite differences", () => {
  it.each(checks)("$claim", ({ inputs, f }) => {
    const tensors = made(inputs);
    expect(gradientErrors(tensors, () => f(...tensors))).toEqual([]);
  });
});

describe("a tensor used more than once", () => {
  it.each(checks)("gets the sum of its gradients: $claim", ({ inputs, f }) => {
    const tensors = made(inputs);
    expect(gradientErrors(tensors, () => f(...tensors))).toEqual([]);
    const once = tensors.map(denseGradient);
    // Twice in one graph, then a third time in a graph of its own: gradients add up until zeroGrad.
    for (const p of tensors) p.zeroGrad();
    const loss = (y: Tensor): Tensor =>
      sg.sum(
        sg.mul(
          y,
          sg.tensor(
            Float64Array.from({ length: y.size }, (_, i) => (y.size === 1 ? 1 : Math.sin(1.7 * i + 0.3))),
            y.shape,
          ),
        ),
      );
    sg.backward(sg.add(loss(f(...tensors)), loss(f(...tensors))));
    sg.backward(loss(f(...tensors)));
    for (const [n, p] of tensors.entries()) denseGradient(p).forEach((v, i) => expect(v).toBeCloseTo(3 * once[n]![i]!, 10));
  });
});

describe("integers where floats belong are refused", () => {
  const refusing = checks.filter(({ ops }) => !ANY_DTYPE.includes(ops[0]!));
  it.each(refusing)("$claim", ({ inputs, f }) => {
    for (const wrong of inputs.keys()) {
      const tensors = inputs.map((input, i) => sg.zeros(shapeOf(input), i === wrong ? "int32" : "float32"));
      expect(() => f(...tensors), `input ${wrong}`).toThrow(/expected dtype float32, got int32/);
    }
  });
  it("concat of both kinds", () => {
    expect(() => sg.concat([sg.zeros([2]), sg.zeros([2], "int32")])).toThrow(/concat: expected dtype float32, got int32/);
  });
});

describe("the table of gradient checks", () => {
  const checked = new Set(checks.flatMap(({ ops }) => ops));
  it("has a line for every operation that is exported", () => {
    expect(Object.keys(sg).filter((name) => !checked.has(name) && NO_GRADIENT[name] === undefined)).toEqual([]);
  });
  it("names nothing that is not exported, and excuses nothing that it checks", () => {
    expect([...checked, ...Object.keys(NO_GRADIENT)].filter((name) => !(name in sg))).toEqual([]);
    expect([...checked].filter((name) => name in NO_GRADIENT)).toEqual([]);
  });
  it("notices a wrong gradient: that of x² for 1.001·x²", () => {
    const x = param([3], 1);
    const wrong = (): Tensor => {
      const y = sg.square(x);
      const data = y.dataSync();
      y.backend.write(
        y.buffer,
        data.map((v) => 1.001 * v),
      );
      return y;
    };
    expect(gradientErrors([x], wrong)).toHaveLength(3);
  });
});
