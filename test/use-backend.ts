/** Backends for tests: the three that everything above `backend/` is held to, and a switch of the default one for a `describe`. */

import { afterAll, beforeAll } from "vitest";
import type { Backend } from "#sparsegate/backend/backend.js";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { setDefaultBackend } from "#sparsegate/tensor/index.js";

/** float64 loops; what most users run; and what they run without a native library. Where no CBLAS is found, the second equals the third. */
export const BACKENDS = [
  { name: "reference", make: (): Backend => new ReferenceBackend() },
  { name: "cpu", make: (): Backend => new CpuBackend({ threads: 2 }) },
  { name: "cpu without BLAS", make: (): Backend => new CpuBackend({ threads: 1, blas: "none" }) },
] as const;

/** Makes tensors of the enclosing `describe` live on a backend of its own. */
export function useBackend(make: () => Backend): void {
  let before: Backend | undefined;
  let own: Backend;
  beforeAll(() => {
    own = make();
    before = setDefaultBackend(own);
  });
  afterAll(() => {
    setDefaultBackend(before);
    own.dispose();
  });
}
