/** The backend of a command. */

import { CpuBackend } from "../backend/cpu/index.js";
import { setDefaultBackend } from "../tensor/default-backend.js";

/**
 * Starts the CPU backend for everything a command does, and says on stderr what it must do without; under --no-progress too, as it may cost most of the speed.
 * @param options.quiet says nothing: on ranks but the first
 */
export function openBackend({ quiet = false }: { quiet?: boolean } = {}): CpuBackend {
  const backend = new CpuBackend();
  setDefaultBackend(backend);
  for (const note of quiet ? [] : backend.notes) process.stderr.write(`${note}\n`);
  return backend;
}
