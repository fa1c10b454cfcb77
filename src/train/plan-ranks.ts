/** What a run will need on ranks, reckoned without starting one: what each holds, computes and sends in a step (Shazeer et al. 2017, sections 3.1 and 3.2). */

import { checkInteger } from "../core/checks.js";
import { computeCost, expertSize, expertsPerRow, expertWidths, gateLevels, nameOf, totalExperts, type GateLevel } from "../models/cost.js";
import type { MiddleConfig } from "../models/language-model.js";
import type { TrainConfig } from "./config.js";
import { logUniform } from "../nn/candidates.js";
import { momentsOf, planRun } from "./plan.js";
import { modelConfig } from "./setup.js";

/** Of the rank that has the most, where they differ; bytes are averages over ranks. */
export interface RanksPlan {
  ranks: number;
  hosts: number;
  /** Trainable scalars of a rank, and those of them in experts. */
  parameters: number;
  moeParameters: number;
  /** Peak of a rank's tensors during training, as `Plan.bytes`, and of all ranks of a host. */
  bytes: number;
  bytesOfHost: number;
  /** Floating-point operations of a rank in a step: forward and backward, with the softmax. */
  flops: number;
  /** Payload that a rank sends to others in a step, and what it is made of. */
  sent: { rows: number; gates: number; gradients: number; other: number; all: number };
  /** Payload that leaves a host in a step. */
  sentByHost: number;
  /** flops / sent.all; Infinity where nothing is sent. */
  flopsPerByte: number;
  /** Multiply-adds of an expert for each number that goes to it or comes back: the hidden width, for experts of one layer (section 3.2). 0 without experts. */
  opsPerNumber: number;
}

/** As `allReduce`: up to here everyone sends everything to everyone. */
const SHORT_BYTES = 16 * 1024;

/**
 * Rows are taken to be spread evenly over experts, and tokens to be as frequent as their places in the vocabulary say by Zipf's law, the log-uniform
 * distribution that candidates are drawn from: that is how many rows the gradients of embedding and sampled softmax have. Most texts repeat words more.
 * @throws ConfigError for a model that cannot be, or ranks that do not fit hosts
 */
