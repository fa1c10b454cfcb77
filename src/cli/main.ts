#!/usr/bin/env node
/** The command line: `sparsegate train | eval | generate | inspect | doctor | demo`. Results go to stdout, progress to stderr. */

import { readFileSync } from "node:fs";
import { Command, CommanderError, InvalidArgumentError } from "commander";
import { SparsegateError } from "../core/errors.js";

const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string };

function wholeNumber(value: string): number {
  const n = Number(value);
  if (!Number.isInteger(n) || n < 0) throw new InvalidArgumentError("Expected a whole number.");
  return n;
}

function number(value: string): number {
  const n = Number(value);
  if (!Number.isFinite(n)) throw new InvalidArgumentError("Expected a number.");
  return n;
}

function program(): Command {
  const root = new Command("sparsegate").description("Sparsely-gated mixture-of-experts networks on the CPU").version(version).showHelpAfterError("(add --help for the options)");
  root
    .command("demo")
    .description("train a dense model and MoE layers of 4, 32 and 256 experts on TypeScript's messages in 14 languages, and report")
    .option("--quick", "40 steps each: shows that everything runs, not that capacity wins")
    .option("--output-dir <dir>", "where the report goes", "runs/demo")
    .option("--max-steps <n>", "training steps a model", wholeNumber)
    .option("--seed <n>", "seed of everything random", wholeNumber, 0)
    .option("--no-progress", "no live progress")
    .option("--json", "print the results as JSON")
    .action(async (options: Record<string, unknown>) => (await import("./demo.js")).demo(options));

  const train = root
    .command("train")
    .description("train a language model on text")
    .option("--config <file>", "JSON file of options in snake_case; flags and SPARSEGATE_TRAIN_* win over it")
    .option("--resume [dir]", "go on from a checkpoint, or from the latest one in --output-dir")
    .option("--dry-run", "print parameters, ops/timestep and memory, and stop")
    .option("--no-progress", "no live progress")
    .option("--json", "print the result as JSON")
    .allowExcessArguments(false);
  for (const [flags, description, parse] of TRAIN_FLAGS) train.option(flags, description, parse);
  train.action(async (options: Record<string, unknown>) => (await import("./train.js")).trainCommand(options));

  root
    .command("eval <run>")
    .description("perplexity of a trained model, by the exact softmax")
    .option("--data <file>", "text, plain or .gz; default: the run's test or valid text")
    .option("--json", "print the result as JSON")
    .action(async (run: string, options: Record<string, unknown>) => (await import("./use.js")).evalCommand(run, options));
  root
    .command("generate <run>")
    .description("text from a trained model")
    .option("--prompt <text>", "what to continue", "")
    .option("--max-tokens <n>", "length at most", wholeNumber, 100)
    .option("--temperature <x>", "0 takes the most likely token", number, 0.8)
    .option("--top-k <n>", "sample from the n most likely; 0: from all", wholeNumber, 0)
    .option("--top-p <x>", "sample from the most likely that make up this probability", number, 1)
    .option("--seed <n>", "seed", wholeNumber, 0)
    .action(async (run: string, options: Record<string, unknown>) => (await import("./use.js")).generateCommand(run, options));
  root
    .command("inspect <run>")
    .description("a run's parameters, metrics and the load of its experts")
    .option("--json", "print as JSON")
    .action(async (run: string, options: Record<string, unknown>) => (await import("./use.js")).inspectCommand(run, options));
  root
    .command("doctor")
    .description("what this machine offers, how fast it is, and what would make it faster")
    .option("--json", "print as JSON")
    .action(async (options: Record<string, unknown>) => (await import("./doctor.js")).doctor(options));
  root
    .command("bench [name]")
    .description("run a benchmark of a checkout of sparsegate (npm run bench lists them)")
    .action(() => {
      throw new SparsegateError("bench: benchmarks need a checkout of sparsegate. Run npm run bench there; it lists their names.");
    });
  return root;
}

/** Flags of `train`, in kebab-case; names and defaults of the values are those of train/config.ts. */
const TRAIN_FLAGS: readonly [flags: string, description: string, parse: (value: string) => unknown][] = [
  ["--train <file>", "training text, plain or .gz", String],
  ["--valid <file>", "text for evaluation while training", String],
  ["--test <file>", "text for evaluation at the end", String],
  ["--text-mode <mode>", "sentences (independent lines) or continuous", String],
  ["--vocab <file>", "closed vocabulary, one word a line", String],
  ["--tokenizer <kind>", "bpe or words, when there is no --vocab", String],
  ["--vocab-size <n>", "size of a vocabulary made here", number],
  ["--eos <word>", "end-of-sentence word", String],
  ["--model <name>", "MoE-1-Wide, MoE-1-Deep, 4xLSTM, LSTM, or MoE-<experts>", String],
  ["--hidden-size <n>", "width of every layer", number],
  ["--expert-hidden-size <n>", "hidden width of an expert (2 x hidden size)", number],
  ["--lstm-size <n>", "units of an LSTM (hidden size; more are projected back)", number],
  ["--top-k <n>", "experts a token uses", number],
  ["--importance-weight <x>", "w_importance", number],
  ["--load-weight <x>", "w_load", number],
  ["--dropout <x>", "dropout rate", number],
  ["--init-scale <x>", "weights start uniform in [-x, x]", number],
  ["--no-sigmoid", "no sigmoid on the MoE's output", () => false],
  ["--no-residual", "no residual connections", () => false],
  ["--batch-size <n>", "sequences side by side", number],
  ["--time-steps <n>", "tokens of each per step", number],
  ["--max-steps <n>", "training steps", number],
  ["--optimizer <name>", "adam or sgd", String],
  ["--beta1 <x>", "Adam's beta1", number],
  ["--beta2 <x>", "Adam's beta2", number],
  ["--factored-experts", "factored second moments for expert matrices", () => true],
  ["--learning-rate <x>", "peak learning rate", number],
  ["--schedule <name>", "inverse-sqrt, constant or step", String],
  ["--warmup-steps <n>", "steps of linear rise", number],
  ["--decay-hold-steps <n>", "steps before a step decay begins", number],
  ["--decay-every-steps <n>", "steps between decays", number],
  ["--decay-factor <x>", "what the rate is multiplied by", number],
  ["--max-grad-norm <x>", "clip gradients to this global norm", number],
  ["--sampled-softmax <n>", "classes of a sampled softmax in training; 0: exact", number],
  ["--seed <n>", "seed of everything random", number],
  ["--output-dir <dir>", "where checkpoints and metrics go", String],
  ["--eval-steps <n>", "steps between evaluations", number],
  ["--save-steps <n>", "steps between checkpoints", number],
  ["--save-total-limit <n>", "checkpoints kept", number],
  ["--logging-steps <n>", "steps between metrics", number],
];

try {
  await program().exitOverride().parseAsync(process.argv);
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode;
  else if (error instanceof SparsegateError) {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  } else {
    process.stderr.write(`${(error as Error).stack ?? String(error)}\nThis is a bug of sparsegate; please report it.\n`);
    process.exitCode = 70;
  }
}
