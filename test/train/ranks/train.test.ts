/** The same seed, text and global batch on 1, 2, 3 and 4 ranks: the same losses and parameters. Checkpoints do not say how many ranks wrote them. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { communicator, runRanks, type Communicator, type Pending } from "#sparsegate/comm/index.js";
import { add, backward, keep, mean, scope, tensor, zeros, type Tensor } from "#sparsegate/tensor/index.js";
import { record } from "#sparsegate/tensor/tape.js";
import { loadCheckpoint, type TensorFiles } from "#sparsegate/train/checkpoint.js";
import { GradientSums } from "#sparsegate/train/ranks.js";
import { sentences } from "../../cli/helpers.js";
import { mpi, mpiruns, type Mpirun } from "../../comm/helpers.js";
import run, { type Trained } from "./programs/train.mjs";

const root = mkdtempSync(join(tmpdir(), "sparsegate-ranks-"));
afterAll(() => rmSync(root, { recursive: true }));

const program = new URL("programs/train.mjs", import.meta.url);
const text = { train: sentences(150), valid: sentences(12, 2), test: sentences(9, 3) };
const STEPS = 50;

const base = {
  train: "(in memory)", tokenizer: "words", model: "MoE-5", hidden_size: 8, batch_size: 6, time_steps: 5, max_steps: STEPS, eval_steps: 25,
  logging_steps: 10, save_steps: 1000, learning_rate: 0.01, dropout: 0.1, max_grad_norm: 1, seed: 4,
}; // prettier-ignore

interface Case {
  config?: object;
  text?: object;
  options?: object;
  stopAt?: number;
}

/** Where a run keeps its files. */
const folder = (name: string): string => join(root, name);
const data = (name: string, { config, ...rest }: Case): object => ({ text, ...rest, config: { ...base, ...config, output_dir: folder(name) } });
const alone = (name: string, given: Case): Promise<Trained> => run(undefined, data(name, given));
const onRanks = (size: number, name: string, given: Case): Promise<Trained[]> => runRanks<Trained>(size, program, data(name, given), { timeout: 60 });
/** Processes of an mpirun. */
async function underMpi(mpirun: Mpirun, size: number, name: string, given: Case): Promise<Trained[]> {
  const { results, text } = await mpi(mpirun, size, "../../train/ranks/programs/train", data(name, given), { options: { timeout: 60 }, env: { SPARSEGATE_THREADS: "1" } });
  expect(results, text).toBeDefined();
  return results as Trained[];
}

function tensors(files: TensorFiles | null): Map<string, number[]> {
  return new Map(files!.names.map((name) => [name, Array.from(files!.read(name))]));
}

const saved = (name: string, step: number) => loadCheckpoint(join(folder(name), `checkpoint-${step}`));

function expectClose(got: readonly number[], expected: readonly number[], relative: number, what: string): void {
  expect(got.length, what).toBe(expected.length);
  for (const [i, value] of expected.entries()) expect(Math.abs(got[i]! - value), `${what}[${i}]: ${got[i]} for ${value}`).toBeLessThanOrEqual(relative * Math.max(Math.abs(value), 1e-6));
}

/** Parameters to 1e-4 of the largest of their tensor. */
function expectSameTensors(got: Map<string, number[]>, expected: Map<string, number[]>): void {
  expect([...got.keys()]).toEqual([...expected.keys()]);
  for (const [name, values] of expected) {
    const scale = values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-6);
    for (const [i, value] of values.entries()) expect(Math.abs(got.get(name)![i]! - value), `${name}[${i}]`).toBeLessThanOrEqual(1e-4 * scale);
  }
}

const kinds: Record<string, Case> = {
  "flat noisy top-k": { config: { top_k: 2 } },
  hierarchical: { config: { model: "MoE-6", branching: 3 } },
  "strictly balanced": { config: { gate: "strictly-balanced", top_k: 2 } },
  "Switch with capacity": { config: { gate: "switch", capacity_factor: 1.1 } },
};

