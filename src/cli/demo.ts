/**
 * `sparsegate demo`: a dense model and MoE layers of 4, 32 and 256 experts, equal in multiply-adds per token and in training tokens, on the compiler
 * messages of TypeScript 5 in 14 languages. Shows the paper's result on a small scale: more capacity at equal compute gives lower perplexity.
 */

import { cpus } from "node:os";
import { join } from "node:path";
import { computeCost } from "../models/cost.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { trainBpe } from "../text/bpe.js";
import { tokenizeCorpus } from "../text/dataset.js";
import type { Message } from "../text/messages.js";
import { checkConfig, type TrainConfig } from "../train/config.js";
import { generate } from "../train/generate.js";
import { writeReport, type DemoReport, type ReportRun } from "../train/report.js";
import { specialisation, type Specialisation } from "../train/specialisation.js";
import { evaluateOn, trainOn } from "../train/trainer.js";
import { beginDemo } from "./begin-demo.js";
import { compact, table } from "./format.js";

const MODELS = ["MoE-1-Wide", "MoE-4", "MoE-32", "MoE-256"] as const;
/** Strictly balanced gates (App. F) learn faster than noisy ones in so few steps. */
const BALANCED = { gate: "strictly-balanced", importance_weight: 0.01, load_weight: 0 } as const;
/** 256 experts want a lower rate than what sees all tokens; to 32 it makes little difference (docs/results/language-models.md has the trials). */
const OPTIONS: Readonly<Record<(typeof MODELS)[number], Readonly<Record<string, unknown>>>> = {
  "MoE-1-Wide": {},
  "MoE-4": BALANCED,
  "MoE-32": { ...BALANCED, expert_learning_rate_scale: 0.5 },
  "MoE-256": { ...BALANCED, expert_learning_rate_scale: 0.5 },
};
const VOCABULARY = 2048;
/** The model whose experts are shown. */
const SHOWN = "MoE-32";
const FULL_STEPS = 900;
const QUICK_STEPS = 40;
const HELD_OUT = { validShare: 0.02, testShare: 0.05 };

function demoConfig(model: (typeof MODELS)[number], maxSteps: number, seed: number): TrainConfig {
  const rise = Math.max(1, Math.min(100, Math.floor(maxSteps / 4)));
  return checkConfig(
    {
      train: "(TypeScript's messages)",
      model,
      hidden_size: 64,
      vocab_size: VOCABULARY,
      batch_size: 64,
      time_steps: 20,
      max_steps: maxSteps,
      // Found on the dense model (docs/results/language-models.md).
      learning_rate: 12e-3,
      schedule: "linear",
      warmup_steps: rise,
      decay_hold_steps: rise,
      dropout: 0,
      sigmoid: false,
      ...OPTIONS[model],
      max_grad_norm: 1,
      seed,
      eval_steps: Math.max(1, Math.floor(maxSteps / 6)),
      logging_steps: 10,
    },
    "the demo",
  );
}

export async function demo(options: Record<string, unknown>): Promise<void> {
  const quick = options["quick"] === true;
  const { backend, progress, steps, seed, outputDir, stop, split } = beginDemo(options, FULL_STEPS, QUICK_STEPS, HELD_OUT);
  const lines = (messages: readonly Message[]): string[] => messages.map(({ text }) => text);
  const languages = [...new Set(split.train.map(({ language }) => language))].sort();
  progress.note(`Text: ${split.train.length} messages in ${languages.length} languages; ${split.test.length} kept for testing, no translation of them is trained on.`);
  const tokenizer = trainBpe(lines(split.train), { vocabSize: VOCABULARY });
  const datasets = {
    tokenizer,
    train: tokenizeCorpus(lines(split.train), tokenizer),
    valid: tokenizeCorpus(lines(split.valid), tokenizer),
    test: tokenizeCorpus(lines(split.test), tokenizer),
  };

  const runs: ReportRun[] = [];
  const samples: DemoReport["samples"] = [];
  let shown: Specialisation | undefined;
  for (const name of MODELS) {
    const config = demoConfig(name, steps, seed);
    const curve: ReportRun["curve"] = [];
    const loadOverTime: ReportRun["loadOverTime"] = [];
    let tokens = 0;
    const result = await trainOn(config, datasets, {
      progress,
      signal: stop.signal,
      ephemeral: true,
      onStep: (step, { loss, tokens: count, load }) => {
        tokens += count;
        if (step % Math.max(1, Math.floor(steps / 60)) === 0) {
          curve.push({ tokens, loss });
          if (load) loadOverTime.push({ step, load });
        }
      },
      onEvaluation: (_, { perplexity }) => {
        const last = curve.at(-1);
        if (last) last.validPerplexity = perplexity;
      },
    });
    if (!result.finished) {
      progress.finish("Interrupted; the demo keeps no checkpoints.");
      process.exitCode = stop.exitCode();
      break;
    }
    const test = evaluateOn(result.model, datasets.test, config);
    const cost = computeCost(result.model.config);
    const balance = test.balance;
    const isMoe = result.model.moe !== undefined;
    runs.push({
      name,
      numExperts: result.model.moe?.numExperts ?? 1,
      parameters: result.model.numParameters(),
      moeParameters: result.model.moe?.numParameters() ?? 0,
      opsPerTimestep: cost.opsPerTimestep,
      tokensPerSecond: result.tokensPerSecond,
      testPerplexity: test.perplexity,
      cvImportance: isMoe ? balance!.cvImportance : null,
      cvLoad: isMoe ? balance!.cvLoad : null,
      maxOverMeanLoad: isMoe ? balance!.maxOverMeanLoad : null,
      curve,
      loadOverTime,
    });
    progress.note(`${name}: test perplexity ${test.perplexity.toFixed(2)}, ${Math.round(result.tokensPerSecond).toLocaleString("en")} tokens/s`);
    if (name === SHOWN) {
      const texts = split.test.map(({ text, language }) => ({ text, label: language }));
      shown = specialisation(result.model, tokenizer, texts);
    }
    if (name === MODELS.at(-1)) {
      for (const [i, prompt] of ["Cannot find", "Der Typ", "Le type", "型"].entries()) {
        samples.push({ model: name, text: generate(result.model, tokenizer, prompt, { maxTokens: 40, temperature: 0.7, seed: seed + i }) });
      }
    }
    result.model.dispose();
  }
  progress.finish("");
  if (runs.length === 0) return;
  const report = reportOf({ runs, samples, shown, languages, trainTokens: datasets.train.tokens.length, testTokens: datasets.test.tokens.length, quick });
  const path = join(outputDir, "report.html");
  await writeReport(path, report);
  if (options["json"] === true) process.stdout.write(`${JSON.stringify(report)}\n`);
  else process.stdout.write(`${textReport(report)}\nReport with figures: ${path}\n`);
  backend.dispose();
}

