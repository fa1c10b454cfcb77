/** What the library says to calls that cannot be carried out: the kind of error and its text, which names what was expected and what came. */

import { describe, expect, test } from "vitest";
import * as sg from "#sparsegate/index.js";
import { BatchStream } from "#sparsegate/text/batches.js";
import { trainBpe } from "#sparsegate/text/bpe.js";
import { TokenDataset, tokenizeCorpus } from "#sparsegate/text/dataset.js";
import { loadTokenizer } from "#sparsegate/text/load.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";
import { generate } from "#sparsegate/train/generate.js";

const {
  Adam,
  ConfigError,
  Dropout,
  FileError,
  LanguageModel,
  Linear,
  Lstm,
  MoE,
  NonFiniteError,
  Sgd,
  TensorError,
  backward,
  scope,
  tensor,
  zeros,
} = sg;

const linear = (): sg.Linear => new Linear({ inputSize: 2, outputSize: 2 });
const moe = (options: Partial<sg.MoEOptions> = {}): sg.MoE => new MoE({ hiddenSize: 4, numExperts: 4, ...options });
const model = (changes: Partial<sg.LanguageModelConfig> = {}): sg.LanguageModel =>
  new LanguageModel({
    vocabSize: 8,
    hiddenSize: 4,
    lstmSize: 4,
    middle: { kind: "none" },
    dropout: 0,
    sigmoid: false,
    residual: true,
    seed: 0,
    ...changes,
  });
const int = (data: number[], shape = [data.length]): sg.Tensor => tensor(data, shape, "int32");
const still: sg.RunContext = { training: false, seed: 0, step: 0, firstRow: 0 };
const key = { seed: 0, stream: 0, step: 0 };
const corpus = new TokenDataset(Int32Array.from([1, 2, 0]), Int32Array.from([0]), 0);
const words = (): WordVocabulary => WordVocabulary.fromWords(["a"]);
const stream = (changes: object): BatchStream =>
  new BatchStream(corpus, { batchSize: 1, timeSteps: 1, mode: "sentences", seed: 0, ...changes });

