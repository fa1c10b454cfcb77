/** Two columns of a parquet file, through hyparquet, which is loaded when the first such file is read. */

import type { SchemaTree } from "hyparquet";
import { FileError, expectation } from "../core/errors.js";
import { fileBytes } from "./corpus.js";
import { NOT_UTF8, type PairCollector } from "./pair-collector.js";
import { fieldOf, unknownColumn } from "./tables.js";

/** How many rows are held as objects at a time. */
const ROWS = 1 << 14;

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Reads two columns; with a period in its name, a column is a field of a structure. Compressed by snappy, gzip, brotli, zstd or lz4, or not. */
export async function readParquetColumns(
  path: string,
  columns: readonly [string, string],
  collector: PairCollector,
): Promise<void> {
  const bytes = fileBytes(path, "parquet file");
  const [{ parquetMetadataAsync, parquetReadObjects, parquetSchema }, { compressors }] = await Promise.all([
    import("hyparquet"),
    import("hyparquet-compressors"),
  ]);
  const reading = async <T>(what: () => Promise<T>): Promise<T> => {
    try {
      return await what();
    } catch (cause) {
      const message = cause instanceof Error ? cause.message : String(cause);
      throw new FileError(expectation(path, "a parquet file", message, "The file is damaged or of another kind."), { cause });
    }
  };
  // A buffer of Node's may be a part of a larger one.
  const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
  const metadata = await reading(() => parquetMetadataAsync(file));
  const schema = parquetSchema(metadata);
  const names = leaves(schema);
  for (const column of columns) if (!names.includes(column)) throw unknownColumn(path, column, names);
  const whole = schema.children.map(({ element }) => element.name);
  const needed = [
    ...new Set(columns.map((column) => (whole.includes(column) ? column : whole.find((name) => column.startsWith(`${name}.`))!))),
  ];
  const parsers = { stringFromBytes: textOf };
  const rows = Number(metadata.num_rows);
  for (let rowStart = 0; rowStart < rows; rowStart += ROWS) {
    const part = { rowStart, rowEnd: Math.min(rowStart + ROWS, rows) };
    const objects = await reading(() => parquetReadObjects({ file, metadata, columns: needed, compressors, parsers, ...part }));
    objects.forEach((row, i) => {
      const where = `${path}, row ${rowStart + i + 1}`;
      collector.add(fieldOf(where, row, columns[0]), fieldOf(where, row, columns[1]));
    });
  }
}

/** The columns that hold values, by their paths. */
function leaves(tree: SchemaTree): string[] {
  return tree.children.flatMap((child) => (child.children.length === 0 ? [child.path.join(".")] : leaves(child)));
}

/** The text of bytes; a mark instead of it where they are not UTF-8, which the library itself would turn into other text. */
function textOf(bytes: Uint8Array | undefined): unknown {
  if (bytes === undefined) return undefined;
  try {
    return decoder.decode(bytes);
  } catch {
    return NOT_UTF8;
  }
}
