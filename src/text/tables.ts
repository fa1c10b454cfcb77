/** Two columns of a table of text: tab-separated values, or a JSON object a line. */

import { FileError, expectation, show } from "../core/errors.js";
import { readLines } from "./corpus.js";
import type { PairCollector } from "./pair-collector.js";

/** A source column and a target column. */
export type ColumnPair = readonly [source: string | number, target: string | number];

/**
 * Reads tab-separated values. Columns by name are looked for in the first line; by number, from 1, the first line is a row already.
 * Nothing is quoted or escaped: a tab always separates. Every line has as many fields as the first.
 */
export function readTsvColumns(path: string, columns: ColumnPair, collector: PairCollector): void {
  let places: number[] | undefined;
  let width = 0;
  let line = 0;
  for (const text of readLines(path)) {
    line++;
    const fields = text.split("\t");
    if (places === undefined) {
      width = fields.length;
      places = columns.map((column) => columnPlace(path, column, fields));
      if (typeof columns[0] === "string") continue;
    }
    if (fields.length !== width) {
      const hint = "Nothing is quoted or escaped in a TSV file: a tab always separates.";
      throw new FileError(expectation(`${path}:${line}`, `${width} fields as on line 1`, fields.length, hint));
    }
    collector.add(fields[places[0]], fields[places[1]]);
  }
}

function columnPlace(path: string, column: string | number, fields: readonly string[]): number {
  if (typeof column === "number") {
    if (column > fields.length) throw new FileError(expectation(`${path}:1`, `a column ${column}`, `${fields.length} columns`));
    return column - 1;
  }
  const place = fields.indexOf(column);
  if (place < 0) throw unknownColumn(`${path}:1`, column, fields);
  if (fields.includes(column, place + 1))
    throw new FileError(expectation(`${path}:1`, `one column ${JSON.stringify(column)}`, "two of that name"));
  return place;
}

/** Reads a JSON object a line. A column is a field of the object, or with periods a field within a field. */
export function readJsonlColumns(path: string, [source, target]: readonly [string, string], collector: PairCollector): void {
  let line = 0;
  for (const text of readLines(path)) {
    const where = `${path}:${++line}`;
    let row: unknown;
    try {
      row = JSON.parse(text);
    } catch (cause) {
      throw new FileError(expectation(where, "a JSON object", text.trim() === "" ? "an empty line" : (cause as Error).message), {
        cause,
      });
    }
    if (typeof row !== "object" || row === null || Array.isArray(row)) {
      throw new FileError(`${where}: expected a JSON object, got ${Array.isArray(row) ? "an array" : show(row)}.`);
    }
    collector.add(fieldOf(where, row, source), fieldOf(where, row, target));
  }
}

/** A field of a row by its name, or by a path of names with periods between. @throws FileError when there is none */
export function fieldOf(where: string, row: object, column: string): unknown {
  if (Object.hasOwn(row, column)) return (row as Record<string, unknown>)[column];
  let value: unknown = row;
  for (const name of column.split(".")) {
    if (value === null) return null; // a structure that this row has not
    if (typeof value !== "object" || !Object.hasOwn(value as object, name)) throw unknownColumn(where, column, columnNames(row));
    value = (value as Record<string, unknown>)[name];
  }
  return value;
}

/** The error for a column that a table has not. */
export function unknownColumn(where: string, column: string, names: readonly string[]): FileError {
  return new FileError(expectation(where, `a column ${JSON.stringify(column)}`, names, "These are the columns there are."));
}

/** The names of a row's fields; those of a field that is an object itself with a period before. */
function columnNames(row: object, before = ""): string[] {
  return Object.entries(row).flatMap(([name, value]: [string, unknown]) =>
    typeof value === "object" && value !== null && !Array.isArray(value)
      ? columnNames(value, `${before}${name}.`)
      : [`${before}${name}`],
  );
}
