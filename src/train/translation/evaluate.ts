/** Perplexity and BLEU of a translation model on texts, each pair of languages by itself. */

import { balanceStatistics, processedLoad, type BalanceStatistics } from "../../moe/statistics.js";
import type { TranslationModel } from "../../models/translation-model.js";
import type { RunContext } from "../../nn/module.js";
import { scope } from "../../tensor/scope.js";
import { noGrad } from "../../tensor/tape.js";
import { corpusBleu, multiBleu, type BleuScore } from "../../text/bleu.js";
import type { BleuTokenization } from "../../text/bleu-tokens.js";
import { pairEvaluationBatches } from "../../text/pair-batches.js";
import type { Tokenizer } from "../../text/tokenizer.js";
import { gatherStrings, onOtherRank, ownPairs, sumOverRanks } from "../ranks.js";
import type { EvaluationText } from "./data.js";
import { translateSteps, type TranslateOptions } from "./translate.js";

/** Of one text. */
export interface TextEvaluation {
  name: string;
  /** Nats per target token, the ends counted in; without label smoothing. */
  loss: number;
  perplexity: number;
  tokens: number;
  bleu: BleuScore;
  /** BLEU of lower-cased tokens as multi-bleu.perl has it. */
  multiBleu: BleuScore;
  translations: string[];
  /** Sources that were cut for `translations`, and so for BLEU; the loss is that of whole pairs. */
  cut: number;
}

/** Of all texts. */
export interface TranslationEvaluation {
  /** Over all target tokens. */
  loss: number;
  perplexity: number;
  tokens: number;
  /** Mean over the texts. */
  bleu: number;
  texts: TextEvaluation[];
  /** Of each mixture, over the whole pass. */
  balance: { [part in "encoder" | "decoder"]?: BalanceStatistics };
}

/** What texts are evaluated with. */
export interface EvaluationOptions extends TranslateOptions {
  batchTokens: number;
  /** Whether a token of the target language stands in front of each source. */
  multilingual: boolean;
}

const EVALUATION: RunContext = { training: false, seed: 0, step: 0, firstRow: 0 };

/** How BLEU cuts a language into tokens: those that are written without spaces by characters, as sacrebleu does without a dictionary. */
export function bleuTokenization(language: string | undefined): BleuTokenization {
  if (language?.startsWith("zh")) return "zh";
  return language?.startsWith("ja") ? "char" : "13a";
}

/** An evaluation that rests after each batch. @throws NonFiniteError naming the layer */
export function* translationEvaluationSteps(model: TranslationModel, tokenizer: Tokenizer, texts: readonly EvaluationText[], options: EvaluationOptions): Generator<void, TranslationEvaluation> {
  const { batchTokens, multilingual, ...search } = options;
  const { comm } = search;
  const loads = new Map<"encoder" | "decoder", { importance: Float64Array; load: Float64Array }>();
  const results: TextEvaluation[] = [];
  for (const { name, corpus, data } of texts) {
    let [total, tokens] = [0, 0];
    let longest = 0;
    for (let i = 0; i < data.pairs; i++) longest = Math.max(longest, data.sourceLength(i), data.targetLength(i));
    for (const batch of pairEvaluationBatches(data, { batchTokens: Math.max(batchTokens, longest) })) {
      noGrad(() =>
        scope(() => {
          const own = comm ? ownPairs(batch, comm) : batch;
          const out = model.forward(own, EVALUATION);
          const loss = comm ? sumOverRanks(comm, (out.crossEntropy.item() * own.tokens) / batch.tokens) : out.crossEntropy.item();
          if (!Number.isFinite(loss)) throw onOtherRank(model, comm, "Evaluation") ?? model.explainNonFinite("Evaluation", loss, own, EVALUATION);
          total += loss * batch.tokens;
          for (const part of ["encoder", "decoder"] as const) {
            const moe = out[part]?.moe;
            if (!moe) continue;
            const load = processedLoad(moe);
            const sums = loads.get(part) ?? { importance: new Float64Array(load.length), load: new Float64Array(load.length) };
            moe.importance.dataSync().forEach((v, e) => (sums.importance[e]! += v));
            load.forEach((v, e) => (sums.load[e]! += v));
            loads.set(part, sums);
          }
        }),
      );
      tokens += batch.tokens;
      yield;
    }
    const language = multilingual ? corpus.targetLanguage : undefined;
    // On ranks each translates some: every so-manieth, as long texts often stand together.
    const sources = comm ? corpus.sources.filter((_, i) => i % comm.size === comm.rank) : corpus.sources;
    const steps = translateSteps(model, tokenizer, sources, { ...search, language });
    let state = steps.next();
    while (!state.done) {
      yield;
      state = steps.next();
    }
    const own = state.value.translations.map(([best]) => best!.text);
    const translations = comm ? dealtBack(gatherStrings(comm, own), corpus.sources.length) : own;
    const loss = tokens === 0 ? 0 : total / tokens;
    results.push({
      name,
      loss,
      perplexity: Math.exp(loss),
      tokens,
      bleu: corpusBleu(translations, corpus.targets, { tokenize: bleuTokenization(corpus.targetLanguage) }),
      multiBleu: multiBleu(translations, corpus.targets),
      translations,
      cut: sumOverRanks(comm, state.value.cut),
    });
  }
  const tokens = results.reduce((sum, text) => sum + text.tokens, 0);
  const loss = results.reduce((sum, text) => sum + text.loss * text.tokens, 0) / Math.max(tokens, 1);
  return {
    loss,
    perplexity: Math.exp(loss),
    tokens,
    bleu: results.reduce((sum, { bleu }) => sum + bleu.score, 0) / Math.max(results.length, 1),
    texts: results,
    balance: Object.fromEntries([...loads].map(([part, { importance, load }]) => [part, balanceStatistics(importance, load)])),
  };
}

/** Texts in their order again, of which rank r had every one whose place leaves r. */
function dealtBack(byRank: readonly (readonly string[])[], count: number): string[] {
  return Array.from({ length: count }, (_, i) => byRank[i % byRank.length]![Math.floor(i / byRank.length)]!);
}

/** The whole evaluation at once. @throws NonFiniteError naming the layer */
export function evaluateTranslation(...given: Parameters<typeof translationEvaluationSteps>): TranslationEvaluation {
  const steps = translationEvaluationSteps(...given);
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}
