/** The harness of the parity tests: data, cases, and the comparison of a backend with the float64 reference. */

import type { Backend, Buf } from "#sparsegate/backend/backend.js";
import { CpuBackend, type CpuBackendOptions } from "#sparsegate/backend/cpu/index.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";

export type Data = Float64Array | Int32Array;
type Methods = { [K in keyof Backend]: Backend[K] extends (...args: never[]) => unknown ? K : never }[keyof Backend];
/** What the memory tests exercise by themselves; all the rest needs a parity case. */
export const MEMORY_METHODS = ["alloc", "free", "write", "readSync", "read", "memory", "resetPeak", "dispose"] as const;
export type Kernel = Exclude<Methods, (typeof MEMORY_METHODS)[number]>;

export interface Case {
  kernel: Kernel;
  label: string;
  /** Contents of every buffer before the call, outputs too: what a kernel leaves alone must still be there. */
  buffers: Record<string, Data>;
  run(backend: Backend, bufs: Record<string, Buf>): void;
  /** Magnitude of the terms of a buffer's elements (1 where left out): errors are relative to it where the value itself is smaller. */
  scale: Record<string, number>;
  tolerance: number;
}

/** float32 keeps 6e-8 of each term; a kernel may lose two digits to its approximations and to sums of random sign. */
const TOLERANCE = 1e-5;

export function kernelCase<Name extends string>(kernel: Kernel, label: string, buffers: Record<Name, Data>,
  run: (backend: Backend, bufs: Record<Name, Buf>) => void, scale: Partial<Record<Name, number>> = {}, tolerance = TOLERANCE): Case {
  // Inputs are rounded to float32, so that both backends start from the same ones.
  const rounded = Object.entries<Data>(buffers).map(([name, data]) => [name, data instanceof Float64Array ? data.map(Math.fround) : data]);
  return { kernel, label, buffers: Object.fromEntries(rounded) as Record<string, Data>, run, scale: scale as Record<string, number>, tolerance };
}

/** n terms of size 1 and random sign sum to about √n; four of these is as far as one goes. A single term left out shows up to n = 10⁸. */
export const sumOf = (n: number): number => 4 * Math.sqrt(Math.max(n, 1));

/** Seeded numbers (mulberry32), independent of the code under test. */
export class Draw {
  #state: number;
  constructor(seed: number) {
    this.#state = seed;
  }
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t ^= t + Math.imul(t ^ (t >>> 7), 61 | t);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }
  floats(n: number, low = -2, high = 2): Float64Array {
    return Float64Array.from({ length: n }, () => Math.fround(low + (high - low) * this.next()));
  }
  /** Integers in [low, high). */
  ints(n: number, low: number, high: number): Int32Array {
    return Int32Array.from({ length: n }, () => low + Math.floor((high - low) * this.next()));
  }
  /** The numbers 0..n-1 in random order; of them, about one in `none` is -1 (0: none is). */
  distinct(n: number, none = 0): Int32Array {
    const list = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = Math.floor(this.next() * (i + 1));
      [list[i], list[j]] = [list[j], list[i]];
    }
    return none === 0 ? list : list.map((v) => (this.next() < 1 / none ? -1 : v));
  }
  /** Offsets of `groups` groups over at most `rows` rows, some of them empty. */
  offsets(groups: number, rows: number): Int32Array {
    const cuts = this.ints(groups - 1, 0, rows + 1).sort();
    return Int32Array.of(0, ...cuts, rows);
  }
}

const [FLOAT_CANARY, INT_CANARY] = [7.25, -77];
/** Output buffers start with a value that no kernel computes here. */
export const blank = (n: number): Float64Array => new Float64Array(n).fill(FLOAT_CANARY);
export const blankInts = (n: number): Int32Array => new Int32Array(n).fill(INT_CANARY);

/** Canaries before and after the elements; three before also put them off the 16-byte boundary. */
const [BEFORE, AFTER] = [3, 6];

