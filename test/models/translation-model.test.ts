/** The translation model: gradients of its loss by finite differences, the layers put together by hand, padding, steps one at a time, and what it costs. */

import { describe, expect, it } from "vitest";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { streamId } from "#sparsegate/core/random.js";
import { translationCost, translationParameters } from "#sparsegate/models/cost.js";
import type { MiddleConfig } from "#sparsegate/models/language-model.js";
import { CONTEXT_TARGETS, TranslationModel, type DecoderState, type TranslationBatch, type TranslationModelConfig } from "#sparsegate/models/translation-model.js";
import { Lanes } from "#sparsegate/nn/bidirectional.js";
import { clipScale } from "#sparsegate/optim/clip.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { gradientErrors } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const TRAINING = { training: true, seed: 3, step: 2, firstRow: 7 };
const EVALUATION = { training: false, seed: 0, step: 0, firstRow: 0 };
const list = (t: Tensor): number[] => Array.from(t.dataSync());
const [V, D] = [7, 3];

const MIDDLES: Record<string, MiddleConfig> = {
  moe: { kind: "moe", numExperts: 4, topK: 2, expertHiddenSize: 3, importanceWeight: 0.3, loadWeight: 0.2 },
  "moe, two levels": { kind: "moe", numExperts: [3, 2], topK: [2, 2], expertHiddenSize: 3 },
  // Without the loss of the thresholds, which jumps where a row crosses one.
  "moe, strictly balanced": { kind: "moe", numExperts: 3, topK: 2, gate: { type: "strictly-balanced", thresholdWeight: 0 }, expertHiddenSize: 3 },
  dense: { kind: "dense", hiddenSizes: [4] },
  none: { kind: "none" },
};

function build(middle: MiddleConfig, change: Partial<TranslationModelConfig> = {}): TranslationModel {
  const base = { vocabSize: V, hiddenSize: D, lstmSize: D, attentionSize: 2, attention: "product", dropout: 0.2, sigmoid: true, residual: true, tied: false, labelSmoothing: 0, seed: 1 } as const;
  const model = new TranslationModel({ ...base, middle, ...change });
  const draw = new Draw(5);
  for (const p of model.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -0.8, 0.8));
  return model;
}

/** Sentences side by side, the id 0 at their ends and in the padding. */
function batchOf(pairs: readonly (readonly [number[], number[]])[], padding = 0): TranslationBatch {
  const batchSize = pairs.length;
  const sourceSteps = Math.max(...pairs.map(([source]) => source.length));
  const targetSteps = Math.max(...pairs.map(([, target]) => target.length));
  const grid = (steps: number, at: (lane: number, t: number) => number): Int32Array => Int32Array.from({ length: steps * batchSize }, (_, i) => at(i % batchSize, Math.floor(i / batchSize)));
  return {
    batchSize,
    sourceSteps,
    targetSteps,
    sourceLengths: Int32Array.from(pairs, ([source]) => source.length),
    sources: grid(sourceSteps, (lane, t) => pairs[lane]![0][t] ?? padding),
    inputs: grid(targetSteps, (lane, t) => (t === 0 ? 0 : (pairs[lane]![1][t - 1] ?? padding))),
    targets: grid(targetSteps, (lane, t) => pairs[lane]![1][t] ?? -1),
  };
}
const PAIRS: readonly (readonly [number[], number[]])[] = [
  [[3, 1, 0], [5, 0]],
  [[2, 0], [4, 6, 1, 0]],
];
const totalOf = (model: TranslationModel, context = TRAINING): Tensor => {
  const { loss, auxLoss } = model.forward(batchOf(PAIRS), context);
  return auxLoss ? sg.add(loss, auxLoss) : loss;
};

