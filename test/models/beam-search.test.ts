/** Beam search on toy models: beam 1 is greedy, a wide beam is exhaustive search, a batch is its sentences one at a time, and scores are GNMT's by hand. */

import { describe, expect, it } from "vitest";
import { beamSearch, coverage, lengthNormalisation, type Hypothesis } from "#sparsegate/models/beam-search.js";
import type { MiddleConfig } from "#sparsegate/models/language-model.js";
import { TranslationModel, type SourceBatch } from "#sparsegate/models/translation-model.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const EOS = 0;
const D = 4;
const MOE: MiddleConfig = { kind: "moe", numExperts: 4, topK: 2, expertHiddenSize: 3 };
const list = (t: Tensor): number[] => Array.from(t.dataSync());

function toy(V: number, middle: MiddleConfig = MOE, seed = 5): TranslationModel {
  const model = new TranslationModel({ vocabSize: V, hiddenSize: D, lstmSize: D, attentionSize: 3, attention: "product", middle, dropout: 0, sigmoid: true, residual: true, tied: false, labelSmoothing: 0, seed: 1 });
  const draw = new Draw(seed);
  for (const p of model.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -1.5, 1.5));
  return model;
}
function batchOf(sentences: readonly number[][]): SourceBatch {
  const sourceSteps = Math.max(...sentences.map(({ length }) => length));
  const batchSize = sentences.length;
  const sources = Int32Array.from({ length: sourceSteps * batchSize }, (_, i) => sentences[i % batchSize]![Math.floor(i / batchSize)] ?? EOS);
  return { sources, sourceSteps, batchSize, sourceLengths: Int32Array.from(sentences, ({ length }) => length) };
}

/** log P of each id of a translation and what it read, by running the decoder over all of it at once. */
function forced(model: TranslationModel, source: number[], ids: readonly number[]): { logs: number[]; attention: number[][] } {
  const { memory } = model.encode(batchOf([source]));
  const { output, attention } = model.decode(memory, sg.tensor([EOS, ...ids], [ids.length + 1, 1], "int32"));
  const logs = list(sg.logSoftmax(model.logits(sg.reshape(output, [-1, D]))));
  const V = model.config.vocabSize;
  const S = source.length;
  return {
    logs: [...ids, EOS].map((id, t) => logs[t * V + id]!),
    attention: Array.from({ length: ids.length + 1 }, (_, t) => list(attention).slice(t * S, (t + 1) * S)),
  };
}
const total = (logs: readonly number[]): number => logs.reduce((s, v) => s + v, 0);

