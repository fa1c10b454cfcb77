/** The pairs of languages of a run (`--pairs`), and where the text of each is: `{source}`, `{target}` and `{pair}` in names of files and columns stand for its languages. */

import { show } from "../../core/errors.js";
import { didYouMean } from "../../core/suggest.js";
import type { ParallelFiles, ParallelTable } from "../../text/parallel.js";
import type { TrainConfig } from "../config.js";
import type { Refusal } from "../moe-config.js";

/** Two languages: from `source` to `target`. */
export interface LanguagePair {
  readonly source: string;
  readonly target: string;
  /** As `en-de`. */
  readonly pair: string;
}

/** The texts of a run. */
export const TEXTS = ["train", "valid", "test"] as const;
export type TextPart = (typeof TEXTS)[number];

/** Options that say where a text is. */
const NAMES = ["train", "train_target", "valid", "valid_target", "test", "test_target", "source_column", "target_column"] as const;
const PLACEHOLDERS = ["{source}", "{target}", "{pair}"];

/** What the options of these functions are of a configuration, whether checked or not. */
type Names = Pick<TrainConfig, "pairs" | (typeof NAMES)[number]>;

/** One pair as it is written; undefined where it is none. A language that has a hyphen itself is told apart by a colon: `en:pt-br`. */
function parsePair(text: string): LanguagePair | undefined {
  const [, source, target] = /^(\w+)-(\w+)$/.exec(text) ?? /^([\w-]+):([\w-]+)$/.exec(text) ?? [];
  if (source === undefined || target === undefined || source === target) return undefined;
  return { source, target, pair: `${source}-${target}` };
}

const entries = (pairs: string): string[] => pairs.split(",").map((text) => text.trim());

/** The pairs of a checked configuration; none where it has no `pairs`. */
export function languagePairs({ pairs }: Pick<TrainConfig, "pairs">): LanguagePair[] {
  return pairs === undefined ? [] : entries(pairs).flatMap((text) => parsePair(text) ?? []);
}

/** A name with the languages of a pair in place of its placeholders. */
export function fillName(name: string, pair: LanguagePair): string {
  return name.replaceAll(/\{(source|target|pair)\}/g, (_, key: keyof LanguagePair) => pair[key]);
}

/** Where a text of a checked configuration is, of each pair in the order of `--pairs`; without pairs one, of languages that nobody told. Empty where the run has no such text. */
export function pairTexts(config: Names, part: TextPart): (ParallelFiles | ParallelTable)[] {
  const { [part]: file, [`${part}_target` as const]: targetFile, source_column, target_column } = config;
  if (file === undefined) return [];
  const input = (fill: (name: string) => string): ParallelFiles | ParallelTable =>
    targetFile === undefined
      ? { file: fill(file), sourceColumn: fill(source_column!), targetColumn: fill(target_column!) }
      : { sourceFile: fill(file), targetFile: fill(targetFile) };
  if (config.pairs === undefined) return [input((name) => name)];
  return languagePairs(config).map((pair) => ({ ...input((name) => fillName(name, pair)), sourceLanguage: pair.source, targetLanguage: pair.target }));
}

/** What is wrong with `pairs`, and with placeholders in the names of files and columns. */
export function pairRefusals(config: Names): Refusal[] {
  if (config.pairs === undefined) return strayPlaceholders(config);
  const texts = entries(config.pairs);
  const bad = texts.find((text) => parsePair(text) === undefined);
  if (bad !== undefined) {
    const colon = /-.*-/.test(bad) ? " A language that has a hyphen takes a colon: en:pt-br." : "";
    return [{ key: "pairs", expected: "pairs of two languages with commas between, like en-de,de-en", hint: `${show(bad)} is none.${colon}` }];
  }
  const names = texts.map((text) => parsePair(text)!.pair);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined) return [{ key: "pairs", expected: "each pair once", hint: `Leave out the second ${twice}.` }];
  const unknown = unknownPlaceholders(config);
  return unknown.length > 0 ? unknown : sharedTexts(config);
}

function strayPlaceholders(config: Names): Refusal[] {
  return NAMES.flatMap((key) => {
    const placeholder = PLACEHOLDERS.find((text) => config[key]?.includes(text));
    return placeholder === undefined ? [] : [{ key, expected: "--pairs beside it, or a name without placeholders", hint: `${placeholder} stands for languages of --pairs, like en-de,de-en.` }];
  });
}

function unknownPlaceholders(config: Names): Refusal[] {
  return NAMES.flatMap((key) => {
    const found = config[key]?.match(/\{[^{}]*\}/g) ?? [];
    const unknown = found.find((text) => !PLACEHOLDERS.includes(text));
    if (unknown === undefined) return [];
    return [{ key, expected: "no placeholders but {source}, {target} and {pair}", hint: didYouMean(unknown, PLACEHOLDERS) || `${unknown} stands for nothing.` }];
  });
}

/** Two pairs with the very same text: one of them would learn what is the other's. */
function sharedTexts(config: Names): Refusal[] {
  const columns = config.source_column !== undefined && config.target_column !== undefined;
  return TEXTS.flatMap((part) => {
    if (!columns && config[`${part}_target`] === undefined) return [];
    const places = pairTexts(config, part).map((text) => ("sourceFile" in text ? `${text.sourceFile} and ${text.targetFile}` : `the columns ${text.sourceColumn} and ${text.targetColumn} of ${text.file}`));
    const second = places.findIndex((place, i) => places.indexOf(place) < i);
    if (second < 0) return [];
    const pairs = languagePairs(config);
    const [one, other] = [pairs[places.indexOf(places[second]!)]!.pair, pairs[second]!.pair];
    return [{ key: part, expected: "a text for each pair", hint: `${one} and ${other} would both be ${places[second]}. Write {source}, {target} or {pair} where names differ.` }];
  });
}
