/** Text from a language model, a token at a time, of one prompt or of several side by side. A step touches only the k experts of its tokens. */

import { checkInteger, checkNumber } from "../core/checks.js";
import { ConfigError } from "../core/errors.js";
import { streamId, uniformAt } from "../core/random.js";
import type { LanguageModel } from "../models/language-model.js";
import type { LstmState } from "../tensor/ops/lstm.js";
import { matmul } from "../tensor/ops/products.js";
import { add } from "../tensor/ops/elementwise.js";
import { embedding } from "../tensor/ops/rows.js";
import { reshape, transpose } from "../tensor/ops/shape.js";
import { keep, scope } from "../tensor/scope.js";
import { noGrad } from "../tensor/tape.js";
import { tensor, type Tensor } from "../tensor/tensor.js";
import type { Tokenizer } from "../text/tokenizer.js";
import { carryStates } from "./evaluate.js";
import { sampleLogits } from "./sampling.js";

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

/** As `GenerateOptions`, for several prompts. */
export interface BatchGenerateOptions extends Omit<GenerateOptions, "onText"> {
  /** Called with each piece of text as it comes, and the place of its prompt. */
  onText?: (text: string, prompt: number) => void;
  /** Called when a prompt's text is at its end. */
  onEnd?: (prompt: number) => void;
}

/** Fills in the defaults. @throws ConfigError for a value that cannot be used */
export function checkGenerateOptions(options: Omit<GenerateOptions, "onText">): Required<Omit<GenerateOptions, "onText">> {
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
  const { onText, ...rest } = options;
  return generateBatch(model, tokenizer, [prompt], { ...rest, ...(onText ? { onText: (text) => onText(text) } : {}) })[0]!;
}

/** A prompt on its way. */
interface Lane {
  prompt: number;
  /** Its tokens, and those drawn so far. */
  ids: number[];
  /** Tokens that the model has not read yet; the end-of-sentence symbol comes before the first. */
  pending: number[];
  key: { seed: number; stream: number; step: number };
  drawn: number;
  /** Characters that `onText` has seen. */
  shown: number;
}

/**
 * Continues several prompts side by side, each until the end of its sentence or `maxTokens`: one product serves all of them. Each gets the text it would get
 * alone, but for rounding, with which products of other sizes differ; a prompt that is given again gets another text each time.
 * @returns prompts and continuations
 */
export function generateBatch(
  model: LanguageModel,
  tokenizer: Tokenizer,
  prompts: readonly string[],
  options: BatchGenerateOptions = {},
): string[] {
  const { maxTokens, seed, ...sampling } = checkGenerateOptions(options);
  const { onText, onEnd } = options;
  if (model.config.vocabSize !== tokenizer.vocabSize) {
    throw new ConfigError(
      `generate: expected a tokenizer of ${model.config.vocabSize} tokens (the model's vocabulary), got ${tokenizer.vocabSize}.`,
    );
  }
  const lanes = prompts.map((prompt, i): Lane => {
    const ids = [...tokenizer.encode(prompt)];
    const before = prompts.slice(0, i).filter((other) => other === prompt).length;
    const key = { seed, stream: streamId("generate", prompt), step: before };
    return { prompt: i, ids, pending: [tokenizer.eosId, ...ids], key, drawn: 0, shown: tokenizer.decode(ids).length };
  });
  let active = lanes;
  let states: LstmState[] | undefined;
  return noGrad(() => {
    const weight = keep(scope(() => transpose(model.softmaxWeight)));
    try {
      while (active.length > 0) {
        const { logits, next } = step(model, active, states, weight);
        states = next;
        const ended = active.filter((lane, b) => {
          if (lane.pending.length > 0) return false; // still reading its prompt
          const id = sampleLogits(logits[b]!, sampling, uniformAt(lane.key, lane.drawn++));
          if (id !== tokenizer.eosId) take(lane, id, tokenizer, onText);
          if (id !== tokenizer.eosId && lane.drawn < maxTokens) return false;
          end(lane, tokenizer, onText);
          onEnd?.(lane.prompt);
          return true;
        });
        if (ended.length === 0) continue;
        const rest = active.map((_, b) => b).filter((b) => !ended.includes(active[b]!));
        states = rest.length === 0 ? carryStates(states, []) : statesOf(states, rest);
        active = rest.map((b) => active[b]!);
      }
    } finally {
      carryStates(states, []);
      weight.dispose();
    }
    return lanes.map(({ ids }) => tokenizer.decode(ids));
  });
}

/** Reads as many tokens of each lane as all have waiting. @returns logits of what comes next, a row each lane, and the states after it */
function step(
  model: LanguageModel,
  lanes: readonly Lane[],
  states: LstmState[] | undefined,
  weight: Tensor,
): { logits: Float32Array[]; next: LstmState[] } {
  const B = lanes.length;
  const T = lanes.reduce((least, { pending }) => Math.min(least, pending.length), Infinity);
  const ids = new Int32Array(T * B);
  for (const [b, { pending }] of lanes.entries()) for (const [t, id] of pending.splice(0, T).entries()) ids[t * B + b] = id;
  const needed = lanes.some(({ pending }) => pending.length === 0);
  return scope(() => {
    const { output, states: after } = model.hidden(
      tensor(ids, [T, B], "int32"),
      { training: false, seed: 0, step: 0, firstRow: 0 },
      states,
    );
    const next = carryStates(states, after);
    if (!needed) return { logits: [], next };
    const rows = reshape(output, [-1, model.config.hiddenSize]);
    const last =
      T === 1
        ? rows
        : embedding(
            rows,
            tensor(
              Int32Array.from({ length: B }, (_, b) => (T - 1) * B + b),
              [B],
              "int32",
            ),
          );
    const all = add(matmul(last, weight), model.softmaxBias).dataSync() as Float32Array;
    const V = all.length / B;
    return { logits: lanes.map((_, b) => all.slice(b * V, (b + 1) * V)), next };
  });
}

/** The states of some lanes; the ones they come from are let go. */
function statesOf(states: LstmState[], lanes: readonly number[]): LstmState[] {
  return scope(() => {
    const index = tensor(Int32Array.from(lanes), [lanes.length], "int32");
    return carryStates(
      states,
      states.map(({ h, c }) => ({ h: embedding(h, index), c: embedding(c, index) })),
    );
  });
}

function take(lane: Lane, id: number, tokenizer: Tokenizer, onText: BatchGenerateOptions["onText"]): void {
  lane.ids.push(id);
  lane.pending = [id];
  if (!onText) return;
  const text = tokenizer.decode(lane.ids);
  // A character of several bytes may be complete only with the next token.
  if (text.endsWith("\ufffd")) return;
  onText(text.slice(lane.shown), lane.prompt);
  lane.shown = text.length;
}

function end(lane: Lane, tokenizer: Tokenizer, onText: BatchGenerateOptions["onText"]): void {
  const rest = tokenizer.decode(lane.ids).slice(lane.shown);
  if (onText && rest !== "") onText(rest, lane.prompt);
}
