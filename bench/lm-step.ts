/** A training step of the paper's MoE-256 language model: tokens per second, and the share of the time that is inside matrix products. */

import type { Communicator } from "#sparsegate/comm/index.js";
import type { CpuBackendOptions } from "#sparsegate/backend/cpu/index.js";
import { LanguageModel } from "#sparsegate/models/language-model.js";
import { presetMiddle } from "#sparsegate/models/presets.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import { setDefaultBackend } from "#sparsegate/tensor/index.js";
import type { Batch } from "#sparsegate/text/batches.js";
import { trainStep, type TrainingState } from "#sparsegate/train/step.js";
import { PRODUCTS, profiled, round, shareOf, timingOf, useCpu, type BenchResult, type Benchmark } from "./harness.js";

/** Of the model and its batches. */
export const SIZES = { model: "MoE-256", hiddenSize: 512, timeSteps: 32, batchSize: 128, vocabSize: 32000, sampled: 8192 };

/** A made-up text of Zipfian words, so that embeddings and the sampled softmax see rows in use as unevenly as with a real one. */
export function batches(vocabSize: number, timeSteps: number, batchSize: number): () => Batch {
  let state = 1;
  let rows = 0;
  const draw = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.min(vocabSize - 1, Math.floor(Math.exp((state / 2 ** 32) * Math.log(vocabSize + 1))) - 1);
  };
  return () => {
    const size = timeSteps * batchSize;
    const batch = {
      inputs: Int32Array.from({ length: size }, draw),
      targets: Int32Array.from({ length: size }, draw),
      resets: new Int32Array(size),
      timeSteps,
      batchSize,
      tokens: size,
      firstRow: rows,
    };
    rows += size;
    return batch;
  };
}

/** The model of the question, at a width that leaves room for the optimiser's state in one memory. */
export function makeTraining(model: string, hiddenSize: number, vocabSize: number, comm?: Communicator): TrainingState {
  const middle = presetMiddle(model, { hiddenSize });
  const lm = new LanguageModel(
    {
      vocabSize,
      hiddenSize,
      lstmSize: hiddenSize,
      middle,
      dropout: 0.1,
      sigmoid: true,
      residual: true,
      seed: 0,
    },
    comm,
  );
  const optimizer = new Adam(lm.namedParameters(), { factored: (name) => /^moe\.experts\..*Weight$/.test(name) });
  return { model: lm, optimizer, states: undefined, comm };
}

export const lmStep: Benchmark = {
  question:
    "how many tokens a second does MoE-256 (width 512, hidden 1024) train on, and how much of a step is inside matrix products?",
  options: { ...SIZES, steps: 7, wasm: "yes" },
  run({ model, hiddenSize, timeSteps, batchSize, vocabSize, sampled, steps, wasm }): BenchResult {
    const rows: BenchResult["rows"] = [];
    const targets: BenchResult["targets"] = [];
    const notes: string[] = [];
    const measure = (label: string, options: CpuBackendOptions, count: number): void => {
      const cpu = useCpu(options);
      const { backend, profile } = profiled(cpu);
      setDefaultBackend(backend);
      const training = makeTraining(String(model), Number(hiddenSize), Number(vocabSize));
      const next = batches(Number(vocabSize), Number(timeSteps), Number(batchSize));
      const settings = { seed: 0, learningRate: 1e-3, maxGradNorm: undefined, sampledSoftmax: Number(sampled) };
      for (let i = 0; i < 2; i++) trainStep(training, next(), settings);
      for (const entry of profile.values()) Object.assign(entry, { ms: 0, calls: 0 });
      const seconds: number[] = [];
      for (let i = 0; i < count; i++) {
        const batch = next();
        const begun = performance.now();
        trainStep(training, batch, settings);
        seconds.push((performance.now() - begun) / 1000);
      }
      const total = 1000 * seconds.reduce((sum, s) => sum + s, 0);
      const { median, fastest, slowest } = timingOf(seconds);
      const products = shareOf(profile, total, PRODUCTS);
      const tokens = Number(timeSteps) * Number(batchSize);
      rows.push({
        products: label,
        "tokens/s": Math.round(tokens / median),
        "ms/step": round(1000 * median),
        fastest: round(1000 * fastest),
        slowest: round(1000 * slowest),
        "inside products": round(products),
        "peak GiB": round(cpu.memory().peak / 2 ** 30),
      });
      if (process.env["BENCH_PROFILE"]) {
        for (const [name, { ms, calls }] of [...profile].sort((a, b) => b[1].ms - a[1].ms).slice(0, 25))
          console.error(`${name.padEnd(22)} ${(ms / count).toFixed(2)} ms  ${calls / count} calls`);
      }
      if (label !== "WebAssembly")
        targets.push({ name: `share of the step inside matrix products (${label})`, value: products, bound: 0.6 });
      notes.push(`${label}: ${cpu.description}`);
      cpu.dispose();
    };
    const probe = useCpu();
    const { found } = probe.blas;
    probe.dispose();
    if (found) measure(found.name, {}, Number(steps));
    else notes.push("no CBLAS here: measured with WebAssembly alone");
    if (wasm === "yes" || !found) measure("WebAssembly", { blas: "none" }, Math.max(3, Math.floor(Number(steps) / 2)));
    return { rows, targets, notes };
  },
};
