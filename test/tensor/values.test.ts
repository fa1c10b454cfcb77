/** What operations compute, against plain loops over indices written here. */

import { describe, expect, it } from "vitest";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Shape, Tensor } from "#sparsegate/tensor/index.js";
import { useBackend } from "../use-backend.js";

const list = (t: Tensor): number[] => Array.from(t.dataSync());
const close = (t: Tensor, shape: Shape, want: readonly number[]): void => {
  expect(t.shape).toEqual(shape);
  expect(t.size).toBe(want.length);
  list(t).forEach((v, i) => expect(v, `element ${i}`).toBeCloseTo(want[i]!, 12));
};
/** Every index of a shape, last axis fastest. */
function* indices(shape: Shape): Generator<number[]> {
  if (shape.length === 0) return yield [];
  for (let i = 0; i < shape[0]!; i++) for (const rest of indices(shape.slice(1))) yield [i, ...rest];
}
/** The element of a flat array at an index that may have more axes than the shape, or axes of 1 where the index goes on. */
function at(data: readonly number[], shape: Shape, index: readonly number[]): number {
  const own = index.slice(index.length - shape.length);
  return data[shape.reduce((offset, n, axis) => offset * n + (n === 1 ? 0 : own[axis]!), 0)]!;
}
const uniform = (shape: Shape, seed: number, low = -2, high = 2): Tensor => sg.randomUniform(shape, low, high, { seed });
const int = (data: readonly number[], shape: Shape): Tensor => sg.tensor(data, shape, "int32");

