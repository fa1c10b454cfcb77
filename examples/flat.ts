/**
 * The layer by itself: 16 experts, of which each row uses 2. The task is one that no single linear map solves: every row belongs to one of 16 kinds, and
 * each kind has a map of its own. Prints the error as it falls, and what the gate decided.
 *
 * For readers who know PyTorch: `scope` takes the place of garbage collection (what a step makes is freed when it ends), `forward` is called by name, and
 * the gradients are where you expect them, in `parameter.grad`.
 */

import { Adam, MoE, add, backward, mean, noGrad, randomNormal, scope, square, sub, tensor, type Tensor } from "sparsegate";

const [D, KINDS, ROWS] = [16, 16, 512];
const moe = new MoE({ hiddenSize: D, numExperts: 16, topK: 2, expertHiddenSize: 32 });
const optimizer = new Adam(moe.namedParameters());

const gates = moe.gate.numParameters();
const perExpert = (moe.numParameters() - gates) / moe.numExperts;
console.log(`${moe.numParameters()} parameters; a row uses ${gates + 2 * perExpert} of them: the gate's and 2 experts'`);

// Fixed random numbers: the centre of each kind, and the signs by which it multiplies a row.
const centres = randomNormal([KINDS, D], { seed: 1, std: 2 }).dataSync();
const signs = randomNormal([KINDS, D], { seed: 2 }).dataSync().map(Math.sign);

/** Rows of all kinds in turn, scattered about their centres, and what should come out: (ROWS, D) each. */
function batch(step: number): { x: Tensor; y: Tensor } {
  const x = Float32Array.from(randomNormal([ROWS, D], { seed: 100 + step }).dataSync());
  for (let i = 0; i < x.length; i++) x[i] += centres[(Math.floor(i / D) % KINDS) * D + (i % D)];
  const y = x.map((value, i) => value * signs[(Math.floor(i / D) % KINDS) * D + (i % D)]);
  return { x: tensor(x, [ROWS, D]), y: tensor(y, [ROWS, D]) };
}

for (let step = 1; step <= 300; step++) {
  scope(() => {
    const { x, y } = batch(step);
    // auxLoss holds the balance losses, already weighted: without it a few experts would get all rows (see balance.ts).
    const { output, auxLoss } = moe.forward(x);
    const error = mean(square(sub(output, y)));
    backward(add(error, auxLoss));
    optimizer.step(1e-2);
    optimizer.zeroGrad();
    if (step % 50 === 0) console.log(`step ${step}: mean squared error ${error.item().toFixed(3)}`);
  });
}

// As model.eval() and torch.no_grad(): no noise in the gate, no tape.
moe.eval();
noGrad(() =>
  scope(() => {
    const { x, y } = batch(0);
    const { output, experts, gates: weights, routing } = moe.forward(x);
    const [chosen, weight] = [experts.dataSync(), weights.dataSync()];
    for (const row of [0, 16, 1, 17]) {
      const pairs = [0, 1].map((j) => `expert ${chosen[2 * row + j]} × ${weight[2 * row + j].toFixed(2)}`);
      console.log(`row ${row}, kind ${row % KINDS}: ${pairs.join(" + ")}`);
    }
    const offsets = routing.offsets.dataSync();
    console.log(`rows of each expert: ${Array.from({ length: 16 }, (_, e) => offsets[e + 1] - offsets[e]).join(" ")}`);
    const error = mean(square(sub(output, y))).item();
    console.log(`mean squared error ${error.toFixed(3)}`);
    // The best single linear map leaves about 2.3.
    if (!(error < 1)) throw new Error(`expected an error below 1, got ${error}`);
  }),
);
