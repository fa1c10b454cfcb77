/** The worker pool: same numbers with any number of threads, failures that arrive, and processes that end. */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import type { Buf } from "#sparsegate/backend/backend.js";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";

const KEY = { seed: 7, stream: 1, step: 0 };
const INDEX = new URL("../../dist/backend/cpu/index.js", import.meta.url).href;
/** Runs a program against the built backend; what it prints comes back. It must end by itself within the time. */
function program(body: string, env: Record<string, string> = {}): string {
  return execFileSync(process.execPath, ["--input-type=module", "-e", `import { CpuBackend } from ${JSON.stringify(INDEX)};\n${body}`], {
    encoding: "utf8", timeout: 30_000, cwd: fileURLToPath(new URL("../..", import.meta.url)), env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"],
  }).trim();
}

/** Softmax, layer sums and grouped products of uneven groups: what is cut among threads in different ways. */
function numbers(backend: CpuBackend): Record<string, string> {
  const [rows, p, q, groups] = [1000, 64, 96, 5];
  const digest = (buf: Buf): string => createHash("sha256").update(backend.readSync(buf)).digest("hex");
  const [x, y, s, w, dw, out] = [rows * p, rows * q, rows * p, groups * p * q, groups * p * q, 1].map((n) => backend.alloc("float32", n));
  const offsets = backend.alloc("int32", groups + 1);
  const touched = backend.alloc("int32", groups);
  backend.write(offsets, [0, 3, 3, 700, 701, rows]);
  backend.randomNormal(x, rows * p, KEY, 0, 0, 1);
  backend.randomNormal(w, groups * p * q, KEY, rows * p, 0, 1);
  backend.fill(dw, 0, groups * p * q);
  backend.fill(out, 0, 1);
  backend.softmax(x, s, rows, p);
  backend.groupedGemm(offsets, groups, rows, x, w, false, y, p, q);
  backend.groupedGemmWeight(offsets, groups, x, y, dw, touched, p, q, false);
  backend.sumSquares(y, rows * q, null, 1, out);
  const digests = { s: digest(s), y: digest(y), dw: digest(dw), touched: digest(touched), out: digest(out) };
  for (const buf of [x, y, s, w, dw, out, offsets, touched]) backend.free(buf);
  return digests;
}

