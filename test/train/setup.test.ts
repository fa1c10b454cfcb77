/** What a configuration's options make: the learning rates of each schedule, at points worked out by hand. */

import { expect, test } from "vitest";
import { checkConfig } from "#sparsegate/train/config.js";
import { makeOptimizer, makeSchedule } from "#sparsegate/train/setup.js";
import { tensor, zeros } from "#sparsegate/tensor/index.js";

const base = { train: "-", learning_rate: 0.8, max_steps: 13, warmup_steps: 2, decay_hold_steps: 2, decay_every_steps: 3, decay_factor: 0.5 };

test.each([
  // Rises over 2 steps, stays for 2, then 0.8·√(4/16).
  ["inverse-sqrt", [0.4, 0.8, 0.8, 0.8], 0.4],
  // After them falls through the 10 steps that are left to 0 at the 14th; nothing is left at the 16th.
  ["linear", [0.4, 0.8, 0.8, 0.8], 0],
  ["constant", [0.8, 0.8, 0.8, 0.8], 0.8],
  // Two steps whole, then half of what it was every three: at the 16th for the fifth time.
  ["step", [0.8, 0.8, 0.4, 0.4], 0.8 / 2 ** 5],
])("schedule %s, with what it takes of the options", (schedule, first, sixteenth) => {
  const rate = makeSchedule(checkConfig({ ...base, schedule }, "the test"));
  for (const [i, want] of first.entries()) expect(rate(i + 1)).toBeCloseTo(want, 12);
  expect(rate(16)).toBeCloseTo(sixteenth, 12);
  if (schedule === "linear") expect(rate(9)).toBeCloseTo(0.4, 12);
});

test("weight decay takes rate × weight_decay of a parameter away at each step, of the experts at their own rate", () => {
  const config = checkConfig({ ...base, weight_decay: 0.25, expert_learning_rate_scale: 0.5 }, "the test");
  const parameters = new Map(["softmax.weight", "moe.experts.weight"].map((name) => [name, tensor([4])]));
  const optimizer = makeOptimizer(config, parameters);
  for (const p of parameters.values()) p.grad = { value: zeros([1]) };
  optimizer.step(0.8);
  expect(parameters.get("softmax.weight")!.dataSync()[0]).toBeCloseTo(4 - 0.8 * 0.25 * 4, 6);
  expect(parameters.get("moe.experts.weight")!.dataSync()[0]).toBeCloseTo(4 - 0.4 * 0.25 * 4, 6);
});

test("weight decay is refused with an optimiser that has none", () => {
  expect(() => checkConfig({ ...base, optimizer: "sgd", weight_decay: 0.1 }, "the test")).toThrow(/expected weight_decay .* to be 0 with --optimizer sgd, got 0\.1/);
});
