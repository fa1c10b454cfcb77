/**
 * The safetensors file format, written and read one tensor at a time, with a checksum of each tensor and of the header.
 *
 * Layout: u64 little-endian header length L (a multiple of 8), L bytes of JSON padded with spaces, then the tensors' bytes without
 * gaps. Our checksums live in `__metadata__` (CRC-32, eight hex digits), which other readers ignore: `crc32.header` over the header with these
 * eight digits taken as zeros, and `crc32:NAME` over a tensor's bytes. Files without them, from other tools, load as well.
 * @see https://github.com/huggingface/safetensors#format
 */

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import * as zlib from "node:zlib";
import { expectation, FileError, TensorError } from "../core/errors.js";
import { chunkBytes, fileError, writeAll, writeAtomic } from "./atomic.js";

/** The two kinds of number the engine keeps: 32-bit floats and 32-bit signed integers. */
export type StoredDtype = "F32" | "I32";
/** The values of a tensor, in row-major order; possibly a view on shared memory. */
export type TensorData = Float32Array | Int32Array;

/** A tensor to be written. Data given as a function is fetched when its turn comes, so that only one tensor need be in memory. */
export interface StoredTensor {
  name: string;
  shape: readonly number[];
  dtype: StoredDtype;
  data: TensorData | (() => TensorData);
}

/** What a file's header says about one tensor. */
export interface TensorInfo {
  shape: number[];
  /** As in the file; only F32 and I32 can be read. */
  dtype: string;
  /** Length of the data in bytes. */
  bytes: number;
}

const elementBytes = new Map<string, number>(
  Object.entries({
    BOOL: 1,
    U8: 1,
    I8: 1,
    F8_E5M2: 1,
    F8_E4M3: 1,
    I16: 2,
    U16: 2,
    F16: 2,
    BF16: 2,
    I32: 4,
    U32: 4,
    F32: 4,
    F64: 8,
    I64: 8,
    U64: 8,
  }),
);
const headerKey = "crc32.header";
const headerStart = `{"__metadata__":{"${headerKey}":"`; // our headers begin so: the digits follow at a fixed place
const markKey = "crc32.version"; // a second sign that checksums belong here, so that damage to the first key cannot switch them off
const maxHeaderBytes = 100_000_000; // the limit of the reference implementation

/**
 * Writes tensors to a file, atomically (see writeFileAtomic), in order of element size and then name.
 * @param metadata strings for `__metadata__`; keys that begin with "crc32" are ours
 * @returns the file's length in bytes and its header's checksum, which covers the checksums of all tensors
 * @throws TensorError for a name given twice, or data that does not fit its shape and dtype; FileError when the file cannot be written
 */
export function writeSafetensors(
  path: string,
  tensors: Iterable<StoredTensor>,
  metadata: Readonly<Record<string, string>> = {},
): { bytes: number; crc32: string } {
  const where = "writeSafetensors";
  const sorted = [...tensors].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)); // F32 and I32: one element size
  const crcs = new Map<string, string>(sorted.map(({ name }) => [name, "00000000"]));
  if (crcs.size !== sorted.length || crcs.has("__metadata__")) {
    const bad = sorted.find(({ name }, i) => name === sorted[i + 1]?.name || name === "__metadata__");
    throw new TensorError(expectation(where, `every tensor to have a name of its own, other than "__metadata__"`, bad?.name));
  }
  let length = 0;
  const entries = sorted.map(({ name, shape, dtype }) => {
    const begin = length;
    length += 4 * product(shape);
    return [name, { dtype, shape: [...shape], data_offsets: [begin, length] }] as const;
  });
  const others = Object.entries(metadata).filter(([key]) => !key.startsWith("crc32"));
  const header = (own: string) => {
    const sums = [...crcs].map(([name, crc]) => [`crc32:${name}`, crc]);
    const meta = [[headerKey, own], [markKey, "1"], ...others, ...sums];
    return padTo8(Buffer.from(jsonObject([`"__metadata__":${jsonObject(meta.map(member))}`, ...entries.map(member)]), "utf8"));
  };
  const start = 8 + header("00000000").length;
  if (start > maxHeaderBytes) throw new TensorError(expectation(where, `a header of at most ${maxHeaderBytes} bytes`, start));
  return writeAtomic(where, path, (fd) => {
    sorted.forEach((tensor, i) => {
      const data = typeof tensor.data === "function" ? tensor.data() : tensor.data;
      checkData(where, tensor, data);
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      let crc = 0;
      writeAll(fd, bytes, start + entries[i][1].data_offsets[0], (chunk) => (crc = crc32(chunk, crc)));
      crcs.set(tensor.name, hex(crc));
    });
    const own = hex(crc32(header("00000000")));
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt(start - 8));
    writeAll(fd, size, 0);
    writeAll(fd, header(own), 8);
    return { bytes: start + length, crc32: own };
  });
}

