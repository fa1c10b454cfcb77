/** Translating: sentences a second by beam search, in batches and one at a time, and how long one sentence takes, with a mixture of experts and without. */

import { uniformAt } from "#sparsegate/core/random.js";
import { beamSearch, type Hypothesis } from "#sparsegate/models/beam-search.js";
import { TranslationModel } from "#sparsegate/models/translation-model.js";
import type { RoutedLayer, SourceBatch } from "#sparsegate/models/translation-model.js";
import type { StrictlyBalancedGate } from "#sparsegate/moe/gates/strictly-balanced.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { translationModelConfig, type TranslationConfig } from "#sparsegate/train/translation/config.js";
import { translationPreset } from "#sparsegate/train/translation/presets.js";
import { sourceBatch } from "#sparsegate/train/translation/translate.js";
import { interleave, ratio, round, steadiness, useCpu, UsageError, type BenchResult, type Benchmark } from "./harness.js";

const PRESETS = ["captions-dense", "captions-moe"] as const;
const EOS = 0;
/** Lengths of sources, their ends counted in: captions. */
const [SHORTEST, LONGEST] = [8, 20];
/** How many times the time of the dense model the mixture may take: its gate and the dealing of rows come on top of equal products. */
const MOE_BOUND = 2;
/** A batch shares what it reads of the weights: it must be worth having. */
const BATCH_BOUND = 1.5;

export const translation: Benchmark = {
  question:
    "how many sentences a second does beam search translate, in batches and one at a time, and how long does one sentence take?",
  options: { beamSize: 4, batchSize: 32, rounds: 7 },
  async run({ beamSize, batchSize, rounds }): Promise<BenchResult> {
    const [beams, lanes] = [Number(beamSize), Number(batchSize)];
    if (![beams, lanes].every((n) => Number.isInteger(n) && n > 0))
      throw new UsageError("expected sizes and counts to be whole numbers above 0");
    const cpu = useCpu();
    const { vocab_size: V } = translationPreset(PRESETS[0]) as { vocab_size: number };
    const sentences = sources(lanes, V);
    const batch = sourceBatch(sentences, EOS);
    // A quarter of the batch, every fourth by length, so that both measure sentences of the same lengths.
    const singles = sentences.filter((_, i) => i % 4 === 0).map((sentence) => sourceBatch([sentence], EOS));
    const middle = sourceBatch([sentences[Math.floor(lanes / 2)]!], EOS);
    const search = (model: TranslationModel, of: SourceBatch, size: number): Hypothesis[][] => {
      const found = beamSearch(model, of, { eosId: EOS, beamSize: size, maxLength: (length) => length });
      const lengths = found.map(([best]) => best!.ids.length + 1);
      if (lengths.some((length, i) => length !== of.sourceLengths[i]))
        throw new Error(`expected translations of ${of.sourceLengths.join(", ")} tokens, got ${lengths.join(", ")}`);
      return found;
    };
    const built = PRESETS.map((name) => {
      const config = translationModelConfig(
        checkConfig({ ...translationPreset(name), train: "-", train_target: "-" }, name) as TranslationConfig,
        V,
      );
      const model = new TranslationModel({ ...config, seed: 1 });
      // No sentence ends before its limit, so that as many steps are made in every round.
      const bias = model.softmaxBias.dataSync().slice();
      bias[EOS] = -1e9;
      cpu.write(model.softmaxBias.buffer, bias);
      return { name, model, experts: balance(model, () => search(model, batch, beams)) };
    });
    const cases: Record<string, () => unknown> = {};
    for (const { name, model } of built) {
      cases[`${name} batch`] = () => search(model, batch, beams);
      cases[`${name} alone`] = () => singles.map((single) => search(model, single, beams));
      cases[`${name} greedy`] = () => search(model, middle, 1);
    }
    const times = await interleave(cases, { rounds: Number(rounds) });
    const of = (name: string, what: string): (typeof times)[string] => times[`${name} ${what}`]!;
    const rows = built.map(({ name, experts }) => ({
      model: name,
      "sentences/s, batch": round(lanes / of(name, "batch").median),
      "fastest, batch": round(lanes / of(name, "batch").fastest),
      "sentences/s, alone": round(singles.length / of(name, "alone").median),
      "fastest, alone": round(singles.length / of(name, "alone").fastest),
      "greedy ms": round(1000 * of(name, "greedy").median),
      "fastest greedy ms": round(1000 * of(name, "greedy").fastest),
      "experts a row": experts,
    }));
    const [dense, mixture] = PRESETS;
    const targets = [
      ...["batch", "alone", "greedy"].map((what) => ({
        name: `time of ${what === "greedy" ? "a sentence by greedy search" : `a sentence, ${what}`}, ${mixture} over ${dense}`,
        value: round(ratio(of(mixture, what), of(dense, what))),
        bound: MOE_BOUND,
        atMost: true,
      })),
      ...PRESETS.map((name) => ({
        name: `sentences a second in a batch over one at a time, ${name}`,
        value: round((ratio(of(name, "alone"), of(name, "batch")) * lanes) / singles.length),
        bound: BATCH_BOUND,
      })),
    ];
    const notes = [
      cpu.description,
      `${beams} beams, batches of ${lanes} sentences of ${SHORTEST} to ${LONGEST} tokens and as many steps; greedy search of one sentence of ${middle.sourceSteps} tokens`,
      steadiness(times),
    ];
    for (const { model } of built) model.dispose();
    cpu.dispose();
    return { rows, targets, notes };
  },
};