function reportOf(part: {
  runs: ReportRun[];
  samples: DemoReport["samples"];
  shown: Specialisation | undefined;
  languages: string[];
  trainTokens: number;
  testTokens: number;
  quick: boolean;
}): DemoReport {
  const { shown } = part;
  const experts = shown?.experts ?? [];
  const mean = experts.reduce((sum, { tokens }) => sum + tokens, 0) / Math.max(experts.length, 1);
  const backend = defaultBackend();
  return {
    title: "sparsegate demo: more experts at equal compute",
    createdAt: new Date().toISOString(),
    command: `sparsegate demo${part.quick ? " --quick" : ""}`,
    machine: { cpu: cpus()[0]?.model.trim() ?? "unknown", threads: backend.threads, backend: backend.description },
    corpus: {
      description: "Compiler messages of TypeScript 5, split by message",
      trainTokens: part.trainTokens,
      testTokens: part.testTokens,
      vocabSize: VOCABULARY,
      languages: part.languages,
    },
    runs: part.runs,
    specialisation: {
      model: SHOWN,
      languages: shown?.labels ?? [],
      heat: experts.map(({ shares }) => shares),
      heatExperts: experts.map(({ expert }) => expert),
      experts: experts.slice(0, 6).map(({ expert, tokens, shares, contexts }) => ({
        expert,
        load: tokens / mean,
        topLanguages: shares
          .map((share, i) => ({ language: shown!.labels[i]!, share }))
          .sort((a, b) => b.share - a.share)
          .slice(0, 3),
        contexts: contexts.map(({ before, token, after, gate, label }) => ({ before, token, after, gate, language: label })),
      })),
    },
    samples: part.samples,
  };
}

/** The results as the terminal shows them. */
function textReport({ runs, specialisation: { model, experts }, samples }: DemoReport): string {
  const figure = (x: number | null, digits: number): string => (x === null ? "-" : x.toFixed(digits));
  const rows = runs.map((run) => [
    run.name,
    compact(run.parameters),
    compact(run.opsPerTimestep),
    Math.round(run.tokensPerSecond).toLocaleString("en"),
    run.testPerplexity.toFixed(2),
    figure(run.cvImportance, 2),
    figure(run.cvLoad, 2),
    figure(run.maxOverMeanLoad, 2),
  ]);
  const parts = [table(["model", "parameters", "ops/timestep", "tokens/s", "test perplexity", "CV(Importance)", "CV(Load)", "max/mean load"], rows)];
  parts.push(`\nThe most specialised experts of ${model}:`);
  for (const { expert, topLanguages, contexts } of experts) {
    parts.push(`  expert ${expert}: ${topLanguages.map(({ language, share }) => `${language} ${(100 * share).toFixed(0)}%`).join(", ")}`);
    for (const { before, token, after } of contexts.slice(0, 3)) parts.push(`    ${before}[${token}]${after}`.replaceAll("\ufffd", "·"));
  }
  parts.push("\nGenerated messages:", ...samples.map(({ text }) => `  ${text}`));
  return parts.join("\n");
}

