/**
 * How to see whether experts are in balance, and four ways to keep them so. The same lopsided task (some kinds of rows are far more common than others)
 * trains five layers: without any balancing, with the two losses of the paper, with biases that follow the load (no loss), with experts that choose their
 * rows, and with a limit on an expert's rows. Prints, for each, how the busiest expert compares with the mean and what that cost.
 */

import {
  Adam,
  MoE,
  add,
  backward,
  balanceStatistics,
  mean,
  noGrad,
  randomNormal,
  randomUniform,
  scope,
  square,
  sub,
  tensor,
  type MoEOptions,
  type Tensor,
} from "sparsegate";

const [D, E, K, KINDS, ROWS] = [16, 8, 2, 32, 512];

const layers: Record<string, Partial<MoEOptions>> = {
  // What a gate does when left to itself: experts that are used get better and are used more.
  "no balancing": { importanceWeight: 0, loadWeight: 0 },
  // The default weights. Larger ones make loads more even, and the gate less free to choose.
  "losses 0.1, 0.1": { importanceWeight: 0.1, loadWeight: 0.1 },
  // DeepSeek-V3: a bias for each expert, raised when it has too few rows; it decides who is chosen, not with which weight.
  "sigmoid, biases": { gate: { type: "sigmoid", biasUpdateRate: 0.01 } },
  // Each expert takes the same number of rows, those that suit it best: balanced by construction, but a row may get none.
  "expert choice": { gate: "expert-choice" },
  // GShard, Switch: what is above 1.25 times an even share is dropped. Its rows get a smaller output, or none: keep the residual around the layer.
  "capacity 1.25": { importanceWeight: 0, loadWeight: 0, capacityFactor: 1.25 },
};

const centres = randomNormal([KINDS, D], { seed: 1, std: 2 }).dataSync();
const signs = randomNormal([KINDS, D], { seed: 2 }).dataSync().map(Math.sign);

/** Rows about the centres of their kinds, kind 0 the most common (half of all rows are of 5 kinds), and what should come out: (ROWS, D) each. */
function batch(step: number): { x: Tensor; y: Tensor } {
  const kinds = randomUniform([ROWS], 0, 1, { seed: 10_000 + step })
    .dataSync()
    .map((u) => Math.floor(KINDS ** u) - 1);
  const x = randomNormal([ROWS, D], { seed: 100 + step, std: 0.5 }).dataSync();
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) {
    const at = kinds[Math.floor(i / D)] * D + (i % D);
    x[i] += centres[at];
    y[i] = x[i] * signs[at];
  }
  return { x: tensor(x, [ROWS, D]), y: tensor(y, [ROWS, D]) };
}

const format = (cells: readonly (string | number)[]): string =>
  cells.map((cell, i) => (i === 0 ? String(cell).padEnd(16) : String(cell).padStart(14))).join("");

const busiest = new Map<string, number>();
console.log(format(["", "max/mean load", "CV importance", "unused", "dropped", "error", "  rows of each expert"]));
for (const [name, options] of Object.entries(layers)) {
  const moe = new MoE({ hiddenSize: D, numExperts: E, topK: K, expertHiddenSize: 32, ...options });
  const optimizer = new Adam(moe.namedParameters());
  for (let step = 1; step <= 200; step++) {
    scope(() => {
      const { x, y } = batch(step);
      const { output, auxLoss } = moe.forward(x);
      backward(add(mean(square(sub(output, y))), auxLoss));
      optimizer.step(1e-2);
      optimizer.zeroGrad();
    });
  }
  moe.eval();
  noGrad(() =>
    scope(() => {
      const { x, y } = batch(0);
      const { output, importance, load, routing, experts } = moe.forward(x);
      // importance and load tell what the gate asked for; in evaluation load is counted. routing tells what each expert got.
      const { maxOverMeanLoad, cvImportance, unused } = balanceStatistics(importance.dataSync(), load.dataSync());
      const offsets = routing.offsets.dataSync();
      const rows = Array.from(load.dataSync());
      const dropped = 1 - offsets[E] / rows.reduce((sum, n) => sum + n, 0);
      const error = mean(square(sub(output, y))).item();
      console.log(
        format([
          name,
          maxOverMeanLoad.toFixed(2),
          cvImportance.toFixed(2),
          unused,
          `${(100 * dropped).toFixed(1)}%`,
          error.toFixed(3),
          `  ${rows.join(" ")}`,
        ]),
      );
      busiest.set(name, maxOverMeanLoad);
      // A dropped assignment is expert -1.
      if (dropped > 0 !== experts.dataSync().includes(-1)) throw new Error("expected dropped assignments to be marked");
    }),
  );
  moe.dispose();
}
if (!(busiest.get("losses 0.1, 0.1")! < busiest.get("no balancing")!))
  throw new Error("expected the losses to even out the loads");
