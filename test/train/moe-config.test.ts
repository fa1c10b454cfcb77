/** Options of a mixture, from the configuration to the layer: each reaches what it is for, defaults are the gate's own, and what would do nothing is refused. */

import { afterAll, describe, expect, test } from "vitest";
import { ConfigError } from "#sparsegate/core/errors.js";
import { LanguageModel } from "#sparsegate/models/language-model.js";
import { TranslationModel } from "#sparsegate/models/translation-model.js";
import type { RouterGate } from "#sparsegate/moe/gates/gate.js";
import { HierarchicalGate } from "#sparsegate/moe/gates/hierarchical.js";
import { GATE_NAMES } from "#sparsegate/moe/gates/index.js";
import type { FeedForwardExperts } from "#sparsegate/moe/feed-forward.js";
import type { MoE } from "#sparsegate/moe/layer.js";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { checkConfig, resolveConfig } from "#sparsegate/train/config.js";
import { tensor } from "#sparsegate/tensor/index.js";
import { keep } from "#sparsegate/tensor/scope.js";
import { makeOptimizer, modelConfig } from "#sparsegate/train/setup.js";
import { isTranslation, translationModelConfig } from "#sparsegate/train/translation/config.js";

afterAll(() => defaultBackend().dispose());

/** The mixture that options make. */
function moe(options: Record<string, unknown>): MoE {
  const model = new LanguageModel(
    modelConfig(checkConfig({ train: "x", hidden_size: 8, model: "MoE-8", ...options }, "the test"), 5),
  );
  return model.moe!;
}
const gate = (options: Record<string, unknown>): RouterGate => moe(options).gate as RouterGate;
const refusal = (options: Record<string, unknown>): string => {
  try {
    moe(options);
  } catch (error) {
    if (error instanceof ConfigError) return error.message;
    throw error;
  }
  return "";
};

/** Takes a step at rate 0 for the parameters of which the name starts so. @returns how many there are, having found that they alone stood still */
function stillParameters(options: Record<string, unknown>, ...prefixes: string[]): number {
  const config = checkConfig({ train: "x", hidden_size: 8, optimizer: "sgd", ...options }, "the test");
  const model = isTranslation(config) ? new TranslationModel(translationModelConfig(config, 5)) : new LanguageModel(modelConfig(config, 5));
  const optimizer = makeOptimizer(config, model.namedParameters());
  const before = new Map([...model.namedParameters()].map(([key, p]) => [key, p.dataSync().slice()]));
  for (const p of model.parameters()) p.grad = { value: keep(tensor(new Float32Array(p.size).fill(1), p.shape)) };
  optimizer.step(0.5);
  const still = [...model.namedParameters()].filter(([key, p]) => p.dataSync().every((value, i) => value === before.get(key)![i]));
  expect(still.map(([key]) => key)).toEqual([...before.keys()].filter((key) => prefixes.some((prefix) => key.startsWith(prefix))));
  return still.length;
}

test.each(["MoE-8", "MoE-8-h"])("gate_learning_rate_scale slows the gates of %s, and nothing else", (model) => {
  // Two groups of four: with one expert a group there would be nothing to choose.
  const branching = model.endsWith("-h") ? { branching: 2 } : {};
  expect(stillParameters({ model, gate_learning_rate_scale: 0, ...branching }, "moe.gate.")).toBe(model.endsWith("-h") ? 4 : 2);
});

test.each([
  ["MoE-8", "moe.experts."],
  ["MoE-8-h", "moe.experts."],
  ["MoE-1-Wide", "dense."],
])("expert_learning_rate_scale changes the rate of the experts of %s, and of nothing else", (model, prefix) => {
  const branching = model.endsWith("-h") ? { branching: 2 } : {};
  expect(stillParameters({ model, expert_learning_rate_scale: 0, ...branching }, prefix)).toBe(2);
});