for (const { name, make } of BACKENDS) {
  describe(`beam search on the ${name} backend`, () => {
    useBackend(make);
    // What was read is kept in float32.
    const digits = name === "reference" ? 6 : 4;
    const draw = new Draw(9);
    const sentences = (V: number, count: number): number[][] => Array.from({ length: count }, (_, i) => [...draw.ints(1 + (i % 5), 1, V), EOS]);

    it("with one beam takes the likeliest id at each step", () => {
      for (const [seed, middle] of [[5, MOE], [6, { kind: "dense", hiddenSizes: [3] }], [7, { kind: "none" }]] as const) {
        const model = toy(6, middle, seed);
        const sources = sentences(6, 12);
        const found = beamSearch(model, batchOf(sources), { eosId: EOS, beamSize: 1, maxLength: () => 7, allowEmpty: true });
        for (const [i, source] of sources.entries()) {
          const greedy: number[] = [];
          for (;;) {
            const { memory } = model.encode(batchOf([source]));
            const { output } = model.decode(memory, sg.tensor([EOS, ...greedy], [greedy.length + 1, 1], "int32"));
            const last = list(model.logits(sg.reshape(output, [-1, D]))).slice(-6);
            const best = last.indexOf(Math.max(...last));
            if (best === EOS || greedy.length + 1 === 7) break;
            greedy.push(best);
          }
          expect(found[i]![0]!.ids).toEqual(greedy);
        }
      }
    });

    it("with beams for all finds what exhaustive search finds, by GNMT's score, in its order", () => {
      const [V, limit] = [3, 4];
      // Every translation of at most three ids that are no end: 1 + 2 + 4 + 8.
      const all: number[][] = [[]];
      for (let i = 0; i < all.length; i++) if (all[i]!.length < limit - 1) for (let id = 1; id < V; id++) all.push([...all[i]!, id]);
      expect(all).toHaveLength(15);
      for (const seed of [5, 6]) {
        const model = toy(V, MOE, seed);
        for (const [alpha, beta] of [[0, 0], [0.6, 0.2], [1.5, 0.7]] as const) {
          const sources = [[1, 2, EOS], [2, EOS], [1, 1, 2, 2, EOS]];
          const found = beamSearch(model, batchOf(sources), { eosId: EOS, beamSize: 16, nBest: 15, lengthPenalty: alpha, coveragePenalty: beta, maxLength: () => limit, allowEmpty: true });
          for (const [i, source] of sources.entries()) {
            const want = all
              .map((ids) => {
                const { logs, attention } = forced(model, source, ids);
                const read = source.map((_, s) => attention.reduce((sum, row) => sum + row[s]!, 0));
                const score = total(logs) / ((5 + logs.length) ** alpha / 6 ** alpha) + beta * total(read.map((r) => Math.log(Math.min(r, 1))));
                return { ids, score };
              })
              .sort((a, b) => b.score - a.score);
            expect(found[i]!.map(({ ids }) => ids)).toEqual(want.map(({ ids }) => ids));
            found[i]!.forEach(({ score }, n) => expect(score).toBeCloseTo(want[n]!.score, digits));
            // Unless it is asked for, the empty one is none of them, wherever it stands.
            const [some] = beamSearch(model, batchOf([source]), { eosId: EOS, beamSize: 16, nBest: 16, lengthPenalty: alpha, coveragePenalty: beta, maxLength: () => limit });
            expect(some!.map(({ ids }) => ids)).toEqual(want.map(({ ids }) => ids).filter(({ length }) => length > 0));
          }
        }
      }
    });

    it("finds no empty translation, however likely, unless it may or has no room for another", () => {
      const model = toy(6);
      model.softmaxBias.backend.write(model.softmaxBias.buffer, [50, 0, 0, 0, 0, 0]);
      const sources = [[1, 2, EOS], [3, EOS]];
      for (const beamSize of [1, 2, 5]) {
        const lengths = (options: object): number[] => beamSearch(model, batchOf(sources), { eosId: EOS, beamSize, ...options }).map(([best]) => best!.ids.length);
        expect(lengths({})).toEqual([1, 1]);
        expect(lengths({ allowEmpty: true })).toEqual([0, 0]);
        expect(lengths({ maxLength: (n: number) => n - 1 })).toEqual([1, 0]);
      }
      for (const [i, [best]] of beamSearch(model, batchOf(sources), { eosId: EOS }).entries()) expect(best!.logProbability / total(sg.scope(() => forced(model, sources[i]!, best!.ids)).logs)).toBeCloseTo(1, 4);
    });

    it("gives a batch the translations that its sentences have alone, whatever their lengths and however soon they are done", () => {
      const model = toy(6);
      const sources = sentences(6, 11);
      const options = { eosId: EOS, beamSize: 3, nBest: 3, coveragePenalty: 0.2 };
      const plain = (found: Hypothesis[]): unknown => found.map(({ ids }) => ids);
      const together = beamSearch(model, batchOf(sources), options);
      expect(new Set(together.map(([first]) => first!.ids.length)).size).toBeGreaterThan(2);
      for (const [i, source] of sources.entries()) {
        const [alone] = beamSearch(model, batchOf([source]), options);
        expect(plain(together[i]!)).toEqual(plain(alone!));
        together[i]!.forEach(({ score }, n) => expect(score).toBeCloseTo(alone![n]!.score, digits));
      }
    });

    it("gives each hypothesis its probability and what it read, best first; frees all it made", () => {
      const model = toy(6);
      const before = sg.defaultBackend().memory().used;
      const sources = sentences(6, 5);
      for (const [i, hypotheses] of beamSearch(model, batchOf(sources), { eosId: EOS, beamSize: 4, nBest: 4 }).entries()) {
        expect(hypotheses.map(({ score }) => score)).toEqual(hypotheses.map(({ score }) => score).sort((a, b) => b - a));
        for (const { ids, logProbability, attention } of hypotheses) {
          expect(ids).not.toContain(EOS);
          const want = sg.scope(() => forced(model, sources[i]!, ids));
          expect(logProbability).toBeCloseTo(total(want.logs), digits);
          expect(attention).toHaveLength(ids.length + 1);
          attention.forEach((row, t) => row.forEach((p, s) => expect(p).toBeCloseTo(want.attention[t]![s]!, Math.min(digits, 6))));
        }
      }
      expect(sg.defaultBackend().memory().used).toBe(before);
    });

    it("decodes one lane of each sentence first and beams of those that go on afterwards, each with its own source", () => {
      const model = toy(6);
      const K = 4;
      // Three of four sentences are done after a step: as many lanes as before, which are all of the third sentence now.
      const sources = [[1, EOS], [2, EOS], [3, 1, 4, 2, EOS], [4, EOS]];
      const lanes: number[] = [];
      const decode = model.decode.bind(model);
      model.decode = (...given) => {
        lanes.push(given[1].size);
        return decode(...given);
      };
      const found = beamSearch(model, batchOf(sources), { eosId: EOS, beamSize: K, nBest: K, maxLength: (n) => (n > 2 ? 5 : 1) });
      expect(lanes.slice(0, 2)).toEqual([4, K]);
      expect(found.map((hypotheses) => hypotheses.length)).toEqual([1, 1, K, 1]);
      for (const [i, hypotheses] of found.entries()) {
        for (const { ids, logProbability, attention } of hypotheses) {
          const want = sg.scope(() => forced(model, sources[i]!, ids));
          expect(logProbability).toBeCloseTo(total(want.logs), digits);
          attention.forEach((row, t) => row.forEach((p, s) => expect(p).toBeCloseTo(want.attention[t]![s]!, Math.min(digits, 6))));
        }
      }
    });

    it("ends at the limit of each sentence", () => {
      const model = toy(6);
      model.softmaxBias.backend.write(model.softmaxBias.buffer, [-50, 0, 0, 0, 0, 0]);
      const found = beamSearch(model, batchOf([[1, 2, EOS], [3, EOS]]), { eosId: EOS, beamSize: 2, maxLength: (n) => 2 * n });
      expect(found.map(([best]) => best!.ids.length)).toEqual([5, 3]);
    });
  });
}

