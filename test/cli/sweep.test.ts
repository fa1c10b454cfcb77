/** `sparsegate sweep`: every combination with every seed, each as `train` itself would train it, compared on the validation text; killed and gone on with. */

import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { sweepResults, sweepTable } from "#sparsegate/train/sweep.js";
import type { DoneRow } from "#sparsegate/train/reproduce/run.js";
import type { TrainResult } from "#sparsegate/train/trainer.js";
import { flags, main, run, start, until, writeTexts } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-sweep-"));
beforeAll(() => void writeTexts(root, { train: 200 }));
afterAll(() => rmSync(root, { recursive: true }));

const common = {
  train: "train.txt",
  valid: "valid.txt",
  test: "test.txt",
  tokenizer: "words",
  model: "MoE-4",
  hidden_size: 8,
  batch_size: 4,
  time_steps: 6,
  save_steps: 5,
  logging_steps: 2,
};
const VARY = ["--vary", "dropout=0,0.2", "--vary", "learning-rate=3e-3,1e-2"];
const args = (folder: string, ...more: string[]): string[] => [
  "sweep",
  ...flags({ ...common, output_dir: folder }),
  ...VARY,
  "--seeds",
  "0,1",
  "--tokens",
  "480",
  "--json",
  ...more,
];
interface Printed {
  finished: boolean;
  results: { settings: Record<string, string>; valid_perplexity: number; min: number; max: number; seeds: number }[];
  trials: Record<string, number>[];
}
const parsed = ({ stdout }: { stdout: string }): Printed => JSON.parse(stdout) as Printed;
const figures = ({ results, trials }: Printed): unknown => [
  results.map(({ settings, valid_perplexity, min, max, seeds }) => [settings, valid_perplexity, min, max, seeds]),
  trials,
];
let whole: Printed;