test.each([
  [{ gate_learning_rate_scale: 0 }, ["encoderMiddle.gate.", "decoderMiddle.gate."], 4],
  [{ expert_learning_rate_scale: 0, shared_experts: 1 }, ["encoderMiddle.experts.", "encoderMiddle.shared.", "decoderMiddle.experts.", "decoderMiddle.shared."], 8],
  [{ expert_learning_rate_scale: 0, model: "MoE-1-Wide" }, ["encoderMiddle.", "decoderMiddle."], 4],
])("a translation model learns likewise with %j", (options, prefixes, count) => {
  expect(stillParameters({ task: "translation", train_target: "y", model: "MoE-8", ...options }, ...prefixes)).toBe(count);
});

describe("each option", () => {
  /** Options of a gate, and the properties it has from them. */
  const own: [options: Record<string, unknown>, properties: Record<string, unknown>][] = [
    [
      { gate: "switch", aux_loss_weight: 0.3, jitter: 0.2 },
      { auxLossWeight: 0.3, jitter: 0.2 },
    ],
    [
      {
        gate: "gshard",
        aux_loss_weight: 0.3,
        second_policy: "threshold",
        eval_second_policy: "all",
        second_threshold: 0.4,
        eval_second_threshold: 0.5,
      },
      { auxLossWeight: 0.3, secondPolicy: "threshold", evalSecondPolicy: "all", secondThreshold: 0.4, evalSecondThreshold: 0.5 },
    ],
    [
      { gate: "top-k", aux_loss_weight: 0, top_k: 3 },
      { auxLossWeight: 0, topK: 3 },
    ],
    [
      { gate: "sigmoid", bias_update_rate: 0.5, gate_scale: 2.5 },
      { biasUpdateRate: 0.5, scale: 2.5 },
    ],
    [{ gate: "strictly-balanced", threshold_weight: 0.7 }, { thresholdWeight: 0.7 }],
    [
      {
        importance_weight: 0.6,
        load_weight: 0.4,
        z_loss_weight: 0.001,
        capacity_factor: 1.5,
        eval_capacity_factor: 3,
        drop_policy: "probability",
      },
      {
        importanceWeight: 0.6,
        loadWeight: 0.4,
        zLossWeight: 0.001,
        capacity: { capacityFactor: 1.5, evalCapacityFactor: 3, dropPolicy: "probability" },
      },
    ],
  ];
  test.each(own)("of %j reaches the gate", (options, properties) => {
    expect(gate(options)).toMatchObject(properties);
    // And would not be there without it.
    const bare = gate({ gate: options["gate"] ?? "noisy-top-k" });
    for (const [name, value] of Object.entries(properties)) expect(bare[name as keyof RouterGate], name).not.toEqual(value);
  });

  test("of experts reaches them", () => {
    const { experts, shared } = moe({
      expert_hidden_size: 12,
      expert_layers: 3,
      expert_activation: "swiglu",
      expert_bias: true,
      expert_dropout: 0.25,
      shared_experts: 2,
      recompute_experts: true,
    }) as unknown as { experts: FeedForwardExperts; shared: FeedForwardExperts };
    for (const [part, width] of [
      [experts, 12],
      [shared, 24],
    ] as const) {
      expect(part).toMatchObject({ activation: "swiglu", expertDropout: 0.25, recompute: true });
      expect(part.inputWeight.shape.slice(1)).toEqual([8, width]);
      expect(part.hiddenWeights.map(({ shape }) => shape.slice(1))).toEqual([
        [width, width],
        [width, width],
      ]);
      expect(part.hiddenBiases).toHaveLength(2);
    }
  });

  test("of a hierarchical model reaches the level it is of: a capacity the experts', losses the whole", () => {
    const both = moe({
      model: "MoE-24-h",
      branching: 6,
      gate: "gshard",
      secondary_gate: "top-k",
      secondary_top_k: 3,
      aux_loss_weight: 0.2,
      second_policy: "none",
      capacity_factor: 1.25,
      importance_weight: 0.3,
      z_loss_weight: 0.01,
    }).gate as HierarchicalGate;
    expect(both).toBeInstanceOf(HierarchicalGate);
    expect(both.primary).toMatchObject({
      numExperts: 6,
      topK: 2,
      secondPolicy: "none",
      auxLossWeight: 0.2,
      zLossWeight: 0.01,
      capacity: {},
    });
    expect(both.secondary).toMatchObject({
      numExperts: 4,
      numGroups: 6,
      topK: 3,
      auxLossWeight: 0.2,
      zLossWeight: 0.01,
      capacity: { capacityFactor: 1.25 },
    });
    expect(both).toMatchObject({ numExperts: 24, importanceWeight: 0.3 });
  });
});