describe.each(Object.keys(kinds))("%s", (kind) => {
  const name = kind.replaceAll(" ", "-");
  let one: Promise<Trained> | undefined;

  const ways = [
    ...[2, 3, 4].map((size) => ({ how: `${size} threads`, go: (to: string) => onRanks(size, to, kinds[kind]!) })),
    ...mpiruns.flatMap((mpirun) => [2, 4].map((size) => ({ how: `${size} processes of ${mpirun.name}`, go: (to: string) => underMpi(mpirun, size, to, kinds[kind]!) }))),
  ];

  test.each(ways)(`on $how: losses of ${STEPS} steps to 1e-5, parameters at the end to 1e-4`, { timeout: 120_000 }, async ({ how, go }) => {
    const single = await (one ??= alone(name, kinds[kind]!));
    const to = `${name}-${how.replaceAll(" ", "-")}`;
    const several = await go(to);
    for (const { steps, evaluations, finished, test } of several) {
      expect(finished).toBe(true);
      for (const key of ["loss", "auxLoss", "gradNorm"] as const) {
        const of = (list: Trained["steps"]): number[] => list.map((step) => step[key]);
        expectClose(of(steps), of(single.steps), key === "loss" ? 1e-5 : 1e-3, key);
      }
      expect(steps.map(({ load }) => load)).toEqual(single.steps.map(({ load }) => load));
      expect(evaluations.map(({ tokens, load }) => [tokens, load])).toEqual(single.evaluations.map(({ tokens, load }) => [tokens, load]));
      expectClose(evaluations.map(({ loss }) => loss), single.evaluations.map(({ loss }) => loss), 1e-5, "evaluation");
      expectClose([test!], [single.test!], 1e-5, "test");
    }
    expect(single.steps[0]!.loss).toBeGreaterThan(single.steps.at(-1)!.loss);
    expectSameTensors(tensors(saved(to, STEPS).model), tensors(saved(name, STEPS).model));
  });
});

describe("checkpoints", () => {
  test("saved on 4 ranks, told to stop on one of them; resumed on 1, 2 and 8: as if never interrupted", async () => {
    const whole = await alone("whole", kinds["flat noisy top-k"]!);
    const first = await onRanks(4, "four", { ...kinds["flat noisy top-k"], stopAt: 23 });
    expect(first.map(({ taken, finished }) => [taken, finished])).toEqual(new Array(4).fill([23, false]));
    const from = join(folder("four"), "checkpoint-23");
    for (const size of [1, 2, 8]) {
      const given = { ...kinds["flat noisy top-k"], options: { resume: from } };
      const results = size === 1 ? [await alone("on-1", given)] : await onRanks(size, `on-${size}`, given);
      for (const { steps } of results) expectClose(steps.map(({ loss }) => loss), whole.steps.slice(23).map(({ loss }) => loss), 1e-5, `loss on ${size}`);
      const [got, expected] = [saved(`on-${size}`, STEPS), saved("whole", STEPS)];
      expectSameTensors(tensors(got.model), tensors(expected.model));
      expect([...tensors(got.optimizer)].map(([name, { length }]) => [name, length])).toEqual([...tensors(expected.optimizer)].map(([name, { length }]) => [name, length]));
      expect(got.state).toMatchObject({ data: expected.state["data"], unused: expected.state["unused"] });
    }
  });

  test("model.safetensors has the same bytes whatever number of ranks wrote it", async () => {
    // Steps so small that no parameter moves: the initial values, each where it belongs.
    const still = { config: { max_steps: 2, learning_rate: 1e-30, schedule: "constant", model: "MoE-7", gate: "top-k", init_scale: 0.1, shared_experts: 1 } };
    await alone("still", still);
    const bytes = (name: string): Buffer => readFileSync(join(folder(name), "checkpoint-2", "model.safetensors"));
    for (const size of [2, 3]) {
      await onRanks(size, `still-${size}`, still);
      expect(bytes(`still-${size}`).equals(bytes("still")), `${size} ranks`).toBe(true);
    }
  });

  test("a damaged part is noticed, whichever rank reads it", async () => {
    const still = { config: { max_steps: 1, model: "MoE-4" } };
    await alone("damaged", still);
    const path = join(folder("damaged"), "checkpoint-1", "model.safetensors");
    const file = readFileSync(path);
    const header = JSON.parse(file.toString("utf8", 8, 8 + Number(file.readBigUInt64LE()))) as Record<string, { data_offsets: [number, number] }>;
    const [, end] = header["moe.experts.inputWeight"]!.data_offsets;
    file[8 + Number(file.readBigUInt64LE()) + end - 3]! ^= 1;
    writeFileSync(path, file);
    const resumed = onRanks(2, "on-damaged", { ...still, config: { ...still.config, max_steps: 2 }, options: { resume: join(folder("damaged"), "checkpoint-1") } });
    await expect(resumed).rejects.toThrow(/tensor moe\.experts\.inputWeight to have the checksum [0-9a-f]{8}, got "[0-9a-f]{8}"/);
  });
});

