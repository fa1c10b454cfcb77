/**
 * Every kernel of the CPU backend against the float64 reference, in every configuration: with and without BLAS, one thread and two, relaxed SIMD, private memory.
 * All buffers are compared after each call, inputs and canaries around them too, so a kernel that writes where it should not is found. The cases are in cases/.
 */

import { afterAll, describe, expect, it } from "vitest";
import { UNARY_OPS, type Backend, type Buf } from "#sparsegate/backend/backend.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { elementwise } from "./cases/elementwise.js";
import { gating } from "./cases/gating.js";
import type { Golden } from "./cases/list.js";
import { products } from "./cases/products.js";
import { randomAndOptimisers } from "./cases/random-and-optimisers.js";
import { rows } from "./cases/rows.js";
import { rowwise } from "./cases/rowwise.js";
import { blank, blankInts, configurations, differences, disagreements, MEMORY_METHODS, outcome, type Data, type Kernel } from "./helpers.js";

const lists = [elementwise, products, rows, rowwise, gating, randomAndOptimisers];
const cases = lists.flatMap((list) => list.cases);
const golden = lists.flatMap((list) => list.golden);

function goldenErrors(backend: Backend, { buffers, run, want }: Golden): string[] {
  const { contents } = outcome(backend, { buffers, run });
  return Object.entries(want).flatMap(([name, list]) => {
    const got = Array.from(contents[name]).slice(3, 3 + list.length);
    const isFloat = buffers[name] instanceof Float64Array;
    return differences(name, [0, 0, 0, ...got], [0, 0, 0, ...list], 1e-3, isFloat ? 2e-6 : 0);
  });
}

// ---- what is asserted of a backend --------------------------------------------------------------------------------------------------
function kernelsOf(backend: Backend): string[] {
  const names = [...Object.getOwnPropertyNames(Object.getPrototypeOf(backend)), ...Object.keys(backend)];
  return names.filter((name) => name !== "constructor" && typeof Reflect.get(backend, name) === "function");
}
const KERNELS = kernelsOf(new ReferenceBackend()).filter((name) => !(MEMORY_METHODS as readonly string[]).includes(name)) as Kernel[];

describe("the parity tests", () => {
  it("cover every kernel of the interface, so that a new one without a case fails here", () => {
    const covered = new Set(cases.map(({ kernel }) => kernel));
    expect(KERNELS.filter((kernel) => !covered.has(kernel))).toEqual([]);
  });

  it("notice a kernel that is off by 3e-5 relative", () => {
    const wrong = new (class extends ReferenceBackend {
      override affine(x: Buf, scale: number, shift: number, y: Buf, n: number): void {
        super.affine(x, scale * (1 + 3e-5), shift * (1 + 3e-5), y, n);
      }
    })();
    const affine = cases.filter(({ kernel, label }) => kernel === "affine" && label === "100");
    expect(affine.flatMap((one) => disagreements(wrong, one)).length).toBeGreaterThan(0);
  });

  it("notice an element written past the end", () => {
    const wrong = new (class extends ReferenceBackend {
      override readSync(buf: Buf): Float64Array | Int32Array {
        const data = super.readSync(buf);
        data[data.length - 6] = 0;
        return data;
      }
    })();
    expect(disagreements(wrong, cases.find(({ kernel }) => kernel === "fill")!)).not.toEqual([]);
  });
});

describe("reference backend", () => {
  const backend = new ReferenceBackend();
  it.each(golden)("$claim", (one) => expect(goldenErrors(backend, one)).toEqual([]));
  itKeepsMemory(() => backend);
  itRefusesIndices(() => backend);

  it("fills memory that nobody wrote with NaN and 0x7fffffff", () => {
    expect(Array.from(backend.readSync(backend.alloc("float32", 2)))).toEqual([NaN, NaN]);
    expect(Array.from(backend.readSync(backend.alloc("int32", 2)))).toEqual([0x7fffffff, 0x7fffffff]);
  });

  it("has Φ to 1e-14 relative, tail included", () => {
    const x = [-10, -5, -3, -1.5, -1, -0.1, 0, 0.3, 2];
    // erfc(−x/√2)/2 by Python's math.erfc.
    const want = [7.619853024160593e-24, 2.866515718791946e-7, 0.0013498980316300957, 0.06680720126885809, 0.15865525393145707, 0.460172162722971, 0.5, 0.6179114221889526, 0.9772498680518208];
    const [from, to] = [backend.alloc("float32", x.length), backend.alloc("float32", x.length)];
    backend.write(from, x);
    backend.unary("normalCdf", from, to, x.length);
    const got = backend.readSync(to);
    for (const [i, w] of want.entries()) expect(Math.abs(got[i] - w)).toBeLessThanOrEqual(1e-14 * w);
  });

  it("has derivatives that match central differences", () => {
    for (const op of UNARY_OPS) {
      for (const x of [0.3, 0.9, 1.7, 2.4]) {
        const h = 1e-5;
        const at = (v: number): number => Number(computedOne(backend, (b, m) => b.unary(op, m.x, m.y, 1), v).y);
        const { dx } = computedOne(backend, (b, m) => {
          b.unary(op, m.x, m.y, 1);
          b.unaryGrad(op, m.x, m.y, m.dy, m.dx, 1);
        }, x);
        // Truncation is of order h², rounding of order 1e-16/h.
        expect(dx, `${op}'(${x})`).toBeCloseTo((at(x + h) - at(x - h)) / (2 * h), 7);
      }
    }
  });
});

