/** Runs of translation models in memory and on disk: resumed bit for bit, the best and averaged checkpoints, evaluation, whole texts translated, presets. */

import { cpSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test, vi } from "vitest";
import { translationCost } from "#sparsegate/models/cost.js";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { corpusBleu } from "#sparsegate/text/bleu.js";
import { PairBatchStream, type PairBatch } from "#sparsegate/text/pair-batches.js";
import { PairDataset } from "#sparsegate/text/pair-dataset.js";
import type { ParallelCorpus } from "#sparsegate/text/parallel.js";
import { loadCheckpoint, type Checkpoint } from "#sparsegate/train/checkpoint.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { readMetrics } from "#sparsegate/train/metrics.js";
import { caveats } from "#sparsegate/train/moe-config.js";
import { checkSameModel, loadModel, openCheckpoint, tokenizerOf } from "#sparsegate/train/restore.js";
import { isTranslation, translationModelConfig, type TranslationConfig } from "#sparsegate/train/translation/config.js";
import { makeTranslationDatasets, type TranslationCorpora, type TranslationDatasets } from "#sparsegate/train/translation/data.js";
import { evaluateTranslation, translationEvaluationSteps } from "#sparsegate/train/translation/evaluate.js";
import { TRANSLATION_PRESETS, translationPreset } from "#sparsegate/train/translation/presets.js";
import { languagePairs, pairTexts } from "#sparsegate/train/translation/pairs.js";
import { loadTranslationModel } from "#sparsegate/train/translation/restore.js";
import { translationSamples } from "#sparsegate/train/translation/samples.js";
import { trainTranslation, type TranslationTrainResult } from "#sparsegate/train/translation/trainer.js";
import { translate } from "#sparsegate/train/translation/translate.js";
import { sentences, traces } from "../cli/helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-translation-"));
afterAll(() => {
  defaultBackend().dispose();
  rmSync(root, { recursive: true });
});

/** A language that says the same in capitals, from the end. */
const turned = (text: string): string => text.split(" ").reverse().join(" ").toUpperCase();
const pair = (lines: readonly string[], from?: string, to?: string): ParallelCorpus => ({
  sourceLanguage: from,
  targetLanguage: to,
  sources: lines,
  targets: lines.map(turned),
  leftOut: { emptySource: 0, emptyTarget: 0, emptyBoth: 0 },
});
const corpora = (): TranslationCorpora => ({ train: [pair(sentences(80, 1, 8))], valid: [pair(sentences(6, 2, 8))] });

function configOf(options: Record<string, unknown>, run = join(root, "run")): TranslationConfig {
  const base = { task: "translation", train: "(in memory)", train_target: "(in memory)", vocab_size: 270, hidden_size: 8, batch_tokens: 128, max_steps: 6, eval_steps: 2, save_steps: 2, logging_steps: 2, learning_rate: 0.02, save_total_limit: 3, output_dir: run };
  const config = checkConfig({ ...base, ...options }, "the test");
  if (!isTranslation(config)) throw new Error("expected a translation");
  return config;
}

async function sixSteps(options: Record<string, unknown>, interrupt: boolean): Promise<ReturnType<typeof traces>> {
  const run = join(root, "run");
  rmSync(run, { recursive: true, force: true });
  const config = configOf(options);
  const stop = new AbortController();
  const onStep = (step: number): void => {
    if (interrupt && step === 3) stop.abort();
  };
  const first = await trainTranslation(config, makeTranslationDatasets(config, corpora()), { signal: stop.signal, onStep });
  first.model.dispose();
  expect(first.finished).toBe(!interrupt);
  if (interrupt) {
    const checkpoint = openCheckpoint("--resume", run);
    expect(checkpoint.step).toBe(3);
    const second = await trainTranslation(config, makeTranslationDatasets(config, corpora(), tokenizerOf(checkpoint)), {}, checkpoint);
    expect(second.steps).toBe(6);
    second.model.dispose();
  }
  return traces(run);
}

