/** The backend of a command. */

import { CpuBackend } from "../backend/cpu/index.js";
import { setDefaultBackend } from "../tensor/default-backend.js";

/** Starts the CPU backend for everything a command does, and says on stderr what it must do without; under --no-progress too, as it may cost most of the speed. */
export function openBackend(): CpuBackend {
  const backend = new CpuBackend();
  setDefaultBackend(backend);
  for (const note of backend.notes) process.stderr.write(`${note}\n`);
  return backend;
}
