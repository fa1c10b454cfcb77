/** A search over options of training: every combination of their values, or some drawn by chance, with each of some seeds. Its trials are rows as those of a table are. */

import { ConfigError, expectation } from "../core/errors.js";
import { philox4x32, streamId } from "../core/random.js";
import { checkConfig, flagOf, parseSettings, type TrainConfig } from "./config.js";
import type { DoneRow } from "./reproduce/run.js";
import type { PaperTable, TableRow } from "./reproduce/table.js";
import { validPerplexity } from "./trainer.js";

/** What is searched. */
export interface SweepOptions {
  /** Options of train that all trials have, as they were given: what a default is may depend on an option that is varied. */
  base: Readonly<Record<string, unknown>>;
  /** The configuration of a trial, by what it has for itself. Default: of `base` and that. @throws ConfigError */
  resolve?: (trial: Readonly<Record<string, unknown>>) => TrainConfig;
  /** KEY=VALUE,VALUE,…: options of train with the values to try. */
  vary: readonly string[];
  seeds: readonly number[];
  /** Combinations to try at most; more are drawn from by chance, by the first seed. Default: all. */
  combinations?: number | undefined;
  /** Training tokens a trial. Default: the base's max_steps. */
  tokens?: number | undefined;
}

/** Options that say what the text is, or that a sweep sets itself: to compare trials they must be the same. */
const FIXED: readonly string[] = [
  "task",
  "train",
  "valid",
  "test",
  "text_mode",
  "vocab",
  "tokenizer",
  "vocab_size",
  "eos",
  "output_dir",
  "seed",
  "max_steps",
];

/**
 * The trials as a table: a row for each combination and seed, the seeds of one combination together.
 * @throws ConfigError for an option that cannot be varied, or a combination that cannot be trained
 */
export function sweepTable(options: SweepOptions): PaperTable {
  const { base, resolve = (trial) => checkConfig({ ...base, ...trial }, "sweep"), vary, seeds, combinations, tokens } = options;
  if (new Set(seeds).size < seeds.length || seeds.length === 0)
    throw new ConfigError(expectation("--seeds", "seeds that differ, at least one", [...seeds]));
  const varied = vary.map(valuesOf);
  const keys = varied.map(([key]) => key);
  const twice = keys.find((key, i) => keys.indexOf(key) < i);
  if (keys.length === 0 || twice !== undefined)
    throw new ConfigError(
      expectation("--vary", "one or more options of train, each once", twice ?? "none", "Like --vary dropout=0,0.1,0.2."),
    );
  const all = varied.reduce<Record<string, unknown>[]>(
    (before, [key, values]) => before.flatMap((one) => values.map((value) => ({ ...one, [key]: value }))),
    [{}],
  );
  const rows = drawn(all, combinations, seeds[0]!).flatMap((combination) =>
    seeds.map((seed) => rowOf(combination, seed, resolve, tokens)),
  );
  return {
    name: "sweep",
    title: `Sweep over ${keys.join(", ")}`,
    about: "",
    labels: [...keys, "seed"],
    columns: [{ figure: "perplexity", heading: "valid perplexity", digits: 2 }],
    rows,
    config: base,
    measure: ({ result }) => ({ perplexity: validPerplexity(result)! }),
    claims: () => [],
  };
}

function valuesOf(text: string): [key: string, values: unknown[]] {
  const at = text.indexOf("=");
  const [name, list] = [text.slice(0, Math.max(at, 0)), text.slice(at + 1)];
  const texts = list.split(",").map((value) => value.trim());
  if (at < 0 || texts.includes(""))
    throw new ConfigError(expectation("--vary", "KEY=VALUE,VALUE,…", text, "Like dropout=0,0.1,0.2."));
  const settings = texts.map((value) => Object.entries(parseSettings("--vary", [`${name}=${value}`]))[0]!);
  const key = settings[0]![0];
  if (FIXED.includes(key))
    throw new ConfigError(
      expectation(
        "--vary",
        `an option of train other than ${FIXED.map((one) => flagOf(one).slice(2)).join(", ")}`,
        name,
        key === "seed" ? "Take --seeds." : "All trials have the same text and budget.",
      ),
    );
  if (new Set(texts).size < texts.length) throw new ConfigError(expectation("--vary", `values of ${key} that differ`, list));
  return [key, settings.map(([, value]) => value)];
}

/** So many of the combinations by chance, in the order of all; the same for the same seed. */
function drawn<T>(all: readonly T[], count: number | undefined, seed: number): T[] {
  if (count === undefined || count >= all.length) return [...all];
  const stream = streamId("sweep", "combinations");
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0] as const;
  const ranked = all
    .map((_, i) => ({ i, by: philox4x32([i, 0, 0, stream], [...key])[0] }))
    .sort((a, b) => a.by - b.by || a.i - b.i);
  const chosen = new Set(ranked.slice(0, count).map(({ i }) => i));
  return all.filter((_, i) => chosen.has(i));
}

function rowOf(
  combination: Record<string, unknown>,
  seed: number,
  resolve: NonNullable<SweepOptions["resolve"]>,
  tokens: number | undefined,
): TableRow {
  const changes: Record<string, unknown> = { ...combination, seed };
  const { batch_size, time_steps } = resolve(changes);
  if (tokens !== undefined) changes["max_steps"] = Math.max(1, Math.ceil(tokens / (batch_size * time_steps)));
  const parts = Object.entries({ ...combination, seed }).map(([key, value]) => `${key}-${String(value)}`);
  return {
    key: parts.join("-").replaceAll(/[^\w.+-]/g, "_"),
    labels: [...Object.values(combination), seed].map(String),
    changes,
    paper: {},
  };
}

/** A combination with the perplexities of its seeds. */
export interface SweepResult {
  /** Values by key of the configuration, as text. */
  settings: Record<string, string>;
  mean: number;
  min: number;
  max: number;
  /** Seeds that are done. */
  seeds: number;
  tokensPerSecond: number;
}

/** Combinations by their mean over the seeds that are done, the best first. */
export function sweepResults({ labels }: Pick<PaperTable, "labels">, done: readonly DoneRow[]): SweepResult[] {
  const byCombination = new Map<string, DoneRow[]>();
  for (const one of done) {
    const combination = JSON.stringify(one.row.labels.slice(0, -1));
    byCombination.set(combination, [...(byCombination.get(combination) ?? []), one]);
  }
  const results = [...byCombination.values()].map((rows): SweepResult => {
    const values = rows.map(({ figures }) => figures["perplexity"]!);
    return {
      settings: Object.fromEntries(labels.slice(0, -1).map((key, i) => [key, rows[0]!.row.labels[i]!])),
      mean: values.reduce((sum, value) => sum + value, 0) / values.length,
      min: Math.min(...values),
      max: Math.max(...values),
      seeds: values.length,
      tokensPerSecond: rows.reduce((sum, { tokensPerSecond }) => sum + tokensPerSecond, 0) / rows.length,
    };
  });
  return results.sort((a, b) => a.mean - b.mean);
}
