/** Several pairs of languages from the command line: one model is trained for all, resumed bit for bit, evaluated pair by pair; and what is said to pairs and names that cannot be used. */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readMetrics } from "#sparsegate/train/metrics.js";
import { flags, inPairs, refused, run, sentences, traces, type Outcome } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-pairs-"));
afterAll(() => rmSync(root, { recursive: true }));

/** Invented languages that all say the same. */
const LANGUAGES: Readonly<Record<string, (text: string) => string>> = {
  en: (text) => text,
  de: (text) => text.toUpperCase(),
  ja: (text) => text.split(" ").reverse().join(" "),
};
const names = (part: string): Record<string, string> => ({ [part]: `${part}.{source}`, [`${part}_target`]: `${part}.{target}` });
const small = { task: "translation", vocab_size: 290, model: "MoE-4", top_k: 2, hidden_size: 16, batch_tokens: 256, learning_rate: 0.02, warmup_steps: 2, eval_steps: 10, save_steps: 10 };
const common = { ...small, pairs: "en-de,de-en,en-ja", train: "train.{source}.gz", train_target: "train.{target}.gz" };
const train = (options: Record<string, string | number>, ...more: string[]): Promise<Outcome> => run(["train", ...flags(options), ...more], { cwd: root });
const json = async (args: readonly string[], cwd = root): Promise<Record<string, unknown>> => {
  const { code, stdout, stderr } = await run([...args, "--json"], { cwd });
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as Record<string, unknown>;
};

interface Scores {
  pair: string;
  perplexity: number;
  bleu: number;
  multi_bleu: number;
  chrf: number;
  tokens: number;
  sentences: number;
  bleu_signature: string;
  samples: { sentence: number; chrf: number; source: string; reference: string; translation: string }[];
}
let trained: Record<string, unknown>;
let note: string;

beforeAll(async () => {
  for (const [i, [part, count]] of Object.entries({ train: 90, valid: 5, test: 7 }).entries()) {
    const lines = sentences(count, i + 1, 8);
    const rows = [Object.keys(LANGUAGES).join("\t"), ...lines.map((line) => Object.values(LANGUAGES).map((say) => say(line)).join("\t"))];
    writeFileSync(join(root, `${part}.tsv`), `${rows.join("\n")}\n`);
    for (const [language, say] of Object.entries(LANGUAGES)) {
      const text = `${lines.map(say).join("\n")}\n`;
      if (part === "train") writeFileSync(join(root, `${part}.${language}.gz`), gzipSync(text));
      else writeFileSync(join(root, `${part}.${language}`), text);
    }
  }
  const { code, stdout, stderr } = await train({ ...common, ...names("valid"), ...names("test"), max_steps: 20, output_dir: "run" }, "--json");
  expect(code, stderr).toBe(0);
  [trained, note] = [JSON.parse(stdout) as Record<string, unknown>, stderr];
}, 60_000);