for (const { title, backend, missing } of configurations()) {
  describe.skipIf(!backend)(`CPU backend, ${title}${missing ? ` (skipped: ${missing})` : ""}`, () => {
    const cpu = backend!;
    afterAll(() => cpu?.dispose());
    it.each(KERNELS)("%s agrees with the float64 reference on every shape", (kernel) => {
      expect(cases.filter((one) => one.kernel === kernel).flatMap((one) => disagreements(cpu, one)).slice(0, 12)).toEqual([]);
    });
    it.each(golden)("$claim", (one) => expect(goldenErrors(cpu, one)).toEqual([]));
    itKeepsMemory(() => cpu);
    itRefusesIndices(() => cpu);
  });
}

function itKeepsMemory(get: () => Backend): void {
  it("counts live bytes and their peak, and takes them back", async () => {
    const backend = get();
    const before = backend.memory().used;
    backend.resetPeak();
    const buf = backend.alloc("float32", 1000);
    const during = backend.memory();
    // Four or eight bytes an element; an allocator may round up by a little.
    expect(during.used - before).toBeGreaterThanOrEqual(backend.name === "cpu" ? 4000 : 8000);
    expect(during.used - before).toBeLessThanOrEqual(8192);
    expect(during.peak).toBe(during.used);
    backend.write(buf, new Float32Array(1000).fill(0.5));
    expect(Array.from((await backend.read(buf.at(998))).values())).toEqual([0.5, 0.5]);
    backend.free(buf);
    expect(backend.memory().used).toBe(before);
    expect(backend.memory().peak).toBe(during.used);
  });

  it("refuses a part that reaches past its buffer, and to free a buffer twice", () => {
    const backend = get();
    const buf = backend.alloc("float32", 10);
    expect(() => buf.at(8, 3)).toThrow(/Buf\.at: expected a part of 10 elements, got 3 from 8/);
    backend.free(buf);
    expect(() => backend.free(buf)).toThrow(expect.objectContaining({ name: "TensorError" }));
  });
}

function itRefusesIndices(get: () => Backend): void {
  // Rows that all threads share; the index past the end is the last, and as far on as the canaries are, or far beyond the memory.
  const N = 70_000;
  const CALLS: [kernel: Kernel, n: number, more: Record<string, Data>, run: (b: Backend, m: Record<string, Buf>) => void][] = [
    ["bincount", 5, { src: blank(5), out: blank(3) }, (b, m) => b.bincount(m["src"]!, m["index"]!, 5, m["out"]!, 3)],
    ["routeByExpert", 5, { offsets: blankInts(4), order: blankInts(5), position: blankInts(5) }, (b, m) => b.routeByExpert(m["index"]!, 5, 3, m["offsets"]!, m["order"]!, m["position"]!)],
    ["limitPerExpert", 5, {}, (b, m) => b.limitPerExpert(m["index"]!, null, 5, 1, 3, 9)],
    ["limitPerExpert", 5, { priority: blank(5) }, (b, m) => b.limitPerExpert(m["index"]!, m["priority"]!, 5, 1, 3, 1)],
    ["gatherLast", N, { src: blank(3 * N), out: blank(N) }, (b, m) => b.gatherLast(m["src"]!, m["index"]!, m["out"]!, N, 3, 1)],
    ["scatterAddLast", N, { src: blank(N), dst: blank(3 * N) }, (b, m) => b.scatterAddLast(m["src"]!, m["index"]!, m["dst"]!, N, 3, 1)],
  ];
  it.each(CALLS)("%s refuses an index past the end, writes nowhere else, and takes the next call", (kernel, n, more, run) => {
    for (const beyond of [3, 2 ** 31 - 1]) {
      const indices = Int32Array.from({ length: n }, (_, i) => (i % 4) - 1);
      const { contents } = outcome(get(), {
        buffers: { index: indices.with(n - 1, beyond), ...more },
        run: (b, m) => expect(() => run(b, m)).toThrow(`${kernel}: expected indices from -1 to 2, got ${beyond} at position ${n - 1}.`),
      });
      for (const [name, list] of Object.entries(contents)) {
        const canary = list instanceof Int32Array ? -77 : 7.25;
        const around = [...Array.from(list).slice(0, 3), ...Array.from(list).slice(-6)];
        expect(around, name).toEqual(new Array(9).fill(canary));
      }
      outcome(get(), { buffers: { index: indices, ...more }, run });
    }
  });
}

/** Runs on single elements x, y, dy = 1, dx and gives them back. */
function computedOne(backend: Backend, run: (b: Backend, m: Record<"x" | "y" | "dy" | "dx", Buf>) => void, x: number): Record<"x" | "y" | "dy" | "dx", number> {
  const bufs = { x: backend.alloc("float32", 1), y: backend.alloc("float32", 1), dy: backend.alloc("float32", 1), dx: backend.alloc("float32", 1) };
  backend.write(bufs.x, [x]);
  backend.write(bufs.dy, [1]);
  run(backend, bufs);
  const at = (buf: Buf): number => backend.readSync(buf)[0];
  return { x: at(bufs.x), y: at(bufs.y), dy: at(bufs.dy), dx: at(bufs.dx) };
}
