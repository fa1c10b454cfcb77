// The compiler's messages as a translation task, and the count of placeholders.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { PAPER_LANGUAGES, countPlaceholders, messagePairs, placeholders } from "#sparsegate/text/message-pairs.js";
import { loadMessages, splitMessages } from "#sparsegate/text/messages.js";

const messages = loadMessages();

describe("messagePairs", () => {
  it("pairs each of the paper's six languages with English, to and fro", () => {
    const corpora = messagePairs(messages);
    const directions = corpora.map(({ sourceLanguage, targetLanguage }) => `${sourceLanguage}>${targetLanguage}`);
    expect(directions.sort()).toEqual("de>en en>de en>es en>fr en>ja en>ko en>pt-br es>en fr>en ja>en ko>en pt-br>en".split(" "));
    for (const { sources, targets } of corpora) expect([sources.length, targets.length]).toEqual([2118, 2118]);
    const [toGerman] = messagePairs(messages, ["de"]);
    const place = toGerman.sources.indexOf("Unterminated string literal.");
    expect(toGerman.targets[place]).toBe("Nicht abgeschlossenes Zeichenfolgenliteral.");
    const [, fromGerman] = messagePairs(messages, ["de"]);
    expect([fromGerman.sources, fromGerman.targets]).toEqual([toGerman.targets, toGerman.sources]);
  });

  it("keeps every message within one part when the messages are split first", () => {
    const { train, valid, test } = splitMessages(messages, { seed: 3, validShare: 0.1, testShare: 0.1 });
    const english = [train, valid, test].map((part) =>
      messagePairs(part).map(({ sourceLanguage, sources, targets }) => (sourceLanguage === "en" ? sources : targets)),
    );
    const seen = english.map((corpora) => new Set(corpora.flat()));
    for (const [i, j] of [
      [0, 1],
      [0, 2],
      [1, 2],
    ])
      expect([...seen[i]].filter((text) => seen[j].has(text))).toEqual([]);
    for (let c = 0; c < 12; c++) expect(english.reduce((sum, corpora) => sum + corpora[c].length, 0)).toBe(2118);
  });

  it("leaves out what one side lacks, and refuses English, a language twice, and an unknown one", () => {
    const some = [
      { key: "a", language: "en", text: "A" },
      { key: "b", language: "en", text: "B" },
      { key: "b", language: "de", text: "Be" },
      { key: "c", language: "de", text: "Ce" },
    ];
    expect(messagePairs(some, ["de"])[0]).toMatchObject({ sources: ["B"], targets: ["Be"] });
    expect(() => messagePairs(some, ["en"])).toThrow(/languages beside English, each once, got \["en"\]/);
    expect(() => messagePairs(some, ["de", "de"])).toThrow(/each once/);
    expect(() => messagePairs(some, ["xx"])).toThrow(/messages in English and in xx, got "none"/);
  });
});

describe("placeholders", () => {
  it("are braces with a number between, and nothing else", () => {
    expect(placeholders("'{0}' of {12}{0} but not { 1 }, {}, {a} or {1")).toEqual(["{0}", "{12}", "{0}"]);
  });

  it("survive as a multiset: in any order, but as often as they were there", () => {
    const count = (source: string, translation: string): number[] => {
      const { expected, kept, invented, share } = countPlaceholders([source], [translation]);
      return [expected, kept, invented, share];
    };
    expect(count("{0} is {1}", "{1} war {0}")).toEqual([2, 2, 0, 1]);
    expect(count("{0} and {0}", "{0}")).toEqual([2, 1, 0, 0.5]);
    expect(count("{0}", "{0} {0} {1}")).toEqual([1, 1, 2, 1]);
    expect(count("{0} {1} {2} {3}", "{4}")).toEqual([4, 0, 1, 0]);
    expect(count("none", "none")).toEqual([0, 0, 0, 1]);
    expect(countPlaceholders(["{0}", "{1}"], ["{1}", "{0}"])).toMatchObject({ expected: 2, kept: 0, invented: 2 });
    expect(() => countPlaceholders(["a"], [])).toThrow(/translations of 1 sources, got 0/);
  });

  it("all survive a shuffle of words, and none without them", () => {
    const word = fc.constantFrom("{0}", "{1}", "{2}", "a", "b");
    fc.assert(
      fc.property(fc.array(word), (words) => {
        const n = words.filter((text) => text.startsWith("{")).length;
        const all = countPlaceholders([words.join(" ")], [[...words].reverse().join(" ")]);
        expect(all).toEqual({ expected: n, kept: n, invented: 0, share: 1 });
        expect(countPlaceholders([words.join(" ")], ["a b"]).kept).toBe(0);
      }),
    );
  });

  it("of the messages all survive in the compiler's own translations, where French has one more", () => {
    // Counted apart from this code: 1,479 in the English of 2,118 messages, for each language alike.
    for (const language of PAPER_LANGUAGES) {
      const [{ sources, targets }] = messagePairs(messages, [language]);
      expect([language, countPlaceholders(sources, targets)]).toEqual([
        language,
        { expected: 1479, kept: 1479, invented: language === "fr" ? 1 : 0, share: 1 },
      ]);
    }
  });
});
