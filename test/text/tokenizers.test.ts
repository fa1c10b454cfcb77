// Tokenizers and the reader of text files.
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { uniformsFrom } from "#sparsegate/core/random.js";
import { BpeTokenizer, trainBpe } from "#sparsegate/text/bpe.js";
import { readLines } from "#sparsegate/text/corpus.js";
import { tokenizeCorpus } from "#sparsegate/text/dataset.js";
import { loadTokenizer } from "#sparsegate/text/load.js";
import { loadMessages } from "#sparsegate/text/messages.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";

const folder = mkdtempSync(join(tmpdir(), "sparsegate-text-"));

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

/** Byte-pair merges of words of ASCII letters the slow way: all pairs counted anew before each merge; ties go to the lowest ids. */
function mergesByRecount(words: readonly string[], vocabSize: number): [string, string][] {
  // "a" is id 65, after </s> and the 64 characters from ! to the one before it.
  const ids = new Map(["a", "b", "c"].map((letter, i) => [letter, 65 + i]));
  const merges: [string, string][] = [];
  let pieces = words.map((word) => word.split(""));
  for (let size = 257; size < vocabSize; ) {
    const counts = new Map<string, number>();
    for (const piece of pieces) for (let i = 0; i + 1 < piece.length; i++) counts.set(`${piece[i]} ${piece[i + 1]}`, (counts.get(`${piece[i]} ${piece[i + 1]}`) ?? 0) + 1);
    const order = [...counts].map(([pair, count]) => ({ pair: pair.split(" ") as [string, string], count }));
    order.sort((a, b) => b.count - a.count || ids.get(a.pair[0])! - ids.get(b.pair[0])! || ids.get(a.pair[1])! - ids.get(b.pair[1])!);
    if (order.length === 0 || order[0].count < 2) break;
    const [first, second] = order[0].pair;
    merges.push([first, second]);
    if (!ids.has(first + second)) ids.set(first + second, size++);
    pieces = pieces.map((piece) => {
      const merged: string[] = [];
      for (let i = 0; i < piece.length; i++) {
        if (piece[i] === first && piece[i + 1] === second) merged.push(first + piece[++i]);
        else merged.push(piece[i]);
      }
      return merged;
    });
  }
  return merges;
}

describe("readLines", () => {
  it("drops line ends and the byte order mark, keeps empty lines, and unpacks .gz", () => {
    const text = "\uFEFFone\r\n\ntwo\nthree";
    expect([...readLines(file("a.txt", text))]).toEqual(["one", "", "two", "three"]);
    expect([...readLines(file("a.txt.gz", gzipSync(text)))]).toEqual(["one", "", "two", "three"]);
  });

  it("gives every line of a text larger than a chunk, byte for byte", () => {
    const lines = Array.from({ length: 120_000 }, (_, i) => `line ${i} ü漢字`.repeat((i % 3) + 1));
    expect([...readLines(file("big.txt", `${lines.join("\n")}\n`))]).toEqual(lines);
  });

  it("names the file and the line of invalid UTF-8 and of a zero byte", () => {
    const invalid = file("bad.txt", Buffer.concat([Buffer.from("good\nalso good\nbad "), Buffer.from([0xc3, 0x28]), Buffer.from("\nend")]));
    expect(() => [...readLines(invalid)]).toThrow(/bad\.txt:3: expected UTF-8/);
    expect(() => readLines(file("zero.txt", "a\nb\0c"))).toThrow(/zero\.txt:2: .*zero byte/);
  });

  it("refuses an empty file, a missing file, a folder and a .gz that is none", () => {
    expect(() => readLines(file("empty.txt", ""))).toThrow(/empty file/);
    expect(() => readLines(join(folder, "none.txt"))).toThrow(/no such file/);
    expect(() => readLines(folder)).toThrow(/a folder/);
    expect(() => readLines(file("plain.gz", "text"))).toThrow(/gzip/);
  });
});