describe("Pool", () => {
  const open: CpuBackend[] = [];
  const make = (options: ConstructorParameters<typeof CpuBackend>[0]): CpuBackend => {
    const backend = new CpuBackend(options);
    open.push(backend);
    return backend;
  };
  afterAll(() => open.forEach((backend) => backend.dispose()));

  it("gives bit for bit the same with 1, 2, 3 and 8 threads (WebAssembly products)", () => {
    const want = numbers(make({ threads: 1, blas: "none", simd: "simd" }));
    for (const threads of [2, 3, 8]) expect(numbers(make({ threads, blas: "none", simd: "simd" }))).toEqual(want);
  });

  it("gives bit for bit the same in 20 runs of the same job, whatever thread does a chunk", () => {
    const backend = make({ threads: 4 });
    const want = numbers(backend);
    backend.awaitWorkers();
    for (let run = 0; run < 20; run++) expect(numbers(backend)).toEqual(want);
  });

  it("starts its workers while the main thread is busy, and gets 50,000 short jobs right", () => {
    const backend = make({ threads: 3 });
    const n = 40_000;
    const x = backend.alloc("float32", n);
    backend.fill(x, 0, n);
    backend.awaitWorkers();
    for (let i = 0; i < 50_000; i++) backend.affine(x, 1, 1, x, i % 2 === 0 ? n : 16_400);
    const got = backend.readSync(x);
    expect([got[0], got[16_399], got[16_400], got[n - 1]]).toEqual([50_000, 50_000, 25_000, 25_000]);
  });

  it("splits a single large group among threads, and gives zeros' work to none", () => {
    const backend = make({ threads: 2 });
    const [p, q] = [64, 64];
    const [x, w, y] = [1024 * p, 3 * p * q, 1024 * q].map((n) => backend.alloc("float32", n));
    const offsets = backend.alloc("int32", 4);
    backend.write(offsets, [0, 0, 1000, 1000]);
    backend.fill(x, 1, 1024 * p);
    backend.fill(w, 0.5, 3 * p * q);
    backend.fill(y, -7, 1024 * q);
    backend.groupedGemm(offsets, 3, 1010, x, w, true, y, p, q);
    const got = backend.readSync(y);
    expect(got.subarray(0, 1000 * q).every((value) => value === 32)).toBe(true);
    // Ten rows of no group, and others that are none of the product's.
    expect(got.subarray(1000 * q, 1010 * q).every((value) => value === 0)).toBe(true);
    expect(got.subarray(1010 * q).every((value) => value === -7)).toBe(true);
  });

  it("throws where a kernel traps in any thread, and works again afterwards", () => {
    const backend = make({ threads: 2 });
    const rows = 64;
    const [x, out] = [rows * 4096, rows * 4096].map((n) => backend.alloc("float32", n));
    const index = backend.alloc("int32", rows);
    backend.awaitWorkers();
    // Row 2^18 − 1 of width 4096 lies at the end of the 4 GiB, far beyond what the memory has.
    backend.write(index, new Int32Array(rows).fill(2 ** 18 - 300));
    expect(() => backend.gatherRows(x, index, out, rows, 4096)).toThrow(/A thread failed \(RuntimeError: .*out of bounds/);
    backend.write(index, new Int32Array(rows));
    backend.fill(x, 3, rows * 4096);
    backend.gatherRows(x, index, out, rows, 4096);
    expect(backend.readSync(out)[rows * 4096 - 1]).toBe(3);
  });

  it("refuses jobs after dispose", () => {
    const backend = new CpuBackend({ threads: 2 });
    const x = backend.alloc("float32", 100);
    backend.dispose();
    expect(() => backend.fill(x, 1, 100)).toThrow(/disposed/);
  });

  it("lets the process end without dispose, with flags that workers cannot take", () => {
    expect(program(`
      const backend = new CpuBackend({ threads: 3, blas: "none" });
      const x = backend.alloc("float32", 1e6);
      backend.fill(x, 2, 1e6);
      backend.awaitWorkers();
      console.log(backend.readSync(x)[999999]);`)).toBe("2");
  });

  it("lets the process end, and backends be disposed of, while workers still load the native library", () => {
    // Stopping a thread that loads one takes the process down. With 16 threads most of these fall into the loading of some.
    for (const ms of [20, 40, 60, 90]) {
      expect(program(`
        new CpuBackend({ threads: 16 });
        console.log("before");
        setTimeout(() => console.log("end"), ${ms});`)).toBe("before\nend");
    }
    expect(program(`
      for (let i = 0; i < 20; i++) {
        const backend = new CpuBackend({ threads: 3 });
        await new Promise((done) => setTimeout(done, 5 * (i % 10)));
        backend.dispose();
      }
      console.log("end");`)).toBe("end");
  });

  it("takes the number of threads from SPARSEGATE_THREADS and starts no worker for 1", () => {
    const body = "const b = new CpuBackend(); console.log(b.threads, process.getActiveResourcesInfo().filter((r) => /Worker|MessagePort/.test(r)).length);";
    expect(program(body, { SPARSEGATE_THREADS: "1" })).toBe("1 0");
    expect(() => new CpuBackend({ threads: 0 })).toThrow(/threads to be an integer from 1/);
  });

  it.skipIf(!existsSync("/proc/self/task"))("reports a worker that dies in the middle of a job instead of waiting for ever", () => {
    expect(program(`
      import { Control, CTL } from ${JSON.stringify(new URL("control.js", INDEX).href)};
      import { Pool } from ${JSON.stringify(new URL("pool.js", INDEX).href)};
      import { Executor } from ${JSON.stringify(new URL("executor.js", INDEX).href)};
      const control = new Control(new SharedArrayBuffer(Control.BYTES));
      const pool = new Pool(2, { kernel() {
        // As if a worker had taken the other chunk and its thread had gone.
        Atomics.store(control.ctl, CTL.left, 0);
        Atomics.store(control.ctl, CTL.threadIds, 2 ** 30);
      } }, control, [{ module: undefined, memory: undefined, names: [], control: control.buffer, scratch: 0, blas: undefined }]);
      try { pool.run(0, 2, 1, []); } catch (error) { console.log(error.message); }
      process.exit(0);`)).toContain("A worker thread died in a job");
  });
});