describe("what is left out", () => {
  test("is the gate's: experts a token uses, and weights of its losses", () => {
    const found = Object.fromEntries(
      GATE_NAMES.map((name) => {
        const { topK, importanceWeight, loadWeight } = gate({ gate: name, model: "MoE-16" }) as RouterGate & { topK: number };
        return [name, [topK, importanceWeight, loadWeight]];
      }),
    );
    expect(found).toEqual({
      "noisy-top-k": [4, 0.1, 0.1], // Shazeer et al. 2017, App. C
      softmax: [16, 0, 0],
      "strictly-balanced": [4, 0, 0],
      switch: [1, 0, 0],
      gshard: [2, 0, 0],
      "expert-choice": [2, 0, 0],
      "top-k": [2, 0, 0],
      sigmoid: [8, 0, 0],
    });
  });

  test("is the paper's for hierarchical models: sixteen groups, two experts at each level (App. C)", () => {
    const { primary, secondary } = moe({ model: "MoE-64-h" }).gate as HierarchicalGate;
    expect([primary.numExperts, secondary.numExperts]).toEqual([16, 4]);
    expect([primary, secondary].map((level) => (level as RouterGate & { topK: number }).topK)).toEqual([2, 2]);
  });

  test("of the second level is as at the first, where the gate lets one choose", () => {
    const levels = (options: Record<string, unknown>): number[] => {
      const { primary, secondary } = moe({ model: "MoE-16-h", branching: 4, ...options }).gate as HierarchicalGate;
      return [primary, secondary].map((level) => (level as RouterGate & { topK: number }).topK);
    };
    expect(levels({ top_k: 3 })).toEqual([3, 3]);
    expect(levels({ top_k: 3, secondary_top_k: 1 })).toEqual([3, 1]);
    expect(levels({ top_k: 3, secondary_gate: "switch" })).toEqual([3, 1]);
    expect(levels({ gate: "softmax", secondary_gate: "noisy-top-k" })).toEqual([4, 2]);
  });

  test("--num-experts stands for the model of so many", () => {
    expect(checkConfig({ train: "x", num_experts: 64 }, "the test").model).toBe("MoE-64");
    expect(checkConfig({ train: "x", num_experts: 64, branching: 8 }, "the test").model).toBe("MoE-64-h");
    expect(checkConfig({ train: "x", num_experts: 64, model: "MoE-64-h" }, "the test").model).toBe("MoE-64-h");
    expect(checkConfig({ train: "x" }, "the test").model).toBe("MoE-32");
    expect(() => resolveConfig({ flags: { train: "x", num_experts: 64, model: "MoE-32" } })).toThrow(
      "--num-experts: expected left out, or that of --model MoE-32, got 64. The name of a model says its number of experts.",
    );
  });

  test("is not written into the configuration, so that it may be used for another gate", () => {
    const config = checkConfig({ train: "x", model: "MoE-64-h" }, "the test");
    for (const key of ["num_experts", "branching", "top_k", "importance_weight", "load_weight", "jitter"])
      expect(config).not.toHaveProperty(key);
    expect(config).toMatchObject({
      gate: "noisy-top-k",
      z_loss_weight: 0,
      expert_layers: 1,
      expert_activation: "relu",
      expert_bias: false,
    });
  });
});