describe("operations equal loops over indices", () => {
  useBackend(() => new ReferenceBackend());

  const sigma = (x: number): number => 1 / (1 + Math.exp(-x));
  const UNARY: Record<string, (x: number) => number> = {
    neg: (x) => -x,
    exp: Math.exp,
    log: Math.log,
    sqrt: Math.sqrt,
    square: (x) => x ** 2,
    abs: Math.abs,
    reciprocal: (x) => x ** -1,
    tanh: Math.tanh,
    sigmoid: sigma,
    relu: (x) => (x > 0 ? x : 0),
    silu: (x) => x * sigma(x),
    softplus: (x) => Math.log(1 + Math.exp(x)),
    gelu: (x) => (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),
  };
  it.each(Object.keys(UNARY))("%s", (op) => {
    const x = uniform([3, 4], 1, op === "log" || op === "sqrt" ? 0.1 : -2, 2);
    close((sg as unknown as Record<string, (x: Tensor) => Tensor>)[op]!(x), [3, 4], list(x).map(UNARY[op]!));
  });
  it("normalCdf at points of the table: Φ(0), Φ(1), Φ(−2), Φ(1.96)", () => {
    const got = list(sg.normalCdf(sg.tensor([0, 1, -2, 1.96])));
    [0.5, 0.8413447460685429, 0.0227501319481792, 0.9750021048517795].forEach((want, i) => expect(got[i]).toBeCloseTo(want, 13));
  });

  const BINARY: Record<string, (a: number, b: number) => number> = {
    add: (a, b) => a + b,
    sub: (a, b) => a - b,
    mul: (a, b) => a * b,
    div: (a, b) => a / b,
  };
  const PAIRS: [Shape, Shape, Shape][] = [
    [
      [2, 3],
      [2, 3],
      [2, 3],
    ],
    [[2, 3], [3], [2, 3]],
    [[3], [2, 3], [2, 3]],
    [
      [2, 1],
      [1, 3],
      [2, 3],
    ],
    [[], [2, 2], [2, 2]],
    [
      [2, 1, 4],
      [3, 1],
      [2, 3, 4],
    ],
    [
      [2, 1, 3, 1],
      [1, 4, 1, 2],
      [2, 4, 3, 2],
    ],
    [[1], [1, 1], [1, 1]],
  ];
  for (const [op, f] of Object.entries(BINARY)) {
    it.each(PAIRS)(`${op} of [%s] and [%s] broadcasts to [%s]`, (a, b, shape) => {
      const [x, y] = [uniform(a, 2), uniform(b, 3, 0.5, 2)];
      const want = [...indices(shape)].map((index) => f(at(list(x), a, index), at(list(y), b, index)));
      close((sg as unknown as Record<string, (x: Tensor, y: Tensor) => Tensor>)[op]!(x, y), shape, want);
    });
  }
  it("numbers on either side of arithmetic", () => {
    close(sg.sub(1, sg.tensor([2, 5])), [2], [-1, -4]);
    close(sg.div(sg.tensor([2, 5]), 4), [2], [0.5, 1.25]);
    close(sg.affine(sg.tensor([2, 5]), 3, -1), [2], [5, 14]);
  });
  it("expand, permute, transpose, slice, concat, reshape", () => {
    const x = uniform([2, 3, 4], 4);
    const d = list(x);
    close(
      sg.permute(x, [2, 0, 1]),
      [4, 2, 3],
      [...indices([4, 2, 3])].map(([c, a, b]) => at(d, [2, 3, 4], [a!, b!, c!])),
    );
    close(
      sg.transpose(x),
      [2, 4, 3],
      [...indices([2, 4, 3])].map(([a, c, b]) => at(d, [2, 3, 4], [a!, b!, c!])),
    );
    close(
      sg.slice(x, 1, 1, 3),
      [2, 2, 4],
      [...indices([2, 2, 4])].map(([a, b, c]) => at(d, [2, 3, 4], [a!, b! + 1, c!])),
    );
    const y = uniform([2, 1, 4], 5);
    close(
      sg.concat([x, y], 1),
      [2, 4, 4],
      [...indices([2, 4, 4])].map(([a, b, c]) => (b! < 3 ? at(d, [2, 3, 4], [a!, b!, c!]) : at(list(y), [2, 1, 4], [a!, 0, c!]))),
    );
    close(
      sg.expand(y, [2, 2, 3, 4]),
      [2, 2, 3, 4],
      [...indices([2, 2, 3, 4])].map((index) => at(list(y), [2, 1, 4], index)),
    );
    close(sg.reshape(x, [-1, 8]), [3, 8], d);
  });
  it("moves integers as they are, up to the largest", () => {
    const x = int([2 ** 31 - 1, -(2 ** 31), 3, 4], [2, 2]);
    expect(list(sg.transpose(x))).toEqual([2 ** 31 - 1, 3, -(2 ** 31), 4]);
    expect(list(sg.concat([sg.slice(x, 0, 1, 2), sg.slice(x, 0, 0, 1)], 0))).toEqual([3, 4, 2 ** 31 - 1, -(2 ** 31)]);
    expect(sg.transpose(x).dtype).toBe("int32");
  });
  it("matmul: matrices, a vector, leading axes, batched", () => {
    const product = (a: Tensor, b: Tensor, lead: Shape): number[] => {
      const [m, k, n] = [a.shape.at(-2) ?? 1, a.shape.at(-1)!, b.shape.at(-1)!];
      return [...indices([...lead, m, n])].map((index) => {
        const [i, j] = index.slice(-2) as [number, number];
        return Array.from(
          { length: k },
          (_, p) => at(list(a), a.shape, [...index.slice(0, -2), i, p]) * at(list(b), b.shape, [...index.slice(0, -2), p, j]),
        ).reduce((s, v) => s + v, 0);
      });
    };
    const [a, b, c] = [uniform([2, 3, 4], 6), uniform([4, 5], 7), uniform([2, 4, 5], 8)];
    close(sg.matmul(a, b), [2, 3, 5], product(a, b, [2]));
    close(sg.matmul(a, c), [2, 3, 5], product(a, c, [2]));
    const v = uniform([4], 9);
    close(sg.matmul(v, b), [5], product(sg.reshape(v, [1, 4]), b, []));
  });
  it("sum and mean over axes", () => {
    const x = uniform([2, 3, 4], 10);
    const over = (keep: (index: number[]) => string): number[] => {
      const sums = new Map<string, number>();
      for (const index of indices([2, 3, 4])) sums.set(keep(index), (sums.get(keep(index)) ?? 0) + at(list(x), [2, 3, 4], index));
      return [...sums.values()];
    };
    close(
      sg.sum(x),
      [],
      over(() => ""),
    );
    close(
      sg.sum(x, 1),
      [2, 4],
      over(([a, , c]) => `${a} ${c}`),
    );
    close(
      sg.sum(x, [0, -1]),
      [3],
      over(([, b]) => `${b}`),
    );
    close(
      sg.mean(x, [0, 2]),
      [3],
      over(([, b]) => `${b}`).map((v) => v / 8),
    );
    close(
      sg.mean(x, -1),
      [2, 3],
      over(([a, b]) => `${a} ${b}`).map((v) => v / 4),
    );
    close(sg.sum(x, []), [2, 3, 4], list(x));
  });
  it("softmax, logSoftmax, logSumExp and layerNorm of rows", () => {
    const x = uniform([3, 5], 11);
    const rows = [0, 1, 2].map((r) => list(x).slice(5 * r, 5 * r + 5));
    const total = (row: number[]): number => row.reduce((s, v) => s + Math.exp(v), 0);
    close(
      sg.softmax(x),
      [3, 5],
      rows.flatMap((row) => row.map((v) => Math.exp(v) / total(row))),
    );
    close(
      sg.logSoftmax(x),
      [3, 5],
      rows.flatMap((row) => row.map((v) => v - Math.log(total(row)))),
    );
    close(
      sg.logSumExp(x),
      [3],
      rows.map((row) => Math.log(total(row))),
    );
    const [gamma, beta] = [uniform([5], 12), uniform([5], 13)];
    close(
      sg.layerNorm(x, gamma, beta, 0.1),
      [3, 5],
      rows.flatMap((row) => {
        const mean = row.reduce((s, v) => s + v, 0) / 5;
        const variance = row.reduce((s, v) => s + (v - mean) ** 2, 0) / 5;
        return row.map((v, j) => ((v - mean) / Math.sqrt(variance + 0.1)) * list(gamma)[j]! + list(beta)[j]!);
      }),
    );
  });
  it("linearCrossEntropy: the mean of −log softmax at the targets that count", () => {
    const [x, w, b] = [uniform([3, 2], 14), uniform([4, 2], 15), uniform([4], 16)];
    const logits = [0, 1, 2].map((r) =>
      [0, 1, 2, 3].map((c) => list(x)[2 * r]! * list(w)[2 * c]! + list(x)[2 * r + 1]! * list(w)[2 * c + 1]! + list(b)[c]!),
    );
    const nll = (r: number, t: number): number => Math.log(logits[r]!.reduce((s, v) => s + Math.exp(v), 0)) - logits[r]![t]!;
    close(sg.linearCrossEntropy(x, w, b, int([3, -1, 0], [3])), [], [(nll(0, 3) + nll(2, 0)) / 2]);
    close(sg.linearCrossEntropy(x, w, b, int([-1, -1, -1], [3])), [], [0]);
  });
  it("a row's random numbers do not depend on the size of the tensor, and differ between calls without a seed", () => {
    expect(list(sg.randomNormal([2, 3], { seed: 5 }))).toEqual(list(sg.randomNormal([4, 3], { seed: 5 })).slice(0, 6));
    expect(list(sg.randomNormal([4]))).not.toEqual(list(sg.randomNormal([4])));
  });
});
