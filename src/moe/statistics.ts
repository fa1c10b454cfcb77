/** How evenly rows spread over experts: the figures of the paper's Table 6, and what else tells a healthy layer from one that has collapsed. */

import { ConfigError, expectation } from "../core/errors.js";
import { log, maximum, mul } from "../tensor/ops/elementwise.js";
import { sum } from "../tensor/ops/reduce.js";
import { scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import type { MoEOutput } from "./layer.js";

/** Standard deviation over mean (population, as the paper's CV); 0 for a mean of 0. */
export function coefficientOfVariation(values: ArrayLike<number>): number {
  const n = values.length;
  let total = 0;
  for (let i = 0; i < n; i++) total += values[i]!;
  if (n === 0 || total === 0) return 0;
  const mean = total / n;
  let squares = 0;
  for (let i = 0; i < n; i++) squares += (values[i]! - mean) ** 2;
  return Math.sqrt(squares / n) / mean;
}

/** The columns of Table 6, and how many experts got nothing. */
export interface BalanceStatistics {
  cvImportance: number;
  cvLoad: number;
  maxOverMeanLoad: number;
  /** Experts without a row. */
  unused: number;
}

/** Balance figures of one batch. @param importance gate values summed per expert; @param load rows per expert */
export function balanceStatistics(importance: ArrayLike<number>, load: ArrayLike<number>): BalanceStatistics {
  let [total, most, unused] = [0, 0, 0];
  for (let i = 0; i < load.length; i++) {
    total += load[i]!;
    most = Math.max(most, load[i]!);
    if (load[i] === 0) unused++;
  }
  return {
    cvImportance: coefficientOfVariation(importance),
    cvLoad: coefficientOfVariation(load),
    maxOverMeanLoad: total === 0 ? 0 : (most * load.length) / total,
    unused,
  };
}

/** What one forward pass of a layer did with its rows. */
export interface MoEStatistics extends BalanceStatistics {
  /** Σ gate values of each expert, before anything was dropped. */
  importance: number[];
  /** Rows that each expert computed: what is left after capacity. The figures of balance count these. */
  load: number[];
  /** CV² of importance and of load as the balance losses see them: load is the smooth estimate while training, where the gate has one. */
  importanceCv2: number;
  loadCv2: number;
  /** Mean over rows of the entropy of the gate, in nats: 0 for a gate that is sure, log(experts) for one that knows nothing. */
  entropy: number;
  /** What the entropy is of: the distribution over all experts, where the gate has one; else the kept gate values over their sum. */
  entropyOf: "router" | "kept";
  /** Assignments that capacity dropped, of those the gate asked for (`MoEOutput.requested`): 0 to 1. */
  droppedFraction: number;
  /** Rows that no expert computed: the residual connection alone carries them. */
  unroutedRows: number;
}

/**
 * Reads what a layer's output says of its rows. It waits for the backend and reads a few numbers a row, so that it is for now and then: a step that does not
 * call it pays nothing.
 */
export function moeStatistics(output: MoEOutput): MoEStatistics {
  const { routing } = output;
  const [importance, wanted] = [output.importance.dataSync(), output.load.dataSync()];
  const load = processedLoad(output);
  const processed = load.reduce((sum, n) => sum + n, 0);
  const asked = requestedAssignments(output);
  return {
    ...balanceStatistics(importance, load),
    importance: Array.from(importance),
    load,
    importanceCv2: coefficientOfVariation(importance) ** 2,
    loadCv2: coefficientOfVariation(wanted) ** 2,
    ...gateEntropy(output),
    droppedFraction: asked > 0 ? (asked - processed) / asked : 0,
    unroutedRows: routing.numRows - new Set(routing.rows.dataSync().subarray(0, processed)).size,
  };
}

/** Assignments that the gate asked for, before capacity dropped any. */
export function requestedAssignments({ requested, load }: Pick<MoEOutput, "requested" | "load">): number {
  // Where their number depends on the data the load was counted, as smooth estimates come from gates that always ask for as many.
  return requested ?? Array.from(load.dataSync()).reduce((sum, n) => sum + n, 0);
}

/** Rows that each expert computed, (E): the little of `moeStatistics` that is cheap enough for every step. */
export function processedLoad({ routing }: Pick<MoEOutput, "routing">): number[] {
  const offsets = routing.offsets.dataSync();
  return Array.from({ length: offsets.length - 1 }, (_, e) => offsets[e + 1]! - offsets[e]!);
}

function gateEntropy({ probabilities, gates, rowOffsets }: MoEOutput): Pick<MoEStatistics, "entropy" | "entropyOf"> {
  if (probabilities) {
    const rows = probabilities.shape[0]!;
    const total = noGrad(() => scope(() => sum(mul(probabilities, log(maximum(probabilities, TINY)))).item()));
    return { entropy: rows > 0 ? Math.abs(total / rows) : 0, entropyOf: "router" };
  }
  const values = gates.dataSync();
  const starts = rowOffsets?.dataSync();
  const k = starts ? 0 : gates.shape[1]!;
  const rows = starts ? starts.length - 1 : gates.shape[0]!;
  let [total, counted] = [0, 0];
  for (let row = 0; row < rows; row++) {
    const [from, to] = starts ? [starts[row]!, starts[row + 1]!] : [row * k, (row + 1) * k];
    let sumOfRow = 0;
    for (let j = from; j < to; j++) sumOfRow += values[j]!;
    if (!(sumOfRow > 0)) continue;
    counted++;
    for (let j = from; j < to; j++) {
      const p = values[j]! / sumOfRow;
      if (p > 0) total -= p * Math.log(p);
    }
  }
  return { entropy: counted > 0 ? total / counted : 0, entropyOf: "kept" };
}

/** Keeps the logarithm of a probability that underflowed finite: it counts 0 all the same. */
const TINY = 1e-30;

/** For how many steps each expert has had no rows. */
export class UnusedExperts {
  /** By expert: 0 where the last step had rows for it. */
  readonly steps: Int32Array;

  /** @param numExperts E, or what `steps` was when a run was interrupted */
  constructor(numExperts: number | ArrayLike<number>) {
    this.steps = typeof numExperts === "number" ? new Int32Array(numExperts) : Int32Array.from(numExperts);
  }

  /** Takes note of one step. @param load rows of each expert */
  observe(load: ArrayLike<number>): void {
    if (load.length !== this.steps.length) throw new ConfigError(expectation("UnusedExperts.observe", `the load of ${this.steps.length} experts`, load.length));
    for (let e = 0; e < load.length; e++) this.steps[e] = load[e] === 0 ? this.steps[e]! + 1 : 0;
  }

  /** The longest that any expert has been without rows. */
  get longest(): number {
    return this.steps.reduce((most, n) => Math.max(most, n), 0);
  }

  /** Experts that had no rows for at least so many steps. */
  unusedFor(steps: number): number[] {
    return [...this.steps.keys()].filter((e) => this.steps[e]! >= steps);
  }
}
