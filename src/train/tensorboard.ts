/**
 * Scalar curves for TensorBoard: an event file of protocol-buffer messages, encoded by hand, in TFRecord frames.
 *
 * A frame is u64 length, u32 masked CRC-32C of the length, the message, u32 masked CRC-32C of the message; all little-endian.
 * @see https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
 */

import { closeSync, openSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { threadId } from "node:worker_threads";
import { expectation, FileError } from "../core/errors.js";
import { fileError, makeFolder, writeAll } from "./atomic.js";
import { makeCrc32 } from "./safetensors.js";

/** CRC-32C (Castagnoli) as an unsigned integer; `start` is the value for the bytes before these. */
export const crc32c = makeCrc32(0x82f63b78);

let files = 0;

/** Writes one event file; TensorBoard shows every event file of a folder as one run. */
export class TensorBoardWriter {
  /** The event file, `events.out.tfevents.<seconds>.<host>.<pid>.<thread>.<count>`. */
  readonly path: string;
  private fd: number;

  /**
   * @param folder where the event file goes; created when missing
   * @param options.resumeStep tells TensorBoard to forget what earlier files of the folder say about later steps. @default nothing is forgotten
   * @param options.time in seconds since 1970. @default now
   * @throws FileError when the file cannot be written
   */
  constructor(folder: string, { resumeStep, time = Date.now() / 1000 }: { resumeStep?: number; time?: number } = {}) {
    // TensorBoard reads the files in order of name, and takes the first digits for the time.
    const name = `events.out.tfevents.${String(Math.floor(time)).padStart(10, "0")}.${hostname()}.${process.pid}.${threadId}.${files++}`;
    this.path = join(folder, name);
    try {
      makeFolder(folder);
      this.fd = openSync(this.path, "ax");
    } catch (error) {
      throw fileError("TensorBoardWriter", this.path, "write", error);
    }
    this.append(Buffer.concat([double(1, time), bytes(3, Buffer.from("brain.Event:2"))]));
    if (resumeStep !== undefined) {
      const sessionStart = bytes(7, int(1, 1)); // SessionLog { status: START }: events of this step and later are purged
      this.append(Buffer.concat([double(1, time), int(2, resumeStep + 1), sessionStart]));
    }
  }

  /**
   * Appends one event with a scalar for each tag; values that are not numbers are left out.
   * @param time in seconds since 1970. @default now
   * @throws FileError when the disk is full or the writer is closed
   */
  write(step: number, values: Readonly<Record<string, number | string | null>>, time: number = Date.now() / 1000): void {
    const scalars = Object.entries(values).flatMap(([tag, value]) =>
      typeof value === "number" ? [bytes(1, Buffer.concat([bytes(1, Buffer.from(tag, "utf8")), float(2, value)]))] : [],
    );
    if (scalars.length === 0) return;
    this.append(Buffer.concat([double(1, time), int(2, step), bytes(5, Buffer.concat(scalars))]));
  }

  /** Closes the file; closing twice is harmless. */
  close(): void {
    const fd = this.fd;
    this.fd = -1;
    if (fd !== -1) closeSync(fd);
  }

  private append(message: Buffer): void {
    if (this.fd === -1) throw new FileError(expectation("TensorBoardWriter.write", `${this.path} to be open`, "closed"));
    const frame = Buffer.alloc(8 + 4 + message.length + 4);
    frame.writeBigUInt64LE(BigInt(message.length), 0);
    frame.writeUInt32LE(masked(crc32c(frame.subarray(0, 8))), 8);
    message.copy(frame, 12);
    frame.writeUInt32LE(masked(crc32c(message)), 12 + message.length);
    try {
      writeAll(this.fd, frame);
    } catch (error) {
      throw fileError("TensorBoardWriter.write", this.path, "write", error);
    }
  }
}

/** TFRecord rotates and shifts its checksums, so that a checksum of data which holds checksums stays useful. */
function masked(crc: number): number {
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

// Protocol-buffer fields: a key (number << 3 | wire type), then the value.

function varint(value: number): Buffer {
  const out: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 127n; rest >>= 7n) out.push(Number(rest & 127n) | 128);
  out.push(Number(rest));
  return Buffer.from(out);
}

function int(field: number, value: number): Buffer {
  return Buffer.concat([varint(field << 3), varint(value)]);
}

function double(field: number, value: number): Buffer {
  const out = Buffer.alloc(9);
  out[0] = (field << 3) | 1;
  out.writeDoubleLE(value, 1);
  return out;
}

function bytes(field: number, value: Buffer): Buffer {
  return Buffer.concat([varint((field << 3) | 2), varint(value.length), value]);
}

function float(field: number, value: number): Buffer {
  const out = Buffer.alloc(5);
  out[0] = (field << 3) | 5;
  out.writeFloatLE(value, 1);
  return out;
}
