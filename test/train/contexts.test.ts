/** What experts take: contexts and the coloured text agree with the gate asked one token at a time, and the page is escaped and whole. */

import { afterAll, describe, expect, test } from "vitest";
import { parseHTML } from "linkedom";
import { LanguageModel } from "#sparsegate/models/language-model.js";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { noGrad, tensor } from "#sparsegate/tensor/index.js";
import type { LstmState } from "#sparsegate/tensor/ops/lstm.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";
import { contextLine, renderContexts, routedText } from "#sparsegate/train/contexts.js";
import { specialisation } from "#sparsegate/train/specialisation.js";
import { Draw } from "../backend/helpers.js";
import { sentences } from "../cli/helpers.js";

afterAll(() => defaultBackend().dispose());

const words = WordVocabulary.fromWords(Array.from({ length: 60 }, (_, i) => `w${i}`));
const LINES = [...sentences(12), Array.from({ length: 90 }, (_, i) => `w${i % 60}`).join(" ")];
function build(): LanguageModel {
  const model = new LanguageModel({
    vocabSize: words.vocabSize,
    hiddenSize: 8,
    lstmSize: 8,
    middle: { kind: "moe", numExperts: 6, topK: 2, expertHiddenSize: 8 },
    dropout: 0.3,
    sigmoid: true,
    residual: true,
    seed: 1,
  });
  const draw = new Draw(5);
  for (const p of model.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -0.8, 0.8));
  return model;
}

/** Experts and gate values of each token of a line, by reading it alone, token after token. */
function byHand(model: LanguageModel, line: string): { text: string; experts: { expert: number; gate: number }[] }[] {
  return noGrad(() => {
    let states: LstmState[] | undefined;
    const read = (id: number): { expert: number; gate: number }[] => {
      const out = model.hidden(tensor([id], [1, 1], "int32"), { training: false, seed: 0, step: 0, firstRow: 0 }, states);
      states = out.states;
      const [experts, gates] = [out.moe!.experts.dataSync(), out.moe!.gates.dataSync()];
      return [0, 1].map((j) => ({ expert: experts[j]!, gate: gates[j]! })).sort((a, b) => b.gate - a.gate);
    };
    read(words.eosId);
    return words.encode(line).map((id) => ({ text: words.tokenText(id), experts: read(id) }));
  });
}

describe("the text coloured by expert", () => {
  test("has for each token of each sentence the experts that it goes to when it is read, also across batches", () => {
    const model = build();
    const found = routedText(model, words, LINES, LINES.length);
    expect(found).toHaveLength(LINES.length);
    for (const [i, line] of LINES.entries()) {
      const wanted = byHand(model, line);
      expect(found[i]!.map(({ text }) => text)).toEqual(wanted.map(({ text }) => text));
      for (const [t, { experts }] of found[i]!.entries()) {
        expect(experts.map(({ expert }) => expert)).toEqual(wanted[t]!.experts.map(({ expert }) => expert));
        for (const [j, { gate }] of experts.entries()) expect(gate).toBeCloseTo(wanted[t]!.experts[j]!.gate, 5);
      }
    }
    expect(routedText(model, words, LINES, 3)).toHaveLength(3);
    model.dispose();
  });

  test("agrees with the contexts: each expert's first is the highest of its gate values in the text", () => {
    const model = build();
    const { experts } = specialisation(model, words, LINES.map((text) => ({ text, label: "" }))); // prettier-ignore
    const all = LINES.flatMap((line) => byHand(model, line));
    expect(experts.length).toBeGreaterThan(2);
    for (const { expert, contexts } of experts) {
      const gates = all.flatMap((token) => token.experts.filter((one) => one.expert === expert).map(({ gate }) => ({ gate, text: token.text }))); // prettier-ignore
      const best = gates.reduce((a, b) => (b.gate > a.gate ? b : a));
      expect(contexts[0]!.gate).toBeCloseTo(best.gate, 5);
      expect(contexts[0]!.token).toBe(best.text);
      for (const [j, { gate }] of contexts.entries()) expect(gate).toBeLessThanOrEqual(contexts[j - 1]?.gate ?? 1);
    }
    model.dispose();
  });

  test("is a page with every token, named experts and nothing from outside; text is escaped", () => {
    const context = { before: "the", token: "<b>", after: "of", gate: 0.75, label: "" };
    const page = renderContexts({
      title: "What the experts of MoE-4 take",
      command: "sparsegate inspect run --contexts",
      createdAt: "2026-01-02T03:04:05Z",
      text: "</style><script>alert(1)</script>",
      profiles: [{ expert: 3, tokens: 1234, shares: [1], divergence: 0, contexts: [context] }],
      sentences: [[{ text: "<i>", experts: [{ expert: 3, gate: 0.75 }, { expert: 0, gate: 0.25 }] }, { text: "dropped", experts: [] }]], // prettier-ignore
    });
    expect(page).not.toMatch(/https?:|<script|<link|<img|url\(|@import|src=|NaN|undefined|<b>|<i>/i);
    const { document } = parseHTML(page);
    const [token, ...others] = [...document.querySelectorAll(".routed span")];
    expect([token!.textContent, token!.getAttribute("title")]).toEqual(["<i>", "expert 3: 0.75, expert 0: 0.25"]);
    expect(others.map((one) => [one.textContent, one.getAttribute("title")])).toEqual([["dropped", "no expert"]]);
    expect(document.querySelector("h3")!.textContent).toBe("Expert 3 1,234 tokens");
    // The colour of an expert is the same in the text and at its contexts.
    const hueOf = (style: string | null): string | undefined => /--hue:([\d.]+)/.exec(style ?? "")?.[1];
    expect(hueOf(token!.getAttribute("style"))).toBe(hueOf(document.querySelector("h3 i")!.getAttribute("style")));
    expect(document.querySelector(".context bdi")!.textContent).toBe("the <b> of");
    expect(contextLine(context)).toBe("  0.75  the [<b>] of");
  });
});
