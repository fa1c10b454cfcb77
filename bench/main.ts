/** The command line of one benchmark: reads its options, runs it, and prints a table for people, JSON with --json, and a page with --report. */

import { cpus } from "node:os";
import { round, UsageError, type Benchmark, type BenchResult } from "./harness.js";
import { met, writeReport } from "./report.js";

/** What options mean; one name means the same in every benchmark. */
const ABOUT: Record<string, string> = {
  batchSize: "sequences of a batch",
  beamSize: "hypotheses of a sentence that go on at each step",
  data: "folder of the text",
  epochs: "times through the training text",
  experts: "numbers of experts, with commas between",
  hiddenSize: "width of the model",
  install: "yes installs a missing peer (npm, or apt-get as root)",
  model: "which of the paper's models",
  models: "which of the paper's models, with commas between",
  prompts: "prompts that are continued side by side",
  module: "the peer's Python file",
  optimizers: "Adam's forms, with commas between",
  outputDir: "folder for the run",
  rounds: "timed rounds, after two that do not count",
  sampled: "words drawn for the sampled softmax",
  seed: "of the run",
  steps: "timed steps",
  timeSteps: "length of a sequence",
  tokens: "tokens drawn a round",
  vocabSize: "words of the vocabulary",
  wasm: "no leaves out the run without a CBLAS",
};

const flagOf = (option: string): string => `--${option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

/** What `--help` prints. */
export function help(name: string, { question, options = {} }: Benchmark): string {
  const lines: [string, string][] = [
    ["--json", "one line of JSON instead of the table"],
    ["--report FILE", "also write a page (HTML, nothing to load)"],
    ...Object.entries(options).map(([option, value]): [string, string] => [
      `${flagOf(option)} VALUE`,
      `${ABOUT[option] ?? "?"} (${value === "" ? "none" : value})`,
    ]),
  ];
  return [
    `npm run bench -- ${name} [options]\n\n${question}\n`,
    ...lines.map(([flag, what]) => `  ${flag.padEnd(22)} ${what}`),
    "\nThe exit status is 1 when a target is missed.",
  ].join("\n");
}

interface Flags {
  options: Record<string, number | string>;
  json: boolean;
  report: string | undefined;
}

/** The flags as options, or what is wrong with them. */
function read(name: string, defaults: Record<string, number | string>, flags: readonly string[]): Flags | string {
  const found: Flags = { options: { ...defaults }, json: false, report: undefined };
  for (let i = 0; i < flags.length; i++) {
    const flag = flags[i]!;
    const key = flag.replace(/^--/, "").replaceAll(/-(.)/g, (_, letter: string) => letter.toUpperCase());
    const value = flags[i + 1];
    if (flag === "--json") found.json = true;
    else if (flag === "--report" && value !== undefined) found.report = flags[++i]!;
    else if (flag.startsWith("--") && Object.hasOwn(defaults, key) && value !== undefined) {
      i++;
      const isNumber = typeof defaults[key] === "number";
      if (isNumber && !Number.isFinite(Number(value)))
        return `bench ${name}: expected ${flag} to be a number, got ${JSON.stringify(value)}.`;
      found.options[key] = isNumber ? Number(value) : value;
    } else {
      const known = Object.keys(defaults).map((option) => `${flagOf(option)} VALUE`);
      return `bench ${name}: expected ${["--json", "--report FILE", ...known].join(", ")} or --help, got ${JSON.stringify(flag)}.`;
    }
  }
  return found;
}

/** Runs one benchmark. A target that is missed sets the exit status. */
export async function main(name: string, benchmark: Benchmark, flags: readonly string[]): Promise<void> {
  if (flags.includes("--help") || flags.includes("-h")) {
    console.log(help(name, benchmark));
    return;
  }
  const asked = read(name, benchmark.options ?? {}, flags);
  if (typeof asked === "string") {
    console.error(asked);
    process.exitCode = 2;
    return;
  }
  let result: BenchResult;
  try {
    result = await benchmark.run(asked.options);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    console.error(`bench ${name}: ${error.message}`);
    process.exitCode = 2;
    return;
  }
  const { rows, targets, notes, figures = [] } = result;
  const machine = { cpu: cpus()[0]?.model.trim() ?? "unknown", cores: cpus().length, node: process.version };
  const report = { name, question: benchmark.question, machine, options: asked.options, rows, targets, notes };
  if (asked.json) console.log(JSON.stringify(report));
  else {
    console.log(`${name}: ${benchmark.question}`);
    if (rows.length > 0) console.table(rows);
    for (const target of targets) {
      const { name: what, value, bound, atMost } = target;
      console.log(`${met(target) ? "met   " : "MISSED"} ${what}: ${round(value)}, ${atMost ? "at most" : "at least"} ${bound}`);
    }
    for (const note of notes) console.log(`note: ${note}`);
  }
  if (asked.report !== undefined) {
    await writeReport(asked.report, { ...report, figures });
    console.error(`report: ${asked.report}`);
  }
  if (!targets.every(met)) process.exitCode = 1;
}
