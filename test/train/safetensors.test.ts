/** The safetensors format: bytes as the specification lays them out, foreign files, and damage that is always noticed. */

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { FileError, TensorError } from "#sparsegate/core/errors.js";
import { writeFileAtomic } from "#sparsegate/train/atomic.js";
import { crc32, makeCrc32, SafetensorsFile, type StoredTensor, writeSafetensors } from "#sparsegate/train/safetensors.js";

const folder = mkdtempSync(join(tmpdir(), "sparsegate-safetensors-"));
afterAll(() => rmSync(folder, { recursive: true }));
const path = (name: string) => join(folder, name);

/** A file laid out by hand. */
function layOut(name: string, header: unknown, data: Buffer, length?: bigint): string {
  const json = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(length ?? BigInt(json.length));
  writeFileSync(path(name), Buffer.concat([size, json, data]));
  return path(name);
}

const sample: StoredTensor[] = [
  { name: "b.weight", shape: [2, 3], dtype: "F32", data: Float32Array.of(1, -2, 3.5, 0, Infinity, 1e-40) },
  { name: "a.count", shape: [], dtype: "I32", data: Int32Array.of(-7) },
  { name: "empty", shape: [0, 4], dtype: "F32", data: new Float32Array(0) },
  { name: "__proto__", shape: [1], dtype: "F32", data: () => Float32Array.of(9) },
  { name: "7", shape: [2], dtype: "I32", data: Int32Array.of(1, 2) },
];

describe("writing", () => {
  test("gives these very bytes", () => {
    writeSafetensors(path("exact"), [
      { name: "w", shape: [2], dtype: "F32", data: Float32Array.of(1, -2) },
      { name: "i", shape: [1], dtype: "I32", data: Int32Array.of(258) },
    ]);
    const data = Buffer.from("02010000" + "0000803f" + "000000c0", "hex");
    const json = (own: string) =>
      `{"__metadata__":{"crc32.header":"${own}","crc32.version":"1",` +
      `"crc32:i":"${crc(data.subarray(0, 4))}","crc32:w":"${crc(data.subarray(4))}"},` +
      `"i":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}`;
    const padded = (own: string) => Buffer.from(json(own).padEnd(Math.ceil(json(own).length / 8) * 8));
    const size = Buffer.alloc(8);
    size.writeUInt32LE(padded("00000000").length);
    expect(readFileSync(path("exact"))).toEqual(Buffer.concat([size, padded(crc(padded("00000000"))), data]));
  });

  test("and reading give the same tensors back, names such as __proto__ and 7, empty and scalar ones included", () => {
    const { bytes, crc32: sum } = writeSafetensors(path("sample"), sample, { format: "pt" });
    const file = new SafetensorsFile(path("sample"));
    expect([file.bytes, file.crc32]).toEqual([bytes, sum]);
    expect([...file.metadata]).toEqual([["format", "pt"]]);
    expect(file.names.sort()).toEqual(["7", "__proto__", "a.count", "b.weight", "empty"]);
    for (const { name, shape, dtype, data } of sample) {
      expect(file.info(name)).toMatchObject({ shape, dtype });
      expect(file.read(name)).toEqual(typeof data === "function" ? data() : data);
    }
  });

  test("begins the data at a multiple of 8 bytes, whatever the header's length", () => {
    for (let i = 0; i < 9; i++) {
      writeSafetensors(path("aligned"), [{ name: "x".repeat(i + 1), shape: [1], dtype: "F32", data: Float32Array.of(i) }]);
      expect(Number(readFileSync(path("aligned")).readBigUInt64LE()) % 8).toBe(0);
    }
  });

  test("and reading work on shared memory, over several chunks of 4 MiB", () => {
    const values = 2.5 * (1 << 20);
    const shared = new Float32Array(new SharedArrayBuffer(4 * values + 4), 4, values).map((_, i) => Math.sin(i));
    const source = new Float32Array(new SharedArrayBuffer(4 * values + 4), 4, values);
    source.set(shared);
    writeSafetensors(path("shared"), [{ name: "big", shape: [values], dtype: "F32", data: source }]);
    const target = new Float32Array(new SharedArrayBuffer(4 * values + 8), 8, values);
    new SafetensorsFile(path("shared")).read("big", target);
    expect(Buffer.compare(Buffer.from(target.buffer, 8), Buffer.from(source.buffer, 4, 4 * values))).toBe(0);
  });

  test("asks for lazy data one tensor at a time, in the order of the file", () => {
    const asked: string[] = [];
    const lazy = (name: string): StoredTensor => ({
      name,
      shape: [1],
      dtype: "F32",
      data: () => (asked.push(name), Float32Array.of(1)),
    });
    writeSafetensors(path("lazy"), ["c", "a", "b"].map(lazy));
    expect(asked).toEqual(["a", "b", "c"]);
  });

  test("refuses a name given twice and data that does not fit, and leaves the old file", () => {
    writeSafetensors(path("kept"), sample);
    const before = readFileSync(path("kept"));
    const one = { name: "w", shape: [2], dtype: "F32" as const, data: new Float32Array(2) };
    expect(() => writeSafetensors(path("kept"), [one, one])).toThrow(TensorError);
    expect(() => writeSafetensors(path("kept"), [{ ...one, shape: [3] }])).toThrow(
      /expected F32 data of 3 values for tensor w of shape \[3\]/,
    );
    expect(() => writeSafetensors(path("kept"), [{ ...one, dtype: "I32" }])).toThrow(TensorError);
    expect(readFileSync(path("kept"))).toEqual(before);
    expect(readdirSync(folder).filter((name) => name.includes(".tmp-"))).toEqual([]);
  });
});

