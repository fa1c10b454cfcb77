/** The kernels' WebAssembly module: which of the four builds to take, and one shared or private memory. */

import { readFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { ConfigError } from "../../core/errors.js";

/** Which kernels to run: the best there are, or one of the two builds. */
export type SimdChoice = "auto" | "simd" | "relaxed";

/** Exports of the kernels: every one takes and gives numbers. */
export type Kernels = Record<string, (...args: number[]) => number>;

export interface KernelModule {
  module: WebAssembly.Module;
  variant: "simd" | "relaxed";
  notes: string[];
}

export const PAGE = 65536;
/** The kernels' own constants lie below; buffers start here. */
export const HEAP_START = 16 * PAGE;
/** One page less than 4 GiB, so that an address past the end is still 32 bits. */
export const MEMORY_LIMIT = 65535 * PAGE;

/** A module of one instruction, i8x16.relaxed_swizzle, valid only where relaxed SIMD is. */
const RELAXED_PROBE = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11]);

/**
 * Relaxed SIMD has fused multiply-add. Node 22 and later have it; Node 20 behind a V8 flag, which is set only when asked for.
 * @throws ConfigError when "relaxed" is asked for and the runtime has none
 */
export function loadKernels(choice: SimdChoice, shared: boolean): KernelModule {
  const notes: string[] = [];
  if (choice === "relaxed" && !WebAssembly.validate(RELAXED_PROBE)) setFlagsFromString("--experimental-wasm-relaxed-simd");
  const relaxed = choice !== "simd" && WebAssembly.validate(RELAXED_PROBE);
  if (choice === "relaxed" && !relaxed) throw new ConfigError("SPARSEGATE_SIMD: expected a runtime with relaxed SIMD for relaxed, got one without. Use simd or auto, or Node 22 or later.");
  if (!relaxed && choice === "auto") notes.push("No relaxed SIMD in this Node (22 and later have it): WebAssembly products run at about three quarters of their rate with it.");
  return { module: new WebAssembly.Module(kernelBytes(relaxed, shared)), variant: relaxed ? "relaxed" : "simd", notes };
}

/** The URLs are literal so that bundlers find the files. */
function kernelBytes(relaxed: boolean, shared: boolean): Uint8Array<ArrayBuffer> {
  const url = relaxed
    ? shared
      ? new URL("./kernels.relaxed.wasm", import.meta.url)
      : new URL("./kernels.relaxed-unshared.wasm", import.meta.url)
    : shared
      ? new URL("./kernels.simd.wasm", import.meta.url)
      : new URL("./kernels.simd-unshared.wasm", import.meta.url);
  return new Uint8Array(readFileSync(url));
}

/** Instantiates the kernels on a memory; each thread does so for itself. */
export function instantiate(module: WebAssembly.Module, memory: WebAssembly.Memory): Kernels {
  return new WebAssembly.Instance(module, { env: { memory } }).exports as Kernels;
}

/** Kernel names in the module's own order: their index is how threads name them to each other. */
export function kernelNames(module: WebAssembly.Module): string[] {
  return WebAssembly.Module.exports(module).filter(({ kind }) => kind === "function").map(({ name }) => name);
}
