/**
 * The published anchor: the small non-regularised LSTM of Zaremba et al. 2014 on Penn Treebank, by the command line as a user would run it.
 *
 * Their loss is summed over the 20 steps and averaged over the batch, ours is the mean over tokens: so their rate of 1.0 is 20 here, and their clipping
 * at 5 is 0.25.
 */

import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { round, type BenchResult, type Benchmark } from "./harness.js";

const root = fileURLToPath(new URL("../../", import.meta.url));
/** Test perplexity of the paper's Table 1 for this model, and how far we may be from it. */
const PUBLISHED = 114.5;
const TOLERANCE = 2;

export const ptb: Benchmark = {
  question: `does the small LSTM of Zaremba et al. 2014 reach its published test perplexity of ${PUBLISHED} on Penn Treebank?`,
  options: { data: `${root}../shared/data/ptb`, epochs: 13, seed: 0, outputDir: `${root}runs/ptb` },
  run({ data, epochs, seed, outputDir }): BenchResult {
    const file = (part: string): string => `${data}/ptb.${part}.txt`;
    if (!existsSync(file("train")))
      return {
        rows: [],
        targets: [],
        notes: [`Penn Treebank is missing, nothing was measured: no ${file("train")}. Pass --data FOLDER.`],
      };
    const tokens = readFileSync(file("train"), "utf8")
      .trimEnd()
      .split("\n")
      .reduce((sum, line) => sum + line.trim().split(/\s+/).length + 1, 0);
    const epoch = Math.ceil(Math.floor(tokens / 20) / 20);
    const flags: Record<string, string | number> = {
      train: file("train"),
      valid: file("valid"),
      test: file("test"),
      "text-mode": "continuous",
      tokenizer: "words",
      "vocab-size": 10_000,
      eos: "<eos>",
      model: "LSTM",
      "hidden-size": 200,
      "lstm-size": 200,
      "init-scale": 0.1,
      dropout: 0,
      "batch-size": 20,
      "time-steps": 20,
      "max-steps": Number(epochs) * epoch,
      optimizer: "sgd",
      "learning-rate": 20,
      schedule: "step",
      "decay-hold-steps": 4 * epoch,
      "decay-every-steps": epoch,
      "decay-factor": 0.5,
      "max-grad-norm": 0.25,
      "eval-steps": epoch,
      "save-steps": epoch,
      "logging-steps": 100,
      seed,
      "output-dir": outputDir,
    };
    const args = [
      "dist/cli/main.js",
      "train",
      "--overwrite",
      "--no-residual",
      "--json",
      ...Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]),
    ];
    const { stdout, status } = spawnSync(process.execPath, args, {
      cwd: root,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "inherit"],
    });
    if (status !== 0) throw new Error(`training ended with status ${status}`);
    const result = JSON.parse(stdout) as {
      steps: number;
      tokens_per_second: number;
      valid_perplexity: number;
      test_perplexity: number;
    };
    return {
      rows: [
        {
          steps: result.steps,
          "tokens/s": result.tokens_per_second,
          "valid perplexity": round(result.valid_perplexity, 5),
          "test perplexity": round(result.test_perplexity, 5),
        },
      ],
      targets: [
        {
          name: `distance of the test perplexity from the published ${PUBLISHED}`,
          value: Math.abs(result.test_perplexity - PUBLISHED),
          bound: TOLERANCE,
          atMost: true,
        },
      ],
      notes: [],
    };
  },
};
