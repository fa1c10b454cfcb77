/** Products of few rows in pieces, for OpenBLAS and for MKL: every element once, no piece too large, the same sums, nothing written beside. */

import { describe, expect, it } from "vitest";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { cutFor, multiply, WORKSPACE_FLOATS, type Cut } from "#sparsegate/backend/cpu/pieces.js";
import { instantiate, loadKernels } from "#sparsegate/backend/cpu/wasm.js";

interface Call {
  transA: boolean;
  transB: boolean;
  m: number;
  n: number;
  k: number;
  ldb: number;
}

/** A memory of numbers with the plain product and the plain transpose; "addresses" are four times an index, as the pieces reckon in bytes. */
function machine(memory: Float64Array): { calls: Call[]; sgemm: Parameters<typeof multiply>[0]["sgemm"]; transpose: Parameters<typeof multiply>[1]["transpose"] } {
  const calls: Call[] = [];
  return {
    calls,
    sgemm: (transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) => {
      calls.push({ transA, transB, m, n, k, ldb });
      for (let i = 0; i < m; i++) {
        for (let j = 0; j < n; j++) {
          let sum = 0;
          for (let p = 0; p < k; p++) sum += memory[a / 4 + (transA ? p * lda + i : i * lda + p)]! * memory[b / 4 + (transB ? j * ldb + p : p * ldb + j)]!;
          const at = c / 4 + i * ldc + j;
          memory[at] = alpha * sum + (beta === 0 ? 0 : beta * memory[at]!);
        }
      }
    },
    transpose: (from, fromStride, rows, columns, to, toStride, beta) => {
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          const at = to / 4 + j * toStride + i;
          memory[at] = memory[from / 4 + i * fromStride + j]! + (beta === 0 ? 0 : beta * memory[at]!);
        }
      }
    },
  };
}

type Size = [transA: boolean, transB: boolean, m: number, n: number, k: number];
const GUARD = 64;

/** Products of whole numbers, which no order of the sum rounds: in pieces, and whole. A workspace of NaN shows whether anything of it is used unwritten. */
function both([transA, transB, m, n, k]: Size, cut: Cut, alpha = 1, beta = 0, old?: number): { calls: Call[]; got: Float64Array; want: Float64Array } {
  const gap = 3;
  const [lda, ldb, ldc] = [(transA ? m : k) + gap, (transB ? k : n) + gap, n + gap];
  const [b, c] = [lda * (transA ? k : m), lda * (transA ? k : m) + ldb * (transB ? n : k)];
  const workspace = c + ldc * m;
  const got = Float64Array.from({ length: workspace + WORKSPACE_FLOATS + GUARD }, (_, i) => (i < c ? ((i * 7) % 15) - 7 : i < workspace ? (old ?? ((i * 11) % 15) - 7) : i < workspace + WORKSPACE_FLOATS ? NaN : 0.25));
  const want = got.slice();
  const { calls, sgemm, transpose } = machine(got);
  multiply({ sgemm, cut }, { address: 4 * workspace, transpose }, transA, transB, m, n, k, alpha, 0, lda, 4 * b, ldb, beta, 4 * c, ldc);
  machine(want).sgemm(transA, transB, m, n, k, alpha, 0, lda, 4 * b, ldb, beta, 4 * c, ldc);
  got.fill(NaN, workspace, workspace + WORKSPACE_FLOATS);
  return { calls, got, want };
}

/** Index of the first element that differs, -1 if none does. */
const firstDifference = ({ got, want }: { got: Float64Array; want: Float64Array }): number => got.findIndex((value, i) => !Object.is(value + 0, want[i]! + 0));

// Few rows of weights of several shapes: sides off every step, rows short and long beside a page, one row, whole vectors and a part of one, the most that are cut.
const SIZES: Size[] = [
  [false, false, 32, 1024, 67], [false, false, 37, 1031, 101], [false, false, 1, 2100, 999], [false, false, 160, 67, 131], [false, false, 5, 203, 1201],
  [false, true, 32, 67, 1024], [false, true, 37, 31, 1531], [false, true, 1, 999, 2100], [false, true, 160, 131, 67], [false, true, 45, 101, 300], [false, true, 16, 67, 1100],
  // Few multiply-adds, and more of C than the library leaves unpacked: one row of logits.
  [false, true, 1, 1536, 256], [false, true, 2, 1500, 256],
  [true, false, 67, 1024, 32], [true, false, 61, 1031, 37], [true, false, 1100, 999, 1], [true, false, 67, 131, 160], [true, false, 2003, 60, 10],
]; // prettier-ignore

