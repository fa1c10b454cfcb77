/** A layer on p ranks gives what it gives on one: outputs, losses, and above all gradients, which elsewhere came out p times too large (reference/pitfalls.md, 12). */

import { describe, expect, test } from "vitest";
import { runRanks } from "#sparsegate/comm/index.js";
import layer from "./programs/layer.mjs";

interface Result {
  here: number[];
  width: number;
  output: number[];
  dx: number[];
  auxLoss: number;
  importance: number[];
  load: number[];
  offsets: number[];
  /** first: where the part that is here begins, of the whole */
  gradients: Record<string, { first?: number; dense: number[] }>;
  state: Record<string, number[]>;
  parameters: number;
}

const program = new URL("programs/layer.mjs", import.meta.url);
const onRanks = (size: number, data: object): Promise<Result[]> => runRanks<Result>(size, program, data, { timeout: 30 });
const alone = (data: object): Result => layer(undefined, data) as Result;

function expectClose(got: readonly number[], expected: readonly number[], tolerance: number, what: string): void {
  expect(got.length, what).toBe(expected.length);
  const scale = Math.max(1e-3, ...expected.map(Math.abs));
  for (const [i, value] of expected.entries()) expect(Math.abs(got[i]! - value), `${what}[${i}]: ${got[i]} for ${value}`).toBeLessThanOrEqual(tolerance * scale);
}

/** Rows of all ranks in the order of the whole batch. */
function whole(results: readonly Result[], of: (result: Result) => number[]): number[] {
  const rows = results.flatMap((result) => result.here.map((row, i) => ({ row, values: of(result).slice(i * result.width, (i + 1) * result.width) })));
  return rows.sort((a, b) => a.row - b.row).flatMap(({ values }) => values);
}

/** Experts' gradients one after the other; those of all else added up. */
function gradients(results: readonly Result[], like: Result): Record<string, number[]> {
  return Object.fromEntries(
    Object.entries(like.gradients).map(([name, { dense }]) => {
      const total = new Array<number>(dense.length).fill(0);
      for (const { gradients } of results) {
        const { first = 0, dense: part } = gradients[name] ?? { dense: [] };
        const at = Math.round(first * dense.length);
        for (const [i, v] of part.entries()) total[at + i]! += v;
      }
      return [name, total];
    }),
  );
}

function expectSame(results: readonly Result[], one: Result, tolerance: number): void {
  expectClose(whole(results, ({ output }) => output), one.output, tolerance, "output");
  expectClose(whole(results, ({ dx }) => dx), one.dx, tolerance, "gradient of x");
  for (const result of results) {
    for (const key of ["importance", "load", "offsets"] as const) expectClose(result[key], one[key], tolerance, key);
    expectClose([result.auxLoss], [one.auxLoss], tolerance, "auxLoss");
    for (const [name, values] of Object.entries(one.state)) expectClose(result.state[name]!, values, tolerance, name);
  }
  const found = gradients(results, one);
  for (const [name, { dense }] of Object.entries(one.gradients)) {
    expect(dense.some((v) => v !== 0), `${name} has a gradient`).toBe(true);
    expectClose(found[name]!, dense, tolerance, `gradient of ${name}`);
  }
}

/** float64 throughout: what differs is the order of additions. */
const EXACT = 1e-11;

const base = { numExperts: 5, expertHiddenSize: 4 };
const cases: Record<string, object> = {
  "noisy top-k": { options: { ...base, topK: 2 } },
  "noisy top-k with capacity by arrival and z-loss": { options: { ...base, topK: 2, capacityFactor: 0.9, zLossWeight: 0.1 } },
  "noisy top-k with capacity by probability": { options: { ...base, topK: 2, gate: { type: "noisy-top-k", capacityFactor: 0.8, dropPolicy: "probability" } } },
  "strictly balanced": { options: { ...base, topK: 2, gate: "strictly-balanced" } },
  "expert choice": { options: { ...base, topK: 2, gate: "expert-choice" } },
  "Switch with capacity and jitter": { options: { ...base, gate: { type: "switch", capacityFactor: 1, jitter: 0.3 } } },
  "GShard with a random second expert": { options: { ...base, gate: "gshard" } },
  "top-k": { options: { ...base, topK: 2, gate: "top-k" } },
  sigmoid: { options: { ...base, topK: 2, gate: { type: "sigmoid", biasUpdateRate: 0.1 } } },
  "softmax over all": { options: { ...base, gate: "softmax" } },
  hierarchical: { hierarchical: true, options: { numExperts: [5, 2], expertHiddenSize: 4 } },
  "hierarchical, Switch above strictly balanced": { hierarchical: true, options: { numExperts: [5, 3], expertHiddenSize: 4, gate: { type: "switch", jitter: 0.2 }, secondaryGate: "strictly-balanced", topK: [1, 1.5] } },
  "hierarchical with capacities": { hierarchical: true, options: { numExperts: [4, 3], expertHiddenSize: 4, gate: { type: "noisy-top-k", capacityFactor: 1 }, secondaryGate: { type: "gshard", capacityFactor: 1 } } },
  "SwiGLU experts with biases, dropout, recomputation and shared ones": {
    options: { ...base, topK: 2, activation: "swiglu", bias: true, expertDropout: 0.4, recompute: true, sharedExperts: 1, expertHiddenSize: [4, 3] },
  },
};

describe.each([2, 3, 4])("on %i ranks", (size) => {
  test.each(Object.keys(cases))("%s: outputs, losses and gradients are those of one rank to 1e-11", async (name) => {
    const data = cases[name]!;
    expectSame(await onRanks(size, data), alone(data), EXACT);
  });
});

