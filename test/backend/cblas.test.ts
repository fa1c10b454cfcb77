/** The machine's CBLAS: found or not, tested before it is trusted, and the same bytes as the WebAssembly memory. */

import { afterEach, describe, expect, it, vi } from "vitest";
import { findCblas, openblasCore, openCblas, releaseIn, selfTest } from "#sparsegate/backend/cpu/cblas.js";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";

const search = findCblas("auto");
if (!search.found) console.warn(`SKIPPED tests with a CBLAS: ${search.reason}`);
const withBlas = search.found ? it : it.skip;

describe("findCblas", () => {
  it("says why there is none when switched off or not there", () => {
    expect(findCblas("none")).toMatchObject({ found: undefined, reason: expect.stringContaining("switched off") });
    const missing = findCblas("/nowhere/libblas.so");
    expect(missing.found).toBeUndefined();
    expect(missing.tried).toHaveLength(1);
    expect((missing as { reason: string }).reason).toContain("/nowhere/libblas.so");
  });

  withBlas("has MKL do without threads of its own, which it ends the process for where it does not find their library, unless told otherwise", () => {
    try {
      vi.stubEnv("MKL_THREADING_LAYER", undefined);
      findCblas("auto");
      expect(process.env["MKL_THREADING_LAYER"]).toBe("SEQUENTIAL");
      vi.stubEnv("MKL_THREADING_LAYER", "GNU");
      findCblas("auto");
      expect(process.env["MKL_THREADING_LAYER"]).toBe("GNU");
    } finally {
      vi.unstubAllEnvs();
    }
  });

  withBlas("lists what was tried and names what is in use", () => {
    expect(search.tried.at(-1)).toBe(`${search.found!.path}: in use`);
    if (search.found!.name === "OpenBLAS") expect(search.found!.version).toMatch(/^\d+\.\d+/);
  });

  withBlas("gives the library its threads for one piece of work only, also when that throws", () => {
    const blas = openCblas(search.found!.path);
    if (!blas.setThreads(2)) return expect(() => blas.withThreads(2, () => 7)).toThrow(/expected a library that can be told to use 2 threads/);
    expect(blas.withThreads(2, () => 7)).toBe(7);
    expect(() => blas.withThreads(2, () => { throw new Error("stop"); })).toThrow("stop");
  });
});

describe("a library's threads", () => {
  it.skipIf(search.found?.name !== "OpenBLAS")("cannot be more than OpenBLAS was built for: said, and the number of before is kept", () => {
    const blas = openCblas(search.found!.path);
    let ran = false;
    expect(() => blas.withThreads(100_000, () => (ran = true))).toThrow(/expected a library that can be told to use 100000 threads, got OpenBLAS \(.+\)\./);
    expect(ran).toBe(false);
    expect(blas.setThreads(1)).toBe(true);
  });
});

describe("releaseIn", () => {
  it("finds the release in what OpenBLAS, BLIS and MKL say of themselves", () => {
    expect(releaseIn("OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH NO_AFFINITY SkylakeX MAX_THREADS=64")).toBe("0.3.21");
    expect(releaseIn("0.9.0")).toBe("0.9.0");
    expect(releaseIn("Intel(R) Math Kernel Library Version 2020.0.4 Product Build 20200917 for Intel(R) 64 architecture applications\0\0")).toBe("2020.0.4");
    expect(releaseIn("\0\0")).toBe("");
  });
});

describe("openblasCore", () => {
  const cpuinfo = (vendor: string, family: number, flags: string): string => `processor\t: 0\nvendor_id\t: ${vendor}\ncpu family\t: ${family}\nmodel\t\t: 17\nflags\t\t: fpu ${flags} avx2\n`;
  it("takes AVX-512 kernels for Zen 5, AVX2 ones for Zen 4, and leaves every other choice to the library", () => {
    expect(openblasCore(cpuinfo("AuthenticAMD", 26, "avx512f"))).toBe("SkylakeX");
    expect(openblasCore(cpuinfo("AuthenticAMD", 25, "avx512f avx512_bf16"))).toBe("Haswell");
    expect(openblasCore(cpuinfo("AuthenticAMD", 25, "avx"))).toBeUndefined();
    expect(openblasCore(cpuinfo("GenuineIntel", 6, "avx512f"))).toBeUndefined();
    expect(openblasCore("")).toBeUndefined();
  });
});

