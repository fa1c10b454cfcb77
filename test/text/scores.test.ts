/**
 * BLEU and chrF against what sacrebleu 2.6.0 and multi-bleu.perl themselves gave for the documents of translation-scores.json: corpora and single
 * segments, with empty lines, punctuation, Chinese, Japanese and Korean, several references, identical, disjoint and very short texts.
 */
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BLEU_TOKENIZATIONS } from "#sparsegate/text/bleu-tokens.js";
import { type BleuOptions, corpusBleu, formatBleu, multiBleu, sentenceBleu } from "#sparsegate/text/bleu.js";
import { type ChrfOptions, corpusChrf, formatChrf, sentenceChrf } from "#sparsegate/text/chrf.js";
import { readLines } from "#sparsegate/text/corpus.js";
import { SCORE_VERSION, fixed, words } from "#sparsegate/text/score.js";

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

interface Expected<Options> {
  readonly options: Options;
  readonly score: number;
  readonly line: string;
}

interface Document {
  readonly name: string;
  readonly hypotheses: string[];
  readonly references: (string | string[])[];
  readonly bleu: (Expected<BleuOptions> & {
    readonly precisions: number[];
    readonly counts: number[];
    readonly totals: number[];
    readonly brevityPenalty: number;
    readonly hypothesisLength: number;
    readonly referenceLength: number;
  })[];
  readonly chrf: Expected<ChrfOptions>[];
  readonly sentences: { readonly bleu: number; readonly chrf: number; readonly chrfpp: number }[];
}

const { documents } = JSON.parse(readFileSync(here("./translation-scores.json"), "utf8")) as { readonly documents: Document[] };
const named = (name: string): Document => documents.find((document) => document.name === name)!;

/** Their line with our version, which is the one thing that may differ; other than four orders are told in ours alone. */
function ours(line: string, { maxOrder = 4 }: BleuOptions = {}): string {
  return line.replace("version:2.6.0", `${maxOrder === 4 ? "" : `order:${maxOrder}|`}version:${SCORE_VERSION}`);
}

describe.each(documents)("$name", ({ hypotheses, references, bleu, chrf, sentences }) => {
  it.each(bleu)("has sacrebleu's corpus BLEU, to 1e-9, and its line with $options", ({ options, line, ...expected }) => {
    const score = corpusBleu(hypotheses, references, options);
    for (const [key, value] of Object.entries(expected)) {
      const actual = [score[key as "score" | "precisions"]].flat();
      [value].flat().forEach((figure, i) => expect(Math.abs(actual[i] - figure), `${key} ${i}`).toBeLessThan(1e-9));
      expect(actual.length).toBe([value].flat().length);
    }
    expect(formatBleu(score, { signature: true })).toBe(ours(line, options));
  });

  it.each(chrf)("has sacrebleu's corpus chrF, to 1e-9, and its line with $options", ({ options, score, line }) => {
    const own = corpusChrf(hypotheses, references, options);
    expect(Math.abs(own.score - score)).toBeLessThan(1e-9);
    expect(formatChrf(own, { signature: true })).toBe(ours(line));
  });

  it("has sacrebleu's BLEU, chrF and chrF++ of each segment, to 1e-9", () => {
    expect(sentences.length).toBe(hypotheses.length);
    sentences.forEach((expected, i) => {
      expect(Math.abs(sentenceBleu(hypotheses[i], references[i]).score - expected.bleu)).toBeLessThan(1e-9);
      expect(Math.abs(sentenceChrf(hypotheses[i], references[i]).score - expected.chrf)).toBeLessThan(1e-9);
      expect(Math.abs(sentenceChrf(hypotheses[i], references[i], { wordOrder: 2 }).score - expected.chrfpp)).toBeLessThan(1e-9);
    });
  });
});

