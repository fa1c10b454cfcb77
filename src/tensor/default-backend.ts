/** The backend that tensors are made on when none is named: the CPU backend, started at first use. */

import type { Backend } from "../backend/backend.js";
import { CpuBackend } from "../backend/cpu/index.js";

let current: Backend | undefined;

/**
 * The backend in use. Starts the CPU backend (all cores, CBLAS when found) at the first call. Where that one must do without a CBLAS, and nobody chose so,
 * a process warning says what is missing and what would help.
 */
export function defaultBackend(): Backend {
  if (current !== undefined) return current;
  const backend = new CpuBackend();
  current = backend;
  if (!backend.blas.found && process.env["SPARSEGATE_BLAS"] !== "none") {
    process.emitWarning(`sparsegate: ${backend.notes.join(" ")} SPARSEGATE_BLAS=none accepts this silently.`, { code: "SPARSEGATE_NO_BLAS" });
  }
  return backend;
}

/** Makes new tensors live on `backend`. Tensors made before stay where they are. Returns the one used before, if any. */
export function setDefaultBackend(backend: Backend | undefined): Backend | undefined {
  const before = current;
  current = backend;
  return before;
}
