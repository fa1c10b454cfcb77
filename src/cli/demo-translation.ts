/**
 * `sparsegate demo translation`: one model for twelve pairs of languages, as in App. E of the paper, on the compiler messages of TypeScript 5: with experts,
 * and without them at equal computation. Prints a table like the paper's Table 5.
 */

import { join } from "node:path";
import { runRanks } from "../comm/index.js";
import { SparsegateError } from "../core/errors.js";
import { messagePairs } from "../text/message-pairs.js";
import type { ParallelCorpus } from "../text/parallel.js";
import { writeFileAtomic } from "../train/atomic.js";
import { beginDemo, type DemoStart } from "./begin-demo.js";
import { DEMO_MODELS, demoDatasets, trainDemoModel, type DemoCourse, type DemoOutcome, type DemoResult, type DemoThreadData } from "./demo-translation-model.js";
import { compact, table } from "./format.js";
import { shareStop } from "./stop.js";

const FULL_STEPS = 4800;
const QUICK_STEPS = 10;
/** Nothing is chosen by a validation text. BLEU of a tenth of the messages, some two hundred, still moves by a point from one run to the next. */
const HELD_OUT = { validShare: 0, testShare: 0.1 };

export async function demoTranslation(options: Record<string, unknown>): Promise<void> {
  const begun = beginDemo(options, FULL_STEPS, QUICK_STEPS, HELD_OUT);
  const { backend, progress, steps, seed, outputDir, stop, split } = begun;
  const texts = { train: messagePairs(split.train), test: messagePairs(split.test) };
  const pairs = texts.train.reduce((sum, { sources }) => sum + sources.length, 0);
  progress.note(`Text: ${pairs} pairs of messages in ${texts.train.length} directions; of ${texts.test[0]!.sources.length} messages for testing no translation is trained on.`);

  // So small, a model is only half as fast again with a second thread.
  const train = backend.threads >= DEMO_MODELS.length ? trainSideBySide : trainInTurn;
  const results = await train({ steps, seed, outputDir, texts }, begun).catch((error: unknown) => {
    progress.finish(); // an error message begins on a line of its own
    throw error;
  });
  progress.finish(results ? "" : "Interrupted.");
  if (results) {
    const report = `${JSON.stringify(jsonOf(results, steps, seed))}\n`;
    writeFileAtomic(join(outputDir, "report.json"), report);
    process.stdout.write(options["json"] === true ? report : `${textOf(results, texts.test, outputDir)}\n`);
  } else {
    process.exitCode = stop.exitCode();
  }
  stop.end();
}

/** Trains the models one after the other. @returns undefined when told to stop */
async function trainInTurn(course: DemoCourse, { backend, progress, stop }: DemoStart): Promise<DemoResult[] | undefined> {
  const datasets = demoDatasets(course);
  const results: DemoResult[] = [];
  for (const model of DEMO_MODELS) {
    const result = await trainDemoModel(model, course, datasets, { progress, signal: stop.signal });
    if (!result) break;
    const { name, perplexity, bleu, tokensPerSecond } = result;
    progress.note(`${name}: test perplexity ${perplexity.toFixed(2)}, BLEU ${bleu.toFixed(2)}, ${Math.round(tokensPerSecond).toLocaleString("en")} target tokens/s`);
    results.push(result);
  }
  backend.dispose();
  return results.length === DEMO_MODELS.length ? results : undefined;
}

/** Trains the models at the same time, each in a thread with its share of the cores. @returns undefined when told to stop @throws SparsegateError of a thread */
async function trainSideBySide(course: DemoCourse, { backend, progress, stop }: DemoStart): Promise<DemoResult[] | undefined> {
  process.env["SPARSEGATE_THREADS"] = String(Math.floor(backend.threads / DEMO_MODELS.length));
  backend.dispose();
  const data: DemoThreadData = { course, stop: shareStop(stop) };
  const latest = DEMO_MODELS.map(() => "");
  const outcomes = await runRanks<DemoOutcome>(DEMO_MODELS.length, new URL("./demo-translation-model.js", import.meta.url), data, {
    onOutput: (rank, stream, text) => {
      if (stream === "stderr") return progress.announce(text.trimEnd());
      latest[rank] = text.trimEnd().split("\n").at(-1)!;
      progress.update(() => latest.filter((line) => line !== "").join("  |  "));
    },
  });
  const results = outcomes.map((outcome) => {
    if ("error" in outcome) throw new SparsegateError(outcome.error);
    return outcome.result;
  });
  return results.every((result) => result !== undefined) ? results : undefined;
}

function jsonOf(results: readonly DemoResult[], steps: number, seed: number): object {
  return {
    steps,
    seed,
    models: results.map(({ model, parameters, opsPerTimestep, tokensPerSecond, seconds, perplexity, bleu, texts, placeholders }) => ({
      model,
      parameters,
      ops_per_timestep: opsPerTimestep,
      tokens_per_second: Math.round(tokensPerSecond),
      seconds: Math.round(seconds),
      perplexity,
      bleu,
      placeholders,
      pairs: texts.map((text) => ({ pair: text.name, perplexity: text.perplexity, bleu: text.bleu.score, signature: text.bleu.signature })),
    })),
  };
}

/** To two decimals, without a sign before zeros. */
function difference(from: number, to: number): string {
  const text = (to - from).toFixed(2);
  return text === "-0.00" ? "0.00" : text;
}

/** The results as the terminal shows them. */
function textOf(results: readonly DemoResult[], test: readonly ParallelCorpus[], outputDir: string): string {
  const [dense, moe] = results as [DemoResult, DemoResult];
  const models = results.map(({ name, parameters, opsPerTimestep, tokensPerSecond, perplexity, bleu, placeholders }) => [
    name,
    compact(parameters),
    compact(opsPerTimestep),
    Math.round(tokensPerSecond).toLocaleString("en"),
    perplexity.toFixed(2),
    bleu.toFixed(2),
    `${(100 * placeholders.share).toFixed(1)}%`,
  ]);
  const pairs = dense.texts.map((one, i) => {
    const other = moe.texts[i]!;
    return [one.name, one.perplexity.toFixed(2), other.perplexity.toFixed(2), one.bleu.score.toFixed(2), other.bleu.score.toFixed(2), difference(one.bleu.score, other.bleu.score)];
  });
  const ahead = (better: (i: number) => boolean): number => dense.texts.filter((_, i) => better(i)).length;
  const sample = moe.texts.map(({ name, translations }, i) => `  ${name}: ${test[i]!.sources[0]}\n     -> ${translations[0]}`);
  return [
    table(["model", "parameters", "ops/timestep", "target tokens/s", "test perplexity", "mean BLEU", "placeholders kept"], models),
    "",
    table(["pair", "dense perplexity", "MoE perplexity", "dense BLEU", "MoE BLEU", "difference"], pairs),
    "",
    `MoE ahead in perplexity on ${ahead((i) => moe.texts[i]!.perplexity < dense.texts[i]!.perplexity)} of ${pairs.length} pairs, in BLEU on ${ahead((i) => moe.texts[i]!.bleu.score > dense.texts[i]!.bleu.score)}.`,
    `BLEU: ${dense.texts[0]!.bleu.signature}; by characters into Japanese.`,
    "",
    "A test message and what MoE makes of it:",
    ...sample,
    "",
    `Try: sparsegate translate ${join(outputDir, "moe")} --language de "Cannot find module '{0}'."`,
  ].join("\n");
}