describe("reading", () => {
  const f32 = (shape: number[], begin: number, end: number) => ({ dtype: "F32", shape, data_offsets: [begin, end] });

  test("takes a foreign file: no checksums, unpadded header, tensors in another order, dtypes we lack", () => {
    const file = new SafetensorsFile(
      layOut(
        "foreign",
        { z: f32([1], 2, 6), h: { dtype: "BF16", shape: [1], data_offsets: [0, 2] }, __metadata__: { by: "hand" } },
        Buffer.from("ffff" + "0000003f", "hex"),
      ),
    );
    expect(file.crc32).toBeNull();
    expect(file.metadata.get("by")).toBe("hand");
    expect(file.read("z")).toEqual(Float32Array.of(0.5));
    expect(() => file.read("h")).toThrow(/tensor h to be F32 or I32, got "BF16"/);
  });

  const wrong: [claim: string, header: unknown, dataBytes: number, message: RegExp, length?: bigint][] = [
    ["a gap", { a: f32([1], 0, 4), b: f32([1], 8, 12) }, 12, /no gap or overlap/],
    ["an overlap", { a: f32([2], 0, 8), b: f32([1], 4, 8) }, 8, /no gap or overlap/],
    ["data that begin late", { a: f32([1], 4, 8) }, 8, /no gap or overlap/],
    ["bytes left over", { a: f32([1], 0, 4) }, 5, /no tensor owns/],
    ["missing bytes", { a: f32([2], 0, 8) }, 7, /cut short/],
    ["offsets that do not fit the shape", { a: f32([3], 0, 8) }, 8, /take 12 bytes, got 8/],
    ["a negative shape", { a: f32([-1, -2], 0, 8) }, 8, /shape of whole numbers/],
    ["an unknown dtype", { a: { dtype: "F31", shape: [1], data_offsets: [0, 4] } }, 4, /known dtype, got "F31"/],
    [
      "a tensor twice",
      '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
      4,
      /"a twice"/,
    ],
    [
      "a twice hidden by an escape",
      '{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"\\u0061" :{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
      0,
      /"a twice"/,
    ],
    ["a header that is no JSON", "{a", 0, /header of JSON/],
    ["a header that is a list", "[]", 0, /JSON object/],
    ["a header longer than the file", {}, 0, /cut short/, 1000n],
    ["an absurd header length", {}, 0, /at most 100000000 bytes/, 1n << 63n],
    ["a mark of ours without our checksum", { __metadata__: { "crc32.version": "1" } }, 0, /header to have the checksum/],
    ["metadata that are no strings", { __metadata__: { a: 1 } }, 0, /hold strings/],
  ];
  test.each(wrong)("refuses %s, naming the file", (claim, header, dataBytes, message, length) => {
    const open = () => new SafetensorsFile(layOut("wrong", header, Buffer.alloc(dataBytes), length));
    expect(open).toThrow(FileError);
    expect(open).toThrow(message);
    expect(open).toThrow(path("wrong"));
  });

  test("refuses a missing file, a folder, an unknown tensor and a target of another size with a FileError", () => {
    expect(() => new SafetensorsFile(path("none"))).toThrow(/ENOENT/);
    expect(() => new SafetensorsFile(folder)).toThrow(FileError);
    writeSafetensors(path("sample"), sample);
    const file = new SafetensorsFile(path("sample"));
    expect(() => file.read("nobody")).toThrow(FileError);
    expect(() => file.read("b.weight", new Float32Array(5))).toThrow(/room for 6 values/);
    expect(() => file.read("b.weight", new Int32Array(6))).toThrow(FileError);
  });

  /** Reads everything there is to read. */
  function readWhole(at: string): void {
    const file = new SafetensorsFile(at);
    for (const name of file.names) file.read(name);
  }

  test("notices a file cut short at any byte", () => {
    writeSafetensors(path("cut"), sample);
    const whole = readFileSync(path("cut"));
    for (let length = 0; length < whole.length; length++) {
      writeFileSync(path("cut"), whole.subarray(0, length));
      expect(() => readWhole(path("cut")), `cut to ${length} bytes`).toThrow(FileError);
    }
  });

  test("notices every single flipped bit, in the header, the padding and the data", () => {
    writeSafetensors(path("flip"), sample.slice(0, 3), { format: "pt" });
    const whole = readFileSync(path("flip"));
    readWhole(path("flip"));
    for (let bit = 0; bit < 8 * whole.length; bit++) {
      const bent = Buffer.from(whole);
      bent[bit >> 3] ^= 1 << (bit & 7);
      writeFileSync(path("flip"), bent);
      expect(() => readWhole(path("flip")), `bit ${bit & 7} of byte ${bit >> 3}`).toThrow(FileError);
    }
  });

  test("names the tensor whose data are damaged, and reads the others", () => {
    writeSafetensors(path("named"), sample);
    const bytes = readFileSync(path("named"));
    bytes[bytes.length - 1] ^= 1; // b.weight is last but for the empty one
    writeFileSync(path("named"), bytes);
    const file = new SafetensorsFile(path("named"));
    expect(() => file.read("b.weight")).toThrow(/tensor b\.weight to have the checksum/);
    expect(file.read("a.count")).toEqual(Int32Array.of(-7));
  });
});

