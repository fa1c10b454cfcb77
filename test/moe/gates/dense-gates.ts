/**
 * Every gate as its formula says, in float64 with gradients, over all experts of all rows: Shazeer et al. 2017 (eq. 2-5, 8-11, 15-20), Lepikhin et al. 2020
 * (Algorithm 1), Fedus et al. 2021 (eq. 1-6), Zhou et al. 2022, Jiang et al. 2024, DeepSeek-AI 2024, Zoph et al. 2022 (z-loss). Nothing is shared with src/
 * but the definition of the random streams.
 */

import { normalAt, streamId, uniformAt } from "#sparsegate/core/random.js";
import { descending, kthExcluding } from "../dense.js";
import { add, div, exp, mul, normalCdf, scalar, softplus, sub, times, type Matrix, type Scalar, type Vector } from "../scalar.js";
import { logSumExp, rowTimes, sigmoid, softmax, sum } from "./dense-scalars.js";

/** A gate by name with everything it depends on spelt out: no default of the code under test is relied on. */
export interface Spec {
  type: "softmax" | "noisy-top-k" | "strictly-balanced" | "switch" | "gshard" | "expert-choice" | "top-k" | "sigmoid";
  topK: number;
  importanceWeight?: number;
  loadWeight?: number;
  zLossWeight?: number;
  capacityFactor?: number;
  evalCapacityFactor?: number;
  dropPolicy?: "arrival" | "probability";
  thresholdWeight?: number;
  auxLossWeight?: number;
  jitter?: number;
  secondPolicy?: "all" | "none" | "threshold" | "random";
  evalSecondPolicy?: "all" | "none" | "threshold";
  secondThreshold?: number;
  evalSecondThreshold?: number;
  biasUpdateRate?: number;
  scale?: number;
}

/** Parameters of one gate, or of one group's. */
export interface GateParameters {
  /** (D, E) */
  weight: Matrix;
  noiseWeight: Matrix | undefined;
  logThreshold: Vector | undefined;
  bias: number[] | undefined;
}

export interface Row {
  x: Vector;
  /** What the row's random numbers are drawn by. */
  id: number;
}

export interface Call {
  training: boolean;
  seed: number;
  step: number;
  /** Name of the gate in the model: that of its random streams. */
  name: string;
}

export interface Decision {
  /** (N, E), 0 where the row does not use the expert. */
  weights: Matrix;
  /** Experts of each row: best first where each row has K, those that a policy left out as -1; else in the order of their numbers. */
  chosen: number[][];
  /** (E) smooth. */
  load?: Vector;
  /** The gate's own losses: those that are one number a group, and those that are summed over rows and still to be divided by their number. */
  groupLoss: Scalar;
  rowLoss: Scalar;
  /** Distance to the nearest place where the choice would change; exact ties, which go by number, do not count. */
  margin: number;
  /** Of sigmoid, after the batch. */
  newBias?: number[];
}

const none = (): Scalar => scalar(0);
const valuesOf = (v: Vector): number[] => v.map((s) => s.value);

/** The k best and the smallest gap between neighbours among these and the next. */
function best(values: readonly number[], k: number): { kept: number[]; gap: number } {
  const order = descending(values);
  let gap = Infinity;
  for (let j = 0; j < k && j + 1 < order.length; j++) {
    const d = values[order[j]!]! - values[order[j + 1]!]!;
    if (d > 0) gap = Math.min(gap, d);
  }
  return { kept: order.slice(0, k), gap };
}

/** For each expert the m = ⌊k·N/E⌋ rows (at least one) with the largest entries of its column: rows of each expert. */
function batchwise(x: Matrix, k: number, E: number): { rowsOf: Set<number>[]; gap: number } {
  let gap = Infinity;
  const m = Math.min(x.length, Math.max(1, Math.floor((k * x.length) / E)));
  const rowsOf = Array.from({ length: E }, (_, e) => {
    const column = x.map((row) => row[e]!.value);
    const order = descending(column);
    const d = m < x.length ? column[order[m - 1]!]! - column[order[m]!]! : Infinity;
    if (d > 0) gap = Math.min(gap, d);
    return new Set(order.slice(0, m));
  });
  return { rowsOf, gap };
}

/** n²·mean_e(f_e·P_e), with f_e the choices of e per row and P_e the mean probability of e. */
function balance(probabilities: Matrix, choices: readonly number[][], E: number): Scalar {
  const N = probabilities.length;
  if (N === 0) return none();
  const products = Array.from({ length: E }, (_, e) => {
    const f = choices.filter((of) => of.includes(e)).length / N;
    return times(sum(probabilities.map((p) => p[e]!)), f / N);
  });
  return times(sum(products), (E * E) / E);
}

const weightsOf = (E: number, entries: readonly (readonly [number, Scalar])[]): Vector => {
  const row = Array.from({ length: E }, none);
  for (const [e, g] of entries) row[e] = g;
  return row;
};