describe("WordVocabulary", () => {
  it("takes constructor and __proto__ as words like any other", () => {
    const vocabulary = WordVocabulary.fromCounts(["__proto__ constructor __proto__ toString"]);
    expect(vocabulary.encode("toString __proto__ hasOwnProperty constructor")).toEqual([4, 2, vocabulary.unkId, 3]);
  });

  it("splits at ASCII white space alone, as wc and KenLM do: a no-break space or byte order mark is part of a word", () => {
    const vocabulary = WordVocabulary.fromCounts(["a\u00a0b \t\uFEFF\r\fc c c"]);
    expect([2, 3, 4].map((id) => vocabulary.tokenText(id))).toEqual(["c", "a\u00a0b", "\uFEFF"]);
    expect([...tokenizeCorpus(["\uFEFF", " \t"], vocabulary).tokens]).toEqual([4, 0]);
    const { file: name, text } = vocabulary.save();
    expect(loadTokenizer(name, text).encode("\uFEFF a\u00a0b c")).toEqual([4, 3, 2]);
  });

  it("adds <unk> and the end word to a file's end, and refuses a word twice by its line", () => {
    const vocabulary = WordVocabulary.fromFile(file("vocab.txt", "the\nof\n"), { eos: "<eos>" });
    expect([vocabulary.vocabSize, vocabulary.unkId, vocabulary.eosId]).toEqual([4, 2, 3]);
    expect(() => WordVocabulary.fromFile(file("twice.txt", "the\nof\nthe\n"))).toThrow(/twice\.txt:3: .*"the".*line 1/);
  });

  it("keeps the most frequent words within maxSize and comes back from its file", () => {
    const vocabulary = WordVocabulary.fromCounts(["b b a a c"], { maxSize: 4, eos: "<eos>" });
    expect([0, 1, 2, 3].map((id) => vocabulary.tokenText(id))).toEqual(["<eos>", "<unk>", "a", "b"]);
    const { file: name, text } = vocabulary.save();
    const again = loadTokenizer(name, text);
    expect([again.vocabSize, again.eosId, again.encode("a b c"), again.decode([2, 3, 1, 0])]).toEqual([4, 0, [2, 3, 1], "a b <unk>"]);
  });
});

