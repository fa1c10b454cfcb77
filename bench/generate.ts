/** Writing text a token at a time: tokens per second and the bytes of parameters that a token reads, for models of equal computation and growing capacity. */

import { computeCost, inferenceBytes } from "#sparsegate/models/cost.js";
import { LanguageModel } from "#sparsegate/models/language-model.js";
import { presetLstm, presetMiddle } from "#sparsegate/models/presets.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";
import { generateBatch } from "#sparsegate/train/generate.js";
import { interleave, ratio, round, steadiness, useCpu, UsageError, type BenchResult, type Benchmark } from "./harness.js";

/** How many times the time of the dense model a mixture may take: its gate and the dealing of a row come on top of equal products. */
const BOUND = 2;

export const generation: Benchmark = {
  question: "how many tokens a second does a model write, a token at a time, and how many bytes of parameters does a token read?",
  options: {
    models: "MoE-1-Wide,MoE-4,MoE-32,MoE-256,MoE-256-h,MoE-1024-h",
    hiddenSize: 128,
    vocabSize: 32000,
    tokens: 48,
    prompts: 1,
    rounds: 7,
  },
  async run({ models, hiddenSize, vocabSize, tokens, prompts, rounds }): Promise<BenchResult> {
    const [D, V, count, lanes] = [Number(hiddenSize), Number(vocabSize), Number(tokens), Number(prompts)];
    if (![D, V, count, lanes].every((n) => Number.isInteger(n) && n > 0))
      throw new UsageError("expected widths and counts to be whole numbers above 0");
    const cpu = useCpu();
    const words = WordVocabulary.fromWords(Array.from({ length: V - 2 }, (_, i) => `w${i}`));
    const texts = Array.from({ length: lanes }, (_, i) => `w${i} w${i + 1}`);
    const names = String(models).split(",");
    const built = names.map((name) => {
      const middle = presetMiddle(name, { hiddenSize: D });
      const config = {
        vocabSize: V,
        hiddenSize: D,
        ...presetLstm(name, D),
        middle,
        dropout: 0.1,
        sigmoid: true,
        residual: true,
        seed: 0,
      };
      const model = new LanguageModel(config);
      // No sentence ends, so that as many tokens are drawn in every round; and the gate's zeros would send every token to the same experts.
      const bias = model.softmaxBias.dataSync().slice();
      bias[words.eosId] = -1e9;
      cpu.write(model.softmaxBias.buffer, bias);
      for (const [parameter, p] of model.namedParameters()) {
        if (/^moe\..*[wW]eight$/.test(parameter) && p.dataSync().every((value) => value === 0))
          cpu.write(
            p.buffer,
            Float32Array.from({ length: p.size }, (_, i) => Math.sin(i * 12.9898) / 4),
          );
      }
      return model;
    });
    const cases = Object.fromEntries(
      built.map((model, i) => [
        names[i]!,
        (): string[] => generateBatch(model, words, texts, { maxTokens: count, temperature: 1 }),
      ]),
    );
    for (const [name, write] of Object.entries(cases)) {
      const lengths = write().map((text) => text.split(" ").length - 2);
      if (lengths.some((length) => length !== count))
        throw new Error(`${name}: expected ${count} tokens of each prompt, got ${lengths.join(", ")}`);
    }
    const times = await interleave(cases, { rounds: Number(rounds) });
    const rows = built.map((model, i) => {
      const { layers, softmax, total, parameters } = inferenceBytes(model.config);
      const { median, fastest, slowest } = times[names[i]!]!;
      const drawn = count * lanes;
      return {
        model: names[i]!,
        "tokens/s": Math.round(drawn / median),
        fastest: Math.round(drawn / fastest),
        slowest: Math.round(drawn / slowest),
        "ops/token (M)": round(computeCost(model.config).opsPerTimestep / 1e6),
        "MiB read a token": round(total / 2 ** 20),
        "of it layers": round(layers / 2 ** 20),
        "of it softmax": round(softmax / 2 ** 20),
        "MiB of parameters": round(parameters / 2 ** 20),
      };
    });
    const [first, ...others] = names;
    const targets = others.map((name) => ({
      name: `time of a token, ${name} over ${first}`,
      value: round(ratio(times[name]!, times[first!]!)),
      bound: BOUND,
      atMost: true,
    }));
    const notes = [
      cpu.description,
      `bytes are counted from the architecture, for one prompt: several share what they read in common`,
      steadiness(times),
    ];
    for (const model of built) model.dispose();
    cpu.dispose();
    return { rows, targets, notes };
  },
};