test("the CRC-32 is the one of zip, in pieces as well, and our table gives the same as Node's", () => {
  expect(crc32(Buffer.from("123456789"))).toBe(0xcbf43926); // the check value in every catalogue of CRCs
  const table = makeCrc32(0xedb88320);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 100 }), fc.nat(100), (bytes, cut) => {
      expect(table(bytes)).toBe(crc32(bytes));
      expect(table(bytes.subarray(cut), table(bytes.subarray(0, cut)))).toBe(crc32(bytes));
    }),
  );
});

test("writeFileAtomic replaces a file, makes folders, and explains what is in the way", () => {
  writeFileAtomic(path("new/deep/file"), "one");
  writeFileAtomic(path("new/deep/file"), "two");
  expect(readFileSync(path("new/deep/file"), "utf8")).toBe("two");
  expect(() => writeFileAtomic(path("new/deep/file/below"), "x")).toThrow(/to write .*below, got "E(NOTDIR|EXIST): .*file/);
  expect(() => writeFileAtomic(path("new/deep"), "x")).toThrow(FileError);
  expect(readdirSync(path("new"))).toEqual(["deep"]);
  expect(existsSync(path("new/deep/file"))).toBe(true);
});

/** Bit by bit, from the definition. */
function crc(bytes: Uint8Array): string {
  let value = 0xffffffff;
  for (const byte of bytes) {
    value ^= byte;
    for (let i = 0; i < 8; i++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return (~value >>> 0).toString(16).padStart(8, "0");
}