describe("multiply", () => {
  it.each(SIZES)("gives what the whole product does (Aᵀ %s, Bᵀ %s, %i × %i × %i), in pieces that OpenBLAS does not pack", (...size) => {
    for (const [alpha, beta] of [[1, 0], [0.5, 2]] as const) {
      const done = both(size, "few", alpha, beta);
      expect(firstDifference(done)).toBe(-1);
      expect(done.calls.length).toBeGreaterThan(1);
      for (const { transB, m, n, k } of done.calls) {
        expect(m * n * k).toBeLessThanOrEqual(1e6);
        if (transB) expect(m * n).toBeLessThanOrEqual(1024);
      }
    }
  });

  it.each(SIZES.filter(([transA, , m, n, k]) => (transA ? k : m) <= 48 && (transA ? m : k) * n > 2 ** 16))("gives the same for MKL up to 48 rows (Aᵀ %s, Bᵀ %s, %i × %i × %i)", (...size) => {
    const done = both(size, "fewer", 1, 2);
    expect(firstDifference(done)).toBe(-1);
    expect(done.calls).toEqual(both(size, "few", 1, 2).calls);
  });

  const more: Size[] = [[false, false, 49, 1031, 301], [false, false, 160, 517, 521], [true, false, 531, 501, 49]];
  it.each(more)("gives the same for MKL with more rows (Aᵀ %s, Bᵀ %s, %i × %i × %i)", (...size) => {
    const done = both(size, "fewer", 0.5, 2);
    expect(firstDifference(done)).toBe(-1);
    expect(done.calls.length).toBeGreaterThan(1);
  });

  it("goes through at most 32 rows of the weights at once, in equal parts, those that would share a page of 1,024 elements in different pieces", () => {
    // Rows of 509 + 3 elements: every second one. Of B: 61 terms of the sum; of C: as many rows of the gradient.
    const sizes = (size: Size, of: (call: Call) => number[]): number[][] => both(size, "few").calls.map(of);
    expect(sizes([false, false, 40, 509, 61], ({ m, k, ldb }) => [m, k, ldb])).toEqual([[40, 31, 1024], [40, 30, 1024]]);
    expect(sizes([true, false, 61, 509, 40], ({ m, k }) => [m, k])).toEqual([[31, 40], [30, 40]]);
    expect(sizes([false, true, 32, 70, 509], ({ m, ldb, n }) => [m, ldb, n])).toEqual([18, 18, 17, 17].map((m) => [m, 32, 32]));
    // Longer rows have pages to themselves.
    expect(sizes([false, false, 32, 1021, 61], ({ k, ldb }) => [k, ldb])).toEqual([[21, 1024], [21, 1024], [19, 1024]]);
  });

  it("fills a vector of 16 rows where few are missing, and takes few rows beside whole vectors as they lie", () => {
    const calls = (m: number): unknown[] => both([false, true, m, 30, 1100], "few").calls.map(({ transB, m: rows, n }) => (transB ? `${rows} as they lie` : n));
    // Two halves of the sum.
    expect(calls(47)).toEqual([32, 16, 32, 16]);
    expect(calls(45)).toEqual([32, 16, 32, 16]);
    expect(calls(44)).toEqual([32, "12 as they lie", 32, "12 as they lie"]);
    expect(calls(33)).toEqual([32, "1 as they lie", 32, "1 as they lie"]);
    expect(calls(32)).toEqual([32, 32]);
  });

  it("leaves whole what is small, what has many rows, and what has both factors transposed", () => {
    const many: Size[] = [[false, false, 161, 100, 100], [false, true, 161, 100, 100], [true, false, 100, 100, 161], [true, true, 30, 500, 100]];
    for (const size of many) for (const cut of ["few", "fewer"] as const) expect(both(size, cut).calls).toHaveLength(1);
    // What OpenBLAS does not pack, but for gradients, and transposed weights with more than 1,024 results, which it does.
    for (const size of [[false, false, 100, 100, 100], [false, true, 8, 128, 900], [true, false, 64, 64, 30]] as Size[]) expect(both(size, "few").calls).toHaveLength(1);
    for (const size of [[false, true, 9, 128, 300], [true, false, 64, 64, 40]] as Size[]) expect(both(size, "few").calls.length).toBeGreaterThan(1);
    // Weights that MKL packs fast, that its cache holds with more than 48 rows, and transposed ones with as many.
    for (const size of [[false, false, 48, 256, 256], [false, false, 49, 512, 512], [false, true, 49, 67, 4096]] as Size[]) expect(both(size, "fewer").calls).toHaveLength(1);
    // And everything for a library that gains nothing.
    expect(both([false, false, 32, 512, 67], "none").calls).toHaveLength(1);
  });

  it("clears what was there where beta is 0, also NaN", () => {
    for (const size of [[false, false, 2, 1001, 700], [false, true, 29, 61, 700], [true, false, 1001, 700, 2]] as Size[]) {
      const { got, want } = both(size, "few", 1, 0, NaN);
      // Between rows NaN stays.
      expect(firstDifference({ got, want })).toBe(-1);
    }
  });
});