describe("a translation run that was interrupted and resumed equals one that was not, byte for byte", () => {
  test.each([
    { model: "MoE-4", top_k: 2, dropout: 0.2 },
    { model: "MoE-4", gate: "strictly-balanced", top_k: 2, label_smoothing: 0.1, attention: "additive" },
    { model: "MoE-8-h", branching: 2, lstm_size: 12, embeddings: "shared" },
    { model: "MoE-1-Wide", optimizer: "sgd" },
    { model: "LSTM", factored_experts: true },
    { model: "MoE-4", top_k: 2, bpe_dropout: 0.3 },
    { model: "MoE-4", top_k: 2, context_to: "all", word_dropout: 0.2 },
  ])("%o", { timeout: 120_000 }, async (options) => {
    const whole = await sixSteps(options, false);
    const resumed = await sixSteps(options, true);
    // A checkpoint says when it was best; the model of the interruption was saved beside, and is gone.
    expect(resumed.metrics).toEqual(whole.metrics);
    expect(resumed.files).toEqual(whole.files);
  });
});

describe("a run on disk", () => {
  const run = join(root, "disk");
  let result: TranslationTrainResult;
  const config = configOf({ model: "MoE-4", top_k: 2, max_steps: 60, eval_steps: 10, save_steps: 10, hidden_size: 16 }, run);
  const datasets = makeTranslationDatasets(config, corpora());

  test("learns, and keeps the model of the lowest validation loss beside the last ones", { timeout: 120_000 }, async () => {
    result = await trainTranslation(config, datasets);
    const records = readMetrics(join(run, "metrics.jsonl"));
    const losses = records.flatMap((record) => (typeof record["train/loss"] === "number" ? [record["train/loss"]] : []));
    expect(losses.at(-1)).toBeLessThan(0.8 * losses[0]!);
    const evaluated = records.flatMap((record) => (typeof record["eval/loss"] === "number" ? [[record.step, record["eval/loss"]] as const] : []));
    expect(evaluated).toHaveLength(6);
    const lowest = Math.min(...evaluated.map(([, loss]) => loss));
    const best = evaluated.findLast(([, loss]) => loss === lowest)!;
    expect(result.best).toEqual({ step: best[0], loss: best[1] });
    // That of the best before stays, in case a kill undoes this one.
    const kept = readdirSync(join(run, "best"));
    expect(kept).toContain(`checkpoint-${best[0]}`);
    expect(kept.length).toBeLessThanOrEqual(2);
    expect(readdirSync(run).filter((name) => name.startsWith("checkpoint")).sort()).toEqual(["checkpoint-40", "checkpoint-50", "checkpoint-60"]);
    expect(records.at(-2)).toMatchObject({ step: 60, "moe/expert_load/encoder/0": expect.any(Number), "moe/load_cv2/decoder": expect.any(Number) });
  });

  test("is loaded as its last or best model, or as the mean of its last ones", () => {
    const last = loadTranslationModel("translate", run, { checkpoint: "last" });
    expect([...last.model.namedState()].map(([, t]) => [...t.dataSync()])).toEqual([...result.model.namedState()].map(([, t]) => [...t.dataSync()]));
    expect(loadTranslationModel("translate", run).from).toBe(join(run, "best", `checkpoint-${result.best!.step}`));
    const mean = loadTranslationModel("translate", run, { average: 3 }).model.namedState();
    const files = [40, 50, 60].map((step) => loadCheckpoint(join(run, `checkpoint-${step}`)).model);
    for (const [name, tensor] of mean) {
      const parts = files.map((file) => file.read(name));
      tensor.dataSync().forEach((v, i) => expect(v).toBeCloseTo((parts[0]![i]! + parts[1]![i]! + parts[2]![i]!) / 3, 6));
    }
    expect(() => loadTranslationModel("translate", run, { average: 4 })).toThrow("translate: expected 4 checkpoints in");
    expect(() => loadModel(openCheckpoint("generate", run))).toThrow('expected a language model, got "translation".');
  });

  test("is evaluated: perplexity over every target, BLEU of the translations it gives", () => {
    const { model } = result;
    const [text] = datasets.valid!;
    const options = { batchTokens: 64, multilingual: false, beamSize: 2 };
    const found = evaluateTranslation(model, datasets.tokenizer, datasets.valid!, options);
    const translated = translate(model, datasets.tokenizer, text!.corpus.sources, { beamSize: 2 }).translations.map(([best]) => best!.text);
    expect(found.texts[0]!.translations).toEqual(translated);
    expect(found.bleu).toBe(corpusBleu(translated, text!.corpus.targets).score);
    // Batches of another size, and so of other padding, have the same mean.
    const again = evaluateTranslation(model, datasets.tokenizer, datasets.valid!, { ...options, batchTokens: 1000 });
    expect(again.loss).toBeCloseTo(found.loss, 5);
    expect(found.tokens).toBe(text!.data.targets.ids.length);
    expect(found.balance.encoder!.maxOverMeanLoad).toBeGreaterThan(0);
    // Where translations are of cut sources, that is told, and perplexity is still of whole pairs.
    const long = text!.data.sources.starts.reduce((count, start, i, starts) => count + (i > 0 && start - starts[i - 1]! > 12 ? 1 : 0), 0);
    const short = evaluateTranslation(model, datasets.tokenizer, datasets.valid!, { ...options, beamSize: 1, maxSourceTokens: 12 });
    expect(long).toBeGreaterThan(0);
    expect([found.texts[0]!.cut, short.texts[0]!.cut, short.loss]).toEqual([0, long, found.loss]);
  });

  test("is evaluated on a text of any number of pairs", () => {
    const pairs = 300_000; // Node takes some 125,000 arguments
    const ends = { ids: new Int32Array(pairs), starts: Int32Array.from({ length: pairs + 1 }, (_, i) => i) };
    const data = new PairDataset(ends, ends, [{ name: "corpus 0", pairs, tooLong: 0 }], new Int32Array(pairs), new Int32Array(pairs), 0);
    const steps = translationEvaluationSteps(result.model, datasets.tokenizer, [{ name: "corpus 0", corpus: pair([]), data }], { batchTokens: 64, multilingual: false });
    expect(steps.next().done).toBe(false);
  });

  test("whose folder best/ is empty, as after one that began anew without a text for evaluation, is loaded as its last model", () => {
    const copy = join(root, "empty-best");
    cpSync(run, copy, { recursive: true });
    for (const name of readdirSync(join(copy, "best"))) rmSync(join(copy, "best", name), { recursive: true });
    expect(loadTranslationModel("translate", copy).from).toBe(join(copy, "checkpoint-60"));
  });

  test("translates lines in their order; empty ones are empty, long ones are cut and counted", () => {
    const { model } = result;
    const lines = ["w1 w2 w3 w4 w1 w2", "", "w1", "  \t", "w3 w3", "w1"];
    const { translations, cut } = translate(model, datasets.tokenizer, lines, { batchSize: 2, beamSize: 2 });
    expect(cut).toBe(0);
    expect(translations.map(([best]) => best!.sourceTokens.length === 0)).toEqual([false, true, false, true, false, false]);
    expect(translations[1]![0]).toMatchObject({ text: "", attention: [] });
    for (const [i, line] of lines.entries()) {
      const alone = translate(model, datasets.tokenizer, [line], { beamSize: 2 }).translations[0]![0]!;
      expect(translations[i]![0]!.sourceTokens).toEqual(alone.sourceTokens);
      expect(translations[i]![0]!.text).toBe(alone.text);
      expect(translations[i]![0]!.score).toBeCloseTo(alone.score, 4);
    }
    const long = translate(model, datasets.tokenizer, [new Array(5000).fill("w1").join(" "), "w2"], { maxSourceTokens: 12, beamSize: 1 });
    expect(long.cut).toBe(1);
    expect(long.translations[0]![0]!.sourceTokens).toHaveLength(12);
    // Any script goes through bytes.
    expect(typeof translate(model, datasets.tokenizer, ["ᚠᚢᚦ 𒀀"], { beamSize: 1 }).translations[0]![0]!.text).toBe("string");
  });
});

