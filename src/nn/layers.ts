/** The ordinary layers: Linear, Embedding, LayerNorm, Dropout, LSTM. */

import { checkInteger, checkNumber } from "../core/checks.js";
import { TensorError } from "../core/errors.js";
import { streamId } from "../core/random.js";
import { add } from "../tensor/ops/elementwise.js";
import { lstm, type LstmState } from "../tensor/ops/lstm.js";
import { matmul } from "../tensor/ops/products.js";
import { dropout, dropoutRows } from "../tensor/ops/random.js";
import { layerNorm } from "../tensor/ops/reduce.js";
import { embedding } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import type { Tensor } from "../tensor/tensor.js";
import { fanInUniform, Module, parameter, type Init, type RunContext } from "./module.js";

/** What all layers take. */
export interface LayerOptions {
  /** Path in the model: names the parameters' random streams. Default: the class's name. */
  name?: string;
  seed?: number;
}

/** x·weight + bias over the last axis. weight is (inputSize, outputSize). */
export class Linear extends Module {
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;

  constructor(options: LayerOptions & { inputSize: number; outputSize: number; bias?: boolean; init?: Init }) {
    super();
    const { name = "linear", seed = 0, inputSize, outputSize, bias = true, init = fanInUniform(inputSize) } = options;
    checkInteger("Linear", "inputSize", inputSize, { min: 1 });
    checkInteger("Linear", "outputSize", outputSize, { min: 1 });
    this.weight = parameter(`${name}.weight`, [inputSize, outputSize], init, seed);
    this.bias = bias ? parameter(`${name}.bias`, [outputSize], { kind: "zeros" }, seed) : undefined;
  }

  /** x·weight + bias. @param x (..., inputSize) @returns (..., outputSize) */
  forward(x: Tensor): Tensor {
    const y = matmul(x, this.weight);
    return this.bias ? add(y, this.bias) : y;
  }
}

/** Rows of a table by index. The table's gradient holds only the rows in use. */
export class Embedding extends Module {
  readonly weight: Tensor;

  constructor(options: LayerOptions & { vocabSize: number; hiddenSize: number; init?: Init }) {
    super();
    const { name = "embedding", seed = 0, vocabSize, hiddenSize, init = { kind: "normal", std: 1 / Math.sqrt(hiddenSize) } } = options;
    checkInteger("Embedding", "vocabSize", vocabSize, { min: 1 });
    checkInteger("Embedding", "hiddenSize", hiddenSize, { min: 1 });
    this.weight = parameter(`${name}.weight`, [vocabSize, hiddenSize], init, seed);
  }

  /** @param index int32 of any shape; @returns (..., hiddenSize) */
  forward(index: Tensor): Tensor {
    return embedding(this.weight, index);
  }
}

/** Normalises the last axis to mean 0 and variance 1, then scales and shifts. */
export class LayerNorm extends Module {
  readonly gamma: Tensor;
  readonly beta: Tensor;
  readonly epsilon: number;

  constructor(options: LayerOptions & { hiddenSize: number; epsilon?: number }) {
    super();
    const { name = "layerNorm", hiddenSize, epsilon = 1e-5 } = options;
    this.epsilon = epsilon;
    checkInteger("LayerNorm", "hiddenSize", hiddenSize, { min: 1 });
    this.gamma = parameter(`${name}.gamma`, [hiddenSize], { kind: "ones" });
    this.beta = parameter(`${name}.beta`, [hiddenSize], { kind: "zeros" });
  }

  /** The rows of x, normalised. @param x (..., hiddenSize) @returns as x */
  forward(x: Tensor): Tensor {
    return layerNorm(x, this.gamma, this.beta, this.epsilon);
  }
}

/** Sets elements to zero at random while training, and scales the rest up. */
export class Dropout extends Module {
  readonly rate: number;
  readonly stream: number;

  constructor(rate: number, name = "dropout") {
    super();
    this.rate = checkNumber("Dropout", "rate", rate, { min: 0, max: 0.999 });
    this.stream = streamId("dropout", name);
  }

  /** The input itself outside training or at rate 0. */
  forward(x: Tensor, context: RunContext = this.ownContext()): Tensor {
    if (!context.training || this.rate === 0) return x;
    const width = x.shape.at(-1) ?? 1;
    const key = { seed: context.seed, stream: this.stream, step: context.step };
    if (!context.rowIds) return dropout(x, this.rate, key, context.firstRow * width);
    return reshape(dropoutRows(reshape(x, [-1, width]), this.rate, key, context.rowIds, context.firstRow), x.shape);
  }
}

/** One LSTM layer over a sequence (time, batch, inputSize), with an optional projection of its output (Sak et al. 2014). */
export class Lstm extends Module {
  readonly inputWeight: Tensor;
  readonly recurrentWeight: Tensor;
  readonly bias: Tensor;
  readonly projection: Tensor | undefined;
  readonly outputSize: number;

  /** @param options.projectionSize width of the projected output, which is what recurs; none when left out */
  constructor(options: LayerOptions & { inputSize: number; hiddenSize: number; projectionSize?: number | undefined; init?: Init }) {
    super();
    const { name = "lstm", seed = 0, inputSize, hiddenSize, projectionSize, init } = options;
    checkInteger("Lstm", "inputSize", inputSize, { min: 1 });
    checkInteger("Lstm", "hiddenSize", hiddenSize, { min: 1 });
    if (projectionSize !== undefined) checkInteger("Lstm", "projectionSize", projectionSize, { min: 1 });
    const recurrent = projectionSize ?? hiddenSize;
    this.outputSize = recurrent;
    this.inputWeight = parameter(`${name}.inputWeight`, [inputSize, 4 * hiddenSize], init ?? fanInUniform(inputSize), seed);
    this.recurrentWeight = parameter(`${name}.recurrentWeight`, [recurrent, 4 * hiddenSize], init ?? fanInUniform(recurrent), seed);
    this.bias = parameter(`${name}.bias`, [4 * hiddenSize], init ?? { kind: "zeros" }, seed);
    this.projection = projectionSize === undefined ? undefined : parameter(`${name}.projection`, [hiddenSize, projectionSize], init ?? fanInUniform(hiddenSize), seed);
  }

  /** @see lstm for shapes */
  forward(x: Tensor, state?: LstmState, resets?: Tensor): { output: Tensor; state: LstmState } {
    if (x.shape.at(-1) !== this.inputWeight.shape[0]) {
      throw new TensorError(`Lstm.forward: expected x of width ${this.inputWeight.shape[0]} (inputSize), got ${x.shape.at(-1)}.`);
    }
    return lstm(x, this, state, resets);
  }
}
