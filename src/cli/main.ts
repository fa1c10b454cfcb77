#!/usr/bin/env node
/** The command line: `sparsegate train | sweep | plan | eval | translate | generate | inspect | models | reproduce | doctor | demo`. Results go to stdout, progress to stderr. */

import { readFileSync } from "node:fs";
import { Command, CommanderError, InvalidArgumentError } from "commander";
import { SparsegateError } from "../core/errors.js";
import { TRAIN_FLAGS } from "./train-flags.js";

const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string };

function wholeNumber(value: string): number {
  const n = number(value);
  if (!Number.isSafeInteger(n) || n < 0) throw new InvalidArgumentError("Expected a whole number.");
  return n;
}

function atLeastOne(value: string): number {
  const n = wholeNumber(value);
  if (n < 1) throw new InvalidArgumentError("Expected a number from 1.");
  return n;
}

function number(value: string): number {
  const n = Number(value);
  if (value.trim() === "" || !Number.isFinite(n)) throw new InvalidArgumentError("Expected a number.");
  return n;
}

/** Adds the options of a training run. */
function trainFlags(command: Command): void {
  for (const [heading, flags] of TRAIN_FLAGS) {
    command.optionsGroup(`${heading}:`);
    for (const [flag, description] of flags) command.option(flag, description);
  }
}

/** Values of an option that may be repeated. */
function several(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value];
}

const EXIT_CODES = `
Exit codes: 0 done; 1 something to be mended, said in one line; 70 a bug of sparsegate; 130 or 143 training was interrupted by
Ctrl-C or SIGTERM and has written a checkpoint. Progress and messages go to stderr, results to stdout.`;

/** Heads the options of a command that a language model has no use for. */
const FOR_TRANSLATION = "Options for translation models alone:";

/** Those of these that were given, and are not at their defaults. */
function givenForTranslation(command: Command): string[] {
  const given = (name: string): boolean => !["default", undefined].includes(command.getOptionValueSource(name));
  return command.options.filter((option) => option.helpGroupHeading === FOR_TRANSLATION && given(option.attributeName())).map(({ long, flags }) => long ?? flags);
}

/** The option of commands that use a model. */
function choosing(command: Command): Command {
  return command.option("--checkpoint <which>", "best (by validation perplexity; the last where no best is kept) or last", "best");
}

/** Options of commands that search for translations. */
function searching(command: Command): Command {
  return command
    .option("--language <code>", "language to translate into, for a model of several")
    .option("--beam-size <n>", "beams; 1 takes the likeliest token", wholeNumber, 4)
    .option("--length-penalty <x>", "GNMT's alpha: more gives longer translations", number, 1)
    .option("--coverage-penalty <x>", "GNMT's beta: against source words that were not read", number, 0)
    .option("--batch-size <n>", "sentences at once", wholeNumber, 32)
    .option("--average <n>", "use the average of the last n checkpoints", wholeNumber);
}