test("a patience ends it: so many evaluations without a lower loss, and the test text is that of the best step", { timeout: 60_000 }, async () => {
  // Nothing is learnt, so that the first evaluation is never beaten.
  const config = configOf({ model: "LSTM", max_steps: 50, eval_steps: 2, patience: 3, learning_rate: 1e-30, schedule: "constant" }, join(root, "patience"));
  const { valid, ...rest } = makeTranslationDatasets(config, corpora());
  const result = await trainTranslation(config, { ...rest, valid: valid!, test: valid! });
  expect(result).toMatchObject({ finished: true, steps: 8 });
  expect(result.test!.loss).toBe(result.valid!.loss);
  await expect(trainTranslation(config, rest, { overwrite: true })).rejects.toThrow("patience (--patience): expected a text for evaluation while training, got \"none\".");
});

test("one model of several directions has a token of the target language in front of each source, and an evaluation for each", { timeout: 60_000 }, async () => {
  const lines = sentences(40, 1, 8);
  const up = pair(lines, "low", "up");
  const down: ParallelCorpus = { ...up, sourceLanguage: "up", targetLanguage: "low", sources: up.targets, targets: up.sources };
  const valid = [up, down].map((corpus) => ({ ...corpus, sources: corpus.sources.slice(0, 3), targets: corpus.targets.slice(0, 3) }));
  const config = configOf({ model: "MoE-4", top_k: 2, max_steps: 4 }, join(root, "several"));
  const datasets = makeTranslationDatasets(config, { train: [up, down], valid });
  expect(datasets.train.sources.ids[0]).toBe(datasets.tokenizer.specialId("<2up>"));
  const { valid: found, model } = await trainTranslation(config, datasets);
  expect(found!.texts.map(({ name }) => name)).toEqual(["low-up", "up-low"]);
  expect(readMetrics(join(root, "several", "metrics.jsonl")).at(-1)).toMatchObject({ "eval/bleu/up-low": expect.any(Number), "eval/perplexity/low-up": expect.any(Number) });
  expect(loadTranslationModel("translate", join(root, "several")).multilingual).toBe(true);
  expect(translate(model, datasets.tokenizer, ["w1"], { language: "up", beamSize: 1 }).translations[0]![0]!.sourceTokens[0]).toBe("<2up>");
  expect(() => translate(model, datasets.tokenizer, ["w1"], { language: "de" })).toThrow('specialId: expected "<2de>" among the special tokens');
});

