/** A layer larger than one process can hold, its experts on several ranks of this machine: does it train, in how much memory? */

import { freemem } from "node:os";
import { runRanks } from "#sparsegate/comm/index.js";
import { UsageError, round, timingOf, type BenchResult, type Benchmark } from "./harness.js";
import type { Options, RankSaw } from "./large-layer-rank.js";

const rank = new URL("./large-layer-rank.js", import.meta.url);
/** All that one WebAssembly memory can hold, in float32. */
const ONE_MEMORY = 2 ** 30;
/** Resident, of all ranks. */
const MOST_GB = 20;

export const largeLayer: Benchmark = {
  question: "does a layer of two billion parameters, twice what one memory can hold, train on the ranks of one machine?",
  options: { ranks: 8, numExperts: 240, hiddenSize: 1024, expertHiddenSize: 4096, rows: 512, learningRate: 2e-4, steps: 20 },
  async run({ ranks, ...options }): Promise<BenchResult> {
    const work = Object.fromEntries(Object.entries(options).map(([name, value]) => [name, Number(value)])) as unknown as Options;
    const size = Number(ranks);
    if (!(Number.isInteger(size) && size > 0 && work.rows % size === 0))
      throw new UsageError(`expected --rows to be a multiple of --ranks, got ${work.rows} and ${ranks}.`);
    const weights = work.numExperts * 2 * work.hiddenSize * work.expertHiddenSize;
    // Weights, their gradients, and what is underway.
    if (2.2 * 4 * weights > freemem())
      return {
        rows: [],
        targets: [],
        notes: [
          `left out: ${round(weights / 1e9)} billion parameters take some ${round((2.2 * 4 * weights) / 2 ** 30)} GiB, and ${round(freemem() / 2 ** 30)} are free`,
        ],
      };
    let most = 0;
    const watch = setInterval(() => (most = Math.max(most, process.memoryUsage().rss)), 200);
    const saw = await runRanks<RankSaw>(size, rank, work);
    clearInterval(watch);
    const { losses } = saw[0]!;
    const parameters = saw.reduce((sum, { own }) => sum + own, saw[0]!.shared);
    const rows = losses.map((loss, step) => ({
      step: step + 1,
      loss: round(loss, 4),
      seconds: round(Math.max(...saw.map(({ seconds }) => seconds[step]!))),
    }));
    const targets: BenchResult["targets"] = [
      { name: "loss of the last step over the first", value: losses.at(-1)! / losses[0]!, bound: 1, atMost: true },
      { name: "resident GB of all ranks", value: most / 1e9, bound: MOST_GB, atMost: true },
    ];
    const notes = [
      `${round(parameters / 1e9, 4)} billion parameters, ${round(parameters / ONE_MEMORY)} times what one memory can hold, on ${size} ranks; ${round(Math.max(...saw.map(({ peakBytes }) => peakBytes)) / 2 ** 30)} GiB of tensors on the one that has most`,
      `${round(timingOf(rows.map(({ seconds }) => seconds)).median)} s a step`,
    ];
    return { rows, targets, notes };
  },
};
