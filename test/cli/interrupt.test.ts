/** Ctrl-C and SIGTERM end a training run in good order: a checkpoint, a message that says how to go on, and nothing of the result changed. */

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { flags, inPairs, run, sentences, sleep, start, steps, traces, until, writeTexts, type Started } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-interrupt-"));
beforeAll(() => void writeTexts(root));
afterAll(() => rmSync(root, { recursive: true }));

const common = {
  train: "../train.txt",
  valid: "../valid.txt",
  test: "../test.txt",
  output_dir: "run",
  tokenizer: "words",
  hidden_size: 16,
  batch_size: 4,
  time_steps: 6,
};
/** No save before the end: the checkpoints are those of the interruptions. Records of metrics do not fall on the same steps. */
const long = { ...common, max_steps: 150, save_steps: 1000, eval_steps: 40, logging_steps: 1 };
const runs = {
  "sentences, MoE, dropout and sampled softmax": { ...long, model: "MoE-8", dropout: 0.3, sampled_softmax: 10 },
  "continuous text, MoE and dropout": { ...long, model: "MoE-4", text_mode: "continuous", dropout: 0.3 },
  "sentences, factored experts without momentum": { ...long, model: "MoE-8", factored_experts: true, beta1: 0, logging_steps: 9 },
  "continuous text, projected LSTM, SGD": {
    ...long,
    model: "LSTM",
    text_mode: "continuous",
    lstm_size: 24,
    optimizer: "sgd",
    learning_rate: 0.5,
    logging_steps: 11,
  },
};

/** The last step in the metrics of the run below a folder. */
function recorded(folder: string): number {
  const path = join(folder, "run/metrics.jsonl");
  const lines = existsSync(path) ? readFileSync(path, "utf8").split("\n") : [];
  return lines.length < 2 ? 0 : (JSON.parse(lines.at(-2)!) as { step: number }).step;
}

/** The command that the message of an interrupted run names. */
function wayOn(stderr: string): string[] {
  const [, command] = /Go on with: sparsegate (.+)\n/.exec(stderr) ?? [];
  expect(command, stderr).toBeDefined();
  return command!.split(" ");
}

describe("an interrupted run, resumed as its message says, ends as an uninterrupted one", () => {
  test(
    "in both text modes, with dropout, MoE, sampled softmax, carried state and every optimiser",
    { timeout: 120_000 },
    async () => {
      await inPairs(
        Object.entries(runs).map(([name, config], i) => async () => {
          const [whole, parts] = [mkdtempSync(join(root, "whole-")), mkdtempSync(join(root, "parts-"))];
          const reference = await run(["train", ...flags(config)], { cwd: whole });
          expect(reference.code, reference.stderr).toBe(0);
          let args = ["train", ...flags(config)];
          const stops = [13 + 5 * i, 55, 105];
          for (const [n, step] of stops.entries()) {
            const child = start(args, { cwd: parts });
            await until(() => recorded(parts) >= step, child);
            const signal = n === 1 ? "SIGTERM" : "SIGINT";
            child.child.kill(signal);
            const { code, stderr, stdout } = await child.ended;
            expect(code, stderr).toBe(signal === "SIGTERM" ? 143 : 130);
            expect(stderr).toContain("Stopping after this step; then a checkpoint is written.");
            const at = Number(/Interrupted at step (\d+) of 150/.exec(stderr)?.[1]);
            expect(at, name).toBeGreaterThanOrEqual(step);
            expect(steps(join(parts, "run")).at(-1)).toBe(at);
            expect(stdout).toContain("finished: false");
            args = wayOn(stderr);
          }
          const end = await run(args, { cwd: parts });
          expect(end.code, end.stderr).toBe(0);
          const [expected, actual] = [traces(join(whole, "run")), traces(join(parts, "run"))];
          expect(actual.metrics, name).toEqual(expected.metrics);
          for (const [file, bytes] of Object.entries(expected.files)) expect(actual.files[file], `${name}: ${file}`).toBe(bytes);
          // The figures that were printed are the same too.
          const figures = (text: string): string[] => text.split("\n").filter((line) => line.includes("perplexity"));
          expect(figures(end.stdout)).toEqual(figures(reference.stdout));
          expect(figures(end.stdout)).toHaveLength(2);
        }),
      );
    },
  );

  test(
    "and one interrupted in a long evaluation gives it up at once, and makes it when resumed",
    { timeout: 60_000 },
    async () => {
      const folder = mkdtempSync(join(root, "evaluation-"));
      // Some seconds of evaluation, at step 3 and at the end.
      writeFileSync(join(folder, "valid.txt"), `${sentences(900, 9).join("\n")}\n`);
      const config = {
        ...common,
        valid: "valid.txt",
        model: "MoE-8",
        max_steps: 5,
        eval_steps: 3,
        save_steps: 1,
        logging_steps: 1,
        batch_size: 1,
        time_steps: 4,
      };
      const [whole, parts] = [join(folder, "whole"), join(folder, "parts")];
      const reference = await run(["train", ...flags({ ...config, output_dir: whole })], { cwd: folder });
      expect(reference.code, reference.stderr).toBe(0);
      const child = start(["train", ...flags({ ...config, output_dir: parts })], { cwd: folder });
      await until(() => steps(parts).includes(2), child);
      await sleep(100);
      const asked = performance.now();
      child.child.kill("SIGINT");
      const { code, stderr } = await child.ended;
      expect(code, stderr).toBe(130);
      expect(stderr).toContain("Interrupted at step 3 of 5.");
      expect(performance.now() - asked, "ms to give it up").toBeLessThan(1500);
      expect(readFileSync(join(parts, "metrics.jsonl"), "utf8")).not.toContain("eval/");
      const end = await run(wayOn(stderr), { cwd: folder });
      expect(end.code, end.stderr).toBe(0);
      expect(traces(parts).metrics).toEqual(traces(whole).metrics);
      const { files, ...rest } = traces(parts);
      delete files["config.json"]; // names its own folder
      delete files["trainer_state.json"]; // has the checksum of config.json
      expect(traces(whole).files).toMatchObject(files);
      expect(rest.metrics.filter((line) => line.includes("eval/"))).toHaveLength(2);
    },
  );
});

