/** What is written on a message: the call it belongs to, the type of its elements, and a number. One integer, as MPI has no more room. */

import { CommError, type CommArray, type ReduceOp } from "./communicator.js";

/** Calls as they are named in messages for people; the place is the code. All-reduces of much data travel otherwise than those of little. */
export const CALLS = ["barrier", "broadcast", "allReduce (sum)", "allReduce (max)", "allReduce (min)", "allReduce (sum, long)", "allReduce (max, long)", "allReduce (min, long)",
  "allGather", "allToAll", "gather", "scatter", "sendTo", "split", "the end of the program"] as const;
export const TYPES = ["nothing", "float32", "int32", "float64"] as const;

/** Names of the calls that messages belong to. */
export type Call = (typeof CALLS)[number];
export type TypeName = (typeof TYPES)[number];

/** Tags that a user can give to `sendTo`. */
export const USER_TAGS = 8192;
/** Kinds of messages: what a tag holds beside the number. */
export const KINDS = CALLS.length * TYPES.length;

/** @param numbers how many there are, `Transport.numbers` */
export function envelope(call: Call, type: TypeName, number: number, numbers: number): number {
  return (CALLS.indexOf(call) * TYPES.length + TYPES.indexOf(type)) * numbers + number;
}

export function opened(tag: number, numbers: number): { call: Call; type: TypeName; number: number } {
  const kind = Math.floor(tag / numbers);
  return { call: CALLS[Math.floor(kind / TYPES.length)]!, type: TYPES[kind % TYPES.length]!, number: tag % numbers };
}

/** Name for people of a message's call and type: `allToAll of float32`. */
export function describe({ call, type }: { call: Call; type: TypeName }): string {
  return type === "nothing" ? call : `${call} of ${type}`;
}

export function reduceCall(op: ReduceOp, long: boolean): Call {
  return long ? `allReduce (${op}, long)` : `allReduce (${op})`;
}

const TYPE_OF: Record<string, TypeName> = { Float32Array: "float32", Int32Array: "int32", Float64Array: "float64" };

/** @throws CommError for anything else than the three kinds of array */
export function typeOf(where: string, name: string, data: CommArray): TypeName {
  const kind = ArrayBuffer.isView(data) ? data[Symbol.toStringTag] : undefined;
  const type = kind === undefined ? undefined : TYPE_OF[kind];
  if (type === undefined) throw new CommError(`${where}: expected ${name} to be a Float32Array, Int32Array or Float64Array, got ${kind ?? (data === null ? "null" : typeof data)}.`);
  return type;
}
