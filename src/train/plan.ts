/** What a run will need, reckoned from its configuration without training: for --dry-run, and to refuse a model that cannot fit. */

import { ConfigError, expectation } from "../core/errors.js";
import { computeCost, expertSize, expertsPerRow, expertWidths, gateLevels, nameOf, totalExperts, type GateLevel } from "../models/cost.js";
import { isProjected, lstmLayers, type LanguageModelConfig, type MoeMiddle } from "../models/language-model.js";
import { defaultBackend } from "../tensor/default-backend.js";
import type { TrainConfig } from "./config.js";
import { modelConfig } from "./setup.js";

export interface Plan {
  /** Trainable scalars, and those of them in experts. */
  parameters: number;
  moeParameters: number;
  /** Multiply-adds of a forward pass per token, without embedding and softmax. */
  opsPerTimestep: number;
  /** Peak of the tensors in memory during training. The program itself, its text and the BLAS take some more. */
  bytes: number;
  /** Bytes that training takes for each scalar of the experts: itself, its gradient and the optimiser's state. 0 without experts. */
  bytesPerExpertParameter: number;
  /** The part of `bytes` that does not depend on the batch: parameters, their gradients and the optimiser's state. */
  fixedBytes: number;
}

/** @throws ConfigError for a model that cannot be */
export function planRun(config: TrainConfig, vocabSize: number): Plan {
  if (config.sampled_softmax > vocabSize) {
    throw new ConfigError(
      expectation(
        "sampled_softmax (--sampled-softmax)",
        `at most the ${vocabSize} entries of the vocabulary`,
        config.sampled_softmax,
        "Lower it; 0 takes the exact softmax.",
      ),
    );
  }
  const model = modelConfig(config, vocabSize);
  const { hiddenSize: D, middle } = model;
  const experts = expertMemory(config, model);
  const { opsPerTimestep, parameters: inner } = computeCost(model);
  const tables = vocabSize * D;
  const parameters = inner + 2 * tables + vocabSize;
  const rows = config.batch_size * config.time_steps;

  const state = parameters + (parameters - experts.all) * momentsOf(config) + experts.allState;
  // Gradients by rows hold a slot for each token that was looked up, not the whole table.
  const classes = config.sampled_softmax > 0 ? rows + config.sampled_softmax : vocabSize;
  const gradients = inner + rows * D + classes * D;
  const forward = forwardScalars(model, config, classes);
  // The most is in use either in the softmax, with its logits, or at the end of the way back, in the first LSTM.
  const logits =
    Math.min(rows * (config.sampled_softmax || vocabSize), LOGITS_AT_ONCE) + (config.sampled_softmax > 0 ? rows * D : 0);
  const wayBack = gradients + rows * (4 * model.lstmSize + 3 * D);
  // Or in the experts: by then the softmax, one LSTM and the experts have gradients, and each hidden layer its own beside those of its output.
  const lstm = 8 * D * model.lstmSize + 4 * model.lstmSize;
  const inExperts = middle.kind === "moe" ? classes * D + lstm + experts.all + expertsWayBack(middle, D, rows) : 0;
  const bytes = 4 * (state + forward + Math.max(logits, wayBack, inExperts));
  const perParameter = experts.routed > 0 ? (4 * (2 * experts.routed + experts.routedState)) / experts.routed : 0;
  return { parameters, moeParameters: experts.routed, opsPerTimestep, bytes, bytesPerExpertParameter: perParameter, fixedBytes: 4 * (state + inner) };
}

/** Scalars that Adam keeps for each of a parameter's. */
export function momentsOf({ optimizer, beta1 }: TrainConfig): number {
  return optimizer === "sgd" ? 0 : beta1 === 0 ? 1 : 2;
}