describe("byte-pair encoding", () => {
  it("learns the merges worked by hand", () => {
    // Pieces: low ×3, lower ×2 (after a space: " lower"), so pairs: (l,o) 5, (o,w) 5, then (w,e) 2, (e,r) 2, (space,l) 2.
    // Ids: 1-94 are ! to ~, so "l" 76 < "o" 79: (l,o) wins the tie; then (lo,w) 5; then among the 2s the pair of the lowest ids.
    const tokenizer = trainBpe(["low lower", "low lower", "low"], { vocabSize: 262 });
    const { model } = JSON.parse(tokenizer.save().text);
    expect(model.merges).toEqual([
      ["l", "o"],
      ["lo", "w"],
      ["e", "r"],
      ["Ġ", "low"],
      ["Ġlow", "er"],
    ]);
    expect(tokenizer.encode("low lower").map((id) => tokenizer.tokenText(id))).toEqual(["low", " lower"]);
  });

  it("learns aa, ab, aaab from aaabdaaabac, where pairs overlap and tie", () => {
    // (a,a) 4, (a,b) 2; then with Z = aa: (a,b) 2 and (Z,a) 2, of which (a,b) has the lower ids; then (Z,ab) 2; then no pair is left twice.
    const tokenizer = trainBpe(["aaabdaaabac"], { vocabSize: 300 });
    expect(JSON.parse(tokenizer.save().text).model.merges).toEqual([
      ["a", "a"],
      ["a", "b"],
      ["aa", "ab"],
    ]);
    expect(tokenizer.vocabSize).toBe(260);
  });

  it("learns the merges of a plain recount of all pairs before each merge", () => {
    const word = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 14 });
    fc.assert(
      fc.property(fc.array(word, { minLength: 1, maxLength: 12 }), (words) => {
        const { model } = JSON.parse(trainBpe(words, { vocabSize: 290 }).save().text);
        expect(model.merges).toEqual(mergesByRecount(words, 290));
      }),
    );
  });

  const tokenizer = trainBpe(["the cat's hat — das Wetter, 漢字 漢字 🙂🙂", "the the that there __proto__ </s>"], { vocabSize: 300 });

  it("decodes what it encoded, whatever the text", () => {
    const again = loadTokenizer("folder/tokenizer.json", tokenizer.save().text);
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        const ids = tokenizer.encode(text);
        expect(tokenizer.decode(ids)).toBe(text);
        expect(ids).not.toContain(tokenizer.eosId);
        expect(again.encode(text)).toEqual(ids);
      }),
    );
    for (const text of ["\uFEFFmark", "a  b\n\tc ", "</s>", "don't 123", "🙂"]) expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  describe("with merges left out by chance", () => {
    // The merges: a b, then ab c (of as many pairs the one of the lower ids), then ab abc.
    const tokenizer = trainBpe(["ababc ababc ababc"], { vocabSize: 260 });
    const tokens = (text: string, dropout: number, uniform: () => number): string[] => tokenizer.encodeWithDropout(text, dropout, uniform).map((id) => tokenizer.tokenText(id));
    const drawing = (...draws: readonly number[]): (() => number) => {
      const rest = [...draws];
      return () => {
        if (rest.length === 0) throw new Error("one draw more than there are merges");
        return rest.shift()!;
      };
    };

    it("follows the steps worked by hand, drawing once for each merge that could be made", () => {
      expect(tokenizer.encode("ababc").map((id) => tokenizer.tokenText(id))).toEqual(["ababc"]);
      // a b a b c: both ab are left out.
      expect(tokens("ababc", 0.5, drawing(0.1, 0.4))).toEqual(["a", "b", "a", "b", "c"]);
      // The second ab is made (the draw 0.5 is not below 0.5), and then the first is left out, and abc.
      expect(tokens("ababc", 0.5, drawing(0.1, 0.5, 0.2, 0.3))).toEqual(["a", "b", "ab", "c"]);
      // The first ab of two, then the second, then abc, and ababc is left out.
      expect(tokens("ababc", 0.5, drawing(0.9, 0.9, 0.9, 0.9, 0.3))).toEqual(["ab", "abc"]);
    });

    it("is the encoding without at 0 and bytes at 1, and decodes to the text", () => {
      const text = fc.string({ unit: fc.constantFrom("a", "b", "c", " ", "é", "語"), maxLength: 30 });
      fc.assert(
        fc.property(text, fc.double({ min: 0, max: 1, noNaN: true }), fc.nat(), (text, dropout, seed) => {
          const uniform = (): (() => number) => uniformsFrom({ seed, stream: 1, step: 0 }, 0);
          expect(tokenizer.encodeWithDropout(text, 0, uniform())).toEqual(tokenizer.encode(text));
          expect(tokenizer.encodeWithDropout(text, 1, uniform())).toHaveLength(new TextEncoder().encode(text).length);
          expect(tokenizer.decode(tokenizer.encodeWithDropout(text, dropout, uniform()))).toBe(text);
        }),
      );
    });

    it("leaves a merge out as often as it is told to", () => {
      const uniform = uniformsFrom({ seed: 3, stream: 1, step: 0 }, 0);
      const whole = Array.from({ length: 10_000 }, () => tokenizer.encodeWithDropout("ab", 0.1, uniform)).filter(({ length }) => length === 1);
      // Four standard deviations, of 30 each.
      expect(Math.abs(whole.length - 9000)).toBeLessThan(120);
    });
  });

  it("is the same for the same text, and its file comes back the same", () => {
    const lines = ["aa bb ab ba", "bb aa ba ab"];
    expect(trainBpe([...lines].reverse(), { vocabSize: 270 }).save()).toEqual(trainBpe(lines, { vocabSize: 270 }).save());
    expect(BpeTokenizer.fromJson(tokenizer.save().text).save()).toEqual(tokenizer.save());
  });

  describe("special tokens", () => {
    const lines = ["low lower <2de> </s>", "<2de> low lower", "low"];
    const specialTokens = ["<2de>", "<2pt-br>"];
    const tagged = trainBpe(lines, { vocabSize: 264, specialTokens });

    it("are single ids after the end of sentence, and leave the merges as they are", () => {
      expect(specialTokens.map((token) => tagged.specialId(token))).toEqual([1, 2]);
      expect([tagged.eosId, tagged.specialId("</s>"), tagged.vocabSize]).toEqual([0, 0, 264]);
      const merges = (trained: BpeTokenizer): unknown => JSON.parse(trained.save().text).model.merges;
      expect(merges(tagged)).toEqual(merges(trainBpe(lines, { vocabSize: 262 })));
      expect(tagged.tokenText(1)).toBe("<2de>");
    });

    it("never come out of a text, leave nothing in one, and come back from the file", () => {
      const again = loadTokenizer("tokenizer.json", tagged.save().text);
      for (const text of ["<2de> low", "</s><2de><2pt-br>"]) {
        const ids = tagged.encode(text);
        expect(ids.filter((id) => id < 3)).toEqual([]);
        expect(tagged.decode([1, ...ids, 2, 0])).toBe(text);
        expect([again.encode(text), again.decode([2, ...ids])]).toEqual([ids, text]);
      }
      expect(again.specialId("<2pt-br>")).toBe(2);
      expect([again.eosId, again.save()]).toEqual([0, tagged.save()]);
    });

    it("are refused when a text could make them, when they are there twice, or when they do not fit", () => {
      const train = (...tokens: string[]): (() => unknown) => () => trainBpe(lines, { vocabSize: 300, specialTokens: tokens });
      for (const token of ["de", "<>", "<->", "<a b>", "<é>", "<a><b>", "x<a>"]) expect(train(token)).toThrow(/ASCII in angle brackets with a letter or a digit/);
      expect(train("<a>", "<a>")).toThrow(/tokens that are there once, got "<a>"/);
      expect(train("</s>")).toThrow(/tokens that are there once/);
      expect(() => trainBpe(lines, { vocabSize: 258, specialTokens })).toThrow(/an integer from 259/);
      expect(() => tagged.specialId("<2fr>")).toThrow(/"<2fr>" among the special tokens, got \["<\/s>", "<2de>", "<2pt-br>"\]/);
      // A merged token of that name would be an ordinary one.
      expect(() => tagged.specialId("low")).toThrow(/"low" among the special tokens/);
    });
  });

  it("of a vocabulary shared by fourteen languages brings each message back, Chinese, Japanese and Korean ones in about a token a character or less", () => {
    const messages = loadMessages();
    const shared = trainBpe(
      messages.map(({ text }) => text),
      { vocabSize: 8000 },
    );
    expect(shared.vocabSize).toBe(8000);
    const perCharacter = new Map<string, number>();
    for (const language of new Set(messages.map((message) => message.language))) {
      const texts = messages.filter((message) => message.language === language).map(({ text }) => text);
      let tokens = 0;
      for (const text of texts) {
        const ids = shared.encode(text);
        if (shared.decode(ids) !== text) expect(shared.decode(ids)).toBe(text);
        tokens += ids.length;
      }
      perCharacter.set(language, tokens / Array.from(texts.join("")).length);
    }
    // Without merges, a Chinese, Japanese or Korean character is three bytes, so three tokens.
    for (const language of ["zh-cn", "zh-tw", "ja", "ko"]) expect([language, perCharacter.get(language)! < 0.8]).toEqual([language, true]);
    for (const language of ["en", "de", "fr", "es", "pt-br"]) expect([language, perCharacter.get(language)! < 0.3]).toEqual([language, true]);
  });

  it("takes for white space what Unicode does: U+0085, and no byte order mark", () => {
    for (const [text, pieces] of [["x\u0085!y", ["x", "\u0085", "!", "y"]], ["x\uFEFF!y", ["x", "\uFEFF!", "y"]]] as const) {
      const trained = trainBpe(new Array<string>(5).fill(text), { vocabSize: 300 });
      expect(trained.encode(text).map((id) => trained.decode([id]))).toEqual(pieces);
    }
  });

  it("refuses added tokens that are none, in words", () => {
    const file = JSON.parse(trainBpe(["a"], { vocabSize: 257 }).save().text) as object;
    for (const added of [{}, [null], [{ id: 0 }], "</s>"]) {
      const text = JSON.stringify({ ...file, added_tokens: added });
      expect(() => BpeTokenizer.fromJson(text)).toThrow(/^tokenizer\.json: expected added_tokens, an array of tokens with their content, got /);
    }
  });

  it("refuses a tokenizer.json of another kind and a vocabulary below the bytes", () => {
    expect(() => BpeTokenizer.fromJson("{")).toThrow(/JSON/);
    expect(() => BpeTokenizer.fromJson('{"model":{"type":"WordPiece"}}')).toThrow(/"BPE".*"WordPiece"/);
    expect(() => trainBpe(["a"], { vocabSize: 256 })).toThrow(/257/);
  });
});
