/** The operations that gates are made of, against plain loops over the definitions, on every backend. */

import { describe, expect, it } from "vitest";
import { normalAt } from "#sparsegate/core/random.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Shape, Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { phi } from "../moe/scalar.js";
import { BACKENDS, useBackend } from "../use-backend.js";
import { denseGradient } from "./finite-differences.js";

const list = (t: Tensor): number[] => Array.from(t.dataSync());
const int = (data: ArrayLike<number>, shape: Shape = [data.length]): Tensor => sg.tensor(data, shape, "int32");
const rowsOf = (values: readonly number[], width: number): number[][] =>
  Array.from({ length: values.length / width }, (_, r) => values.slice(r * width, (r + 1) * width));
const total = (values: readonly number[]): number => values.reduce((s, v) => s + v, 0);
const KEY = { seed: 41, stream: 7, step: 5 };

/** One row of noisy top-k by its definition (Shazeer et al. 2017, eq. 4, 8 and 9): the best with their experts, and P. */
function noisyRow(
  clean: readonly number[],
  raw: readonly number[],
  id: number,
  k: number,
): { best: [value: number, expert: number][]; p: number[] } {
  const E = clean.length;
  const std = raw.map((v) => Math.log1p(Math.exp(v)));
  const h = clean.map((v, i) => v + normalAt(KEY, id * E + i) * std[i]!);
  const best = h.map((v, i): [number, number] => [v, i]).sort((a, b) => b[0] - a[0]);
  const p = clean.map((v, i) => {
    const others = h.filter((_, j) => j !== i).sort((a, b) => b - a);
    return k === E ? 1 : phi((v - others[k - 1]!) / std[i]!);
  });
  return { best: best.slice(0, Math.min(k + 1, E)), p };
}

