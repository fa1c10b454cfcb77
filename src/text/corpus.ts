/** Reading a text file line by line: plain or gzipped, strictly UTF-8, with the file and the line in every complaint. */

import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import { FileError, expectation } from "../core/errors.js";

/** About how many bytes are decoded at a time; a chunk always ends with a line. */
const CHUNK_BYTES = 1 << 20;

const NEWLINE = 10;

/**
 * The lines of a text file, without their line ends (`\n` or `\r\n`) and without a byte order mark. A name ending in `.gz` is unpacked.
 *
 * The file is read at once, and the text is decoded as the lines are asked for. The result can be iterated more than once.
 *
 * @throws FileError when the file is missing, a folder, binary, or nothing but white space; while iterating, when a line is not valid UTF-8.
 */
export function readLines(path: string): Iterable<string> {
  const bytes = readBytes(path);
  if (bytes.length === 0) throw new FileError(expectation(path, "a text file with at least one line", "an empty file"));
  const zero = bytes.indexOf(0);
  if (zero >= 0) {
    throw new FileError(
      expectation(`${path}:${lineOf(bytes, zero)}`, "UTF-8 text", "a zero byte", "This is a binary file, or text in UTF-16; save it as UTF-8."),
    );
  }
  if (bytes.subarray(startOf(bytes)).every((byte) => byte === 32 || (byte >= 9 && byte <= 13))) {
    throw new FileError(expectation(path, "a text file with at least one word", "only white space"));
  }
  return { [Symbol.iterator]: () => linesOf(bytes, path) };
}

/** Where the text begins: after a byte order mark (EF BB BF), where there is one. */
function startOf(bytes: Uint8Array): number {
  return bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? 3 : 0;
}

/** The bytes of a file. @param kind what it should be, as messages name it @throws FileError when it is missing, a folder, unreadable or of 2 GiB or more */
export function fileBytes(path: string, kind: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === "ENOENT") throw new FileError(expectation(path, `a ${kind}`, "no such file", "Check the path."), { cause });
    if (code === "EISDIR") throw new FileError(expectation(path, `a ${kind}`, "a folder", "Name a file inside it."), { cause });
    if (code === "ERR_FS_FILE_TOO_LARGE") throw new FileError(expectation(path, `a ${kind} of less than 2 GiB`, "a longer one", "Train on a part of it."), { cause });
    throw new FileError(expectation(path, `a readable ${kind}`, code ?? String(cause)), { cause });
  }
}

function readBytes(path: string): Uint8Array {
  const bytes = fileBytes(path, "text file");
  if (!path.endsWith(".gz")) return bytes;
  try {
    return gunzipSync(bytes);
  } catch (cause) {
    throw new FileError(expectation(path, "a gzipped text file", (cause as Error).message, "The file is damaged or is not gzip."), { cause });
  }
}

function* linesOf(bytes: Uint8Array, path: string): Generator<string, void, undefined> {
  // A mark inside the text is kept as it is; the one at its start (EF BB BF) is passed over.
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let from = startOf(bytes);
  while (from < bytes.length) {
    const newline = bytes.indexOf(NEWLINE, Math.min(from + CHUNK_BYTES, bytes.length) - 1);
    const to = newline < 0 ? bytes.length : newline;
    let text: string;
    try {
      text = decoder.decode(bytes.subarray(from, to));
    } catch (cause) {
      const line = firstBadLine(bytes, from, to);
      throw new FileError(expectation(`${path}:${line}`, "UTF-8 text", "bytes that are not UTF-8", "Save the file as UTF-8."), { cause });
    }
    let start = 0;
    while (true) {
      const end = text.indexOf("\n", start);
      const stop = end < 0 ? text.length : end;
      yield text.slice(start, stop > start && text.charCodeAt(stop - 1) === 13 ? stop - 1 : stop);
      if (end < 0) break;
      start = end + 1;
    }
    from = to + 1;
  }
}

/** The number, from 1, of the line that holds byte `offset`. */
function lineOf(bytes: Uint8Array, offset: number): number {
  let line = 1;
  for (let at = bytes.indexOf(NEWLINE); at >= 0 && at < offset; at = bytes.indexOf(NEWLINE, at + 1)) line++;
  return line;
}

/** The first line within [from, to) that does not decode. No UTF-8 sequence spans a newline, so some line alone must fail. */
function firstBadLine(bytes: Uint8Array, from: number, to: number): number {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let start = from;
  while (start < to) {
    const newline = bytes.indexOf(NEWLINE, start);
    const end = newline < 0 || newline > to ? to : newline;
    try {
      decoder.decode(bytes.subarray(start, end));
    } catch {
      return lineOf(bytes, start);
    }
    start = end + 1;
  }
  return lineOf(bytes, from);
}