export function planRanks(config: TrainConfig, vocabSize: number, ranks: number, hosts = 1): RanksPlan {
  checkInteger("plan", "ranks (--ranks)", ranks, { min: 1 });
  checkInteger("plan", "hosts (--hosts)", hosts, { min: 1, max: ranks, hint: "A host has at least one rank." });
  const model = modelConfig(config, vocabSize);
  const { hiddenSize: D, middle } = model;
  const lanes = Math.ceil(config.batch_size / ranks);
  const whole = planRun(config, vocabSize);
  const part = planRun({ ...config, batch_size: lanes }, vocabSize);
  const [others, rows] = [ranks - 1, (config.batch_size * config.time_steps) / ranks];
  const E = middle.kind === "moe" ? totalExperts(middle) : 0;
  // Whole groups of a hierarchical mixture; one rank may have one unit more than another.
  const unit = middle.kind === "moe" && typeof middle.numExperts !== "number" ? middle.numExperts[1] : 1;
  const here = E === 0 ? 0 : (Math.ceil(E / unit / ranks) * unit) / E;
  const moeParameters = Math.round(whole.moeParameters * here);
  // Of the gates of a hierarchical mixture's groups, those that are here.
  const { weights: groupGates, matrices } = secondaryGates(middle, D);
  const gatesElsewhere = groupGates - Math.round(groupGates * here);
  const bytes = part.bytes - whole.bytesPerExpertParameter * (whole.moeParameters - moeParameters) - 4 * (2 + momentsOf(config)) * gatesElsewhere;

  const sent = { rows: 0, gates: 0, gradients: 0, other: 0, all: 0 };
  // Gradients that every rank has: those of matrices, and those by rows.
  let dense = whole.parameters - whole.moeParameters - vocabSize * D;
  const { used, classes: sampledClasses } = tokensOf(vocabSize, rows, config.sampled_softmax);
  let byRows = used * (D + 1) + 1;
  if (config.sampled_softmax > 0) {
    dense -= vocabSize * (D + 1);
    byRows += sampledClasses * (D + 3) + 2;
  }
  if (middle.kind === "moe") {
    const [first, second] = gateLevels(middle);
    sent.gates = 4 * others * (rows * matricesOf(first!) * first!.numExperts + rows + 1);
    if (second) {
      const places = rows * second.perRow;
      const logits = places * matrices * second.numExperts;
      // Rows to the gates of their groups, their logits back, and the gradients the other way; which group each is of; then the logits to all.
      const jitter = nameOf(second.type) === "switch" ? places : 0;
      sent.gates += 4 * others * ((2 * places * D + 2 * logits + second.count + jitter) / ranks + logits);
      dense -= groupGates;
    }
    // There and back, and the gradients the other way; and how many rows each expert gets.
    sent.rows = 4 * ((4 * rows * expertsPerRow(middle) * D * others) / ranks + (E * others) / ranks);
    if (middle.sharedExperts) {
      const shared = expertSize(expertWidths(middle, D).map((width) => width * middle.sharedExperts!), D, middle);
      dense -= shared.weights + shared.biases;
      byRows += shared.weights + shared.biases;
    }
  }
  sent.gradients = 4 * (allReduced(dense, ranks) + byRows * others);
  // Loss and norm in 64 bits, and whether to stop.
  sent.other = (8 + 8 + 4) * others;
  sent.all = sent.rows + sent.gates + sent.gradients + sent.other;

  const ranksOfHost = Math.ceil(ranks / hosts);
  const classes = config.sampled_softmax > 0 ? config.sampled_softmax + 1 : vocabSize;
  // A multiply-add is two, and the way back costs twice the way there.
  const flops = 6 * lanes * config.time_steps * (computeCost(model).opsPerTimestep + D * classes);
  return {
    ranks,
    hosts,
    parameters: whole.parameters - whole.moeParameters + moeParameters - gatesElsewhere,
    moeParameters,
    bytes,
    bytesOfHost: bytes * ranksOfHost,
    flops,
    sent,
    sentByHost: others === 0 ? 0 : (sent.all * ranksOfHost * (ranks - ranksOfHost)) / others,
    flopsPerByte: flops / sent.all,
    opsPerNumber: middle.kind === "moe" ? expertSize(expertWidths(middle, D), D, middle).weights / (2 * D) : 0,
  };
}

/** Expected number of different tokens among `rows` of a Zipfian text, and of those together with so many candidates. */
function tokensOf(vocabSize: number, rows: number, candidates: number): { used: number; classes: number } {
  const logMissed = Float64Array.from({ length: vocabSize }, (_, c) => Math.log1p(-logUniform(c, vocabSize)));
  const met = (draws: number): number => logMissed.reduce((sum, log) => sum - Math.expm1(draws * log), 0);
  const used = met(rows);
  if (candidates >= vocabSize) return { used, classes: vocabSize };
  // As many draws as give so many different candidates. What rows then add is what more draws would.
  let [low, high] = [0, Math.max(candidates, 1)];
  while (met(high) < candidates) high *= 2;
  for (let i = 0; i < 40; i++) {
    const middle = (low + high) / 2;
    if (met(middle) < candidates) low = middle;
    else high = middle;
  }
  return { used, classes: met(high + rows) };
}

/** Matrices of a gate: noisy top-k has one for the noise. */
const matricesOf = ({ type }: Pick<GateLevel, "type">): number => (nameOf(type) === "noisy-top-k" ? 2 : 1);

/** What the gates of a hierarchical mixture's groups have in their matrices. */
function secondaryGates(middle: MiddleConfig, hiddenSize: number): { weights: number; matrices: number } {
  const second = middle.kind === "moe" ? gateLevels(middle)[1] : undefined;
  if (!second) return { weights: 0, matrices: 0 };
  const matrices = matricesOf(second);
  return { weights: second.count * matrices * hiddenSize * second.numExperts, matrices };
}

/** Numbers that a rank sends in an all-reduce of so many. */
function allReduced(numbers: number, ranks: number): number {
  return 4 * numbers <= SHORT_BYTES ? (ranks - 1) * numbers : (2 * (ranks - 1) * numbers) / ranks;
}