type Kind = new (message: string) => Error;
const bad: Record<string, [call: () => unknown, kind: Kind, says: string]> = {
  "arrays of unequal lengths": [
    () => tensor([[1, 2], [3]]),
    TensorError,
    "tensor: expected nested arrays of equal lengths, got ragged ones.",
  ],
  "arrays of unequal depths": [
    () => tensor([[1], 2]),
    TensorError,
    "tensor: expected nested arrays of equal depth, got ragged ones.",
  ],
  "too few elements": [() => tensor([1, 2, 3], [2, 2]), TensorError, "tensor: expected 4 elements for shape [2, 2], got 3."],
  "elements that are no numbers": [
    () => tensor(["1"] as never),
    TensorError,
    "tensor: expected numbers, got string at element 0.",
  ],
  "nothing at all": [() => tensor(undefined as never), TensorError, "tensor: expected numbers, got undefined at element 0."],
  "an integer of more than 32 bits": [
    () => int([2 ** 31]),
    TensorError,
    "tensor: expected 32-bit integers (dtype int32), got 2147483648 at element 0.",
  ],
  "a fraction as an integer": [
    () => int([1.5]),
    TensorError,
    "tensor: expected 32-bit integers (dtype int32), got 1.5 at element 0.",
  ],
  "a negative size": [() => zeros([2, -1]), TensorError, "tensor: expected a shape of non-negative integers, got [2, -1]."],
  "a dtype there is not": [
    () => zeros([2], "float64" as never),
    TensorError,
    "tensor: expected dtype float32 or int32, got float64.",
  ],
  "a product of unfit sizes": [
    () => sg.matmul(zeros([2, 3]), zeros([2, 3])),
    TensorError,
    "matmul: expected inner sizes to agree, got [2, 3] and [2, 3].",
  ],
  "a product of integers": [
    () => sg.matmul(zeros([2, 2], "int32"), zeros([2, 2])),
    TensorError,
    "matmul: expected dtype float32, got int32 (shape [2, 2]).",
  ],
  "a sum of unfit shapes": [
    () => sg.add(zeros([2, 3]), zeros([2, 2])),
    TensorError,
    "add: expected shapes that broadcast together, got [2, 3] and [2, 2].",
  ],
  "tensors of two backends": [
    () => sg.add(zeros([1]), zeros([1], "float32", new sg.ReferenceBackend())),
    TensorError,
    "add: expected tensors of one backend, got cpu and reference.",
  ],
  "a reshape to another size": [
    () => sg.reshape(zeros([2, 3]), [4]),
    TensorError,
    "reshape: expected a shape of 6 elements for [2, 3], got [4].",
  ],
  "a slice beyond the end": [
    () => sg.slice(zeros([3]), 0, 1, 5),
    TensorError,
    "slice: expected 0 <= begin <= end <= 3 on axis 0, got 1 and 5.",
  ],
  "an axis there is not": [() => sg.sum(zeros([2]), 1), TensorError, "sum: expected an axis from -1 to 0, got 1."],
  "more of the largest than there are": [
    () => sg.topK(zeros([2, 3]), 4),
    TensorError,
    "topK: expected k from 1 to 3 (the last axis), got 4.",
  ],
  "a row that the table has not": [
    () => sg.embedding(zeros([3, 2]), int([0, 3])),
    TensorError,
    "embedding: expected indices from 0 to 2, got 3 at position 1.",
  ],
  "a row by a fraction": [
    () => sg.embedding(zeros([3, 2]), tensor([1])),
    TensorError,
    "embedding: expected dtype int32, got float32 (shape [1]).",
  ],
  "a class there is not": [
    () => sg.linearCrossEntropy(zeros([1, 2]), zeros([3, 2]), undefined, int([3])),
    TensorError,
    "linearCrossEntropy: expected targets from -1 (ignored) to 2, got 3 at row 0.",
  ],
  "too short a bias": [
    () => sg.linearCrossEntropy(zeros([1, 2]), zeros([3, 2]), zeros([2]), int([1])),
    TensorError,
    "linearCrossEntropy: expected bias (3), got [2].",
  ],
  "the value of a vector": [
    () => zeros([2]).item(),
    TensorError,
    "Tensor.item: expected a tensor with one element, got shape [2].",
  ],
  "a tensor after its end": [
    () => {
      const t = zeros([2]);
      t.dispose();
      return sg.add(t, 1);
    },
    TensorError,
    "Tensor [2]: its memory has been freed. It was made inside a scope() that has ended, or disposed. Return it from the scope, or call keep() on it.",
  ],
  "a tensor after its scope": [
    () => {
      let t!: sg.Tensor;
      scope(() => void (t = zeros([2])));
      return t.dataSync();
    },
    TensorError,
    "Tensor [2]: its memory has been freed. It was made inside a scope() that has ended, or disposed. Return it from the scope, or call keep() on it.",
  ],
  "gradients of a vector": [
    () => backward(linear().forward(zeros([1, 2]))),
    TensorError,
    "backward: expected a scalar loss, got shape [1, 2]. Take its sum or mean, or pass seed.",
  ],
  "gradients of a constant": [
    () => backward(zeros([])),
    TensorError,
    "backward: expected a loss computed from parameters, got one that depends on none of them (or was made under noGrad).",
  ],
  "gradients twice": [
    () => {
      const loss = sg.sum(linear().forward(zeros([1, 2])));
      backward(loss);
      backward(loss);
    },
    TensorError,
    "backward: the graph at sum was used by an earlier backward and freed. Pass { retainGraph: true } to the first one, or compute the loss again.",
  ],
  "no experts": [() => moe({ numExperts: 0 }), ConfigError, "MoE: expected numExperts to be an integer of at least 1, got 0."],
  "half an expert": [
    () => moe({ numExperts: 2.5 }),
    ConfigError,
    "MoE: expected numExperts to be an integer of at least 1, got 2.5.",
  ],
  "a width of NaN": [
    () => moe({ hiddenSize: NaN }),
    ConfigError,
    "MoE: expected hiddenSize to be an integer of at least 1, got NaN.",
  ],
  "a width that is text": [
    () => moe({ hiddenSize: "4" as never }),
    ConfigError,
    'MoE: expected hiddenSize to be an integer of at least 1, got "4".',
  ],
  "more experts a row than there are": [
    () => moe({ topK: 5 }),
    ConfigError,
    "NoisyTopKGate: expected topK to be an integer from 1 to 4, got 5. A row cannot use more experts than there are (numExperts 4).",
  ],
  "no expert a row": [
    () => moe({ topK: 0 }),
    ConfigError,
    "NoisyTopKGate: expected topK to be an integer from 1 to 4, got 0. A row cannot use more experts than there are (numExperts 4).",
  ],
  "experts of no width": [
    () => moe({ expertHiddenSize: 0 }),
    ConfigError,
    "FeedForwardExperts: expected expertHiddenSize to be an integer of at least 1, got 0.",
  ],
  "a negative weight of importance": [
    () => moe({ importanceWeight: -1 }),
    ConfigError,
    "NoisyTopKGate: expected importanceWeight to be a finite number of at least 0, got -1.",
  ],
  "a weight of load of NaN": [
    () => moe({ loadWeight: NaN }),
    ConfigError,
    "NoisyTopKGate: expected loadWeight to be a finite number of at least 0, got NaN.",
  ],
  "too few modules for experts": [
    () => new MoE({ hiddenSize: 2, numExperts: 3, experts: [linear(), linear()] }),
    ConfigError,
    "MoE: expected 3 experts (numExperts), got 2.",
  ],
  "input of another width": [
    () => moe().forward(zeros([2, 3])),
    TensorError,
    "MoE.forward: expected x of width 4 (hiddenSize), got 3. Did the embedding size change?",
  ],
  "a scalar as input": [
    () => moe().forward(zeros([])),
    TensorError,
    "MoE.forward: expected x of width 4 (hiddenSize), got a scalar. Did the embedding size change?",
  ],
  "integers as input": [
    () => moe().forward(zeros([2, 4], "int32")),
    TensorError,
    "matmul: expected dtype float32, got int32 (shape [2, 4]).",
  ],
  "an expert of another width": [
    () =>
      new MoE({ hiddenSize: 2, numExperts: 1, experts: () => new Linear({ inputSize: 2, outputSize: 3 }) }).forward(
        zeros([2, 2]),
      ),
    TensorError,
    "MoE expert 0: expected an output of shape [2, 2], got [2, 3]. Experts map width D to width D.",
  ],
  "a layer of no width": [
    () => new Linear({ inputSize: 0, outputSize: 2 }),
    ConfigError,
    "Linear: expected inputSize to be an integer of at least 1, got 0.",
  ],
  "a dropout rate of one": [
    () => new Dropout(1),
    ConfigError,
    "Dropout: expected rate to be a finite number from 0 to 0.999, got 1.",
  ],
  "a dropout rate of one, as a function": [
    () => sg.dropout(zeros([2]), 1, key),
    ConfigError,
    "dropout: expected a rate from 0 to below 1, got 1.",
  ],
  "a sequence without a batch": [
    () => new Lstm({ inputSize: 2, hiddenSize: 2 }).forward(zeros([1, 2])),
    TensorError,
    "lstm: expected x (time, batch, 2), got [1, 2].",
  ],
  "an optimiser without parameters": [
    () => new Adam(new Map()),
    ConfigError,
    "Optimizer: expected at least one parameter, got none. Pass module.namedParameters().",
  ],
  "an optimiser of a list": [
    () => new Sgd(linear().parameters() as never),
    ConfigError,
    "Optimizer: expected a map of parameters by name, got [Tensor, Tensor]. Pass module.namedParameters().",
  ],
  "an option of a layer that is misspelt": [
    () => moe({ top_k: 2 } as never),
    ConfigError,
    'MoE: expected options among hiddenSize, numExperts, topK, gate, comm, name, seed, expertHiddenSize, activation, bias, expertDropout, recompute, sharedExperts, experts, importanceWeight, loadWeight, zLossWeight, capacityFactor, evalCapacityFactor, dropPolicy, got "top_k". Did you mean topK?',
  ],
  "an option of a layer in groups that is misspelt": [
    () => new sg.HierarchicalMoE({ hiddenSize: 4, numExperts: [2, 2], expertDropOut: 0.1 } as never),
    ConfigError,
    'HierarchicalMoE: expected options among hiddenSize, numExperts, topK, gate, secondaryGate, importanceWeight, loadWeight, zLossWeight, comm, name, seed, expertHiddenSize, activation, bias, expertDropout, recompute, sharedExperts, experts, got "expertDropOut". Did you mean expertDropout?',
  ],
  "an array in place of a tensor": [
    () => moe().forward([[1, 2, 3, 4]] as never),
    TensorError,
    "MoE.forward: expected a tensor, got [[1, 2, 3, 4]]. Make one of it: tensor([[1, 2], [3, 4]]).",
  ],
  "a word in place of a tensor": [() => sg.add(zeros([1]), "1" as never), TensorError, 'add: expected a tensor, got "1".'],
  "a loss that is a number": [() => sg.backward(3 as never), TensorError, "backward: expected a tensor, got 3."],
  "a shape that is a number": [() => zeros(3 as never), TensorError, "tensor: expected a shape, as [2, 3], got 3."],
  "a layer without options": [
    () => new MoE(undefined as never),
    ConfigError,
    "MoE: expected an object of options, got undefined.",
  ],
  "a gate that is a class": [
    () => moe({ gate: sg.SwitchGate as never }),
    ConfigError,
    "gate: expected one of noisy-top-k, softmax, strictly-balanced, switch, gshard, expert-choice, top-k, sigmoid, got SwitchGate.",
  ],
  "an init there is not": [
    () => new sg.Linear({ inputSize: 2, outputSize: 2, init: { kind: "xavier" } as never }),
    ConfigError,
    'linear.weight: expected init.kind to be one of zeros, ones, constant, uniform, normal, got "xavier".',
  ],
  "an init without its number": [
    () => sg.parameter("w", [2], { kind: "normal" } as never),
    ConfigError,
    "w: expected init.std to be a finite number, got undefined.",
  ],
  "a seed of a parameter that is a fraction": [
    () => moe({ seed: 0.5 }),
    ConfigError,
    "moe.gate.weight: expected seed to be an integer, got 0.5.",
  ],
  "a seed that is no number": [
    () => sg.randomNormal([2], { seed: "abc" as never }),
    ConfigError,
    'randomNormal: expected seed to be an integer, got "abc".',
  ],
  "a beta of one": [
    () => new Adam(linear().namedParameters(), { beta1: 1 }),
    ConfigError,
    "Adam: expected beta1 to be a finite number from 0 to 0.999999, got 1.",
  ],
  "a decay of NaN": [
    () => new Adam(linear().namedParameters(), { weightDecay: NaN }),
    ConfigError,
    "Adam: expected weightDecay to be a finite number of at least 0, got NaN.",
  ],
  "a learning rate of NaN": [
    () => new Sgd(linear().namedParameters()).step(NaN),
    ConfigError,
    "Optimizer.step: expected learningRate to be a finite number of at least 0, got NaN.",
  ],
  "a negative learning rate": [
    () => new Adam(linear().namedParameters()).step(-1),
    ConfigError,
    "Optimizer.step: expected learningRate to be a finite number of at least 0, got -1.",
  ],
  "a constant rate below zero": [
    () => sg.constant(-1),
    ConfigError,
    "constant: expected learningRate to be a finite number of at least 0, got -1.",
  ],
  "a warm-up of no steps": [
    () => sg.inverseSquareRoot(1, 0),
    ConfigError,
    "inverseSquareRoot: expected warmupSteps to be an integer of at least 1, got 0.",
  ],
  "a decay that grows": [
    () => sg.stepDecay(1, { holdSteps: 0, everySteps: 1, factor: 2 }),
    ConfigError,
    "stepDecay: expected factor to be a finite number from 0 to 1, got 2.",
  ],
  "a norm below zero": [
    () => sg.clipScale(linear().parameters(), -1),
    ConfigError,
    "clipScale: expected maxNorm to be a number above 0, got -1.",
  ],
  "a model of one word": [
    () => model({ vocabSize: 1 }),
    ConfigError,
    "LanguageModel: expected vocabSize to be an integer of at least 2, got 1.",
  ],
  "a model's dropout of one": [
    () => model({ dropout: 1 }),
    ConfigError,
    "LanguageModel: expected dropout to be a finite number from 0 to 0.99, got 1.",
  ],
  "a word beyond the vocabulary": [
    () => model().hidden(int([9], [1, 1]), still),
    TensorError,
    "embedding: expected indices from 0 to 7, got 9 at position 0.",
  ],
  "state of another batch": [
    () => model().hidden(int([1], [1, 1]), still, [{ h: zeros([2, 4]), c: zeros([2, 4]) }]),
    TensorError,
    "lstm: expected a state of (1, 4) and (1, 4), got [2, 4] and [2, 4].",
  ],
  "a model without a name": [
    () => sg.presetMiddle("lstm4x", { hiddenSize: 4 }),
    ConfigError,
    'model (--model): expected one of MoE-1-Wide, MoE-1-Deep, 4xLSTM, LSTM, MoE-4, MoE-32, MoE-256, MoE-256-h, MoE-1024-h, MoE-4096-h, LSTM-512-512, LSTM-1024-512, LSTM-2048-512, 2xLSTM-8192-1024, MoE-34M, MoE-143M, MoE-16384-h, MoE-65536-h, MoE-131072-h (or MoE-<experts>, MoE-<experts>-h, LSTM-<units>-<width>), got "lstm4x". Did you mean LSTM?',
  ],
  "more candidates than words": [
    () => sg.logUniformCandidates(4, 5, key),
    ConfigError,
    "logUniformCandidates: expected samples to be an integer from 1 to 4, got 5. The vocabulary has 4 entries.",
  ],
  "a batch of none": [() => stream({ batchSize: 0 }), ConfigError, "batchSize: expected a positive integer, got 0."],
  "a mode there is not": [
    () => stream({ mode: "lines" }),
    ConfigError,
    'mode: expected "sentences" or "continuous", got "lines".',
  ],
  "a batch beyond the text": [
    () => stream({ mode: "continuous", batchSize: 2, timeSteps: 2 }),
    ConfigError,
    "continuous text: expected at least 4 tokens (batch size × time steps), got 3. Lower the batch size (--batch-size) or the time steps (--time-steps), or take more text.",
  ],
  "a corpus of empty lines": [
    () => tokenizeCorpus(["", " "], words()),
    ConfigError,
    'the corpus: expected at least one sentence, got "only empty lines".',
  ],
  "subwords of nothing": [
    () => trainBpe([], { vocabSize: 300 }),
    ConfigError,
    'the text to learn byte pairs from: expected at least one character, got "none".',
  ],
  "a word twice": [
    () => WordVocabulary.fromWords(["a", "a"]),
    FileError,
    'vocab.txt:2: expected a word not seen before, got "a". It is on line 1 too; remove one.',
  ],
  "a saved vocabulary without an end of sentence": [
    () => loadTokenizer("vocab.txt", "a\nb\n"),
    FileError,
    'vocab.txt: expected the end-of-sentence word </s>, <eos>, </S>, <S>, got "none of these". Name it with `eos`.',
  ],
  "a tokenizer of another kind": [
    () => loadTokenizer("tokenizer.json", "{}"),
    FileError,
    'tokenizer.json: expected model.type "BPE", got undefined.',
  ],
  "a tokenizer of another model": [
    () => generate(model(), words(), "a"),
    ConfigError,
    "generate: expected a tokenizer of 8 tokens (the model's vocabulary), got 3.",
  ],
  "no threads": [
    () => new sg.CpuBackend({ threads: 0 }),
    ConfigError,
    "CpuBackend: expected threads to be an integer from 1 to 256, got 0.",
  ],
};

