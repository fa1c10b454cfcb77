/** The machine's own CBLAS through koffi: found, tried on a small product, and kept to one thread (the pool decides what runs where). */

import { existsSync, readFileSync } from "node:fs";
import { ConfigError } from "../../core/errors.js";
import { denormalSwitch } from "./denormals.js";
import { loadKoffi, type NativeFunction } from "./koffi.js";
import { cutFor, type Cut } from "./pieces.js";

/** Row-major sgemm over absolute addresses. */
export type Sgemm = (transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
  a: number, lda: number, b: number, ldb: number, beta: number, c: number, ldc: number) => void;

/** A native CBLAS in use. */
export interface Cblas {
  name: "OpenBLAS" | "MKL" | "BLIS" | "Accelerate" | "CBLAS";
  /** Empty where the library does not tell. */
  version: string;
  /** Name, version and build for people. */
  description: string;
  path: string;
  sgemm: Sgemm;
  /** The pieces in which it multiplies few rows fastest: see pieces.ts. */
  cut: Cut;
  /** Has the calling thread take denormal numbers for zero, or no longer: see denormals.ts. */
  flushDenormals: ((flush: boolean) => void) | undefined;
  /** Address of byte 0 of a shared memory; fixed for its life. */
  addressOf(memory: WebAssembly.Memory): number;
  /** Sets the library's own number of threads; false when it has no way to, or keeps to another. */
  setThreads(n: number): boolean;
  /** Runs `work` while the library may use n threads of its own, for benchmarks. @throws ConfigError when it has no way to */
  withThreads<T>(n: number, work: () => T): T;
}

/** What was tried lists every candidate with what came of it; the hint says what would help. */
export type CblasSearch = { found: Cblas; tried: string[] } | { found: undefined; reason: string; hint: string; tried: string[] };

const CANDIDATES: Record<string, readonly string[]> = {
  linux: ["libopenblas.so.0", "libopenblas.so", "libmkl_rt.so.2", "libmkl_rt.so", "libblis.so.4", "libblis.so.3", "libcblas.so.3", "libblas.so.3"],
  darwin: [
    "/System/Library/Frameworks/Accelerate.framework/Accelerate",
    "/opt/homebrew/opt/openblas/lib/libopenblas.dylib",
    "/usr/local/opt/openblas/lib/libopenblas.dylib",
    "libmkl_rt.dylib",
  ],
  win32: ["libopenblas.dll", "openblas.dll", "mkl_rt.2.dll", "mkl_rt.dll"],
};

const ROW_MAJOR = 101;
const [NO_TRANS, TRANS] = [111, 112];

/**
 * @param choice "auto" searches, "none" refuses, anything else is the path of the library
 */
export function findCblas(choice: string): CblasSearch {
  const tried: string[] = [];
  if (choice === "none") return { found: undefined, reason: "switched off (SPARSEGATE_BLAS=none)", hint: "Unset SPARSEGATE_BLAS to use one.", tried };
  try {
    loadKoffi();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const what = code === "MODULE_NOT_FOUND" ? "is not installed" : `does not load here (${message.split("\n")[0]})`;
    return { found: undefined, reason: `the optional package koffi, which calls native libraries, ${what}`, hint: "Run npm install koffi.", tried };
  }
  mendEnvironment();
  const failures: string[] = [];
  for (const path of choice === "auto" ? (CANDIDATES[process.platform] ?? []) : [choice]) {
    try {
      const found = openCblas(path);
      found.setThreads(1);
      const wrong = selfTest(found.sgemm);
      tried.push(`${path}: ${wrong ?? "in use"}`);
      if (!wrong) return { found, tried };
      failures.push(`${path}: ${wrong}`);
    } catch (error) {
      tried.push(`${path}: ${(error as Error).message}`);
      // That most candidates do not exist is no news; that one exists and does not load is.
      if (choice !== "auto" || existsSync(path)) failures.push(tried.at(-1)!);
    }
  }
  const reason = failures.length > 0 ? failures.join("; ") : "no library found";
  return { found: undefined, reason, hint: "Install one (apt install libopenblas0-pthread, brew install openblas), or set SPARSEGATE_BLAS to its path.", tried };
}

/**
 * What libraries read as they are loaded. Accelerate has no call for its number of threads. MKL ends the process where it does not find the OpenMP library
 * that its threads would need; the pool has threads.
 */
function mendEnvironment(): void {
  process.env["MKL_THREADING_LAYER"] ??= "SEQUENTIAL";
  if (process.platform === "darwin") process.env["VECLIB_MAXIMUM_THREADS"] ??= "1";
  if (process.platform !== "linux" || process.env["OPENBLAS_CORETYPE"] !== undefined) return;
  try {
    const core = openblasCore(readFileSync("/proc/cpuinfo", "utf8"));
    if (core !== undefined) process.env["OPENBLAS_CORETYPE"] = core;
  } catch {
    // Without /proc the library decides by itself.
  }
}

/**
 * The kernels OpenBLAS should use, where it chooses badly by itself (docs/decisions): AMD with AVX-512. Zen 5 (family 26) computes 512 bits at once, and
 * releases before 0.3.26 give it those for AVX2, at half the rate. Zen 4 computes 256 bits at a time, so that AVX-512 kernels gain nothing, and theirs lose
 * a third on products of few rows; some builds choose them by its bfloat16 instructions.
 * @param cpuinfo text of /proc/cpuinfo
 */