function program(): Command {
  const root = new Command("sparsegate").description("Sparsely-gated mixture-of-experts networks on the CPU").version(version).showHelpAfterError("(add --help for the options)").addHelpText("after", EXIT_CODES);
  root
    .command("demo [what]")
    .description("train a dense model and MoE layers of 4, 32 and 256 experts on TypeScript's messages in 14 languages, and report; or with translation, one model each for twelve pairs of languages")
    .option("--quick", "a few steps each: shows that everything runs, not that capacity wins")
    .option("--output-dir <dir>", "where the report goes (runs/demo, runs/demo-translation)")
    .option("--max-steps <n>", "training steps a model", wholeNumber)
    .option("--seed <n>", "seed of everything random", wholeNumber, 0)
    .option("--no-progress", "no live progress")
    .option("--json", "print the results as JSON")
    .action(async (what: string | undefined, options: Record<string, unknown>) => {
      if (what === undefined) return (await import("./demo.js")).demo({ outputDir: "runs/demo", ...options });
      if (what !== "translation") throw new SparsegateError(`demo: expected translation or nothing, got "${what}".`);
      return (await import("./demo-translation.js")).demoTranslation({ outputDir: "runs/demo-translation", ...options });
    });

  const train = root
    .command("train")
    .description("train a language model on text, or with --task translation a translation model on pairs")
    .option("--config <file>", "JSON file of options in snake_case; flags and SPARSEGATE_TRAIN_* win over it")
    .option("--preset <name>", "a named translation model, below the config file: wmt-none, wmt-moe-32, wmt-moe-512-h, wmt-moe-2048-h, multilingual-moe-512, captions-dense, captions-moe, messages-dense, messages-moe")
    .option("--resume [dir]", "go on from a checkpoint, or from the latest one of a run (of --output-dir when none is named), with its configuration")
    .option("--overwrite", "discard the checkpoints of an earlier run in --output-dir, or those after the one that is resumed")
    .option("--dry-run", "print parameters, ops/timestep and memory, and stop")
    .option("--ranks <n>", "train on so many ranks, threads of this process that share its cores; under mpirun, mpirun's -n says it", atLeastOne)
    .option("--no-progress", "no live progress")
    .option("--json", "print the result as JSON")
    .allowExcessArguments(false);
  trainFlags(train);
  train.action(async (options: Record<string, unknown>) => (await import("./train.js")).trainCommand(options));

  const sweep = root
    .command("sweep")
    .description("train every combination of some options' values on the same text and budget, and compare them on the validation text")
    .option("--vary <setting>", "an option of train and the values to try, like dropout=0,0.1,0.2; may be repeated", several)
    .option("--seeds <list>", "each combination is trained with each of these (--seed)")
    .option("--tokens <n>", "training tokens a trial, in place of --max-steps", wholeNumber)
    .option("--combinations <n>", "try so many combinations at most, drawn by chance", atLeastOne)
    .option("--config <file>", "JSON file of options in snake_case; flags and SPARSEGATE_TRAIN_* win over it")
    .option("--overwrite", "train all trials anew; left out, those that are there go on, or are done")
    .option("--no-progress", "no live progress")
    .option("--json", "print the results as JSON")
    .allowExcessArguments(false);
  trainFlags(sweep);
  sweep.action(async (options: Record<string, unknown>) => (await import("./sweep.js")).sweepCommand(options));

  const plan = root
    .command("plan")
    .description("what a run needs on ranks: parameters, memory, flops and bytes sent, without starting one; takes the options of train")
    .requiredOption("--ranks <n>", "ranks that the experts are spread over", atLeastOne)
    .option("--hosts <n>", "hosts that the ranks are spread over", atLeastOne, 1)
    .option("--config <file>", "as for train")
    .option("--json", "print as JSON");
  trainFlags(plan);
  plan.action(async (options: Record<string, unknown>) => (await import("./plan.js")).planCommand(options));

  const evaluation = root
    .command("eval <run>")
    .description("perplexity of a trained model, by the exact softmax; of a translation model BLEU and chrF too")
    .option("--data <file>", "text, plain or .gz; default: the run's test or valid text, of a translation model that of each pair of languages");
  choosing(evaluation).option("--json", "print the result as JSON").optionsGroup(FOR_TRANSLATION).option("--target <file>", "translations of --data");
  searching(evaluation)
    .option("--samples <n>", "show n translations from the worst to the best, by the chrF of each sentence", atLeastOne)
    .action(async (run: string, options: Record<string, unknown>, command: Command) => (await import("./use.js")).evalCommand(run, options, givenForTranslation(command)));
  searching(choosing(root.command("translate <run> [text...]").description("translate a text, or stdin line by line")))
    .option("--n-best <n>", "so many translations of each line, with line number and score", wholeNumber, 1)
    .option("--attention", "with --json: what was read of each source token")
    .option("--figure <file>", "write a page that draws what was read, for the first 20 lines")
    .option("--no-progress", "no live progress")
    .option("--json", "print a JSON object a line")
    .action(async (run: string, text: string[], options: Record<string, unknown>) => (await import("./translation.js")).translateCommand(run, text, options));
  choosing(root.command("generate <run>").description("text from a trained model"))
    .option("--prompt <text>", "what to continue; may be repeated, and is continued side by side then", several)
    .option("--prompts <file>", "prompts, one a line")
    .option("--max-tokens <n>", "length at most", wholeNumber, 100)
    .option("--temperature <x>", "0 takes the most likely token", number, 0.8)
    .option("--top-k <n>", "sample from the n most likely; 0: from all", wholeNumber, 0)
    .option("--top-p <x>", "sample from the most likely that make up this probability", number, 1)
    .option("--seed <n>", "seed", wholeNumber, 0)
    .option("--json", "print prompts and texts as JSON, at the end")
    .action(async (run: string, options: Record<string, unknown>) => (await import("./use.js")).generateCommand(run, options));
  root
    .command("inspect <run>")
    .description("a run's parameters, metrics and how its experts were used, at its last checkpoint; name RUN/best or RUN/checkpoint-<step> for another")
    .option("--html <file>", "write a page with figures: load of each expert, and balance, over training; with --contexts, the text coloured by expert")
    .option("--contexts", "what each expert takes: the places of a text where its gate value is the highest")
    .option("--data <file>", "the text of --contexts, plain or .gz; default: the run's test or valid text; of a translation model: a source text")
    .option("--lines <n>", "lines of it at most", wholeNumber, 2000)
    .option("--language <code>", "with --contexts: the language to translate into, for a translation model of several")
    .option("--json", "print as JSON")
    .action(async (run: string, options: Record<string, unknown>) => (await import("./inspect.js")).inspectCommand(run, options));
  root
    .command("models")
    .description("the paper's language models: ops/timestep and parameters computed from their architecture, beside what it prints")
    .option("--scale <x>", "widths in proportion to the paper's, with as many experts", number, 1)
    .option("--json", "print as JSON")
    .action(async (options: Record<string, unknown>) => (await import("./models.js")).modelsCommand(options));
  root
    .command("reproduce <table>")
    .description("train the rows of a table of the paper in kind, and report them beside its figures: table-6 (balance losses), table-7 (more experts at equal computation), table-8 (and more data)")
    .option("--data <path>", "text, plain or .gz, a sentence a line, or a folder of train, valid, test and vocab; default: TypeScript's messages in 14 languages")
    .option("--output-dir <dir>", "where rows and report go (runs/<table>); rows that are there already go on, or are done")
    .option("--overwrite", "train all rows anew")
    .option("--rows <names>", "rows to train, separated by commas (those of the paper's width up to MoE-1024-h)")
    .option("--scale <x>", "table-7 and table-8: widths in proportion to the paper's (0.25)", number)
    .option("--tokens <n>", "training tokens a row; more than before carry rows on from where they are, in table-8 those alone whose tenth is measured or lies ahead", wholeNumber)
    .option("--max-steps <n>", "training steps a row, in place of --tokens", wholeNumber)
    .option("--set <setting>", "an option of train for all rows, like dropout=0.2, or for one, like MoE-256:dropout=0.2; may be repeated", several)
    .option("--results <dir>", "write table and figures there too, as Markdown, JSON and SVG, whenever a row is done")
    .option("--seed <n>", "seed of everything random", wholeNumber, 0)
    .option("--no-progress", "no live progress")
    .option("--json", "print the results as JSON")
    .action(async (table: string, options: Record<string, unknown>) => (await import("./reproduce.js")).reproduceCommand(table, options));
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

// Whoever read the output may be gone, as `| head` is after its lines; that is no error of ours.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit();
  throw error;
});
process.stderr.on("error", () => {});

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
