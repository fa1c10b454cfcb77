/**
 * Numbers below 2^-126, which processors compute at a hundredth of their rate: a product of a saturated layer's gradients took 4.2 ms in place of 0.05.
 * While a list of native products is worked off they are zero, so that the kernels between the products meet none; everything else, which promises to keep
 * them, runs as ever.
 */

import { loadKoffi } from "./koffi.js";

/** Words of fenv_t on x86-64 Linux (glibc, musl): seven of the x87 unit, then MXCSR. */
const [ENVIRONMENT_WORDS, MXCSR] = [8, 7];
/** Denormal results become zero, and denormal inputs count as zero. */
const FLUSH_TO_ZERO = 0x8000 | 0x0040;

/** Switches the mode of the calling thread on and off. @returns undefined where it cannot be set: not x86-64 Linux */
export function denormalSwitch(): ((flush: boolean) => void) | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return undefined;
  try {
    const library = loadKoffi().load(null);
    const set = library.func("int fesetenv(const void *)");
    const usual = new Uint32Array(ENVIRONMENT_WORDS);
    if (library.func("int fegetenv(void *)")(usual) !== 0) return undefined;
    const flushing = usual.slice();
    flushing[MXCSR]! |= FLUSH_TO_ZERO;
    return (flush) => void set(flush ? flushing : usual);
  } catch {
    // A C library without the two functions.
    return undefined;
  }
}
