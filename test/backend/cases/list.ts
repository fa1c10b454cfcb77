/** What the lists of parity cases are made with: sizes, cases against the reference, and cases worked by hand. One list for each family of kernels. */

import type { Backend, Buf } from "#sparsegate/backend/backend.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { kernelCase, type Case, type Data } from "../helpers.js";

export { blank, blankInts, Draw, sumOf } from "../helpers.js";

/** Below, on and beside the SIMD widths of 4 and 16; the last is cut among threads. */
export const SIZES = [1, 3, 4, 5, 17, 64, 100, 40_001];
/** Rows × columns, likewise. */
export const SHAPES = [[1, 1], [1, 5], [3, 4], [5, 17], [4, 64], [17, 3], [7, 100], [64, 1001]] as const;
export const IDENTITY = (n: number) => ({ div: 1, mod: n });

/** A case whose results were worked out by hand. */
export interface Golden {
  claim: string;
  buffers: Record<string, Data>;
  run(backend: Backend, bufs: Record<string, Buf>): void;
  want: Record<string, number[]>;
}

export class CaseList {
  readonly cases: Case[] = [];
  readonly golden: Golden[] = [];
  readonly add: typeof kernelCase = (...args) => {
    const made = kernelCase(...args);
    this.cases.push(made);
    return made;
  };
  readonly worked = <Name extends string>(claim: string, buffers: Record<Name, Data>, run: (b: Backend, m: Record<Name, Buf>) => void, want: Partial<Record<Name, number[]>>): void => {
    this.golden.push({ claim, buffers, run, want: want as Record<string, number[]> });
  };
}

/** What the reference computes, as input of a later kernel; rounded to float32 so that both backends start from the same. */
export function computed<Name extends string>(buffers: Record<Name, Data>, run: (b: Backend, m: Record<Name, Buf>) => void): Record<Name, Data> {
  const backend = new ReferenceBackend();
  const bufs = {} as Record<Name, Buf>;
  for (const [name, data] of Object.entries<Data>(buffers)) {
    const buf = backend.alloc(data instanceof Float64Array ? "float32" : "int32", data.length);
    backend.write(buf, data);
    bufs[name as Name] = buf;
  }
  run(backend, bufs);
  const rounded = (data: Data): Data => (data instanceof Float64Array ? data.map(Math.fround) : data);
  return Object.fromEntries(Object.entries<Buf>(bufs).map(([name, buf]) => [name, rounded(backend.readSync(buf) as Data)])) as Record<Name, Data>;
}
