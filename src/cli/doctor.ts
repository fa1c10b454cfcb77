/** `sparsegate doctor`: what was found, how fast each part is here, and what to install to go faster. */

import { availableParallelism, cpus, totalmem } from "node:os";
import { CpuBackend } from "../backend/cpu/index.js";
import { bytes } from "./format.js";

/** Median rate of an n³ product in GF/s. */
function gemmRate(backend: CpuBackend, n: number, repeats = 5): number {
  const [a, b, c] = [0, 1, 2].map(() => backend.alloc("float32", n * n)) as [ReturnType<CpuBackend["alloc"]>, ReturnType<CpuBackend["alloc"]>, ReturnType<CpuBackend["alloc"]>];
  for (const buf of [a, b]) backend.randomUniform(buf, n * n, { seed: 0, stream: 1, step: 0 }, 0, -1, 1);
  const rates: number[] = [];
  for (let i = 0; i <= repeats; i++) {
    const begun = performance.now();
    backend.gemm(false, false, n, n, n, 1, a, n, b, n, 0, c, n);
    if (i > 0) rates.push((2 * n ** 3) / (performance.now() - begun) / 1e6);
  }
  for (const buf of [a, b, c]) backend.free(buf);
  return rates.sort((x, y) => x - y)[Math.floor(rates.length / 2)]!;
}

export function doctor(options: Record<string, unknown>): void {
  const backend = new CpuBackend();
  const wasm = new CpuBackend({ blas: "none" });
  const n = 1024;
  const report = {
    node: process.version,
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memory: bytes(totalmem()),
    threads: backend.threads,
    shared_memory: backend.shared,
    simd: backend.variant,
    blas: backend.blas.found ? `${backend.blas.found.description} (${backend.blas.found.path})` : `none: ${backend.blas.reason}`,
    blas_gflops: backend.blas.found ? Math.round(gemmRate(backend, n)) : null,
    wasm_gflops: Math.round(gemmRate(wasm, n, 3)),
    notes: backend.notes,
    tried: backend.blas.found ? [] : backend.blas.tried,
  };
  if (options["json"] === true) process.stdout.write(`${JSON.stringify(report)}\n`);
  else {
    for (const [key, value] of Object.entries(report)) {
      for (const line of Array.isArray(value) ? value : [value ?? "-"]) process.stdout.write(`${key.replaceAll("_", " ").padEnd(14)} ${String(line)}\n`);
    }
  }
  backend.dispose();
  wasm.dispose();
}
