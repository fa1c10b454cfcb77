/** `sparsegate eval` of a translation model: perplexity, BLEU and chrF of a text, or of each pair of languages of the run; and translations to look at. */

import { ConfigError, expectation } from "../core/errors.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { formatBleu } from "../text/bleu.js";
import { corpusChrf, formatChrf, type ChrfScore } from "../text/chrf.js";
import { readParallel, type ParallelCorpus } from "../text/parallel.js";
import type { TranslationConfig } from "../train/translation/config.js";
import { evaluationTexts, readText } from "../train/translation/data.js";
import { evaluateTranslation, type TextEvaluation, type TranslationEvaluation } from "../train/translation/evaluate.js";
import { fillName, languagePairs } from "../train/translation/pairs.js";
import type { LoadedTranslation } from "../train/translation/restore.js";
import { translationSamples, type TranslationSample } from "../train/translation/samples.js";
import { openBackend } from "./backend.js";
import { table } from "./format.js";
import { oneLine, print } from "./output.js";
import { load, sayCaveats, searchOf } from "./translation.js";

type Options = Record<string, unknown>;

/** What is found out about a text. */
interface Scored {
  evaluation: TextEvaluation;
  sentences: number;
  chrf: ChrfScore;
  /** Where samples were asked for. */
  samples: TranslationSample[] | undefined;
}

export async function evalTranslationCommand(run: string, options: Options): Promise<void> {
  openBackend();
  const loaded = load("eval", run, options);
  const { model, config, tokenizer, multilingual } = loaded;
  const everyPair = multilingual && config.pairs !== undefined && options["data"] === undefined && options["language"] === undefined;
  const search = searchOf(options, loaded, "eval", { everyPair });
  const { data, corpora } = await corporaOf(run, options, loaded);
  const texts = evaluationTexts(corpora, tokenizer, multilingual);
  sayCaveats(config);
  const begun = performance.now();
  const result = evaluateTranslation(model, tokenizer, texts, { ...search, multilingual, batchTokens: config.batch_tokens });
  const seconds = Math.round((performance.now() - begun) / 100) / 10;
  const samples = options["samples"] as number | undefined;
  const scored = result.texts.map((evaluation, i): Scored => {
    const corpus = corpora[i]!;
    const { translations } = evaluation;
    const chosen = samples === undefined ? undefined : translationSamples(corpus, translations, samples);
    return { evaluation, sentences: corpus.sources.length, chrf: corpusChrf(translations, corpus.targets), samples: chosen };
  });
  const json = options["json"] === true;
  if (scored.length === 1) printOne(data, scored[0]!, seconds, json);
  else printAll(data, result, scored, seconds, json);
  defaultBackend().dispose();
}

/** The text that is evaluated on: that of --data, or the run's own, of each pair of languages that was asked for. */
async function corporaOf(run: string, options: Options, { config }: LoadedTranslation): Promise<{ data: string; corpora: ParallelCorpus[] }> {
  const language = options["language"] as string | undefined;
  const data = options["data"] as string | undefined;
  if (data !== undefined) return { data, corpora: [await readGiven(config, data, options["target"] as string | undefined, language)] };
  if (options["target"] !== undefined) throw new ConfigError(expectation("eval --target", "--data beside it, the text that it translates", "none"));
  const part = config.test === undefined ? "valid" : "test";
  const own = config[part];
  if (own === undefined) throw new ConfigError(expectation("eval", "--data and --target, a text and its translations", "none", `${run} was trained without --test and --valid.`));
  const read = await readText(config, part);
  if (config.pairs === undefined) return { data: own, corpora: read.map((corpus) => ({ ...corpus, targetLanguage: language })) };
  const pairs = languagePairs(config);
  const into = pairs.filter(({ target }) => language === undefined || target === language);
  if (into.length === 0) throw notInto(config, language);
  return { data: into.length === 1 ? fillName(own, into[0]!) : own, corpora: read.filter((_, i) => into.includes(pairs[i]!)) };
}

function notInto(config: TranslationConfig, language: string | undefined): ConfigError {
  const known = [...new Set(languagePairs(config).map(({ target }) => target))];
  return new ConfigError(expectation("eval --language", `a language that the run's pairs translate into (${known.join(", ")})`, language));
}