/** Scalars of the experts that gates choose from, and of all with the shared ones; and of the optimiser's state for them. */
function expertMemory(config: TrainConfig, { hiddenSize: D, middle }: LanguageModelConfig): { routed: number; routedState: number; all: number; allState: number } {
  if (middle.kind !== "moe") return { routed: 0, routedState: 0, all: 0, allState: 0 };
  const moments = momentsOf(config);
  const of = (count: number, widths: readonly number[]): { size: number; state: number } => {
    const { weights, biases } = expertSize(widths, D, middle);
    // Factored: the means of a matrix's rows and columns.
    const means = [D, ...widths].reduce((sum, width, i) => sum + (width + (widths[i] ?? D)) * (middle.activation === "swiglu" && i < widths.length ? 2 : 1), 0);
    const factored = config.factored_experts && config.optimizer === "adam";
    const tensors = (widths.length + 1) * (biases > 0 ? 2 : 1) + (middle.activation === "swiglu" ? widths.length : 0);
    const counts = config.optimizer === "adam" ? tensors : 0; // updates of each expert, for the bias correction
    return { size: count * (weights + biases), state: count * ((factored ? means : weights * moments) + biases * moments + counts) };
  };
  const widths = expertWidths(middle, D);
  const routed = of(totalExperts(middle), widths);
  const shared = middle.sharedExperts ? of(1, widths.map((width) => width * middle.sharedExperts!)) : { size: 0, state: 0 };
  return { routed: routed.size, routedState: routed.state, all: routed.size + shared.size, allState: routed.state + shared.state };
}

/** As `linearCrossEntropy` cuts its rows. */
const LOGITS_AT_ONCE = 8 * 2 ** 20;

/** What the forward pass of one batch leaves in memory for the way back: all outputs, since a step frees them at its end. */
function forwardScalars(model: LanguageModelConfig, config: TrainConfig, classes: number): number {
  const { hiddenSize: D, lstmSize: H, middle } = model;
  const N = config.batch_size * config.time_steps;
  const dropped = config.dropout > 0 ? N * D : 0;
  const around = dropped + (config.residual ? N * D : 0);
  const embedding = N * (D + 3) + dropped;
  // Gates, cells, the cells and outputs that each step starts from, the output; before a projection also the units.
  const lstm = N * (4 * H + 2 * H + 2 * D + (isProjected(model) ? H : 0)) + around;
  let between = 0;
  if (middle.kind === "dense") between = N * (2 * middle.hiddenSizes.reduce((sum, width) => sum + width, 0) + D);
  if (middle.kind === "moe") between = moeScalars(middle, D, N);
  if (between > 0) between += around + (model.sigmoid ? N * D : 0);
  // The softmax takes its gradients in the forward pass; sampled, it also gathers the rows of its classes.
  const softmax = N * D + classes * D * (config.sampled_softmax > 0 ? 2 : 1);
  return embedding + lstmLayers(middle) * lstm + between + softmax;
}

/** The part of `forwardScalars` that a mixture leaves. */
function moeScalars(middle: MoeMiddle, D: number, N: number): number {
  const M = N * expertsPerRow(middle);
  const widths = expertWidths(middle, D);
  const kept = middle.recompute ? 0 : hiddenScalars(middle, widths);
  const [first, second] = gateLevels(middle) as [GateLevel, GateLevel | undefined];
  let gates = gateScalars(first, D, N);
  if (second) {
    const places = N * first.topK;
    // Rows dealt to groups; then choices as (row, expert) and once more in the order of rows.
    gates += places * (D + 7) + gateScalars(second, D, places) + 11 * M;
  }
  const shared = middle.sharedExperts ? widths.map((width) => width * middle.sharedExperts!) : undefined;
  const ofShared = shared ? N * (2 * D + (middle.recompute ? 0 : hiddenScalars(middle, shared)) + (middle.bias ? D : 0)) : 0;
  const capacity = middle.capacityFactor === undefined ? 0 : M;
  // Places, rows gathered, hidden activations, outputs; their sum for each row.
  return gates + M * (4 + 2 * D + kept + (middle.bias && !middle.recompute ? D : 0) + (middle.expertDropout ? 2 : 0)) + capacity + N * D + ofShared;
}

