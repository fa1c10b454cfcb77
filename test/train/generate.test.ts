/** Generation: what is drawn has the probabilities it should, prompts side by side get the text they would get alone, and only the experts that are chosen are read. */

import { afterAll, describe, expect, test } from "vitest";
import { LanguageModel, type MiddleConfig } from "#sparsegate/models/language-model.js";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { tensor, type Tensor } from "#sparsegate/tensor/index.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";
import { generate, generateBatch } from "#sparsegate/train/generate.js";
import { sampleLogits, type Sampling } from "#sparsegate/train/sampling.js";
import { Draw } from "../backend/helpers.js";

afterAll(() => defaultBackend().dispose());

const N = 20_000;
/** Share of each index among draws at evenly spaced points: the length of its piece of [0, 1), to 1/N. */
function shares(logits: readonly number[], sampling: Partial<Sampling>): number[] {
  const counts = logits.map(() => 0);
  for (let i = 0; i < N; i++)
    counts[sampleLogits(logits, { temperature: 1, topK: 0, topP: 1, ...sampling }, (i + 0.5) / N)]! += 1 / N;
  return counts;
}
const close = (got: readonly number[], want: readonly number[]): void => {
  expect(got).toHaveLength(want.length);
  for (const [i, share] of got.entries()) expect(share, `index ${i}`).toBeCloseTo(want[i]!, 3);
};

describe("a token is drawn", () => {
  // Probabilities 1/10, 4/10, 2/10, 3/10.
  const logits = [1, 4, 2, 3].map((x) => Math.log(x) + 5);
  test("by softmax(logits / temperature)", () => {
    close(shares(logits, {}), [0.1, 0.4, 0.2, 0.3]);
    close(
      shares(logits, { temperature: 0.5 }),
      [1, 16, 4, 9].map((x) => x / 30),
    );
    const roots = [1, 2, Math.SQRT2, Math.sqrt(3)];
    close(shares(logits, { temperature: 2 }), roots.map((x) => x / roots.reduce((a, b) => a + b))); // prettier-ignore
  });
  test("at temperature 0 as the most likely, the first of several", () => {
    expect(shares(logits, { temperature: 0 })).toEqual([0, expect.closeTo(1, 6), 0, 0]);
    expect(sampleLogits([1, 3, 3], { temperature: 0, topK: 0, topP: 1 }, 0.99)).toBe(1);
  });
  test("from the k most likely alone; of equal ones the first are kept", () => {
    close(shares(logits, { topK: 2 }), [0, 4 / 7, 0, 3 / 7]);
    close(shares(logits, { topK: 9 }), [0.1, 0.4, 0.2, 0.3]);
    close(shares([2, 1, 2, 2], { topK: 2 }), [0.5, 0, 0.5, 0]);
  });
  test("from the fewest that make up the probability p; one at least", () => {
    close(shares(logits, { topP: 0.7 }), [0, 4 / 7, 0, 3 / 7]);
    close(shares(logits, { topP: 0.71 }), [0, 4 / 9, 2 / 9, 3 / 9]);
    close(shares(logits, { topP: 0 }), [0, 1, 0, 0]);
    // Among the three most likely: 4/9, 3/9, 2/9.
    close(shares(logits, { topK: 3, topP: 0.75 }), [0, 4 / 7, 0, 3 / 7]);
  });
  test("from all of a long tail where p needs it: a thousand tokens of less than a thousandth of the best one's weight", () => {
    const tail = [0, ...Array.from({ length: 1000 }, () => Math.log(0.0005))];
    // 1 of 1.5 is the best one's; 0.9 · 1.5 needs 700 of the others.
    const found = shares(tail, { topP: 0.9 });
    expect(found[0]).toBeCloseTo(1 / 1.35, 3);
    expect(found.filter((share) => share > 0).length).toBeGreaterThan(690);
    expect(found.slice(702).every((share) => share === 0)).toBe(true);
  });
  test("and never what cannot be: a logit of minus infinity, at either end of [0, 1)", () => {
    const impossible = [-Infinity, 0, -Infinity];
    for (const uniform of [0, 0.5, 1 - 2 ** -53]) {
      for (const sampling of [{}, { topK: 2 }, { topP: 0.9 }, { topK: 2, topP: 0.9 }])
        expect(sampleLogits(impossible, { temperature: 1, topK: 0, topP: 1, ...sampling }, uniform)).toBe(1);
    }
  });
});