export function openblasCore(cpuinfo: string): "SkylakeX" | "Haswell" | undefined {
  if (!cpuinfo.includes("AuthenticAMD") || !/\bavx512f\b/.test(cpuinfo)) return undefined;
  const family = Number(/^cpu family\s*:\s*(\d+)/m.exec(cpuinfo)?.[1]);
  return family >= 26 ? "SkylakeX" : "Haswell";
}

/** Opens a library that is trusted already. @throws Error when it cannot be loaded or has no cblas_sgemm */
export function openCblas(path: string): Cblas {
  const koffi = loadKoffi();
  const library = koffi.load(path);
  // Addresses are declared as integers so that plain numbers (below 2^53) pass.
  const raw = library.func("void cblas_sgemm(int, int, int, int, int, int, float, uintptr_t, int, uintptr_t, int, float, uintptr_t, int)");
  const optional = (signature: string): NativeFunction | undefined => {
    try {
      return library.func(signature);
    } catch {
      return undefined;
    }
  };
  const text = (signature: string): string => {
    const answer = optional(signature)?.();
    return typeof answer === "string" ? answer.replace(/\s+/g, " ").trim() : "";
  };
  const openblasThreads = optional("void openblas_set_num_threads(int)");
  const mklThreads = optional("void MKL_Set_Num_Threads(int)");
  const blisThreads = optional("void bli_thread_set_num_threads(int64_t)");
  const setter = openblasThreads ?? mklThreads ?? blisThreads;
  const name = openblasThreads ? "OpenBLAS" : mklThreads ? "MKL" : blisThreads ? "BLIS" : path.includes("Accelerate") ? "Accelerate" : "CBLAS";
  const build = text("const char *openblas_get_config()");
  const mklSentence = Buffer.alloc(200);
  optional("void MKL_Get_Version_String(void *, int)")?.(mklSentence, mklSentence.length);
  const version = releaseIn(build || text("const char *bli_info_get_version_str()") || mklSentence.toString("latin1"));
  const threadsNow = optional("int openblas_get_num_threads()") ?? optional("int MKL_Get_Max_Threads()") ?? optional("int64_t bli_thread_get_num_threads()");
  const setThreads = (n: number): boolean => {
    setter?.(n);
    return setter !== undefined && Number(threadsNow?.() ?? n) === n;
  };
  return {
    name,
    version,
    description: build || [name, version, name === "CBLAS" ? path.split("/").at(-1) : ""].filter(Boolean).join(" "),
    path,
    sgemm: (transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) => {
      raw(ROW_MAJOR, transA ? TRANS : NO_TRANS, transB ? TRANS : NO_TRANS, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    },
    cut: cutFor(name, build),
    flushDenormals: denormalSwitch(),
    addressOf: (memory) => Number(koffi.address(new Uint8Array(memory.buffer))),
    setThreads,
    withThreads: (n, work) => {
      const before = Number(threadsNow?.() ?? 1);
      try {
        if (!setThreads(n)) throw new ConfigError(`withThreads: expected a library that can be told to use ${n} threads, got ${name} (${path}).`);
        return work();
      } finally {
        setThreads(before);
      }
    },
  };
}

/** The number of the release in what a library says of itself; "" where it has none. */
export function releaseIn(text: string): string {
  return /\d+(\.\d+)+/.exec(text)?.[0] ?? "";
}

/**
 * All four transpositions of a product of odd sizes, with gaps between rows, alpha and beta, against plain loops: a library of another integer width,
 * another order of arguments or a broken build gives itself away.
 * @returns what came out wrong, undefined when nothing did
 */
export function selfTest(sgemm: Sgemm): string | undefined {
  const koffi = loadKoffi();
  const [m, n, k, gap] = [19, 37, 23, 3];
  // Small integers: every sum is exact in float32, so that results must be equal. Arrays this large do not move.
  const fill = (length: number, step: number): Float32Array => Float32Array.from({ length }, (_, i) => ((i * step) % 15) - 7);
  for (const [transA, transB] of [[false, false], [true, false], [false, true], [true, true]] as const) {
    const [lda, ldb, ldc] = [(transA ? m : k) + gap, (transB ? k : n) + gap, n + gap];
    const a = fill(lda * (transA ? k : m), 7);
    const b = fill(ldb * (transB ? n : k), 11);
    const c = fill(ldc * m, 13);
    const want = c.slice();
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let p = 0; p < k; p++) sum += a[transA ? p * lda + i : i * lda + p]! * b[transB ? j * ldb + p : p * ldb + j]!;
        want[i * ldc + j] = 0.5 * sum + 2 * c[i * ldc + j]!;
      }
    }
    sgemm(transA, transB, m, n, k, 0.5, Number(koffi.address(a)), lda, Number(koffi.address(b)), ldb, 2, Number(koffi.address(c)), ldc);
    const at = c.findIndex((value, i) => value !== want[i]);
    if (at >= 0) return `a ${m}×${k}×${n} product${transA ? ", A transposed" : ""}${transB ? ", B transposed" : ""} came out wrong: expected ${want[at]} at ${at}, got ${c[at]}`;
  }
  return undefined;
}
