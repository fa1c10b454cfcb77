// Corpora of translations: two files, tables, what is refused and what is counted.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { ConfigError, FileError } from "#sparsegate/core/errors.js";
import { type ParallelTable, languageToken, readParallel, readParallelFiles } from "#sparsegate/text/parallel.js";
import { DE, EN, PARQUET } from "./parquet-files.js";

const folder = mkdtempSync(join(tmpdir(), "sparsegate-parallel-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

const parquet = (name: keyof typeof PARQUET): string => file(`${name}.parquet`, Buffer.from(PARQUET[name], "base64"));

/** The message of a refusal without the scratch folder, and its kind. */
async function refusal(input: Parameters<typeof readParallel>[0]): Promise<[kind: unknown, text: string]> {
  try {
    await readParallel(input);
  } catch (error) {
    return [(error as Error).constructor, (error as Error).message.replaceAll(`${folder}/`, "")];
  }
  throw new Error("expected a refusal, got a corpus");
}

describe("two files", () => {
  it("are paired line by line, plain or gzipped, whatever their line ends", () => {
    const sourceFile = file("a.en", "\uFEFFone\r\ntwo  words\r\n漢字\r\n");
    const targetFile = file("a.de.gz", gzipSync("eins\nzwei Wörter\nかな"));
    expect(readParallelFiles({ sourceFile, targetFile, sourceLanguage: "en", targetLanguage: "de" })).toEqual({
      sourceLanguage: "en",
      targetLanguage: "de",
      sources: ["one", "two  words", "漢字"],
      targets: ["eins", "zwei Wörter", "かな"],
      leftOut: { emptySource: 0, emptyTarget: 0, emptyBoth: 0 },
    });
  });

  const sourceFile = file("e.en", "one\n\nthree\n \n\t\nsix\n");
  const targetFile = file("e.de", "eins\nzwei\n\nvier\n\nsechs\n");

  it("lose the pairs with an empty side, which are counted", () => {
    const corpus = readParallelFiles({ sourceFile, targetFile });
    expect([corpus.sources, corpus.targets]).toEqual([
      ["one", "six"],
      ["eins", "sechs"],
    ]);
    expect(corpus.leftOut).toEqual({ emptySource: 2, emptyTarget: 1, emptyBoth: 1 });
  });

  it("keep them, or are refused by the first, where that is asked for", async () => {
    const corpus = readParallelFiles({ sourceFile, targetFile, empty: "keep" });
    expect([corpus.sources.length, corpus.sources[3], corpus.targets[2], corpus.leftOut.emptyBoth]).toEqual([6, " ", "", 0]);
    expect(await refusal({ sourceFile, targetFile, empty: "error" })).toEqual([
      FileError,
      'e.en:2: expected text, as in e.de:2, got "an empty line". Mend the corpus, or read it with empty "skip".',
    ]);
  });

  it("of different lengths are refused with both counts and the first line without a partner", async () => {
    const short = file("short.de", "eins\nzwei\n");
    const hint = "Line i of one file must be the translation of line i of the other.";
    expect(await refusal({ sourceFile, targetFile: short })).toEqual([
      FileError,
      `e.en:3: expected its partner in short.de, got "2 lines there and 6 here". ${hint}`,
    ]);
    expect(await refusal({ sourceFile: short, targetFile: sourceFile })).toEqual([
      FileError,
      `e.en:3: expected its partner in short.de, got "2 lines there and 6 here". ${hint}`,
    ]);
  });

  it("of nothing but empty pairs, missing, binary or not UTF-8 are refused with the file, and the line", async () => {
    const [a, b] = [file("x.en", "a\n\n"), file("x.de", "\nb\n")];
    expect((await refusal({ sourceFile: a, targetFile: b }))[1]).toBe(
      'x.en and x.de: expected at least one pair of sentences, got "only empty ones".',
    );
    expect((await refusal({ sourceFile: a, targetFile: join(folder, "none") }))[1]).toMatch(/^none: .*no such file/);
    const bad = file("bad.de", Buffer.concat([Buffer.from("gut\n"), Buffer.from([0xe4, 0x62]), Buffer.from("\n")]));
    expect((await refusal({ sourceFile: a, targetFile: bad }))[1]).toMatch(/^bad\.de:2: expected UTF-8 text/);
    expect((await refusal({ sourceFile: file("zero.en", "a\nb\0\n"), targetFile: b }))[1]).toMatch(/^zero\.en:2: .*zero byte/);
  });
});

describe("TSV", () => {
  const table = file("t.tsv", 'id\ten\tde\n1\ta "dog"\tein Hund\n2\tb\t\n3\t c\tz\n');

  it("has its columns by name, from the first line, and quotes nothing", async () => {
    const corpus = await readParallel({ file: table, sourceColumn: "de", targetColumn: "en" });
    expect([corpus.sources, corpus.targets, corpus.leftOut.emptySource]).toEqual([["ein Hund", "z"], ['a "dog"', " c"], 1]);
  });

  it("has them by number where no line names them, gzipped too", async () => {
    const plain = file("n.tsv.gz", gzipSync("one\teins\ntwo\tzwei\n"));
    const corpus = await readParallel({ file: plain, sourceColumn: 2, targetColumn: 1 });
    expect([corpus.sources, corpus.targets]).toEqual([
      ["eins", "zwei"],
      ["one", "two"],
    ]);
  });

  it.each<[string, string, Partial<ParallelTable>, string]>([
    [
      "an unknown column",
      "en\tde\na\tb\n",
      {},
      'w.tsv:1: expected a column "fr", got ["en", "de"]. These are the columns there are.',
    ],
    ["a column twice", "en\tfr\tfr\na\tb\tc\n", {}, 'w.tsv:1: expected one column "fr", got "two of that name".'],
    [
      "another number of fields",
      "en\tfr\na\tb\na\tb\tc\n",
      {},
      "w.tsv:3: expected 2 fields as on line 1, got 3. Nothing is quoted",
    ],
    ["a number there is not", "a\tb\n", { sourceColumn: 1, targetColumn: 3 }, 'w.tsv:1: expected a column 3, got "2 columns".'],
    ["no row", "en\tfr\n", {}, 'expected at least one pair of sentences, got "none".'],
    [
      "an empty side by its line",
      "en\tfr\na\tb\n\tc\n",
      { empty: "error" },
      'w.tsv:3, column "en": expected text, as in w.tsv:3, column "fr", got "an empty line".',
    ],
  ])("is refused with the line: %s", async (_, text, changes, says) => {
    const [kind, message] = await refusal({ file: file("w.tsv", text), sourceColumn: "en", targetColumn: "fr", ...changes });
    expect([kind, message]).toEqual([FileError, expect.stringContaining(says)]);
  });
});

describe("JSONL", () => {
  it("has its columns by name or by a path of names", async () => {
    const rows = [
      { "a.b": "flat", translation: { en: "A dog.", de: "Ein Hund." } },
      { "a.b": "2", translation: { de: "Männer\n漢", en: "Men" } },
    ];
    const path = file("t.jsonl", rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
    const corpus = await readParallel({ file: path, sourceColumn: "translation.en", targetColumn: "translation.de" });
    expect([corpus.sources, corpus.targets]).toEqual([
      ["A dog.", "Men"],
      ["Ein Hund.", "Männer\n漢"],
    ]);
    expect((await readParallel({ file: path, sourceColumn: "a.b", targetColumn: "translation.de" })).sources).toEqual([
      "flat",
      "2",
    ]);
  });

  const good = '{"en": "a", "de": "b"}\n';
  it.each([
    ["no JSON", `${good}{"en": "a",\n`, /^w\.jsonl:2: expected a JSON object, got ".*JSON/],
    ["an empty line", `${good}\n${good}`, /^w\.jsonl:2: expected a JSON object, got "an empty line"/],
    ["a list", `${good}["a", "b"]\n`, /^w\.jsonl:2: expected a JSON object, got an array\./],
    [
      "an unknown column",
      `${good}{"en": "a", "x": {"y": "b"}}\n`,
      /^w\.jsonl:2: expected a column "de", got \["en", "x\.y"\]\. These are/,
    ],
    ["a name every object inherits", `${good}{"en": "a", "__proto__": 1}\n`, /^w\.jsonl:2: expected a column "de"/],
    ["a number", `${good}{"en": "a", "de": 7}\n`, /^w\.jsonl:2, column "de": expected text, got 7\.$/],
    ["null", `${good}{"en": null, "de": "b"}\n`, /^w\.jsonl:2, column "en": expected text, got null\.$/],
    [
      "a zero byte",
      `${good}{"en": "a\\u0000", "de": "b"}\n`,
      /^w\.jsonl:2, column "en": expected text, got a zero byte in it\.$/,
    ],
    [
      "half a surrogate pair",
      `${good}{"en": "a", "de": "\\ud83d"}\n`,
      /^w\.jsonl:2, column "de": expected text, got half of a surrogate pair in it\.$/,
    ],
  ])("is refused with the line: %s", async (_, text, says) => {
    const [kind, message] = await refusal({ file: file("w.jsonl", text), sourceColumn: "en", targetColumn: "de" });
    expect(kind).toBe(FileError);
    expect(message).toMatch(says);
  });

  it("does not find what an object inherits", async () => {
    const path = file("w.jsonl", '{"en": "a"}\n');
    expect((await refusal({ file: path, sourceColumn: "en", targetColumn: "constructor" }))[1]).toMatch(
      /expected a column "constructor"/,
    );
    expect((await refusal({ file: path, sourceColumn: "en.length", targetColumn: "en" }))[1]).toMatch(
      /expected a column "en.length"/,
    );
  });
});

describe("parquet", () => {
  it.each(["plain", "snappy", "gzip", "brotli"] as const)("is read over its row groups (%s)", async (name) => {
    const corpus = await readParallel({ file: parquet(name), sourceColumn: "en", targetColumn: "de", empty: "keep" });
    expect([corpus.sources, corpus.targets]).toEqual([EN, DE]);
    expect((await readParallel({ file: parquet(name), sourceColumn: "en", targetColumn: "de" })).leftOut.emptySource).toBe(1);
  });

  it("has fields of structures by their path, as data sets of translations do", async () => {
    const corpus = await readParallel({
      file: parquet("struct"),
      sourceColumn: "translation.de",
      targetColumn: "translation.en",
    });
    expect([corpus.sources, corpus.targets]).toEqual([
      ["Ein Hund.", "Eine Katze."],
      ["A dog.", "A cat."],
    ]);
  });

  it.each([
    [
      "an unknown column",
      "struct",
      "fr",
      'struct.parquet: expected a column "fr", got ["id", "translation.en", "translation.de"]. These',
    ],
    ["integers", "types", "n", 'types.parquet, row 1, column "n": expected text, got 1.'],
    ["a null", "types", "maybe", 'types.parquet, row 3, column "maybe": expected text, got null.'],
    [
      "bytes that are not UTF-8",
      "types",
      "raw",
      'types.parquet, row 2, column "raw": expected UTF-8 text, got bytes that are not UTF-8.',
    ],
    ["a structure", "struct", "translation", 'struct.parquet: expected a column "translation", got'],
  ] as const)("is refused with the row: %s", async (_, name, column, says) => {
    const sourceColumn = name === "struct" ? "id" : "en";
    const [kind, message] = await refusal({ file: parquet(name), sourceColumn, targetColumn: column, empty: "keep" });
    expect([kind, message]).toEqual([FileError, expect.stringContaining(says)]);
  });

  it("is refused when it is damaged, of another kind or missing", async () => {
    const columns = { sourceColumn: "en", targetColumn: "de" };
    const bytes = Buffer.from(PARQUET.gzip, "base64");
    for (const content of [
      Buffer.from("text"),
      bytes.subarray(0, 300),
      Buffer.concat([bytes.subarray(0, 40), Buffer.alloc(60, 7), bytes.subarray(100)]),
    ]) {
      const [kind, message] = await refusal({ file: file("broken.parquet", content), ...columns });
      expect([kind, message]).toEqual([
        FileError,
        expect.stringMatching(/^broken\.parquet: expected a parquet file, got ".*The file is damaged or of another kind\.$/s),
      ]);
    }
    expect((await refusal({ file: join(folder, "none.parquet"), ...columns }))[1]).toMatch(
      /^none\.parquet: expected a parquet file, got "no such file"/,
    );
  });
});

describe("options that cannot be used", () => {
  const path = file("o.tsv", "en\tde\na\tb\n");
  it.each<[string, object, string]>([
    ["another ending", { file: "a.csv" }, "readParallel: expected a file ending in .tsv, .jsonl (both also .gz) or .parquet"],
    ["gzipped parquet", { file: "a.parquet.gz" }, "readParallel: expected a file ending in"],
    ["another format", { format: "csv" }, "readParallel: expected format to be one of tsv, jsonl, parquet"],
    ["a name beside a number", { targetColumn: 2 }, "readParallel: expected two names of columns, or two numbers from 1"],
    ["a column 0", { sourceColumn: 0, targetColumn: 1 }, "readParallel: expected two names of columns, or two numbers from 1"],
    [
      "numbers for JSONL",
      { sourceColumn: 1, targetColumn: 2, format: "jsonl" },
      "readParallel: expected two names of columns, got [1, 2]",
    ],
    ["another treatment of empty pairs", { empty: "drop" }, "readParallel: expected empty to be one of skip, keep, error"],
  ])("are refused: %s", async (_, changes, says) => {
    const [kind, message] = await refusal({ file: path, sourceColumn: "en", targetColumn: "de", ...changes } as ParallelTable);
    expect([kind, message]).toEqual([ConfigError, expect.stringContaining(says)]);
  });

  it("and a language that would break its token", () => {
    expect(languageToken("pt-br")).toBe("<2pt-br>");
    for (const language of ["", "de>", "a b"]) expect(() => languageToken(language)).toThrow(ConfigError);
  });
});
