/** The backend that tensors are made on when none is named: the CPU backend, started at first use. */

import type { Backend } from "../backend/backend.js";
import { CpuBackend } from "../backend/cpu/index.js";

let current: Backend | undefined;

/** The backend in use. Starts the CPU backend (all cores, CBLAS when found) at the first call. */
export function defaultBackend(): Backend {
  current ??= new CpuBackend();
  return current;
}

/** Makes new tensors live on `backend`. Tensors made before stay where they are. Returns the one used before, if any. */
export function setDefaultBackend(backend: Backend | undefined): Backend | undefined {
  const before = current;
  current = backend;
  return before;
}
