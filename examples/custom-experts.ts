/**
 * Experts of your own: any module that maps (rows, D) to (rows, D). Here each is a gated linear unit with a residual path, and the layer learns a function
 * that is different on either side of a plane.
 */

import {
  Adam,
  Linear,
  Module,
  MoE,
  add,
  backward,
  mean,
  mul,
  randomNormal,
  scope,
  sigmoid,
  square,
  sub,
  tensor,
  type Tensor,
} from "sparsegate";

const D = 16;

class GatedExpert extends Module {
  readonly value: Linear;
  readonly gate: Linear;

  constructor(index: number) {
    super();
    // The name makes the starting weights: equal names would start equal.
    this.value = new Linear({ name: `expert.${index}.value`, inputSize: D, outputSize: D });
    this.gate = new Linear({ name: `expert.${index}.gate`, inputSize: D, outputSize: D });
  }

  forward(x: Tensor): Tensor {
    return add(x, mul(this.value.forward(x), sigmoid(this.gate.forward(x))));
  }
}

const moe = new MoE({ hiddenSize: D, numExperts: 4, topK: 2, experts: (index) => new GatedExpert(index) });
const optimizer = new Adam(moe.namedParameters());

/** What is to be learnt: 2x where x₀ > 0, −x elsewhere. */
function target(x: Tensor): Tensor {
  const values = Float32Array.from(x.dataSync());
  for (let row = 0; row < values.length; row += D) {
    const factor = values[row]! > 0 ? 2 : -1;
    for (let i = row; i < row + D; i++) values[i]! *= factor;
  }
  return tensor(values, x.shape);
}

let loss = Infinity;
for (let step = 1; step <= 300; step++) {
  loss = scope(() => {
    const x = randomNormal([128, D], { seed: step });
    const { output, auxLoss } = moe.forward(x);
    const error = mean(square(sub(output, target(x))));
    backward(add(error, auxLoss));
    optimizer.step(1e-2);
    optimizer.zeroGrad();
    return error.item();
  });
  if (step % 50 === 0) console.log(`step ${step}: mean squared error ${loss.toFixed(3)}`);
}
// The best single linear map, x/2, leaves 1.5² = 2.25 of every component but the first.
if (!(loss < 1)) throw new Error(`expected an error below 1, got ${loss}`);
