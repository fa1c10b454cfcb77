/** eval, generate and inspect on runs of each text mode and tokenizer: what they say is what training said. */

import { cpSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readMetrics } from "#sparsegate/train/metrics.js";
import { flags, inPairs, refused, run, sentences, writeTexts } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-use-"));
afterAll(() => rmSync(root, { recursive: true }));

const common = {
  train: "train.txt",
  valid: "valid.txt",
  test: "test.txt",
  hidden_size: 16,
  batch_size: 4,
  time_steps: 6,
  max_steps: 25,
  eval_steps: 10,
  save_steps: 10,
};
const tokenizers = {
  words: { tokenizer: "words" },
  "a vocabulary file": { vocab: "vocabulary.txt", eos: "<eos>" },
  subwords: { vocab_size: 280 },
};
const modes = { sentences: { model: "MoE-8" }, continuous: { text_mode: "continuous", model: "MoE-4", lstm_size: 24 } };
const runs = Object.entries(tokenizers).flatMap(([tokenizer, one]) =>
  Object.entries(modes).map(([mode, other]) => ({
    name: `${mode}, ${tokenizer}`,
    output: `${mode}-${tokenizer.replaceAll(" ", "-")}`,
    config: { ...common, ...one, ...other },
  })),
);
const trained = new Map<string, Record<string, unknown>>();

/** What a command prints as JSON, or as text. */
async function output(args: readonly string[], cwd = root): Promise<string> {
  const { code, stdout, stderr } = await run(args, { cwd });
  expect(code, stderr).toBe(0);
  return stdout;
}
const json = async (args: readonly string[], cwd = root): Promise<Record<string, unknown>> =>
  JSON.parse(await output([...args, "--json"], cwd)) as Record<string, unknown>;

beforeAll(async () => {
  writeTexts(root, { train: 200 });
  writeFileSync(join(root, "vocabulary.txt"), Array.from({ length: 30 }, (_, i) => `w${i}\n`).join(""));
  await inPairs(
    runs.map(
      ({ output: folder, config }) =>
        async () =>
          void trained.set(folder, await json(["train", ...flags({ ...config, output_dir: folder })])),
    ),
  );
}, 60_000);

describe.each(runs)("a run of $name", ({ output: folder, config }) => {
  test("is evaluated to the very perplexities that training printed at its end, and recorded", { timeout: 30_000 }, async () => {
    const summary = trained.get(folder)!;
    expect(summary).toMatchObject({ finished: true, steps: 25 });
    // The default text is --test.
    const [test, valid] = await inPairs([() => json(["eval", folder]), () => json(["eval", folder, "--data", "valid.txt"])]);
    expect(test!["perplexity"]).toBe(summary["test_perplexity"]);
    expect(valid!["perplexity"]).toBe(summary["valid_perplexity"]);
    // Every token once: all words, and an end of sentence a line.
    const text = readFileSync(join(root, "test.txt"), "utf8");
    if (!("vocab_size" in config)) expect(test!["tokens"]).toBe(text.trim().split(/\s+/).length + text.trim().split("\n").length);
    const records = readMetrics(join(root, folder, "metrics.jsonl"));
    expect(records.filter((record) => "eval/perplexity" in record).map(({ step }) => step)).toEqual([10, 20, 25]);
    expect(records.findLast((record) => "eval/perplexity" in record)!["eval/perplexity"]).toBe(summary["valid_perplexity"]);
    expect(records.at(-1)).toMatchObject({ step: 25, "test/perplexity": summary["test_perplexity"] });
  });

  test("is inspected: its last step, its figures, and the load of each expert", { timeout: 30_000 }, async () => {
    const found = await json(["inspect", folder]);
    const summary = trained.get(folder)!;
    expect(found).toMatchObject({
      step: 25,
      model: config.model,
      checkpoint: join(folder, "checkpoint-25"),
      eval_perplexity: summary["valid_perplexity"],
      test_perplexity: summary["test_perplexity"],
    });
    const load = found["expert_load"] as number[];
    expect(load).toHaveLength(config.model === "MoE-8" ? 8 : 4);
    // Each of the 4 · 6 rows of a batch goes to four experts.
    expect(load.reduce((sum, n) => sum + n, 0)).toBe(4 * 6 * 4);
  });

  test(
    "generates text that begins with the prompt, the same for the same seed, and no end-of-sentence word",
    { timeout: 30_000 },
    async () => {
      const args = (seed: number): string[] => [
        "generate",
        folder,
        "--prompt",
        "w1 w2",
        "--max-tokens",
        "12",
        "--temperature",
        "1",
        "--seed",
        String(seed),
      ];
      const [first, again] = await inPairs([() => output(args(1)), () => output(args(1))]);
      expect(first).toMatch(/^w1 w2/);
      expect(again).toBe(first);
      expect(first).not.toMatch(/<eos>|<\/s>|undefined/);
    },
  );

  test("generates after words that it does not know, and says which they are", { timeout: 30_000 }, async () => {
    const { code, stderr } = await run(["generate", folder, "--prompt", "w1 zebra", "--prompt", "zebra ox", "--max-tokens", "2"], { cwd: root });
    expect(code, stderr).toBe(0);
    const said = 'Unknown to the model, which reads <unk> in their place: "zebra", "ox".\n';
    expect(stderr).toEqual("vocab_size" in config ? expect.not.stringContaining("Unknown") : expect.stringContaining(said));
  });
});

