/** Corpora of sentences and their translations: two files aligned by line, or two columns of a table. */

import { checkOneOf } from "../core/checks.js";
import { ConfigError, FileError, expectation } from "../core/errors.js";
import { readLines } from "./corpus.js";
import { PairCollector } from "./pair-collector.js";
import { readParquetColumns } from "./parquet.js";
import { readJsonlColumns, readTsvColumns } from "./tables.js";

/** Sentences and their translations: `targets[i]` translates `sources[i]`. */
export interface ParallelCorpus {
  /** The languages, as `de`; undefined where nobody told. */
  readonly sourceLanguage: string | undefined;
  readonly targetLanguage: string | undefined;
  readonly sources: readonly string[];
  readonly targets: readonly string[];
  /** How many pairs were left out because the source, the target or both were empty. */
  readonly leftOut: { readonly emptySource: number; readonly emptyTarget: number; readonly emptyBoth: number };
}

/** What becomes of a pair with an empty side (white space alone): `skip` leaves it out and counts it, `keep` keeps it, `error` refuses the corpus. */
export type EmptyPairs = "skip" | "keep" | "error";

/** How a corpus is read. */
export interface ParallelOptions {
  readonly sourceLanguage?: string;
  readonly targetLanguage?: string;
  /** Default `skip`. A test set is better read with `keep`: every reference counts, whatever stands on the other side. */
  readonly empty?: EmptyPairs;
}

/** Two text files, plain or .gz, of which line i of one translates line i of the other. */
export interface ParallelFiles extends ParallelOptions {
  readonly sourceFile: string;
  readonly targetFile: string;
}

/** Kinds of tables. */
export type TableFormat = "tsv" | "jsonl" | "parquet";

/** A table with a sentence in one column and its translation in another. */
export interface ParallelTable extends ParallelOptions {
  readonly file: string;
  /**
   * A column's name; in JSONL and parquet also a field of a column, as `translation.de`. In a TSV file without a line of names, a column's
   * number from 1, on both sides.
   */
  readonly sourceColumn: string | number;
  readonly targetColumn: string | number;
  /** By default after the file's name: .tsv, .jsonl (both also .gz) or .parquet. */
  readonly format?: TableFormat;
}

/**
 * Reads a corpus of translations.
 *
 * Text is UTF-8 throughout, and neither NUL nor a lone surrogate may be in it. A TSV file separates by tabs alone, with no quotes or escapes.
 *
 * @throws FileError with the file and the line (of parquet, the row) where files differ in length, a column is missing, something is no text, or
 * bytes are not UTF-8; when no pair is left; and for an empty side, when `empty` is `error`
 * @throws ConfigError when an option cannot be used
 */
export async function readParallel(input: ParallelFiles | ParallelTable): Promise<ParallelCorpus> {
  if ("sourceFile" in input) return readParallelFiles(input);
  const { file, sourceColumn, targetColumn } = input;
  const format = input.format ?? formatOf(file);
  checkOneOf("readParallel", "format", format, ["tsv", "jsonl", "parquet"]);
  checkColumns(format, sourceColumn, targetColumn);
  const collector = collectorOf(input, (row, side) => {
    const column = side === "source" ? sourceColumn : targetColumn;
    const place =
      format === "parquet" ? `${file}, row ${row}` : `${file}:${format === "tsv" && typeof column === "string" ? row + 1 : row}`;
    return `${place}, column ${JSON.stringify(column)}`;
  });
  if (format === "tsv") readTsvColumns(file, [sourceColumn, targetColumn], collector);
  else if (format === "jsonl") readJsonlColumns(file, [String(sourceColumn), String(targetColumn)], collector);
  else await readParquetColumns(file, [String(sourceColumn), String(targetColumn)], collector);
  return finish(collector, input, file);
}

/** As `readParallel`, of two files, at once. */
export function readParallelFiles(input: ParallelFiles): ParallelCorpus {
  const { sourceFile, targetFile } = input;
  const collector = collectorOf(input, (row, side) => `${side === "source" ? sourceFile : targetFile}:${row}`);
  const sources = readLines(sourceFile)[Symbol.iterator]();
  const targets = readLines(targetFile)[Symbol.iterator]();
  for (let line = 1; ; line++) {
    const source = sources.next();
    const target = targets.next();
    if (source.done === true && target.done === true) return finish(collector, input, `${sourceFile} and ${targetFile}`);
    if (source.done === true) throw misaligned(targetFile, sourceFile, line, line + rest(targets));
    if (target.done === true) throw misaligned(sourceFile, targetFile, line, line + rest(sources));
    collector.add(source.value, target.value);
  }
}

/** The token in front of a source that names the language to translate into, as `<2de>` (Johnson et al. 2017). */
export function languageToken(language: string): string {
  if (!/^[A-Za-z0-9_-]+$/.test(language)) {
    throw new ConfigError(expectation("languageToken", "a language of letters, digits, hyphens and underscores", language));
  }
  return `<2${language}>`;
}

function collectorOf(
  { empty = "skip" }: ParallelOptions,
  place: (row: number, side: "source" | "target") => string,
): PairCollector {
  return new PairCollector(checkOneOf("readParallel", "empty", empty, ["skip", "keep", "error"]), place);
}

function finish(collector: PairCollector, { sourceLanguage, targetLanguage }: ParallelOptions, where: string): ParallelCorpus {
  const { sources, targets, leftOut } = collector;
  if (sources.length === 0)
    throw new FileError(expectation(where, "at least one pair of sentences", collector.rows === 0 ? "none" : "only empty ones"));
  return { sourceLanguage, targetLanguage, sources, targets, leftOut };
}

function rest(lines: Iterator<string>): number {
  let count = 0;
  while (lines.next().done !== true) count++;
  return count;
}

function misaligned(longer: string, shorter: string, line: number, lines: number): FileError {
  const hint = "Line i of one file must be the translation of line i of the other.";
  return new FileError(
    expectation(`${longer}:${line}`, `its partner in ${shorter}`, `${line - 1} lines there and ${lines} here`, hint),
  );
}

function formatOf(file: string): string {
  const format = /\.(tsv|jsonl|parquet)(\.gz)?$/.exec(file);
  if (format === null || (format[1] === "parquet" && format[2] !== undefined)) {
    throw new ConfigError(
      expectation(
        "readParallel",
        "a file ending in .tsv, .jsonl (both also .gz) or .parquet",
        file,
        "Otherwise tell its format.",
      ),
    );
  }
  return format[1];
}

function checkColumns(format: string, ...columns: readonly (string | number)[]): void {
  const numbers = columns.every((column) => Number.isInteger(column) && (column as number) >= 1) && format === "tsv";
  if (numbers || columns.every((column) => typeof column === "string" && column !== "")) return;
  const expected = format === "tsv" ? "two names of columns, or two numbers from 1" : "two names of columns";
  throw new ConfigError(expectation("readParallel", expected, columns));
}
