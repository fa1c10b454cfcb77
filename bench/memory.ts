/** Whether training leaks: resident memory from step 20 to step 1,000. */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { UsageError, round, useCpu, type BenchResult, type Benchmark } from "./harness.js";
import { batches, makeTraining } from "./lm-step.js";
import { trainStep } from "#sparsegate/train/step.js";

/** Collects all garbage: what the program still holds is ours, what the runtime keeps for later garbage is not. */
function collect(): void {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
}

/**
 * Lets V8's young generation grow to its full size, some 40 MiB, before anything is measured: it does so in every program that makes objects, after
 * seconds or minutes, and would hide a leak of ours or pass for one.
 */
function growYoungGeneration(): void {
  let kept: object[] = [];
  for (let i = 0; i < 4e6; i++) {
    kept.push({ i });
    if (kept.length === 2e5) kept = [];
  }
  collect();
}

const VOCABULARY = 2000;
const SETTINGS = { seed: 0, learningRate: 1e-3, maxGradNorm: 1, sampledSoftmax: 500 };

/** Steps after which V8 has compiled what training runs, WebAssembly included: what it keeps of that, some 9 MiB, is not training's to give back. */
const COMPILED = 200;

/** Trains a small model, so that everything that a step runs has been compiled before anything is measured. */
function compile(): void {
  const training = makeTraining("MoE-4", 64, VOCABULARY);
  const next = batches(VOCABULARY, 16, 16);
  for (let step = 1; step <= COMPILED; step++) trainStep(training, next(), SETTINGS);
  training.optimizer.dispose();
  training.model.dispose();
}

/** The step from which on nothing may grow. */
const EARLY = 20;

export const memory: Benchmark = {
  question: "does resident memory stay the same from step 20 to step 1,000 of training?",
  options: { steps: 1000, model: "MoE-256", hiddenSize: 256 },
  run({ steps, model, hiddenSize }): BenchResult {
    if (!(Number(steps) >= 2 * EARLY)) throw new UsageError(`expected --steps to be at least ${2 * EARLY}, got ${steps}.`);
    growYoungGeneration();
    const backend = useCpu();
    compile();
    const training = makeTraining(String(model), Number(hiddenSize), VOCABULARY);
    const next = batches(VOCABULARY, 16, 16);
    const rows: BenchResult["rows"] = [];
    let [early, late] = [0, 0];
    for (let step = 1; step <= Number(steps); step++) {
      trainStep(training, next(), SETTINGS);
      if (step !== EARLY && step % Math.max(1, Number(steps) / 10) !== 0) continue;
      collect();
      const { rss, heapUsed } = process.memoryUsage();
      if (step === EARLY) early = rss;
      late = rss;
      rows.push({
        step,
        "resident MiB": round(rss / 2 ** 20, 5),
        "heap MiB": round(heapUsed / 2 ** 20, 4),
        "tensors MiB": round(backend.memory().used / 2 ** 20, 5),
      });
    }
    backend.dispose();
    return {
      rows,
      targets: [
        { name: `growth of resident memory from step ${EARLY} to ${steps}`, value: late / early - 1, bound: 0.01, atMost: true },
      ],
      notes: [],
    };
  },
};