/** Runs a case and gives every buffer's contents afterwards, canaries included, and which methods it called. */
export function outcome(backend: Backend, { buffers, run }: Pick<Case, "buffers" | "run">): { contents: Record<string, ArrayLike<number>>; called: Set<string> } {
  const called = new Set<string>();
  const recording = new Proxy(backend, {
    get: (target, name) => {
      called.add(String(name));
      const member: unknown = Reflect.get(target, name, target);
      return typeof member === "function" ? (member.bind(target) as unknown) : member;
    },
  });
  const whole: Record<string, Buf> = {};
  const parts: Record<string, Buf> = {};
  for (const [name, data] of Object.entries(buffers)) {
    const isFloat = data instanceof Float64Array;
    const buf = backend.alloc(isFloat ? "float32" : "int32", data.length + BEFORE + AFTER);
    const padded = isFloat ? blank(buf.length) : blankInts(buf.length);
    padded.set(data, BEFORE);
    backend.write(buf, padded);
    whole[name] = buf;
    parts[name] = buf.at(BEFORE, data.length);
  }
  run(recording, parts);
  const contents: Record<string, ArrayLike<number>> = {};
  for (const [name, buf] of Object.entries(whole)) {
    contents[name] = backend.readSync(buf);
    backend.free(buf);
  }
  return { contents, called };
}

const reference = new ReferenceBackend();
const expected = new WeakMap<Case, Record<string, ArrayLike<number>>>();

/** In what a backend differs from the reference on a case: lines for people, none when it agrees. */
export function disagreements(backend: Backend, one: Case): string[] {
  let want = expected.get(one);
  if (!want) expected.set(one, (want = outcome(reference, one).contents));
  const { contents, called } = outcome(backend, one);
  const lines = called.has(one.kernel) ? [] : [`${one.label}: never calls ${one.kernel}`];
  for (const [name, data] of Object.entries(one.buffers)) {
    const tolerance = data instanceof Int32Array ? 0 : one.tolerance;
    lines.push(...differences(`${one.label}: ${name}`, contents[name], want[name], one.scale[name] ?? 1, tolerance));
  }
  return lines;
}

/** Elements with |got − want| > tolerance·max(|want|, scale); NaN must meet NaN, and what float32 cannot hold infinity. At most three are listed. */
export function differences(label: string, got: ArrayLike<number>, want: ArrayLike<number>, scale: number, tolerance: number): string[] {
  const lines: string[] = [];
  for (let i = 0; i < want.length && lines.length < 3; i++) {
    const w = Number.isFinite(Math.fround(want[i])) ? want[i] : Math.fround(want[i]);
    const close = Number.isFinite(w) ? Math.abs(got[i] - w) <= tolerance * Math.max(Math.abs(w), scale) : Object.is(got[i], w);
    if (!close) lines.push(`${label}[${i - BEFORE}]: expected ${w}, got ${got[i]}`);
  }
  return lines;
}

export interface Configuration {
  title: string;
  backend: CpuBackend | undefined;
  /** Why it cannot run here. */
  missing: string;
}

/** The ways to run the CPU backend. Relaxed comes last: on Node 20 it switches V8's flag on for the rest of the process. */
export function configurations(): Configuration[] {
  const list: [string, CpuBackendOptions][] = [
    ["BLAS, 1 thread", { threads: 1, blas: "auto", simd: "simd" }],
    ["BLAS, 2 threads", { threads: 2, blas: "auto", simd: "simd" }],
    ["WebAssembly only, 1 thread", { threads: 1, blas: "none", simd: "simd" }],
    ["WebAssembly only, 2 threads", { threads: 2, blas: "none", simd: "simd" }],
    ["unshared memory", { threads: 2, blas: "none", simd: "simd", shared: false }],
    ["relaxed SIMD, 2 threads", { threads: 2, blas: "none", simd: "relaxed" }],
    ["relaxed SIMD, unshared memory", { threads: 1, blas: "none", simd: "relaxed", shared: false }],
  ];
  return list.map(([title, options]) => {
    try {
      const backend = new CpuBackend(options);
      if (options.blas !== "auto" || backend.blas.found) return { title, backend, missing: "" };
      backend.dispose();
      return skipped(title, backend.blas.reason);
    } catch (error) {
      if (options.simd === "relaxed" && (error as Error).name === "ConfigError") return skipped(title, (error as Error).message);
      throw error;
    }
  });
}

function skipped(title: string, missing: string): Configuration {
  console.warn(`SKIPPED configuration "${title}": ${missing}`);
  return { title, backend: undefined, missing };
}
