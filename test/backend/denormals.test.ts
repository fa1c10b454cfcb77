/** Denormal numbers: zero to a native library, kept by JavaScript and WebAssembly, and no reason to be slow. */

import { describe, expect, it } from "vitest";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { findCblas } from "#sparsegate/backend/cpu/cblas.js";

const found = findCblas("auto").found;
const switchable = found?.flushDenormals !== undefined;
if (!switchable) console.warn(`SKIPPED tests of denormal numbers: ${found ? "not x86-64 Linux" : "no CBLAS"}`);
const DENORMAL = 1e-39;

describe.each([1, 2])("products on %i threads", (threads) => {
  it.skipIf(!switchable)("take them for zero, and everything after them is as before", () => {
    const backend = new CpuBackend({ threads });
    const [m, n, k] = [300, 200, 100];
    const [a, b, c] = [m * k, k * n, m * n].map((length) => backend.alloc("float32", length));
    const time = (value: number): number => {
      backend.fill(a!, value, m * k);
      backend.fill(b!, 0.3, k * n);
      const begun = performance.now();
      for (let i = 0; i < 20; i++) backend.gemm(false, true, m, n, k, 1, a!, k, b!, k, 0, c!, n);
      return performance.now() - begun;
    };
    time(1);
    const [usual, denormal] = [time(1), time(DENORMAL)];
    expect(backend.readSync(c!).every((value) => value === 0)).toBe(true);
    // Ninety times as slow without: far from what any other program on the machine does to it.
    expect(denormal).toBeLessThan(8 * usual + 5);
    // WebAssembly, on every thread, and JavaScript: sums, as a copy would keep them in any mode.
    backend.fill(a!, DENORMAL, m * k);
    backend.fill(c!, DENORMAL, m * k);
    backend.axpy(1, a!, c!, m * k);
    const twice = Math.fround(2 * Math.fround(DENORMAL));
    expect([...backend.readSync(c!)].slice(0, m * k).every((value) => value === twice)).toBe(true);
    expect(Number.MIN_VALUE * Number(`${threads}`)).toBeGreaterThan(0);
    backend.dispose();
  });
});
