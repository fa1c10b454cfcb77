/** What the commands do with translation models: training, evaluation, and `sparsegate translate`. */

import { readFileSync } from "node:fs";
import type { Communicator } from "../comm/index.js";
import { translationCost, translationParameters } from "../models/cost.js";
import { ConfigError, FileError, expectation } from "../core/errors.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { formatBleu } from "../text/bleu.js";
import { corpusChrf, formatChrf } from "../text/chrf.js";
import { PairBatchStream } from "../text/pair-batches.js";
import { tokenizePairs } from "../text/pair-dataset.js";
import { readParallel } from "../text/parallel.js";
import { writeFileAtomic } from "../train/atomic.js";
import type { Checkpoint } from "../train/checkpoint.js";
import { Progress } from "../train/progress.js";
import { tokenizerOf } from "../train/restore.js";
import { translationModelConfig, type TranslationConfig } from "../train/translation/config.js";
import { attentionPage } from "../train/translation/attention-page.js";
import { makeTranslationDatasets, readCorpora, type TranslationDatasets } from "../train/translation/data.js";
import { evaluateTranslation } from "../train/translation/evaluate.js";
import { loadTranslationModel, type LoadedTranslation } from "../train/translation/restore.js";
import { trainTranslation } from "../train/translation/trainer.js";
import { translateSteps, type TranslateOptions, type Translation } from "../train/translation/translate.js";
import { openBackend } from "./backend.js";
import { print } from "./output.js";
import { countText, pairScores, pairTable } from "./pair-scores.js";

type Options = Record<string, unknown>;

/** Lines that are read ahead of what has been written, in batches: enough to sort by length. */
const BATCHES_AT_ONCE = 16;
/** Translations whose attention is drawn: a page is to be looked at. */
const FIGURES = 20;

/** A run of a translation model as one rank, which may be the only one; the first says how it went. @returns whether it was finished */
export async function trainTranslationRank(
  { config, checkpoint, overwrite, json }: { config: TranslationConfig; checkpoint: Checkpoint | undefined; overwrite: boolean; json: boolean },
  comm: Communicator,
  listen: () => Pick<AbortSignal, "aborted">,
  progress: Progress,
): Promise<{ finished: boolean }> {
  const first = comm.rank === 0;
  const { datasets, note } = await datasetsOf(config, checkpoint);
  if (first) progress.note(note);
  openBackend({ quiet: !first });
  const result = await trainTranslation(config, datasets, { progress, signal: listen(), overwrite, comm }, checkpoint).catch((error: unknown) => {
    progress.finish(); // an error message begins on a line of its own
    throw error;
  });
  if (first) {
    progress.finish(`${config.model}: ${result.steps} steps, ${Math.round(result.tokensPerSecond)} target tokens/s`);
    const { valid, test, best } = result;
    const summary = {
      model: config.model,
      steps: result.steps,
      finished: result.finished,
      tokens_per_second: Math.round(result.tokensPerSecond),
      seconds: Math.round(result.seconds),
      peak_bytes: result.peakBytes,
      valid_perplexity: valid?.perplexity ?? null,
      valid_bleu: valid?.bleu ?? null,
      best_step: best?.step ?? null,
      best_valid_bleu: best ? -best.loss : null,
      test_perplexity: test?.perplexity ?? null,
      test_bleu: test?.bleu ?? null,
      bleu_signature: (valid ?? test)?.texts[0]?.bleu.signature ?? null,
      output_dir: config.output_dir,
    };
    const scores = pairScores(valid, test);
    if (json) print({ ...summary, ...(scores.length > 0 ? { pairs: scores } : {}) }, true);
    else {
      print(Object.fromEntries(Object.entries(summary).filter(([, value]) => value !== null)), false);
      if (scores.length > 0) process.stdout.write(`${pairTable(scores)}\n`);
    }
    if (!result.finished) {
      process.stderr.write(`Interrupted at step ${result.steps} of ${config.max_steps}. Go on with: sparsegate train --resume ${config.output_dir}\n`);
    }
  }
  defaultBackend().dispose();
  return result;
}