describe("rows and experts in any place", () => {
  const noisy = { options: { ...base, topK: 2 } };

  test("rows that follow each other from rank to rank need no ids", async () => {
    const data = { ...noisy, spread: "blocks" };
    expectSame(await onRanks(3, data), alone(data), EXACT);
  });

  test.each(["noisy-top-k", "strictly-balanced"])("all rows on one rank, none on the others (%s)", async (gate) => {
    const data = { options: { ...base, topK: 2, gate }, spread: "last" };
    expectSame(await onRanks(3, data), alone(data), EXACT);
  });

  test("all rows for one expert, and so for one rank", async () => {
    const data = { options: { ...base, topK: 1, gate: "top-k" }, toOne: true };
    const results = await onRanks(4, data);
    const { offsets } = results[0]!;
    expect(offsets.map((at, e) => (offsets[e + 1] ?? at) - at)).toEqual([0, 42, 0, 0, 0, 0]);
    expectSame(results, alone(data), EXACT);
  });

  test("fewer experts than ranks: some ranks have none", async () => {
    const data = { options: { numExperts: 2, topK: 2, expertHiddenSize: 4 } };
    expectSame(await onRanks(4, data), alone(data), EXACT);
  });

  test("fewer rows than ranks", async () => {
    const data = { ...noisy, rows: 2 };
    expectSame(await onRanks(4, data), alone(data), EXACT);
  });

  test("evaluation, with capacity", async () => {
    const data = { options: { ...base, topK: 2, capacityFactor: 0.7 }, training: false };
    expectSame(await onRanks(2, data), alone(data), EXACT);
  });

  test("float32 on the CPU backend, to 1e-5", async () => {
    const data = { options: { numExperts: 16, topK: 4, expertHiddenSize: 32, expertDropout: 0.2 }, rows: 140, width: 24, backend: "cpu" };
    expectSame(await onRanks(2, data), alone(data), 1e-5);
  });
});

test("experts that are modules exist on their rank alone, under their own names", async () => {
  const data = { options: { numExperts: 5, topK: 2 }, modules: true };
  const results = await onRanks(2, data);
  const one = alone(data);
  expectClose(whole(results, ({ output }) => output), one.output, EXACT, "output");
  const experts = results.map(({ gradients }) => Object.keys(gradients).filter((name) => name.startsWith("experts")));
  expect(experts[0]).toEqual(["experts.modules.0.weight", "experts.modules.0.bias", "experts.modules.1.weight", "experts.modules.1.bias"]);
  expect(experts[1]).toEqual([2, 3, 4].flatMap((i) => [`experts.modules.${i}.weight`, `experts.modules.${i}.bias`]));
  for (const { gradients } of results) for (const [name, { dense }] of Object.entries(gradients)) if (name.startsWith("experts")) expectClose(dense, one.gradients[name]!.dense, EXACT, name);
});

test.each([2, 3])("modules without rows, all of a rank or none there at all, are no rank's way out of the exchange (%i ranks)", async (size) => {
  const data = { options: { numExperts: 2, topK: 1, gate: "top-k" }, modules: true, toOne: true };
  const [results, one] = [await onRanks(size, data), alone(data)];
  for (const key of ["output", "dx"] as const) expectClose(whole(results, (result) => result[key]), one[key], EXACT, key);
  const found = gradients(results, one);
  for (const [name, { dense }] of Object.entries(one.gradients)) expectClose(found[name]!, dense, EXACT, name);
});

test("each rank has the parameters of its experts alone", async () => {
  const results = await onRanks(3, { options: { ...base, topK: 2 } });
  const [gate, expert] = [2 * 6 * 5, 2 * 6 * 4];
  expect(results.map(({ parameters }) => parameters)).toEqual([gate + expert, gate + 2 * expert, gate + 2 * expert]);
});

test("a group of a hierarchical layer stays on one rank", async () => {
  const results = await onRanks(2, { hierarchical: true, options: { numExperts: [3, 2], expertHiddenSize: 4 } });
  for (const name of ["experts.inputWeight", "gate.secondary.weight", "gate.secondary.noiseWeight"])
    expect(results.map(({ gradients }) => gradients[name]!.first), name).toEqual([0, 1 / 3]);
  const [groups, elsewhere] = [2 * 6 * 3, 2 * 6 * 2 + 2 * (2 * 6 * 4)];
  expect(results.map(({ parameters }) => parameters)).toEqual([groups + elsewhere, groups + 2 * elsewhere]);
});

test("a hierarchical gate made elsewhere has the gates of all groups on every rank, and the same gradients", async () => {
  const data = { madeGate: true, options: { numExperts: 6, expertHiddenSize: 4 } };
  const results = await onRanks(3, data);
  expectSame(results, alone(data), EXACT);
  for (const { gradients } of results) expect(gradients["gate.secondary.weight"]!.first).toBeUndefined();
});

test.each(["noisy-top-k", "expert-choice"])("rows of a rank in any order, above groups (%s)", async (gate) => {
  const data = { hierarchical: true, options: { numExperts: [5, 2], expertHiddenSize: 4, gate, secondaryGate: "switch" }, spread: "backwards" };
  expectSame(await onRanks(3, data), alone({ ...data, spread: "blocks" }), EXACT);
});

test("a batch without rows on any rank gives no output and no loss", async () => {
  const results = await onRanks(2, { options: { ...base, topK: 2 }, rows: 0 });
  for (const { output, auxLoss } of results) expect([output, auxLoss]).toEqual([[], 0]);
});

test("ids that are no numbering of all rows are refused", async () => {
  const ranks = runRanks(2, new URL("programs/twice.mjs", import.meta.url), undefined, { timeout: 30, onOutput: () => {} });
  await expect(ranks).rejects.toThrow("MoE.forward: expected rowIds that number the 2 rows of all ranks, each once, got 0.");
});
