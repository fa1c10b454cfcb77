/** Translation from the command line: a run is trained, resumed, evaluated and translates; and what is said to input that cannot be used. */

import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TRANSLATION_PRESETS } from "#sparsegate/train/translation/presets.js";
import { flags, main, refused, run, sentences, sleep, start, until, type Outcome } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-translate-"));
const options = { task: "translation", train: "train.a", train_target: "train.b.gz", valid: "valid.a", valid_target: "valid.b", vocab_size: 280, model: "MoE-4", top_k: 2, hidden_size: 16, batch_tokens: 256, learning_rate: 0.02, eval_steps: 10, save_steps: 10, save_total_limit: 3 };
const train = (change: Record<string, string | number> = {}, ...more: string[]): Promise<Outcome> => run(["train", ...flags({ ...options, max_steps: 20, output_dir: "run", ...change }), "--no-progress", ...more], { cwd: root });
/** What a child said, once it has ended. */
const outcomeOf = (child: ChildProcess): Promise<Outcome> =>
  new Promise((resolve) => {
    let [stdout, stderr] = ["", ""];
    child.stdout!.on("data", (data: Buffer) => (stdout += String(data)));
    child.stderr!.on("data", (data: Buffer) => (stderr += String(data)));
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
const env = { ...process.env, SPARSEGATE_THREADS: "1" };
/** `translate` with lines on stdin. */
const translate = (args: readonly string[], input: string | Buffer): Promise<Outcome> => {
  const child = spawn(process.execPath, [main, "translate", ...args], { cwd: root, env });
  child.stdin.end(input);
  return outcomeOf(child);
};

beforeAll(async () => {
  const write = (name: string, lines: readonly string[]): void => {
    const text = `${lines.join("\n")}\n`;
    writeFileSync(join(root, name), name.endsWith(".gz") ? gzipSync(text) : text);
  };
  const [lines, valid] = [sentences(100, 1, 8), sentences(8, 2, 8)];
  write("train.a", lines);
  write("train.b.gz", lines.map((line) => line.toUpperCase()));
  write("valid.a", valid);
  write("valid.b", valid.map((line) => line.toUpperCase()));
  write("long.a", ["w1", new Array(200).fill("w2").join(" "), "w3"]);
  write("long.b", ["W1", "W2", "W3"]);
  write("short.b", valid.slice(1));
  write("train.tsv", ["a\tb", ...lines.map((line) => `${line}\t${line.toUpperCase()}`)]);
  writeFileSync(join(root, "lm.txt"), `${lines.join("\n")}\n`);
  const [first, lm] = [await train({ max_steps: 10 }, "--json"), await run(["train", "--train", "lm.txt", "--hidden-size", "8", "--vocab-size", "280", "--max-steps", "1", "--output-dir", "lm", "--no-progress"], { cwd: root })];
  expect(first.code, first.stderr).toBe(0);
  expect(lm.code, lm.stderr).toBe(0);
}, 60_000);
afterAll(() => rmSync(root, { recursive: true }));

describe("a translation run", { timeout: 60_000 }, () => {
  test("goes on from its checkpoint with its own options, and says its scores with the signature", async () => {
    const { code, stdout, stderr } = await run(["train", "--resume", "run", "--max-steps", "20", "--no-progress", "--json"], { cwd: root });
    expect(code, stderr).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ model: "MoE-4", steps: 20, finished: true, valid_perplexity: expect.any(Number), valid_bleu: expect.any(Number), bleu_signature: expect.stringMatching(/^nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:/) });
  });

  test("translates stdin line by line, empty lines and unknown scripts among them, and says which lines were cut", async () => {
    const long = new Array(5000).fill("w1").join(" ");
    const { code, stdout, stderr } = await translate(["run", "--beam-size", "2", "--no-progress"], `w1 w2\n\nᚠᚢᚦ\n${long}\n`);
    expect(code, stderr).toBe(0);
    expect(stdout.split("\n")).toHaveLength(5);
    expect(stdout.split("\n")[1]).toBe("");
    expect(stderr).toContain("1 of 4 lines were longer than the 100 tokens of training, and cut there.");
    expect((await translate(["run"], "")).stdout).toBe("");
  });

  test("waits for lines on a pipe that does not block", async () => {
    // Node sets the pipe so, and back where it is not killed.
    const unblock = "process.stdin; process.kill(process.pid, 'SIGKILL')";
    const child = spawn("sh", ["-c", `"$0" -e "${unblock}"; exec "$0" "$@"`, process.execPath, main, "translate", "run", "--beam-size", "1", "--no-progress"], { cwd: root, env });
    const ended = outcomeOf(child);
    child.stdin.on("error", () => {}); // where it did not wait
    child.stdin.write("w1\nw");
    await Promise.race([ended, sleep(1500)]);
    child.stdin.end("2\n");
    const { code, stdout, stderr } = await ended;
    expect(code, stderr).toBe(0);
    expect(stdout).toBe((await translate(["run", "--beam-size", "1", "--no-progress"], "w1\nw2\n")).stdout);
  });

  test("translates a text of the command line; several translations have scores; JSON has what was read", async () => {
    const several = await run(["translate", "run", "w1 w2", "w3", "--n-best", "3", "--beam-size", "3"], { cwd: root });
    expect(several.stdout.trimEnd().split("\n").map((line) => line.split("\t")[0])).toEqual(["1", "1", "1"]);
    const json = await run(["translate", "run", "w1 w2", "--json", "--attention", "--average", "2"], { cwd: root });
    const { source, translations } = JSON.parse(json.stdout) as { source: string; translations: { attention: number[][]; source_tokens: string[]; target_tokens: string[] }[] };
    expect(source).toBe("w1 w2");
    const [{ attention, source_tokens, target_tokens }] = translations as [(typeof translations)[number]];
    expect(attention).toHaveLength(target_tokens.length);
    for (const row of attention) {
      expect(row).toHaveLength(source_tokens.length);
      expect(row.reduce((s, p) => s + p, 0)).toBeCloseTo(1, 2);
    }
  });

  test("is evaluated on its own text, or on another", async () => {
    const own = await run(["eval", "run"], { cwd: root });
    expect(own.code, own.stderr).toBe(0);
    expect(own.stdout).toMatch(/^data: valid\.a\n/);
    expect(own.stdout).toMatch(/^BLEU\|nrefs:1\|case:mixed.* = \d+\.\d\d /m);
    const other = await run(["eval", "run", "--data", "valid.a", "--target", "valid.b", "--beam-size", "1", "--checkpoint", "last", "--json"], { cwd: root });
    expect(JSON.parse(other.stdout)).toMatchObject({ sentences: 8, perplexity: expect.any(Number), bleu: expect.any(Number), multi_bleu: expect.any(Number), chrf: expect.any(Number), cut_sources: 0 });
    expect(own.stdout).toContain("\ncut_sources: 0\n");
    const long = await run(["eval", "run", "--data", "long.a", "--target", "long.b", "--beam-size", "1"], { cwd: root });
    expect(long.stdout).toContain("\nsentences: 3\ncut_sources: 1\n");
  });

  test("tells of gates and capacities by which translations depend on the batch", async () => {
    const small = { model: "MoE-4", max_steps: 1, hidden_size: 8 };
    const kinds: readonly (readonly [string, Record<string, string | number>, string])[] = [
      ["choice", { gate: "expert-choice" }, "Note: gate expert-choice compares all positions"],
      ["capacity", { gate: "switch", top_k: 1, capacity_factor: 1.25 }, "Note: experts have a capacity in evaluation (1.25 times their share)"],
    ];
    for (const [folder, change, note] of kinds) {
      const asked = [
        () => train({ ...small, ...change, output_dir: folder }),
        () => run(["eval", folder, "--beam-size", "1"], { cwd: root }),
        () => translate([folder, "--beam-size", "1", "--no-progress"], "w1\n"),
      ];
      for (const ask of asked) expect((await ask()).stderr).toContain(note);
    }
  });

  test("is trained on a table too, and --dry-run says what it costs", async () => {
    const table = ["--source-column", "a", "--target-column", "b", "--train", "train.tsv", "--task", "translation", "--hidden-size", "16", "--vocab-size", "280", "--model", "LSTM"];
    const { code, stdout, stderr } = await run(["train", ...table, "--dry-run", "--json"], { cwd: root });
    expect(code, stderr).toBe(0);
    const large = await run(["train", "--preset", "wmt-moe-2048-h", "--vocab-size", "280", "--train", "train.a", "--train-target", "train.b.gz", "--dry-run", "--json"], { cwd: root });
    expect((JSON.parse(large.stdout) as { parameters: number }).parameters, large.stderr).toBeGreaterThan(8.6e9);
    // Six LSTMs of 16, of which two are projected; what is read into the gates; keys and queries.
    expect(JSON.parse(stdout)).toMatchObject({ pairs: 100, ops_per_timestep: 6 * 4 * 16 * 32 + 2 * 16 * 16 + 4 * 16 * 16 + 2 * 16 * 16 });
  });

  test("is inspected: what it is, its scores, what its experts take; and its attention is drawn", async () => {
    const { code, stdout, stderr } = await run(["inspect", "run", "--contexts", "--data", "valid.a", "--json"], { cwd: root });
    expect(code, stderr).toBe(0);
    const { experts, ...rest } = JSON.parse(stdout) as { experts: { tokens: number }[] };
    expect(rest).toMatchObject({ model: "MoE-4", step: 20, num_experts: 4, eval_bleu: expect.any(Number), moe_max_over_mean_load_encoder: expect.any(Number) });
    expect(experts.length).toBeGreaterThan(0);
    expect((await run(["inspect", "run", "--contexts", "--data", "valid.a"], { cwd: root })).stdout).toMatch(/\nexpert \d: \d+ tokens, divergence \d\.\d\d\n {2}\d\.\d\d {2}.*\[.+\]/);
    const drawn = await run(["translate", "run", "w1 w2", "--figure", "page.html"], { cwd: root });
    expect(drawn.stderr).toContain("Page with figures: page.html");
    expect(readFileSync(join(root, "page.html"), "utf8")).toContain("<svg");
  });

  test("is found in the help, with every preset", async () => {
    const { stdout } = await run(["train", "--help"]);
    for (const name of Object.keys(TRANSLATION_PRESETS)) expect(stdout).toMatch(new RegExp(`\\b${name}\\b`));
  });
});