/** What a run would be, without making it. */
export async function dryRunTranslation(config: TranslationConfig, checkpoint: Checkpoint | undefined, progress: Progress, json: boolean): Promise<void> {
  const { datasets, pairs, tooLong, note } = await datasetsOf(config, checkpoint);
  progress.note(note);
  // Complains where a pair does not fit into a batch.
  void new PairBatchStream(datasets.train, { batchTokens: config.batch_tokens, seed: config.seed });
  // The model is not made: those of the paper do not fit into the memory of one process.
  const model = translationModelConfig(config, datasets.tokenizer.vocabSize);
  print(
    { model: config.model, vocab_size: model.vocabSize, parameters: translationParameters(model), ops_per_timestep: translationCost(model).opsPerTimestep, pairs, too_long: tooLong },
    json,
  );
}

/** The texts of a run, and what to say of them. */
async function datasetsOf(config: TranslationConfig, checkpoint: Checkpoint | undefined): Promise<{ datasets: TranslationDatasets } & ReturnType<typeof countText>> {
  const corpora = await readCorpora(config);
  const datasets = makeTranslationDatasets(config, corpora, checkpoint && tokenizerOf(checkpoint));
  return { datasets, ...countText(corpora.train, datasets.train) };
}

/** Options of a search, as the flags of `translate` and `eval` give them. */
function searchOf(options: Options, { multilingual, config }: LoadedTranslation, where: string): TranslateOptions {
  const language = options["language"] as string | undefined;
  if (multilingual !== (language !== undefined)) {
    const [expected, hint] = multilingual ? ["--language, the one to translate into", "The model knows several."] : ["no --language", "The model knows one pair of languages."];
    throw new ConfigError(expectation(where, expected, language ?? "none", hint));
  }
  return {
    beamSize: options["beamSize"] as number,
    lengthPenalty: options["lengthPenalty"] as number,
    coveragePenalty: options["coveragePenalty"] as number,
    batchSize: options["batchSize"] as number,
    maxSourceTokens: config.max_source_tokens,
    language,
  };
}

function load(where: string, run: string, options: Options): LoadedTranslation {
  const which = options["checkpoint"];
  if (which !== "best" && which !== "last") throw new ConfigError(expectation("--checkpoint", "best or last", which));
  return loadTranslationModel(where, run, { checkpoint: which, average: options["average"] as number | undefined });
}

/** `eval` of a translation model: perplexity, BLEU and chrF on a text and its translations. */
export async function evalTranslationCommand(run: string, options: Options): Promise<void> {
  openBackend();
  const loaded = load("eval", run, options);
  const { model, config, tokenizer, multilingual } = loaded;
  const search = searchOf(options, loaded, "eval");
  const given = options["data"] !== undefined;
  const own = config.test === undefined ? ([config.valid, config.valid_target] as const) : ([config.test, config.test_target] as const);
  const [data, target] = given ? [options["data"] as string, options["target"] as string | undefined] : own;
  if (data === undefined) throw new ConfigError(expectation("eval", "--data and --target, a text and its translations", "none", `${run} was trained without --test and --valid.`));
  const columns = config.source_column !== undefined && config.target_column !== undefined && target === undefined;
  if (target === undefined && !columns) throw new ConfigError(expectation("eval", `--target, the translations of ${data}`, "none"));
  const languages = search.language === undefined ? {} : { targetLanguage: search.language };
  const corpus = await readParallel(
    columns
      ? { file: data, sourceColumn: config.source_column!, targetColumn: config.target_column!, empty: "keep", ...languages }
      : { sourceFile: data, targetFile: target!, empty: "keep", ...languages },
  );
  const text = { name: data, corpus, data: tokenizePairs(corpus, tokenizer, { languageTokens: multilingual }) };
  const begun = performance.now();
  const result = evaluateTranslation(model, tokenizer, [text], { ...search, multilingual, batchTokens: config.batch_tokens });
  const [one] = result.texts as [(typeof result.texts)[number]];
  const scores = { bleu: one.bleu, multi_bleu: one.multiBleu };
  print(
    {
      data,
      checkpoint: loaded.from,
      sentences: corpus.sources.length,
      tokens: result.tokens,
      loss: result.loss,
      perplexity: result.perplexity,
      ...Object.fromEntries(Object.entries(scores).map(([name, { score }]) => [name, score])),
      chrf: corpusChrf(one.translations, corpus.targets).score,
      seconds: Math.round((performance.now() - begun) / 100) / 10,
      ...(options["json"] === true ? { bleu_signature: one.bleu.signature, multi_bleu_signature: one.multiBleu.signature } : {}),
    },
    options["json"],
  );
  if (options["json"] !== true) {
    for (const score of Object.values(scores)) process.stdout.write(`${formatBleu(score, { width: 2, signature: true })}\n`);
    process.stdout.write(`${formatChrf(corpusChrf(one.translations, corpus.targets), { signature: true })}\n`);
  }
  defaultBackend().dispose();
}