describe("sparsegate sweep", () => {
  test("trains each combination with each seed on the same budget, the best first", { timeout: 120_000 }, async () => {
    const outcome = await run(args("whole"), { cwd: root });
    expect(outcome.code, outcome.stderr).toBe(0);
    whole = parsed(outcome);
    expect(whole.finished).toBe(true);
    expect(whole.trials.map(({ dropout, learning_rate, seed, max_steps }) => [dropout, learning_rate, seed, max_steps])).toEqual(
      [0, 0.2].flatMap((dropout) => [3e-3, 1e-2].flatMap((rate) => [0, 1].map((seed) => [dropout, rate, seed, 20]))),
    );
    expect(whole.results.map(({ seeds }) => seeds)).toEqual([2, 2, 2, 2]);
    const means = whole.results.map(({ valid_perplexity }) => valid_perplexity);
    expect(means).toEqual([...means].sort((a, b) => a - b));
    for (const { settings, valid_perplexity, min, max } of whole.results) {
      const of = whole.trials.filter((trial) => Object.entries(settings).every(([key, value]) => trial[key] === Number(value)));
      const values = of.map((trial) => trial["valid_perplexity"]!);
      expect([min, max]).toEqual([Math.min(...values), Math.max(...values)]);
      expect(valid_perplexity).toBeCloseTo((values[0]! + values[1]!) / 2, 9);
    }
    expect(JSON.parse(readFileSync(join(root, "whole/results.json"), "utf8"))).toMatchObject({ trials: whole.trials });
  });

  test(
    "has the perplexities of `train` with the same options, whose default for warm-up it keeps",
    { timeout: 60_000 },
    async () => {
      const own = { ...common, dropout: 0.2, learning_rate: 1e-2, seed: 1, max_steps: 20, output_dir: "single" };
      const { stdout } = await run(["train", ...flags(own), "--json"], { cwd: root });
      const trial = whole.trials.find(
        ({ dropout, learning_rate, seed }) => dropout === 0.2 && learning_rate === 1e-2 && seed === 1,
      );
      expect(trial!["valid_perplexity"]).toBe((JSON.parse(stdout) as Record<string, number>)["valid_perplexity"]);
    },
  );

  test(
    "killed and started again gives the same results, and does not train again what is done",
    { timeout: 120_000 },
    async () => {
      const job = start(args("killed"), { cwd: root });
      await until(() => existsSync(join(root, "killed/dropout-0.2-learning_rate-0.003-seed-0/checkpoint-10")), job, 60_000);
      job.child.kill("SIGKILL");
      await job.ended;
      const outcome = await run(args("killed"), { cwd: root });
      expect(outcome.code, outcome.stderr).toBe(0);
      expect(outcome.stderr).not.toContain("Row 4 of 8");
      expect(outcome.stderr).toContain("Row 5 of 8");
      expect(figures(parsed(outcome))).toEqual(figures(whole));
      const text = await run(
        args("killed").filter((arg) => arg !== "--json"),
        { cwd: root },
      );
      const best = whole.results[0]!.settings;
      expect(text.stdout).toContain(`Best: --dropout ${best["dropout"]} --learning-rate ${best["learning_rate"]}\n`);
    },
  );

  test("gives each trial what it was given, from a file and the environment too, and works out the rest for that trial", { timeout: 120_000 }, async () => {
    const { hidden_size: _, model: __, ...given } = common;
    writeFileSync(join(root, "sweep.json"), JSON.stringify({ ...given, warmup_steps: 7, max_steps: 2, capacity_factor: 2 }));
    const sweep = (folder: string, ...vary: string[]): string[] => ["sweep", "--config", "sweep.json", "--output-dir", folder, "--json", ...vary.flatMap((one) => ["--vary", one])];
    const configs = async (line: string[], env: NodeJS.ProcessEnv = {}): Promise<Record<string, unknown>[]> => {
      const { code, stdout, stderr } = await run(line, { cwd: root, env });
      expect(code, stderr).toBe(0);
      const folder = line[line.indexOf("--output-dir") + 1]!;
      const keys = parsed({ stdout }).trials.map(({ valid_perplexity: _valid, ...own }) => Object.entries(own).map(([key, value]) => `${key}-${value}`).join("-")); // prettier-ignore
      return keys.map((key) => JSON.parse(readFileSync(join(root, folder, key, "config.json"), "utf8")) as Record<string, unknown>);
    };
    const short = await configs(sweep("short", "num_experts=4,8", "scale=0.015625,0.03125"));
    expect(short.map(({ model, hidden_size, warmup_steps, dropout }) => [model, hidden_size, warmup_steps, dropout])).toEqual(["MoE-4", "MoE-8"].flatMap((model) => [8, 16].map((width) => [model, width, 7, 0.1]))); // prettier-ignore
    // An option of gates that are tried, not of the default one; and one that needs another that is tried.
    const env = { SPARSEGATE_TRAIN_WARMUP_STEPS: "3", SPARSEGATE_TRAIN_HIDDEN_SIZE: "8", SPARSEGATE_TRAIN_MODEL: "MoE-4", SPARSEGATE_TRAIN_AUX_LOSS_WEIGHT: "0.05" };
    const gates = await configs(sweep("gates", "gate=switch,gshard"), env);
    expect(gates.map(({ gate, aux_loss_weight, warmup_steps }) => [gate, aux_loss_weight, warmup_steps])).toEqual([["switch", 0.05, 3], ["gshard", 0.05, 3]]); // prettier-ignore
    // A pipe can be read once.
    const piped = `"${process.execPath}" "${main}" ${sweep("piped", "dropout=0,0.1").join(" ").replace("sweep.json", "/dev/stdin")}`;
    expect(spawnSync("sh", ["-c", `cat sweep.json | ${piped}`], { cwd: root, encoding: "utf8" })).toMatchObject({ status: 0 });
    // What the user did give is what is refused.
    const { code, stderr } = await run([...sweep("both", "scale=0.25"), "--hidden-size", "8"], { cwd: root });
    expect([code, stderr]).toEqual([1, "sweep: expected scale (--scale) to be left out beside a hidden_size of 8, got 0.25. It is short for one.\n"]);
  });

  test("refuses what would make trials unlike, and says why", { timeout: 60_000 }, async () => {
    for (const [more, says] of [
      [["--vary", "seed=1,2"], /^--vary: expected an option of train other than .* got "seed"\. Take --seeds\./],
      [["--vary", "task=translation"], /All trials have the same text and budget\./],
      [["--vary", "valid=a,b"], /All trials have the same text and budget\./],
      [
        ["--vary", "dropout=0.3"],
        '--vary: expected one or more options of train, each once, got "dropout". Like --vary dropout=0,0.1,0.2.',
      ],
      [["--vary", "beta1=0.9,0.9"], '--vary: expected values of beta1 that differ, got "0.9,0.9".'],
      [["--vary", "beta1"], '--vary: expected KEY=VALUE,VALUE,…, got "beta1". Like dropout=0,0.1,0.2.'],
      [["--vary", "beta2=2"], /^sweep: expected beta2 \(--beta2\) to be a number from 0 to/],
      [["--seeds", "1,x"], '--seeds: expected whole numbers separated by commas, got "1,x". Like 0,1,2.'],
    ] as const) {
      const { code, stderr } = await run(args("refused", ...more), { cwd: root });
      expect([code, stderr.trim()]).toEqual([1, typeof says === "string" ? says : expect.stringMatching(says)]);
    }
    const without = args("refused").filter((arg) => arg !== "--valid" && arg !== "valid.txt");
    expect((await run(without, { cwd: root })).stderr).toBe(
      'sweep: expected --valid, a text to compare trials on, got "none". Comparing them on --test would tune them to it.\n',
    );
    expect(existsSync(join(root, "refused"))).toBe(false);
  });
});

