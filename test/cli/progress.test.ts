/** What a whole training run shows of its progress: a line now and then in a pipe, one live line on a terminal, nothing when asked for nothing. */

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { checkConfig } from "#sparsegate/train/config.js";
import { Progress, type ProgressStream } from "#sparsegate/train/progress.js";
import { train } from "#sparsegate/train/trainer.js";
import { flags, main, run, sentences, writeTexts } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-progress-"));
beforeAll(() => void writeTexts(root));
afterAll(() => rmSync(root, { recursive: true }));

const config = {
  train: "train.txt",
  tokenizer: "words",
  model: "MoE-8",
  hidden_size: 16,
  batch_size: 4,
  time_steps: 6,
  max_steps: 40,
};

describe("train with a clock that goes on a second a step", () => {
  /** What 40 steps write. */
  async function written(stream: Omit<ProgressStream, "write">): Promise<string> {
    let [text, seconds] = ["", 0];
    const progress = new Progress({
      stream: { ...stream, write: (part) => (text += part) },
      intervalSeconds: 10,
      now: () => 1000 * seconds++,
    });
    const { model } = await train(
      checkConfig({ ...config, output_dir: "unused" }, "the test"),
      { train: sentences(50) },
      { progress, ephemeral: true },
    );
    progress.finish("the end");
    model.dispose();
    return text;
  }
  const line = /^MoE-8 step (\d+)\/40  loss \d+\.\d{3}  [\d,]+ tokens\/s$/;

  test("writes a line every ten seconds into a pipe", async () => {
    const lines = (await written({})).split("\n");
    expect(lines.slice(-2)).toEqual(["the end", ""]);
    expect(lines.slice(0, -2).map((text) => Number(line.exec(text)?.[1]))).toEqual([10, 20, 30, 40]);
  });

  test("redraws one line at each step on a terminal, and leaves the last", async () => {
    const text = await written({ isTTY: true, columns: 80 });
    const drawn = text.split("\r").slice(1);
    expect(drawn.slice(0, -1).map((part) => Number(line.exec(part.replace("\x1b[K", ""))?.[1]))).toEqual(
      Array.from({ length: 40 }, (_, i) => i + 1),
    );
    expect(drawn.at(-1)).toBe("the end\x1b[K\n");
    expect(text.split("\n")).toHaveLength(2);
  });
});

describe("the command", () => {
  const args = (output: string): string[] => ["train", ...flags({ ...config, output_dir: output })];
  const last = /^MoE-8: 40 steps, \d+ tokens\/s$/;

  test("writes whole lines and no control characters into a pipe, results to stdout alone", { timeout: 30_000 }, async () => {
    const { code, stdout, stderr } = await run([...args("piped"), "--json"], { cwd: root });
    expect(code, stderr).toBe(0);
    expect(stderr.replaceAll("\n", "")).not.toMatch(/\p{Cc}/u);
    expect(stderr.trimEnd().split("\n").at(-1)).toMatch(last);
    expect(JSON.parse(stdout)).toMatchObject({ steps: 40, finished: true });
  });

  test("writes nothing but results with --no-progress", { timeout: 30_000 }, async () => {
    const { code, stdout, stderr } = await run([...args("silent"), "--no-progress"], { cwd: root });
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toContain("steps: 40\n");
  });

  test("keeps one live line on a terminal, and its results below it", { timeout: 30_000 }, async ({ skip }) => {
    try {
      execFileSync("script", ["--version"], { stdio: "pipe" });
    } catch {
      skip(
        "there is no script(1) of util-linux here to make a terminal; the test with a stream that says it is one stands for it",
      );
    }
    const quoted = [process.execPath, main, ...args("live")].map((part) => `'${part}'`).join(" ");
    const { code, stdout } = await run([], {
      cwd: root,
      command: ["script", "--quiet", "--return", "--command", quoted, "/dev/null"],
      env: { TERM: "xterm" },
    });
    expect(code, stdout).toBe(0);
    const lines = stdout.split("\r\n");
    const live = lines.filter((text) => text.includes("\x1b[K"));
    expect(live).toHaveLength(1);
    const drawn = live[0]!.split("\r").map((part) => part.replace("\x1b[K", ""));
    expect(drawn.slice(1, -1).every((part) => part.startsWith("MoE-8 step "))).toBe(true);
    expect(drawn.at(-1)).toMatch(last);
    expect(lines.slice(lines.indexOf(live[0]!) + 1)).toContain("steps: 40");
  });
});

test("a resumed run says where its learning rate goes on otherwise than it would have", { timeout: 60_000 }, async () => {
  const linear = flags({ ...config, schedule: "linear", learning_rate: 0.01, warmup_steps: 10, save_steps: 20, output_dir: "linear" });
  const first = await run(["train", ...linear], { cwd: root });
  expect([first.code, first.stderr]).toEqual([0, expect.not.stringContaining("learning rate")]);
  const [same, more] = [await run(["train", "--resume", "linear/checkpoint-20", "--overwrite"], { cwd: root }), await run(["train", "--resume", "linear", "--max-steps", "60"], { cwd: root })];
  expect([same.code, same.stderr]).toEqual([0, expect.not.stringContaining("learning rate")]);
  // After the rise, 51 steps to fall: at step 41 20 of them are left. It was to be 0 there.
  expect([more.code, more.stderr]).toEqual([0, expect.stringContaining("The learning rate goes on at 0.00392, which would have been 0 at step 41: --max-steps 60 in place of 40.\n")]);
  const done = await run(["train", "--resume", "linear", "--max-steps", "20"], { cwd: root });
  expect([done.code, done.stderr]).toEqual([0, expect.stringContaining("Nothing is left to train: the checkpoint is of step 60, and --max-steps is 20.\n")]);
});
