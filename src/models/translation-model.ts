/**
 * The paper's translation model (Shazeer et al. 2017, App. E): GNMT (Wu et al. 2016) made small, with a mixture of experts in the encoder and one in the
 * decoder. With the MoE replaced it is the dense baseline of equal computation.
 */

import type { Communicator } from "../comm/communicator.js";
import { checkInteger, checkNumber, checkOneOf } from "../core/checks.js";
import { ConfigError, type NonFiniteError, TensorError, expectation } from "../core/errors.js";
import { MoE, type MoEOutput } from "../moe/layer.js";
import { addLosses } from "../moe/losses.js";
import { AttentiveLstm, type AttentionKind } from "../nn/attentive-lstm.js";
import { BidirectionalLstm, Lanes } from "../nn/bidirectional.js";
import { smoothedCrossEntropy } from "../nn/label-smoothing.js";
import { Dropout, Embedding, Lstm } from "../nn/layers.js";
import { Module, parameter, type RunContext } from "../nn/module.js";
import type { AttentionMemory } from "../tensor/ops/attentive-lstm.js";
import { add, mul, sigmoid } from "../tensor/ops/elementwise.js";
import type { LstmState } from "../tensor/ops/lstm.js";
import { matmul } from "../tensor/ops/products.js";
import { moveBack, moveRows, type RowMove } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import { scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import { empty, full, tensor, type Tensor } from "../tensor/tensor.js";
import { FeedForward, makeMoE, type MiddleConfig } from "./language-model.js";
import { explainNonFinite, type LayerWatch } from "./non-finite.js";

/** The decoder's layers that are fed what attention read. */
export type ContextTarget = "first" | "all";

/** All values of `ContextTarget`. */
export const CONTEXT_TARGETS: readonly ContextTarget[] = ["first", "all"];

/** Sizes and regularisation of a `TranslationModel`. */
export interface TranslationModelConfig {
  /** Of the vocabulary that source and target share. */
  vocabSize: number;
  /** Width of every layer's input and output. */
  hiddenSize: number;
  /** Units of an LSTM layer; with more than hiddenSize they are projected back. Each direction of the first layer has as many. */
  lstmSize: number;
  /** A, width of the attention's keys and queries. */
  attentionSize: number;
  attention: AttentionKind;
  /**
   * The decoder's layers that are fed what attention read: the first, as in the paper, or all. Those above the first take one projection of it, added to their
   * input, where GNMT (Wu et al. 2016) has weights for the gates of each. Left out: first.
   */
  contextTo?: ContextTarget;
  /** Between encoder layers 2 and 3, and once more between decoder layers 1 and 2: of each kind but `lstm`. */
  middle: MiddleConfig;
  /** On the output of embedding, LSTM and MoE. */
  dropout: number;
  /** Probability of a token, of the source or of what the decoder reads, to come without its embedding in training (Sennrich and Zhang 2019). Left out: 0, as in the paper. */
  wordDropout?: number;
  /** Sigmoid on the MoE's output (App. E). */
  sigmoid: boolean;
  /** Add the input of each LSTM and MoE to its output. */
  residual: boolean;
  /** Whether the softmax's weights are the embedding's. Source and target share one embedding in any case. */
  tied: boolean;
  /** ε of label smoothing; 0: none, as in the paper. */
  labelSmoothing: number;
  seed: number;
}

/** Sources of a batch, time first: position t of lane b at t · batchSize + b, the padding behind each sentence. */
export interface SourceBatch {
  readonly sources: Int32Array;
  readonly sourceLengths: Int32Array;
  readonly sourceSteps: number;
  readonly batchSize: number;
}

/** A batch of pairs, as `PairBatchStream` makes them. */
export interface TranslationBatch extends SourceBatch {
  /** On ranks: the lengths of all lanes of the batch, of which these are those from `first` on. Steps are those of the whole batch. */
  readonly whole?: { readonly first: number; readonly sourceLengths: Int32Array; readonly targetLengths: Int32Array };
  /** (targetSteps, batchSize) the id before each target. */
  readonly inputs: Int32Array;
  /** (targetSteps, batchSize) ids, −1 in the padding behind each sentence. */
  readonly targets: Int32Array;
  readonly targetSteps: number;
}

/** What a mixture did, with the rows of the batch that it saw: row r of the mixture is row packing.index[r] of the (time, batch) rectangle. */
export interface RoutedLayer {
  moe: MoEOutput;
  packing: RowMove | undefined;
}

/** States of the decoder's two layers, between steps. */
export type DecoderState = [attentive: LstmState, lstm: LstmState];

/** What `TranslationModel.forward` gives. */
export interface TranslationModelOutput {
  /** Mean loss over the targets in nats, what to train by: with label smoothing where there is some. */
  loss: Tensor;
  /** Mean cross-entropy, whose exponential is the perplexity. */
  crossEntropy: Tensor;
  /** Balance losses of both mixtures. */
  auxLoss?: Tensor;
  encoder?: RoutedLayer;
  decoder?: RoutedLayer;
}

const DROPOUTS = [
  "encoder.embedding",
  "encoder.lstm.0",
  "encoder.lstm.1",
  "encoder.middle",
  "encoder.lstm.2",
  "decoder.embedding",
  "decoder.lstm.0",
  "decoder.middle",
  "decoder.lstm.1",
];
const EVALUATION: RunContext = { training: false, seed: 0, step: 0, firstRow: 0 };

/** Encoder of three LSTM layers and decoder of two, with a mixture of experts (or what stands in its place) in each. */
export class TranslationModel extends Module {
  readonly config: TranslationModelConfig;
  readonly embedding: Embedding;
  readonly bidirectional: BidirectionalLstm;
  /** Encoder layers 2 and 3. */
  readonly encoderLstm: readonly [Lstm, Lstm];
  readonly encoderMiddle: MoE | FeedForward | undefined;
  readonly attentive: AttentiveLstm;
  readonly decoderMiddle: MoE | FeedForward | undefined;
  readonly decoderLstm: Lstm;
  /** (D, D) of what attention read, added to what the layers above the first take; with contextTo "all". */
  readonly upperContext: Tensor | undefined;
  /** (V, D), unless it is the embedding. */
  readonly softmaxWeight: Tensor | undefined;
  /** (V) */
  readonly softmaxBias: Tensor;
  readonly #dropouts: ReadonlyMap<string, Dropout>;
  readonly #wordDropouts: { readonly encoder: Dropout; readonly decoder: Dropout };

  /**
   * @param comm spreads the experts of both mixtures over its ranks, see `MoEOptions.comm`
   * @throws ConfigError for a size or rate that cannot be used, or a middle of LSTM layers
   */
  constructor(config: TranslationModelConfig, comm?: Communicator) {
    super();
    this.config = config;
    const where = "TranslationModel";
    const { vocabSize, hiddenSize, lstmSize, attentionSize, attention, middle, dropout, wordDropout = 0, labelSmoothing, tied, seed } = config;
    const contextTo = checkOneOf(where, "contextTo", config.contextTo ?? "first", CONTEXT_TARGETS);
    checkInteger(where, "vocabSize", vocabSize, { min: 2 });
    checkInteger(where, "hiddenSize", hiddenSize, { min: 1 });
    checkInteger(where, "lstmSize", lstmSize, { min: 1 });
    checkInteger(where, "attentionSize", attentionSize, { min: 1 });
    checkNumber(where, "dropout", dropout, { min: 0, max: 0.99 });
    checkNumber(where, "wordDropout", wordDropout, { min: 0, max: 0.99 });
    checkNumber(where, "labelSmoothing", labelSmoothing, { min: 0, max: 0.999 });
    if (!middle || (middle.kind !== "moe" && middle.kind !== "dense" && middle.kind !== "none")) throw new ConfigError(expectation(where, "a middle moe, dense or none", (middle as Partial<typeof middle> | undefined)?.kind));
    const makeMiddle = (name: string): MoE | FeedForward | undefined => {
      if (middle.kind === "moe") return makeMoE(middle, hiddenSize, seed, { name, where, comm });
      return middle.kind === "dense" ? new FeedForward({ hiddenSize, hiddenSizes: middle.hiddenSizes, name, seed }) : undefined;
    };
    const sizes = { seed, inputSize: hiddenSize, hiddenSize: lstmSize, projectionSize: lstmSize === hiddenSize ? undefined : hiddenSize };
    this.embedding = new Embedding({ name: "embedding", seed, vocabSize, hiddenSize });
    // Projected even where the others are not: so the sum of both directions is one projection of the units of both.
    this.bidirectional = new BidirectionalLstm({ ...sizes, name: "bidirectional", projectionSize: hiddenSize });
    this.encoderLstm = [new Lstm({ ...sizes, name: "encoderLstm.0" }), new Lstm({ ...sizes, name: "encoderLstm.1" })];
    this.encoderMiddle = makeMiddle("encoderMiddle");
    this.attentive = new AttentiveLstm({ ...sizes, name: "attentive", memorySize: hiddenSize, attentionSize, kind: attention });
    this.decoderMiddle = makeMiddle("decoderMiddle");
    this.decoderLstm = new Lstm({ ...sizes, name: "decoderLstm" });
    const byWidth = { kind: "normal", std: 1 / Math.sqrt(hiddenSize) } as const;
    this.upperContext = contextTo === "all" ? parameter("upperContext", [hiddenSize, hiddenSize], byWidth, seed) : undefined;
    this.softmaxWeight = tied ? undefined : parameter("softmaxWeight", [vocabSize, hiddenSize], byWidth, seed);
    this.softmaxBias = parameter("softmaxBias", [vocabSize], { kind: "zeros" }, seed);
    this.#dropouts = new Map(DROPOUTS.map((name) => [name, new Dropout(dropout, name)]));
    this.#wordDropouts = { encoder: new Dropout(wordDropout, "encoder.words"), decoder: new Dropout(wordDropout, "decoder.words") };
  }

  /** The encoder's mixture, then the decoder's, where there are some. */
  get mixtures(): MoE[] {
    return [this.encoderMiddle, this.decoderMiddle].filter((layer) => layer instanceof MoE);
  }

  /** What the decoder attends to. Positions of the padding are left out of everything. */
  encode(batch: SourceBatch & Pick<TranslationBatch, "whole">, context: RunContext = EVALUATION, watch: LayerWatch = () => {}): { memory: AttentionMemory; routed?: RoutedLayer } {
    const { sources, sourceLengths, sourceSteps: S, batchSize: B, whole } = batch;
    const lanes = new Lanes(sourceLengths, S, whole && { first: whole.first, lengths: whole.sourceLengths });
    const inLanes = withRowIds(context, lanes.rowIds());
    const drop = (x: Tensor, layer: string): Tensor => this.#drop(x, `encoder.${layer}`, inLanes, watch);
    const x0 = drop(this.#words("encoder", tensor(sources, [S, B], "int32"), inLanes), "embedding");
    const x1 = this.#residual(drop(this.bidirectional.forward(x0, lanes), "lstm.0"), x0);
    const x2 = this.#residual(drop(this.encoderLstm[0].forward(x1).output, "lstm.1"), x1);
    const { output: x3, routed } = this.#middle("encoder", this.encoderMiddle, x2, lanes.packing(), withRowIds(context, lanes.packedRowIds()), watch);
    const x4 = this.#residual(drop(this.encoderLstm[1].forward(x3).output, "lstm.2"), x3);
    return { memory: this.attentive.memory(x4, lanes.attentionBias()), ...(routed ? { routed } : {}) };
  }

  /**
   * The vectors that the softmax sees, for some steps of the decoder.
   * @param inputs int32 (T, B) @param state of the step before; the start when left out @param lanes which rows are no padding; all when left out
   * @returns output (T, B, D), the state after the last step, and attention (T, B, S)
   */
  decode(
    memory: AttentionMemory,
    inputs: Tensor,
    state?: DecoderState,
    { context = EVALUATION, lanes, watch = () => {} }: { context?: RunContext; lanes?: Lanes; watch?: LayerWatch } = {},
  ): { output: Tensor; state: DecoderState; attention: Tensor; routed?: RoutedLayer } {
    const inLanes = withRowIds(context, lanes?.rowIds());
    const drop = (x: Tensor, layer: string): Tensor => this.#drop(x, `decoder.${layer}`, inLanes, watch);
    const y0 = drop(this.#words("decoder", inputs, inLanes), "embedding");
    const attended = this.attentive.forward(y0, memory, state?.[0], this.upperContext !== undefined);
    let y1 = this.#residual(drop(attended.output, "lstm.0"), y0);
    if (this.upperContext) {
      const context = matmul(attended.contexts!, this.upperContext);
      watch("decoder.context", context);
      y1 = add(y1, context);
    }
    const { output: y2, routed } = this.#middle("decoder", this.decoderMiddle, y1, lanes?.packing(), withRowIds(context, lanes?.packedRowIds()), watch);
    const last = this.decoderLstm.forward(y2, state?.[1]);
    const y3 = this.#residual(drop(last.output, "lstm.1"), y2);
    return { output: y3, state: [attended.state, last.state], attention: attended.weights, ...(routed ? { routed } : {}) };
  }

  /** Logits (N, V) of rows (N, D): for decoding, detached from the tape. */
  logits(rows: Tensor): Tensor {
    const [classes, backend] = [this.#classes, rows.backend];
    const [N, D, V] = [rows.shape[0]!, this.config.hiddenSize, this.config.vocabSize];
    const logits = empty([N, V], "float32", backend);
    backend.gemm(false, true, N, V, D, 1, rows.buffer, D, classes.buffer, D, 0, logits.buffer, V);
    backend.binary("add", logits.buffer, { div: 1, mod: Math.max(N * V, 1) }, this.softmaxBias.buffer, { div: 1, mod: V }, logits.buffer, N * V);
    return logits;
  }

  /** Loss of predicting the targets. @throws TensorError for arrays of another size than the batch says */
  forward(batch: TranslationBatch, context: RunContext = this.ownContext(), watch: LayerWatch = () => {}): TranslationModelOutput {
    const { inputs, targets, targetSteps: T, batchSize: B } = batch;
    if (targets.length !== T * B) throw new TensorError(expectation("TranslationModel.forward", `${T * B} targets, ${T} steps (targetSteps) of ${B} sentences (batchSize)`, targets.length));
    const lengths = new Int32Array(B);
    targets.forEach((id, i) => (lengths[i % B]! += id >= 0 ? 1 : 0));
    const { whole } = batch;
    const lanes = new Lanes(lengths, T, whole && { first: whole.first, lengths: whole.targetLengths });
    const packing = lanes.packing();
    const encoded = this.encode(batch, context, watch);
    const decoded = this.decode(encoded.memory, tensor(inputs, [T, B], "int32"), undefined, { context, lanes, watch });
    const rows = moveRows(reshape(decoded.output, [-1, this.config.hiddenSize]), packing);
    const classes = Int32Array.from(packing.index.dataSync(), (row) => targets[row]!);
    const { loss, crossEntropy } = smoothedCrossEntropy(rows, this.#classes, this.softmaxBias, tensor(classes, [classes.length], "int32"), this.config.labelSmoothing);
    const auxLoss = decoded.routed && addLosses(encoded.routed?.moe.auxLoss, decoded.routed.moe.auxLoss);
    return {
      loss,
      crossEntropy,
      ...(auxLoss ? { auxLoss } : {}),
      ...(encoded.routed ? { encoder: encoded.routed } : {}),
      ...(decoded.routed ? { decoder: decoded.routed } : {}),
    };
  }

  /**
   * The error for a loss that is not finite, naming what is the first not to be: a parameter, or else a layer's output. It runs the model once more.
   * @param where what was being done, at the head of the message
   */
  explainNonFinite(where: string, loss: number, batch: TranslationBatch, context: RunContext): NonFiniteError {
    return explainNonFinite(this, where, loss, (watch) => void this.forward(batch, context, watch));
  }

  /** Takes part in what all ranks do in a mixture at once, where this one has no rows for it. */
  idle(part: "encoder" | "decoder"): void {
    const layer = part === "encoder" ? this.encoderMiddle : this.decoderMiddle;
    if (layer instanceof MoE) noGrad(() => scope(() => void layer.forward(empty([0, this.config.hiddenSize]), EVALUATION)));
  }

  get #classes(): Tensor {
    return this.softmaxWeight ?? this.embedding.weight;
  }

  /** Embeddings (T, B, D) of ids (T, B): in training those of some are zero, and the rest larger. */
  #words(part: "encoder" | "decoder", ids: Tensor, context: RunContext): Tensor {
    const embedded = this.embedding.forward(ids);
    const dropout = this.#wordDropouts[part];
    if (!context.training || dropout.rate === 0) return embedded;
    const kept = dropout.forward(full([ids.size, 1], 1, "float32", embedded.backend), context);
    return mul(embedded, reshape(kept, [...ids.shape, 1]));
  }

  #drop(x: Tensor, layer: string, context: RunContext, watch: LayerWatch): Tensor {
    watch(layer, x);
    return this.#dropouts.get(layer)!.forward(x, context);
  }

  #residual(y: Tensor, x: Tensor): Tensor {
    return this.config.residual ? add(y, x) : y;
  }

  /** Mixture or feed-forward network over all positions that count, at once. */
  #middle(part: "encoder" | "decoder", layer: MoE | FeedForward | undefined, x: Tensor, packing: RowMove | undefined, context: RunContext, watch: LayerWatch): { output: Tensor; routed?: RoutedLayer } {
    if (!layer) return { output: x };
    const all = reshape(x, [-1, this.config.hiddenSize]);
    const rows = packing ? moveRows(all, packing) : all;
    const routed = layer instanceof MoE ? { moe: layer.forward(rows, context), packing } : undefined;
    if (routed) watch(`${part}.gate`, routed.moe.gates, routed.moe.importance, routed.moe.load, routed.moe.auxLoss);
    const y = routed ? routed.moe.output : (layer as FeedForward).forward(rows);
    const joined = this.#residual(this.#drop(this.config.sigmoid ? sigmoid(y) : y, `${part}.middle`, context, watch), rows);
    return { output: reshape(packing ? moveRows(joined, moveBack(packing)) : joined, x.shape), ...(routed ? { routed } : {}) };
  }
}

/** A context for rows of one kind: numbered among those of all ranks, where there are several. */
function withRowIds(context: RunContext, rowIds: Tensor | undefined): RunContext {
  return rowIds ? { ...context, rowIds } : context;
}