/** `sparsegate translate`: a text on the command line, or stdin line by line. */
export async function translateCommand(run: string, words: readonly string[], options: Options): Promise<void> {
  const lines = words.length > 0 ? [words.join(" ")] : linesOf(readFileSync(0));
  openBackend();
  const loaded = load("translate", run, options);
  const nBest = options["nBest"] as number;
  const search = { ...searchOf(options, loaded, "translate"), nBest };
  const progress = new Progress({ enabled: options["progress"] !== false && words.length === 0 });
  const begun = performance.now();
  const size = BATCHES_AT_ONCE * (search.batchSize ?? 1);
  let cut = 0;
  const drawn: { source: string; translation: Translation }[] = [];
  for (let first = 0; first < lines.length; first += size) {
    const part = lines.slice(first, first + size);
    const steps = translateSteps(loaded.model, loaded.tokenizer, part, search);
    let state = steps.next();
    while (!state.done) {
      const count = first + state.value;
      progress.update(() => `${count}/${lines.length} lines  ${((1000 * count) / (performance.now() - begun)).toFixed(1)} lines/s`);
      state = steps.next();
    }
    cut += state.value.cut;
    for (const [i, translations] of state.value.translations.entries()) {
      write(first + i + 1, part[i]!, translations, options, nBest > 1);
      if (drawn.length < FIGURES) drawn.push({ source: part[i]!, translation: translations[0]! });
    }
  }
  progress.finish(`${lines.length} lines in ${((performance.now() - begun) / 1000).toFixed(1)} s`);
  const file = options["figure"];
  if (typeof file === "string") {
    writeFileAtomic(file, await attentionPage(`What ${run} reads`, drawn, `sparsegate translate ${run} --figure ${file}`, new Date().toISOString()));
    process.stderr.write(`Page with figures: ${file}\n`);
  }
  if (cut > 0) process.stderr.write(`${cut} of ${lines.length} lines were longer than the ${loaded.config.max_source_tokens} tokens of training, and cut there.\n`);
  defaultBackend().dispose();
}

function write(line: number, source: string, translations: readonly Translation[], options: Options, several: boolean): void {
  // A line of output for each of input: a line break that a model makes up must not shift the rest.
  const oneLine = (text: string): string => text.replaceAll(/[\r\n\u2028\u2029]+/g, " ");
  if (options["json"] === true) {
    const shown = translations.map(({ text, score, logProbability, sourceTokens, targetTokens, attention }) => ({
      text,
      score,
      log_probability: logProbability,
      ...(options["attention"] === true ? { source_tokens: sourceTokens, target_tokens: targetTokens, attention: attention.map((row) => Array.from(row, (p) => Math.round(1e4 * p) / 1e4)) } : {}),
    }));
    process.stdout.write(`${JSON.stringify({ line, source, translations: shown })}\n`);
  } else if (several) for (const { text, score } of translations) process.stdout.write(`${line}\t${score.toFixed(4)}\t${oneLine(text)}\n`);
  else process.stdout.write(`${oneLine(translations[0]!.text)}\n`);
}

/** @throws FileError for bytes that are not UTF-8 */
function linesOf(bytes: Uint8Array): string[] {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new FileError(expectation("translate", "UTF-8 text on stdin", "bytes that are not UTF-8"));
  }
  const lines = text.split(/\r?\n/);
  if (lines.at(-1) === "") lines.pop();
  return lines;
}
