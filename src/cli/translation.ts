/** What the commands do with translation models: training, and `sparsegate translate`. */

import { fstatSync } from "node:fs";
import type { Communicator } from "../comm/index.js";
import { translationCost, translationParameters } from "../models/cost.js";
import { ConfigError, FileError, expectation } from "../core/errors.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { PairBatchStream } from "../text/pair-batches.js";
import { fileError, writeFileAtomic } from "../train/atomic.js";
import type { Checkpoint } from "../train/checkpoint.js";
import { caveats } from "../train/moe-config.js";
import { Progress } from "../train/progress.js";
import { tokenizerOf } from "../train/restore.js";
import { checkWhich } from "../train/run-folder.js";
import { translationModelConfig, type TranslationConfig } from "../train/translation/config.js";
import { attentionPage } from "../train/translation/attention-page.js";
import { makeTranslationDatasets, readCorpora, type TranslationDatasets } from "../train/translation/data.js";
import { loadTranslationModel, type LoadedTranslation } from "../train/translation/restore.js";
import { trainTranslation } from "../train/translation/trainer.js";
import { translateSteps, type TranslateOptions, type Translation } from "../train/translation/translate.js";
import { openBackend } from "./backend.js";
import { oneLine, print } from "./output.js";
import { countText, pairScores, pairTable } from "./pair-scores.js";

type Options = Record<string, unknown>;

/** Lines that are read ahead of what has been written, in batches: enough to sort by length. */
const BATCHES_AT_ONCE = 16;
/** Translations whose attention is drawn: a page is to be looked at. */
const FIGURES = 20;

/** A run of a translation model as one rank, which may be the only one; the first says how it went. @returns whether it was finished */
export async function trainTranslationRank(
  config: TranslationConfig,
  { checkpoint, overwrite, json }: { checkpoint: Checkpoint | undefined; overwrite: boolean; json: boolean },
  comm: Communicator,
  listen: () => Pick<AbortSignal, "aborted">,
  progress: Progress,
): Promise<{ finished: boolean }> {
  const first = comm.rank === 0;
  const { datasets, note } = await datasetsOf(config, checkpoint);
  if (first) progress.note(note);
  openBackend({ quiet: !first });
  if (first) sayCaveats(config);
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
      best_valid_perplexity: best ? Math.exp(best.loss) : null,
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

/** Options of a search, as the flags of `translate` and `eval` give them. @param everyPair whether all pairs of the model are meant, and no language is told */
export function searchOf(options: Options, { multilingual, config }: LoadedTranslation, where: string, { everyPair = false } = {}): TranslateOptions {
  const language = options["language"] as string | undefined;
  if (!everyPair && multilingual !== (language !== undefined)) {
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

/** Says on stderr what a reader of figures and translations must know of the model's gates. */
export function sayCaveats(config: TranslationConfig): void {
  for (const note of caveats(config)) process.stderr.write(`${note}\n`);
}

export function load(where: string, run: string, options: Options): LoadedTranslation {
  return loadTranslationModel(where, run, { checkpoint: checkWhich(options["checkpoint"]), average: options["average"] as number | undefined });
}

/** `sparsegate translate`: a text on the command line, or stdin line by line. */
export async function translateCommand(run: string, words: readonly string[], options: Options): Promise<void> {
  const lines = words.length > 0 ? [words.join(" ")] : linesOf(await readStdin());
  openBackend();
  const loaded = load("translate", run, options);
  const nBest = options["nBest"] as number;
  const search = { ...searchOf(options, loaded, "translate"), nBest };
  sayCaveats(loaded.config);
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

/** All of stdin, waited for: a pipe that does not block has nothing to read at times. @throws FileError */
async function readStdin(): Promise<Uint8Array> {
  const chunks: Buffer[] = [];
  try {
    // Node takes a folder for an empty stream.
    if (fstatSync(0).isDirectory()) throw new FileError(expectation("translate", "text on stdin, a file or a pipe", "a folder", "Name a file: < text.en."));
    for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
  } catch (error) {
    throw fileError("translate", "stdin", "read", error);
  }
  return Buffer.concat(chunks);
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