describe("multiBleu", () => {
  // multi-bleu.perl of Moses (commit 34452895), with more decimals printed, on the documents in lower case; "nothing translated" makes it divide by zero.
  it.each([
    ["captions", 47.2973060435511],
    ["empty lines", 22.5659609047413],
    ["empty against empty", 0],
    ["CJK and beyond", 0],
    ["several references", 73.1738193241129],
    ["identical", 100],
    ["disjoint", 0],
    ["case", 66.8740304976422],
    ["longer than the reference", 0],
  ])("is the score of multi-bleu.perl for tokens given (%s)", (name, expected) => {
    const { hypotheses, references } = named(name);
    expect(Math.abs(multiBleu(hypotheses, references, { tokenize: "none" }).score - expected)).toBeLessThan(1e-9);
  });

  it("says in its signature what was computed, and is 0 without any translation", () => {
    const { hypotheses, references } = named("captions");
    const score = multiBleu(hypotheses, references);
    expect(score.signature).toBe(`nrefs:1|case:lc|eff:no|tok:13a|smooth:none|kind:multi-bleu|version:${SCORE_VERSION}`);
    // Where nothing has to be smoothed, the same as sacrebleu's lower-cased score.
    expect(score.score).toBeCloseTo(named("captions").bleu.find(({ options }) => options.lowercase === true)!.score, 9);
    expect(multiBleu(["", ""], ["a b", "c"]).score).toBe(0);
  });
});

/** Where the translation task's data lies, beside the project; it is no part of it. */
const multi30k = here("../../../shared/data/multi30k/test_2016_flickr.de.gz");

describe.skipIf(!existsSync(multi30k))("a thousand captions of Multi30k (skipped where the data is absent)", () => {
  it("have the BLEU and chrF that sacrebleu 2.6.0 gives when the fourth of every five words is left out", () => {
    const references = [...readLines(multi30k)];
    const hypotheses = references.map((line) =>
      line
        .split(" ")
        .filter((_, i) => i % 5 !== 3)
        .join(" "),
    );
    expect(references.length).toBe(1000);
    const bleu = corpusBleu(hypotheses, references);
    expect(formatBleu(bleu)).toBe("BLEU = 46.5 100.0/80.1/55.1/25.7 (BP = 0.801 ratio = 0.819 hyp_len = 9910 ref_len = 12106)");
    expect(Math.abs(bleu.score - 46.49489291914962)).toBeLessThan(1e-9);
    expect(Math.abs(corpusChrf(hypotheses, references).score - 76.52479765352842)).toBeLessThan(1e-9);
    expect(Math.abs(corpusChrf(hypotheses, references, { wordOrder: 2 }).score - 76.36608749100434)).toBeLessThan(1e-9);
  });
});

describe("tokens", () => {
  it("are cut as sacrebleu 2.6.0 cuts them", () => {
    expect(BLEU_TOKENIZATIONS["13a"]("He paid 1,000.50 dollars (about 3-4 %), didn't he?").join(" ")).toBe(
      "He paid 1,000.50 dollars ( about 3 - 4 % ) , didn't he ?",
    );
    expect(BLEU_TOKENIZATIONS.char("a \u{20bb7}b ").join(" ")).toBe("a \u{20bb7} b");
    expect(BLEU_TOKENIZATIONS.none("a,b\u00a0c ").join(" ")).toBe("a,b c");
  });

  it("take each of sacrebleu's Chinese code points, and no other, as a token of its own", () => {
    // The ranges that its test of a character accepts, by going through all code points.
    const ranges =
      "2001-2a6d 2e80-2fdf 2ff0-303f 3100-312f 31a0-31ef 3200-4db5 4e00-9fbb f900-fa2d fa30-fa6a fa70-fad9 fe10-fe1f fe30-fe4f ff00-ffef"
        .split(" ")
        .map((range) => range.split("-").map((code) => parseInt(code, 16)));
    for (let code = 0x80; code < 0x30000; code++) {
      const character = String.fromCodePoint(code);
      if (words(character).length === 0) continue;
      const alone = BLEU_TOKENIZATIONS.zh(`x${character}x`).length === 3;
      expect([code, alone]).toEqual([code, ranges.some(([from, to]) => code >= from && code <= to)]);
    }
  });
});

describe("printed figures", () => {
  it("round ties to the even digit, as Python's do", () => {
    // From Python 3.11: f"{x:.1f}".
    const cases: [number, number, string][] = [
      [31.25, 1, "31.2"],
      [31.75, 1, "31.8"],
      [0.25, 1, "0.2"],
      [0.35, 1, "0.3"],
      [99.95, 1, "100.0"],
      [0.0625, 3, "0.062"],
      [2.5, 0, "2"],
      [12.345, 2, "12.35"],
      [100, 1, "100.0"],
    ];
    for (const [value, digits, text] of cases) expect([value, fixed(value, digits)]).toEqual([value, text]);
  });

  it("carry the package's version", () => {
    const { version } = JSON.parse(readFileSync(here("../../package.json"), "utf8")) as { readonly version: string };
    expect(SCORE_VERSION).toBe(`sparsegate-${version}`);
  });
});

