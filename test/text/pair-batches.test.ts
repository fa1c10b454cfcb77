// Tokenised pairs of sentences, and their batches for training and evaluation.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ConfigError } from "#sparsegate/core/errors.js";
import { trainBpe } from "#sparsegate/text/bpe.js";
import { type PairBatch, PairBatchStream, inCorpusOrder, pairEvaluationBatches } from "#sparsegate/text/pair-batches.js";
import { BpeDropout, PairDataset, tokenizePairs } from "#sparsegate/text/pair-dataset.js";
import { type ParallelCorpus, readParallelFiles } from "#sparsegate/text/parallel.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";

const EOS = 0;
const leftOut = { emptySource: 0, emptyTarget: 0, emptyBoth: 0 };

/** Pairs of the given lengths (each with its end), in groups; all ids but the ends differ, so that a lost or doubled one shows. */
function dataset(groups: readonly (readonly (readonly [source: number, target: number])[])[]): PairDataset {
  let next = 1;
  const sentences = (lengths: readonly number[]): PairDataset["sources"] => {
    const starts = [0];
    const ids = lengths.flatMap((length) => {
      starts.push(starts.at(-1)! + length);
      return Array.from({ length }, (_, i) => (i + 1 < length ? next++ : EOS));
    });
    return { ids: Int32Array.from(ids), starts: Int32Array.from(starts) };
  };
  const pairs = groups.flat();
  return new PairDataset(
    sentences(pairs.map(([source]) => source)),
    sentences(pairs.map(([, target]) => target)),
    groups.map((group, i) => ({ name: `g${i}`, pairs: group.length, tooLong: 0 })),
    Int32Array.from(groups.flatMap((group, i) => group.map(() => i))),
    Int32Array.from(groups.flatMap((group) => group.map((_, row) => row))),
    EOS,
  );
}

/** Checks a batch against the data set it was made of, position by position. */
function checkBatch(data: PairDataset, batch: PairBatch): void {
  const { batchSize, sourceSteps, targetSteps, pairs } = batch;
  expect([batch.sources.length, batch.sourceMask.length]).toEqual([sourceSteps * batchSize, sourceSteps * batchSize]);
  expect([batch.inputs.length, batch.targets.length]).toEqual([targetSteps * batchSize, targetSteps * batchSize]);
  const lane = (values: Int32Array, b: number): number[] => [...values].filter((_, i) => i % batchSize === b);
  let tokens = 0;
  pairs.forEach((pair, b) => {
    const source = [...data.sources.ids.subarray(data.sources.starts[pair], data.sources.starts[pair + 1])];
    const target = [...data.targets.ids.subarray(data.targets.starts[pair], data.targets.starts[pair + 1])];
    const sourcePad = Array<number>(sourceSteps - source.length).fill(EOS);
    const targetPad = targetSteps - target.length;
    expect(lane(batch.sources, b)).toEqual([...source, ...sourcePad]);
    expect(lane(batch.sourceMask, b)).toEqual([...source.map(() => 1), ...sourcePad.map(() => 0)]);
    expect(batch.sourceLengths[b]).toBe(source.length);
    expect(lane(batch.targets, b)).toEqual([...target, ...Array<number>(targetPad).fill(-1)]);
    expect(lane(batch.inputs, b)).toEqual([EOS, ...target.slice(0, -1), ...Array<number>(targetPad).fill(EOS)]);
    tokens += target.length;
  });
  expect(batch.tokens).toBe(tokens);
}

const lengths = fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 }));
const shapes = fc.record({
  groups: fc.array(fc.array(lengths, { minLength: 1, maxLength: 20 }), { minLength: 1, maxLength: 3 }),
  batchTokens: fc.integer({ min: 9, max: 40 }),
  window: fc.integer({ min: 1, max: 70 }),
  seed: fc.nat(),
});