describe("TranslationModel on the float64 reference", () => {
  useBackend(() => new ReferenceBackend());

  for (const [name, middle] of Object.entries(MIDDLES)) {
    it(`has the gradients of finite differences, in training with dropout: ${name}`, () => {
      const model = build(middle);
      expect(gradientErrors(model.parameters(), () => totalOf(model))).toEqual([]);
    });
  }
  it.each([
    ["tied, smoothed, additive attention, projected", { tied: true, labelSmoothing: 0.1, attention: "additive", lstmSize: 4 }],
    ["words left out", { wordDropout: 0.4 }],
    ["context to all layers, projected", { contextTo: "all", lstmSize: 4 }],
    ["without sigmoid and residuals", { sigmoid: false, residual: false }],
  ] as const)("has the gradients of finite differences: %s", (_, change) => {
    const model = build(MIDDLES["dense"]!, change);
    expect(gradientErrors(model.parameters(), () => totalOf(model))).toEqual([]);
  });

  it("names the layer or the parameter that is not finite", () => {
    const model = build(MIDDLES["moe"]!);
    const set = (p: Tensor, value: number): void => p.backend.write(p.buffer, list(p).fill(value));
    const explain = (): string => model.explainNonFinite("Step 3", NaN, batchOf(PAIRS), EVALUATION).message;
    set(model.softmaxBias, NaN);
    expect(explain()).toMatch(/^Step 3: expected finite values in parameter softmaxBias, got NaN\./);
    set(model.softmaxBias, 0);
    // Open gates, and a projection whose sum of three is beyond float64.
    set(model.bidirectional.forwards.bias, 10);
    set(model.bidirectional.forwards.projection!, 1.7e308);
    expect(explain()).toMatch(/^Step 3: expected a finite output of encoder\.lstm\.0, got /);
    // Three contexts of one sign, whose sum is beyond float64 too.
    const fed = build(MIDDLES["dense"]!, { contextTo: "all" });
    for (const p of fed.parameters()) set(p, 1);
    set(fed.upperContext!, 1.7e308);
    expect(fed.explainNonFinite("Step 3", NaN, batchOf(PAIRS), EVALUATION).message).toMatch(/^Step 3: expected a finite output of decoder\.context, got /);
  });

  it("refuses a batch with fewer targets or more than it says", () => {
    const batch = batchOf(PAIRS);
    const wanted = `${batch.targets.length} targets, ${batch.targetSteps} steps (targetSteps) of ${batch.batchSize} sentences (batchSize)`;
    for (const targets of [batch.targets.slice(0, -1), Int32Array.of(...batch.targets, -1)]) {
      expect(() => build({ kind: "none" }).forward({ ...batch, targets })).toThrow(`TranslationModel.forward: expected ${wanted}, got ${targets.length}.`);
    }
  });

  it("refuses more or fewer LSTM layers than it has, and rates out of range", () => {
    expect(() => build({ kind: "lstm", layers: 2 })).toThrow('TranslationModel: expected a middle moe, dense or none, got "lstm".');
    expect(() => build({ kind: "single" })).toThrow('TranslationModel: expected a middle moe, dense or none, got "single".');
    expect(() => build({ kind: "MoE", numExperts: 4 } as never)).toThrow('TranslationModel: expected a middle moe, dense or none, got "MoE".');
    expect(() => build({ kind: "none" }, { middle: undefined as never })).toThrow("TranslationModel: expected a middle moe, dense or none, got undefined.");
    expect(() => build({ kind: "none" }, { wordDropout: 1 })).toThrow("TranslationModel: expected wordDropout to be a finite number from 0 to 0.99, got 1.");
    expect(() => build({ kind: "none" }, { contextTo: "last" as "all" })).toThrow('TranslationModel: expected contextTo to be one of first, all, got "last".');
    expect(() => build({ kind: "none" }, { labelSmoothing: 1 })).toThrow("TranslationModel: expected labelSmoothing to be a finite number from 0 to 0.999, got 1.");
    expect(() => build({ kind: "moe", numExperts: 4, topK: [2, 2] })).toThrow("TranslationModel: expected numExperts and topK of as many levels");
  });
});

