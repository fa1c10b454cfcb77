/** Products of few rows cut for OpenBLAS and for MKL: every element once, no piece too large, the same sums. */

import { describe, expect, it } from "vitest";
import { cutFor, multiply, type Cut } from "#sparsegate/backend/cpu/pieces.js";
import type { Sgemm } from "#sparsegate/backend/cpu/cblas.js";

/** A plain product over arrays of numbers; "addresses" are four times an index, as the cut reckons in bytes. */
function plain(a: Float64Array, b: Float64Array, c: Float64Array, calls: number[][]): Sgemm {
  return (transA, transB, m, n, k, alpha, atA, lda, atB, ldb, beta, atC, ldc) => {
    calls.push([m, n, k]);
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let p = 0; p < k; p++) sum += a[atA / 4 + (transA ? p * lda + i : i * lda + p)]! * b[atB / 4 + (transB ? j * ldb + p : p * ldb + j)]!;
        const at = atC / 4 + i * ldc + j;
        c[at] = alpha * sum + (beta === 0 ? 0 : beta * c[at]!);
      }
    }
  };
}

const integers = (length: number, step: number): Float64Array => Float64Array.from({ length }, (_, i) => ((i * step) % 15) - 7);

function both(transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number, beta: number, cut: Cut = "small"): { calls: number[][]; got: Float64Array; want: Float64Array } {
  const gap = 3;
  const [lda, ldb, ldc] = [(transA ? m : k) + gap, (transB ? k : n) + gap, n + gap];
  const a = integers(lda * (transA ? k : m), 7);
  const b = integers(ldb * (transB ? n : k), 11);
  const got = integers(ldc * m, 13);
  const want = got.slice();
  const calls: number[][] = [];
  multiply({ sgemm: plain(a, b, got, calls), cut }, transA, transB, m, n, k, alpha, 0, lda, 0, ldb, beta, 0, ldc);
  plain(a, b, want, [])(transA, transB, m, n, k, alpha, 0, lda, 0, ldb, beta, 0, ldc);
  return { calls, got, want };
}

describe("multiply, for OpenBLAS with AVX-512", () => {
  // Few rows of weights of several shapes, sides off every step, one row, and the largest that are still cut.
  const sizes: [boolean, boolean, number, number, number][] = [
    [false, false, 32, 1024, 512], [false, false, 37, 1031, 101], [false, false, 1, 2100, 999], [false, false, 160, 67, 131], [false, false, 5, 523, 1201],
    [false, true, 32, 512, 1024], [false, true, 37, 211, 1531], [false, true, 1, 999, 2100], [false, true, 160, 67, 131], [false, true, 3, 700, 1025],
    // Few multiply-adds, and more of C than the library leaves unpacked: one row of logits.
    [false, true, 1, 1536, 256], [false, true, 2, 1500, 256],
    [true, false, 512, 1024, 32], [true, false, 211, 517, 37], [true, false, 1100, 999, 1], [true, false, 131, 67, 160],
  ];
  it.each(sizes)("sums what the whole product does (Aᵀ %s, Bᵀ %s, %i × %i × %i), in pieces of at most 10⁶ multiply-adds", (transA, transB, m, n, k) => {
    for (const beta of [0, 2]) {
      const { calls, got, want } = both(transA, transB, m, n, k, 0.5, beta);
      expect(got.findIndex((value, i) => value !== want[i])).toBe(-1);
      expect(calls.length).toBeGreaterThan(1);
      for (const [rows, columns, depth] of calls as [number, number, number][]) {
        expect(rows * columns * depth).toBeLessThanOrEqual(1e6);
        // What OpenBLAS multiplies in place where its first factor, our second, is transposed.
        if (transB) expect(rows * columns).toBeLessThanOrEqual(1200);
      }
    }
  });

  it("leaves whole what is small already, what has many rows, and what has both factors transposed", () => {
    const sizes: [boolean, boolean, number, number, number][] = [[false, false, 100, 100, 100], [false, false, 161, 100, 100], [false, true, 161, 100, 100], [true, false, 100, 100, 161], [true, true, 30, 500, 100]];
    for (const size of sizes) expect(both(...size, 1, 0).calls).toHaveLength(1);
    // And everything where the library packs all the same.
    expect(both(false, false, 32, 1024, 512, 1, 0, "none").calls).toHaveLength(1);
  });

  it("clears what was there where beta is 0, also NaN", () => {
    const c = new Float64Array(2 * 1001).fill(NaN);
    multiply({ sgemm: plain(integers(2 * 700, 7), integers(700 * 1001, 11), c, []), cut: "small" }, false, false, 2, 1001, 700, 1, 0, 700, 0, 1001, 0, 0, 1001);
    expect(c.every(Number.isFinite)).toBe(true);
  });
});

describe("multiply, for MKL", () => {
  const sizes: [boolean, number, number, number][] = [
    [false, 32, 1024, 512], [false, 33, 1031, 301], [false, 1, 2100, 999], [false, 160, 517, 521], [false, 2, 700, 401],
    [true, 512, 1024, 32], [true, 511, 517, 37], [true, 1100, 999, 1], [true, 531, 501, 160],
  ];
  it.each(sizes)("sums what the whole product does (Aᵀ %s, %i × %i × %i), in pieces of few terms of the sum, or few rows of a gradient", (transA, m, n, k) => {
    for (const beta of [0, 2]) {
      const { calls, got, want } = both(transA, false, m, n, k, 0.5, beta, "shallow");
      expect(got.findIndex((value, i) => value !== want[i])).toBe(-1);
      expect(calls.length).toBeGreaterThan(1);
      for (const [rows, columns, depth] of calls as [number, number, number][]) {
        if (transA) expect([rows <= 32, columns, depth]).toEqual([true, n, k]);
        else expect([rows, columns <= 1024, depth <= 96]).toEqual([m, true, true]);
      }
    }
  });

  it("leaves whole what has many rows, weights that the cache holds, or transposed ones", () => {
    const sizes: [boolean, boolean, number, number, number][] = [[false, false, 161, 1024, 512], [false, false, 32, 512, 512], [false, true, 32, 1024, 512], [true, false, 1024, 512, 161], [true, false, 512, 512, 32], [true, true, 30, 1024, 512]];
    for (const size of sizes) expect(both(...size, 1, 0, "shallow").calls).toHaveLength(1);
  });
});

describe("cutFor", () => {
  it("knows OpenBLAS's kernels for AVX-512, and MKL", () => {
    expect(cutFor("OpenBLAS", "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH NO_AFFINITY SkylakeX MAX_THREADS=64")).toBe("small");
    expect(cutFor("OpenBLAS", "OpenBLAS 0.3.29 DYNAMIC_ARCH SapphireRapids MAX_THREADS=64")).toBe("small");
    expect(cutFor("OpenBLAS", "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH NO_AFFINITY Haswell MAX_THREADS=64")).toBe("none");
    expect(cutFor("MKL", "")).toBe("shallow");
    expect(cutFor("BLIS", "")).toBe("none");
  });
});