describe("a sweep's trials", () => {
  const base = { train: "x", batch_size: 4, time_steps: 8, max_steps: 7 };
  test("have equal tokens whatever the batch", () => {
    const { rows } = sweepTable({ base, vary: ["batch_size=4,16", "time-steps=8"], seeds: [3], tokens: 1000 });
    expect(rows.map(({ key, changes }) => [key, changes["max_steps"]])).toEqual([
      ["batch_size-4-time_steps-8-seed-3", 32],
      ["batch_size-16-time_steps-8-seed-3", 8],
    ]);
    expect(sweepTable({ base, vary: ["dropout=0"], seeds: [0] }).rows[0]!.changes).toEqual({ dropout: 0, seed: 0 });
  });

  test("are some of many combinations by chance, the same for the same seed, each with all seeds", () => {
    const of = (seeds: number[]): string[] =>
      sweepTable({ base, vary: ["dropout=0,0.1,0.2,0.3", "beta1=0.5,0.7,0.9"], seeds, combinations: 5 }).rows.map(
        ({ key }) => key,
      );
    expect(of([0, 1])).toHaveLength(10);
    expect(of([0, 1])).toEqual(of([0, 1]));
    expect(of([0]).map((key) => key.replace(/-seed.*/, ""))).not.toEqual(of([8]).map((key) => key.replace(/-seed.*/, "")));
    expect(new Set(of([0, 1])).size).toBe(10);
  });

  test("count by the best evaluation where there is a patience, as the last is worse by then, and by the last without", () => {
    const { measure } = sweepTable({ base, vary: ["dropout=0"], seeds: [0] });
    const of = (result: Partial<TrainResult>): unknown => measure({ result } as Parameters<typeof measure>[0]);
    const valid = { perplexity: 9 } as NonNullable<TrainResult["valid"]>;
    expect([of({ valid, best: { step: 1, loss: Math.log(8) } }), of({ valid })]).toEqual([{ perplexity: expect.closeTo(8, 9) }, { perplexity: 9 }]);
  });

  test("are ranked by the mean of those that are done", () => {
    const { rows, labels } = sweepTable({ base, vary: ["dropout=0,0.1"], seeds: [0, 1] });
    const done = [9, 7, 6, 8.5].map((perplexity, i): DoneRow => ({ row: rows[i]!, figures: { perplexity }, tokens: 1, tokensPerSecond: 2, history: [], curve: [] })); // prettier-ignore
    expect(sweepResults({ labels }, done)).toEqual([
      { settings: { dropout: "0.1" }, mean: 7.25, min: 6, max: 8.5, seeds: 2, tokensPerSecond: 2 },
      { settings: { dropout: "0" }, mean: 8, min: 7, max: 9, seeds: 2, tokensPerSecond: 2 },
    ]);
    expect(sweepResults({ labels }, done.slice(0, 3)).map(({ seeds }) => seeds)).toEqual([1, 2]);
  });
});