test("demo translation trains both models for twelve pairs, reports each, and leaves models that translate", { timeout: 300_000 }, async () => {
  interface Report {
    models: { model: string; tokens_per_second: number; seconds: number; ops_per_timestep: number; pairs: { pair: string }[]; placeholders: { expected: number } }[];
  }
  // After one step translations go on to the longest they may be, which takes far longer than twenty steps.
  const demo = async (outputDir: string, threads: string): Promise<Report> => {
    const { code, stdout, stderr } = await run(["demo", "translation", "--max-steps", "20", "--output-dir", outputDir, "--no-progress", "--json"], { cwd: root, env: { SPARSEGATE_THREADS: threads } });
    expect(code, stderr).toBe(0);
    const report = JSON.parse(stdout) as Report;
    expect(JSON.parse(readFileSync(join(root, outputDir, "report.json"), "utf8"))).toEqual(report);
    for (const model of report.models) model.tokens_per_second = model.seconds = 0; // what may differ
    return report;
  };
  const [inTurn, sideBySide] = await Promise.all([demo("demo", "1"), demo("beside", "2")]);
  expect(sideBySide, "with a thread for each, at the same time").toEqual(inTurn);
  const { models } = inTurn;
  expect(models.map(({ model }) => model)).toEqual(["dense", "moe"]);
  for (const { pairs, placeholders } of models) {
    expect(pairs.map(({ pair }) => pair)).toEqual(["fr", "de", "ja", "ko", "pt-br", "es"].flatMap((language) => [`en-${language}`, `${language}-en`]));
    expect(placeholders.expected).toBeGreaterThan(100);
  }
  // Equal but for the gates: W_g of both mixtures. (The shared expert and three others are as wide together as the dense layer.)
  expect(models[1]!.ops_per_timestep - models[0]!.ops_per_timestep).toBe(2 * 64 * 32);
  const german = await run(["translate", "demo/moe", "Cannot find name '{0}'.", "--language", "de"], { cwd: root });
  expect(german.code, german.stderr).toBe(0);
  expect((await run(["translate", "demo/moe", "Cannot"], { cwd: root })).stderr).toBe('translate: expected --language, the one to translate into, got "none". The model knows several.\n');
  expect((await run(["demo", "chess"], { cwd: root })).stderr).toContain('demo: expected translation or nothing, got "chess".');
});

