/** The language model of `lm-step` on MPI ranks of one machine: throughput beside one rank with all cores, bytes sent beside the plan, memory of a rank. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { checkConfig } from "#sparsegate/train/config.js";
import { planRanks } from "#sparsegate/train/plan-ranks.js";
import { ran, round, timingOf, wholeNumbers, type BenchResult, type Benchmark } from "./harness.js";
import { SIZES } from "./lm-step.js";
import type { Options, RankSaw } from "./lm-ranks-rank.js";

const rank = fileURLToPath(new URL("./lm-ranks-rank.js", import.meta.url));
/** Two ranks with a core each, over one rank with two. */
const BOUND = 0.85;
/** Bytes sent beside those of the plan. */
const OFF_PLAN = 0.01;

export const lmRanks: Benchmark = {
  question:
    "how many tokens a second does the model of lm-step train on over MPI ranks that share a machine, what do they send, and what does each hold?",
  options: { ranks: "1,2,4", ...SIZES, steps: 10 },
  run({ ranks, ...options }): BenchResult {
    const rows: BenchResult["rows"] = [];
    const notes: string[] = [];
    const speed = new Map<number, number>();
    const work = Object.fromEntries(
      Object.entries(options).map(([name, value]) => [name, name === "model" ? value : Number(value)]),
    ) as unknown as Options;
    const config = checkConfig(
      {
        train: "-",
        model: work.model,
        hidden_size: work.hiddenSize,
        batch_size: work.batchSize,
        time_steps: work.timeSteps,
        sampled_softmax: work.sampled,
        factored_experts: true,
      },
      "the benchmark",
    );
    let alone: number[] | undefined;
    let offPlan = 0;
    for (const size of wholeNumbers("ranks", ranks, 1)) {
      const saw = start(size, work);
      if (typeof saw === "string") {
        notes.push(saw);
        continue;
      }
      const tokens = (work.timeSteps * work.batchSize) / timingOf(saw[0]!.seconds).median;
      speed.set(size, tokens);
      alone ??= saw[0]!.losses;
      if (saw[0]!.losses.some((loss, i) => !(Math.abs(loss - alone![i]!) < 1e-4 * loss)))
        throw new Error(`expected the losses of one rank on ${size}, got ${saw[0]!.losses.join()} for ${alone.join()}`);
      const sent = saw.reduce((sum, { bytesSent }) => sum + bytesSent, 0) / size;
      const planned = planRanks(config, work.vocabSize, size).sent.all;
      if (planned > 0) offPlan = Math.max(offPlan, Math.abs(sent / planned - 1));
      rows.push({
        ranks: size,
        "tokens/s": Math.round(tokens),
        "MB sent a step and rank": round(sent / 1e6, 4),
        "MB by plan": round(planned / 1e6, 4),
        "parameters of a rank M": round(Math.max(...saw.map(({ parameters }) => parameters)) / 1e6, 4),
        "tensors GiB": round(Math.max(...saw.map(({ peakBytes }) => peakBytes)) / 2 ** 30),
        "resident GiB": round(Math.max(...saw.map(({ residentBytes }) => residentBytes)) / 2 ** 30),
      });
    }
    const cores = availableParallelism();
    const [one, two] = [speed.get(1), speed.get(2)];
    notes.push(`each rank has ${cores} / ranks of the cores`);
    return {
      rows,
      targets: [
        ...(one && two ? [{ name: "tokens/s of two ranks over one", value: two / one, bound: BOUND }] : []),
        { name: "bytes sent off the plan, at most", value: offPlan, bound: OFF_PLAN, atMost: true },
      ],
      notes,
    };
  },
};

/** What each rank saw, or why there is none. */
function start(size: number, options: Options): RankSaw[] | string {
  const folder = mkdtempSync(join(tmpdir(), "sparsegate-lm-ranks-"));
  try {
    const program = [rank, JSON.stringify(options), folder];
    if (size === 1) ran(process.execPath, program);
    else if (!ran("mpirun", ["--bind-to", "none", "-n", String(size), process.execPath, ...program]))
      return `mpirun is not installed: ${size} ranks were left out`;
    return Array.from({ length: size }, (_, i) => JSON.parse(readFileSync(join(folder, `${i}.json`), "utf8")) as RankSaw);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
