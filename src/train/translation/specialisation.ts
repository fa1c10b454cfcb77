/** What the encoder's experts specialise in (Shazeer et al. 2017, Table 9): for each the words of the highest gate values, with what stands around them. */

import type { TranslationModel } from "../../models/translation-model.js";
import { scope } from "../../tensor/scope.js";
import { noGrad } from "../../tensor/tape.js";
import { languageToken } from "../../text/parallel.js";
import type { Tokenizer } from "../../text/tokenizer.js";
import { sourceBatch } from "./translate.js";

/** A token that an expert took, and where it stood. */
export interface Context {
  before: string;
  token: string;
  after: string;
  /** G(x)_i */
  gate: number;
}

/** An expert by what it took. */
export interface ExpertWords {
  expert: number;
  /** Tokens it took. */
  tokens: number;
  /** Kullback-Leibler divergence of its tokens from those of all experts, in nats: 0 for an expert without preferences. */
  divergence: number;
  /** In decreasing order of the gate value. */
  contexts: Context[];
}

interface Place {
  gate: number;
  sentence: number;
  position: number;
}

/** Tokens shown on each side. */
const WINDOW = 6;
/** Fewer tokens than this share of an equal part say nothing: any few tokens look special. */
const LEAST = 0.25;

/**
 * Runs the encoder over texts and collects who took what: the experts that took at least a quarter of an equal part, the most specialised first. Ends of
 * sentences are left out.
 * @returns none for a model without experts
 */
export function expertWords(model: TranslationModel, tokenizer: Tokenizer, texts: readonly string[], options: { batchSize?: number; contexts?: number; language?: string | undefined; maxSourceTokens?: number } = {}): ExpertWords[] {
  const { batchSize = 32, contexts: shown = 8, language, maxSourceTokens = 100 } = options;
  const [encoder] = model.mixtures;
  if (!encoder) return [];
  const front = language === undefined ? [] : [tokenizer.specialId(languageToken(language))];
  const sentences = texts.map((text) => [...[...front, ...tokenizer.encode(text)].slice(0, maxSourceTokens - 1), tokenizer.eosId]);
  const counts = Array.from({ length: encoder.numExperts }, () => new Map<number, number>());
  const best: Place[][] = counts.map(() => []);
  const order = sentences.map((_, i) => i).sort((a, b) => sentences[a]!.length - sentences[b]!.length || a - b);
  for (let first = 0; first < order.length; first += batchSize) {
    const members = order.slice(first, first + batchSize);
    noGrad(() =>
      scope(() => {
        const { routed } = model.encode(sourceBatch(members.map((i) => sentences[i]!), tokenizer.eosId));
        const { experts, gates, rowOffsets } = routed!.moe;
        const [list, weights, places] = [experts.dataSync(), gates.dataSync(), routed!.packing!.index.dataSync()];
        const starts = rowOffsets?.dataSync();
        const K = experts.shape[1] ?? 0;
        for (const [row, place] of places.entries()) {
          const [sentence, position] = [members[place % members.length]!, Math.floor(place / members.length)];
          const id = sentences[sentence]![position]!;
          if (id === tokenizer.eosId) continue;
          for (let j = starts ? starts[row]! : row * K; j < (starts ? starts[row + 1]! : (row + 1) * K); j++) {
            const expert = list[j]!;
            if (expert < 0) continue;
            counts[expert]!.set(id, (counts[expert]!.get(id) ?? 0) + 1);
            insert(best[expert]!, { gate: weights[j]!, sentence, position }, shown);
          }
        }
      }),
    );
  }
  const overall = new Map<number, number>();
  for (const count of counts) for (const [id, n] of count) overall.set(id, (overall.get(id) ?? 0) + n);
  const all = sumOf(overall);
  return counts
    .map((count, expert): ExpertWords => {
      const tokens = sumOf(count);
      let divergence = 0;
      for (const [id, n] of count) divergence += (n / tokens) * Math.log(n / tokens / (overall.get(id)! / all));
      return { expert, tokens, divergence, contexts: best[expert]!.map((place) => contextOf(place, sentences, tokenizer)) };
    })
    .filter(({ tokens }) => tokens >= (LEAST * all) / counts.length && tokens > 0)
    .sort((a, b) => b.divergence - a.divergence);
}

const sumOf = (count: ReadonlyMap<number, number>): number => [...count.values()].reduce((sum, n) => sum + n, 0);

/** Keeps the places of the highest gates, highest first; of equal ones those that came first. */
function insert(list: Place[], place: Place, most: number): void {
  let at = list.length;
  while (at > 0 && list[at - 1]!.gate < place.gate) at--;
  list.splice(at, 0, place);
  if (list.length > most) list.pop();
}

function contextOf({ gate, sentence, position }: Place, sentences: readonly number[][], tokenizer: Tokenizer): Context {
  const ids = sentences[sentence]!;
  const show = (from: number, to: number): string => tokenizer.decode(ids.slice(Math.max(from, 0), to));
  // Special tokens leave no text.
  const token = show(position, position + 1) || tokenizer.tokenText(ids[position]!);
  return { before: show(position - WINDOW, position), token, after: show(position + 1, position + 1 + WINDOW), gate };
}
