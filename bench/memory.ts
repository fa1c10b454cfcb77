/** Whether training leaks: resident memory from step 20 to step 1,000. */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { round, useCpu, type BenchResult, type Benchmark } from "./harness.js";
import { batches, makeTraining } from "./lm-step.js";
import { trainStep } from "#sparsegate/train/step.js";

/** Collects all garbage: what the program still holds is ours, what the runtime keeps for later garbage is not. */
function collect(): void {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
}

export const memory: Benchmark = {
  question: "does resident memory stay the same from step 20 to step 1,000 of training?",
  options: { steps: 1000, model: "MoE-32", hiddenSize: 64 },
  run({ steps, model, hiddenSize }): BenchResult {
    const backend = useCpu();
    const training = makeTraining(String(model), Number(hiddenSize), 2000);
    const next = batches(2000, 16, 32);
    const rows: BenchResult["rows"] = [];
    let [early, late] = [0, 0];
    for (let step = 1; step <= Number(steps); step++) {
      trainStep(training, next(), { seed: 0, learningRate: 1e-3, maxGradNorm: 1, sampledSoftmax: 500 });
      if (step !== 20 && step % Math.max(1, Number(steps) / 10) !== 0) continue;
      collect();
      const { rss, heapUsed } = process.memoryUsage();
      if (step === 20) early = rss;
      late = rss;
      rows.push({ step, "resident MiB": round(rss / 2 ** 20, 5), "heap MiB": round(heapUsed / 2 ** 20, 4), "tensors MiB": round(backend.memory().used / 2 ** 20, 5) });
    }
    backend.dispose();
    return { rows, targets: [{ name: `growth of resident memory from step 20 to ${steps}`, value: late / early - 1, bound: 0.01, atMost: true }], notes: [] };
  },
};