/** Scalars of a row's hidden activations in one expert: products, biases added, activations (swiglu: two products, and their product), dropped. */
function hiddenScalars({ activation, bias, expertDropout }: MoeMiddle, widths: readonly number[]): number {
  if (isOneOperation({ activation, bias, expertDropout }, widths)) return widths[0]!;
  const each = (activation === "swiglu" ? 4 : 2) + (bias ? 1 : 0) + (expertDropout ? 1 : 0);
  return each * widths.reduce((sum, width) => sum + width, 0);
}

/** Whether an expert is the paper's: one operation (`groupedFeedForward`), which keeps only what is left after ReLU. */
function isOneOperation({ activation, bias, expertDropout }: Pick<MoeMiddle, "activation" | "bias" | "expertDropout">, widths: readonly number[]): boolean {
  return (activation === undefined || activation === "relu") && !bias && !expertDropout && widths.length === 1;
}

/** What a gate leaves of `rows` rows: matrices rows × E, and the choices. */
function gateScalars({ type, numExperts: E, topK: K }: GateLevel, D: number, rows: number): number {
  const choices = rows * K;
  switch (nameOf(type)) {
    case "noisy-top-k": // x·W_g, x·W_noise, loads of parts; the k + 1 best and their experts, cut to k, weights
      return rows * (2 * E + E / 32) + 3 * (choices + rows) + 3 * choices;
    case "softmax": // logits, sorted with their experts, weights, and the ones that are counted
      return rows * 5 * E;
    case "switch": // what the router sees, and by how much it was shaken; logits, probabilities
      return (typeof type === "object" && "jitter" in type && type.jitter === 0 ? 0 : 2 * rows * D) + rows * (2 * E + 4);
    case "gshard":
      return rows * (2 * E + 20);
    case "top-k":
      return rows * (2 * E + 3 * K) + 4 * choices;
    case "sigmoid": // logits, scores, with the biases added
      return rows * 3 * E + 8 * choices;
    case "strictly-balanced": // logits, probabilities, what is above the threshold before and after ReLU
      return rows * 4 * E + 14 * choices;
    case "expert-choice":
      return rows * 2 * E + 6 * choices;
  }
}

/** The most that the way back through the experts takes beside the gradients of parameters: gradients of hidden layers, and activations computed again. */
function expertsWayBack(middle: MoeMiddle, D: number, N: number): number {
  const M = N * expertsPerRow(middle);
  const widths = expertWidths(middle, D);
  const again = middle.recompute ? hiddenScalars(middle, widths) + D : 0;
  const F = Math.max(...widths);
  // Of a hidden layer before and after its activation; swiglu's product has two factors.
  const gradients = isOneOperation(middle, widths) ? F + 2 * D : Math.max((middle.activation === "swiglu" ? 3 : 2) * F, F + D);
  return M * (gradients + again) + 2 * N * D;
}

/** @throws ConfigError, naming what is needed and what there is, for a model that no batch is small enough for; as `planRun` for one that cannot be */
export function checkMemory(config: TrainConfig, vocabSize: number, ranks = 1): void {
  const plan = planRun(config, vocabSize);
  // A rank has its share of the experts.
  const fixedBytes = plan.fixedBytes - plan.bytesPerExpertParameter * plan.moeParameters * (1 - 1 / ranks);
  const { limit } = defaultBackend().memory();
  if (fixedBytes <= limit) return;
  const gib = (n: number): string => `${(n / 2 ** 30).toFixed(1)} GiB`;
  const hint = "Lower --hidden-size, --vocab-size or the number of experts, or take --factored-experts.";
  throw new ConfigError(
    expectation(`model ${config.model}`, `parameters, gradients and optimiser state within ${gib(limit)}`, gib(fixedBytes), hint),
  );
}