const segment = fc
  .array(fc.constantFrom("a", "b", "c", "the", "dog,", "3.5", "漢字", "(x)", ""), { maxLength: 9 })
  .map((list) => list.join(" "));
const corpus = fc.array(fc.record({ hypothesis: segment, references: fc.array(segment, { minLength: 1, maxLength: 3 }) }), {
  minLength: 1,
  maxLength: 8,
});
const measures: [string, (hypotheses: string[], references: string[][]) => number][] = [
  ["BLEU", (hypotheses, references) => corpusBleu(hypotheses, references).score],
  ["BLEU add-k", (hypotheses, references) => corpusBleu(hypotheses, references, { smoothing: "add-k" }).score],
  ["multiBleu", (hypotheses, references) => multiBleu(hypotheses, references).score],
  ["chrF", (hypotheses, references) => corpusChrf(hypotheses, references).score],
  ["chrF++", (hypotheses, references) => corpusChrf(hypotheses, references, { wordOrder: 2 }).score],
];

describe.each(measures)("%s", (_, measure) => {
  it("is from 0 to 100, whatever the texts, and no matter in which order the segments stand", () => {
    fc.assert(
      fc.property(corpus, fc.nat(), (segments, by) => {
        const of = (list: typeof segments): number =>
          measure(
            list.map(({ hypothesis }) => hypothesis),
            list.map(({ references }) => references),
          );
        const score = of(segments);
        expect(score).toBeGreaterThanOrEqual(0);
        expect(score).toBeLessThanOrEqual(100 + 1e-9);
        const turned = by % segments.length;
        expect(of([...segments.slice(turned), ...segments.slice(0, turned)].reverse())).toBeCloseTo(score, 9);
      }),
    );
  });

  it("is 100 for a translation that is the reference, with four words or more", () => {
    fc.assert(
      fc.property(corpus, (segments) => {
        const texts = [...segments.map(({ hypothesis }) => hypothesis), "one two three four"];
        expect(
          measure(
            texts,
            texts.map((text) => [text, "another"]),
          ),
        ).toBeCloseTo(100, 9);
      }),
    );
  });
});

describe("what cannot be scored", () => {
  const { hypotheses, references } = named("captions");
  it.each<[string, () => unknown, string]>([
    ["no segment", () => corpusBleu([], []), "corpusBleu: expected at least one translated segment, got 0."],
    ["other numbers of segments", () => corpusChrf(hypotheses, ["x"]), "corpusChrf: expected references for 5 segments, got 1."],
    [
      "a segment without a reference",
      () => corpusBleu(["x", "y"], ["x", []]),
      "corpusBleu: segment 1: expected at least one reference, got 0.",
    ],
    [
      "a segment that is no text",
      () => corpusBleu(["x", undefined as never], ["x", "y"]),
      "corpusBleu: segment 1: expected text, got undefined.",
    ],
    [
      "a tokenisation there is not",
      () => corpusBleu(hypotheses, references, { tokenize: "intl" as never }),
      "corpusBleu: expected tokenize to be one of",
    ],
    [
      "a smoothing there is not",
      () => sentenceBleu("x", "x", { smoothing: "epsilon" as never }),
      "sentenceBleu: expected smoothing to be one of exp, floor, add-k, none",
    ],
    [
      "a value for a smoothing without one",
      () => corpusBleu(hypotheses, references, { smoothingValue: 1 }),
      "corpusBleu: expected no smoothingValue for smoothing exp, got 1.",
    ],
    [
      "no order",
      () => corpusBleu(hypotheses, references, { maxOrder: 0 }),
      "corpusBleu: expected maxOrder to be an integer of at least 1, got 0.",
    ],
    [
      "a negative beta",
      () => corpusChrf(hypotheses, references, { beta: -1 }),
      "corpusChrf: expected beta to be a finite number of at least 0, got -1.",
    ],
    [
      "another tokenisation for multi-bleu",
      () => multiBleu(hypotheses, references, { tokenize: "zh" as never }),
      "multiBleu: expected tokenize to be one of 13a, none",
    ],
  ])("is refused: %s", (_, call, says) => expect(call).toThrow(says));
});
