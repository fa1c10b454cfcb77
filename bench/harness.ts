/** What benchmarks share: interleaved timing, medians with their spread, ratios round by round, and a backend whose kernels are timed. */

import { spawnSync } from "node:child_process";
import { cpus, loadavg } from "node:os";
import { setTimeout } from "node:timers/promises";
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
  /** For --report. */
  figures?: Figure[];
}

/** Lines over one logarithmic axis. */
export interface Figure {
  title: string;
  caption: string;
  x: string;
  y: string;
  logY?: boolean;
  lines: Line[];
}

export interface Line {
  name: string;
  points: { x: number; y: number }[];
  /** Lines of one colour belong together. */
  color: number;
  dashed?: boolean;
}

/** An option that cannot be meant: said without a stack trace. */
export class UsageError extends Error {}

/** Whole numbers of an option, as "16,64". @throws UsageError */
export function wholeNumbers(option: string, value: number | string, least: number): number[] {
  const counts = String(value).split(",").map(Number);
  if (!counts.every((count) => Number.isInteger(count) && count >= least))
    throw new UsageError(`expected --${option} to be whole numbers of at least ${least} with commas between, got ${value}.`);
  return counts;
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
  /** Each round's, in order. */
  rounds: readonly number[];
}

/**
 * Times every case in turn, round after round (a slow stretch of the machine hits all alike), after warm-up rounds. Cases must leave their results
 * where they count: on the backend, or returned.
 * @param pauseMs between cases: threads of another process go on asking for work, at our expense, for some time after they have none
 */
export async function interleave<Name extends string>(
  cases: Record<Name, () => unknown>,
  { warmup = 2, rounds = 9, pauseMs = 0 }: { warmup?: number; rounds?: number; pauseMs?: number } = {},
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
      const taken = typeof own === "number" ? own : (performance.now() - begun) / 1000;
      if (round >= 0) seconds.get(name)!.push(taken);
      if (pauseMs > 0) await setTimeout(pauseMs);
    }
  }
  return Object.fromEntries(names.map((name) => [name, timingOf(seconds.get(name)!)])) as Record<Name, Timing>;
}

/** What mpirun of Open MPI wants told to run as root, and more ranks than there are cores. */
const MPI_ENV = { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1", OMPI_MCA_rmaps_base_oversubscribe: "1" };

/** Runs a program, mpirun above all, to its end. @returns false where there is no such program @throws Error with what it said when it fails */
export function ran(command: string, args: readonly string[]): boolean {
  const { error, status, stderr } = spawnSync(command, args, {
    env: { ...process.env, ...MPI_ENV },
    encoding: "utf8",
    timeout: 600_000,
  });
  if ((error as NodeJS.ErrnoException | undefined)?.code === "ENOENT") return false;
  if (status !== 0) throw new Error(`${command}: exit code ${status}\n${stderr}`);
  return true;
}

/** Keeps results alive, so that no engine may leave out the work. */
export let sink: unknown;

export function timingOf(seconds: readonly number[]): Timing {
  const sorted = [...seconds].sort((a, b) => a - b);
  return {
    median: sorted[Math.floor(sorted.length / 2)]!,
    fastest: sorted[0]!,
    slowest: sorted.at(-1)!,
    runs: sorted.length,
    rounds: seconds,
  };
}

/**
 * How many times as long `a` took as `b`: the median over rounds of the ratio within a round. What else the machine did in a round hit both, so that this
 * is steadier than the ratio of the medians.
 */
export function ratio(a: Timing, b: Timing): number {
  return timingOf(a.rounds.map((seconds, i) => seconds / b.rounds[i]!)).median;
}

/** A note on how steady the machine was: how far the median round of a case is above its fastest. */
export function steadiness(times: Record<string, Timing>): string {
  const excess = Object.values(times).map(({ median, fastest }) => median / fastest - 1);
  const percent = (share: number): string => `${Math.round(100 * share)}%`;
  return (
    `median rounds took ${percent(timingOf(excess).median)} longer than the fastest (${percent(Math.max(...excess))} at most, over ${excess.length} cases), ` +
    `with a load average of ${loadavg()[0]!.toFixed(1)} on ${cpus().length} cores: a few per cent, and no more than the cores, on a machine that does nothing else`
  );
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
  const threaded = found?.setThreads(backend.threads);
  found?.setThreads(1);
  if (found && threaded) {
    const at = [a, b, c].map((buf) => backend.addressOf(buf)) as [number, number, number];
    cases[`sgemm ${n}³, ${found.name} with ${backend.threads} threads`] = () =>
      found.withThreads(backend.threads, () => found.sgemm(false, false, n, n, n, 1, at[0], n, at[1], n, 0, at[2], n));
  }
  return cases;
}

/** Milliseconds and calls of each backend method. */
export type Profile = Map<string, { ms: number; calls: number }>;

/**
 * A backend that passes every call on and adds up its time. Kernels run to their end before they return, so times are whole.
 * @param labelOf the name under which a call counts, where one method serves several purposes; left out: the method's
 */
export function profiled(
  backend: CpuBackend,
  labelOf?: (method: string, args: readonly unknown[]) => string,
): { backend: Backend; profile: Profile } {
  const profile: Profile = new Map();
  const entryOf = (label: string): { ms: number; calls: number } => {
    const found = profile.get(label) ?? { ms: 0, calls: 0 };
    profile.set(label, found);
    return found;
  };
  const wrapped = new Map<PropertyKey, unknown>();
  const proxy = new Proxy(backend, {
    get(target, name) {
      const known = wrapped.get(name);
      if (known !== undefined) return known;
      const member: unknown = Reflect.get(target, name, target);
      if (typeof member !== "function") return member;
      const whole = labelOf ? undefined : entryOf(String(name));
      const timed = (...args: unknown[]): unknown => {
        const begun = performance.now();
        try {
          return (member as (...args: unknown[]) => unknown).apply(target, args);
        } finally {
          const entry = whole ?? entryOf(labelOf!(String(name), args));
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