/** The batches of a whole epoch, from the stream's start of it. */
function epochOf(stream: PairBatchStream): PairBatch[] {
  const batches: PairBatch[] = [];
  for (let probe = stream.state(); ; probe = stream.state()) {
    const batch = stream.next();
    if (batches.length > 0 && stream.epoch !== probe.epoch) {
      stream.restore(probe);
      return batches;
    }
    batches.push(batch);
  }
}

const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
const numerically = (a: number, b: number): number => a - b;

describe("PairBatchStream", () => {
  it("gives each pair once an epoch, in batches that say what the data set says and hold no more than batchTokens", () => {
    fc.assert(
      fc.property(shapes, ({ groups, ...options }) => {
        const data = dataset(groups);
        const stream = new PairBatchStream(data, options);
        let rows = 0;
        for (let epoch = 0; epoch < 2; epoch++) {
          const batches = epochOf(stream);
          expect(batches.flatMap(({ pairs }) => [...pairs]).sort(numerically)).toEqual(range(data.pairs));
          for (const batch of batches) {
            checkBatch(data, batch);
            const size = batch.batchSize * Math.max(batch.sourceSteps, batch.targetSteps);
            expect(size).toBeLessThanOrEqual(options.batchTokens);
            expect(batch.firstRow).toBe(rows);
            rows += size;
          }
        }
      }),
    );
  });

  it("puts pairs of like length together, and the batches in no order of length", () => {
    const data = dataset([range(400).map((i) => [1 + (i % 20), 1 + (i % 20)] as const)]);
    const batches = epochOf(new PairBatchStream(data, { batchTokens: 60, seed: 1 }));
    // 20 of each length: a batch may hold two or three lengths, and a little padding.
    const padding = batches.reduce((sum, { sourceMask }) => sum + sourceMask.filter((real) => real === 0).length, 0);
    expect(padding / batches.reduce((sum, { sourceMask }) => sum + sourceMask.length, 0)).toBeLessThan(0.03);
    const steps = batches.map(({ sourceSteps }) => sourceSteps);
    expect(steps).not.toEqual([...steps].sort(numerically));
    // A window of one pair is no sorting at all.
    const mixed = epochOf(new PairBatchStream(data, { batchTokens: 60, seed: 1, window: 1 }));
    expect(mixed.length).toBe(400);
  });

  it("is another by the seed and in each epoch, the same for the same", () => {
    const data = dataset([range(40).map(() => [3, 3] as const)]);
    const order = (seed: number, epoch: number): number[] => {
      const stream = new PairBatchStream(data, { batchTokens: 12, seed });
      for (let e = 0; e < epoch; e++) epochOf(stream);
      return epochOf(stream).flatMap(({ pairs }) => [...pairs]);
    };
    expect(order(1, 0)).toEqual(order(1, 0));
    expect(order(1, 0)).not.toEqual(order(2, 0));
    expect(order(1, 0)).not.toEqual(order(1, 1));
  });

  it("shuffles the batches anew each epoch, where all lengths differ and so their pairs are always the same", () => {
    const data = dataset([range(30).map((i) => [1 + i, 1] as const)]);
    const stream = new PairBatchStream(data, { batchTokens: 60, seed: 4 });
    const [first, second] = [0, 1].map(() => epochOf(stream).map(({ pairs }) => [...pairs].join()));
    expect(first).not.toEqual(second);
    expect([...first].sort()).toEqual([...second].sort());
  });

  it("fills a batch to the last token", () => {
    const data = dataset([range(9).map(() => [3, 2] as const)]);
    const sizes = epochOf(new PairBatchStream(data, { batchTokens: 12, seed: 0 })).map(({ batchSize }) => batchSize);
    expect(sizes.sort(numerically)).toEqual([1, 4, 4]);
    expect([...pairEvaluationBatches(data, { batchTokens: 11 })].map(({ batchSize }) => batchSize)).toEqual([3, 3, 3]);
    expect([...pairEvaluationBatches(data, { batchTokens: 3 })].map(({ batchSize }) => batchSize)).toEqual(Array(9).fill(1));
  });

  it("goes on with the very same batches from a saved position", () => {
    const data = dataset([
      range(23).map((i) => [1 + (i % 7), 1 + ((3 * i) % 7)] as const),
      range(5).map((i) => [2 + i, 1] as const),
    ]);
    for (const temperature of [1, 3]) {
      const options = { batchTokens: 21, seed: 5, window: 9, temperature };
      for (let before = 0; before < 25; before++) {
        const stream = new PairBatchStream(data, options);
        for (let i = 0; i < before; i++) stream.next();
        const resumed = new PairBatchStream(data, options);
        resumed.restore(JSON.parse(JSON.stringify(stream.state())));
        expect(resumed.epoch).toBe(stream.epoch);
        for (let i = 0; i < 20; i++) expect(resumed.next()).toEqual(stream.next());
      }
    }
  });

  // At the lower ones powers of the sizes overflow, and 1/T too.
  it.each([5, 1e-3, 1e-310])("takes language pairs in the shares n^(1/T), and the sentences of each equally often (T = %s)", (temperature) => {
    const data = dataset([
      range(900).map(() => [2, 2] as const),
      range(90).map(() => [2, 2] as const),
      range(10).map(() => [2, 2] as const),
    ]);
    const stream = new PairBatchStream(data, { batchTokens: 200, seed: 2, temperature });
    const epochs = 7;
    const times = new Array<number>(1000).fill(0);
    for (let epoch = 0; epoch < epochs; epoch++) for (const { pairs } of epochOf(stream)) for (const pair of pairs) times[pair]++;
    const groups = [times.slice(0, 900), times.slice(900, 990), times.slice(990)];
    const weights = [900, 90, 10].map((n) => (n === 900 ? 1 : (n / 900) ** (1 / temperature)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    groups.forEach((own, i) => {
      const share = own.reduce((sum, count) => sum + count, 0) / (1000 * epochs);
      expect(Math.abs(share - weights[i] / total)).toBeLessThan(0.5 / (1000 * epochs) + 1e-12);
      expect(Math.max(...own) - Math.min(...own)).toBeLessThanOrEqual(1);
    });
  });

  describe("with BPE-dropout", () => {
    const sources = range(40).map((i) => `the dog number ${i % 10} sees the other dog`);
    const targets = range(40).map((i) => `der Hund Nummer ${i % 10} sieht den anderen Hund`);
    const corpus: ParallelCorpus = { sourceLanguage: "en", targetLanguage: "de", sources, targets, leftOut };
    const specialTokens = ["<2de>"];
    const tokenizer = trainBpe([...sources, ...targets], { vocabSize: 340, specialTokens });
    // One pair of bytes alone, so that there is room below the longest for the others.
    const long: ParallelCorpus = { ...corpus, sources: [...sources, "z".repeat(60)], targets: [...targets, "z".repeat(60)] };
    const data = tokenizePairs(long, tokenizer, { languageTokens: true });
    const dropoutOf = (dropout: number, seed = 5): BpeDropout => new BpeDropout(data, long, tokenizer, { dropout, seed, languageTokens: true });
    const texts = ({ sources: { ids, starts } }: PairDataset): string[] =>
      range(data.pairs).map((i) => tokenizer.decode([...ids.subarray(starts[i], starts[i + 1])]));

    it("encodes the same texts otherwise in each epoch, behind their language tokens, and alike for one seed", () => {
      const epochs = [0, 1].map((epoch) => dropoutOf(0.2).epoch(epoch));
      for (const encoded of epochs) {
        expect(texts(encoded)).toEqual(long.sources);
        expect(encoded.sources.ids.length).toBeGreaterThan(1.05 * data.sources.ids.length);
        expect(encoded.targets.ids.length).toBeGreaterThan(1.05 * data.targets.ids.length);
        for (let i = 0; i < data.pairs; i++) {
          expect(encoded.sources.ids[encoded.sources.starts[i]]).toBe(tokenizer.specialId("<2de>"));
          expect([encoded.sources.ids[encoded.sources.starts[i + 1] - 1], encoded.targets.ids[encoded.targets.starts[i + 1] - 1]]).toEqual([EOS, EOS]);
        }
      }
      expect(epochs[0].sources.ids).not.toEqual(epochs[1].sources.ids);
      expect(dropoutOf(0.2).epoch(1)).toEqual(epochs[1]);
      expect(dropoutOf(0.2, 6).epoch(1).sources.ids).not.toEqual(epochs[1].sources.ids);
      expect(dropoutOf(0).epoch(3)).toEqual(data);
    });

    it("gives each sentence numbers of its own: two of the same text differ, and no side follows the other", () => {
      const { sources: own, targets: others } = dropoutOf(0.5).epoch(0);
      const at = ({ ids, starts }: PairDataset["sources"], i: number): string => ids.slice(starts[i], starts[i + 1]).join();
      expect(new Set(range(40).map((i) => at(own, i))).size).toBe(40);
      const twice = { ...long, targets: long.sources };
      const same = new BpeDropout(tokenizePairs(twice, tokenizer), twice, tokenizer, { dropout: 0.5, seed: 5 }).epoch(0);
      expect(range(40).filter((i) => at(same.sources, i) === at(same.targets, i))).toEqual([]);
      expect(others.ids.length).toBeGreaterThan(data.targets.ids.length);
    });

    it("leaves a pair as it is where a side would be longer than any was", () => {
      const short = tokenizePairs(corpus, tokenizer);
      const bytes = new BpeDropout(short, corpus, tokenizer, { dropout: 1, seed: 0 }).epoch(0);
      expect(bytes).toEqual(short);
      const longest = (set: PairDataset): number => Math.max(...range(set.pairs).map((i) => Math.max(set.sourceLength(i), set.targetLength(i))));
      expect(longest(dropoutOf(1).epoch(0))).toBe(longest(data));
    });

    it("gives batches of the epoch's encodings, and goes on with the very same ones", () => {
      const options = { batchTokens: 150, seed: 5, bpeDropout: dropoutOf(0.2) };
      const stream = new PairBatchStream(data, options);
      for (let i = 0; i < 40; i++) {
        const resumed = new PairBatchStream(data, { ...options, bpeDropout: dropoutOf(0.2) });
        resumed.restore(JSON.parse(JSON.stringify(stream.state())));
        const batch = stream.next();
        expect(resumed.next()).toEqual(batch);
        checkBatch(dropoutOf(0.2).epoch(stream.epoch), batch);
      }
      expect(stream.epoch).toBeGreaterThan(0);
    });

    it("stays in its epoch when a position of another is refused", () => {
      const options = { batchTokens: 150, seed: 5, bpeDropout: dropoutOf(0.2) };
      const [stream, other] = [new PairBatchStream(data, options), new PairBatchStream(data, options)];
      expect(stream.next()).toEqual(other.next());
      expect(() => stream.restore({ ...stream.state(), epoch: 4, cursor: 1000 })).toThrow("the saved position: expected one inside the data set");
      expect(stream.next()).toEqual(other.next());
    });

    it("refuses a position of another rate, a tokenizer without merges, and values that cannot be", () => {
      const state = new PairBatchStream(data, { batchTokens: 150, seed: 5, bpeDropout: dropoutOf(0.2) }).state();
      expect(() => new PairBatchStream(data, { batchTokens: 150, seed: 5 }).restore(state)).toThrow("the saved position's bpeDropout: expected none, got 0.2.");
      const short = tokenizePairs(corpus, tokenizer);
      expect(() => new PairBatchStream(short, { batchTokens: 150, seed: 5, bpeDropout: dropoutOf(0.2) })).toThrow("expected bpeDropout of the same data set");
      const words = WordVocabulary.fromCounts(["a"]);
      expect(() => new BpeDropout(short, corpus, words, { dropout: 0.1, seed: 0 })).toThrow("BpeDropout: expected a byte-pair tokenizer");
      expect(() => dropoutOf(1.5)).toThrow("dropout to be a finite number");
      expect(() => dropoutOf(0.5, -1)).toThrow("seed to be an integer");
      expect(() => new BpeDropout(short, { ...corpus, targetLanguage: undefined }, tokenizer, { dropout: 0.1, seed: 0, languageTokens: true })).toThrow("BpeDropout: expected the target language of each corpus");
    });
  });

  it("refuses another data set's position, one that is none, and a batch too small for a pair", () => {
    const options = { batchTokens: 12, seed: 0 };
    const data = dataset([
      [
        [3, 4],
        [2, 2],
      ],
    ]);
    const state = new PairBatchStream(data, options).state();
    const other = new PairBatchStream(
      dataset([
        [
          [3, 4],
          [2, 3],
        ],
      ]),
      options,
    );
    expect(() => other.restore(state)).toThrow(/datasetTokens: expected 12, got 11\. Resume with the corpus/);
    const stream = new PairBatchStream(data, options);
    for (const changes of [{ cursor: 3 }, { cursor: -1 }, { epoch: 0.5 }, { rows: "1" as never }]) {
      expect(() => stream.restore({ ...state, ...changes })).toThrow(/the saved position: expected one inside the data set/);
    }
    expect(() => stream.restore({ ...state, seed: 1 })).toThrow(/seed: expected 0, got 1/);
    expect(stream.state()).toEqual(state);
    expect(() => new PairBatchStream(data, { batchTokens: 3, seed: 0 })).toThrow(
      "PairBatchStream: expected batchTokens of at least 4, the length of row 0 of g0, got 3. Take more tokens a batch",
    );
    for (const [changes, says] of [
      [{ seed: -1 }, /seed to be an integer/],
      [{ window: 0 }, /window to be an integer of at least 1/],
      [{ temperature: 0 }, /temperature to be a finite number/],
      [{ temperature: Infinity }, /temperature to be a finite number/],
      [{ batchTokens: 1.5 }, /batchTokens to be an integer/],
    ] as const) {
      expect(() => new PairBatchStream(data, { ...options, ...changes })).toThrow(says);
    }
  });
});

describe("pairEvaluationBatches", () => {
  it("has each pair once, by source and then target length, and the corpus's order can be had back", () => {
    fc.assert(
      fc.property(shapes, ({ groups, batchTokens }) => {
        const data = dataset(groups);
        const batches = [...pairEvaluationBatches(data, { batchTokens })];
        const pairs = batches.flatMap((batch) => [...batch.pairs]);
        expect([...pairs].sort(numerically)).toEqual(range(data.pairs));
        const sizes = pairs.map((pair) => 100 * data.sourceLength(pair) + data.targetLength(pair));
        expect(sizes).toEqual([...sizes].sort(numerically));
        for (const batch of batches) {
          checkBatch(data, batch);
          expect(batch.batchSize * Math.max(batch.sourceSteps, batch.targetSteps)).toBeLessThanOrEqual(batchTokens);
        }
        const results = batches.map((batch) => ({ pairs: batch.pairs, results: [...batch.pairs].map((pair) => `r${pair}`) }));
        expect(inCorpusOrder(results)).toEqual(range(data.pairs).map((pair) => `r${pair}`));
      }),
    );
  });

  it("has no order back where results are missing, doubled or too few", () => {
    const pairs = Int32Array.of(0, 2);
    expect(() => inCorpusOrder([{ pairs, results: ["a", "b"] }])).toThrow(/a result of every pair, got "none of pair 1"/);
    expect(() =>
      inCorpusOrder([
        { pairs, results: ["a", "b"] },
        { pairs, results: ["a", "b"] },
      ]),
    ).toThrow(/one result a pair, got "two of pair 0"/);
    expect(() => inCorpusOrder([{ pairs, results: ["a"] }])).toThrow(/2 results of a batch, got 1/);
  });
});

describe("tokenizePairs", () => {
  const vocabulary = WordVocabulary.fromWords(["a", "b", "c", "<2de>", "<2en>"]); // ids 0 to 4, then <unk> 5 and </s> 6
  const corpus = (sources: string[], targets: string[], languages: Partial<ParallelCorpus> = {}): ParallelCorpus => ({
    sourceLanguage: undefined,
    targetLanguage: undefined,
    sources,
    targets,
    leftOut,
    ...languages,
  });
  const english = corpus(["a b", "c"], ["b", "a a a"], { sourceLanguage: "en", targetLanguage: "de" });
  const german = corpus(["b"], ["a b"], { sourceLanguage: "de", targetLanguage: "en" });

  it("ends each sentence, and puts the token of the target language in front of the source where asked to", () => {
    const plain = tokenizePairs(english, vocabulary);
    expect([[...plain.sources.ids], [...plain.sources.starts]]).toEqual([
      [0, 1, 6, 2, 6],
      [0, 3, 5],
    ]);
    expect([[...plain.targets.ids], [...plain.targets.starts]]).toEqual([
      [1, 6, 0, 0, 0, 6],
      [0, 2, 6],
    ]);
    const tagged = tokenizePairs([english, german], vocabulary, { languageTokens: true });
    expect([...tagged.sources.ids]).toEqual([3, 0, 1, 6, 3, 2, 6, 4, 1, 6]);
    expect([...tagged.targets.ids]).toEqual([1, 6, 0, 0, 0, 6, 0, 1, 6]);
    expect(tagged.groups).toEqual([
      { name: "en-de", pairs: 2, tooLong: 0 },
      { name: "de-en", pairs: 1, tooLong: 0 },
    ]);
    expect([[...tagged.groupOf], [...tagged.rowOf]]).toEqual([
      [0, 0, 1],
      [0, 1, 0],
    ]);
  });

  it("leaves out pairs that are too long, or cuts them before their end, and counts them", () => {
    const bounds = { maxSourceTokens: 3, maxTargetTokens: 3, languageTokens: true };
    const left = tokenizePairs([english, german], vocabulary, { ...bounds, maxSourceTokens: 4 });
    expect(left.groups.map(({ pairs, tooLong }) => [pairs, tooLong])).toEqual([
      [1, 1],
      [1, 0],
    ]);
    expect([...left.rowOf]).toEqual([0, 0]);
    const cut = tokenizePairs([english, german], vocabulary, { ...bounds, tooLong: "cut" });
    expect([[...cut.sources.ids], [...cut.targets.ids]]).toEqual([
      [3, 0, 6, 3, 2, 6, 4, 1, 6],
      [1, 6, 0, 0, 6, 0, 1, 6],
    ]);
    expect(cut.groups.map(({ pairs, tooLong }) => [pairs, tooLong])).toEqual([
      [2, 2],
      [1, 0],
    ]);
  });

  it("keeps the empty sentences that the corpus kept: their end is all of them", () => {
    const data = tokenizePairs(corpus(["", "a"], ["b", ""]), vocabulary);
    expect([[...data.sources.ids], [...data.targets.ids]]).toEqual([
      [6, 0, 6],
      [1, 6, 6],
    ]);
    checkBatchesOf(data);
  });

  function checkBatchesOf(data: PairDataset): void {
    const batch = [...pairEvaluationBatches(data, { batchTokens: 100 })][0];
    expect(batch.tokens).toBe(data.targets.ids.length);
  }

  it("holds two corpora that tell no languages apart", () => {
    expect(tokenizePairs([corpus(["a"], ["b"]), corpus(["b"], ["c"])], vocabulary).groups.map(({ name }) => name)).toEqual([
      "corpus 0",
      "corpus 1",
    ]);
  });

  it.each<[string, () => unknown, RegExp]>([
    [
      "a language without its token",
      () => tokenizePairs(corpus(["a"], ["b"], { targetLanguage: "fr" }), vocabulary, { languageTokens: true }),
      /the word "<2fr>" in the vocabulary/,
    ],
    [
      "no target language",
      () => tokenizePairs(corpus(["a"], ["b"]), vocabulary, { languageTokens: true }),
      /the target language of each corpus, got "none"/,
    ],
    ["a language pair twice", () => tokenizePairs([english, english], vocabulary), /one corpus a language pair, got "en-de"/],
    [
      "no room for a token",
      () => tokenizePairs(english, vocabulary, { maxTargetTokens: 1 }),
      /maxTargetTokens to be an integer of at least 2/,
    ],
    [
      "no room beside a language",
      () => tokenizePairs(english, vocabulary, { maxSourceTokens: 2, languageTokens: true }),
      /maxSourceTokens to be an integer of at least 3/,
    ],
    [
      "another treatment of long pairs",
      () => tokenizePairs(english, vocabulary, { tooLong: "drop" as never }),
      /tooLong to be one of skip, cut/,
    ],
    [
      "nothing left",
      () => tokenizePairs(english, vocabulary, { maxSourceTokens: 2, maxTargetTokens: 2 }),
      /at least one pair of sentences, got "none; 2 are too long"/,
    ],
    ["no corpus", () => tokenizePairs([], vocabulary), /at least one pair of sentences, got "none"/],
  ])("refuses %s", (_, call, says) => {
    expect(call).toThrow(ConfigError);
    expect(call).toThrow(says);
  });
});

/** Where the translation task's data lies, beside the project; it is no part of it. */
const multi30k = fileURLToPath(new URL("../../../shared/data/multi30k/", import.meta.url));

// The body of a describe that is skipped runs all the same.
const withCaptions = existsSync(multi30k) ? describe : (name: string): void => it.skip(name, () => {});

withCaptions(
  "Multi30k, 29,000 captions in English and German (skipped where the data is absent)",
  () => {
    const corpus = readParallelFiles({
      sourceFile: `${multi30k}train.en.gz`,
      targetFile: `${multi30k}train.de.gz`,
      sourceLanguage: "en",
      targetLanguage: "de",
    });
    const tokenizer = trainBpe([...corpus.sources, ...corpus.targets], { vocabSize: 8000, specialTokens: ["<2de>"] });
    const data = tokenizePairs(corpus, tokenizer, { languageTokens: true });

    it("is read whole, and decodes to itself but for the language token and the end", () => {
      expect([corpus.sources.length, corpus.leftOut, data.pairs]).toEqual([29_000, leftOut, 29_000]);
      expect(tokenizer.vocabSize).toBe(8000);
      for (let pair = 0; pair < data.pairs; pair += 97) {
        const source = [...data.sources.ids.subarray(data.sources.starts[pair], data.sources.starts[pair + 1])];
        const target = [...data.targets.ids.subarray(data.targets.starts[pair], data.targets.starts[pair + 1])];
        expect([source[0], source.at(-1), target.at(-1)]).toEqual([
          tokenizer.specialId("<2de>"),
          tokenizer.eosId,
          tokenizer.eosId,
        ]);
        expect([tokenizer.decode(source), tokenizer.decode(target)]).toEqual([corpus.sources[pair], corpus.targets[pair]]);
      }
    });

    it("comes each pair once an epoch, with less than a tenth of the source positions padded", () => {
      const batches = epochOf(new PairBatchStream(data, { batchTokens: 4096, seed: 1 }));
      expect(batches.flatMap(({ pairs }) => [...pairs]).sort(numerically)).toEqual(range(29_000));
      const positions = batches.reduce((sum, { sourceMask }) => sum + sourceMask.length, 0);
      expect(1 - data.sources.ids.length / positions).toBeLessThan(0.1);
      for (const { batchSize, sourceSteps, targetSteps } of batches)
        expect(batchSize * Math.max(sourceSteps, targetSteps)).toBeLessThanOrEqual(4096);
    });
  },
);
