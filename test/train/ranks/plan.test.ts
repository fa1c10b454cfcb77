/** What `plan` says of ranks: the bytes that a run is measured to send, to 1%, and figures reckoned by hand. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { runRanks } from "#sparsegate/comm/index.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { planRanks } from "#sparsegate/train/plan-ranks.js";
import { Draw } from "../../backend/helpers.js";
import { run as command, sentences } from "../../cli/helpers.js";
import type { Trained } from "./programs/train.mjs";

const root = mkdtempSync(join(tmpdir(), "sparsegate-plan-ranks-"));
afterAll(() => rmSync(root, { recursive: true }));

/** Words of the text, the end of a sentence and the unknown word: few, so that each rank meets them all in a batch. */
const WORDS = 8;
const VOCABULARY = WORDS + 2;
const base = {
  train: "(in memory)", tokenizer: "words", hidden_size: 16, batch_size: 12, time_steps: 20, max_steps: 21, logging_steps: 1000, save_steps: 1000, learning_rate: 1e-4,
}; // prettier-ignore

const cases = {
  "flat noisy top-k": { model: "MoE-12", top_k: 2 },
  hierarchical: { model: "MoE-12", branching: 6 },
  "hierarchical, Switch in the groups": { model: "MoE-12", branching: 6, secondary_gate: "switch" },
  "strictly balanced": { model: "MoE-12", gate: "strictly-balanced", top_k: 2 },
  "shared experts": { model: "MoE-12", gate: "switch", shared_experts: 1 },
  "no mixture": { model: "LSTM" },
};

test.each(Object.entries(cases).flatMap(([name, options]) => [2, 3].map((size) => ({ name, size, options }))))("$name on $size ranks sends what plan says, to 1%", async ({ name, size, options }) => {
  const config = { ...base, ...options, output_dir: join(root, `${name}-${size}`) };
  const results = await runRanks<Trained>(size, new URL("programs/train.mjs", import.meta.url), { config, text: { train: sentences(300, 1, WORDS) } }, { timeout: 60 });
  const sent = (step: number): number => results.reduce((sum, { steps }) => sum + steps[step]!.sent, 0);
  const measured = (sent(20) - sent(0)) / 20 / size;
  const planned = planRanks(checkConfig(config, "the test"), VOCABULARY, size).sent.all;
  expect(Math.abs(measured / planned - 1), `${measured} for ${planned}`).toBeLessThan(0.01);
});

test("experts are a rank's share, and a hidden layer gives its width of multiply-adds for each number sent", () => {
  const config = checkConfig({ ...base, model: "MoE-8", expert_hidden_size: 40 }, "the test");
  const [one, four] = [planRanks(config, 100, 1), planRanks(config, 100, 4, 2)];
  expect(one.sent.all).toBe(0);
  expect(one.moeParameters).toBe(8 * 2 * 16 * 40);
  expect(four.moeParameters).toBe(2 * 2 * 16 * 40);
  expect(one.parameters - four.parameters).toBe(6 * 2 * 16 * 40);
  expect(four.opsPerNumber).toBe(40);
  expect(four.bytesOfHost).toBe(2 * four.bytes);
  // Of three others, two are on the other host.
  expect(four.sentByHost).toBeCloseTo((2 * four.sent.all * 2) / 3, 6);
  expect(4 * four.flops).toBe(one.flops);
});

test("gradients by rows have as many rows as a Zipfian text has words, counted by drawing one", () => {
  const [V, D, candidates, rows] = [1000, 16, 120, 120];
  const config = checkConfig({ ...base, model: "LSTM", sampled_softmax: candidates }, "the test");
  const draw = new Draw(3);
  // Zipf's law by its own distribution function: P(word < w) = ln(w + 1) / ln(V + 1).
  const word = (): number => Math.floor((V + 1) ** draw.next()) - 1;
  let [used, classes] = [0, 0];
  const TRIALS = 400;
  for (let seed = 0; seed < TRIALS; seed++) {
    used += new Set(Array.from({ length: rows }, word)).size / TRIALS;
    const sampled = new Set(Array.from({ length: rows }, word));
    const found = new Set<number>();
    while (found.size < candidates) found.add(word());
    classes += new Set([...sampled, ...found]).size / TRIALS;
  }
  const { parameters } = planRanks(config, V, 1);
  const dense = parameters - V * D - V * (D + 1);
  // Of two ranks each sends half of the sums' parts and its part of the sums: as many numbers as there are.
  const expected = 4 * (dense + used * (D + 1) + 1 + classes * (D + 3) + 2);
  expect(Math.abs(planRanks(config, V, 2).sent.gradients / expected - 1)).toBeLessThan(0.005);
});

test("the gates of a hierarchical mixture's groups are a rank's share", () => {
  const config = checkConfig({ ...base, model: "MoE-12", branching: 6 }, "the test");
  const [one, two] = [planRanks(config, 100, 1), planRanks(config, 100, 2)];
  // Of six groups of two experts, three: their experts, and the matrices of gate and noise.
  expect(one.parameters - two.parameters).toBe(one.moeParameters / 2 + 3 * 2 * 16 * 2);
});

test("sparsegate plan needs no text, and refuses more hosts than ranks", async () => {
  const outcome = await command(["plan", "--model", "MoE-256", "--ranks", "4", "--hosts", "2", "--json"], { cwd: root });
  expect(outcome.code, outcome.stderr).toBe(0);
  expect(JSON.parse(outcome.stdout)).toMatchObject({ model: "MoE-256", ranks: 4, hosts: 2, moe_parameters_per_rank: 64 * 2 * 128 * 256, expert_ops_per_number: 256 });
  const refused = await command(["plan", "--ranks", "2", "--hosts", "3"], { cwd: root });
  expect(refused.code).toBe(1);
  expect(refused.stderr).toMatch(/^plan: expected hosts \(--hosts\)/);
});