test("a run that was moved keeps its figures, and an earlier checkpoint in it can be named", { timeout: 30_000 }, async () => {
  const { output: folder } = runs[0]!;
  renameSync(join(root, folder), join(root, "moved"));
  const [inspected, earlier] = await inPairs([() => json(["inspect", "moved"]), () => json(["inspect", "moved/checkpoint-20"])]);
  expect(inspected).toMatchObject({ step: 25, eval_perplexity: trained.get(folder)!["valid_perplexity"] });
  const records = readMetrics(join(root, "moved/metrics.jsonl"));
  expect(earlier).toMatchObject({
    step: 20,
    eval_perplexity: records.find(({ step, ...rest }) => step === 20 && "eval/perplexity" in rest)!["eval/perplexity"],
  });
  // Nothing after step 20 is known to it.
  expect(earlier!["test_perplexity"]).toBeUndefined();
});

test("several prompts are continued side by side, and come one below the other as each would alone", { timeout: 30_000 }, async () => {
  const { output: folder } = runs[2]!;
  writeFileSync(join(root, "prompts.txt"), "w3\nw4 w5\n");
  const settings = ["--max-tokens", "8", "--temperature", "1.2", "--top-k", "20", "--top-p", "0.9", "--seed", "2"];
  const prompts = ["w1 w2", "w0", "w3", "w4 w5"];
  const alone = await inPairs(prompts.map((prompt) => () => output(["generate", folder, "--prompt", prompt, ...settings])));
  const several = ["generate", folder, "--prompt", "w1 w2", "--prompt", "w0", "--prompts", "prompts.txt", ...settings];
  expect(await output(several)).toBe(alone.join(""));
  expect(await json(several)).toEqual({ texts: prompts.map((prompt, i) => ({ prompt, text: alone[i]!.slice(0, -1) })) });
});

