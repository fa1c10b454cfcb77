/** The language model with each kind of middle: gradients of loss + auxLoss by finite differences, Figure 1 put together by hand, memory, cost. */

import { describe, expect, it } from "vitest";
import { streamId } from "#sparsegate/core/random.js";
import { computeCost, inferenceBytes } from "#sparsegate/models/cost.js";
import { LanguageModel, type LanguageModelConfig, type MiddleConfig, type MoeMiddle } from "#sparsegate/models/language-model.js";
import { PRESET_NAMES, presetMiddle } from "#sparsegate/models/presets.js";
import { logUniformCandidates } from "#sparsegate/nn/candidates.js";
import { clipScale } from "#sparsegate/optim/clip.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import type { LstmState } from "#sparsegate/tensor/ops/lstm.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { gradientErrors } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const TRAINING = { training: true, seed: 3, step: 2, firstRow: 7 };
const EVALUATION = { ...TRAINING, training: false };
const list = (t: Tensor): number[] => Array.from(t.dataSync());
const [T, B, V, D] = [3, 2, 7, 3];

const MIDDLES: Record<string, MiddleConfig> = {
  moe: { kind: "moe", numExperts: 4, topK: 2, expertHiddenSize: 3, importanceWeight: 0.3, loadWeight: 0.2 },
  "moe, two levels": {
    kind: "moe",
    numExperts: [3, 2],
    topK: [2, 2],
    expertHiddenSize: 3,
    importanceWeight: 0.3,
    loadWeight: 0.2,
  },
  "moe, switch in groups": {
    kind: "moe",
    numExperts: [2, 3],
    topK: [2, 1],
    secondaryGate: "switch",
    expertHiddenSize: 3,
    capacityFactor: 2,
  },
  "moe, with variants": {
    kind: "moe",
    numExperts: 3,
    gate: { type: "gshard", secondPolicy: "all" },
    expertHiddenSize: [3, 2],
    activation: "swiglu",
    bias: true,
    expertDropout: 0.2,
    sharedExperts: 2,
    recompute: true,
    zLossWeight: 0.1,
  },
  "dense, one layer": { kind: "dense", hiddenSizes: [4] },
  "dense, two layers": { kind: "dense", hiddenSizes: [4, 2] },
  lstm: { kind: "lstm", layers: 2 },
  none: { kind: "none" },
  single: { kind: "single" },
};

/** A model whose every parameter is random, the gate's too. */
function build(middle: MiddleConfig, change: Partial<LanguageModelConfig> = {}): LanguageModel {
  const model = new LanguageModel({
    vocabSize: V,
    hiddenSize: D,
    lstmSize: D,
    middle,
    dropout: 0.2,
    sigmoid: true,
    residual: true,
    seed: 1,
    ...change,
  });
  const draw = new Draw(5);
  for (const p of model.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -0.8, 0.8));
  return model;
}
const ints = (seed: number, low: number, high: number): Tensor =>
  sg.tensor(new Draw(seed).ints(T * B, low, high), [T, B], "int32");
const batch = (): { inputs: Tensor; targets: Tensor; resets: Tensor } => ({
  inputs: ints(1, 0, V),
  targets: ints(2, -1, V),
  resets: ints(3, 0, 2),
});
const states = (count: number, H: number): LstmState[] =>
  Array.from({ length: count }, (_, i) => ({
    h: sg.randomUniform([B, D], -1, 1, { seed: i }),
    c: sg.randomUniform([B, H], -1, 1, { seed: 9 + i }),
  }));

describe("the gradient of loss + auxLoss equals finite differences, for every parameter", () => {
  useBackend(BACKENDS[0].make);
  for (const [name, middle] of Object.entries(MIDDLES)) {
    for (const [claim, change] of [
      ["dropout, sigmoid and residuals", {}],
      ["projected LSTMs, neither sigmoid nor residuals", { lstmSize: 4, sigmoid: false, residual: false, dropout: 0 }],
    ] as const) {
      it(`${name}; ${claim}; carried state and resets`, () => {
        const model = build(middle, change);
        const carried = states(model.lstm.length, model.config.lstmSize);
        const loss = (): Tensor => {
          const out = model.forward(batch(), TRAINING, carried);
          expect(out.auxLoss !== undefined).toBe(name.startsWith("moe"));
          return out.auxLoss ? sg.add(out.loss, out.auxLoss) : out.loss;
        };
        expect(gradientErrors(model.parameters(), loss)).toEqual([]);
      });
    }
  }
  it("one LSTM whose units are projected to as many (LSTM-512-512)", () => {
    const model = build(MIDDLES["single"]!, { projection: true });
    expect(model.lstm[0]!.projection!.shape).toEqual([D, D]);
    const carried = states(1, D);
    expect(gradientErrors(model.parameters(), () => model.forward(batch(), TRAINING, carried).loss)).toEqual([]);
    expect(() => build(MIDDLES["single"]!, { lstmSize: 5, projection: false })).toThrow(
      "LanguageModel: expected a projection of 5 units (lstmSize) to 3 (hiddenSize)",
    );
  });
  it("moe, trained with a sampled softmax", () => {
    const model = build(MIDDLES["moe"]!);
    const candidates = logUniformCandidates(V, 3, { seed: 1, step: 1 });
    const loss = (): Tensor => {
      const out = model.forward(batch(), TRAINING, undefined, candidates);
      return sg.add(out.loss, out.auxLoss!);
    };
    expect(gradientErrors(model.parameters(), loss)).toEqual([]);
  });
});

