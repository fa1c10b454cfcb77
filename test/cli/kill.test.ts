/** A training run killed with SIGKILL at fifty instants, and resumed each time, ends as one that was never killed: bit for bit. */

import { existsSync, mkdtempSync, readdirSync, rmSync, watch } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { flags, inPairs, readWhole, run, seeded, sleep, start, steps, traces, writeTexts } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-kill-"));
afterAll(() => rmSync(root, { recursive: true }));

const KILLS_EACH = 25;
const common = {
  train: "../train.txt",
  valid: "../valid.txt",
  test: "../test.txt",
  output_dir: "run",
  hidden_size: 16,
  expert_hidden_size: 16,
  batch_size: 4,
  time_steps: 6,
};
/** What two processes at a time are killed in. Saving every other step, about half of a run's time goes into saving. */
const runs = {
  sentences: {
    ...common,
    model: "MoE-8",
    tokenizer: "words",
    dropout: 0.2,
    sampled_softmax: 12,
    max_steps: 400,
    save_steps: 2,
    eval_steps: 6,
    logging_steps: 3,
  },
  continuous: {
    ...common,
    model: "LSTM",
    text_mode: "continuous",
    vocab_size: 300,
    lstm_size: 20,
    max_grad_norm: 1,
    max_steps: 400,
    save_steps: 2,
    eval_steps: 5,
    logging_steps: 7,
  },
};

/** Where kills fell. */
interface Landed {
  /** Before the first save of the process. */
  startUp: number;
  /** With a half-written checkpoint left behind. */
  saving: number;
  /** In a step, an evaluation, or between the renames and deletions around a save. */
  between: number;
}

/** Takes one run to its end, killing it `kills` times on the way, or less often where it ends before. */
async function killedRun(folder: string, args: string[], random: () => number, kills: number): Promise<Landed> {
  const landed: Landed = { startUp: 0, saving: 0, between: 0 };
  const output = join(folder, "run");
  let [startUpMs, saveMs] = [300, 20];
  for (let kill = 0; ; kill++) {
    const before = steps(output);
    // Without a checkpoint --resume is an error (see bad-input.test.ts): the run begins anew.
    const resume = before.length > 0 ? ["--resume", "run"] : [];
    const process = start(["train", ...args, ...resume], { cwd: folder });
    let where: keyof Landed = "between";
    if (kill < kills) {
      // One kill in four goes into the start-up, the others come so many saves later, up to two and a half times as long after the last began as one takes.
      const [kind, when] = [random(), random()];
      if (kind < 0.25) {
        where = "startUp";
        await sleep(when * startUpMs);
      } else {
        [startUpMs, saveMs] = await afterSaves(Math.floor(when * 8), output, process.ended, [startUpMs, saveMs]);
        await sleep(2.5 * saveMs * random());
      }
      process.child.kill("SIGKILL");
    }
    const { code, signal, stderr } = await process.ended;
    expect([code, signal], stderr).toEqual(signal === "SIGKILL" && kill < kills ? [null, "SIGKILL"] : [0, null]);
    const after = steps(output);
    for (const step of after) readWhole(join(output, `checkpoint-${step}`));
    expect(after.at(-1) ?? 0, "no step is lost").toBeGreaterThanOrEqual(before.at(-1) ?? 0);
    if (signal === null) return landed;
    if (
      existsSync(output) &&
      readdirSync(output).some((name) => name.startsWith(".checkpoint-") && name.endsWith(`.tmp-${process.child.pid}`))
    )
      where = "saving";
    landed[where]++;
  }
}

/**
 * Waits until a number of saves have begun after the first one, or the process has ended.
 * @returns milliseconds until the first save began, and what the last whole one took; those of before where there was none
 */
async function afterSaves(
  count: number,
  output: string,
  ended: Promise<unknown>,
  [startUpMs, saveMs]: [number, number],
): Promise<[number, number]> {
  const begun = performance.now();
  let running = true;
  void ended.then(() => (running = false));
  while (!existsSync(output) && running) await sleep(2);
  if (!running) return [startUpMs, saveMs];
  const seen = new Set<string>();
  let since = 0;
  const watcher = watch(output, (_, name) => {
    if (name === null) return;
    if (/^\.checkpoint-\d+\.tmp-/.test(name) && !seen.has(name)) {
      since = performance.now();
      if (seen.size === 0) startUpMs = since - begun;
      seen.add(name);
    } else if (/^checkpoint-\d+$/.test(name) && since > 0) {
      saveMs = performance.now() - since;
      since = 0;
    }
  });
  while (seen.size <= count && running) await sleep(1);
  watcher.close();
  return [startUpMs, saveMs];
}

test(
  `a run killed ${2 * KILLS_EACH} times and resumed has the parameters, the optimiser state and the metrics of an uninterrupted one`,
  { timeout: 180_000 },
  async () => {
    writeTexts(root);
    const total: Landed = { startUp: 0, saving: 0, between: 0 };
    const names = Object.keys(runs) as (keyof typeof runs)[];
    await inPairs(
      names.map((name, i) => async () => {
        const args = flags(runs[name]);
        const whole = mkdtempSync(join(root, `${name}-whole-`));
        const { code, stderr } = await run(["train", ...args], { cwd: whole });
        expect(code, stderr).toBe(0);
        const expected = traces(join(whole, "run"));
        const random = seeded(i);
        for (let left = KILLS_EACH; left > 0;) {
          const killed = mkdtempSync(join(root, `${name}-killed-`));
          const landed = await killedRun(killed, args, random, left);
          for (const key of Object.keys(total) as (keyof Landed)[]) {
            total[key] += landed[key];
            left -= landed[key];
          }
          const actual = traces(join(killed, "run"));
          expect(actual.metrics).toEqual(expected.metrics);
          expect(Object.keys(actual.files)).toEqual(Object.keys(expected.files));
          for (const [file, bytes] of Object.entries(expected.files)) expect(actual.files[file], `${name}: ${file}`).toBe(bytes);
          // The last save cleared what the killed ones left.
          expect(readdirSync(join(killed, "run")).filter((entry) => entry.startsWith("."))).toEqual([]);
        }
      }),
    );
    console.log(`kills: ${JSON.stringify(total)}`);
    expect(total.startUp + total.saving + total.between).toBe(2 * KILLS_EACH);
    // The kills have to fall into every part of a run to prove anything.
    expect(Math.min(...Object.values(total)), JSON.stringify(total)).toBeGreaterThan(0);
  },
);
