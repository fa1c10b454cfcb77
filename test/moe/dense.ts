/**
 * The MoE layer as a dense loop over all experts, from the formulas of Shazeer et al. 2017 (eq. 1 to 5, 8 to 11) in float64, with gradients of everything:
 * the measure of every gate and layer. Nothing is skipped: an expert that a row does not use has weight zero and is evaluated all the same.
 */

import type { Tensor } from "#sparsegate/tensor/index.js";
import { normalAt, streamId } from "#sparsegate/core/random.js";
import {
  add,
  cvSquared,
  div,
  exp,
  mul,
  normalCdf,
  relu,
  type Scalar,
  scalar,
  softplus,
  sub,
  times,
  vectorTimes,
  type Matrix,
  type Vector,
} from "./scalar.js";

/** E_i(x) = relu(x·W1 + b1)·W2 + b2. */
export interface DenseExpert {
  inputWeight: Matrix;
  outputWeight: Matrix;
  inputBias?: Vector;
  outputBias?: Vector;
}

export interface DenseMoE {
  /** W_g and W_noise (D, E). */
  gate: Matrix;
  noiseGate: Matrix;
  experts: DenseExpert[];
  topK: number;
  importanceWeight: number;
  loadWeight: number;
}

export interface DenseOutput {
  y: Matrix;
  auxLoss: Scalar;
  importance: Vector;
  load: Vector;
  /** The chosen experts of each row, best first. */
  chosen: number[][];
  gates: Matrix;
  /** Distance to the nearest place where the function is not smooth: a tie for the k-th expert (exact ones left out), or the bend of a ReLU in use. */
  margin: number;
}

export function expertOutput(
  x: Vector,
  { inputWeight, outputWeight, inputBias, outputBias }: DenseExpert,
): { y: Vector; bend: number } {
  const before = vectorTimes(x, inputWeight).map((v, j) => (inputBias ? add(v, inputBias[j]!) : v));
  const y = vectorTimes(before.map(relu), outputWeight).map((v, j) => (outputBias ? add(v, outputBias[j]!) : v));
  return { y, bend: Math.min(Infinity, ...before.map((v) => Math.abs(v.value))) };
}

/** Indices by falling value; equal ones by the lower index. */
export const descending = (values: readonly number[]): number[] =>
  values.map((_, i) => i).sort((a, b) => values[b]! - values[a]! || a - b);

/** kth_excluding(v, k, i): the k-th largest component of v leaving out component i. */
export function kthExcluding(v: Vector, k: number, i: number): Scalar {
  const others = v.filter((_, j) => j !== i);
  return others[descending(others.map((s) => s.value))[k - 1]!]!;
}

/** @param noise (N, E) standard normal numbers while training; undefined in evaluation, where rows are counted and there is no load loss */
export function denseMoE(
  { gate, noiseGate, experts, topK: k, importanceWeight, loadWeight }: DenseMoE,
  x: Matrix,
  noise: readonly (readonly number[])[] | undefined,
): DenseOutput {
  const E = experts.length;
  const importance: Vector[] = experts.map(() => []);
  const load: Vector[] = experts.map(() => []);
  const chosen: number[][] = [];
  const gates: Matrix = [];
  let margin = Infinity;
  const y = x.map((row, n) => {
    const clean = vectorTimes(row, gate);
    const std = vectorTimes(row, noiseGate).map(softplus);
    const h = noise ? clean.map((v, i) => add(v, times(std[i]!, noise[n]![i]!))) : clean;
    const order = descending(h.map((s) => s.value));
    const kept = order.slice(0, k);
    if (k < E) {
      const gap = h[order[k - 1]!]!.value - h[order[k]!]!.value;
      if (gap > 0) margin = Math.min(margin, gap);
    }
    // Softmax over the kept logits, less the largest so that nothing overflows.
    const largest = scalar(h[kept[0]!]!.value);
    const powers = kept.map((i) => exp(sub(h[i]!, largest)));
    const total = add(...powers);
    const G = Array.from({ length: E }, () => scalar(0));
    for (const [j, i] of kept.entries()) G[i] = div(powers[j]!, total);
    chosen.push(kept);
    gates.push(kept.map((i) => G[i]!));
    for (let i = 0; i < E; i++) {
      importance[i]!.push(G[i]!);
      if (!noise) load[i]!.push(scalar(kept.includes(i) ? 1 : 0));
      else load[i]!.push(k === E ? scalar(1) : normalCdf(div(sub(clean[i]!, kthExcluding(h, k, i)), std[i]!)));
    }
    const outputs = experts.map((expert, i) => {
      const { y: out, bend } = expertOutput(row, expert);
      if (kept.includes(i)) margin = Math.min(margin, bend);
      return out;
    });
    return row.map((_, d) => add(...outputs.map((out, i) => mul(G[i]!, out[d]!))));
  });
  const importanceSum = importance.map((terms) => add(...terms));
  const loadSum = load.map((terms) => add(...terms));
  const losses = [times(cvSquared(importanceSum), importanceWeight), ...(noise ? [times(cvSquared(loadSum), loadWeight)] : [])];
  return { y, auxLoss: add(...losses), importance: importanceSum, load: loadSum, chosen, gates, margin };
}

/** The elements of a tensor as scalars, row-major, to be shaped by `matrix` and `vector`. */
export const leaves = (t: Tensor): Vector => Array.from(t.dataSync(), scalar);
export const vector = (flat: Vector, start: number, length: number): Vector => flat.slice(start, start + length);
export const matrix = (flat: Vector, start: number, rows: number, cols: number): Matrix =>
  Array.from({ length: rows }, (_, r) => vector(flat, start + r * cols, cols));

/** A layer's parameters as scalars: by name, for their gradients, and as the model that `denseMoE` takes. */
export function denseParameters(
  parameters: ReadonlyMap<string, Tensor>,
  { topK, importanceWeight, loadWeight }: { topK: number; importanceWeight: number; loadWeight: number },
): { flat: Map<string, Vector>; model: DenseMoE } {
  const flat = new Map([...parameters].map(([name, t]) => [name, leaves(t)]));
  const [E, D, F] = parameters.get("experts.inputWeight")!.shape as [number, number, number];
  const of = (name: string): Vector => flat.get(`experts.${name}`)!;
  const experts = Array.from({ length: E }, (_, e): DenseExpert => ({
    inputWeight: matrix(of("inputWeight"), e * D * F, D, F),
    outputWeight: matrix(of("outputWeight"), e * F * D, F, D),
    ...(parameters.has("experts.inputBias")
      ? { inputBias: vector(of("inputBias"), e * F, F), outputBias: vector(of("outputBias"), e * D, D) }
      : {}),
  }));
  const gate = matrix(flat.get("gate.weight")!, 0, D, E);
  return {
    flat,
    model: { gate, noiseGate: matrix(flat.get("gate.noiseWeight")!, 0, D, E), experts, topK, importanceWeight, loadWeight },
  };
}

/** The noise that a gate of this name draws for its rows, from the definition of the random streams: element (firstRow + n)·E + i. */
export function gateNoise(
  name: string,
  rows: number,
  E: number,
  { seed, step, firstRow }: { seed: number; step: number; firstRow: number },
): number[][] {
  const key = { seed, step, stream: streamId("gate", name) };
  return Array.from({ length: rows }, (_, n) => Array.from({ length: E }, (_, i) => normalAt(key, (firstRow + n) * E + i)));
}