for (const { name: backendName, make } of BACKENDS) {
  describe(`LanguageModel on the ${backendName} backend`, () => {
    useBackend(make);
    const close = (got: Tensor, want: Tensor): void =>
      list(got).forEach((v, i) => expect(v).toBeCloseTo(list(want)[i]!, backendName === "reference" ? 12 : 5));

    it("is Figure 1 and App. C: every layer's dropped output is added to its input, the MoE's after a sigmoid; dense stands where the MoE does", () => {
      for (const name of ["moe", "dense, two layers", "lstm", "none", "single"]) {
        for (const [sigmoid, residual, context] of [
          [true, true, EVALUATION],
          [false, false, EVALUATION],
          [true, true, TRAINING],
        ] as const) {
          const model = build(MIDDLES[name]!, { sigmoid, residual });
          const { inputs, resets } = batch();
          const drop = (y: Tensor, layer: string): Tensor =>
            context.training
              ? sg.dropout(
                  y,
                  0.2,
                  { seed: context.seed, stream: streamId("dropout", layer), step: context.step },
                  context.firstRow * D,
                )
              : y;
          const join = (y: Tensor, x: Tensor, layer: string): Tensor => (residual ? sg.add(drop(y, layer), x) : drop(y, layer));
          let x = drop(model.embedding.forward(inputs), "embedding");
          x = join(model.lstm[0]!.forward(x, undefined, resets).output, x, "lstm.0");
          if (model.moe || model.dense) {
            const y = model.moe ? model.moe.forward(x, context).output : model.dense!.forward(x);
            x = join(sigmoid ? sg.sigmoid(y) : y, x, "middle");
          }
          for (const [i, lstm] of model.lstm.slice(1).entries())
            x = join(lstm.forward(x, undefined, resets).output, x, `lstm.${i + 1}`);
          expect(model.lstm).toHaveLength(name === "lstm" ? 4 : name === "single" ? 1 : 2);
          close(model.hidden(inputs, context, undefined, resets).output, x);
        }
      }
    });

    it("goes on where it stopped: a text in two batches with states carried has the loss of one batch", () => {
      const model = build(MIDDLES["moe"]!);
      const [inputs, targets] = [0, 1].map((n) => sg.tensor(new Draw(n).ints(8 * B, 0, V), [8, B], "int32")) as [Tensor, Tensor];
      const part = (t: Tensor, from: number, to: number): Tensor => sg.slice(t, 0, from, to);
      const whole = model.forward({ inputs, targets }, EVALUATION);
      const first = model.forward({ inputs: part(inputs, 0, 5), targets: part(targets, 0, 5) }, EVALUATION);
      const second = model.forward({ inputs: part(inputs, 5, 8), targets: part(targets, 5, 8) }, EVALUATION, first.states);
      expect((5 * first.loss.item() + 3 * second.loss.item()) / 8).toBeCloseTo(whole.loss.item(), 5);
      second.states.forEach(({ c }, i) => close(c, whole.states[i]!.c));
    });

    it("starts out near the loss of guessing, log V, when its weights are small", () => {
      const model = new LanguageModel({
        vocabSize: 50,
        hiddenSize: 8,
        lstmSize: 8,
        middle: { kind: "none" },
        dropout: 0,
        sigmoid: false,
        residual: true,
        initScale: 0.05,
        seed: 1,
      });
      const inputs = sg.tensor(new Draw(1).ints(40, 0, 50), [20, 2], "int32");
      expect(model.forward({ inputs, targets: inputs }, EVALUATION).loss.item()).toBeCloseTo(Math.log(50), 1);
    });

    it("frees everything a training step made: memory in use is the same before and after, and the peak is above both", () => {
      const start = sg.defaultBackend().memory().used;
      for (const middle of Object.values(MIDDLES)) {
        const model = build(middle);
        const adam = new Adam(model.namedParameters());
        const step = (n: number): void =>
          sg.scope(() => {
            const out = model.forward(
              batch(),
              { ...TRAINING, step: n },
              undefined,
              n % 2 === 1 ? logUniformCandidates(V, 3, { seed: 1, step: n }) : undefined,
            );
            sg.backward(out.auxLoss ? sg.add(out.loss, out.auxLoss) : out.loss);
            adam.step(0.01, clipScale(model.parameters(), 1).scale);
            adam.zeroGrad();
          });
        // The optimiser makes its moments at the first step.
        adam.prepare();
        const backend = sg.defaultBackend();
        const before = backend.memory().used;
        backend.resetPeak();
        for (let n = 0; n < 4; n++) {
          step(n);
          expect(backend.memory().used).toBe(before);
        }
        expect(backend.memory().peak).toBeGreaterThan(before);
        adam.dispose();
        model.dispose();
      }
      expect(sg.defaultBackend().memory().used).toBe(start);
    });

    it("learns: 60 steps on one small batch bring its loss below a third", () => {
      const model = new LanguageModel({
        vocabSize: V,
        hiddenSize: 8,
        lstmSize: 8,
        middle: { ...MIDDLES["moe"]!, expertHiddenSize: 16 } as MiddleConfig,
        dropout: 0,
        sigmoid: true,
        residual: true,
        seed: 1,
      });
      const adam = new Adam(model.namedParameters());
      const losses = Array.from({ length: 60 }, (_, step) =>
        sg.scope(() => {
          const { inputs, targets } = batch();
          const out = model.forward({ inputs, targets }, { ...TRAINING, step });
          sg.backward(sg.add(out.loss, out.auxLoss!));
          adam.step(0.03);
          adam.zeroGrad();
          return out.loss.item();
        }),
      );
      expect(losses.at(-1)).toBeLessThan(losses[0]! / 3);
    });
  });
}

