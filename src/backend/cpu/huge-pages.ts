/** Asks Linux for pages of 2 MiB: experts are read once a pass, a page table entry for every 4 KiB of them is looked up in vain. */

import { readFileSync } from "node:fs";
import { loadKoffi } from "./koffi.js";

const SETTING = "/sys/kernel/mm/transparent_hugepage/enabled";
const MADV_HUGEPAGE = 14;
/** Advice begins and ends at whole pages of any size in use. */
const ALIGNMENT = 65536;

/**
 * Advises large pages for [address, address + bytes), memory that need not be in use yet. Where the system gives them by itself, gives none, does not tell,
 * or is not Linux, does nothing: pages are a matter of speed alone.
 * @returns whether the advice was taken
 */
export function adviseHugePages(address: number, bytes: number): boolean {
  if (process.platform !== "linux") return false;
  try {
    if (!readFileSync(SETTING, "utf8").includes("[madvise]")) return false;
    const from = Math.ceil(address / ALIGNMENT) * ALIGNMENT;
    return loadKoffi().load(null).func("int madvise(uintptr_t, size_t, int)")(from, Math.floor((address + bytes - from) / ALIGNMENT) * ALIGNMENT, MADV_HUGEPAGE) === 0;
  } catch {
    return false;
  }
}
