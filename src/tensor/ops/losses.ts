/**
 * Losses over large vocabularies. The projection to the vocabulary and the cross-entropy are one operation, done for a few rows at a time, so
 * that logits of all rows never exist together; the gradient is taken while a chunk's logits are at hand.
 */

import { ConfigError, TensorError } from "../../core/errors.js";
import { checkOperands } from "../shapes.js";
import { needsGrad, record } from "../tape.js";
import { empty, full, tensor, zeros, type Gradient, type Tensor } from "../tensor.js";
import { scope } from "../scope.js";
import { rowGradient } from "./rows.js";

/** Logits that exist at once: 32 MiB of float32. */
const CHUNK_ELEMENTS = 8 * 2 ** 20;

/** How many targets count, and rows per chunk. @throws TensorError for shapes that do not fit or a target outside the vocabulary */
function prepare(where: string, x: Tensor, weight: Tensor, bias: Tensor | undefined, targets: Tensor, columns: number): { n: number; d: number; v: number; counted: number; chunk: number } {
  checkOperands(where, "float32", x, weight, ...(bias ? [bias] : []));
  checkOperands(where, "int32", targets);
  const [n, d] = x.shape as [number, number];
  const [v, width] = weight.shape as [number, number];
  if (x.rank !== 2 || weight.rank !== 2 || width !== d) {
    throw new TensorError(`${where}: expected x (N, D) and weight (V, D), got [${x.shape.join(", ")}] and [${weight.shape.join(", ")}].`);
  }
  if (bias && bias.size !== v) throw new TensorError(`${where}: expected bias (${v}), got [${bias.shape.join(", ")}].`);
  if (targets.size !== n) throw new TensorError(`${where}: expected ${n} targets (one a row), got ${targets.size}.`);
  let counted = 0;
  const list = targets.dataSync();
  for (let i = 0; i < n; i++) {
    const t = list[i]!;
    if (t >= v || t < -1) throw new TensorError(`${where}: expected targets from -1 (ignored) to ${v - 1}, got ${t} at row ${i}.`);
    if (t >= 0) counted++;
  }
  return { n, d, v, counted, chunk: Math.max(1, Math.min(n, Math.floor(CHUNK_ELEMENTS / Math.max(columns, 1)))) };
}

/** y = dy·saved for a scalar dy: the gradient was taken in the forward pass for dy = 1. */
function scaled(saved: Tensor | undefined, dy: Tensor): Tensor | undefined {
  if (!saved) return undefined;
  const y = empty(saved.shape, "float32", saved.backend);
  const n = saved.size;
  saved.backend.binary("mul", saved.buffer, { div: 1, mod: Math.max(n, 1) }, dy.buffer, { div: 1, mod: 1 }, y.buffer, n);
  return y;
}

/**
 * Mean cross-entropy of softmax(x·weightᵀ + bias) against the targets, in nats.
 *
 * @param x (N, D); @param weight (V, D); @param bias (V); @param targets int32 (N), -1 leaves a row out
 * @returns a scalar; 0 when no target counts. At most CHUNK_ELEMENTS logits exist at once.
 */
export function linearCrossEntropy(x: Tensor, weight: Tensor, bias: Tensor | undefined, targets: Tensor): Tensor {
  const { n, d, v, counted, chunk } = prepare("linearCrossEntropy", x, weight, bias, targets, weight.shape[0]!);
  const backend = x.backend;
  const wants = needsGrad(x, weight, bias);
  const dx = wants && x.requiresGrad ? empty([n, d], "float32", backend) : undefined;
  const dWeight = wants && weight.requiresGrad ? zeros([v, d], "float32", backend) : undefined;
  const dBias = wants && bias?.requiresGrad ? zeros([v], "float32", backend) : undefined;
  const losses = empty([n], "float32", backend);
  scope(() => {
    const logits = empty([chunk, v], "float32", backend);
    const partial = dBias ? empty([v], "float32", backend) : undefined;
    for (let start = 0; start < n; start += chunk) {
      const rows = Math.min(chunk, n - start);
      const xs = x.buffer.at(start * d);
      backend.gemm(false, true, rows, v, d, 1, xs, d, weight.buffer, d, 0, logits.buffer, v);
      const whole = { div: 1, mod: rows * v };
      if (bias) backend.binary("add", logits.buffer, whole, bias.buffer, { div: 1, mod: v }, logits.buffer, rows * v);
      backend.crossEntropy(logits.buffer, targets.buffer.at(start), losses.buffer.at(start), rows, v, wants ? 1 / Math.max(counted, 1) : 0);
      if (dx) backend.gemm(false, false, rows, d, v, 1, logits.buffer, v, weight.buffer, d, 0, dx.buffer.at(start * d), d);
      if (dWeight) backend.gemm(true, false, v, d, rows, 1, logits.buffer, v, xs, d, 1, dWeight.buffer, d);
      if (dBias && partial) {
        backend.spreadSum(logits.buffer, { div: 1, mod: v }, 1, partial.buffer, rows * v);
        backend.axpy(1, partial.buffer, dBias.buffer, v);
      }
    }
  });
  const loss = empty([], "float32", backend);
  backend.spreadSum(losses.buffer, { div: 1, mod: 1 }, 1 / Math.max(counted, 1), loss.buffer, n);
  return record("linearCrossEntropy", loss, bias ? [x, weight, bias] : [x, weight], (dy) => [scaled(dx, dy), scaled(dWeight, dy), scaled(dBias, dy)]);
}

