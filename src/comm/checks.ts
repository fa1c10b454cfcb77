/** What a rank checks of its own arguments before anything is sent. */

import { show } from "../core/errors.js";
import { CommError, type CommArray, type Counts, type ReduceOp } from "./communicator.js";
import { USER_TAGS, typeOf, type TypeName } from "./envelope.js";

const OPS: readonly ReduceOp[] = ["sum", "max", "min"];

function refuse(where: string, expected: string, got: unknown, hint = ""): never {
  throw new CommError(`${where}: expected ${expected}, got ${show(got)}.${hint && ` ${hint}`}`);
}

export function checkRank(where: string, name: string, value: number, size: number): void {
  if (!Number.isInteger(value) || value < 0 || value >= size) refuse(where, `${name} to be a rank from 0 to ${size - 1}`, value);
}

export function checkPeer(where: string, name: string, value: number, rank: number, size: number): void {
  checkRank(where, name, value, size);
  if (value === rank) refuse(where, `${name} to be another rank`, `${value}, this one`);
}

export function checkTag(where: string, tag: number): void {
  if (!Number.isInteger(tag) || tag < 0 || tag >= USER_TAGS) refuse(where, `tag to be an integer from 0 to ${USER_TAGS - 1}`, tag);
}

export function checkOp(where: string, op: ReduceOp): void {
  if (!OPS.includes(op)) refuse(where, `op to be one of ${OPS.join(", ")}`, op);
}

/** Colors and keys are int32 in MPI, and a negative color means no group at all. */
export function checkSplit(color: number, key: number): void {
  if (!Number.isInteger(color) || color < 0 || color >= 2 ** 31) refuse("split", "color to be an integer from 0 to 2147483647", color);
  if (key !== (key | 0)) refuse("split", "key to be a 32-bit integer", key);
}

/** Two arrays of one type. */
export function checkSameType(where: string, send: CommArray, receive: CommArray): TypeName {
  const [type, other] = [typeOf(where, "send", send), typeOf(where, "receive", receive)];
  if (type !== other) refuse(where, "send and receive to be of one type", `${type} and ${other}`);
  return type;
}

/** @returns counts as plain numbers; as many as there are ranks, none negative, and no more together than the array has */
export function checkCounts(where: string, name: string, counts: Counts, size: number, array: string, length: number): number[] {
  if (counts === null || typeof counts !== "object" || counts.length !== size) refuse(where, `${name} to have a count for each of ${size} ranks`, counts === null || typeof counts !== "object" ? counts : counts.length);
  let total = 0;
  for (let rank = 0; rank < size; rank++) {
    const count = counts[rank]!;
    if (!Number.isInteger(count) || count < 0) refuse(where, `${name}[${rank}] to be a whole number`, count);
    total += count;
  }
  if (total > length) refuse(where, `${array} to have at least ${total} elements (the sum of ${name})`, length);
  return Array.from(counts);
}

/** What one side has for itself has to be what the other has. */
export function checkEqual(where: string, what: string, expected: number, got: number): void {
  if (expected !== got) refuse(where, `${what} to be ${expected}`, got);
}

/** Arrays that are read and written at once must not share memory. */
export function checkApart(where: string, send: CommArray, sendLength: number, receive: CommArray, receiveAt: number, receiveLength: number): void {
  if (send.buffer !== receive.buffer || sendLength === 0 || receiveLength === 0) return;
  const size = send.BYTES_PER_ELEMENT;
  const [from, to] = [send.byteOffset, receive.byteOffset + receiveAt * size];
  if (from < to + receiveLength * size && to < from + sendLength * size) refuse(where, "send and receive to lie apart", "arrays that share elements", "Copy one of them (slice).");
}