test("demo translation, interrupted while both models train, leaves a checkpoint of each", { timeout: 120_000 }, async () => {
  const job = start(["demo", "translation", "--output-dir", "stopped", "--no-progress"], { cwd: root, env: { SPARSEGATE_THREADS: "2" } });
  const folders = ["dense", "moe"].map((model) => join(root, "stopped", model));
  await until(() => folders.every((folder) => existsSync(join(folder, "metrics.jsonl"))), job, 60_000);
  job.child.kill("SIGINT");
  const { code, stdout, stderr } = await job.ended;
  expect([code, stdout]).toEqual([130, ""]);
  expect(stderr).toBe("Stopping after this step. Once more to stop at once.\n");
  for (const folder of folders) expect(readdirSync(folder).filter((name) => name.startsWith("checkpoint-"))).toHaveLength(1);
});

test("demo translation says once what one of its threads cannot do, and stops the other", { timeout: 60_000 }, async () => {
  mkdirSync(join(root, "taken"));
  writeFileSync(join(root, "taken", "dense"), "");
  await refused(run(["demo", "translation", "--output-dir", "taken", "--no-progress"], { cwd: root, env: { SPARSEGATE_THREADS: "2" } }), 'checkpoint: expected to read taken/dense, got "ENOTDIR: a part of the path is a file, not a folder".');
  expect(existsSync(join(root, "taken", "moe"))).toBe(true);
});