describe("the kernel that lays blocks across", () => {
  it("transposes blocks of any size, adds beta times what was there, reads nothing of it with beta 0, and writes nothing beside", () => {
    const memory = new WebAssembly.Memory({ initial: 16, maximum: 65536, shared: true });
    const kernels = instantiate(loadKernels("simd", true).module, memory);
    const floats = new Float32Array(memory.buffer);
    const [src, dst, fromStride, toStride] = [1 << 16, 1 << 17, 37, 41];
    for (const rows of [0, 1, 3, 4, 7, 32, 33]) {
      for (const columns of [0, 1, 5, 8, 15, 32, 36]) {
        for (const beta of [0, 1, 2]) {
          for (let i = 0; i < 2000; i++) {
            floats[src + i] = i % 97;
            floats[dst + i] = beta === 0 ? NaN : i % 89;
          }
          kernels["transposeBlock"]!(4 * src, fromStride, rows, columns, 4 * dst, toStride, beta);
          const want = Array.from({ length: 2000 }, (_, at) => {
            const [j, i] = [Math.floor(at / toStride), at % toStride];
            const before = beta === 0 ? NaN : at % 89;
            return i < rows && j < columns ? ((i * fromStride + j) % 97) + (beta === 0 ? 0 : beta * before) : before;
          });
          expect([...floats.subarray(dst, dst + 2000)]).toEqual(want);
        }
      }
    }
  });
});

describe("products of few rows on the backend", () => {
  it("are those of one thread's whole products in WebAssembly, to rounding", () => {
    const [fast, plain] = [new CpuBackend({ threads: 2 }), new CpuBackend({ threads: 1, blas: "none" })];
    for (const [transA, transB, m, n, k] of SIZES) {
      const [sizeA, sizeB, sizeC] = [m * k, k * n, m * n];
      const results = [fast, plain].map((backend) => {
        const [a, b, c] = [sizeA, sizeB, sizeC].map((size, s) => {
          const buffer = backend.alloc("float32", size);
          backend.write(buffer, Float32Array.from({ length: size }, (_, i) => Math.sin(i * (s + 1) + s)));
          return buffer;
        }) as [ReturnType<CpuBackend["alloc"]>, ReturnType<CpuBackend["alloc"]>, ReturnType<CpuBackend["alloc"]>];
        backend.gemm(transA, transB, m, n, k, 1, a, transA ? m : k, b, transB ? k : n, 1, c, n);
        const result = backend.readSync(c).slice();
        for (const buffer of [a, b, c]) backend.free(buffer);
        return result;
      }) as [Float32Array, Float32Array];
      let largest = 0;
      for (const [i, value] of results[0].entries()) largest = Math.max(largest, Math.abs(value - results[1][i]!));
      expect(largest).toBeLessThan(2e-5 * Math.sqrt(k));
    }
    fast.dispose();
    plain.dispose();
  });
});

describe("cutFor", () => {
  it("knows OpenBLAS's kernels for AVX-512, and MKL", () => {
    expect(cutFor("OpenBLAS", "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH NO_AFFINITY SkylakeX MAX_THREADS=64")).toBe("few");
    expect(cutFor("OpenBLAS", "OpenBLAS 0.3.29 DYNAMIC_ARCH SapphireRapids MAX_THREADS=64")).toBe("few");
    expect(cutFor("OpenBLAS", "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH NO_AFFINITY Haswell MAX_THREADS=64")).toBe("none");
    expect(cutFor("MKL", "")).toBe("fewer");
    expect(cutFor("BLIS", "")).toBe("none");
  });
});
