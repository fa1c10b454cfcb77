/** Shapes, dtypes and indices that an operation cannot take: refused before anything is computed, in words that name what came. */

import { describe, expect, it } from "vitest";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { useBackend } from "../use-backend.js";

describe("shapes that do not fit are refused in words", () => {
  useBackend(() => new ReferenceBackend());
  const f = (...shape: number[]): Tensor => sg.zeros(shape);
  const i = (...shape: number[]): Tensor => sg.zeros(shape, "int32");
  const lstm = (change: Record<string, Tensor>): Tensor =>
    sg.lstm(f(2, 3, 5), { inputWeight: f(5, 16), recurrentWeight: f(4, 16), bias: f(16), ...change }).output;
  const attentive = (change: Record<string, Tensor>, memory: Record<string, Tensor> = {}): unknown =>
    sg.attentiveLstm(
      f(2, 3, 5),
      { inputWeight: f(5, 16), recurrentWeight: f(4, 16), bias: f(16), contextWeight: f(2, 16), queryWeight: f(4, 3), ...change },
      { values: f(6, 3, 2), keys: f(6, 3, 3), bias: f(3, 6), ...memory },
    );
  const ints = (...values: number[]): Tensor => sg.tensor(values, [values.length], "int32");
  const lists = (rows: number[], rowOffsets: number[]): sg.Routing =>
    sg.routeByExpert({ experts: i(rows.length), rows: ints(...rows), rowOffsets: ints(...rowOffsets) }, 3);
  const routing = (): sg.Routing => sg.routeByExpert({ experts: sg.tensor([0, 1, 1, 2], [2, 2], "int32") }, 3);
  const listed = (): sg.Routing => lists([0, 0, 1], [0, 2, 3]);
  const NOISE = { key: { seed: 0, stream: 0, step: 0 }, start: 0 };
  const CANDIDATES = { samples: Int32Array.of(7), logExpected: Float32Array.of(0), logExpectedOf: () => 0 };
  const CASES: [name: string, call: () => unknown, message: string][] = [
    ["add", () => sg.add(f(2, 3), f(2)), "add: expected shapes that broadcast together, got [2, 3] and [2]."],
    ["expand", () => sg.expand(f(2), [3]), "expand: expected shapes that broadcast together, got [2] and [3]."],
    ["matmul", () => sg.matmul(f(2, 3), f(4, 2)), "matmul: expected inner sizes to agree, got [2, 3] and [4, 2]."],
    [
      "batched matmul",
      () => sg.matmul(f(2, 2, 3), f(4, 3, 2)),
      "matmul: expected equal leading axes, got [2, 2, 3] and [4, 3, 2].",
    ],
    ["reshape", () => sg.reshape(f(2, 3), [4, -1]), "reshape: expected a shape of 6 elements for [2, 3], got [4, -1]."],
    ["permute", () => sg.permute(f(2, 3), [0, 0]), "permute: expected an order of the 2 axes, got [0, 0]."],
    ["transpose", () => sg.transpose(f(3)), "transpose: expected at least two axes, got shape [3]."],
    ["slice", () => sg.slice(f(2, 3), 1, 2, 4), "slice: expected 0 <= begin <= end <= 3 on axis 1, got 2 and 4."],
    ["slice, axis", () => sg.slice(f(2, 3), 2, 0, 1), "slice: expected an axis from -2 to 1, got 2."],
    ["concat", () => sg.concat([f(2, 3), f(2, 4)], 0), "concat: expected shapes equal but for axis 0, got [2, 3] and [2, 4]."],
    ["concat of nothing", () => sg.concat([]), "concat: expected at least one tensor, got none."],
    ["softmax", () => sg.softmax(f()), "softmax: expected a tensor with at least one axis, got a scalar."],
    ["layerNorm", () => sg.layerNorm(f(2, 3), f(2), f(3)), "layerNorm: expected gamma and beta of width 3, got 2 and 3."],
    ["topK", () => sg.topK(f(2, 3), 4), "topK: expected k from 1 to 3 (the last axis), got 4."],
    ["gatherLast", () => sg.gatherLast(f(2, 3), i(3, 1)), "gatherLast: expected 2 rows of indices, got 3."],
    ["gatherLast, index", () => sg.gatherLast(f(2, 3), sg.tensor([[2], [1000]], [2, 1], "int32")), "gatherLast: expected indices from -1 to 2, got 1000 at position 1."],
    ["rowMove, twice", () => sg.rowMove([1, 0, 1], 2), "rowMove: expected each row from 0 to 1 at most once (or -1), got 1 at position 2."],
    ["rowMove, range", () => sg.rowMove([2], 2), "rowMove: expected each row from 0 to 1 at most once (or -1), got 2 at position 0."],
    ["moveRows", () => sg.moveRows(f(3, 2), sg.rowMove([0], 2)), "moveRows: expected x (N, D) with the N = 2 rows of the move, got [3, 2]."],
    ["attentiveLstm, keys", () => attentive({}, { keys: f(6, 2, 3) }), "attentiveLstm: expected keys of shape [6, 3, 3], got [6, 2, 3]."],
    ["attentiveLstm, rank", () => attentive({}, { keys: f(6, 3) }), "attentiveLstm: expected x (time, batch, D), values (S, batch, C) and keys (S, batch, A), got [2, 3, 5], [6, 3, 2], [6, 3]."],
    ["attentiveLstm, weights", () => attentive({ queryWeight: f(4, 2) }), "attentiveLstm: expected queryWeight of shape [4, 3], got [4, 2]."],
    ["attentiveLstm, nothing to attend to", () => attentive({}, { values: f(0, 3, 2), keys: f(0, 3, 3), bias: f(3, 0) }), "attentiveLstm: expected a memory of at least one position, got none."],
    ["bincount", () => sg.bincount(f(4), i(3), 5), "bincount: expected one index a value (4), got 3."],
    ["bincount, index", () => sg.bincount(f(3), sg.tensor([-1, 4, 5], [3], "int32"), 5), "bincount: expected indices from -1 to 4, got 5 at position 2."],
    ["embedding, table", () => sg.embedding(f(4), i(2)), "embedding: expected a table (rows, width), got [4]."],
    [
      "embedding, index",
      () => sg.embedding(f(4, 2), sg.tensor([1, 4], [2], "int32")),
      "embedding: expected indices from 0 to 3, got 4 at position 1.",
    ],
    [
      "embedding, negative index",
      () => sg.embedding(f(4, 2), sg.tensor([-1], [1], "int32")),
      "embedding: expected indices from 0 to 3, got -1 at position 0.",
    ],
    [
      "groupedMatmul",
      () => sg.groupedMatmul(f(4, 2), f(3, 2, 2), i(3)),
      "groupedMatmul: expected x (M, p), w (E, p, q), offsets (E+1), got [4, 2], [3, 2, 2], [3].",
    ],
    [
      "groupedBias",
      () => sg.groupedBias(f(4, 3), f(3, 2), i(4)),
      "groupedBias: expected x (M, width), bias (E, width), offsets (E+1), got [4, 3], [3, 2], [4].",
    ],
    ["groupedMatmul, offsets beyond the rows", () => sg.groupedMatmul(f(4, 2), f(2, 2, 2), ints(0, 2, 9)), "groupedMatmul: expected offsets that rise from 0 to at most 4, got 9 at position 2."],
    ["groupedMatmul, offsets of a routing of more rows", () => sg.groupedMatmul(f(2, 2), f(3, 2, 2), routing().offsets), "rise from 0 to at most 2, got 3 at position 2."],
    ["groupedMatmul, offsets that fall", () => sg.groupedMatmul(f(4, 2), f(3, 2, 2), ints(0, 2, 1, 4)), "got 1 at position 2."],
    ["groupedFeedForward, offsets that begin late", () => sg.groupedFeedForward(f(4, 2), f(2, 2, 3), f(2, 3, 2), ints(1, 2, 4)), "got 1 at position 0."],
    ["groupedBias, a negative offset", () => sg.groupedBias(f(4, 3), f(2, 3), ints(0, -4, 4)), "got -4 at position 1."],
    ["groupedSum, offsets beyond the rows", () => sg.groupedSum(f(4, 3), { offsets: ints(0, 5), count: 1 }), "groupedSum: expected offsets that rise from 0 to at most 4, got 5 at position 1."],
    ["gatherIndices", () => sg.gatherIndices(i(4), ints(-1, 3, 4)), "gatherIndices: expected indices from -1 to 3, got 4 at position 2."],
    ["moveRows, an index beyond", () => sg.moveRows(f(4, 2), { index: ints(0, 4), inverse: ints(0, -1, -1, -1) }), "moveRows: expected indices from -1 to 3, got 4 at position 1."],
    ["moveRows, an inverse beyond", () => sg.moveRows(f(2, 2), { index: ints(0, 1), inverse: ints(0, 2) }), "moveRows: expected indices from -1 to 1, got 2 at position 1."],
    ["dispatch, a row beyond", () => sg.dispatch(f(2, 2), { ...routing(), rows: ints(0, 1, 99, 1) }), "dispatch: expected indices from -1 to 1, got 99 at position 2."],
    ["combine, a place beyond", () => sg.combine(f(4, 2), f(2, 2), { ...routing(), position: sg.tensor([0, 1, 2, 77], [2, 2], "int32") }), "combine: expected indices from -1 to 3, got 77 at position 3."],
    ["dispatch, lists whose offsets lead beyond", () => sg.dispatch(f(2, 2), { ...listed(), rowOffsets: ints(0, 2, 9) }), "dispatch: expected offsets that rise from 0 to at most 3, got 9 at position 2."],
    ["combine, lists of another number of rows", () => sg.combine(f(3, 2), f(3), { ...listed(), rowOffsets: ints(0, 3) }), "combine: expected a routing of 2 rows as routeByExpert makes them, got order, rows, position and rowOffsets of [3], [3], [3], [2]."],
    ["combine, offsets beyond", () => sg.combine(f(4, 2), f(2, 2), { ...routing(), offsets: ints(0, 2, 3, 5) }), "combine: expected offsets that rise from 0 to at most 4, got 5 at position 3."],
    [
      "dispatch, rows of another routing",
      () => sg.dispatch(f(2, 2), { ...routing(), rows: ints(0, 1) }),
      "dispatch: expected a routing of 2 rows as routeByExpert makes them, got order, rows, position and rowOffsets of [4], [2], [2, 2], none.",
    ],
    [
      "routeByExpert",
      () => sg.routeByExpert({ experts: i(4) }, 3),
      "routeByExpert: expected experts (N, K), or lists of experts (M) and rows (M) with rowOffsets (N+1), got [4], none, none.",
    ],
    [
      "routeByExpert, expert",
      () => sg.routeByExpert({ experts: sg.tensor([[0, 2], [3, -1]], [2, 2], "int32") }, 3),
      "routeByExpert: expected indices from -1 to 2, got 3 at position 2.",
    ],
    [
      "routeByExpert, a list without its rows",
      () => sg.routeByExpert({ experts: i(4, 2), rowOffsets: i(5) }, 3),
      "with rowOffsets (N+1), got [4, 2], none, [5].",
    ],
    [
      "routeByExpert, rows of a list",
      () => sg.routeByExpert({ experts: i(4), rows: i(3), rowOffsets: i(5) }, 3),
      "with rowOffsets (N+1), got [4], [3], [5].",
    ],
    [
      "routeByExpert, a list of no offsets",
      () => sg.routeByExpert({ experts: i(0), rows: i(0), rowOffsets: i(0) }, 3),
      "with rowOffsets (N+1), got [0], [0], [0].",
    ],
    [
      "routeByExpert, rows that are no integers",
      () => sg.routeByExpert({ experts: i(4), rows: f(4), rowOffsets: i(5) }, 3),
      "routeByExpert: expected dtype int32, got float32 (shape [4]).",
    ],
    [
      "routeByExpert, a row of a list that its offsets do not say",
      () => lists([0, 7, 1], [0, 2, 3]),
      "routeByExpert: expected the row of assignments 0 to 1 to be 0, as rowOffsets say, got 7 at position 1.",
    ],
    [
      "routeByExpert, a tail that is of a row",
      () => lists([0, 1, 1], [0, 1, 2]),
      "routeByExpert: expected the row of assignments 2 to 2 to be -1, as rowOffsets say, got 1 at position 2.",
    ],
    ["routeByExpert, offsets that begin late", () => lists([-1, 0, 1], [1, 2, 3]), "routeByExpert: expected offsets that rise from 0 to at most 3, got 1 at position 0."],
    [
      "routeByExpert, offsets beyond the list",
      () => lists([0, 1, 1], [0, 1, 90]),
      "routeByExpert: expected offsets that rise from 0 to at most 3, got 90 at position 2.",
    ],
    ["routeByExpert, offsets that fall", () => lists([0, 0, 1], [0, 2, 1]), "rise from 0 to at most 3, got 1 at position 2."],
    [
      "dispatch",
      () => sg.dispatch(f(3, 2), sg.routeByExpert({ experts: i(4, 2) }, 3)),
      "dispatch: expected x (N, D) with the N = 4 rows of the routing, got [3, 2].",
    ],
    [
      "dispatch, rank",
      () => sg.dispatch(f(4, 2, 2), sg.routeByExpert({ experts: i(4, 2) }, 3)),
      "dispatch: expected x (N, D) with the N = 4 rows of the routing, got [4, 2, 2].",
    ],
    [
      "combine, gates",
      () => sg.combine(f(8, 2), f(4, 1), sg.routeByExpert({ experts: i(4, 2) }, 3)),
      "combine: expected outputs (M, D) of M = 8 assignments and gates of their shape, [4, 2], got [8, 2] and [4, 1].",
    ],
    [
      "combine, gates the other way round",
      () => sg.combine(f(8, 2), f(2, 4), sg.routeByExpert({ experts: i(4, 2) }, 3)),
      "got [8, 2] and [2, 4].",
    ],
    ["combine, outputs", () => sg.combine(f(7, 2), f(4, 2), sg.routeByExpert({ experts: i(4, 2) }, 3)), "got [7, 2] and [4, 2]."],
    [
      "noisyTopK, raw",
      () => sg.noisyTopK(f(2, 3), f(3, 2), 1, NOISE),
      "noisyTopK: expected clean and raw of one shape, got [2, 3] and [3, 2].",
    ],
    ["noisyTopK, k", () => sg.noisyTopK(f(2, 3), f(2, 3), 4, NOISE), "noisyTopK: expected k from 1 to 3 (experts), got 4."],
    ["noisyTopK, k of 0", () => sg.noisyTopK(f(2, 3), f(2, 3), 0, NOISE), "noisyTopK: expected k from 1 to 3 (experts), got 0."],
    [
      "noisyTopK, row ids",
      () => sg.noisyTopK(f(2, 3), f(2, 3), 1, { ...NOISE, rowIds: i(3) }),
      "noisyTopK: expected 2 row ids (one a row), got 3.",
    ],
    [
      "noisyTopK, row ids that are no integers",
      () => sg.noisyTopK(f(2, 3), f(2, 3), 1, { ...NOISE, rowIds: f(2) }),
      "noisyTopK: expected dtype int32, got float32 (shape [2]).",
    ],
    [
      "noisyTopK, a scalar",
      () => sg.noisyTopK(f(), f(), 1, NOISE),
      "noisyTopK: expected a tensor with at least one axis, got a scalar.",
    ],
    ...(
      [
        ["noisyTopK", (groups: sg.Groups) => sg.noisyTopK(f(2, 3), f(2, 3), 1, { ...NOISE, groups })],
        ["columnTopK", (groups: sg.Groups) => sg.columnTopK(f(2, 3), 1, groups)],
        ["aboveThreshold", (groups: sg.Groups) => sg.aboveThreshold(f(2, 3), f(6), groups)],
        ["groupedSum", (groups: sg.Groups) => sg.groupedSum(f(2, 3), groups)],
      ] as const
    ).flatMap(([op, call]): [string, () => unknown, string][] => [
      [
        `${op}, offsets`,
        () => call({ offsets: i(2), count: 2 }),
        `${op}: expected offsets (G+1) of G = 2 groups, at least one, got [2].`,
      ],
      [
        `${op}, no groups`,
        () => call({ offsets: i(1), count: 0 }),
        `${op}: expected offsets (G+1) of G = 0 groups, at least one, got [1].`,
      ],
      [
        `${op}, offsets that are no integers`,
        () => call({ offsets: f(3), count: 2 }),
        `${op}: expected dtype int32, got float32 (shape [3]).`,
      ],
    ]),
    ["columnTopK, k", () => sg.columnTopK(f(2, 3), 0), "columnTopK: expected k above 0, got 0."],
    ["columnTopK, NaN for k", () => sg.columnTopK(f(2, 3), NaN), "columnTopK: expected k above 0, got NaN."],
    ["columnTopK, integers", () => sg.columnTopK(i(2, 3), 1), "columnTopK: expected dtype float32, got int32 (shape [2, 3])."],
    ["aboveThreshold", () => sg.aboveThreshold(f(2, 3), f(2)), "aboveThreshold: expected 3 thresholds, got 2."],
    [
      "aboveThreshold, integers",
      () => sg.aboveThreshold(f(2, 3), i(3)),
      "aboveThreshold: expected dtype float32, got int32 (shape [3]).",
    ],
    [
      "limitPerExpert, priorities",
      () => sg.limitPerExpert(i(4, 2), 3, 1, f(2, 4)),
      "limitPerExpert: expected priorities of shape [4, 2], one an assignment, got [2, 4].",
    ],
    [
      "limitPerExpert, expert",
      () => sg.limitPerExpert(sg.tensor([[0, 2], [3, -1]], [2, 2], "int32"), 3, 1),
      "limitPerExpert: expected indices from -1 to 2, got 3 at position 2.",
    ],
    [
      "limitPerExpert, integers for priorities",
      () => sg.limitPerExpert(i(4, 2), 3, 1, i(4, 2)),
      "limitPerExpert: expected dtype float32, got int32 (shape [4, 2]).",
    ],
    [
      "limitPerExpert, floats for experts",
      () => sg.limitPerExpert(f(4, 2), 3, 1),
      "limitPerExpert: expected dtype int32, got float32 (shape [4, 2]).",
    ],
    [
      "limitPerExpert, capacity",
      () => sg.limitPerExpert(i(4, 2), 3, 1.5),
      "limitPerExpert: expected a capacity of whole rows, got 1.5.",
    ],
    ["gatherIndices", () => sg.gatherIndices(f(3), i(2)), "gatherIndices: expected dtype int32, got float32 (shape [3])."],
    ["addIndices", () => sg.addIndices(i(5), i(2), 1, 2), "addIndices: expected 3 second indices, got 2."],
    [
      "addIndices, divisor",
      () => sg.addIndices(i(5), i(5), 1, 0),
      "addIndices: expected a whole scale and a divisor of at least 1, got 1 and 0.",
    ],
    [
      "addIndices, scale",
      () => sg.addIndices(i(5), i(5), 0.5),
      "addIndices: expected a whole scale and a divisor of at least 1, got 0.5 and 1.",
    ],
    ["maskIndices", () => sg.maskIndices(i(3), f(2)), "maskIndices: expected 3 flags, got 2."],
    ["maskIndices, integers", () => sg.maskIndices(i(3), i(3)), "maskIndices: expected dtype float32, got int32 (shape [3])."],
    ["maximum", () => sg.maximum(f(2, 3), f(2)), "maximum: expected shapes that broadcast together, got [2, 3] and [2]."],
    ["minimum", () => sg.minimum(f(2, 3), f(2)), "minimum: expected shapes that broadcast together, got [2, 3] and [2]."],
    [
      "dropoutRows, ids",
      () => sg.dropoutRows(f(2, 3), 0.5, NOISE.key, i(3)),
      "dropoutRows: expected x (N, width) and N row ids, got [2, 3] and [3].",
    ],
    [
      "dropoutRows, rank",
      () => sg.dropoutRows(f(2), 0.5, NOISE.key, i(2)),
      "dropoutRows: expected x (N, width) and N row ids, got [2] and [2].",
    ],
    [
      "recompute, a result among the parameters",
      () => {
        const p = f(2);
        p.requiresGrad = true;
        return sg.recompute((x) => x!, [f(2)], [sg.square(p)]);
      },
      "recompute: expected parameters that are leaves, got the result of square. Pass it among the inputs.",
    ],
    [
      "linearCrossEntropy",
      () => sg.linearCrossEntropy(f(2, 3), f(4, 2), undefined, i(2)),
      "linearCrossEntropy: expected x (N, D) and weight (V, D), got [2, 3] and [4, 2].",
    ],
    [
      "linearCrossEntropy, bias",
      () => sg.linearCrossEntropy(f(2, 3), f(4, 3), f(3), i(2)),
      "linearCrossEntropy: expected bias (4), got [3].",
    ],
    [
      "linearCrossEntropy, targets",
      () => sg.linearCrossEntropy(f(2, 3), f(4, 3), f(4), i(3)),
      "linearCrossEntropy: expected 2 targets (one a row), got 3.",
    ],
    [
      "linearCrossEntropy, a target",
      () => sg.linearCrossEntropy(f(2, 3), f(4, 3), f(4), sg.tensor([0, 4], [2], "int32")),
      "linearCrossEntropy: expected targets from -1 (ignored) to 3, got 4 at row 1.",
    ],
    [
      "sampledCrossEntropy, a sample",
      () => sg.sampledCrossEntropy(f(2, 3), f(4, 3), f(4), i(2), CANDIDATES),
      "sampledCrossEntropy: expected sampled classes from 0 to 3, got 7.",
    ],
    [
      "lstm, x",
      () => sg.lstm(f(2, 5), { inputWeight: f(5, 16), recurrentWeight: f(4, 16), bias: f(16) }),
      "lstm: expected x (time, batch, 5), got [2, 5].",
    ],
    [
      "lstm, recurrent width without a projection",
      () => lstm({ recurrentWeight: f(3, 16) }),
      "lstm: expected inputWeight of shape [5, 12], got [5, 16].",
    ],
    ["lstm, bias", () => lstm({ bias: f(4) }), "lstm: expected bias of shape [16], got [4]."],
    [
      "lstm, projection",
      () => lstm({ recurrentWeight: f(2, 16), projection: f(4, 3) }),
      "lstm: expected projection of shape [4, 2], got [4, 3].",
    ],
    [
      "lstm, state",
      () => sg.lstm(f(2, 3, 5), { inputWeight: f(5, 16), recurrentWeight: f(4, 16), bias: f(16) }, { h: f(2, 4), c: f(3, 4) }),
      "lstm: expected a state of (3, 4) and (3, 4), got [2, 4] and [3, 4].",
    ],
    [
      "lstm, resets",
      () => sg.lstm(f(2, 3, 5), { inputWeight: f(5, 16), recurrentWeight: f(4, 16), bias: f(16) }, undefined, i(2)),
      "lstm: expected int32 resets (2, 3), got int32 [2].",
    ],
    [
      "dropoutRows, offsets of other groups",
      () => sg.dropoutRows(f(2, 3), 0.5, NOISE.key, i(2), 0, { offsets: i(2), count: 2, first: 0, total: 4 }),
      "dropoutRows: expected int32 offsets (3) of 2 groups, got int32 [2].",
    ],
    [
      "dropoutRows, rate",
      () => sg.dropoutRows(f(2, 3), -0.1, NOISE.key, i(2)),
      "dropoutRows: expected a rate from 0 to below 1, got -0.1.",
    ],
    ["dropout", () => sg.dropout(f(2), 1, { seed: 0, stream: 0, step: 0 }), "dropout: expected a rate from 0 to below 1, got 1."],
    ["tensor, ragged", () => sg.tensor([[1, 2], [3]]), "tensor: expected nested arrays of equal lengths, got ragged ones."],
    ["tensor, length", () => sg.tensor([1, 2, 3], [2, 2]), "tensor: expected 4 elements for shape [2, 2], got 3."],
    [
      "tensor, integers",
      () => sg.tensor([1.5], [1], "int32"),
      "tensor: expected 32-bit integers (dtype int32), got 1.5 at element 0.",
    ],
    ["zeros", () => sg.zeros([2, -1]), "tensor: expected a shape of non-negative integers, got [2, -1]."],
  ];
  it.each(CASES)("%s", (_name, call, message) => {
    expect(call).toThrow(message);
    expect(call).toThrow(expect.objectContaining({ name: message.includes("expected a rate") ? "ConfigError" : "TensorError" }));
  });
  it("tensors of two backends", () => {
    expect(() => sg.add(f(2), sg.zeros([2], "float32", new ReferenceBackend()))).toThrow(
      "add: expected tensors of one backend, got reference and reference.",
    );
  });
});
