/** What a language model costs: multiply-adds a token and parameters, as the paper's tables count them (Shazeer et al. 2017, Tables 7 and 8). */

import { gateTopK, type GateConfig } from "../moe/gates/index.js";
import { isProjected, lstmLayers, type LanguageModelConfig, type MiddleConfig, type MoeMiddle } from "./language-model.js";
import type { TranslationModelConfig } from "./translation-model.js";

/** A gate of a mixture as its costs need it: at the second level of a hierarchical one there is one for each of `groups` groups. */
export interface GateLevel {
  type: GateConfig;
  /** Experts (or groups) it chooses from. */
  numExperts: number;
  /** How many of them a row uses. */
  topK: number;
  /** Gates of this level. */
  count: number;
  /** How many of these gates a row goes through. */
  perRow: number;
}

/** The gates of a mixture, with the experts a row uses: one level, or two. */
export function gateLevels({ numExperts, topK, gate = "noisy-top-k", secondaryGate = gate }: MoeMiddle): GateLevel[] {
  if (typeof numExperts === "number") {
    return [
      {
        type: gate,
        numExperts,
        topK: (topK as number | undefined) ?? gateTopK(nameOf(gate), numExperts).topK,
        count: 1,
        perRow: 1,
      },
    ];
  }
  const [groups, perGroup] = numExperts;
  const level = (type: GateConfig, experts: number, i: 0 | 1): number => {
    const { topK: own, fixed } = gateTopK(nameOf(type), experts);
    // As `HierarchicalMoE`: two a level, where the gate lets one choose.
    return (topK as readonly number[] | undefined)?.[i] ?? (fixed ? own : Math.min(2, experts));
  };
  const first = level(gate, groups, 0);
  return [
    { type: gate, numExperts: groups, topK: first, count: 1, perRow: 1 },
    { type: secondaryGate, numExperts: perGroup, topK: level(secondaryGate, perGroup, 1), count: groups, perRow: first },
  ];
}

/** E of a mixture, of all groups. */
export function totalExperts({ numExperts }: MoeMiddle): number {
  return typeof numExperts === "number" ? numExperts : numExperts[0] * numExperts[1];
}

/** Experts a row uses in all; on average where the gate deals rows to experts. */
export function expertsPerRow(middle: MoeMiddle): number {
  return gateLevels(middle).reduce((product, { topK }) => product * topK, 1);
}

/** Hidden widths of one expert. */
export function expertWidths({ expertHiddenSize }: MoeMiddle, hiddenSize: number): readonly number[] {
  if (expertHiddenSize === undefined) return [2 * hiddenSize];
  return typeof expertHiddenSize === "number" ? [expertHiddenSize] : expertHiddenSize;
}

/** Scalars in the matrices and in the biases of one feed-forward expert. swiglu has a second matrix before each hidden layer. */
export function expertSize(
  widths: readonly number[],
  hiddenSize: number,
  { activation, bias }: Pick<MoeMiddle, "activation" | "bias">,
): { weights: number; biases: number } {
  const inputs = [hiddenSize, ...widths.slice(0, -1)];
  const hidden = widths.reduce((sum, width, i) => sum + inputs[i]! * width, 0);
  const weights = hidden * (activation === "swiglu" ? 2 : 1) + widths.at(-1)! * hiddenSize;
  return { weights, biases: bias ? widths.reduce((sum, width) => sum + width, hiddenSize) : 0 };
}

/** What a model costs. */
export interface Cost {
  /** Multiply-adds of a forward pass per token, without the softmax. */
  opsPerTimestep: number;
  /** Without embedding and softmax. */
  parameters: number;
}

/**
 * Multiply-adds of a forward pass per token, without the softmax, and parameters without embedding and softmax (Tables 7 and 8). Parameters are those the
 * model has, with the biases of its LSTM layers: with them MoE-143M has the 4371.1 million that the paper prints, without them 4371.0.
 */
export function computeCost(config: LanguageModelConfig): Cost {
  const { hiddenSize: D, lstmSize: H, middle } = config;
  const layers = lstmLayers(middle);
  const lstms = layers * lstmCost(D, H, isProjected(config) ? D : undefined);
  const between = middleCost(middle, D);
  return { opsPerTimestep: lstms + between.opsPerTimestep, parameters: lstms + layers * 4 * H + between.parameters };
}