/** Trains in memory, and tells of each batch that is taken, with its epoch. */
async function trainWatching(config: TranslationConfig, datasets: TranslationDatasets, onBatch: (batch: PairBatch, epoch: number) => void): Promise<void> {
  const original = Object.getOwnPropertyDescriptor(PairBatchStream.prototype, "next")!.value as (this: PairBatchStream) => PairBatch;
  const spy = vi.spyOn(PairBatchStream.prototype, "next").mockImplementation(function (this: PairBatchStream) {
    const batch = original.call(this);
    onBatch(batch, this.epoch);
    return batch;
  });
  try {
    (await trainTranslation(config, datasets, { ephemeral: true })).model.dispose();
  } finally {
    spy.mockRestore();
  }
}

test.each([
  [1, [90, 10]],
  [2, [75, 25]], // √90 to √10
  [1000, [50, 50]],
])("at temperature %d pairs of languages with 90 and 10 sentences have these shares of each epoch: %o", { timeout: 60_000 }, async (temperature, shares) => {
  const lines = sentences(90, 1, 8);
  const up = pair(lines, "low", "up");
  const down: ParallelCorpus = { ...up, sourceLanguage: "up", targetLanguage: "low", sources: up.targets.slice(0, 10), targets: up.sources.slice(0, 10) };
  const config = configOf({ model: "LSTM", max_steps: 30, eval_steps: 30, sampling_temperature: temperature });
  const datasets = makeTranslationDatasets(config, { train: [up, down] });
  const drawn: number[][] = [];
  await trainWatching(config, datasets, (batch, epoch) => {
    const counts = (drawn[epoch] ??= [0, 0]);
    for (const i of batch.pairs) counts[datasets.train.groupOf[i]!]!++;
  });
  expect(drawn.length).toBeGreaterThanOrEqual(2);
  // The last epoch is not at its end. Of the others each fraction of a sentence that one has too little the next one has too much.
  for (const counts of drawn.slice(0, -1)) for (const [i, share] of shares.entries()) expect(Math.abs(counts[i]! - share)).toBeLessThanOrEqual(1);
});