test("inspect --contexts names for each expert the places where its gate value is the highest, and writes a page", { timeout: 30_000 }, async () => {
  const { output: folder } = runs[2]!;
  const found = (await json(["inspect", folder, "--contexts", "--data", "valid.txt", "--lines", "10"])) as {
    lines: number;
    experts: { expert: number; tokens: number; contexts: { token: string; gate: number }[] }[];
  };
  const lines = readFileSync(join(root, "valid.txt"), "utf8").split("\n").slice(0, 10);
  expect(found.lines).toBe(10);
  // Every token and each line's beginning goes to four experts.
  const tokens = lines.reduce((sum, line) => sum + line.split(" ").length + 1, 0);
  expect(found.experts.reduce((sum, { tokens: n }) => sum + n, 0)).toBe(4 * tokens);
  const known = ["<unk>", ...lines.join(" ").split(" ")];
  for (const { contexts } of found.experts) for (const { token } of contexts) expect(known).toContain(token);
  const text = await output(["inspect", folder, "--contexts", "--html", "contexts.html"]);
  expect(text).toMatch(/^expert \d+, \d+ tokens\n {2}[01]\.\d\d {2}.*\[/);
  expect(readFileSync(join(root, "contexts.html"), "utf8")).toMatch(/^<!doctype html>[^]*class="token"[^]*<\/html>\n$/);
  const { code, stderr } = await run(["inspect", folder, "--data", "valid.txt"], { cwd: root });
  expect([code, stderr]).toEqual([1, "inspect --data: expected --contexts beside it, got none.\n"]);
});

describe("a run with a patience, whose best step is not its last", () => {
  let summary: Record<string, unknown>;
  let [best, last] = [0, 0];
  beforeAll(async () => {
    // Few sentences of many words: they are soon learned by heart, and others get worse.
    for (const [i, [name, count]] of Object.entries({ train: 40, valid: 30, test: 30 }).entries())
      writeFileSync(join(root, `few-${name}.txt`), `${sentences(count, i + 1, 200).join("\n")}\n`);
    const few = { train: "few-train.txt", valid: "few-valid.txt", test: "few-test.txt", tokenizer: "words", model: "MoE-8", hidden_size: 16, dropout: 0, batch_size: 4, time_steps: 8 };
    summary = await json(["train", ...flags({ ...few, max_steps: 400, eval_steps: 5, save_steps: 7, logging_steps: 5, learning_rate: 0.03, schedule: "constant", patience: 3, output_dir: "patient" })]);
    [best, last] = [summary["best_step"] as number, summary["steps"] as number];
    expect(best).toBe(last - 15);
  }, 60_000);

  test("is evaluated, and generates, as it was at its best, unless the last is asked for", { timeout: 60_000 }, async () => {
    const [chosen, named, latest, final] = await inPairs([[], ["--checkpoint", "best"], ["--checkpoint", "last"]].map((more) => () => json(["eval", "patient", ...more])).concat(() => json(["eval", `patient/checkpoint-${last}`]))); // prettier-ignore
    expect(chosen!["perplexity"]).toBe(summary["test_perplexity"]);
    expect(named).toEqual(chosen);
    expect(latest!["perplexity"]).not.toBe(chosen!["perplexity"]);
    expect(final).toEqual(latest);
    const text = (run: string, ...more: string[]) => () => output(["generate", run, "--max-tokens", "40", "--temperature", "1.5", ...more]);
    const texts = await inPairs([text("patient"), text("patient/best"), text("patient", "--checkpoint", "last"), text(`patient/checkpoint-${last}`)]);
    expect([texts[1], texts[3], texts[2] === texts[0]]).toEqual([texts[0], texts[2], false]);
  });

  test("is inspected at its last step, and at its best with the metrics of then", { timeout: 60_000 }, async () => {
    const [latest, then] = await inPairs([() => json(["inspect", "patient"]), () => json(["inspect", "patient/best"])]);
    expect(latest).toMatchObject({ step: last, eval_perplexity: summary["valid_perplexity"], steps_without_rows: expect.any(Array) });
    const records = readMetrics(join(root, "patient/metrics.jsonl"));
    const of = (tag: string): unknown => records.find((record) => record.step === best && tag in record)![tag];
    expect(then).toMatchObject({ step: best, train_loss: of("train/loss"), eval_perplexity: of("eval/perplexity"), max_over_mean_load: of("moe/max_over_mean_load") });
    expect((then!["expert_load"] as number[]).reduce((sum, n) => sum + n, 0)).toBe(4 * 8 * 4);
    // It is saved for use, without what training keeps.
    expect(then).not.toHaveProperty("steps_without_rows");
    expect(await output(["inspect", "patient/best"])).toMatch(/^\d +\d+ +\d\.\d\d +-( |$)/m);
  });

  test("says of a checkpoint that was copied, or comes before the first record, that the balance is not recorded", { timeout: 60_000 }, async () => {
    cpSync(join(root, `patient/best/checkpoint-${best}`), join(root, `copied/checkpoint-${best}`), { recursive: true });
    cpSync(join(root, `patient/checkpoint-${last}`), join(root, `early/checkpoint-${last}`), { recursive: true });
    const later = readMetrics(join(root, "patient/metrics.jsonl")).map((record) => `${JSON.stringify({ ...record, step: last + 1 })}\n`);
    writeFileSync(join(root, "early/metrics.jsonl"), later.join(""));
    const [copied, early] = await inPairs([() => json(["inspect", "copied"]), () => json(["inspect", "early"])]);
    for (const found of [copied!, early!]) {
      for (const key of ["cv_load", "max_over_mean_load", "unused_experts", "dropped_fraction", "expert_load"]) expect(found).not.toHaveProperty(key);
      expect(found).toMatchObject({ num_experts: 8, balance: [] });
    }
    // This one the checkpoint itself says, if it was saved to go on from.
    expect([copied!["steps_without_rows"], early!["steps_without_rows"]]).toEqual([undefined, expect.any(Array)]);
    expect(await output(["inspect", "copied"])).toMatch(/^cv_load: not recorded\nmax_over_mean_load: not recorded\nunused_experts: not recorded\ndropped_fraction: not recorded\n$/m);
  });

  test("refuses a checkpoint there is not, and what only translation models have a use for, given at its default too", { timeout: 60_000 }, async () => {
    await refused(run(["eval", "patient", "--checkpoint", "first"], { cwd: root }), '--checkpoint: expected best or last, got "first".');
    await refused(run(["generate", "patient", "--checkpoint", "first"], { cwd: root }), '--checkpoint: expected best or last, got "first".');
    for (const [flag, value] of Object.entries({ "beam-size": 4, "length-penalty": 2, "coverage-penalty": 0, "batch-size": 8, average: 2, samples: 3, target: "x", language: "de" }))
      await refused(run(["eval", "patient", `--${flag}`, String(value)], { cwd: root }), `eval --${flag}: expected a translation model, got "patient".`);
    expect((await run(["eval", "--help"])).stdout).toMatch(/translation models alone:\n(.*\n)*? +--beam-size/);
  });
});
