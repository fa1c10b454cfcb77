/** The optional package that calls native libraries. */

import { createRequire } from "node:module";

/** A C function: numbers for numbers and addresses, arrays where it takes a pointer. */
export type NativeFunction = (...args: (number | ArrayBufferView)[]) => unknown;

export interface Koffi {
  /** null: what the process has loaded already, the C library for one. */
  load(path: string | null): { func(signature: string): NativeFunction };
  address(view: ArrayBufferView): bigint;
}

/** @throws Error with the code MODULE_NOT_FOUND where it is not installed, or what kept it from loading */
export function loadKoffi(): Koffi {
  return createRequire(import.meta.url)("koffi") as Koffi;
}
