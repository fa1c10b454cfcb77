/** What benchmarks share: interleaved timing, medians with their spread, a backend whose kernels are timed, and the output for people and for --json. */

import { cpus } from "node:os";
import type { Backend } from "#sparsegate/backend/backend.js";
import { CpuBackend, type CpuBackendOptions } from "#sparsegate/backend/cpu/index.js";
import { setDefaultBackend } from "#sparsegate/tensor/index.js";

/** A figure with what it must reach. */
export interface Target {
  name: string;
  value: number;
  /** Lower bound, or upper bound where `atMost`. */
  bound: number;
  atMost?: boolean;
}

export interface BenchResult {
  /** Rows of the table, all with the same keys. */
  rows: Record<string, string | number | null>[];
  targets: Target[];
  /** What was left out, and why. */
  notes: string[];
}

export interface Benchmark {
  /** One line: the question that the figures answer. */
  question: string;
  /** Options by name with their defaults. */
  options?: Record<string, number | string>;
  run(options: Record<string, number | string>): BenchResult | Promise<BenchResult>;
}

/** Seconds of one case. */
export interface Timing {
  median: number;
  fastest: number;
  slowest: number;
  runs: number;
}

/**
 * Times every case in turn, round after round (a slow stretch of the machine hits all alike), after warm-up rounds. Cases must leave their results
 * where they count: on the backend, or returned.
 */
export async function interleave<Name extends string>(
  cases: Record<Name, () => unknown>,
  { warmup = 2, rounds = 9 }: { warmup?: number; rounds?: number } = {},
): Promise<Record<Name, Timing>> {
  const names = Object.keys(cases) as Name[];
  const seconds = new Map<Name, number[]>(names.map((name) => [name, []]));
  for (let round = -warmup; round < rounds; round++) {
    for (const name of names) {
      const begun = performance.now();
      const result = cases[name]();
      // A case of another process times itself, and gives its seconds.
      const own = result instanceof Promise ? await (result as Promise<unknown>) : undefined;
      sink = result;
      if (round >= 0) seconds.get(name)!.push(typeof own === "number" ? own : (performance.now() - begun) / 1000);
    }
  }
  return Object.fromEntries(names.map((name) => [name, timingOf(seconds.get(name)!)])) as Record<Name, Timing>;
}

/** Keeps results alive, so that no engine may leave out the work. */
export let sink: unknown;

export function timingOf(seconds: readonly number[]): Timing {
  const sorted = [...seconds].sort((a, b) => a - b);
  return { median: sorted[Math.floor(sorted.length / 2)]!, fastest: sorted[0]!, slowest: sorted.at(-1)!, runs: sorted.length };
}

/** Starts a CPU backend, with its workers awake, and makes it the one that tensors live on. */
export function useCpu(options: CpuBackendOptions = {}): CpuBackend {
  const backend = new CpuBackend(options);
  backend.awaitWorkers();
  setDefaultBackend(backend);
  return backend;
}

/** Rate of the machine's best n³ float32 product in flops: the faster of the library's own threads and this backend's pool. */
export function sgemmCases(backend: CpuBackend, n: number): Record<string, () => void> {
  const [a, b, c] = [0, 1, 2].map(() => backend.alloc("float32", n * n)) as [
    ReturnType<CpuBackend["alloc"]>,
    ReturnType<CpuBackend["alloc"]>,
    ReturnType<CpuBackend["alloc"]>,
  ];
  for (const [i, buf] of [a, b].entries()) backend.randomUniform(buf, n * n, { seed: i, stream: 1, step: 0 }, 0, -1, 1);
  const cases: Record<string, () => void> = {
    [`sgemm ${n}³, pool`]: () => backend.gemm(false, false, n, n, n, 1, a, n, b, n, 0, c, n),
  };
  const { found } = backend.blas;
  if (found) {
    const at = [a, b, c].map((buf) => backend.addressOf(buf)) as [number, number, number];
    cases[`sgemm ${n}³, ${found.name} with ${backend.threads} threads`] = () =>
      found.withThreads(backend.threads, () => found.sgemm(false, false, n, n, n, 1, at[0], n, at[1], n, 0, at[2], n));
  }
  return cases;
}