describe("the cost of a model", () => {
  useBackend(BACKENDS[0].make);
  it("counts each variant of experts and gates: multiply-adds by hand, parameters as the model has them", () => {
    const [D, F] = [8, 16];
    const lstm = 2 * (2 * D * 4 * D);
    const cases: [middle: Partial<MoeMiddle>, ops: number][] = [
      [{ numExperts: 4, topK: 2 }, 2 * 2 * D * F + 2 * D * 4],
      // D·a + k1·D·b, for W_g and W_noise each.
      [{ numExperts: [4, 8], topK: [3, 2] }, 3 * 2 * 2 * D * F + 2 * (D * 4 + 3 * D * 8)],
      [{ numExperts: [4, 8], topK: [2, 1], secondaryGate: "switch" }, 2 * 2 * D * F + 2 * D * 4 + 2 * D * 8],
      [{ numExperts: 5, gate: "softmax" }, 5 * 2 * D * F + D * 5],
      [{ numExperts: 6, topK: 3, gate: "strictly-balanced" }, 3 * 2 * D * F + D * 6],
      [{ numExperts: [2, 4], topK: [1, 2], gate: "strictly-balanced" }, 2 * 2 * D * F + D * 2 + D * 4],
      [{ numExperts: 6, gate: "sigmoid", topK: 2, bias: true }, 2 * 2 * D * F + D * 6],
      [{ numExperts: 6, gate: "gshard", activation: "swiglu" }, 2 * 3 * D * F + D * 6],
      [{ numExperts: 6, gate: "top-k", topK: 1, expertHiddenSize: [F, 4, 2] }, D * F + F * 4 + 4 * 2 + 2 * D + D * 6],
      [
        { numExperts: 6, gate: "switch", expertHiddenSize: [F, 4], activation: "swiglu", bias: true, sharedExperts: 3 },
        2 * (D * F + F * 4) + 4 * D + D * 6 + 2 * (D * 3 * F + 3 * F * 12) + 12 * D,
      ],
    ];
    for (const [middle, ops] of cases) {
      const model = build({ kind: "moe", numExperts: 4, expertHiddenSize: F, ...middle }, { hiddenSize: D, lstmSize: D });
      const cost = computeCost(model.config);
      expect(cost.opsPerTimestep - lstm, JSON.stringify(middle)).toBe(ops);
      const inner = [...model.namedParameters()].filter(([name]) => /^(lstm|moe)/.test(name));
      expect(cost.parameters, JSON.stringify(middle)).toBe(inner.reduce((s, [, p]) => s + p.size, 0));
    }
  });
  it("refuses a middle there is not, which would be none", () => {
    for (const middle of [{ kind: "MoE", numExperts: 4 }, "moe", undefined]) {
      expect(() => build(middle as never)).toThrow("LanguageModel: expected middle.kind to be one of moe, dense, lstm, none, single, got ");
    }
    expect(() => build({ kind: "lstm", layers: 0 })).toThrow("LanguageModel: expected middle.layers to be an integer of at least 1, got 0.");
    expect(() => build({ kind: "dense", hiddenSizes: [] })).toThrow("dense: expected hiddenSizes of at least one layer, got [].");
    expect(() => build({ kind: "none" }, { initScale: -1 })).toThrow("LanguageModel: expected initScale to be a finite number of at least 0, got -1.");
  });
  it("refuses levels that do not fit each other", () => {
    const moe = { kind: "moe", expertHiddenSize: 3 } as const;
    expect(() => build({ ...moe, numExperts: 4, topK: [2, 2] })).toThrow(
      "LanguageModel: expected numExperts and topK of as many levels",
    );
    expect(() => build({ ...moe, numExperts: [2, 2], topK: 2 })).toThrow(
      "LanguageModel: expected numExperts and topK of as many levels",
    );
    expect(() => build({ ...moe, numExperts: 4, secondaryGate: "switch" })).toThrow(
      "LanguageModel: expected a secondaryGate only where numExperts is",
    );
  });
  it("counts the parameters that a model has, but for biases of experts, embedding and softmax", () => {
    for (const [middle, lstmSize] of [
      ...Object.values(MIDDLES)
        .filter((m) => !("bias" in m))
        .map((m) => [m, D] as const),
      [MIDDLES["moe"]!, 5] as const,
      [MIDDLES["single"]!, 5] as const,
    ]) {
      const model = build(middle, { lstmSize });
      const inner = [...model.namedParameters()].filter(([name]) => /^(lstm|moe|dense)\./.test(name));
      expect(computeCost(model.config).parameters).toBe(inner.reduce((s, [, p]) => s + p.size, 0));
    }
  });
  it("counts the bytes of parameters that a step of one token reads: those of k experts, and of the gate without its noise", () => {
    const bytes = (middle: MiddleConfig, change: Partial<LanguageModelConfig> = {}): number => inferenceBytes(build(middle, { hiddenSize: 8, lstmSize: 8, ...change }).config).total / 4;
    const lstm = 8 * 32 + 8 * 32 + 32;
    const around = 8 + V * 8 + V; // a row of the embedding; the softmax
    expect(bytes({ kind: "none" })).toBe(around + 2 * lstm);
    expect(bytes({ kind: "single" }, { lstmSize: 12 })).toBe(around + (8 * 48 + 8 * 48 + 48 + 12 * 8));
    const moe = { kind: "moe", expertHiddenSize: 16 } as const;
    expect(bytes({ ...moe, numExperts: 100, topK: 3 })).toBe(around + 2 * lstm + 3 * 2 * 8 * 16 + 8 * 100);
    expect(bytes({ ...moe, numExperts: [10, 20], topK: [2, 3] })).toBe(around + 2 * lstm + 6 * 2 * 8 * 16 + 8 * 10 + 2 * 8 * 20);
    expect(bytes({ ...moe, numExperts: 6, topK: 2, gate: "sigmoid", bias: true })).toBe(around + 2 * lstm + 2 * (2 * 8 * 16 + 16 + 8) + 8 * 6);
    const model = build({ ...moe, numExperts: 5, topK: 2, bias: true }, { hiddenSize: 8, lstmSize: 8 });
    expect(inferenceBytes(model.config).parameters).toBe(4 * model.numParameters());
  });
  it("presets: every name is known, in any case; others and too few experts are refused", () => {
    const kinds = Object.fromEntries(PRESET_NAMES.map((name) => [name, presetMiddle(name.toLowerCase(), { hiddenSize: 8 }).kind]));
    const { "MoE-1-Wide": wide, "MoE-1-Deep": deep, "4xLSTM": four, LSTM: two, "2xLSTM-8192-1024": large, ...rest } = kinds;
    expect([wide, deep, four, two, large]).toEqual(["dense", "dense", "lstm", "none", "none"]);
    for (const [name, kind] of Object.entries(rest)) expect(kind, name).toBe(name.startsWith("LSTM-") ? "single" : "moe");
    expect(() => presetMiddle("GPT-2", { hiddenSize: 8 })).toThrow(
      /^model \(--model\): expected one of MoE-1-Wide, .* got "GPT-2"\.$/,
    );
    expect(() => presetMiddle("MoE-3", { hiddenSize: 8 })).toThrow(
      'model (--model): expected at least the 4 experts that a token uses (--top-k), got "MoE-3".',
    );
  });
});
