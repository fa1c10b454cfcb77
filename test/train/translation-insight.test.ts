/** What can be seen of a translation model: which words an expert takes, held to the encoder run on one sentence at a time, and attention as a page. */

import { describe, expect, it } from "vitest";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import type { MiddleConfig } from "#sparsegate/models/language-model.js";
import { TranslationModel } from "#sparsegate/models/translation-model.js";
import { trainBpe } from "#sparsegate/text/bpe.js";
import { attentionPage } from "#sparsegate/train/translation/attention-page.js";
import { expertWords } from "#sparsegate/train/translation/specialisation.js";
import { sourceBatch, translate } from "#sparsegate/train/translation/translate.js";
import { sentences } from "../cli/helpers.js";
import { useBackend } from "../use-backend.js";

const texts = sentences(9, 1, 8);
const tokenizer = trainBpe(texts, { vocabSize: 275 });
const modelOf = (middle: MiddleConfig): TranslationModel =>
  new TranslationModel({ vocabSize: tokenizer.vocabSize, hiddenSize: 6, lstmSize: 6, attentionSize: 6, attention: "product", middle, dropout: 0, sigmoid: true, residual: true, tied: false, labelSmoothing: 0, seed: 3 });
// Not noisy top-k: its gates start at zero, where all rows tie.
const TOP_K: MiddleConfig = { kind: "moe", numExperts: 5, gate: "top-k", topK: 2, expertHiddenSize: 4 };

describe("the words of an expert", () => {
  useBackend(() => new ReferenceBackend());

  it.each([
    ["two for each row", TOP_K],
    ["as many as are above a threshold", { ...TOP_K, gate: "strictly-balanced" } as MiddleConfig],
  ])("are the tokens that it takes, by its gate, with what stands around them: %s", (_, middle) => {
    const model = modelOf(middle);
    const places = Array.from({ length: 5 }, () => [] as { gate: number; id: number; sentence: number; position: number }[]);
    for (const [sentence, text] of texts.entries()) {
      const ids = [...tokenizer.encode(text), tokenizer.eosId];
      const { experts, gates, rowOffsets } = model.encode(sourceBatch([ids], 0)).routed!.moe;
      for (let position = 0; position < ids.length - 1; position++) {
        const [from, to] = rowOffsets ? [rowOffsets.dataSync()[position]!, rowOffsets.dataSync()[position + 1]!] : [2 * position, 2 * position + 2];
        for (let j = from; j < to; j++) places[experts.dataSync()[j]!]!.push({ gate: gates.dataSync()[j]!, id: ids[position]!, sentence, position });
      }
    }
    const all = places.flat();
    const share = (list: readonly { id: number }[], id: number): number => list.filter((place) => place.id === id).length / list.length;
    const found = expertWords(model, tokenizer, texts, { batchSize: 4, contexts: 3 });
    expect(found.map(({ expert }) => expert).sort((a, b) => a - b)).toEqual(places.flatMap((list, expert) => (list.length >= all.length / 20 ? [expert] : [])));
    expect(found.map(({ divergence }) => divergence)).toEqual(found.map(({ divergence }) => divergence).sort((a, b) => b - a));
    for (const { expert, tokens, divergence, contexts } of found) {
      const own = places[expert]!;
      expect(tokens).toBe(own.length);
      expect(divergence).toBeCloseTo([...new Set(own.map(({ id }) => id))].reduce((s, id) => s + share(own, id) * Math.log(share(own, id) / share(all, id)), 0), 10);
      const best = own.map(({ gate }) => gate).sort((a, b) => b - a).slice(0, 3);
      contexts.forEach(({ gate, before, token, after }, i) => {
        expect(gate).toBeCloseTo(best[i]!, 10);
        expect(texts.some((text) => text.includes(`${before}${token}${after}`))).toBe(true);
      });
    }
  });

  it("are none without experts", () => expect(expertWords(modelOf({ kind: "none" }), tokenizer, texts)).toEqual([]));
});

describe("the page of attention", () => {
  useBackend(() => new ReferenceBackend());
  it("draws a cell for each pair of tokens, with the text escaped", async () => {
    const best = translate(modelOf(TOP_K), tokenizer, ["w1 w2"], { beamSize: 1, maxLength: () => 4 }).translations[0]![0]!;
    const page = await attentionPage("What it reads", [{ source: "a < b", translation: { ...best, text: "c & d" } }, { source: "", translation: { ...best, targetTokens: [], attention: [] } }], "sparsegate translate", "2026-01-01T00:00:00Z");
    expect(page.match(/<rect /g)).toHaveLength(best.sourceTokens.length * best.targetTokens.length);
    expect(page.match(/<figure>/g)).toHaveLength(1);
    expect(page).toContain("a &lt; b");
    expect(page).toContain("c &amp; d");
    expect(page).toContain(`>${best.attention[0]![0]!.toFixed(3)}</title>`);
  });
});