const words = WordVocabulary.fromWords(Array.from({ length: 20 }, (_, i) => `w${i}`));
const MOE: MiddleConfig = { kind: "moe", numExperts: 8, topK: 2, expertHiddenSize: 16 };
/** A model that is far from sure, so that draws matter. */
function build(middle: MiddleConfig = MOE): LanguageModel {
  const model = new LanguageModel({ vocabSize: words.vocabSize, hiddenSize: 8, lstmSize: 8, middle, dropout: 0.5, sigmoid: true, residual: true, seed: 1 }); // prettier-ignore
  const draw = new Draw(5);
  for (const p of model.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -0.7, 0.7));
  return model;
}
const PROMPTS = ["w1 w2 w3", "", "w4", "w5 w6 w7 w8 w9", "w4 w1"];

describe("prompts side by side", () => {
  for (const [name, options] of Object.entries({
    greedily: { temperature: 0 },
    "by chance": { temperature: 1.5, topK: 15, topP: 0.95 },
  })) {
    test(`get the text they would get alone, ${name}`, () => {
      const model = build();
      const alone = PROMPTS.map((prompt) => generate(model, words, prompt, { ...options, maxTokens: 12, seed: 3 }));
      expect(generateBatch(model, words, PROMPTS, { ...options, maxTokens: 12, seed: 3 })).toEqual(alone);
      for (const [i, text] of alone.entries()) expect(text.startsWith(PROMPTS[i]!)).toBe(true);
      if (name === "by chance") {
        // They end at different steps: lanes were let go on the way.
        expect(new Set(alone.map((text, i) => text.split(" ").length - PROMPTS[i]!.split(" ").length)).size).toBeGreaterThan(2);
        expect(generateBatch(model, words, PROMPTS, { ...options, maxTokens: 12, seed: 4 })).not.toEqual(alone);
      }
      model.dispose();
    });
  }

  test("come in pieces that add up, each told of its end once; the same prompt gets another text each time; none is no text", () => {
    const model = build();
    const used = defaultBackend().memory().used;
    const pieces = ["w1", "w1", "w1 w2", "w1"];
    const prompts = [...pieces];
    const ends: number[] = [];
    const onText = (text: string, i: number): void => {
      expect(ends).not.toContain(i);
      pieces[i] += text;
    };
    const texts = generateBatch(model, words, prompts, {
      temperature: 1.5,
      maxTokens: 9,
      seed: 1,
      onText,
      onEnd: (i) => void ends.push(i),
    });
    expect(pieces).toEqual(texts);
    expect([...ends].sort((a, b) => a - b)).toEqual([0, 1, 2, 3]);
    expect(new Set([texts[0], texts[1], texts[3]]).size).toBe(3);
    expect(texts[0]).toBe(generate(model, words, "w1", { temperature: 1.5, maxTokens: 9, seed: 1 }));
    expect(generateBatch(model, words, [])).toEqual([]);
    expect(defaultBackend().memory().used).toBe(used);
    model.dispose();
  });
});

test("a step reads the k experts of its token and no other: the others may be anything", () => {
  const model = build();
  const parameters = model.namedParameters();
  const fill = (p: Tensor, values: (i: number) => number): void =>
    p.backend.write(
      p.buffer,
      Float32Array.from({ length: p.size }, (_, i) => values(i)),
    );
  // A gate of zeros takes the first two of eight experts for every token.
  for (const [name, p] of parameters) if (name.startsWith("moe.gate")) fill(p, () => 0);
  const experts = [...parameters].filter(([name]) => name.startsWith("moe.experts")).map(([, p]) => p);
  expect(experts.length).toBeGreaterThan(0);
  const before = generate(model, words, "w1 w2", { temperature: 1, maxTokens: 10 });
  const poison = (expert: (e: number) => boolean): void => {
    for (const p of experts) {
      const values = p.dataSync().slice();
      fill(p, (i) => (expert(Math.floor(i / (p.size / 8))) ? NaN : values[i]!));
    }
  };
  poison((e) => e >= 2);
  expect(generate(model, words, "w1 w2", { temperature: 1, maxTokens: 10 })).toBe(before);
  poison((e) => e === 1);
  const { output } = model.hidden(tensor(words.encode("w1"), [1, 1], "int32"), {
    training: false,
    seed: 0,
    step: 0,
    firstRow: 0,
  });
  expect(Array.from(output.dataSync()).some(Number.isNaN)).toBe(true);
  model.dispose();
});
