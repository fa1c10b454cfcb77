/**
 * Many experts in two levels: 8 groups of 8 experts. A first gate picks 2 groups, a second one inside each picks 2 experts, so that a row looks at 8 + 2·8
 * gate weights instead of 64; with thousands of experts that is what keeps the gate cheap. The rows come in 8 families of 8 kinds, each kind with a map of
 * its own. Prints the error as it falls, the experts of some rows, and which groups the families went to.
 */

import {
  Adam,
  HierarchicalMoE,
  add,
  backward,
  mean,
  noGrad,
  randomNormal,
  scope,
  square,
  sub,
  tensor,
  type Tensor,
} from "sparsegate";

const [D, FAMILIES, KINDS, ROWS] = [16, 8, 64, 1024];
const moe = new HierarchicalMoE({ hiddenSize: D, numExperts: [8, 8], topK: [2, 2], expertHiddenSize: 32 });
const optimizer = new Adam(moe.namedParameters());
console.log(`${moe.numExperts} experts, ${moe.numParameters()} parameters`);

// Kinds of a family lie close together, families far apart.
const families = randomNormal([FAMILIES, D], { seed: 1, std: 3 }).dataSync();
const kinds = randomNormal([KINDS, D], { seed: 2 }).dataSync();
const signs = randomNormal([KINDS, D], { seed: 3 }).dataSync().map(Math.sign);
const kindOf = (row: number): number => row % KINDS;
const familyOf = (row: number): number => Math.floor(kindOf(row) / 8);

/** Rows of all kinds in turn, and what should come out: (ROWS, D) each. */
function batch(step: number): { x: Tensor; y: Tensor } {
  const x = randomNormal([ROWS, D], { seed: 100 + step, std: 0.3 }).dataSync();
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) {
    const [row, column] = [Math.floor(i / D), i % D];
    x[i] += families[familyOf(row) * D + column] + kinds[kindOf(row) * D + column];
    y[i] = x[i] * signs[kindOf(row) * D + column];
  }
  return { x: tensor(x, [ROWS, D]), y: tensor(y, [ROWS, D]) };
}

for (let step = 1; step <= 300; step++) {
  scope(() => {
    const { x, y } = batch(step);
    const { output, auxLoss } = moe.forward(x);
    const error = mean(square(sub(output, y)));
    backward(add(error, auxLoss));
    optimizer.step(1e-2);
    optimizer.zeroGrad();
    if (step % 100 === 0) console.log(`step ${step}: mean squared error ${error.item().toFixed(3)}`);
  });
}

moe.eval();
noGrad(() =>
  scope(() => {
    const { x, y } = batch(0);
    const { output, experts, gates, rowOffsets } = moe.forward(x);
    // Expert j of group i has the number 8·i + j. Assignments are a list in the order of rows; rowOffsets says where each row's begin.
    const [numbers, weights, starts] = [experts.dataSync(), gates.dataSync(), rowOffsets!.dataSync()];
    const groups = Array.from({ length: FAMILIES }, () => new Float64Array(8));
    for (let row = 0; row < ROWS; row++) {
      for (let i = starts[row]; i < starts[row + 1]; i++)
        groups[familyOf(row)][Math.floor(numbers[i] / 8)] += weights[i] * (FAMILIES / ROWS);
    }
    for (const row of [0, 64, 8, 9]) {
      const used = Array.from(numbers.slice(starts[row], starts[row + 1]), (e, i) => {
        return `${Math.floor(e / 8)}.${e % 8} × ${weights[starts[row] + i].toFixed(2)}`;
      });
      console.log(`row ${row}, family ${familyOf(row)}, kind ${kindOf(row)}: group.expert ${used.join(", ")}`);
    }
    for (const [family, shares] of groups.entries()) {
      console.log(`family ${family}: share of each group ${Array.from(shares, (share) => share.toFixed(2)).join(" ")}`);
    }
    const error = mean(square(sub(output, y))).item();
    console.log(`mean squared error ${error.toFixed(3)}`);
    if (!(error < 0.5)) throw new Error(`expected an error below 0.5, got ${error}`);
  }),
);