export function decide(spec: Spec, parameters: GateParameters, rows: readonly Row[], call: Call): Decision {
  const { weight } = parameters;
  const E = weight[0]!.length;
  const jitter = spec.type === "switch" && call.training ? spec.jitter! : 0;
  const key = { seed: call.seed, step: call.step };
  const logits = rows.map(({ x, id }) => {
    const shaken = x.map((v, d) =>
      times(v, 1 - jitter + 2 * jitter * uniformAt({ ...key, stream: streamId("jitter", call.name) }, id * x.length + d)),
    );
    return rowTimes(jitter === 0 ? x : shaken, weight);
  });
  const decision = GATES[spec.type](spec, parameters, rows, logits, E, call);
  const z = sum(logits.map((row) => mul(logSumExp(row), logSumExp(row))));
  return { ...decision, rowLoss: add(decision.rowLoss, times(z, spec.zLossWeight ?? 0)) };
}

type Rule = (spec: Spec, parameters: GateParameters, rows: readonly Row[], logits: Matrix, E: number, call: Call) => Decision;

/** G_σ(x) = softmax(x·W_g). */
const dense: Rule = (_spec, _parameters, _rows, logits, E) => {
  const orders = logits.map((row) => best(valuesOf(row), E));
  return {
    weights: logits.map(softmax),
    chosen: orders.map((o) => o.kept),
    groupLoss: none(),
    rowLoss: none(),
    margin: Math.min(Infinity, ...orders.map((o) => o.gap)),
  };
};

/** H = x·W_g + ε·softplus(x·W_noise), softmax over the k largest; P(x,i) = Φ((clean_i − kth_excluding(H, k, i)) / std_i). */
const noisyTopK: Rule = ({ topK: k }, { noiseWeight }, rows, logits, E, { training, seed, step, name }) => {
  let margin = Infinity;
  const load: Vector[] = Array.from({ length: E }, () => []);
  const chosen: number[][] = [];
  const weights = rows.map(({ x, id }, n) => {
    const clean = logits[n]!;
    const std = rowTimes(x, noiseWeight!).map(softplus);
    const noise = (i: number): number => normalAt({ seed, step, stream: streamId("gate", name) }, id * E + i);
    const h = training ? clean.map((v, i) => add(v, times(std[i]!, noise(i)))) : clean;
    const { kept, gap } = best(valuesOf(h), k);
    margin = Math.min(margin, gap);
    chosen.push(kept);
    const g = softmax(kept.map((i) => h[i]!));
    for (let i = 0; i < E; i++)
      load[i]!.push(k === E ? scalar(1) : normalCdf(div(sub(clean[i]!, kthExcluding(h, k, i)), std[i]!)));
    return weightsOf(
      E,
      kept.map((i, j) => [i, g[j]!]),
    );
  });
  return { weights, chosen, ...(training ? { load: load.map(sum) } : {}), groupLoss: none(), rowLoss: none(), margin };
};

/** Of the rows of each expert: for every row its experts in order. */
const expertsOf = (rowsOf: readonly Set<number>[], rows: number): number[][] =>
  Array.from({ length: rows }, (_, n) => rowsOf.flatMap((of, e) => (of.has(n) ? [e] : [])));

/** G = G_σ·M / Σ G_σ·M, M batchwise while training and by thresholds at inference; L = Σ_j Σ_i (M_threshold − M_batchwise)·(X_ji − T_i). */
const strictlyBalanced: Rule = ({ topK, thresholdWeight }, { logThreshold }, rows, logits, E, { training }) => {
  const x = logits.map(softmax);
  const T = logThreshold!.map(exp);
  const { rowsOf, gap } = batchwise(x, topK, E);
  const above = T.map((t, e) => new Set(x.flatMap((row, n) => (row[e]!.value > t.value ? [n] : []))));
  const distances = x.flatMap((row) => row.map((v, e) => Math.abs(v.value - T[e]!.value)));
  const chosen = expertsOf(training ? rowsOf : above, rows.length);
  const terms: Scalar[] = [];
  for (const [n, row] of x.entries()) {
    for (let e = 0; e < E; e++) terms.push(times(sub(row[e]!, T[e]!), Number(above[e]!.has(n)) - Number(rowsOf[e]!.has(n))));
  }
  return {
    weights: x.map((row, n) => {
      const total = sum(chosen[n]!.map((e) => row[e]!));
      return weightsOf(
        E,
        chosen[n]!.map((e) => [e, div(row[e]!, total)]),
      );
    }),
    chosen,
    groupLoss: none(),
    rowLoss: training ? times(sum(terms), thresholdWeight!) : none(),
    margin: Math.min(training ? gap : Infinity, ...distances),
  };
};

