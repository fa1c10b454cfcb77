// Batches for training and evaluation, and the corpus of compiler messages.
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Batch, type BatchMode, BatchStream, evaluationBatches } from "#sparsegate/text/batches.js";
import { TokenDataset, tokenizeCorpus } from "#sparsegate/text/dataset.js";
import { loadMessages, splitMessages } from "#sparsegate/text/messages.js";
import { WordVocabulary } from "#sparsegate/text/word-vocab.js";

const EOS = 0;

/** Sentences of the given lengths; all tokens but the ends differ, so that a lost or doubled one shows. */
function dataset(lengths: readonly number[]): TokenDataset {
  const tokens: number[] = [];
  const starts: number[] = [];
  for (const length of lengths) {
    starts.push(tokens.length);
    for (let i = 0; i < length; i++) tokens.push(tokens.length + 1);
    tokens.push(EOS);
  }
  return new TokenDataset(Int32Array.from(tokens), Int32Array.from(starts), EOS);
}

/** The (input, target, reset) triples of each lane over the batches, without padding. */
function lanesOf(batches: readonly Batch[]): [number, number, number][][] {
  return Array.from({ length: batches[0].batchSize }, (_, b) =>
    batches.flatMap(({ inputs, targets, resets, timeSteps, batchSize }) =>
      Array.from({ length: timeSteps }, (_, t) => t * batchSize + b)
        .map((i): [number, number, number] => [inputs[i], targets[i], resets[i]])
        .filter(([, target]) => target !== -1),
    ),
  );
}

/** The sentences of a lane, cut at resets; checks that each input is the target before it, and the end id at a start. */
function sentencesOf(lane: readonly [number, number, number][]): number[][] {
  const sentences: number[][] = [];
  for (const [i, [input, target, reset]] of lane.entries()) {
    if (reset === 1) sentences.push([]);
    expect(input).toBe(reset === 1 ? EOS : lane[i - 1][1]);
    sentences.at(-1)!.push(target);
  }
  return sentences;
}

const byFirst = (a: number[], b: number[]): number => a[0] - b[0];

function sentencesIn(data: TokenDataset): number[][] {
  return Array.from({ length: data.sentences }, (_, i) => [...data.tokens.subarray(data.starts[i], data.endOf(i))]).sort(byFirst);
}

const shapes = fc.record({
  lengths: fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 30 }),
  batchSize: fc.integer({ min: 1, max: 5 }),
  timeSteps: fc.integer({ min: 1, max: 7 }),
  seed: fc.nat(),
});

describe("BatchStream of sentences", () => {
  it("gives each sentence once an epoch, whole, with a reset at its start alone", () => {
    fc.assert(
      fc.property(shapes, ({ lengths, batchSize, timeSteps, seed }) => {
        const data = dataset(lengths);
        const stream = new BatchStream(data, { batchSize, timeSteps, mode: "sentences", seed });
        const batches: Batch[] = [];
        const epochs = 2;
        // Long enough for every sentence of two epochs to be through in whatever lane it is.
        while (stream.epoch < epochs || batches.length * timeSteps < (epochs + 1) * data.tokens.length) batches.push(stream.next());
        const lanes = lanesOf(batches);
        const rows: [number, number[]][] = [];
        for (const [b, lane] of lanes.entries()) {
          expect(lane.length).toBe(batches.length * timeSteps);
          let t = 0;
          for (const sentence of sentencesOf(lane)) {
            rows.push([t * batchSize + b, sentence]);
            t += sentence.length;
          }
        }
        // Sentences are taken in the order of the rows in which they begin.
        const taken = rows.sort(([a], [b]) => a - b).map(([, sentence]) => sentence);
        for (let epoch = 0; epoch < epochs; epoch++) {
          const part = taken.slice(epoch * data.sentences, (epoch + 1) * data.sentences);
          expect(part.sort(byFirst)).toEqual(sentencesIn(data));
        }
      }),
    );
  });

  it("shuffles anew each epoch and by the seed", () => {
    const first = (seed: number): number[] => {
      const stream = new BatchStream(dataset(Array(40).fill(1)), { batchSize: 1, timeSteps: 80, mode: "sentences", seed });
      return [...stream.next().targets, ...stream.next().targets].filter((target) => target !== EOS);
    };
    const targets = first(1);
    expect(targets.slice(0, 40)).not.toEqual(targets.slice(40));
    expect(first(2)).not.toEqual(targets);
    expect(first(1)).toEqual(targets);
  });
});

describe("BatchStream of a continuous text", () => {
  it("reads each lane through once an epoch, with resets at the epoch's first position alone", () => {
    const data = dataset([4, 2, 5, 3, 3]); // 22 tokens: two lanes of 11
    const stream = new BatchStream(data, { batchSize: 2, timeSteps: 4, mode: "continuous", seed: 0 });
    const lanes = lanesOf(Array.from({ length: 11 }, () => stream.next()));
    for (const [b, lane] of lanes.entries()) {
      const own = [...data.tokens.subarray(11 * b, 11 * b + 11)];
      expect(lane.map(([, target]) => target)).toEqual([...own, ...own, ...own, ...own]);
      expect(lane.map(([, , reset], i) => (reset ? i : -1)).filter((i) => i >= 0)).toEqual([0, 11, 22, 33]);
      sentencesOf(lane);
    }
    expect(stream.epoch).toBe(3);
  });

  it("refuses a corpus that does not fill one batch", () => {
    expect(() => new BatchStream(dataset([3]), { batchSize: 2, timeSteps: 3, mode: "continuous", seed: 0 })).toThrow(/at least 6 tokens.*got 4/);
  });
});