describe("what cannot be used is refused in one line", { timeout: 60_000 }, () => {
  test("files of different lengths", () => refused(train({ valid_target: "short.b", output_dir: "other" }), 'valid.a:8: expected its partner in short.b, got "7 lines there and 8 here".'));
  test("a missing target file", () => refused(run(["train", "--task", "translation", "--train", "train.a"], { cwd: root }), "--train-target: expected a text file, got undefined. Name the file with the translations of train.a, or"));
  test("a task's options with the other task", async () => {
    await refused(train({ model: "LSTM-2048-512", top_k: 4, output_dir: "other" }, "--dry-run"), "--model: expected MoE-<experts>, MoE-<experts>-h, MoE-1-Wide, MoE-1-Deep or LSTM with --task translation, got \"LSTM-2048-512\".");
    await refused(train({ batch_size: 4, output_dir: "other" }), "--batch-size: expected left out with --task translation, got 4. Take --batch-tokens.");
    await refused(run(["train", "--train", "lm.txt", "--train-target", "train.b.gz"], { cwd: root }), "--train-target: expected left out without --task translation");
  });
  test("models of another kind", async () => {
    await refused(translate(["lm"], "w1\n"), "translate: expected a translation model, got");
    await refused(run(["generate", "run"], { cwd: root }), 'expected a language model, got "translation".');
    // Both took the source text for that of a language model.
    const pair = ["--task", "translation", "--train", "train.a", "--train-target", "train.b"];
    await refused(run(["sweep", ...pair, "--valid", "valid.a", "--valid-target", "valid.b", "--vary", "dropout=0,0.1"], { cwd: root }), 'sweep: expected a language model (--task language-model), got "translation".');
    await refused(run(["plan", ...pair, "--ranks", "2"], { cwd: root }), 'plan: expected a language model (--task language-model), got "translation".');
    await refused(run(["eval", "lm", "--data", "lm.txt", "--target", "train.a"], { cwd: root }), "eval --target: expected a translation model, got");
  });
  test("a language that the model does not take, beams and checkpoints there are not, bytes that are no text", async () => {
    await refused(translate(["run", "--language", "de"], "w1\n"), 'translate: expected no --language, got "de". The model knows one pair of languages.');
    await refused(translate(["run", "--beam-size", "0"], "w1\n"), "beamSearch: expected beamSize to be an integer from 1 to 1024, got 0.");
    await refused(translate(["run", "--average", "9"], "w1\n"), "translate: expected 9 checkpoints in run (--average), got 2.");
    await refused(translate(["run", "--checkpoint", "first"], "w1\n"), '--checkpoint: expected best or last, got "first".');
    await refused(translate(["run"], Buffer.from([0x66, 0xff])), 'translate: expected UTF-8 text on stdin, got "bytes that are not UTF-8".');
    const folder = openSync(root, "r");
    const child = spawn(process.execPath, [main, "translate", "run"], { cwd: root, env, stdio: [folder, "pipe", "pipe"] });
    closeSync(folder);
    await refused(outcomeOf(child), 'translate: expected text on stdin, a file or a pipe, got "a folder". Name a file: < text.en.');
    await refused(translate(["nowhere"], "w1\n"), "translate: expected a checkpoint in nowhere, got");
  });
  test("a run that is there, and another text to resume on", async () => {
    await refused(train(), "--output-dir: expected a folder without checkpoints, as for a new run");
    await refused(run(["train", "--resume", "run", "--train", "valid.a", "--train-target", "valid.b", "--max-steps", "30", "--no-progress"], { cwd: root }), "--resume: expected the text that");
    await refused(run(["train", "--resume", "run", "--attention", "additive", "--no-progress"], { cwd: root }), '--resume: expected attention (--attention) "product" as in');
  });
  test("an unknown preset", () => refused(run(["train", "--preset", "wmt-moe"], { cwd: root }), "--preset: expected one of wmt-none,"));
});
