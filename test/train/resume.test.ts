/** A run that was interrupted and resumed equals one that was not, byte for byte: every gate, flat and hierarchical, with what it keeps between steps. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { GATE_NAMES } from "#sparsegate/moe/gates/index.js";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { loadCheckpoint } from "#sparsegate/train/checkpoint.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { loadModel, openCheckpoint } from "#sparsegate/train/restore.js";
import { train } from "#sparsegate/train/trainer.js";
import { sentences, traces } from "../cli/helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-resume-"));
afterAll(() => {
  defaultBackend().dispose();
  rmSync(root, { recursive: true });
});

const text = { train: sentences(120), valid: sentences(10, 2) };
const run = join(root, "run");

/** Six steps in the same folder, or three of them; then what is left of the rest. */
async function sixSteps(
  options: Record<string, unknown>,
  { interrupt }: { interrupt: boolean },
): Promise<ReturnType<typeof traces>> {
  rmSync(run, { recursive: true, force: true });
  const config = checkConfig(
    {
      train: "(in memory)",
      tokenizer: "words",
      hidden_size: 8,
      batch_size: 4,
      time_steps: 6,
      max_steps: 6,
      eval_steps: 4,
      logging_steps: 2,
      learning_rate: 0.05,
      output_dir: run,
      ...options,
    },
    "the test",
  );
  const stop = new AbortController();
  const onStep = (step: number): void => {
    if (interrupt && step === 3) stop.abort();
  };
  const first = await train(config, text, { signal: stop.signal, onStep });
  first.model.dispose();
  expect(first.finished).toBe(!interrupt);
  if (interrupt) {
    const second = await train(config, text, { resume: run });
    expect(second.steps).toBe(6);
    second.model.dispose();
  }
  return traces(run);
}

/** Everything that keeps something from step to step: biases that move, thresholds that learn, counters, noise, policies, dropped rows. */
const cases: Record<string, unknown>[] = [
  ...GATE_NAMES.map((gate) => ({ gate, model: "MoE-8" })),
  ...GATE_NAMES.map((gate) => ({
    gate,
    model: "MoE-16-h",
    branching: 4,
    ...(gate === "sigmoid" ? { bias_update_rate: 0.1 } : {}),
  })),
  { gate: "sigmoid", model: "MoE-8", top_k: 2, bias_update_rate: 0.1, shared_experts: 1 },
  { gate: "gshard", model: "MoE-16-h", branching: 4, secondary_gate: "switch", capacity_factor: 1, z_loss_weight: 0.01 },
  { model: "MoE-8", capacity_factor: 0.5, expert_dropout: 0.3, expert_activation: "swiglu", expert_bias: true, expert_layers: 2 },
  { model: "MoE-8", recompute_experts: true, expert_dropout: 0.3, factored_experts: true },
];

describe("three steps, an interruption and three more are six steps, byte for byte", () => {
  test.each(cases)("%j", async (options) => {
    const whole = await sixSteps(options, { interrupt: false });
    const inParts = await sixSteps(options, { interrupt: true });
    expect(Object.keys(whole.files)).toContain("model.safetensors");
    expect(inParts.metrics).toEqual(whole.metrics);
    expect(inParts.files).toEqual(whole.files);
  });
});

test("the biases of a sigmoid gate, which no gradient moves, are in the checkpoint and come back with the model", async () => {
  await sixSteps({ gate: "sigmoid", model: "MoE-8", top_k: 2, bias_update_rate: 0.1 }, { interrupt: false });
  const saved = loadCheckpoint(join(run, "checkpoint-6")).model.read("moe.gate.bias");
  // Six steps of ±0.1, or 0 where an expert had just its share.
  expect(saved.some((b) => Math.abs(b) > 0.05)).toBe(true);
  for (const b of saved) expect(Math.abs(b * 10 - Math.round(b * 10))).toBeLessThan(1e-4);
  const { model } = loadModel(openCheckpoint("the test", run));
  expect(model.namedState().get("moe.gate.bias")!.dataSync()).toEqual(saved);
  expect([...model.namedParameters().keys()]).not.toContain("moe.gate.bias");
  model.dispose();
});

describe("a checkpoint cannot be resumed as another model", () => {
  const changes: [Record<string, unknown>, RegExp][] = [
    [{ gate: "top-k" }, /gate \(--gate\) "noisy-top-k"/],
    [{ top_k: 2 }, /top_k \(--top-k\) 4/],
    [{ expert_activation: "gelu" }, /expert_activation \(--expert-activation\) "relu"/],
    [{ expert_layers: 2 }, /expert_layers/],
    [{ expert_bias: true }, /expert_bias/],
    [{ shared_experts: 1 }, /shared_experts/],
    [{ branching: 2 }, /branching \(--branching\) not set/],
  ];
  test.each(changes)("%j", async (change, says) => {
    await sixSteps({ model: "MoE-8" }, { interrupt: false });
    await expect(sixStepsAgain(change)).rejects.toThrow(says);
  });

  test("but as the same, said in other words", async () => {
    await sixSteps({ model: "MoE-8" }, { interrupt: false });
    await expect(sixStepsAgain({ top_k: 4, importance_weight: 0.1, gate: "noisy-top-k", expert_hidden_size: 16 })).resolves.toBe(
      7,
    );
  });

  async function sixStepsAgain(change: Record<string, unknown>): Promise<number> {
    const { config } = openCheckpoint("the test", run);
    const { model, steps } = await train(checkConfig({ ...config, max_steps: 7, ...change }, "the test"), text, { resume: run });
    model.dispose();
    return steps;
  }
});