/** An opened file: the header is checked and in memory, tensors are read on demand. Nothing stays open, so there is nothing to close. */
export class SafetensorsFile {
  /** Checksum of the header, eight hex digits; null in files of other tools. */
  readonly crc32: string | null;
  /** Length of the file in bytes. */
  readonly bytes: number;
  /** The file's `__metadata__` without our checksums. */
  readonly metadata: ReadonlyMap<string, string>;
  private readonly tensors = new Map<string, TensorInfo & { position: number; crc: string | undefined }>();

  /**
   * Reads and checks the header; the data only when {@link read} asks.
   * @throws FileError when the file is missing, truncated, or not laid out as the format demands
   */
  constructor(readonly path: string) {
    const { header, bytes } = withFile(path, (fd) => readHeader(path, fd));
    this.bytes = bytes;
    const entries = parseHeader(path, header);
    const metadata = new Map<string, string>();
    if (entries.has("__metadata__")) {
      for (const [key, value] of Object.entries(asObject(path, "__metadata__", entries.get("__metadata__")))) {
        if (typeof value !== "string") throw damaged(path, `__metadata__ to hold strings, also under ${key}`, value);
        metadata.set(key, value);
      }
      entries.delete("__metadata__");
    }
    this.crc32 = checkHeader(path, header, metadata);
    for (const [name, entry] of entries) {
      const info = parseEntry(path, name, entry);
      const crc = metadata.get(`crc32:${name}`);
      if (this.crc32 !== null && crc === undefined) throw damaged(path, `a checksum of tensor ${name}`, "none");
      this.tensors.set(name, { ...info, position: 8 + header.length + info.position, crc });
    }
    let next = 8 + header.length;
    for (const [name, { position, bytes: size }] of [...this.tensors].sort(
      ([, a], [, b]) => a.position - b.position || a.bytes - b.bytes,
    )) {
      if (position !== next) throw damaged(path, `tensor ${name} to begin at byte ${next}, with no gap or overlap`, position);
      next += size;
    }
    if (next !== bytes)
      throw damaged(
        path,
        `a file of ${next} bytes`,
        bytes,
        bytes < next ? "It was cut short." : "It has bytes that no tensor owns.",
      );
    this.metadata = new Map([...metadata].filter(([key]) => this.crc32 === null || !key.startsWith("crc32")));
  }

  /** The tensors' names, in the header's order. */
  get names(): string[] {
    return [...this.tensors.keys()];
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }

  /** Shape, dtype and length of a tensor. @throws FileError when the file has none of that name */
  info(name: string): TensorInfo {
    const { shape, dtype, bytes } = this.find(name);
    return { shape: [...shape], dtype, bytes };
  }

  /**
   * Reads one tensor and checks its checksum, where the file has one.
   * @param into where to put the values (perhaps in shared memory); its content is undefined after an error. @default a new array
   * @throws FileError when there is no such tensor, it is neither F32 nor I32, `into` does not fit, or the data are damaged
   */
  read(name: string, into?: TensorData): TensorData {
    const { dtype, bytes, position, crc } = this.find(name);
    if (dtype !== "F32" && dtype !== "I32")
      throw damaged(this.path, `tensor ${name} to be F32 or I32`, dtype, "Convert the file to 32-bit floats.");
    const type = dtype === "F32" ? Float32Array : Int32Array;
    const data = into ?? new type(bytes / 4);
    if (!(data instanceof type) || data.byteLength !== bytes) {
      throw damaged(
        this.path,
        `room for ${bytes / 4} values of ${dtype} for tensor ${name}`,
        `${data.constructor.name} of ${data.length}`,
        "Does the configuration belong to this file?",
      );
    }
    const target = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const found = withFile(this.path, (fd) => {
      let sum = 0;
      for (let start = 0; start < bytes; start += chunkBytes) {
        const chunk = target.subarray(start, start + chunkBytes);
        readAll(this.path, fd, chunk, position + start);
        if (crc !== undefined) sum = crc32(chunk, sum);
      }
      return hex(sum);
    });
    if (crc !== undefined && found !== crc)
      throw damaged(this.path, `tensor ${name} to have the checksum ${crc}`, found, "The file is damaged.");
    return data;
  }