/** Milliseconds and calls of each backend method. */
export type Profile = Map<string, { ms: number; calls: number }>;

/** A backend that passes every call on and adds up its time. Kernels run to their end before they return, so times are whole. */
export function profiled(backend: CpuBackend): { backend: Backend; profile: Profile } {
  const profile: Profile = new Map();
  const wrapped = new Map<PropertyKey, unknown>();
  const proxy = new Proxy(backend, {
    get(target, name) {
      const known = wrapped.get(name);
      if (known !== undefined) return known;
      const member: unknown = Reflect.get(target, name, target);
      if (typeof member !== "function") return member;
      const entry = { ms: 0, calls: 0 };
      profile.set(String(name), entry);
      const timed = (...args: unknown[]): unknown => {
        const begun = performance.now();
        try {
          return (member as (...args: unknown[]) => unknown).apply(target, args);
        } finally {
          entry.ms += performance.now() - begun;
          entry.calls++;
        }
      };
      wrapped.set(name, timed);
      return timed;
    },
  });
  return { backend: proxy, profile };
}

/** Share of the whole that the named methods took. */
export function shareOf(profile: Profile, totalMs: number, methods: readonly string[]): number {
  return methods.reduce((sum, name) => sum + (profile.get(name)?.ms ?? 0), 0) / totalMs;
}

export const PRODUCTS = ["gemm", "gemmBatched", "groupedGemm", "groupedGemmWeight"] as const;

export function round(x: number, digits = 3): number {
  return Number(x.toPrecision(digits));
}

/** Reads the options, runs, and prints. A target that is missed sets the exit status. */
export async function main(name: string, benchmark: Benchmark, flags: readonly string[]): Promise<void> {
  const options: Record<string, number | string> = { ...benchmark.options };
  let json = false;
  for (let i = 0; i < flags.length; i++) {
    const key = flags[i]!.replace(/^--/, "").replaceAll(/-(.)/g, (_, c: string) => c.toUpperCase());
    if (flags[i] === "--json") json = true;
    else if (flags[i]!.startsWith("--") && Object.hasOwn(options, key) && flags[i + 1] !== undefined) {
      const value = flags[++i]!;
      if (typeof options[key] === "number" && !Number.isFinite(Number(value))) {
        console.error(`bench ${name}: expected --${key} to be a number, got ${JSON.stringify(value)}.`);
        process.exitCode = 2;
        return;
      }
      options[key] = typeof options[key] === "number" ? Number(value) : value;
    } else {
      console.error(
        `bench ${name}: expected --json or one of ${
          Object.keys(options)
            .map((option) => `--${option} VALUE`)
            .join(", ") || "no options"
        }, got ${JSON.stringify(flags[i])}.`,
      );
      process.exitCode = 2;
      return;
    }
  }
  const { rows, targets, notes } = await benchmark.run(options);
  const machine = { cpu: cpus()[0]?.model.trim() ?? "unknown", cores: cpus().length, node: process.version };
  const missed = targets.filter(({ value, bound, atMost }) => !(atMost ? value <= bound : value >= bound));
  if (json) console.log(JSON.stringify({ name, question: benchmark.question, machine, options, rows, targets, notes }));
  else {
    console.log(`${name}: ${benchmark.question}`);
    console.table(rows);
    for (const { name: what, value, bound, atMost } of targets) {
      const met = atMost ? value <= bound : value >= bound;
      console.log(`${met ? "met   " : "MISSED"} ${what}: ${round(value)}, ${atMost ? "at most" : "at least"} ${bound}`);
    }
    for (const note of notes) console.log(`note: ${note}`);
  }
  if (missed.length > 0) process.exitCode = 1;
}