for (const { name: backendName, make } of BACKENDS) {
  describe(`TranslationModel on the ${backendName} backend`, () => {
    useBackend(make);
    const digits = backendName === "reference" ? 12 : 5;
    const close = (got: readonly number[], want: readonly number[]): void => {
      expect(got.length).toBe(want.length);
      got.forEach((v, i) => expect(v, `element ${i}`).toBeCloseTo(want[i]!, digits));
    };

    it("leaves out the embeddings of a share of the tokens on either side, in training alone", () => {
      const rate = 0.3;
      const [length, lanes] = [40, 25];
      const tokens = new Draw(1);
      const sentence = (): number[] => [...tokens.ints(length, 1, V)];
      const batch = batchOf(Array.from({ length: lanes }, () => [sentence(), sentence()] as const));
      const model = build(MIDDLES["none"]!, { wordDropout: rate, dropout: 0 });
      const seen = (context: typeof TRAINING): Map<string, number[]> => {
        const rows = new Map<string, number[]>();
        model.forward(batch, context, (layer, x) => void (layer.endsWith(".embedding") && rows.set(layer, list(x))));
        return rows;
      };
      const [whole, first, again, next] = [seen(EVALUATION), seen(TRAINING), seen(TRAINING), seen({ ...TRAINING, step: 3 })];
      const left: string[] = [];
      for (const side of ["encoder.embedding", "decoder.embedding"]) {
        const [all, some] = [whole.get(side)!, first.get(side)!];
        const isLeftOut = (row: number): boolean => some.slice(row * D, (row + 1) * D).every((v) => v === 0);
        const rows = Array.from({ length: all.length / D }, (_, row) => isLeftOut(row));
        rows.forEach((leftOut, row) => close(some.slice(row * D, (row + 1) * D), leftOut ? [0, 0, 0] : all.slice(row * D, (row + 1) * D).map((v) => v / (1 - rate))));
        // Of 1,000 tokens 300, with a standard deviation of 14.5.
        expect(Math.abs(rows.filter(Boolean).length / rows.length - rate)).toBeLessThan(0.06);
        expect(some).toEqual(again.get(side));
        expect(some).not.toEqual(next.get(side));
        left.push(rows.join());
      }
      expect(left[0]).not.toBe(left[1]);
    });

    it("is App. E: three encoder layers, two of the decoder, a mixture in each over what is no padding, everything dropped and added to its input", () => {
      for (const [name, context, contextTo] of [["moe", EVALUATION, "first"], ["moe", TRAINING, "first"], ["dense", TRAINING, "first"], ["dense", TRAINING, "all"], ["none", EVALUATION, "first"]] as const) {
        const model = build(MIDDLES[name]!, { contextTo });
        const { sources, sourceLengths, inputs, targets } = batchOf(PAIRS);
        const [S, T, B] = [3, 4, 2];
        const drop = (y: Tensor, layer: string): Tensor =>
          context.training ? sg.dropout(y, 0.2, { seed: context.seed, stream: streamId("dropout", layer), step: context.step }, context.firstRow * D) : y;
        const join = (y: Tensor, x: Tensor, layer: string): Tensor => sg.add(drop(y, layer), x);
        const middle = (x: Tensor, layer: TranslationModel["encoderMiddle"], lengths: Int32Array, steps: number, label: string): Tensor => {
          if (!layer) return x;
          const packing = new Lanes(lengths, steps).packing();
          const rows = sg.moveRows(sg.reshape(x, [-1, D]), packing);
          const y = "gate" in layer ? layer.forward(rows, context).output : layer.forward(rows);
          return sg.reshape(sg.moveRows(join(sg.sigmoid(y), rows, label), sg.moveBack(packing)), x.shape);
        };
        const ids = (data: Int32Array, steps: number): Tensor => model.embedding.forward(sg.tensor(data, [steps, B], "int32"));
        const lanes = new Lanes(sourceLengths, S);
        let x = drop(ids(sources, S), "encoder.embedding");
        x = join(model.bidirectional.forward(x, lanes), x, "encoder.lstm.0");
        x = join(model.encoderLstm[0].forward(x).output, x, "encoder.lstm.1");
        x = middle(x, model.encoderMiddle, sourceLengths, S, "encoder.middle");
        x = join(model.encoderLstm[1].forward(x).output, x, "encoder.lstm.2");
        const memory = model.attentive.memory(x, lanes.attentionBias());
        let y = drop(ids(inputs, T), "decoder.embedding");
        const attended = model.attentive.forward(y, memory);
        y = join(attended.output, y, "decoder.lstm.0");
        if (contextTo === "all") {
          // What is read is the sum of the memory's values by how much of each.
          const [weights, values] = [list(attended.weights), list(x)];
          const context = sg.tensor(Array.from({ length: T * B * D }, (_, i) => {
            const [row, d, b] = [Math.floor(i / D), i % D, Math.floor(i / D) % B];
            return Array.from({ length: S }, (_, s) => weights[row * S + s]! * values[(s * B + b) * D + d]!).reduce((sum, v) => sum + v, 0);
          }), [T, B, D]);
          y = sg.add(y, sg.matmul(context, model.upperContext!));
        }
        y = middle(y, model.decoderMiddle, Int32Array.of(2, 4), T, "decoder.middle");
        y = join(model.decoderLstm.forward(y).output, y, "decoder.lstm.1");
        const want = sg.linearCrossEntropy(sg.reshape(y, [-1, D]), model.softmaxWeight!, model.softmaxBias, sg.tensor(targets, [T * B], "int32"));
        close([model.forward(batchOf(PAIRS), context).loss.item()], [want.item()]);
      }
    });

    it("gives each pair the loss it has alone, and the same for any id in the padding", () => {
      for (const name of ["moe", "dense", "moe, two levels"]) {
        const model = build(MIDDLES[name]!);
        const lossOf = (batch: TranslationBatch): number => model.forward(batch, EVALUATION).loss.item();
        const alone = PAIRS.map((pair) => lossOf(batchOf([pair])) * pair[1].length);
        close([lossOf(batchOf(PAIRS)) * 6], [alone[0]! + alone[1]!]);
        close([lossOf(batchOf(PAIRS, 5))], [lossOf(batchOf(PAIRS))]);
      }
    });

    it.each(CONTEXT_TARGETS)("decodes a step at a time as it does at once, context to %s", (contextTo) => {
      const model = build(MIDDLES["moe"]!, { contextTo });
      const batch = batchOf(PAIRS);
      const { memory } = model.encode(batch);
      const inputs = sg.tensor(batch.inputs, [4, 2], "int32");
      const whole = model.decode(memory, inputs);
      let state: DecoderState | undefined;
      const [outputs, attention]: number[][] = [[], []];
      for (let t = 0; t < 4; t++) {
        const one = model.decode(memory, sg.slice(inputs, 0, t, t + 1), state);
        state = one.state;
        outputs!.push(...list(one.output));
        attention!.push(...list(one.attention));
      }
      close(outputs!, list(whole.output));
      close(attention!, list(whole.attention));
      // −log softmax of the logits is what forward averages.
      const logits = sg.logSoftmax(model.logits(sg.reshape(whole.output, [-1, D])));
      const losses = [...batch.targets].flatMap((id, row) => (id < 0 ? [] : [-list(logits)[row * V + id]!]));
      close([losses.reduce((s, v) => s + v, 0) / losses.length], [model.forward(batch, EVALUATION).crossEntropy.item()]);
    });

    it("frees everything a training step made", () => {
      const start = sg.defaultBackend().memory().used;
      for (const middle of Object.values(MIDDLES)) {
        const model = build(middle, { tied: true, labelSmoothing: 0.1, attention: "additive", contextTo: middle.kind === "moe" ? "all" : "first" });
        const adam = new Adam(model.namedParameters());
        adam.prepare();
        const before = sg.defaultBackend().memory().used;
        for (let n = 0; n < 3; n++) {
          sg.scope(() => {
            sg.backward(totalOf(model, { ...TRAINING, step: n }));
            adam.step(0.01, clipScale(model.parameters(), 1).scale);
            adam.zeroGrad();
          });
          expect(sg.defaultBackend().memory().used).toBe(before);
        }
        adam.dispose();
        model.dispose();
      }
      expect(sg.defaultBackend().memory().used).toBe(start);
    });

    it("learns: 80 steps on one batch bring its loss below a fifth", () => {
      const model = new TranslationModel({ ...build(MIDDLES["moe"]!).config, hiddenSize: 8, lstmSize: 8, attentionSize: 8, dropout: 0, tied: true });
      const adam = new Adam(model.namedParameters());
      const losses = Array.from({ length: 80 }, (_, step) =>
        sg.scope(() => {
          const { loss, auxLoss } = model.forward(batchOf(PAIRS), { ...TRAINING, step });
          sg.backward(sg.add(loss, auxLoss!));
          adam.step(0.02);
          adam.zeroGrad();
          return loss.item();
        }),
      );
      expect(losses.at(-1)).toBeLessThan(losses[0]! / 5);
    });
  });
}

