/** What experts specialise in (Shazeer et al. 2017, Table 9): the contexts with the highest gate values, and the languages an expert takes. */

import type { LanguageModel } from "../models/language-model.js";
import type { Batch } from "../text/batches.js";
import type { Tokenizer } from "../text/tokenizer.js";
import { evaluate, type RoutedBatch } from "./evaluate.js";

export interface LabelledText {
  text: string;
  /** What the text is sorted by, such as its language. */
  label: string;
}

export interface ExpertContext {
  before: string;
  token: string;
  after: string;
  gate: number;
  label: string;
}

export interface ExpertProfile {
  expert: number;
  /** Tokens it took. */
  tokens: number;
  /** Share of its tokens by label, in the order of `labels`. */
  shares: number[];
  /** Kullback-Leibler divergence of `shares` from the whole text's, in nats: 0 for an expert without preferences. */
  divergence: number;
  contexts: ExpertContext[];
}

export interface Specialisation {
  labels: string[];
  /** Of every expert with tokens, the most specialised first. */
  experts: ExpertProfile[];
}

interface Place {
  gate: number;
  sentence: number;
  position: number;
}

const CONTEXTS = 8;
const WINDOW = 6;

/** Runs the model over the texts, each from its own beginning, and collects who took what. */
export function specialisation(model: LanguageModel, tokenizer: Tokenizer, texts: readonly LabelledText[], { batchSize = 32 } = {}): Specialisation {
  const E = model.moe?.numExperts ?? 0;
  const labels = [...new Set(texts.map(({ label }) => label))].sort();
  const labelIndex = new Map(labels.map((label, i) => [label, i]));
  const sentences = texts.map(({ text }) => Int32Array.from(tokenizer.encode(text)));
  const counts = Array.from({ length: E }, () => new Float64Array(labels.length));
  const best: Place[][] = Array.from({ length: E }, () => []);
  const groups = grouped(sentences, batchSize);
  let g = 0;
  const batches = groups.map((members) => padded(members.map((i) => sentences[i]!), tokenizer.eosId));
  const onRouted = ({ batch, experts, gates, rowOffsets }: RoutedBatch): void => {
    const members = groups[g++]!;
    for (let row = 0; row < batch.timeSteps * batch.batchSize; row++) {
      if (batch.targets[row]! < 0) continue;
      const sentence = members[row % batch.batchSize]!;
      // Position t reads token t−1 (the end-of-sentence symbol first); it is shown as the token that is read.
      const position = Math.floor(row / batch.batchSize) - 1;
      for (let j = rowOffsets[row]!; j < rowOffsets[row + 1]!; j++) {
        const expert = experts[j]!;
        if (expert < 0) continue;
        counts[expert]![labelIndex.get(texts[sentence]!.label)!]! += 1;
        if (position >= 0) insert(best[expert]!, { gate: gates[j]!, sentence, position });
      }
    }
  };
  evaluate(model, batches, { onRouted, carryState: false });
  const overall = new Float64Array(labels.length);
  for (const row of counts) for (let i = 0; i < overall.length; i++) overall[i]! += row[i]!;
  const experts = counts.map((row, expert) => profile(expert, row, overall, best[expert]!, (place) => context(place, sentences, texts, tokenizer)));
  return { labels, experts: experts.filter(({ tokens }) => tokens > 0).sort((a, b) => b.divergence - a.divergence) };
}

/** Indices of sentences in groups of similar length, so that little is padded. */
function grouped(sentences: readonly Int32Array[], batchSize: number): number[][] {
  const order = sentences.map((_, i) => i).sort((a, b) => sentences[a]!.length - sentences[b]!.length || a - b);
  return Array.from({ length: Math.ceil(order.length / batchSize) }, (_, i) => order.slice(i * batchSize, (i + 1) * batchSize));
}

function padded(sentences: readonly Int32Array[], eosId: number): Batch {
  const B = sentences.length;
  const T = Math.max(...sentences.map(({ length }) => length)) + 1;
  const inputs = new Int32Array(T * B).fill(eosId);
  const targets = new Int32Array(T * B).fill(-1);
  const resets = new Int32Array(T * B);
  let tokens = 0;
  for (const [b, sentence] of sentences.entries()) {
    resets[b] = 1;
    for (let t = 0; t <= sentence.length; t++) {
      if (t > 0) inputs[t * B + b] = sentence[t - 1]!;
      targets[t * B + b] = t < sentence.length ? sentence[t]! : eosId;
      tokens++;
    }
  }
  return { inputs, targets, resets, timeSteps: T, batchSize: B, tokens, firstRow: 0 };
}

function insert(list: Place[], place: Place): void {
  if (list.length === CONTEXTS && place.gate <= list.at(-1)!.gate) return;
  let at = list.length;
  while (at > 0 && list[at - 1]!.gate < place.gate) at--;
  list.splice(at, 0, place);
  if (list.length > CONTEXTS) list.pop();
}

function context({ gate, sentence, position }: Place, sentences: readonly Int32Array[], texts: readonly LabelledText[], tokenizer: Tokenizer): ExpertContext {
  const ids = sentences[sentence]!;
  const decode = (from: number, to: number): string => tokenizer.decode(Array.from(ids.subarray(Math.max(from, 0), Math.max(to, 0))));
  return { before: decode(position - WINDOW, position), token: decode(position, position + 1), after: decode(position + 1, position + 1 + WINDOW), gate, label: texts[sentence]!.label };
}

function profile(expert: number, row: Float64Array, overall: Float64Array, places: readonly Place[], show: (place: Place) => ExpertContext): ExpertProfile {
  const tokens = row.reduce((sum, n) => sum + n, 0);
  const all = overall.reduce((sum, n) => sum + n, 0);
  const shares = Array.from(row, (n) => (tokens === 0 ? 0 : n / tokens));
  const divergence = shares.reduce((sum, share, i) => (share === 0 ? sum : sum + share * Math.log(share / (overall[i]! / all))), 0);
  return { expert, tokens, shares, divergence, contexts: places.map(show) };
}