/** Random sentences, shortest first as `translate` sorts them. */
function sources(count: number, V: number): number[][] {
  const key = { seed: 7, stream: 1, step: 0 };
  return Array.from({ length: count }, (_, i) => {
    const length = SHORTEST + Math.floor((i * (LONGEST - SHORTEST + 1)) / count);
    const ids = Array.from(
      { length: length - 1 },
      (_, t) => EOS + 1 + Math.floor(uniformAt(key, i * LONGEST + t) * (V - EOS - 1)),
    );
    return [...ids, EOS];
  });
}

/** What a model's mixtures did with every row that a search decoded, its lost hypotheses too: encoder, then decoder. */
function routed(model: TranslationModel, search: () => void): { probabilities: number[]; assignments: number }[] {
  const seen = model.mixtures.map(() => ({ probabilities: [] as number[], assignments: 0 }));
  const note = <T extends { routed?: RoutedLayer }>(layer: number, result: T): T => {
    const { probabilities, experts } = result.routed!.moe;
    for (const value of probabilities!.dataSync()) seen[layer]!.probabilities.push(value);
    seen[layer]!.assignments += experts.size;
    return result;
  };
  const [encode, decode] = [model.encode.bind(model), model.decode.bind(model)];
  Object.assign(model, {
    encode: (...given: Parameters<typeof encode>) => note(0, encode(...given)),
    decode: (...given: Parameters<typeof decode>) => note(1, decode(...given)),
  });
  search();
  for (const name of ["encode", "decode"]) Reflect.deleteProperty(model, name);
  return seen;
}

/**
 * Gives experts equal shares of the rows, K experts a row, as training would: thresholds that start as 1/E let through half of the experts. What is written
 * depends on them, so that this is done more than once.
 * @returns experts a row of the decoder, afterwards; null without mixtures
 */
function balance(model: TranslationModel, search: () => void): number | null {
  if (model.mixtures.length === 0) return null;
  for (let pass = 0; pass < 3; pass++) {
    for (const [i, { probabilities }] of routed(model, search).entries()) {
      const { topK, logThreshold, numExperts: E } = model.mixtures[i]!.gate as StrictlyBalancedGate;
      const rows = probabilities.length / E;
      const cuts = Float32Array.from({ length: E }, (_, e) => {
        const column = Float32Array.from({ length: rows }, (_, row) => probabilities[row * E + e]!).sort();
        return Math.log(column[rows - 1 - Math.floor((topK * rows) / E)]!);
      });
      logThreshold.backend.write(logThreshold.buffer, cuts);
    }
  }
  const { probabilities, assignments } = routed(model, search).at(-1)!;
  return round((assignments / probabilities.length) * model.mixtures[1]!.numExperts);
}
