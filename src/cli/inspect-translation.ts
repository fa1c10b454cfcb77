/** `sparsegate inspect` of a translation model: what it is, its latest metrics, and with a text what its encoder's experts specialise in. */

import { expertsPerRow, translationCost } from "../models/cost.js";
import { ConfigError, expectation } from "../core/errors.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { readLines } from "../text/corpus.js";
import type { Checkpoint } from "../train/checkpoint.js";
import { recordsOf } from "../train/run-folder.js";
import { loadTranslationModel } from "../train/translation/restore.js";
import { expertWords, type ExpertWords } from "../train/translation/specialisation.js";
import { openBackend } from "./backend.js";
import { print } from "./output.js";

/** Experts and contexts that the terminal shows. */
const [SHOWN_EXPERTS, SHOWN_CONTEXTS] = [8, 8];

const TAGS = ["train/loss", "eval/perplexity", "eval/bleu", "test/perplexity", "test/bleu", "moe/max_over_mean_load/encoder", "moe/max_over_mean_load/decoder"];

export function inspectTranslationCommand(run: string, checkpoint: Checkpoint, options: Record<string, unknown>): void {
  if (options["html"] !== undefined) throw new ConfigError(expectation("inspect --html", "a language model", run, "translate --figure draws what a translation model reads."));
  const data = options["data"] as string | undefined;
  if (options["contexts"] === true && data === undefined) throw new ConfigError("inspect --contexts: expected --data, a source text, beside it, got none.");
  const limit = options["lines"] as number;
  const texts = data === undefined ? undefined : [...readLines(data)].filter((line) => line.trim() !== "").slice(0, limit);
  openBackend();
  const { model, config, tokenizer, multilingual } = loadTranslationModel("inspect", checkpoint.path);
  const language = options["language"] as string | undefined;
  if (texts && multilingual !== (language !== undefined)) {
    throw new ConfigError(expectation("inspect", multilingual ? "--language, the one to translate into" : "no --language", language ?? "none"));
  }
  const records = recordsOf(checkpoint);
  const latest = Object.fromEntries(TAGS.map((tag) => [tag.replaceAll("/", "_"), records.findLast((record) => typeof record[tag] === "number")?.[tag] ?? "not recorded"]));
  const { middle } = model.config;
  const [encoder] = model.mixtures;
  const summary = {
    checkpoint: checkpoint.path,
    step: checkpoint.step,
    model: config.model,
    ...(middle.kind === "moe" && encoder ? { gate: config.gate, num_experts: encoder.numExperts, experts_per_token: expertsPerRow(middle) } : {}),
    parameters: model.numParameters(),
    ops_per_timestep: translationCost(model.config).opsPerTimestep,
    ...latest,
  };
  const words = texts ? expertWords(model, tokenizer, texts, { contexts: SHOWN_CONTEXTS, language, maxSourceTokens: config.max_source_tokens }) : undefined;
  if (options["json"] === true) print({ ...summary, ...(words ? { experts: words } : {}) }, true);
  else {
    print(summary, false);
    if (words) process.stdout.write(`\n${textOf(words)}\n`);
  }
  defaultBackend().dispose();
}

function textOf(words: readonly ExpertWords[]): string {
  if (words.length === 0) return "No experts.";
  return words
    .slice(0, SHOWN_EXPERTS)
    .map(({ expert, tokens, divergence, contexts }) => {
      const lines = contexts.map(({ before, token, after, gate }) => `  ${gate.toFixed(2)}  ${`${before}[${token}]${after}`.replaceAll("\ufffd", "·").replaceAll(/\s+/g, " ").trim()}`);
      return `expert ${expert}: ${tokens} tokens, divergence ${divergence.toFixed(2)}\n${lines.join("\n")}`;
    })
    .join("\n\n");
}