describe("a call is refused, with its reason, for", () => {
  test.each(Object.entries(bad))("%s", (_, [call, kind, says]) => {
    let error: unknown;
    try {
      call();
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(kind);
    expect((error as Error).message).toBe(says);
  });
});

describe("NaN and infinity in a row of MoE.forward", () => {
  const x = sg.randomNormal([3, 4], { seed: 1 }).dataSync();
  const spoiled = (value: number): sg.Tensor =>
    tensor(
      Float32Array.from(x, (v, i) => (i === 5 ? value : v)),
      [3, 4],
    );

  for (const training of [false, true]) {
    test.each([NaN, Infinity])(
      `stay in that row, show in the loss, and route it to experts there are (training: ${training}, %d)`,
      (value) => {
        const layer = moe({ numExperts: 8, topK: 2 });
        const context = { ...still, training };
        const [clean, dirty] = [layer.forward(tensor(x, [3, 4]), context), layer.forward(spoiled(value), context)];
        const [before, after] = [clean.output.dataSync(), dirty.output.dataSync()];
        for (const row of [0, 2]) expect(after.slice(4 * row, 4 * row + 4)).toEqual(before.slice(4 * row, 4 * row + 4));
        expect(Array.from(after.slice(4, 8))).toEqual([NaN, NaN, NaN, NaN]);
        expect(dirty.auxLoss.item()).toBeNaN();
        for (const expert of dirty.experts.dataSync()) expect([0, 1, 2, 3, 4, 5, 6, 7]).toContain(expert);
      },
    );
  }

  test("never reach the parameters: their gradients are refused", () => {
    const layer = moe({ numExperts: 8, topK: 2 });
    const { output, auxLoss } = layer.forward(spoiled(NaN));
    backward(sg.add(sg.mean(sg.square(output)), auxLoss));
    expect(() => sg.clipScale(layer.parameters(), 1)).toThrow(NonFiniteError);
    expect(() => sg.clipScale(layer.parameters(), 1)).toThrow(
      /^Gradient of moe\.experts\.\w+ is not finite\. Lower the learning rate/,
    );
  });
});