test("a rank that fails ends all, and leaves the last checkpoint whole", async () => {
  const given = { config: { save_steps: 5 }, killAt: 12 };
  await expect(onRanks(3, "killed", given)).rejects.toThrow(/the test ends this rank/);
  expect(saved("killed", 10).step).toBe(10);
  const resumed = await onRanks(2, "killed", { config: { save_steps: 50 }, options: { resume: folder("killed") } });
  expect(resumed.map(({ taken, finished }) => [taken, finished])).toEqual([[STEPS, true], [STEPS, true]]);
});

test("experts, and what the optimiser keeps for them, are on their rank alone", async () => {
  const results = await onRanks(3, "parts", { config: { max_steps: 1 } });
  const whole = await alone("parts-one", { config: { max_steps: 1 } });
  const expert = 2 * 8 * 16;
  const others = whole.parameters - 5 * expert;
  expect(results.map(({ parameters }) => parameters)).toEqual([others + expert, others + 2 * expert, others + 2 * expert]);
});

describe.each(Object.entries({
  "one running text": { config: { text_mode: "continuous", max_steps: 12, eval_steps: 6 } },
  "no mixture at all": { config: { model: "MoE-1-Wide", max_steps: 12, eval_steps: 6 } },
  "sampled softmax, sigmoid gate, factored moments": {
    config: { sampled_softmax: 12, gate: "sigmoid", top_k: 2, factored_experts: true, beta1: 0, max_steps: 12, eval_steps: 6, shared_experts: 1, expert_dropout: 0.2 },
  },
}))("%s", (kind, given) => {
  test("is the same on 2 ranks", async () => {
    const one = await alone(kind, given);
    for (const { steps, evaluations, test } of await onRanks(2, `${kind} on 2`, given)) {
      expectClose(steps.map(({ loss }) => loss), one.steps.map(({ loss }) => loss), 1e-5, "loss");
      expectClose([...evaluations.map(({ loss }) => loss), test!], [...one.evaluations.map(({ loss }) => loss), one.test!], 1e-5, "evaluations");
    }
    expectSameTensors(tensors(saved(`${kind} on 2`, 12).model), tensors(saved(kind, 12).model));
  });
});

test("alone, gradients are the sums already: nothing is copied", async () => {
  const comm = await communicator();
  const p = keep(tensor([1, 2, 3, 4, 5, 6], [3, 2]));
  const grad = { value: keep(tensor([1, 1], [1, 2])), rows: keep(tensor([2], [1], "int32")) };
  p.grad = grad;
  const sums = new GradientSums(comm);
  sums.add(p);
  sums.finish();
  expect(p.grad).toBe(grad);
});

test("a bucket of gradients is under way as soon as it is complete, while others are still computed", () => {
  const events: string[] = [];
  const comm = {
    size: 2,
    allReduceStart: (bucket: Float32Array): Pending => {
      events.push(`${bucket.length} on the way`);
      // The other rank's gradients are the same.
      return { done: true, wait: () => bucket.set(bucket.map((value) => 2 * value)) };
    },
  } as unknown as Communicator;
  const filled = (size: number, value: number): Tensor => tensor(new Float32Array(size).fill(value), [size]);
  const leaf = (size: number): Tensor => Object.assign(keep(filled(size, 1)), { requiresGrad: true });
  // The first and the last fill a bucket alone; those between are one together.
  const parameters = [2 ** 20, 5, 7, 2 ** 20].map(leaf);
  const sums = new GradientSums(comm);
  scope(() => {
    const y = parameters.reduce((sum, p) => record("sum", add(sum, mean(p)), [sum, p], (dy, [first]) => {
      events.push(`gradient of ${p.size}`);
      return [first ? dy : undefined, filled(p.size, p.size)];
    }), zeros([])); // prettier-ignore
    backward(y, { onComplete: (p) => sums.add(p) });
    events.push("way back ended");
    sums.finish();
  });
  expect(events).toEqual([
    `gradient of ${2 ** 20}`, `${2 ** 20} on the way`, "gradient of 7", "gradient of 5", `gradient of ${2 ** 20}`, "12 on the way", `${2 ** 20} on the way`, "way back ended",
  ]); // prettier-ignore
  for (const p of parameters) {
    expect(p.grad!.value.dataSync().every((value) => value === 2 * p.size)).toBe(true);
    p.zeroGrad();
  }
});