describe("what would do nothing is refused", () => {
  const cases: [options: Record<string, unknown>, says: string | RegExp][] = [
    [
      { jitter: 0.1 },
      "the test: expected jitter (--jitter) to be left out with gate noisy-top-k, got 0.1. It is an option of switch.",
    ],
    [
      { gate: "switch", second_policy: "all" },
      /second_policy .* left out with gate switch, got "all"\. It is an option of gshard\./,
    ],
    [{ gate: "gshard", bias_update_rate: 0.1 }, /bias_update_rate .* option of sigmoid\./],
    [{ gate: "sigmoid", aux_loss_weight: 0.1 }, /aux_loss_weight .* option of switch, gshard, top-k\./],
    [
      { gate: "switch", load_weight: 0.1 },
      /load_weight .* left out or 0 with gate switch, got 0\.1\. The load loss needs the smooth load of noisy-top-k\./,
    ],
    [{ gate: "strictly-balanced", capacity_factor: 2 }, /capacity_factor .* equal share: nothing overflows\./],
    [{ gate: "expert-choice", drop_policy: "arrival" }, /drop_policy .* equal share: nothing overflows\./],
    [{ drop_policy: "arrival" }, /drop_policy .* left out without a capacity/],
    [{ model: "LSTM", gate: "switch" }, /gate .* left out for LSTM, which has no experts to choose from/],
    [{ model: "4xLSTM", expert_learning_rate_scale: 2 }, /expert_learning_rate_scale .* left out for 4xLSTM/],
    [{ model: "MoE-1-Wide", shared_experts: 1 }, /shared_experts .* left out for MoE-1-Wide/],
    [
      { secondary_gate: "switch" },
      'secondary gate (--secondary-gate): expected a hierarchical model, MoE-<experts>-h, got "MoE-8".',
    ],
    [{ secondary_top_k: 2 }, /^topK of a group \(--secondary-top-k\): expected a hierarchical model/],
    // Noise at one level alone makes no smooth load of the whole.
    [{ model: "MoE-64-h", secondary_gate: "switch", load_weight: 0.1 }, /load_weight .* gates noisy-top-k and switch/],
  ];
  test.each(cases)("%j", (options, says) => {
    if (typeof says === "string") expect(refusal(options)).toBe(says);
    else expect(refusal(options)).toMatch(says);
  });

  test("but an option of one of two gates is welcome, and so is what a saved configuration says of every model", () => {
    expect(refusal({ model: "MoE-64-h", secondary_gate: "switch", jitter: 0.1 })).toBe("");
    expect(refusal({ gate: "switch", load_weight: 0 })).toBe("");
    const saved = checkConfig({ train: "x", model: "LSTM", hidden_size: 8 }, "the test");
    expect(() => checkConfig(saved, "config.json")).not.toThrow();
  });
});

describe("what cannot be is refused", () => {
  test.each([
    [
      { gate: "switch", top_k: 4 },
      "topK (--top-k): expected 1 with gate switch, which always takes as many, got 4. Leave it out, or take another gate.",
    ],
    [
      { gate: "softmax", top_k: 4 },
      "topK (--top-k): expected 8 with gate softmax, which always takes as many, got 4. Leave it out, or take another gate.",
    ],
    [
      { model: "MoE-64-h", branching: 7 },
      "branching (--branching): expected a divisor of the 64 experts of MoE-64-h, got 7. It is the number of groups, which have as many experts each.",
    ],
    [
      { model: "MoE-16-h" },
      /^model \(--model\): expected groups of at least the 2 experts .* got "MoE-16-h, whose groups have 1"\./,
    ],
    [
      { model: "MoE-64-h", branching: 4, top_k: 5 },
      "branching (--branching): expected at least the 5 groups that a token goes to (--top-k), got 4.",
    ],
    [
      { model: "MoE-4", gate: "sigmoid" },
      /^model \(--model\): expected at least the 8 experts that a token uses \(--top-k\), got "MoE-4"\./,
    ],
    [{ gate: "swich" }, /expected gate \(--gate\) to be one of noisy-top-k, .* got "swich"\. Did you mean switch\?$/],
    [{ gate: "gshard", eval_second_policy: "random" }, /eval_second_policy .* one of all, none, threshold, got "random"\./],
    [{ capacity_factor: 0 }, /capacity_factor .* a number above 0, got 0\./],
  ] as [Record<string, unknown>, string | RegExp][])("%j", (options, says) => {
    if (typeof says === "string") expect(refusal(options)).toBe(says);
    else expect(refusal(options)).toMatch(says);
  });
});