describe("a second signal stops at once", () => {
  /** A model that takes a while to save, so that the second signal finds the first one's save under way. */
  const large = {
    ...common,
    model: "MoE-64",
    hidden_size: 128,
    max_steps: 100_000,
    save_steps: 1_000_000,
    eval_steps: 1_000_000,
    logging_steps: 1,
  };

  async function training(folder: string): Promise<Started> {
    const child = start(["train", ...flags(large)], { cwd: folder });
    await until(() => recorded(folder) >= 2, child);
    return child;
  }

  test("in the middle of saving", { timeout: 60_000 }, async () => {
    const folder = mkdtempSync(join(root, "twice-"));
    const child = await training(folder);
    child.child.kill("SIGINT");
    await until(() => readdirSync(join(folder, "run")).some((name) => name.startsWith(".checkpoint-")), child);
    child.child.kill("SIGINT");
    const { code, signal, stderr } = await child.ended;
    // By the system, which shells show as 130: the program has stopped listening.
    expect([code, signal]).toEqual([null, "SIGINT"]);
    expect(stderr).toContain("Once more to stop at once");
    expect(stderr).not.toContain("Interrupted at step");
    expect(steps(join(folder, "run"))).toEqual([]);
  });

  test("when both come before the program can look", { timeout: 60_000 }, async () => {
    const folder = mkdtempSync(join(root, "both-"));
    const child = await training(folder);
    child.child.kill("SIGSTOP");
    child.child.kill("SIGINT");
    child.child.kill("SIGTERM");
    child.child.kill("SIGCONT");
    const { code, stderr } = await child.ended;
    expect([130, 143]).toContain(code);
    expect(stderr).not.toContain("Interrupted at step");
    expect(steps(join(folder, "run"))).toEqual([]);
  });
});

test("before training begins a signal ends the program as any other, and leaves no checkpoint", { timeout: 60_000 }, async () => {
  const folder = mkdtempSync(join(root, "early-"));
  // Enough text that reading it takes a while.
  writeFileSync(join(folder, "train.txt"), `${sentences(60_000).join("\n")}\n`);
  const child = start(["train", ...flags({ ...common, train: "train.txt", tokenizer: "bpe" })], { cwd: folder });
  await until(() => existsSync(join(folder, "run")), child);
  child.child.kill("SIGINT");
  expect((await child.ended).signal).toBe("SIGINT");
  expect(steps(join(folder, "run"))).toEqual([]);
});
