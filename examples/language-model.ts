/**
 * The paper's language model without the command line: a text of your own tokens, a loop of your own, and the perplexity at the end. The text repeats
 * itself, so a model that remembers reaches a perplexity near 1.
 */

import {
  Adam,
  LanguageModel,
  add,
  backward,
  clipScale,
  inverseSquareRoot,
  noGrad,
  presetMiddle,
  scope,
  tensor,
} from "sparsegate";

const [T, B, V] = [16, 8, 12]; // time steps, lanes, vocabulary
const motif = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 11];
const hiddenSize = 32;

const model = new LanguageModel({
  vocabSize: V,
  hiddenSize,
  lstmSize: hiddenSize,
  middle: presetMiddle("MoE-8", { hiddenSize, topK: 2 }),
  dropout: 0,
  sigmoid: true,
  residual: true,
  seed: 1,
});
const optimizer = new Adam(model.namedParameters());
const rate = inverseSquareRoot(1e-2, 20);

/** Lane b reads the motif from its b-th note on; the target is the next note. Time first: position t of lane b is at t·B + b. */
function batch() {
  const note = (t: number, b: number): number => motif[(t + b) % motif.length]!;
  const at = (shift: number): number[] => Array.from({ length: T * B }, (_, i) => note(Math.floor(i / B) + shift, i % B));
  return { inputs: tensor(at(0), [T, B], "int32"), targets: tensor(at(1), [T, B], "int32") };
}

for (let step = 1; step <= 120; step++) {
  scope(() => {
    const { loss, auxLoss } = model.forward(batch());
    backward(auxLoss ? add(loss, auxLoss) : loss);
    const { scale } = clipScale(model.parameters(), 1);
    optimizer.step(rate(step), scale);
    optimizer.zeroGrad();
    if (step % 30 === 0) console.log(`step ${step}: perplexity ${Math.exp(loss.item()).toFixed(2)}`);
  });
}

model.eval();
const perplexity = noGrad(() => scope(() => Math.exp(model.forward(batch()).loss.item())));
console.log(`${model.numParameters()} parameters, perplexity ${perplexity.toFixed(3)}`);
if (!(perplexity < 1.2)) throw new Error(`expected a perplexity below 1.2, got ${perplexity}`);