describe("the cost of a translation model", () => {
  useBackend(BACKENDS[0].make);
  it("counts the parameters that a model has, but for biases, embedding and softmax, and multiply-adds by hand", () => {
    for (const middle of Object.values(MIDDLES)) {
      for (const lstmSize of [D, 5]) {
        const model = build(middle, { lstmSize, attention: "additive", contextTo: lstmSize === D ? "all" : "first" });
        const inner = [...model.namedParameters()].filter(([name]) => !/^(embedding|softmax)|bias$/i.test(name));
        expect(translationCost(model.config).parameters).toBe(inner.reduce((s, [, p]) => s + p.size, 0));
        expect(translationParameters(model.config)).toBe(model.numParameters());
        expect(translationParameters({ ...model.config, tied: true })).toBe(build(middle, { ...model.config, tied: true }).numParameters());
      }
    }
    const { config } = build(MIDDLES["dense"]!, { lstmSize: 5 });
    // Six LSTMs of 5 units, projected to 3; what is read into the gates; U and W; two feed-forward networks of 4.
    expect(translationCost(config).opsPerTimestep).toBe(6 * (4 * 5 * (3 + 3) + 5 * 3) + 4 * 5 * 3 + 2 * 3 * 2 + 2 * (2 * 3 * 4));
    expect(translationCost({ ...config, contextTo: "all" }).opsPerTimestep).toBe(translationCost(config).opsPerTimestep + 3 * 3);
  });
});