  /**
   * Reads some rows of a tensor along its first axis, without the others: a rank's part. Whether it is damaged shows when all parts are put together, see
   * {@link checkParts}.
   * @throws FileError as `read`
   */
  readRows(name: string, first: number, count: number): { data: TensorData; crc32: number } {
    const { dtype, shape, position } = this.find(name);
    if (dtype !== "F32" && dtype !== "I32") throw damaged(this.path, `tensor ${name} to be F32 or I32`, dtype, "Convert the file to 32-bit floats.");
    if (first + count > (shape[0] ?? 0)) throw damaged(this.path, `tensor ${name} to have ${first + count} rows`, shape[0] ?? 0);
    const width = product(shape.slice(1));
    const data = new (dtype === "F32" ? Float32Array : Int32Array)(count * width);
    const bytes = new Uint8Array(data.buffer);
    withFile(this.path, (fd) => readAll(this.path, fd, bytes, position + 4 * first * width));
    return { data, crc32: crc32(bytes) };
  }

  /**
   * Checks a tensor by its parts.
   * @param parts checksum and length in bytes of each, in order: together the whole tensor
   * @throws FileError when it is damaged
   */
  checkParts(name: string, parts: readonly { crc32: number; bytes: number }[]): void {
    const { crc } = this.find(name);
    if (crc === undefined) return;
    const found = hex(parts.reduce((sum, part) => (shiftedCrc(sum, part.bytes) ^ part.crc32) >>> 0, 0));
    if (found !== crc) throw damaged(this.path, `tensor ${name} to have the checksum ${crc}`, found, "The file is damaged.");
  }

  private find(name: string) {
    const tensor = this.tensors.get(name);
    if (tensor === undefined) throw damaged(this.path, `a tensor ${name}`, "none", "Does the configuration belong to this file?");
    return tensor;
  }
}

function readHeader(path: string, fd: number): { header: Buffer; bytes: number } {
  const bytes = fstatSync(fd).size;
  if (bytes < 8) throw damaged(path, "at least 8 bytes", bytes, "It was cut short.");
  const head = Buffer.alloc(8);
  readAll(path, fd, head, 0);
  const length = Number(head.readBigUInt64LE());
  if (length > maxHeaderBytes)
    throw damaged(path, `a header of at most ${maxHeaderBytes} bytes`, length, "Is this a safetensors file?");
  if (8 + length > bytes) throw damaged(path, `a header of ${length} bytes in the file`, bytes - 8, "It was cut short.");
  const header = Buffer.alloc(length);
  readAll(path, fd, header, 8);
  return { header, bytes };
}

/** The header as a map, so that a tensor named `__proto__` is an ordinary one; JSON.parse alone would let a repeated key pass. */
function parseHeader(path: string, header: Buffer): Map<string, unknown> {
  let text: string;
  let parsed: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
    parsed = JSON.parse(text);
  } catch (error) {
    throw damaged(path, "a header of JSON in UTF-8", error instanceof Error ? error.message : error, "The file is damaged.");
  }
  const keys: Set<string>[] = [];
  for (const [token, colon] of text.matchAll(/[{}]|"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?/g)) {
    if (token === "{") keys.push(new Set());
    else if (token === "}") keys.pop();
    else if (colon !== undefined) {
      const key = JSON.parse(token.slice(0, -colon.length)) as string;
      if (keys.at(-1)?.has(key)) throw damaged(path, "every name once in the header", `${key} twice`);
      keys.at(-1)?.add(key);
    }
  }
  return new Map(Object.entries(asObject(path, "the header", parsed)));
}

/** Returns the header's checksum once it is found right, or null where the file carries no checksums. */
function checkHeader(path: string, header: Buffer, metadata: ReadonlyMap<string, string>): string | null {
  const ours =
    metadata.has(headerKey) || metadata.has(markKey) || header.toString("latin1", 0, headerStart.length) === headerStart;
  if (!ours) return null;
  const expected = metadata.get(headerKey);
  const zeroed = Buffer.from(header);
  if (zeroed.length >= headerStart.length + 8) zeroed.fill("0", headerStart.length, headerStart.length + 8);
  const found = hex(crc32(zeroed));
  if (expected !== found) throw damaged(path, `the header to have the checksum ${expected}`, found, "The file is damaged.");
  return found;
}

function parseEntry(path: string, name: string, entry: unknown): TensorInfo & { position: number } {
  const { dtype, shape, data_offsets: offsets } = asObject(path, `tensor ${name}`, entry);
  const size = typeof dtype === "string" ? elementBytes.get(dtype) : undefined;
  if (typeof dtype !== "string" || size === undefined) throw damaged(path, `tensor ${name} to have a known dtype`, dtype);
  if (!isCounts(shape)) throw damaged(path, `tensor ${name} to have a shape of whole numbers`, shape);
  if (!isCounts(offsets) || offsets.length !== 2) throw damaged(path, `tensor ${name} to have two data_offsets`, offsets);
  const bytes = size * product(shape);
  if (offsets[1] - offsets[0] !== bytes) throw damaged(path, `tensor ${name} to take ${bytes} bytes`, offsets[1] - offsets[0]);
  return { dtype, shape, bytes, position: offsets[0] };
}