/** The text of --data. Its columns are those of the run, where names of columns depend on the pair those of the pair into the language. */
async function readGiven(config: TranslationConfig, data: string, target: string | undefined, language: string | undefined): Promise<ParallelCorpus> {
  const pairs = languagePairs(config).filter((pair) => language === undefined || pair.target === language);
  const targetLanguage = language ?? pairs[0]?.target;
  const languages = { empty: "keep", ...(targetLanguage === undefined ? {} : { targetLanguage }) } as const;
  if (target !== undefined) return readParallel({ sourceFile: data, targetFile: target, ...languages });
  const { source_column, target_column } = config;
  const missing = (hint: string): ConfigError => new ConfigError(expectation("eval", `--target, the translations of ${data}`, "none", hint));
  if (source_column === undefined || target_column === undefined) throw missing("");
  if (config.pairs === undefined) return readParallel({ file: data, sourceColumn: source_column, targetColumn: target_column, ...languages });
  const [pair, other] = pairs;
  if (pair === undefined) throw notInto(config, language);
  const [sourceColumn, targetColumn] = [fillName(source_column, pair), fillName(target_column, pair)];
  if (other && fillName(source_column, other) !== sourceColumn) throw missing(`Its columns could be those of ${pair.pair} or ${other.pair}.`);
  return readParallel({ file: data, sourceColumn, targetColumn, ...languages });
}

/** A text's figures, as JSON has them. */
function figures({ evaluation, sentences, chrf }: Scored): Record<string, number> {
  const { tokens, loss, perplexity, bleu, multiBleu, cut } = evaluation;
  return { sentences, cut_sources: cut, tokens, loss, perplexity, bleu: bleu.score, multi_bleu: multiBleu.score, chrf: chrf.score };
}

function details({ evaluation, samples }: Scored): Record<string, unknown> {
  return { bleu_signature: evaluation.bleu.signature, multi_bleu_signature: evaluation.multiBleu.signature, ...(samples && { samples }) };
}

function printOne(data: string, text: Scored, seconds: number, json: boolean): void {
  print({ data, ...figures(text), seconds, ...(json ? details(text) : {}) }, json);
  if (json) return;
  const { evaluation, chrf, samples } = text;
  for (const score of [evaluation.bleu, evaluation.multiBleu]) process.stdout.write(`${formatBleu(score, { width: 2, signature: true })}\n`);
  process.stdout.write(`${formatChrf(chrf, { signature: true })}\n`);
  if (samples) process.stdout.write(`\n${samplesText(samples)}\n`);
}

/** Perplexity of all is that over their target tokens; scores are means over the pairs. */
function printAll(data: string, { loss, perplexity, tokens, bleu }: TranslationEvaluation, texts: readonly Scored[], seconds: number, json: boolean): void {
  const mean = (of: (text: Scored) => number): number => texts.reduce((sum, text) => sum + of(text), 0) / texts.length;
  const sentences = texts.reduce((sum, text) => sum + text.sentences, 0);
  const cut = texts.reduce((sum, { evaluation }) => sum + evaluation.cut, 0);
  const chrf = mean((text) => text.chrf.score);
  if (json) {
    const pairs = texts.map((text) => ({ pair: text.evaluation.name, ...figures(text), ...details(text) }));
    print({ data, sentences, cut_sources: cut, tokens, loss, perplexity, bleu, multi_bleu: mean(({ evaluation }) => evaluation.multiBleu.score), chrf, seconds, pairs }, true);
    return;
  }
  print({ data, sentences, cut_sources: cut, tokens, seconds }, false);
  const row = (name: string, ...values: number[]): string[] => [name, ...values.map((value) => value.toFixed(2))];
  const rows = texts.map(({ evaluation, chrf: own }) => row(evaluation.name, evaluation.perplexity, evaluation.bleu.score, own.score));
  const signatures = [...new Set(texts.map(({ evaluation }) => evaluation.bleu.signature))];
  const pairsOf = (signature: string): string => texts.flatMap(({ evaluation: { name, bleu: own } }) => (own.signature === signature ? name : [])).join(", ");
  const lines = [
    table(["pair", "perplexity", "BLEU", "chrF"], [...rows, row("mean", perplexity, bleu, chrf)]),
    ...signatures.map((signature) => `BLEU|${signature}${signatures.length > 1 ? ` of ${pairsOf(signature)}` : ""}`),
    `${texts[0]!.chrf.name}|${texts[0]!.chrf.signature}`,
    ...texts.flatMap(({ evaluation, samples }) => (samples ? [`\n${evaluation.name}:\n${samplesText(samples)}`] : [])),
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

/** Samples as the terminal shows them. */
function samplesText(samples: readonly TranslationSample[]): string {
  return samples
    .map(({ sentence, chrf, source, reference, translation }) =>
      [`sentence ${sentence}, chrF ${chrf.toFixed(2)}`, `  source       ${oneLine(source)}`, `  reference    ${oneLine(reference)}`, `  translation  ${oneLine(translation)}`].join("\n"),
    )
    .join("\n");
}
