/** Matrix products: the WebAssembly kernel against TF.js's, and what our way to the CBLAS costs. */

import type { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { interleave, ratio, round, useCpu, type BenchResult, type Benchmark } from "./harness.js";
import { npmPeer } from "./peers/peer.js";

const SHAPES = [
  [1024, 1024, 1024],
  [16, 512, 1024],
  [2048, 512, 64],
  [32, 1024, 512],
] as const;
/** Shapes that the peer is compared on (m × k × n = 1024³ and 16 × 1024 × 512). */
const COMPARED = 2;

interface Tfjs {
  setBackend(name: string): Promise<boolean>;
  ready(): Promise<void>;
  matMul(a: unknown, b: unknown): { dispose(): void; dataSync(): ArrayLike<number> };
  randomUniform(shape: readonly number[]): unknown;
}

function product(backend: CpuBackend, m: number, n: number, k: number): { ours: () => void; direct: (() => void) | undefined } {
  const [a, b, c] = [m * k, k * n, m * n].map((size) => backend.alloc("float32", size)) as [
    ReturnType<CpuBackend["alloc"]>,
    ReturnType<CpuBackend["alloc"]>,
    ReturnType<CpuBackend["alloc"]>,
  ];
  for (const [i, buf] of [a, b].entries()) backend.randomUniform(buf, buf.length, { seed: i, stream: 1, step: 0 }, 0, -1, 1);
  const { found } = backend.blas;
  const at = found ? ([a, b, c].map((buf) => backend.addressOf(buf)) as [number, number, number]) : undefined;
  return {
    ours: () => backend.gemm(false, false, m, n, k, 1, a, k, b, n, 0, c, n),
    direct: found && at ? () => found.sgemm(false, false, m, n, k, 1, at[0], k, at[1], n, 0, at[2], n) : undefined,
  };
}

/** Calls so that one timing lasts some milliseconds. */
const repeats = (m: number, n: number, k: number): number => Math.max(1, Math.round(3e8 / (2 * m * n * k)));

export const gemm: Benchmark = {
  question: "is the WebAssembly product as fast as TF.js's on one thread, and does CBLAS lose nothing on the way?",
  options: { rounds: 15, install: "no" },
  async run({ rounds, install }): Promise<BenchResult> {
    const blas = useCpu({ threads: 1 });
    const wasm = useCpu({ threads: 1, blas: "none" });
    const found = npmPeer({ "@tensorflow/tfjs": "4.22.0", "@tensorflow/tfjs-backend-wasm": "4.22.0" }, install === "yes");
    // That `wasm` has no CBLAS was asked for.
    const notes = [`kernels: ${wasm.description}`, ...wasm.notes.filter((note) => !note.startsWith("No CBLAS")), ...blas.notes];
    let tf: Tfjs | undefined;
    if ("missing" in found) notes.push(`TF.js was not measured: ${found.missing}`);
    else {
      tf = found.modules["@tensorflow/tfjs"] as Tfjs;
      (found.modules["@tensorflow/tfjs-backend-wasm"] as { setThreadsCount(n: number): void }).setThreadsCount(1);
      await tf.setBackend("wasm");
      await tf.ready();
    }
    const rows: BenchResult["rows"] = [];
    const targets: BenchResult["targets"] = [];
    for (const [i, [m, n, k]] of SHAPES.entries()) {
      const calls = repeats(m, n, k);
      // The first call brings the operands into the caches, where the case before may or may not have left them.
      const many = (call: () => void) => (): Promise<number> => {
        call();
        const begun = performance.now();
        for (let j = 0; j < calls; j++) call();
        return Promise.resolve((performance.now() - begun) / 1000);
      };
      const cases: Record<string, () => unknown> = { wasm: many(product(wasm, m, n, k).ours) };
      const { ours, direct } = product(blas, m, n, k);
      if (direct) Object.assign(cases, { cblas: many(ours), direct: many(direct) });
      if (tf && i < COMPARED) {
        const [a, b] = [tf.randomUniform([m, k]), tf.randomUniform([k, n])];
        cases["tfjs"] = many(() => tf.matMul(a, b).dispose());
      }
      const times = await interleave(cases, { rounds: Number(rounds) });
      const rate = (name: string): number | null =>
        times[name] ? round((2 * m * n * k * calls) / times[name].median / 1e9) : null;
      rows.push({
        "m × k × n": `${m} × ${k} × ${n}`,
        "wasm GF/s": rate("wasm"),
        "tfjs GF/s": rate("tfjs"),
        "cblas GF/s": rate("cblas"),
        "library called directly GF/s": rate("direct"),
      });
      if (times["tfjs"])
        targets.push({
          name: `WebAssembly rate over TF.js's, ${m} × ${k} × ${n}`,
          value: ratio(times["tfjs"], times["wasm"]!),
          bound: 1,
        });
      if (times["direct"])
        targets.push({
          name: `CBLAS rate over a direct call's, ${m} × ${k} × ${n}`,
          value: ratio(times["direct"], times["cblas"]!),
          bound: 0.95,
        });
    }
    blas.dispose();
    wasm.dispose();
    return { rows, targets, notes };
  },
};
