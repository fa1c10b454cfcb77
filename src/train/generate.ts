/** Text from a language model, a token at a time. A step touches only the k experts of its tokens. */

import { checkInteger, checkNumber } from "../core/checks.js";
import { ConfigError } from "../core/errors.js";
import { streamId, uniformAt } from "../core/random.js";
import type { LanguageModel } from "../models/language-model.js";
import type { LstmState } from "../tensor/ops/lstm.js";
import { matmul } from "../tensor/ops/products.js";
import { add } from "../tensor/ops/elementwise.js";
import { reshape, transpose } from "../tensor/ops/shape.js";
import { keep, scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import { tensor } from "../tensor/tensor.js";
import type { Tokenizer } from "../text/tokenizer.js";
import { carryStates } from "./evaluate.js";

export interface GenerateOptions {
  maxTokens?: number;
  /** Divides the logits; 0 takes the most likely token. */
  temperature?: number;
  /** Keep only the so many most likely tokens; 0 keeps all. */
  topK?: number;
  /** Keep the fewest tokens whose probabilities sum to this. */
  topP?: number;
  seed?: number;
  /** Called with each piece of text as it comes. */
  onText?: (text: string) => void;
}

/** Fills in the defaults. @throws ConfigError for a value that cannot be used */
export function checkGenerateOptions(options: GenerateOptions): Required<Omit<GenerateOptions, "onText">> {
  const { maxTokens = 100, temperature = 1, topK = 0, topP = 1, seed = 0 } = options;
  checkInteger("generate", "maxTokens (--max-tokens)", maxTokens, { min: 1 });
  checkNumber("generate", "temperature (--temperature)", temperature, { min: 0 });
  checkInteger("generate", "topK (--top-k)", topK, { min: 0 });
  checkNumber("generate", "topP (--top-p)", topP, { min: 0, max: 1 });
  checkInteger("generate", "seed (--seed)", seed, { min: 0, max: Number.MAX_SAFE_INTEGER });
  return { maxTokens, temperature, topK, topP, seed };
}

/** Continues `prompt` until the end of the sentence or `maxTokens`. @returns prompt and continuation */
export function generate(model: LanguageModel, tokenizer: Tokenizer, prompt: string, options: GenerateOptions = {}): string {
  const { maxTokens, temperature, topK, topP, seed } = checkGenerateOptions(options);
  const { onText } = options;
  if (model.config.vocabSize !== tokenizer.vocabSize) {
    throw new ConfigError(`generate: expected a tokenizer of ${model.config.vocabSize} tokens (the model's vocabulary), got ${tokenizer.vocabSize}.`);
  }
  const key = { seed, stream: streamId("generate", prompt), step: 0 };
  const ids = [...tokenizer.encode(prompt)];
  let states: LstmState[] | undefined;
  let pending = [tokenizer.eosId, ...ids];
  let shown = tokenizer.decode(ids).length;
  return noGrad(() => {
    const weight = keep(scope(() => transpose(model.softmaxWeight)));
    try {
      for (let n = 0; n < maxTokens; n++) {
        const logits = scope(() => {
          const inputs = tensor(pending, [pending.length, 1], "int32");
          const { output, states: next } = model.hidden(inputs, { training: false, seed: 0, step: 0, firstRow: 0 }, states);
          states = carryStates(states, next);
          const rows = reshape(output, [-1, model.config.hiddenSize]);
          const all = add(matmul(rows, weight), model.softmaxBias).dataSync();
          return all.slice(all.length - tokenizer.vocabSize);
        });
        const id = sampleLogits(logits, { temperature, topK, topP }, uniformAt(key, n));
        if (id === tokenizer.eosId) break;
        ids.push(id);
        pending = [id];
        const text = tokenizer.decode(ids);
        // A character of several bytes may be complete only with the next token.
        if (onText && !text.endsWith("\ufffd")) {
          onText(text.slice(shown));
          shown = text.length;
        }
      }
      const rest = tokenizer.decode(ids).slice(shown);
      if (onText && rest !== "") onText(rest);
    } finally {
      carryStates(states, []);
      weight.dispose();
    }
    return tokenizer.decode(ids);
  });
}

/** The index drawn by `uniform` in [0, 1) from softmax(logits / temperature), restricted by topK and topP. */
export function sampleLogits(logits: ArrayLike<number>, { temperature, topK, topP }: { temperature: number; topK: number; topP: number }, uniform: number): number {
  const order = Array.from({ length: logits.length }, (_, i) => i).sort((a, b) => logits[b]! - logits[a]! || a - b);
  if (temperature === 0) return order[0]!;
  const kept = topK > 0 ? order.slice(0, topK) : order;
  const most = logits[kept[0]!]!;
  const weights = kept.map((i) => Math.exp((logits[i]! - most) / temperature));
  const total = weights.reduce((sum, w) => sum + w, 0);
  let count = 0;
  for (let mass = 0; count < weights.length && (count === 0 || mass < topP * total); count++) mass += weights[count]!;
  const mass = weights.slice(0, count).reduce((sum, w) => sum + w, 0);
  let target = uniform * mass;
  for (let i = 0; i < count; i++) {
    target -= weights[i]!;
    if (target < 0) return kept[i]!;
  }
  return kept[count - 1]!;
}
