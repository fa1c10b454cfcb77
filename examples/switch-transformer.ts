/**
 * A Transformer block whose feed-forward sub-layer is a Switch layer (Fedus et al. 2021): one expert a token, with a capacity. What an expert has no room
 * for passes by on the residual connection. Attention is composed of the operations there are; the task is to say a sequence a second time, which a model
 * can only do by looking back. Prints the loss as it falls, the share of tokens dropped, and a sequence with what the model said.
 */

import {
  Adam,
  Embedding,
  LayerNorm,
  Linear,
  Module,
  MoE,
  add,
  affine,
  backward,
  linearCrossEntropy,
  matmul,
  noGrad,
  parameter,
  permute,
  randomUniform,
  reshape,
  scope,
  softmax,
  tensor,
  topK,
  transpose,
  type MoEOutput,
  type RunContext,
  type Tensor,
} from "sparsegate";

// Sequences of a batch, tokens of a sequence, vocabulary, width, heads.
const [B, T, V, D, H] = [16, 16, 12, 32, 2];

/** Multi-head attention in which a position sees itself and what came before. */
class CausalSelfAttention extends Module {
  readonly query = new Linear({ name: "query", inputSize: D, outputSize: D, bias: false });
  readonly key = new Linear({ name: "key", inputSize: D, outputSize: D, bias: false });
  readonly value = new Linear({ name: "value", inputSize: D, outputSize: D, bias: false });
  readonly output = new Linear({ name: "output", inputSize: D, outputSize: D });

  /** (B, T, D) to (B, T, D) */
  forward(x: Tensor): Tensor {
    // (B, T, D) → (B·H, T, D/H): each head of each sequence is a matrix of its own in the batched products.
    const heads = (y: Tensor): Tensor => reshape(permute(reshape(y, [B, T, H, D / H]), [0, 2, 1, 3]), [B * H, T, D / H]);
    const [q, k, v] = [this.query, this.key, this.value].map((layer) => heads(layer.forward(x)));
    // What must not be seen gets a logit that exp turns into 0.
    const mask = tensor(
      Array.from({ length: T * T }, (_, i) => (i % T > Math.floor(i / T) ? -1e9 : 0)),
      [T, T],
    );
    const weights = softmax(add(affine(matmul(q, transpose(k)), 1 / Math.sqrt(D / H)), mask));
    const mixed = permute(reshape(matmul(weights, v), [B, H, T, D / H]), [0, 2, 1, 3]);
    return this.output.forward(reshape(mixed, [B, T, D]));
  }
}

/** x + attention(norm(x)), then x + experts(norm(x)). */
class SwitchBlock extends Module {
  readonly attentionNorm = new LayerNorm({ name: "attentionNorm", hiddenSize: D });
  readonly attention = new CausalSelfAttention();
  readonly expertNorm = new LayerNorm({ name: "expertNorm", hiddenSize: D });
  readonly experts = new MoE({
    hiddenSize: D,
    numExperts: 8,
    expertHiddenSize: 2 * D,
    gate: "switch",
    capacityFactor: 1.25,
    evalCapacityFactor: 2,
  });

  forward(x: Tensor, context: RunContext): { output: Tensor; moe: MoEOutput } {
    const attended = add(x, this.attention.forward(this.attentionNorm.forward(x)));
    const moe = this.experts.forward(this.expertNorm.forward(attended), context);
    return { output: add(attended, moe.output), moe };
  }
}

class TinyTransformer extends Module {
  readonly embedding = new Embedding({ vocabSize: V, hiddenSize: D });
  readonly positions = parameter("positions", [T, D], { kind: "normal", std: 0.3 });
  readonly block = new SwitchBlock();
  readonly norm = new LayerNorm({ name: "finalNorm", hiddenSize: D });

  /** The last hidden values, (B·T, D). @param tokens int32 (B, T) */
  forward(tokens: Tensor, context: RunContext = this.ownContext()): { hidden: Tensor; moe: MoEOutput } {
    const x = add(this.embedding.forward(tokens), this.positions);
    const { output, moe } = this.block.forward(x, context);
    return { hidden: reshape(this.norm.forward(output), [B * T, D]), moe };
  }
}

/** 8 random tokens, and the same again. The target is the next token; the first half cannot be known and counts nothing (-1). */
function batch(step: number): { tokens: Int32Array; inputs: Tensor; targets: Tensor } {
  const half = T / 2;
  const random = randomUniform([B, half], 0, V, { seed: step }).dataSync();
  const at = (b: number, t: number): number => Math.floor(random[b * half + (t % half)]);
  const tokens = Int32Array.from({ length: B * T }, (_, i) => at(Math.floor(i / T), i % T));
  const targets = tokens.map((_, i) => (i % T < half - 1 || i % T === T - 1 ? -1 : at(Math.floor(i / T), (i % T) + 1)));
  return { tokens, inputs: tensor(tokens, [B, T], "int32"), targets: tensor(targets, [B * T], "int32") };
}

const model = new TinyTransformer();
const optimizer = new Adam(model.namedParameters());
console.log(`${model.numParameters()} parameters; loss of guessing ${Math.log(V).toFixed(2)}`);

const told = [1, 10, 20, 50, 100, 200, 300];
for (let step = 1; step <= 300; step++) {
  scope(() => {
    const { inputs, targets } = batch(step);
    const { hidden, moe } = model.forward(inputs);
    // Logits and cross-entropy in one operation. As in most Transformers, the embedding (V, D) is the output layer too.
    const loss = linearCrossEntropy(hidden, model.embedding.weight, undefined, targets);
    backward(add(loss, moe.auxLoss));
    optimizer.step(5e-3);
    optimizer.zeroGrad();
    if (!told.includes(step)) return;
    const taken = moe.routing.offsets.dataSync().at(-1)!; // rows that got a place, of the B·T that asked for one
    console.log(
      `step ${step}: loss ${loss.item().toFixed(3)}, ${((100 * (B * T - taken)) / (B * T)).toFixed(1)}% of tokens dropped`,
    );
  });
}

model.eval();
noGrad(() =>
  scope(() => {
    const { tokens, inputs, targets } = batch(0);
    const { hidden } = model.forward(inputs);
    const loss = linearCrossEntropy(hidden, model.embedding.weight, undefined, targets).item();
    const said = topK(matmul(hidden, transpose(model.embedding.weight)), 1).indices.dataSync();
    console.log(`sequence  ${tokens.slice(0, T).join(" ")}`);
    console.log(`said then ${Array.from(said.slice(T / 2 - 1, T - 1)).join(" ")} from its middle on, loss ${loss.toFixed(3)}`);
    if (!(loss < 0.5)) throw new Error(`expected a loss below 0.5, got ${loss}`);
  }),
);