/** Classes drawn for one step of sampled softmax, with the logarithm of how often each is expected in the sample. */
export interface Candidates {
  /** (S) int32, distinct classes. */
  samples: Int32Array;
  /** (S) log expected count of each sample. */
  logExpected: Float32Array;
  /** log expected count of any class: the correction of the true class. */
  logExpectedOf(target: number): number;
}

/**
 * Sampled softmax (Jean et al. 2015; importance sampling in Shazeer et al. 2017, App. C): the softmax over the true class and the sampled
 * ones, each logit less the log of its expected count, which makes the gradient an estimate of the full softmax's. Samples equal to the
 * row's target are left out. For training only; evaluate with `linearCrossEntropy`.
 *
 * The gradients of weight and bias hold only the rows of samples and targets.
 */
export function sampledCrossEntropy(x: Tensor, weight: Tensor, bias: Tensor | undefined, targets: Tensor, candidates: Candidates): Tensor {
  const where = "sampledCrossEntropy";
  const s = candidates.samples.length;
  if (s === 0) throw new ConfigError(`${where}: expected at least one sampled class, got none.`);
  const { n, d, v, counted, chunk } = prepare(where, x, weight, bias, targets, s);
  for (const c of candidates.samples) if (!(c >= 0 && c < v)) throw new TensorError(`${where}: expected sampled classes from 0 to ${v - 1}, got ${c}.`);
  const backend = x.backend;
  const wants = needsGrad(x, weight, bias);
  const targetList = targets.dataSync();
  const samples = tensor(candidates.samples, [s], "int32", backend);
  const shift = tensor(candidates.logExpected, [s], "float32", backend);
  const trueShift = tensor(Float32Array.from(targetList, (t) => (t < 0 ? 0 : candidates.logExpectedOf(t))), [n], "float32", backend);
  const losses = empty([n], "float32", backend);
  // Rows of [samples; targets]: their weights, and in training their gradients.
  const classList = new Int32Array(s + n);
  classList.set(candidates.samples);
  for (let i = 0; i < n; i++) classList[s + i] = Math.max(targetList[i]!, 0);
  const classes = tensor(classList, [s + n], "int32", backend);
  const gathered = empty([s + n, d], "float32", backend);
  backend.gatherRows(weight.buffer, classes.buffer, gathered.buffer, s + n, d);
  const trueLogit = empty([n], "float32", backend);
  backend.rowDot(x.buffer, gathered.buffer.at(s * d), trueLogit.buffer, n, d);
  let sampledBias: Tensor | undefined;
  if (bias) {
    sampledBias = empty([s + n], "float32", backend);
    backend.gatherRows(bias.buffer, classes.buffer, sampledBias.buffer, s + n, 1);
    backend.axpy(1, sampledBias.buffer.at(s), trueLogit.buffer, n);
    // A class's bias and its correction both shift its logit.
    backend.axpy(-1, sampledBias.buffer, shift.buffer, s);
  }
  const dx = wants ? empty([n, d], "float32", backend) : undefined;
  const dRows = wants ? empty([s + n, d], "float32", backend) : undefined;
  const dBiasRows = wants && bias ? full([s + n], 0, "float32", backend) : undefined;
  if (dRows) backend.fill(dRows.buffer, 0, s * d);
  scope(() => {
    const logits = empty([chunk, s], "float32", backend);
    const partial = empty([s], "float32", backend);
    for (let start = 0; start < n; start += chunk) {
      const rows = Math.min(chunk, n - start);
      const xs = x.buffer.at(start * d);
      backend.gemm(false, true, rows, s, d, 1, xs, d, gathered.buffer, d, 0, logits.buffer, s);
      backend.sampledCrossEntropy(logits.buffer, shift.buffer, samples.buffer, trueLogit.buffer.at(start), trueShift.buffer.at(start),
        targets.buffer.at(start), losses.buffer.at(start), rows, s, wants ? 1 / Math.max(counted, 1) : 0);
      if (!dx || !dRows) continue;
      backend.gemm(false, false, rows, d, s, 1, logits.buffer, s, gathered.buffer, d, 0, dx.buffer.at(start * d), d);
      backend.gemm(true, false, s, d, rows, 1, logits.buffer, s, xs, d, 1, dRows.buffer, d);
      if (dBiasRows) {
        backend.spreadSum(logits.buffer, { div: 1, mod: s }, 1, partial.buffer, rows * s);
        backend.axpy(1, partial.buffer, dBiasRows.buffer, s);
      }
    }
    if (!dx || !dRows) return;
    // trueLogit now holds its gradient: it goes to x through the true class's weights, and to those weights through x.
    const perRow = { div: d, mod: Math.max(n, 1) };
    const all = { div: 1, mod: Math.max(n * d, 1) };
    const throughWeights = empty([n, d], "float32", backend);
    backend.binary("mul", gathered.buffer.at(s * d), all, trueLogit.buffer, perRow, throughWeights.buffer, n * d);
    backend.axpy(1, throughWeights.buffer, dx.buffer, n * d);
    backend.binary("mul", x.buffer, all, trueLogit.buffer, perRow, dRows.buffer.at(s * d), n * d);
    if (dBiasRows) backend.copy(trueLogit.buffer, dBiasRows.buffer.at(s), n);
  });
  const loss = empty([], "float32", backend);
  backend.spreadSum(losses.buffer, { div: 1, mod: 1 }, 1 / Math.max(counted, 1), loss.buffer, n);
  return record(where, loss, bias ? [x, weight, bias] : [x, weight], (dy) => {
    const byRows = (rows: Tensor | undefined, width: number): Gradient | undefined => {
      const values = scaled(rows, dy);
      return values && rowGradient(values, classes, s + n, v, width);
    };
    return [scaled(dx, dy), byRows(dRows, d), byRows(dBiasRows, 1)];
  });
}