describe("a run of three pairs", { timeout: 60_000 }, () => {
  test("says how much text each has, and the scores of each in the end and in its metrics", () => {
    expect(note).toContain("Text: 270 pairs to train on (en-de 90, de-en 90, en-ja 90); 0 left out as too long, 0 as empty.");
    const pairs = trained["pairs"] as Record<string, unknown>[];
    expect(pairs.map(({ pair }) => pair)).toEqual(["en-de", "de-en", "en-ja"]);
    expect(pairs[2]!["bleu_signature"]).toContain("tok:char");
    const records = readMetrics(join(root, "run", "metrics.jsonl"));
    for (const [tag, name] of [["eval", "valid"], ["test", "test"]] as const) {
      const last = records.findLast((record) => `${tag}/bleu` in record)!;
      for (const scores of pairs) {
        expect(scores[`${name}_perplexity`]).toBe(last[`${tag}/perplexity/${String(scores["pair"])}`]);
        expect(scores[`${name}_bleu`]).toBe(last[`${tag}/bleu/${String(scores["pair"])}`]);
      }
    }
  });

  test("shows them as a table", async () => {
    const { stdout, stderr } = await train({ ...common, ...names("valid"), max_steps: 1, output_dir: "table" }, "--no-progress");
    expect(stdout, stderr).toMatch(/^pair {3}valid perplexity {2}valid BLEU\n-+ {2}-+ {2}-+\nen-de {2} +\d+\.\d\d +\d+\.\d\d\nde-en .*\nen-ja .*\n$/m);
  });

  test("is evaluated on each pair of its test text, as training did, with their means", async () => {
    const { pairs, ...all } = await json(["eval", "run", "--checkpoint", "last", "--beam-size", "1"]);
    const each = pairs as Scores[];
    expect(all).toMatchObject({ data: "test.{source}", sentences: 21, cut_sources: 0, perplexity: trained["test_perplexity"], bleu: trained["test_bleu"] });
    for (const [i, scores] of (trained["pairs"] as Record<string, unknown>[]).entries()) {
      expect(each[i]).toMatchObject({ pair: scores["pair"], sentences: 7, cut_sources: 0, perplexity: scores["test_perplexity"], bleu: scores["test_bleu"] });
    }
    expect(all["chrf"]).toBeCloseTo(each.reduce((sum, { chrf }) => sum + chrf, 0) / 3, 9);
    expect(all["multi_bleu"]).toBeCloseTo(each.reduce((sum, { multi_bleu }) => sum + multi_bleu, 0) / 3, 9);
    expect(all["tokens"]).toBe(each.reduce((sum, { tokens }) => sum + tokens, 0));
    const shown = await run(["eval", "run", "--samples", "2"], { cwd: root });
    expect(shown.stdout, shown.stderr).toMatch(/^pair {3}perplexity {2}BLEU {2}chrF\n.*\nen-de .*\nde-en .*\nen-ja .*\nmean +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d\n/m);
    expect(shown.stdout).toMatch(/^BLEU\|.*tok:13a.* of en-de, de-en\nBLEU\|.*tok:char.* of en-ja\nchrF2\|/m);
    expect(shown.stdout.match(/^sentence \d, chrF \d+\.\d\d\n {2}source {7}.+\n {2}reference {4}.+\n {2}translation {2}.*$/gm)).toHaveLength(6);
  });

  test("is evaluated into one language, or on another text, as a run of one pair is", async () => {
    const [own, given] = await inPairs([[], ["--data", "test.en", "--target", "test.ja"]].map((text) => () => json(["eval", "run", "--language", "ja", ...text])));
    expect(own).toMatchObject({ data: "test.en", sentences: 7, bleu_signature: expect.stringContaining("tok:char") });
    expect({ ...own, seconds: 0 }).toEqual({ ...given, seconds: 0 });
    const without = await run(["eval", "run", "--data", "valid.en", "--target", "valid.ja"], { cwd: root });
    expect(without.stderr).toContain('eval: expected --language, the one to translate into, got "none".');
  });

  test("shows samples from the worst to the best sentence", async () => {
    const [all, some] = (await inPairs(["99", "3"].map((n) => () => json(["eval", "run", "--language", "de", "--samples", n])))).map(({ samples }) => samples as Scores["samples"]);
    expect(all!.map(({ chrf }) => chrf)).toEqual(all!.map(({ chrf }) => chrf).toSorted((a, b) => a - b));
    expect(all!.map(({ sentence }) => sentence).toSorted((a, b) => a - b)).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(some).toEqual([all![0], all![3], all![6]]);
    for (const { source, reference } of all!) expect(reference).toBe(source.toUpperCase());
    const { pairs } = await json(["eval", "run", "--samples", "1"]);
    expect((pairs as Scores[]).map(({ samples }) => samples.length)).toEqual([1, 1, 1]);
  });

  test("translates into each of its languages", async () => {
    const { code, stderr } = await run(["translate", "run", "w1 w2", "--language", "ja"], { cwd: root });
    expect(code, stderr).toBe(0);
  });
});

test("a run of several pairs with a temperature that was stopped and resumed equals one that was not, byte for byte", { timeout: 60_000 }, async () => {
  // In folders of their own, so that both have the same --output-dir.
  const options = { ...common, train: "../train.{source}.gz", train_target: "../train.{target}.gz", valid: "../valid.{source}", valid_target: "../valid.{target}", sampling_temperature: 3, output_dir: "run" };
  const at = (folder: string): { cwd: string } => {
    mkdirSync(join(root, folder), { recursive: true });
    return { cwd: join(root, folder) };
  };
  const [whole, first] = await inPairs([
    () => run(["train", ...flags({ ...options, max_steps: 20 })], at("whole")),
    () => run(["train", ...flags({ ...options, max_steps: 10 })], at("parts")),
  ]);
  expect([whole!.code, first!.code], whole!.stderr + first!.stderr).toEqual([0, 0]);
  const second = await run(["train", "--resume", "run", "--max-steps", "20"], at("parts"));
  expect(second.code, second.stderr).toBe(0);
  const [expected, found] = [traces(join(root, "whole", "run")), traces(join(root, "parts", "run"))];
  expect(found.metrics).toEqual(expected.metrics);
  expect(found.files).toEqual(expected.files);
  const other = await run(["train", "--resume", "run", "--sampling-temperature", "1", "--max-steps", "30"], at("parts"));
  expect(other.stderr).toContain("--resume: expected sampling_temperature (--sampling-temperature) 3 as in");
});