test("with BPE-dropout a run is trained on other subwords in each epoch, and evaluated on those of the text", { timeout: 60_000 }, async () => {
  const seen = new Map<number, Set<string>>();
  const config = configOf({ model: "LSTM", max_steps: 40, eval_steps: 40, bpe_dropout: 0.3 });
  const given = corpora();
  const datasets = makeTranslationDatasets(config, given);
  await trainWatching(config, datasets, ({ pairs, targets, batchSize }) =>
    pairs.forEach((pair, lane) => {
      const own = targets.filter((id, i) => i % batchSize === lane && id >= 0).join();
      seen.set(pair, (seen.get(pair) ?? new Set()).add(own));
    }),
  );
  expect(seen.size).toBe(datasets.train.pairs);
  // The rest are long sentences, which would be longer than any without.
  expect([...seen.values()].filter(({ size }) => size > 1).length).toBeGreaterThan(0.6 * seen.size);
  const plain = makeTranslationDatasets({ ...config, bpe_dropout: 0 }, given, datasets.tokenizer);
  expect(datasets.valid![0]!.data).toEqual(plain.valid![0]!.data);
  expect(plain).not.toHaveProperty("bpeDropout");
});

test("samples are sentences at equal distances from the worst chrF to the best", () => {
  const texts = ["good day", "good night", "good bye", "good", "good evening"];
  const translations = ["good day", "", "good buy", "xyz", "good evening"];
  const samples = (count: number): number[] => translationSamples({ sources: texts, targets: texts }, translations, count).map(({ sentence }) => sentence);
  expect(samples(5)).toEqual([2, 4, 3, 1, 5]);
  expect(samples(99)).toEqual(samples(5));
  expect(samples(3)).toEqual([2, 3, 5]);
  expect(samples(2)).toEqual([2, 5]);
  expect(samples(1)).toEqual([2]);
  expect(translationSamples({ sources: ["a"], targets: ["b"] }, ["b"], 4)).toEqual([{ sentence: 1, chrf: 100, source: "a", reference: "b", translation: "b" }]);
  expect(() => samples(0)).toThrow("translationSamples: expected count to be an integer");
});

test("pairs and placeholders say where the text of each pair is", () => {
  const config = configOf({ pairs: "en-de, en:pt-br", train: "{pair}/t.{source}", train_target: "{pair}/t.{target}" });
  expect(languagePairs(config).map(({ pair: name }) => name)).toEqual(["en-de", "en-pt-br"]);
  expect(pairTexts(config, "train")).toEqual([
    { sourceFile: "en-de/t.en", targetFile: "en-de/t.de", sourceLanguage: "en", targetLanguage: "de" },
    { sourceFile: "en-pt-br/t.en", targetFile: "en-pt-br/t.pt-br", sourceLanguage: "en", targetLanguage: "pt-br" },
  ]);
  expect(pairTexts(config, "valid")).toEqual([]);
  expect(pairTexts(configOf({}), "train")).toEqual([{ sourceFile: "(in memory)", targetFile: "(in memory)" }]);
});