describe("a model whose probabilities are not finite", () => {
  useBackend(BACKENDS[1].make);
  it("is refused, and leaves nothing in memory", () => {
    const model = toy(6);
    model.softmaxBias.backend.write(model.softmaxBias.buffer, new Array(6).fill(NaN));
    const before = sg.defaultBackend().memory().used;
    for (const maxLength of [() => 9, () => 1])
      expect(() => beamSearch(model, batchOf([[1, EOS]]), { eosId: EOS, maxLength })).toThrow("beamSearch: expected finite probabilities for sentence 0, got NaN.");
    expect(sg.defaultBackend().memory().used).toBe(before);
  });
});

describe("GNMT's score", () => {
  useBackend(BACKENDS[0].make);
  it("normalises by ((5 + |Y|)/6)^α and penalises what was read less than once", () => {
    expect(lengthNormalisation(1, 0.6)).toBe(1);
    expect(lengthNormalisation(7, 2)).toBe(4);
    expect(lengthNormalisation(7, 0)).toBe(1);
    // Read 0.5, 1.2 and, in the padding, nothing: ln 0.5 + 0.
    expect(coverage([[0.25, 0.7, 0], [0.25, 0.5, 0]], 2, 2)).toBeCloseTo(2 * Math.log(0.5), 12);
    expect(coverage([[0, 1]], 2, 0)).toBe(0);
    expect(Number.isFinite(coverage([[0, 1]], 2, 1))).toBe(true);
  });
  it("refuses options out of range", () => {
    const call = (options: object) => () => beamSearch(toy(6), batchOf([[1, EOS]]), { eosId: EOS, ...options });
    expect(call({ beamSize: 0 })).toThrow("beamSearch: expected beamSize to be an integer from 1 to 1024, got 0.");
    expect(call({ nBest: 5 })).toThrow("beamSearch: expected nBest to be an integer from 1 to 4, got 5. Take more beams (beamSize).");
    expect(call({ eosId: 6 })).toThrow("beamSearch: expected eosId to be an integer from 0 to 5, got 6.");
    expect(call({ lengthPenalty: -1 })).toThrow("beamSearch: expected lengthPenalty to be a finite number of at least 0, got -1.");
    expect(call({ maxLength: () => 0 })).toThrow("beamSearch: expected maxLength to be an integer of at least 1, got 0.");
  });
});