describe("selfTest", () => {
  withBlas("accepts the library and refuses one that ignores alpha, beta, or a transposition", () => {
    const { sgemm } = search.found!;
    expect(selfTest(sgemm)).toBeUndefined();
    expect(selfTest((tA, tB, m, n, k, _alpha, ...rest) => sgemm(tA, tB, m, n, k, 1, ...rest))).toContain("came out wrong");
    expect(selfTest((tA, tB, m, n, k, alpha, a, lda, b, ldb, _beta, c, ldc) => sgemm(tA, tB, m, n, k, alpha, a, lda, b, ldb, 0, c, ldc))).toContain("came out wrong");
    // Its rows are then longer, and the library checks that its strides are not shorter.
    expect(selfTest((_tA, tB, m, n, k, alpha, a, lda, ...rest) => sgemm(false, tB, m, n, k, alpha, a, Math.max(lda, k), ...rest))).toContain("A transposed");
    expect(selfTest(() => undefined)).toContain("came out wrong");
  });
});

describe("the products handed to a CBLAS", () => {
  withBlas("have strides as long as their rows, which the library insists on, also where a side is 0", () => {
    const backend = new CpuBackend({ threads: 1 });
    const blas = backend.blas.found!;
    const { sgemm } = blas;
    const illegal: string[] = [];
    let calls = 0;
    blas.sgemm = (tA, tB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) => {
      calls++;
      if (lda < Math.max(1, tA ? m : k) || ldb < Math.max(1, tB ? k : n) || ldc < Math.max(1, n)) illegal.push(`${m}×${n}×${k}${tA ? " Aᵀ" : ""}${tB ? " Bᵀ" : ""}: ${lda}, ${ldb}, ${ldc}`);
      sgemm(tA, tB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    };
    const [a, b, c] = [0, 1, 2].map(() => backend.alloc("float32", 64));
    const offsets = backend.alloc("int32", 4);
    const touched = backend.alloc("int32", 3);
    backend.write(offsets, [0, 0, 2, 2]);
    for (const m of [0, 1, 3]) {
      for (const n of [0, 1, 3]) {
        for (const k of [0, 1, 3]) {
          for (const tA of [false, true]) for (const tB of [false, true]) backend.gemm(tA, tB, m, n, k, 1, a, tA ? m : k, b, tB ? k : n, 0, c, n);
        }
        backend.groupedGemm(offsets, 3, 2, a, b, false, c, m, n);
        backend.groupedGemm(offsets, 3, 2, a, b, true, c, m, n);
        backend.groupedGemmWeight(offsets, 3, a, b, c, touched, m, n, false);
      }
    }
    backend.dispose();
    expect(calls).toBeGreaterThan(30);
    expect(illegal).toEqual([]);
  });
});

describe("the memory a CBLAS computes on", () => {
  withBlas("stays where it is as it grows", () => {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536, shared: true });
    const before = search.found!.addressOf(memory);
    memory.grow(5000);
    expect(search.found!.addressOf(memory)).toBe(before);
  });

  withBlas("can be reached above 2 GiB (product of ones: every element is k)", () => {
    const backend = new CpuBackend({ threads: 1 });
    try {
      const low = backend.alloc("float32", 2 ** 29 + 1024);
      const [m, n, k] = [5, 7, 9];
      const [a, b, c] = [m * k, k * n, m * n].map((length) => backend.alloc("float32", length));
      backend.fill(a, 1, m * k);
      backend.fill(b, 1, k * n);
      backend.gemm(false, false, m, n, k, 1, a, k, b, n, 0, c, n);
      expect([...backend.readSync(c)]).toEqual(new Array(m * n).fill(k));
      backend.free(low);
    } finally {
      backend.dispose();
    }
  });
});

describe("CpuBackend without a CBLAS", () => {
  afterEach(() => vi.unstubAllEnvs());

  it("says so in its notes and its probe", () => {
    vi.stubEnv("SPARSEGATE_BLAS", "none");
    const backend = new CpuBackend({ threads: 1 });
    expect(backend.notes.join(" ")).toContain("No CBLAS: switched off");
    expect(backend.probe().blas).toEqual({ reason: expect.stringContaining("switched off") });
    backend.dispose();
  });
});
