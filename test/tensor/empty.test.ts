/** Tensors without elements: every operation gives the right shape, the neutral element where it sums over nothing, and zero gradients. */

import { describe, expect, it } from "vitest";
import * as sg from "#sparsegate/tensor/index.js";
import type { Shape, Tensor } from "#sparsegate/tensor/index.js";
import { BACKENDS, useBackend } from "../use-backend.js";
import { param } from "./finite-differences.js";

const list = (t: Tensor): number[] => Array.from(t.dataSync());
const int = (data: readonly number[], shape: Shape): Tensor => sg.tensor(data, shape, "int32");

for (const { name, make } of BACKENDS) {
  describe(`empty tensors on the ${name} backend`, () => {
    useBackend(make);
    const none = int([], [0]);
    const KEY = { seed: 0, stream: 0, step: 0 };
    const state = (D: number): { inputWeight: Tensor; recurrentWeight: Tensor; bias: Tensor } => ({
      inputWeight: param([D, 12], 1),
      recurrentWeight: param([3, 12], 2),
      bias: param([12], 3),
    });
    /** Result of an operation on empty inputs: its shape, its elements, and zero gradients of everything it was computed from. */
    const CASES: [claim: string, inputs: Shape[], f: (...inputs: Tensor[]) => Tensor, shape: Shape, fill?: number][] = [
      [
        "add broadcasts to nothing",
        [
          [3, 1],
          [3, 0],
        ],
        sg.add,
        [3, 0],
      ],
      ["mul of a row and no rows", [[0, 3], [3]], sg.mul, [0, 3]],
      [
        "div of inner axes",
        [
          [2, 1, 0, 1],
          [2, 4, 0, 2],
        ],
        sg.div,
        [2, 4, 0, 2],
      ],
      ["expand", [[3, 1]], (x) => sg.expand(x, [3, 0]), [3, 0]],
      ["sum of all is 0", [[0, 3]], (x) => sg.sum(x), [], 0],
      ["sum over an empty axis is 0", [[2, 0, 3]], (x) => sg.sum(x, 1), [2, 3], 0],
      ["sum over the last, empty axis is 0", [[3, 0]], (x) => sg.sum(x, 1), [3], 0],
      ["sum over two axes apart, one of them empty, is 0", [[0, 2, 3]], (x) => sg.sum(x, [0, 2]), [2], 0],
      ["mean of nothing is 0", [[0]], (x) => sg.mean(x), [], 0],
      ["softmax of no rows", [[0, 3]], sg.softmax, [0, 3]],
      ["softmax of no columns", [[3, 0]], sg.softmax, [3, 0]],
      ["logSoftmax of no columns", [[3, 0]], sg.logSoftmax, [3, 0]],
      ["logSumExp of no rows", [[0, 3]], sg.logSumExp, [0]],
      ["logSumExp of no columns is −∞", [[3, 0]], sg.logSumExp, [3], -Infinity],
      ["layerNorm of no rows", [[0, 3], [3], [3]], (x, gamma, beta) => sg.layerNorm(x, gamma, beta), [0, 3]],
      [
        "matmul over an empty inner axis is 0",
        [
          [3, 0],
          [0, 2],
        ],
        sg.matmul,
        [3, 2],
        0,
      ],
      [
        "matmul of no rows",
        [
          [0, 3],
          [3, 2],
        ],
        sg.matmul,
        [0, 2],
      ],
      [
        "matmul to no columns",
        [
          [2, 3],
          [3, 0],
        ],
        sg.matmul,
        [2, 0],
      ],
      [
        "batched matmul of no matrices",
        [
          [0, 2, 3],
          [0, 3, 2],
        ],
        sg.matmul,
        [0, 2, 2],
      ],
      [
        "batched matmul over an empty inner axis is 0",
        [
          [2, 2, 0],
          [2, 0, 2],
        ],
        sg.matmul,
        [2, 2, 2],
        0,
      ],
      ["reshape", [[0, 3]], (x) => sg.reshape(x, [-1, 3]), [0, 3]],
      ["permute", [[0, 3]], (x) => sg.permute(x, [1, 0]), [3, 0]],
      ["slice of nothing", [[2, 3]], (x) => sg.slice(x, 0, 1, 1), [0, 3]],
      [
        "concat of empty parts",
        [
          [0, 2],
          [0, 2],
        ],
        (...parts) => sg.concat(parts),
        [0, 2],
      ],
      ["topK of no rows", [[0, 3]], (x) => sg.topK(x, 2).values, [0, 2]],
      ["gatherLast of no rows", [[0, 3]], (x) => sg.gatherLast(x, int([], [0, 2])), [0, 2]],
      ["bincount of nothing is 0", [[0]], (x) => sg.bincount(x, none, 3), [3], 0],
      ["embedding of no indices", [[4, 2]], (table) => sg.embedding(table, none), [0, 2]],
      [
        "dispatch and combine of no rows",
        [
          [0, 3],
          [0, 2],
        ],
        (x, gates) => {
          const routing = sg.routeByExpert({ experts: int([], [0, 2]) }, 4);
          return sg.combine(sg.dispatch(x, routing), gates, routing);
        },
        [0, 3],
      ],
      [
        "grouped products of no rows",
        [
          [0, 3],
          [2, 3, 2],
          [2, 2],
        ],
        (x, w, bias) => {
          const offsets = int([0, 0, 0], [3]);
          return sg.groupedBias(sg.groupedMatmul(x, w, offsets), bias, offsets);
        },
        [0, 2],
      ],
      [
        "values of noisyTopK of no rows",
        [
          [0, 3],
          [0, 3],
        ],
        (clean, raw) => sg.noisyTopK(clean, raw, 1, { key: KEY, start: 0 }).values,
        [0, 2],
      ],
      [
        "load of noisyTopK of no rows is 0",
        [
          [0, 3],
          [0, 3],
        ],
        (clean, raw) => sg.noisyTopK(clean, raw, 1, { key: KEY, start: 0 }).load,
        [3],
        0,
      ],
      [
        "load of noisyTopK of groups without rows is 0",
        [
          [2, 3],
          [2, 3],
        ],
        (clean, raw) =>
          sg.noisyTopK(clean, raw, 1, { key: KEY, start: 0, groups: { offsets: int([0, 0, 0], [3]), count: 2 } }).load,
        [6],
        0,
      ],
      ["groupedSum of no rows is 0", [[0, 3]], (x) => sg.groupedSum(x, { offsets: int([0, 0, 0], [3]), count: 2 }), [2, 3], 0],
      [
        "groupedSum of rows of no group is 0",
        [[2, 3]],
        (x) => sg.groupedSum(x, { offsets: int([0, 0], [2]), count: 1 }),
        [1, 3],
        0,
      ],
      ["maximum broadcasts to nothing", [[0, 3], [3]], sg.maximum, [0, 3]],
      ["minimum with a number", [[0, 3]], (x) => sg.minimum(x, 1), [0, 3]],
      ["dropoutRows of no rows", [[0, 3]], (x) => sg.dropoutRows(x, 0.5, KEY, none), [0, 3]],
      ["recompute", [[0, 3]], (x) => sg.recompute(sg.square, [x], []), [0, 3]],
      ["cvSquared of nothing is 0", [[0]], sg.cvSquared, [], 0],
      ["dropout", [[0]], (x) => sg.dropout(x, 0.5, KEY), [0]],
      ["linearCrossEntropy of no rows is 0", [[0, 2], [3, 2], [3]], (x, w, b) => sg.linearCrossEntropy(x, w, b, none), [], 0],
      [
        "sampledCrossEntropy of no rows is 0",
        [[0, 2], [3, 2], [3]],
        (x, w, b) =>
          sg.sampledCrossEntropy(x, w, b, none, {
            samples: Int32Array.of(1),
            logExpected: Float32Array.of(0),
            logExpectedOf: () => 0,
          }),
        [],
        0,
      ],
      ["lstm of no steps", [[0, 2, 2]], (x) => sg.lstm(x, state(2)).output, [0, 2, 3]],
      ["lstm of no lanes", [[2, 0, 2]], (x) => sg.lstm(x, state(2)).output, [2, 0, 3]],
      // With no input, no bias and no state all gates' arguments are 0, and so are cells and outputs.
      ["lstm of no inputs", [[2, 1, 0]], (x) => sg.lstm(x, { ...state(0), bias: sg.zeros([12]) }).output, [2, 1, 3], 0],
    ];
    it.each(CASES)("%s", (_claim, shapes, f, shape, fill) => {
      const inputs = shapes.map((s, i) => param(s, 40 + i, 0.5, 1));
      const y = f(...inputs);
      expect(y.shape).toEqual(shape);
      expect(list(y)).toEqual(new Array(y.size).fill(fill ?? 0));
      if (fill === -Infinity) return;
      sg.backward(sg.sum(y));
      for (const p of inputs) {
        const { value, rows } = p.grad!;
        // Rows that are not in use may hold anything.
        const inUse = rows
          ? list(rows).flatMap((row, slot) =>
              row < 0 ? [] : list(value).slice((slot * value.size) / rows.size, ((slot + 1) * value.size) / rows.size),
            )
          : list(value);
        expect(
          inUse.every((g) => g === 0),
          `gradient ${inUse.join()}`,
        ).toBe(true);
      }
    });
  });
}
