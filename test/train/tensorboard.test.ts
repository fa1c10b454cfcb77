/** TensorBoard event files, decoded by a parser of their own. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { FileError } from "#sparsegate/core/errors.js";
import { crc32c, TensorBoardWriter } from "#sparsegate/train/tensorboard.js";

const folder = mkdtempSync(join(tmpdir(), "sparsegate-tensorboard-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Bit by bit, from the definition of CRC-32C, then masked as TFRecord has it. */
function maskedCrc(bytes: Uint8Array): number {
  let crc = 0xffffffffn;
  for (const byte of bytes) {
    crc ^= BigInt(byte);
    for (let i = 0; i < 8; i++) crc = crc & 1n ? (crc >> 1n) ^ 0x82f63b78n : crc >> 1n;
  }
  crc ^= 0xffffffffn;
  return Number((((crc >> 15n) | (crc << 17n)) + 0xa282ead8n) & 0xffffffffn);
}

type Fields = [field: number, value: number | bigint | Buffer][];

/** One protocol-buffer message as a list of fields. */
function decode(bytes: Buffer): Fields {
  const fields: Fields = [];
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = Number(varint());
    if ((key & 7) === 0) fields.push([key >> 3, varint()]);
    else if ((key & 7) === 1) fields.push([key >> 3, bytes.readDoubleLE((at += 8) - 8)]);
    else if ((key & 7) === 5) fields.push([key >> 3, bytes.readFloatLE((at += 4) - 4)]);
    else if ((key & 7) === 2) {
      const length = Number(varint());
      fields.push([key >> 3, bytes.subarray(at, (at += length))]);
    } else throw new Error(`wire type ${key & 7}`);
  }
  return fields;
}

/** The events of a file, every frame's checksums checked. */
function readEvents(path: string): Fields[] {
  const bytes = readFileSync(path);
  const events: Fields[] = [];
  for (let at = 0; at < bytes.length;) {
    const length = Number(bytes.readBigUInt64LE(at));
    expect(bytes.readUInt32LE(at + 8)).toBe(maskedCrc(bytes.subarray(at, at + 8)));
    const message = bytes.subarray(at + 12, at + 12 + length);
    expect(bytes.readUInt32LE(at + 12 + length)).toBe(maskedCrc(message));
    events.push(decode(message));
    at += 16 + length;
  }
  return events;
}

const scalars = (summary: unknown) =>
  decode(summary as Buffer).map(([field, value]) => {
    const [[, tag], [, number]] = decode(value as Buffer);
    expect(field).toBe(1);
    return [String(tag), number];
  });

test("CRC-32C gives the published check values, in pieces as well", () => {
  expect(crc32c(Buffer.from("123456789"))).toBe(0xe3069283);
  expect(crc32c(Buffer.alloc(32))).toBe(0x8a9136aa); // RFC 3720, B.4
  expect(crc32c(Buffer.alloc(32, 0xff))).toBe(0x62a8ab43);
  expect(crc32c(Buffer.from(Array.from({ length: 32 }, (_, i) => i)))).toBe(0x46dd794e);
  expect(crc32c(Buffer.from("456789"), crc32c(Buffer.from("123")))).toBe(0xe3069283);
});

test("a file begins with its version, then has one event a step with every scalar", () => {
  const writer = new TensorBoardWriter(join(folder, "a"), { time: 1764000000.25 });
  writer.write(1, { "train/loss": 4.5, "moe/load_cv2": -0.125, signature: "text", gone: null }, 1764000001);
  writer.write(2 ** 40 + 300, { "eval/bleu": NaN }, 1764000002);
  writer.write(3, { signature: "only text" });
  writer.close();
  writer.close();
  expect(basename(writer.path)).toMatch(/^events\.out\.tfevents\.1764000000\./);
  const [version, first, second, ...rest] = readEvents(writer.path);
  expect(version).toEqual([[1, 1764000000.25], [3, Buffer.from("brain.Event:2")]]); // prettier-ignore
  expect(first.slice(0, 2)).toEqual([[1, 1764000001], [2, 1n]]); // prettier-ignore
  expect(first[2][0]).toBe(5);
  expect(scalars(first[2][1])).toEqual([["train/loss", 4.5], ["moe/load_cv2", -0.125]]); // prettier-ignore
  expect(second[1]).toEqual([2, 2n ** 40n + 300n]);
  expect(scalars(second[2][1])).toEqual([["eval/bleu", NaN]]);
  expect(rest).toEqual([]);
});

test("a resumed run opens a new file that purges the steps after the resumed one", () => {
  const first = new TensorBoardWriter(join(folder, "b"), { time: 5 });
  const resumed = new TensorBoardWriter(join(folder, "b"), { time: 5, resumeStep: 40 });
  expect(resumed.path).not.toBe(first.path);
  const [, start] = readEvents(resumed.path);
  expect(start.slice(0, 2)).toEqual([[1, 5], [2, 41n]]); // prettier-ignore
  expect(start[2][0]).toBe(7); // session_log
  expect(decode(start[2][1] as Buffer)).toEqual([[1, 1n]]); // START
  first.close();
  resumed.close();
});

test("a folder that is a file, and a closed writer, are refused with a FileError", () => {
  writeFileSync(join(folder, "file"), "");
  expect(() => new TensorBoardWriter(join(folder, "file"))).toThrow(FileError);
  const writer = new TensorBoardWriter(join(folder, "c"));
  writer.close();
  expect(() => writer.write(1, { a: 1 })).toThrow(FileError);
});