for (const { name, make } of BACKENDS) {
  // float32: logits up to 10 in steps of 1e-6; a probability moves by the step over the deviation (0.3 at least).
  const tolerance = name === "reference" ? 1e-12 : 2e-5;
  describe(`operations of gates on the ${name} backend`, () => {
    useBackend(make);

    const CASES: [rows: number, E: number, k: number][] = [
      [1, 1, 1],
      [1, 5, 2],
      [4, 3, 3],
      [33, 7, 1],
      [70, 17, 4],
      [65, 64, 63],
    ];
    it.each(CASES)(
      "noisyTopK of %s rows, %s experts, k = %s: clean + normalAt·softplus(raw), the largest of these, and Σ P",
      (rows, E, k) => {
        const draw = new Draw(rows * E + k);
        const [clean, raw] = [draw.floats(rows * E), draw.floats(rows * E, -1, 2)];
        const got = sg.noisyTopK(sg.tensor(clean, [rows, E]), sg.tensor(raw, [rows, E]), k, { key: KEY, start: 1000 });
        const want = rowsOf([...clean], E).map((row, r) => noisyRow(row, rowsOf([...raw], E)[r]!, 1000 + r, k));
        expect(got.values.shape).toEqual([rows, Math.min(k + 1, E)]);
        expect(list(got.indices)).toEqual(want.flatMap(({ best }) => best.map(([, i]) => i)));
        const values = want.flatMap(({ best }) => best.map(([v]) => v));
        list(got.values).forEach((v, i) => expect(Math.abs(v - values[i]!)).toBeLessThan(tolerance));
        expect(got.load.shape).toEqual([E]);
        list(got.load).forEach((v, i) => expect(Math.abs(v - total(want.map(({ p }) => p[i]!)))).toBeLessThan(tolerance * rows));
      },
    );

    it("noisyTopK of rows in groups numbers its rows as told, sums each group's own, and leaves out rows of no group", () => {
      const [rows, E, k] = [9, 5, 2];
      const draw = new Draw(3);
      const [clean, raw] = [draw.floats(rows * E), draw.floats(rows * E, -1, 2)];
      const rowIds = [40, 3, 17, 0, 8, 3, 2 ** 20, 5, 1];
      const offsets = [0, 4, 4, 7];
      const got = sg.noisyTopK(sg.tensor(clean, [rows, E]), sg.tensor(raw, [rows, E]), k, {
        key: KEY,
        start: 2,
        rowIds: int(rowIds),
        groups: { offsets: int(offsets), count: 3 },
      });
      const want = rowsOf([...clean], E).map((row, r) => noisyRow(row, rowsOf([...raw], E)[r]!, 2 + rowIds[r]!, k));
      expect(list(got.indices)).toEqual(want.flatMap(({ best }, r) => best.map(([, i]) => (r < 7 ? i : -1))));
      const values = want.flatMap(({ best }, r) => best.map(([v]) => (r < 7 ? v : 0)));
      list(got.values).forEach((v, i) => expect(Math.abs(v - values[i]!)).toBeLessThan(tolerance));
      expect(got.load.shape).toEqual([3 * E]);
      for (let g = 0; g < 3; g++) {
        const mine = want.slice(offsets[g], offsets[g + 1]);
        for (let i = 0; i < E; i++)
          expect(Math.abs(list(got.load)[g * E + i]! - total(mine.map(({ p }) => p[i]!)))).toBeLessThan(4 * tolerance);
      }
    });

    it("the noise of a row depends on its number alone: not on its place, the rows beside it, their groups, or where counting starts", () => {
      const [E, k, width] = [17, 3, 4];
      const ids = Array.from({ length: 70 }, (_, i) => (i * 37) % 70);
      const [clean, raw] = [new Draw(8).floats(E), new Draw(9).floats(E)];
      // All rows are alike, so that they differ by their noise.
      const alike = (row: Float64Array, n: number): Tensor =>
        sg.tensor(
          Float64Array.from({ length: n * E }, (_, i) => row[i % E]!),
          [n, E],
        );
      const values = (rows: readonly number[], start: number, groups?: sg.Groups): number[][] =>
        rowsOf(
          list(
            sg.noisyTopK(alike(clean, rows.length), alike(raw, rows.length), k, {
              key: KEY,
              start,
              rowIds: int(rows),
              ...(groups ? { groups } : {}),
            }).values,
          ),
          width,
        );
      const together = values(ids, 0);
      expect(new Set(together.map((row) => row.join())).size).toBe(70);
      const inGroups = values(ids, 0, { offsets: int([0, 1, 30, 30, 70]), count: 4 });
      const later = values(
        ids.map((id) => id + 5),
        100,
      );
      const earlier = values(
        ids.map((id) => id + 105),
        0,
      );
      // Without numbers a row's number is its place.
      const inOrder = rowsOf(list(sg.noisyTopK(alike(clean, 70), alike(raw, 70), k, { key: KEY, start: 0 }).values), width);
      for (const [place, id] of ids.entries()) {
        expect(values([id], 0)).toEqual([together[place]]);
        expect(inGroups[place]).toEqual(together[place]);
        expect(later[place]).toEqual(earlier[place]);
        expect(inOrder[id]).toEqual(together[place]);
      }
    });

    it("ΣP of a group's rows is k a row on average, to 1% over some thousand rows", () => {
      const [E, k] = [16, 4];
      const offsets = [0, 6000, 6000, 9000];
      const x = (seed: number, scale: number): Tensor => sg.randomNormal([9000, E], { seed, std: scale });
      const { load } = sg.noisyTopK(x(1, 0.7), x(2, 0.7), k, { key: KEY, start: 0, groups: { offsets: int(offsets), count: 3 } });
      const sums = rowsOf(list(load), E).map(total);
      expect(sums[1]).toBe(0);
      for (const g of [0, 2]) expect(Math.abs(sums[g]! / (offsets[g + 1]! - offsets[g]!) - k)).toBeLessThan(0.01 * k);
    });

    /** For each column of rows from..to the m best rows, NaN last, equal ones by lower row: (row, column) by row. */
    const chosen = (x: readonly number[], E: number, from: number, to: number, k: number): [number, number][] => {
      const n = to - from;
      const m = Math.min(n, Math.max(1, Math.floor((k * n) / E)));
      const order = (v: number): number => (Number.isNaN(v) ? -Infinity : v);
      const pairs: [number, number][] = [];
      for (let e = 0; e < E; e++) {
        const column = Array.from({ length: n }, (_, r) => from + r);
        column.sort((a, b) => order(x[b * E + e]!) - order(x[a * E + e]!) || a - b);
        for (const r of column.slice(0, m)) pairs.push([r, e]);
      }
      return pairs.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    };
    const pairsOf = ({ rows, experts }: sg.ElementList): [number, number][] =>
      list(rows).map((r, i): [number, number] => [r, list(experts)[i]!]);
    for (const [rows, E, k] of [
      [6, 3, 1],
      [7, 4, 1.5],
      [40, 5, 0.3],
      [3, 9, 2],
      [20, 4, 4],
      [1, 1, 1],
    ] as const) {
      it(`columnTopK gives each of ${E} experts its ${k}·${rows}/${E} best rows, at least one, in the order of rows`, () => {
        const draw = new Draw(rows + E);
        for (const x of [
          draw.floats(rows * E),
          Float64Array.from(draw.ints(rows * E, 0, 3)),
          new Float64Array(rows * E).fill(0.5),
          draw.floats(rows * E).map((v, i) => (i % 4 === 1 ? NaN : v)),
        ]) {
          const got = sg.columnTopK(sg.tensor(x, [rows, E]), k);
          const want = chosen([...x], E, 0, rows, k);
          expect(pairsOf(got)).toEqual(want);
          expect(list(got.rowOffsets)).toEqual(
            Array.from({ length: rows + 1 }, (_, r) => want.filter(([row]) => row < r).length),
          );
        }
      });
    }
    it("columnTopK of groups gives each group's experts their rows of it; an unused tail is −1", () => {
      const [rows, E, k] = [12, 3, 1.5];
      const x = Float64Array.from(new Draw(5).ints(rows * E, 0, 4));
      const offsets = [0, 5, 5, 6, 10];
      const got = sg.columnTopK(sg.tensor(x, [rows, E]), k, { offsets: int(offsets), count: 4 });
      const want = [0, 1, 2, 3].flatMap((g) =>
        offsets[g] === offsets[g + 1] ? [] : chosen([...x], E, offsets[g]!, offsets[g + 1]!, k),
      );
      const pairs = pairsOf(got);
      expect(pairs.slice(0, want.length)).toEqual(want);
      expect(pairs.slice(want.length).every(([r, e]) => r === -1 && e === -1)).toBe(true);
      expect(list(got.rowOffsets)).toEqual(Array.from({ length: rows + 1 }, (_, r) => want.filter(([row]) => row < r).length));
    });

    it("aboveThreshold lists what is greater, as long as there is, and nothing that is equal or no number", () => {
      const x = sg.tensor([1, 5, NaN, 2, 2, 9, 2, 6, 8], [3, 3]);
      const got = sg.aboveThreshold(x, sg.tensor([1, 5, 8]));
      // Row 0: none above (1, 5, 8). Row 1: 2 > 1, 9 > 8. Row 2: 2 > 1, 6 > 5.
      expect([list(got.rows), list(got.experts), list(got.rowOffsets)]).toEqual([
        [1, 1, 2, 2],
        [0, 2, 0, 1],
        [0, 0, 2, 4],
      ]);
      const none = sg.aboveThreshold(x, sg.full([3], Infinity));
      expect([none.rows.shape, none.experts.shape, list(none.rowOffsets)]).toEqual([[0], [0], [0, 0, 0, 0]]);
      // Row 0 in the first group, row 1 in the third, row 2 in none.
      const groups = { offsets: int([0, 1, 1, 2]), count: 3 };
      const grouped = sg.aboveThreshold(x, sg.tensor([0, 5, 0, 0, 0, 0, 0, 2, 8], [3, 3]), groups);
      expect([list(grouped.rows), list(grouped.experts), list(grouped.rowOffsets)]).toEqual([
        [0, 1, 1],
        [0, 0, 2],
        [0, 1, 3, 3],
      ]);
    });

    it("lists of no rows are empty", () => {
      const [x, groups] = [sg.zeros([0, 3]), { offsets: int([0, 0, 0]), count: 2 }];
      for (const got of [sg.columnTopK(x, 1), sg.aboveThreshold(x, sg.zeros([3])), sg.aboveThreshold(x, sg.zeros([6]), groups)])
        expect([list(got.rows), list(got.experts), list(got.rowOffsets)]).toEqual([[], [], [0]]);
      const padded = sg.columnTopK(x, 1, groups);
      expect([...list(padded.rows), ...list(padded.experts)].every((v) => v === -1)).toBe(true);
      expect(list(padded.rowOffsets)).toEqual([0]);
    });

    it("limitPerExpert leaves what it was given as it was, and a limit beyond every load changes nothing", () => {
      const given = [0, 1, 1, 0, 0, 2, -1, 0];
      const experts = int(given, [4, 2]);
      expect(list(sg.limitPerExpert(experts, 3, 1))).toEqual([0, -1, 1, -1, -1, 2, -1, -1]);
      expect(list(sg.limitPerExpert(experts, 3, 1, sg.tensor([1, 1, 2, 2, 3, 3, 9, 4], [4, 2])))).toEqual([
        -1, -1, 1, -1, -1, 2, -1, 0,
      ]);
      expect(list(sg.limitPerExpert(experts, 3, 99))).toEqual(given);
      expect(list(sg.limitPerExpert(experts, 3, 0))).toEqual(new Array(8).fill(-1));
      expect(list(experts)).toEqual(given);
    });

    it("groupedSum adds up the rows of each group", () => {
      const x = sg.tensor([1, 10, 2, 20, 4, 40, 8, 80, 16, 160], [5, 2]);
      expect(list(sg.groupedSum(x, { offsets: int([0, 2, 2, 4]), count: 3 }))).toEqual([3, 30, 0, 0, 12, 120]);
    });

    it("dropoutRows of rows in any order is, row by row, dropout of the rows in theirs", () => {
      const [rows, width] = [50, 7];
      const x = sg.full([rows, width], 1);
      const key = { ...KEY, stream: 8 };
      const whole = rowsOf(list(sg.dropout(x, 0.4, key, 20 * width)), width);
      const ids = Array.from({ length: rows }, (_, i) => (i % 9 === 8 ? -1 : (i * 13) % rows));
      const got = rowsOf(list(sg.dropoutRows(x, 0.4, key, int(ids), 20)), width);
      expect(got).toEqual(ids.map((id) => (id < 0 ? new Array(width).fill(0) : whole[id])));
    });

    it("offsets that were freed before the way back are an error, not other numbers", () => {
      const x = sg.keep(sg.full([4, 3], 1));
      x.requiresGrad = true;
      const groups = (): { offsets: Tensor; count: number; first: number; total: number } => ({ offsets: int([0, 1, 4]), count: 2, first: 0, total: 2 });
      const routing = (): sg.Routing => sg.routeByExpert({ experts: int([0, 1, 1, 0]), rows: int([0, 1, 2, 3]), rowOffsets: int([0, 1, 2, 3, 4]) }, 2);
      const calls: [offsets: Tensor, call: (offsets: Tensor) => Tensor][] = [
        [groups().offsets, (offsets) => sg.groupedSum(x, { ...groups(), offsets })],
        [groups().offsets, (offsets) => sg.noisyTopK(x, x, 1, { key: KEY, start: 0, groups: { ...groups(), offsets } }).load],
        [groups().offsets, (offsets) => sg.dropoutRows(x, 0.5, KEY, int([0, 1, 2, 3]), 0, { ...groups(), offsets })],
        [routing().rowOffsets!, (rowOffsets) => sg.combine(x, sg.full([4], 1), { ...routing(), rowOffsets })],
      ];
      for (const [offsets, call] of calls) {
        const loss = sg.sum(call(offsets));
        offsets.dispose();
        // Takes the freed memory over.
        for (let i = 0; i < 4; i++) int(new Array<number>(offsets.size).fill(i));
        expect(() => sg.backward(loss)).toThrow(/its memory has been freed/);
      }
    });

    it("maximum and minimum: equal ones share the gradient, an infinite one takes or leaves it whole, numbers on either side", () => {
      // Two numbers whose difference float32 cannot hold.
      const LARGE = 2 ** 127;
      const [a, b] = [
        [1, 2, 3, -Infinity, Infinity, LARGE, -0],
        [2, 2, -5, 0, 7, -1.5 * LARGE, 0],
      ].map((data) => {
        const p = sg.keep(sg.tensor(data));
        p.requiresGrad = true;
        return p;
      }) as [Tensor, Tensor];
      const dy = [10, 20, 30, 40, 50, 60, 70];
      for (const [op, values, ofA] of [
        ["maximum", [2, 2, 3, 0, Infinity, LARGE, 0], [0, 10, 30, 0, 50, 60, 35]],
        ["minimum", [1, 2, -5, -Infinity, 7, -1.5 * LARGE, 0], [10, 10, 0, 40, 0, 0, 35]],
      ] as const) {
        for (const p of [a, b]) p.zeroGrad();
        const y = sg[op](a, b);
        expect(list(y).map((v) => v + 0)).toEqual(values);
        sg.backward(y, { seed: sg.tensor(dy) });
        expect([...denseGradient(a)]).toEqual(ofA);
        expect([...denseGradient(b)]).toEqual(ofA.map((g, i) => dy[i]! - g));
      }
      expect(list(sg.maximum(0.5, sg.tensor([0, 1, NaN])))).toEqual([0.5, 1, NaN]);
      expect(list(sg.minimum(sg.tensor([0, 1, NaN]), 0.5))).toEqual([0, 0.5, NaN]);
    });
  });
}
