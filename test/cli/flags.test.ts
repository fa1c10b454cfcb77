/** The help of `train`: every option of the configuration has its flag, in a group, and no flag is of nothing; and what a run of each gate says of itself. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { GATE_NAMES } from "#sparsegate/moe/gates/index.js";
import { readMetrics } from "#sparsegate/train/metrics.js";
import { trainConfigSchema } from "#sparsegate/train/config.js";
import { flags, inPairs, run, writeTexts } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-flags-"));
beforeAll(() => void writeTexts(root));
afterAll(() => rmSync(root, { recursive: true }));

const common = { train: "train.txt", tokenizer: "words", hidden_size: 16, batch_size: 4, time_steps: 6, max_steps: 20 };
const json = async (args: readonly string[]): Promise<Record<string, unknown>> => {
  const { code, stdout, stderr } = await run([...args, "--json"], { cwd: root });
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as Record<string, unknown>;
};

test("train --help has a flag for each option, under the heading of its group", { timeout: 30_000 }, async () => {
  const { stdout } = await run(["train", "--help"]);
  const groups = new Map<string, string[]>();
  for (const block of stdout.split("\n\n")) {
    const heading = /^([A-Z][\w ]+):$/m.exec(block)?.[1];
    if (heading)
      groups.set(
        heading,
        [...block.matchAll(/^ {2}--([\w-]+)/gm)].map(([, flag]) => flag!),
      );
  }
  const [general, ...others] = [...groups.keys()];
  expect(general).toBe("Options");
  expect(others).toEqual(["Text", "Translation", "Model", "Gate", "Balance and capacity", "Experts", "Training", "Run"]);
  const found = others.flatMap((heading) => groups.get(heading)!.map((flag) => flag.replace(/^no-/, "").replaceAll("-", "_")));
  expect(found.sort()).toEqual(Object.keys(trainConfigSchema.shape).sort());
  for (const heading of others) expect(groups.get(heading)!.length, heading).toBeLessThan(20);
});

describe("train --dry-run", () => {
  test("says which mixture it is, and what a scalar of its experts takes in training", { timeout: 30_000 }, async () => {
    const [deep, flat, dense] = await inPairs([
      () => json(["train", ...flags({ ...common, model: "MoE-64-h", branching: 8, optimizer: "sgd" }), "--dry-run"]),
      () =>
        json([
          "train",
          ...flags({ ...common, model: "MoE-8", gate: "gshard", hidden_size: 64 }),
          "--dry-run",
          "--factored-experts",
        ]),
      () => json(["train", ...flags({ ...common, model: "LSTM" }), "--dry-run"]),
    ]);
    expect(deep).toMatchObject({
      gate: "noisy-top-k",
      num_experts: 64,
      branching: 8,
      top_k: 2,
      secondary_top_k: 2,
      experts_per_token: 4,
      bytes_per_expert_parameter: 8,
    });
    expect(flat).toMatchObject({ gate: "gshard", num_experts: 8, top_k: 2, experts_per_token: 2 });
    expect(flat!["bytes_per_expert_parameter"]).toBeGreaterThan(8);
    expect(flat!["bytes_per_expert_parameter"]).toBeLessThanOrEqual(8.1);
    expect(Object.keys(dense!)).not.toContain("gate");
  });

  test("as text has a column for it", { timeout: 30_000 }, async () => {
    const { stdout } = await run(["train", ...flags({ ...common, model: "MoE-8" }), "--dry-run"], { cwd: root });
    expect(stdout).toContain("bytes/expert parameter");
    expect(stdout).toMatch(/ 16\.\d\d\n/);
  });
});

describe("a run of each gate", () => {
  const runs = [
    ...GATE_NAMES.map((gate) => ({ gate, model: "MoE-8", output_dir: gate })),
    { gate: "switch", model: "MoE-16-h", branching: 4, capacity_factor: 1, eval_capacity_factor: 0.5, output_dir: "deep" },
  ];
  test("trains, is evaluated, generates and is inspected", { timeout: 120_000 }, async () => {
    await inPairs(
      runs.map((options) => async () => {
        const { output_dir: folder, gate } = options;
        await json(["train", ...flags({ ...common, ...options, valid: "valid.txt" })]);
        const found = await json(["eval", folder, "--data", "test.txt"]);
        expect(found["perplexity"], folder).toBeLessThan(100);
        if (folder === "deep") expect(found["dropped_fraction"]).toBeGreaterThan(0);
        else expect(found["dropped_fraction"], folder).toBe(0);
        const { code, stderr, stdout } = await run(["generate", folder, "--prompt", "w1", "--max-tokens", "5"], { cwd: root });
        expect(code, stderr).toBe(0);
        expect(stdout).toMatch(/^w1/);
        expect(await json(["inspect", folder])).toMatchObject({ gate, step: 20 });
        const records = readMetrics(join(root, folder, "metrics.jsonl")).filter((record) => "moe/expert_load/moe/0" in record);
        expect(records.map(({ step }) => step)).toEqual([10, 20]);
        for (const record of records) {
          const of = ["router", "kept"].filter((kind) => `moe/${kind}_entropy` in record);
          expect(of, folder).toHaveLength(1);
          for (const tag of [
            "aux_loss",
            "importance_cv2",
            "load_cv2",
            "max_over_mean_load",
            "dropped_fraction",
            "unrouted_fraction",
            "unused_experts",
          ]) {
            expect(Number.isFinite(record[`moe/${tag}`]), `${folder} ${tag}`).toBe(true);
          }
        }
      }),
    );
  });

  test(
    "says of expert choice, and of no other gate, that its perplexity is not a prediction's",
    { timeout: 60_000 },
    async () => {
      const notes = await inPairs(
        ["expert-choice", "switch"].map(
          (folder) => async () => (await run(["eval", folder, "--data", "test.txt"], { cwd: root })).stderr,
        ),
      );
      const note = "gate expert-choice compares all positions of a batch, later ones too";
      expect(notes.map((text) => text.includes(note))).toEqual([true, false]);
    },
  );

  test(
    "says by inspect how its experts were used: as a table, and as a page that refers to nothing outside",
    { timeout: 30_000 },
    async () => {
      const { code, stdout, stderr } = await run(["inspect", "deep", "--html", "pages/balance.html"], { cwd: root });
      expect(code, stderr).toBe(0);
      expect(stdout).toMatch(/^gate: switch$/m);
      expect(stdout).toMatch(/^bytes_per_expert_parameter: 16\.\d+$/m);
      expect(stdout).toMatch(
        /^step {2}CV\(Importance\) {2}CV\(Load\) {2}max\/mean load {2}entropy {2}dropped {2}rows without expert {2}unused experts$/m,
      );
      expect(stdout).toMatch(/^20 .*%/m);
      expect(stdout).toMatch(/^expert {2}rows in the last step {2}of the mean {2}steps without rows$/m);
      const page = readFileSync(join(root, "pages/balance.html"), "utf8");
      expect(page.match(/<svg/g)).toHaveLength(2);
      expect(page.replaceAll("http://www.w3.org/", "")).not.toMatch(/https?:|<script|<link|<img|url\((?!#)|@import|src=/i);
      expect(page).not.toMatch(/NaN|undefined/);
      expect(page).toContain("Balance of MoE-16-h, gate switch");
    },
  );
});