describe("names", { timeout: 60_000 }, () => {
  const columns = { source_column: "{source}", target_column: "{target}" };
  test("of columns may have the languages too, and one pair is no different from a run without --pairs but for its languages", async () => {
    const [several, one] = await inPairs([
      () => json(["train", ...flags({ ...small, ...columns, train: "train.tsv", pairs: "de-en, ja-en" }), "--dry-run"]),
      () => json(["train", ...flags({ ...small, ...columns, train: "train.tsv", valid: "valid.tsv", pairs: "en-ja", max_steps: 1, output_dir: "one" })]),
    ]);
    expect(several).toMatchObject({ pairs: 180, too_long: 0 });
    expect(one).not.toHaveProperty("pairs");
    expect(one!["bleu_signature"]).toContain("tok:char");
    const [own, given] = await inPairs([["eval", "one"], ["eval", "one", "--data", "valid.tsv"]].map((args) => () => json(args)));
    expect(own).toMatchObject({ data: "valid.tsv", sentences: 5 });
    expect({ ...own, seconds: 0 }).toEqual({ ...given, seconds: 0 });
  });

  test("with {pair}, and pairs from a configuration file", async () => {
    for (const [pair, language] of [["en-de", "de"], ["en-zh-tw", "ja"]] as const) {
      writeFileSync(join(root, `${pair}.tsv`), `${sentences(20, 1, 8).map((line) => `${line}\t${LANGUAGES[language]!(line)}`).join("\n")}\n`.replace(/^/, "a\tb\n"));
    }
    writeFileSync(join(root, "c.json"), JSON.stringify({ ...small, pairs: "en-de,en:zh-tw", train: "{pair}.tsv", source_column: "a", target_column: "b" }));
    const { stderr } = await run(["train", "--config", "c.json", "--max-steps", "1", "--output-dir", "pair"], { cwd: root });
    expect(stderr).toContain("(en-de 20, en-zh-tw 20)");
  });

  test("of a table's columns must say which are meant where several pairs translate into the language", async () => {
    const into = await run(["train", ...flags({ ...small, ...columns, train: "train.tsv", pairs: "de-en,ja-en", max_steps: 1, output_dir: "into" })], { cwd: root });
    expect(into.code, into.stderr).toBe(0);
    const { stderr } = await run(["eval", "into", "--language", "en", "--data", "valid.tsv"], { cwd: root });
    expect(stderr).toBe('eval: expected --target, the translations of valid.tsv, got "none". Its columns could be those of de-en or ja-en.\n');
    expect((await run(["eval", "into"], { cwd: root })).stderr).toContain("into was trained without --test and --valid.");
  });
});

describe("what cannot be used is refused in one line", { timeout: 60_000 }, () => {
  test("what is no pair, or no temperature", async () => {
    await refused(train({ ...common, pairs: "en-de,de" }), '--pairs: expected pairs of two languages with commas between, like en-de,de-en, got "en-de,de". "de" is none.');
    await refused(train({ ...common, sampling_temperature: 0.5 }), "--sampling-temperature: expected a number of at least 1, got 0.5.");
    await refused(run(["train", "--train", "train.en.gz", "--pairs", "en-de"], { cwd: root }), "--pairs: expected left out without --task translation");
  });
  test("a file that one pair lacks, before any is read", () =>
    refused(train({ ...common, ...names("valid"), pairs: "en-de,en-fr", output_dir: "other" }), '--train-target train.{target}.gz: expected a file train.fr.gz for en-fr, got "no such file". Check the names, or leave the pair out of --pairs.'));
  test("samples of none, or of a language model; a language there is not; translations of nothing", async () => {
    writeFileSync(join(root, "lm.txt"), `${sentences(60, 1, 8).join("\n")}\n`);
    const lm = await run(["train", "--train", "lm.txt", "--hidden-size", "8", "--vocab-size", "280", "--max-steps", "1", "--output-dir", "lm", "--no-progress"], { cwd: root });
    expect(lm.code, lm.stderr).toBe(0);
    expect((await run(["eval", "run", "--samples", "0"], { cwd: root })).stderr).toContain("Expected a number from 1.");
    await refused(run(["eval", "lm", "--data", "lm.txt", "--samples", "3"], { cwd: root }), "eval --samples: expected a translation model, got");
    await refused(run(["eval", "run", "--language", "fr"], { cwd: root }), 'eval --language: expected a language that the run\'s pairs translate into (de, en, ja), got "fr".');
    await refused(run(["eval", "run", "--target", "test.de"], { cwd: root }), 'eval --target: expected --data beside it, the text that it translates, got "none".');
  });
});
