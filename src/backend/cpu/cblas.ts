/** The machine's own CBLAS through koffi: found, tried on a small product, and kept to one thread (the pool decides what runs where). */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

/** Row-major sgemm over absolute addresses. */
export type Sgemm = (transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number) => void;

export interface Cblas {
  /** Name and version for people. */
  description: string;
  path: string;
  sgemm: Sgemm;
  /** Address of byte 0 of a memory; fixed for its life. */
  addressOf(memory: WebAssembly.Memory): number;
  /** Sets the library's own number of threads; false when it has no way to. */
  setThreads(n: number): boolean;
}

export type CblasSearch = { found: Cblas } | { found: undefined; reason: string };

const CANDIDATES: Record<string, readonly string[]> = {
  linux: ["libopenblas.so.0", "libopenblas.so", "libmkl_rt.so.2", "libmkl_rt.so", "libblis.so.4", "libblis.so.3", "libcblas.so.3", "libblas.so.3"],
  darwin: [
    "/System/Library/Frameworks/Accelerate.framework/Accelerate",
    "/opt/homebrew/opt/openblas/lib/libopenblas.dylib",
    "/usr/local/opt/openblas/lib/libopenblas.dylib",
    "libmkl_rt.dylib",
  ],
  win32: ["libopenblas.dll", "openblas.dll", "mkl_rt.2.dll"],
};

const ROW_MAJOR = 101;
const [NO_TRANS, TRANS] = [111, 112];

interface Koffi {
  load(path: string): { func(signature: string): (...args: number[]) => unknown };
  address(view: ArrayBufferView): bigint;
}

/**
 * @param choice "auto" searches, "none" refuses, anything else is the path of the library
 */
export function findCblas(choice: string): CblasSearch {
  if (choice === "none") return { found: undefined, reason: "switched off (SPARSEGATE_BLAS=none)" };
  let koffi: Koffi;
  try {
    koffi = createRequire(import.meta.url)("koffi") as Koffi;
  } catch {
    return { found: undefined, reason: "the optional package koffi, which calls native libraries, is not installed" };
  }
  mendCoreType();
  const failures: string[] = [];
  for (const path of choice === "auto" ? (CANDIDATES[process.platform] ?? []) : [choice]) {
    try {
      const found = open(koffi, path);
      const wrong = selfTest(koffi, found);
      if (!wrong) return { found };
      failures.push(`${path}: ${wrong}`);
    } catch (error) {
      if (choice !== "auto" || existsSync(path)) failures.push(`${path}: ${(error as Error).message}`);
    }
  }
  return { found: undefined, reason: failures.length > 0 ? failures.join("; ") : "no library found" };
}

/** OpenBLAS before 0.3.26 takes recent AMD CPUs with AVX-512 for Haswell and runs at half speed. The name must be set before it is loaded. */
function mendCoreType(): void {
  if (process.env["OPENBLAS_CORETYPE"] !== undefined || process.platform !== "linux") return;
  try {
    if (/\bavx512f\b/.test(readFileSync("/proc/cpuinfo", "utf8"))) process.env["OPENBLAS_CORETYPE"] = "SkylakeX";
  } catch {
    // Without /proc the library decides by itself.
  }
}

function open(koffi: Koffi, path: string): Cblas {
  const library = koffi.load(path);
  // Addresses are declared as integers so that plain numbers (below 2^53) pass.
  const raw = library.func("void cblas_sgemm(int, int, int, int, int, int, float, uintptr_t, int, uintptr_t, int, float, uintptr_t, int)");
  const optional = (signature: string): ((...args: number[]) => unknown) | undefined => {
    try {
      return library.func(signature);
    } catch {
      return undefined;
    }
  };
  const setThreads =
    optional("void openblas_set_num_threads(int)") ?? optional("void MKL_Set_Num_Threads(int)") ?? optional("void bli_thread_set_num_threads(int64_t)");
  if (path.includes("Accelerate")) process.env["VECLIB_MAXIMUM_THREADS"] ??= "1";
  setThreads?.(1);
  const config = optional("const char *openblas_get_config()")?.();
  return {
    description: typeof config === "string" ? config.replace(/\s+/g, " ").trim() : path.split("/").at(-1)!,
    path,
    sgemm: (transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) => {
      raw(ROW_MAJOR, transA ? TRANS : NO_TRANS, transB ? TRANS : NO_TRANS, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    },
    addressOf: (memory) => Number(koffi.address(new Uint8Array(memory.buffer))),
    setThreads: (n) => {
      setThreads?.(n);
      return setThreads !== undefined;
    },
  };
}

/** [1 2; 3 4]·[5 6; 7 8] = [19 22; 43 50], by which a library of another integer width gives itself away. */
function selfTest(koffi: Koffi, blas: Cblas): string | undefined {
  const values = Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0);
  const at = Number(koffi.address(values));
  blas.sgemm(false, false, 2, 2, 2, 1, at, 2, at + 16, 2, 0, at + 32, 2);
  const got = Array.from(values.subarray(8));
  return got.join() === "19,22,43,50" ? undefined : `a 2×2 product came out as [${got.join(", ")}]`;
}