function checkData(where: string, { name, shape, dtype }: StoredTensor, data: TensorData): void {
  if (!(data instanceof (dtype === "F32" ? Float32Array : Int32Array)) || data.length !== product(shape)) {
    const expected = `${dtype} data of ${product(shape)} values for tensor ${name} of shape [${shape.join(", ")}]`;
    throw new TensorError(expectation(where, expected, `${data.constructor.name} of ${data.length}`));
  }
}

function withFile<T>(path: string, use: (fd: number) => T): T {
  let fd = -1;
  try {
    fd = openSync(path, "r");
    return use(fd);
  } catch (error) {
    throw fileError("SafetensorsFile", path, "read", error);
  } finally {
    if (fd !== -1) closeSync(fd);
  }
}

function readAll(path: string, fd: number, target: Uint8Array, position: number): void {
  for (let done = 0; done < target.length;) {
    const count = readSync(fd, target, done, target.length - done, position + done);
    if (count === 0) throw damaged(path, `${target.length} bytes from byte ${position} on`, done, "It was cut short.");
    done += count;
  }
}

function damaged(path: string, expected: string, actual: unknown, hint = ""): FileError {
  return new FileError(expectation(`SafetensorsFile ${path}`, expected, actual, hint));
}

function asObject(path: string, what: string, value: unknown): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw damaged(path, `${what} to be a JSON object`, value);
  return value as Record<string, unknown>;
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((count) => Number.isSafeInteger(count) && count >= 0 && !Object.is(count, -0));
}

function product(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

// JSON by hand, because an object would put a name such as "7" before all others.
const member = ([key, value]: readonly unknown[]): string => `${JSON.stringify(key)}:${JSON.stringify(value)}`;
const jsonObject = (members: readonly string[]): string => `{${members.join(",")}}`;

function padTo8(text: Buffer): Buffer {
  return Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, " ")]);
}

const hex = (crc: number): string => crc.toString(16).padStart(8, "0");

/** CRC-32 of zip and PNG, as an unsigned integer; `start` is the value for the bytes before these. */
export const crc32: (bytes: Uint8Array, start?: number) => number =
  typeof zlib.crc32 === "function" ? (bytes, start = 0) => zlib.crc32(bytes, start) : makeCrc32(0xedb88320); // Node 22.0 and 22.1 lack it

/** What a checksum adds to that of so many bytes more: checksums of one length are linear, so it is the way a start makes zeros differ. */
function shiftedCrc(crc: number, bytes: number): number {
  const zeros = new Uint8Array(Math.min(bytes, 2 ** 20));
  let [from, without] = [crc, 0];
  for (let left = bytes; left > 0; left -= zeros.length) {
    const chunk = left < zeros.length ? zeros.subarray(0, left) : zeros;
    [from, without] = [crc32(chunk, from), crc32(chunk, without)];
  }
  return (from ^ without) >>> 0;
}

/**
 * A reflected 32-bit CRC that takes eight bytes a step (slicing by 8).
 * @param polynomial bit-reversed: 0xedb88320 for CRC-32, 0x82f63b78 for CRC-32C
 */
export function makeCrc32(polynomial: number): (bytes: Uint8Array, start?: number) => number {
  const table = new Uint32Array(8 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ polynomial : crc >>> 1;
    table[byte] = crc;
  }
  for (let i = 256; i < table.length; i++) table[i] = (table[i - 256] >>> 8) ^ table[table[i - 256] & 255];
  return (bytes, start = 0) => {
    let crc = ~start;
    let i = 0;
    for (; i + 8 <= bytes.length; i += 8) {
      crc ^= bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24);
      crc =
        table[1792 + (crc & 255)] ^
        table[1536 + ((crc >>> 8) & 255)] ^
        table[1280 + ((crc >>> 16) & 255)] ^
        table[1024 + (crc >>> 24)] ^
        table[768 + bytes[i + 4]] ^
        table[512 + bytes[i + 5]] ^
        table[256 + bytes[i + 6]] ^
        table[bytes[i + 7]];
    }
    for (; i < bytes.length; i++) crc = (crc >>> 8) ^ table[(crc ^ bytes[i]) & 255];
    return ~crc >>> 0;
  };
}