/**
 * As `computeCost`, of a translation model: a timestep is one of the encoder and one of the decoder. What attention does for each pair of positions is left
 * out, as it depends on the lengths: A + D for each.
 */
export function translationCost(config: TranslationModelConfig): Cost {
  const { hiddenSize: D, lstmSize: H, attentionSize: A, contextTo, middle } = config;
  const projection = H === D ? undefined : D;
  const lstms = 2 * lstmCost(D, H, D) + 4 * lstmCost(D, H, projection);
  // Gates are fed what was read, and the layers above where it goes to all; keys once a source position, and queries.
  const attention = 4 * H * D + (contextTo === "all" ? D * D : 0) + 2 * D * A;
  const between = middleCost(middle, D);
  return { opsPerTimestep: lstms + attention + 2 * between.opsPerTimestep, parameters: lstms + attention + A + 2 * between.parameters };
}

/** All trainable scalars of a translation model: with biases, embedding and softmax. */
export function translationParameters(config: TranslationModelConfig): number {
  const { vocabSize: V, hiddenSize: D, lstmSize: H, tied } = config;
  return translationCost(config).parameters + 6 * 4 * H + (tied ? 1 : 2) * V * D + V;
}

/** Multiply-adds a step, and weights, of an LSTM layer of H units over inputs of width D, projected or not. */
export function lstmCost(D: number, H: number, projection: number | undefined): number {
  return 4 * H * (D + (projection ?? H)) + (projection === undefined ? 0 : H * projection);
}

/** What stands between LSTM layers of width D. */
export function middleCost(middle: MiddleConfig, D: number): Cost {
  if (middle.kind === "dense") {
    const widths = [D, ...middle.hiddenSizes, D];
    const size = widths.slice(1).reduce((sum, width, i) => sum + widths[i]! * width, 0);
    return { opsPerTimestep: size, parameters: size };
  }
  if (middle.kind !== "moe") return { opsPerTimestep: 0, parameters: 0 };
  const widths = expertWidths(middle, D);
  const expert = expertSize(widths, D, middle);
  let ops = expertsPerRow(middle) * expert.weights;
  let parameters = totalExperts(middle) * (expert.weights + expert.biases);
  if (middle.sharedExperts) {
    const shared = expertSize(
      widths.map((width) => width * middle.sharedExperts!),
      D,
      middle,
    );
    ops += shared.weights;
    parameters += shared.weights + shared.biases;
  }
  for (const { type, numExperts, count, perRow } of gateLevels(middle)) {
    // W_g, and W_noise where there is noise, for every expert that the gate chooses from: D·a + k·D·b each for a groups of b, of which a row goes to k.
    const matrices = nameOf(type) === "noisy-top-k" ? 2 : 1;
    ops += perRow * matrices * D * numExperts;
    parameters += count * (matrices * D * numExperts + (nameOf(type) === "strictly-balanced" ? numExperts : 0));
  }
  return { opsPerTimestep: ops, parameters };
}

/**
 * Bytes of parameters that a step of one token reads when text is generated: an embedding, the LSTM layers, the gate without its noise, the experts that the
 * token uses, and the softmax; and those of all parameters.
 */
export function inferenceBytes(config: LanguageModelConfig): { layers: number; softmax: number; total: number; parameters: number } {
  const { hiddenSize: D, lstmSize: H, vocabSize: V, middle } = config;
  const { opsPerTimestep, parameters } = computeCost(config);
  // A product of one row reads each of its weights once.
  let scalars = opsPerTimestep + lstmLayers(middle) * 4 * H;
  if (middle.kind === "moe") {
    const widths = expertWidths(middle, D);
    scalars += expertsPerRow(middle) * expertSize(widths, D, middle).biases;
    if (middle.sharedExperts) scalars += expertSize(widths.map((width) => width * middle.sharedExperts!), D, middle).biases; // prettier-ignore
    for (const { type, numExperts, perRow } of gateLevels(middle)) {
      if (nameOf(type) === "noisy-top-k") scalars -= perRow * D * numExperts;
      if (nameOf(type) === "strictly-balanced") scalars += perRow * numExperts;
    }
  }
  const softmax = V * D + V;
  return { layers: 4 * scalars, softmax: 4 * softmax, total: 4 * (D + scalars + softmax), parameters: 4 * (parameters + V * D + softmax) };
}

/** The name in a gate's configuration. */
export function nameOf(gate: GateConfig): (GateConfig & object)["type"] {
  return typeof gate === "string" ? gate : gate.type;
}