describe("resuming", () => {
  it.each<BatchMode>(["sentences", "continuous"])("goes on with the very same batches (%s)", (mode) => {
    const options = { batchSize: 3, timeSteps: 4, mode, seed: 7 };
    const data = dataset([5, 1, 8, 2, 2, 6, 3, 12]);
    for (let before = 0; before < 15; before++) {
      const stream = new BatchStream(data, options);
      for (let i = 0; i < before; i++) stream.next();
      const resumed = new BatchStream(data, options);
      resumed.restore(JSON.parse(JSON.stringify(stream.state())));
      expect(resumed.epoch).toBe(stream.epoch);
      for (let i = 0; i < 12; i++) expect(resumed.next()).toEqual(stream.next());
      expect(resumed.next().firstRow).toBe((before + 12) * 12);
    }
  });

  it("refuses the position of another corpus", () => {
    const options = { batchSize: 1, timeSteps: 2, mode: "sentences", seed: 0 } as const;
    const state = new BatchStream(dataset([3]), options).state();
    expect(() => new BatchStream(dataset([4]), options).restore(state)).toThrow(/datasetTokens/);
    for (const lane of [null, 7, [], [0, 1]]) {
      const wrong = { ...state, lanes: [lane as unknown as [number, number, number]] };
      expect(() => new BatchStream(dataset([3]), options).restore(wrong)).toThrow(/expected one inside the corpus/);
    }
  });
});

describe("evaluationBatches", () => {
  it("has each token as a target exactly once, and counts the targets", () => {
    fc.assert(
      fc.property(shapes, ({ lengths, batchSize, timeSteps }) => {
        const data = dataset(lengths);
        const sentences = [...evaluationBatches(data, { batchSize, timeSteps, mode: "sentences" })];
        expect(lanesOf(sentences).flatMap(sentencesOf).sort(byFirst)).toEqual(sentencesIn(data));
        const stream = [...evaluationBatches(data, { batchSize, timeSteps, mode: "continuous" })];
        expect(lanesOf(stream).map(sentencesOf)).toEqual([[[...data.tokens]]]);
        for (const batches of [sentences, stream]) {
          expect(batches.reduce((sum, { tokens }) => sum + tokens, 0)).toBe(data.tokens.length);
          for (const { tokens, targets } of batches) expect(targets.filter((target) => target !== -1).length).toBe(tokens);
        }
      }),
    );
  });
});

describe("tokenizeCorpus", () => {
  it("ends each sentence, passes over empty lines, and refuses a corpus of nothing else", () => {
    const vocabulary = WordVocabulary.fromCounts(["a b"]);
    const data = tokenizeCorpus(["a b", "", "  ", "b"], vocabulary);
    expect([...data.tokens]).toEqual([2, 3, 0, 3, 0]);
    expect([...data.starts]).toEqual([0, 3]);
    expect(() => tokenizeCorpus(["", " "], vocabulary)).toThrow(/empty lines/);
  });
});

describe("the compiler's messages", () => {
  const messages = loadMessages();

  it("are there in fourteen languages, each on one line", () => {
    expect(new Set(messages.map(({ language }) => language)).size).toBe(14);
    expect(messages).toContainEqual({ key: "Unterminated_string_literal_1002", language: "en", text: "Unterminated string literal." });
    expect(messages.filter(({ language }) => language === "en").length).toBe(2121);
    expect(messages.filter(({ text }) => /[\r\n]/.test(text) || text === "")).toEqual([]);
  });

  it("name the file and the way out when they are missing or damaged", () => {
    expect(() => loadMessages("/nowhere/messages.json.br")).toThrow(/nowhere.*expected the compiler's messages, packed, got .*ENOENT.*npm run build/);
    expect(() => loadMessages(fileURLToPath(import.meta.url))).toThrow(/batches\.test.*expected the compiler's messages, packed, got .*install sparsegate again/);
  });

  it("are split so that no key is in two parts, and none is lost", () => {
    const { train, valid, test } = splitMessages(messages, { seed: 1, validShare: 0.1, testShare: 0.1 });
    const keys = [train, valid, test].map((part) => new Set(part.map(({ key }) => key)));
    for (const key of keys[0]) expect(keys[1].has(key) || keys[2].has(key)).toBe(false);
    for (const key of keys[1]) expect(keys[2].has(key)).toBe(false);
    expect(train.length + valid.length + test.length).toBe(messages.length);
    expect(test.length / messages.length).toBeGreaterThan(0.07);
    expect(test.length / messages.length).toBeLessThan(0.13);
  });
});