describe("options", () => {
  const check = (options: Record<string, unknown>) => () => configOf(options);
  test.each([
    [{ batch_size: 8 }, "batch_size (--batch-size) to be left out with --task translation, got 8. Take --batch-tokens."],
    [{ train_target: undefined }, "train_target (--train-target) to be a text file, got undefined. Name the file with the translations of (in memory)"],
    [{ valid: "v.txt" }, "valid_target (--valid-target) to be a text file, got undefined."],
    [{ test_target: "t.txt" }, "test_target (--test-target) to be left out without --test"],
    [{ source_column: "en" }, "target_column (--target-column) to be the name of a column, got undefined."],
    [{ source_column: "en", target_column: "de" }, "train_target (--train-target) to be left out beside --source-column and --target-column"],
    [{ pairs: "en-de,,de-en" }, 'pairs (--pairs) to be pairs of two languages with commas between, like en-de,de-en, got "en-de,,de-en". "" is none.'],
    [{ pairs: "en-en" }, '"en-en" is none.'],
    [{ pairs: "en-pt-br" }, '"en-pt-br" is none. A language that has a hyphen takes a colon: en:pt-br.'],
    [{ pairs: "en-de,de-en,en:de" }, "pairs (--pairs) to be each pair once, got \"en-de,de-en,en:de\". Leave out the second en-de."],
    [{ train: "t.{source}" }, 'train (--train) to be --pairs beside it, or a name without placeholders, got "t.{source}". {source} stands for languages of --pairs, like en-de,de-en.'],
    [{ pairs: "en-de,de-en" }, "train (--train) to be a text for each pair, got \"(in memory)\". en-de and de-en would both be (in memory) and (in memory). Write {source}, {target} or {pair} where names differ."],
    [{ pairs: "en-de,fr-de", train_target: undefined, source_column: "a", target_column: "{target}" }, "en-de and fr-de would both be the columns a and de of (in memory)."],
    [{ pairs: "en-de", train: "t.{Source}" }, 'train (--train) to be no placeholders but {source}, {target} and {pair}, got "t.{Source}". Did you mean {source}?'],
    [{ pairs: "en-de", train: "t.{lang}" }, "{lang} stands for nothing."],
    [{ sampling_temperature: 0 }, "sampling_temperature (--sampling-temperature) to be a number of at least 1, got 0."],
    [{ bpe_dropout: 1.5 }, "bpe_dropout (--bpe-dropout) to be a number from 0 to 1, got 1.5."],
    [{ task: "language-model", train_target: undefined, batch_tokens: undefined, bpe_dropout: 0.1 }, "bpe_dropout (--bpe-dropout) to be left out without --task translation"],
    [{ model: "4xLSTM" }, "model (--model) to be MoE-<experts>, MoE-<experts>-h, MoE-1-Wide, MoE-1-Deep or LSTM with --task translation"],
    ...["4xLSTM-512", "LSTM-2048-512", "2xlstm-8192-1024", "MoE-34M", "MoE-143M"].map((model): [Record<string, unknown>, string] => [
      { model },
      `model (--model) to be MoE-<experts>, MoE-<experts>-h, MoE-1-Wide, MoE-1-Deep or LSTM with --task translation, got "${model}". Layers are those of the paper's translation models; their sizes are named by --hidden-size and --lstm-size.`,
    ]),
    [{ task: "language-model" }, "train_target (--train-target) to be left out without --task translation"],
    [{ task: "language-model", train_target: undefined, attention: "additive", batch_tokens: undefined }, "attention (--attention) to be left out without --task translation"],
  ])("%o are refused", (options, message) => expect(check(options)).toThrow(message));

  test("feeding attention to other layers than the run did is refused on resuming, and a run of before the option fed the first", () => {
    const { context_to: _, ...before } = configOf({});
    const resume = (now: "first" | "all", then: object): void => checkSameModel(configOf({ context_to: now }), { path: "run/step-1", config: then } as unknown as Checkpoint);
    expect(() => resume("first", configOf({ context_to: "all" }))).toThrow('--resume: expected context_to (--context-to) "all" as in run/step-1, got "first".');
    expect(() => resume("all", before)).toThrow('--resume: expected context_to (--context-to) "first" as in run/step-1, got "all".');
    expect(() => resume("first", before)).not.toThrow();
  });

  test("what a reader must know of gates and capacities is told", () => {
    const notes = (options: Record<string, unknown>): string[] => caveats(configOf({ model: "MoE-4", ...options }));
    const choice = "Note: gate expert-choice compares all positions of a batch, later ones too: perplexities are not those of a model that predicts, and a translation depends on the sentences beside it.";
    const capacity = (factor: number): string => `Note: experts have a capacity in evaluation (${factor} times their share): a translation depends on the sentences and beams beside it, which push each other out.`;
    expect(notes({})).toEqual([]);
    expect(notes({ gate: "expert-choice" })).toEqual([choice]);
    expect(notes({ gate: "switch", capacity_factor: 1.25 })).toEqual([capacity(1.25)]);
    expect(notes({ capacity_factor: 1.25, eval_capacity_factor: 2 })).toEqual([capacity(2)]);
    expect(notes({ model: "MoE-8-h", branching: 2, gate: "expert-choice", secondary_gate: "switch", capacity_factor: 1 })).toEqual([choice, capacity(1)]);
    expect(caveats(checkConfig({ train: "x", model: "MoE-4", gate: "switch", capacity_factor: 1.25 }, "the test"))).toEqual([]);
  });

  test("a saved configuration is one that can be read again", () => {
    const config = configOf({ model: "MoE-4", top_k: 2 });
    expect(checkConfig({ ...config }, "again")).toEqual(config);
    expect(config).toMatchObject({ attention: "product", attention_size: 8, embeddings: "tied", label_smoothing: 0, bpe_dropout: 0, sampling_temperature: 1, max_source_tokens: 100, eval_beam_size: 1 });
    expect(checkConfig({ train: "x" }, "the test")).not.toHaveProperty("attention");
  });
});