/** p = softmax(x·W_g), one expert, weighted by its p; α·n·Σ f·P. */
const switchRule: Rule = ({ auxLossWeight }, _parameters, _rows, logits, E) => {
  const p = logits.map(softmax);
  const firsts = p.map((row) => best(valuesOf(row), 1));
  const chosen = firsts.map((o) => o.kept);
  return {
    weights: p.map((row, n) => weightsOf(E, [[chosen[n]![0]!, row[chosen[n]![0]!]!]])),
    chosen,
    groupLoss: times(balance(p, chosen, E), auxLossWeight!),
    rowLoss: none(),
    margin: Math.min(Infinity, ...firsts.map((o) => o.gap)),
  };
};

/** g1, g2 the two largest of softmax(x·W_g) over their sum; the second used by policy. */
const gshard: Rule = (spec, _parameters, rows, logits, E, { training, seed, step, name }) => {
  const p = logits.map(softmax);
  const policy = training ? spec.secondPolicy! : spec.evalSecondPolicy!;
  const threshold = training ? spec.secondThreshold! : spec.evalSecondThreshold!;
  let margin = Infinity;
  const chosen: number[][] = [];
  const weights = p.map((row, n) => {
    const { kept, gap } = best(valuesOf(row), 2);
    const [a, b] = kept as [number, number];
    const total = add(row[a]!, row[b]!, scalar(1e-9));
    const second = div(row[b]!, total);
    const u = uniformAt({ seed, step, stream: streamId("second expert", name) }, rows[n]!.id);
    // With probability min(1, g2 / threshold).
    const distance =
      policy === "threshold"
        ? second.value - threshold
        : policy === "random"
          ? second.value / threshold - u
          : policy === "all"
            ? Infinity
            : -Infinity;
    margin = Math.min(margin, gap, Math.abs(distance));
    chosen.push([a, distance > 0 ? b : -1]);
    return weightsOf(E, [[a, div(row[a]!, total)], ...(distance > 0 ? [[b, second] as const] : [])]);
  });
  const firsts = chosen.map((of) => [of[0]!]);
  return { weights, chosen, groupLoss: times(balance(p, firsts, E), spec.auxLossWeight!), rowLoss: none(), margin };
};

/** S = softmax(x·W_g); each expert takes the rows with the largest entries of its column, weighted by them. */
const expertChoice: Rule = ({ topK }, _parameters, rows, logits, E) => {
  const s = logits.map(softmax);
  const { rowsOf, gap } = batchwise(s, topK, E);
  const chosen = expertsOf(rowsOf, rows.length);
  return {
    weights: s.map((row, n) =>
      weightsOf(
        E,
        chosen[n]!.map((e) => [e, row[e]!]),
      ),
    ),
    chosen,
    groupLoss: none(),
    rowLoss: none(),
    margin: gap,
  };
};

/** The k largest of softmax(x·W_g) over their sum; n·Σ f·P with all k choices counted in f. */
const topK: Rule = ({ topK: k, auxLossWeight }, _parameters, _rows, logits, E) => {
  const p = logits.map(softmax);
  const orders = logits.map((row) => best(valuesOf(row), k));
  const chosen = orders.map((o) => o.kept);
  return {
    weights: p.map((row, n) => {
      const total = sum(chosen[n]!.map((e) => row[e]!));
      return weightsOf(
        E,
        chosen[n]!.map((e) => [e, div(row[e]!, total)]),
      );
    }),
    chosen,
    groupLoss: times(balance(p, chosen, E), auxLossWeight!),
    rowLoss: none(),
    margin: Math.min(Infinity, ...orders.map((o) => o.gap)),
  };
};

/** s = sigmoid(x·W_g), the k largest s + b, weights scale·s/Σ s; then b += γ·sign(mean load − load). */
const sigmoidRule: Rule = ({ topK: k, scale, biasUpdateRate }, { bias }, rows, logits, E, { training }) => {
  const s = logits.map((row) => row.map(sigmoid));
  const orders = s.map((row) =>
    best(
      row.map((v, e) => v.value + bias![e]!),
      k,
    ),
  );
  const chosen = orders.map((o) => o.kept);
  const counts = Array.from({ length: E }, (_, e) => chosen.flat().filter((i) => i === e).length);
  // In whole numbers: E·load against the total.
  const moved = bias!.map((b, e) => b + biasUpdateRate! * Math.sign(k * rows.length - E * counts[e]!));
  return {
    weights: s.map((row, n) => {
      const total = sum(chosen[n]!.map((e) => row[e]!));
      return weightsOf(
        E,
        chosen[n]!.map((e) => [e, times(div(row[e]!, total), scale!)]),
      );
    }),
    chosen,
    groupLoss: none(),
    rowLoss: none(),
    margin: Math.min(Infinity, ...orders.map((o) => o.gap)),
    newBias: training ? moved : [...bias!],
  };
};

const GATES: Record<Spec["type"], Rule> = {
  softmax: dense,
  "noisy-top-k": noisyTopK,
  "strictly-balanced": strictlyBalanced,
  switch: switchRule,
  gshard,
  "expert-choice": expertChoice,
  "top-k": topK,
  sigmoid: sigmoidRule,
};
