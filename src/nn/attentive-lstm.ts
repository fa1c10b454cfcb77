/** An LSTM layer that attends to a memory while it runs: the first decoder layer of GNMT (Wu et al. 2016), with either attention of Shazeer et al. 2017, App. G. */

import { checkInteger, checkOneOf } from "../core/checks.js";
import { TensorError } from "../core/errors.js";
import { attentiveLstm, type AttentionMemory, type AttentiveLstmOutput } from "../tensor/ops/attentive-lstm.js";
import { mul, tanh } from "../tensor/ops/elementwise.js";
import type { LstmState } from "../tensor/ops/lstm.js";
import { matmul } from "../tensor/ops/products.js";
import type { Tensor } from "../tensor/tensor.js";
import { Lstm, type LayerOptions } from "./layers.js";
import { Module, fanInUniform, parameter, type Init } from "./module.js";

/** product: Σ_d V_d·tanh((xU)_d)·tanh((yW)_d), the paper's, which is a matrix product; additive: Σ_d V_d·tanh((xU)_d + (yW)_d), GNMT's. */
export type AttentionKind = "product" | "additive";

/** The kinds of attention. */
export const ATTENTION_KINDS: readonly AttentionKind[] = ["product", "additive"];

/** Sizes of an `AttentiveLstm`. */
export interface AttentiveLstmOptions extends LayerOptions {
  /** Width D of the inputs. */
  inputSize: number;
  /** H, units. */
  hiddenSize: number;
  /** P, width of the projected output, which recurs and asks; none when left out. */
  projectionSize?: number | undefined;
  /** Width C of the memory. */
  memorySize: number;
  /** A, width of keys and queries. */
  attentionSize: number;
  kind?: AttentionKind;
  init?: Init;
}

/** One LSTM layer whose output of the step before asks, and whose gates are fed what was read. Sequences are (time, batch, width). */
export class AttentiveLstm extends Module {
  readonly kind: AttentionKind;
  readonly lstm: Lstm;
  /** (C, 4H) */
  readonly contextWeight: Tensor;
  /** W (P, A) */
  readonly queryWeight: Tensor;
  /** U (C, A) */
  readonly memoryWeight: Tensor;
  /** V (A) */
  readonly v: Tensor;

  constructor(options: AttentiveLstmOptions) {
    super();
    const { name = "attentiveLstm", seed = 0, inputSize, hiddenSize, projectionSize, memorySize, attentionSize, kind = "product", init } = options;
    checkInteger("AttentiveLstm", "memorySize", memorySize, { min: 1 });
    checkInteger("AttentiveLstm", "attentionSize", attentionSize, { min: 1 });
    this.kind = checkOneOf("AttentiveLstm", "kind", kind, ATTENTION_KINDS);
    this.lstm = new Lstm({ name: `${name}.lstm`, seed, inputSize, hiddenSize, projectionSize, ...(init ? { init } : {}) });
    this.contextWeight = parameter(`${name}.contextWeight`, [memorySize, 4 * hiddenSize], init ?? fanInUniform(memorySize), seed);
    this.queryWeight = parameter(`${name}.queryWeight`, [this.lstm.outputSize, attentionSize], init ?? fanInUniform(this.lstm.outputSize), seed);
    this.memoryWeight = parameter(`${name}.memoryWeight`, [memorySize, attentionSize], init ?? fanInUniform(memorySize), seed);
    this.v = parameter(`${name}.v`, [attentionSize], init ?? fanInUniform(attentionSize), seed);
  }

  /**
   * What is attended to, computed once for all steps.
   * @param values (S, B, C) @param bias (B, S) 0, and −1e30 in the padding
   */
  memory(values: Tensor, bias: Tensor): AttentionMemory {
    if (values.rank !== 3 || values.shape[2] !== this.memoryWeight.shape[0]) {
      throw new TensorError(`AttentiveLstm.memory: expected values (S, batch, ${this.memoryWeight.shape[0]}), got [${values.shape.join(", ")}].`);
    }
    const projected = matmul(values, this.memoryWeight);
    if (this.kind === "additive") return { values, keys: projected, bias, v: this.v };
    return { values, keys: mul(tanh(projected), this.v), bias };
  }

  /** @param x (T, B, D) @param state where to start, zeros when left out @param withContexts give what was read too @see attentiveLstm */
  forward(x: Tensor, memory: AttentionMemory, state?: LstmState, withContexts = false): AttentiveLstmOutput {
    const { inputWeight, recurrentWeight, bias, projection } = this.lstm;
    const { contextWeight, queryWeight } = this;
    return attentiveLstm(x, { inputWeight, recurrentWeight, bias, projection, contextWeight, queryWeight }, memory, state, withContexts);
  }
}