describe("presets", () => {
  const costOf = (name: string) => {
    const config = checkConfig({ train: "-", train_target: "-", ...translationPreset(name) }, name);
    if (!isTranslation(config)) throw new Error("expected a translation");
    const model = translationModelConfig(config, config.vocab_size);
    return { ...translationCost(model), tables: (model.tied ? 1 : 2) * model.vocabSize * model.hiddenSize };
  };
  test("the paper's have its parameters, and its multiply-adds but for a tenth: it does not say how it counts attention", () => {
    for (const [name, { published }] of Object.entries(TRANSLATION_PRESETS)) {
      if (!published) continue;
      const { opsPerTimestep, parameters, tables } = costOf(name);
      expect(Math.abs(opsPerTimestep / 1e6 / published.opsPerTimestep - 1), name).toBeLessThan(0.1);
      if (published.parameters) expect(Math.abs((parameters + tables) / 1e6 / published.parameters - 1), name).toBeLessThan(0.01);
    }
  });
  test("dense and MoE of a pair cost the same but for the gate", () => {
    for (const [name, numExperts] of [["captions", 64], ["messages", 32]] as const) {
      const [dense, moe] = [costOf(`${name}-dense`), costOf(`${name}-moe`)];
      const { hidden_size, gate } = translationPreset(`${name}-moe`) as { hidden_size: number; gate?: string };
      expect(moe.opsPerTimestep - dense.opsPerTimestep).toBe(2 * numExperts * hidden_size * (gate === "strictly-balanced" ? 1 : 2));
    }
  });
  test("an unknown one is refused", () => expect(() => translationPreset("wmt")).toThrow("--preset: expected one of wmt-none, "));
});
