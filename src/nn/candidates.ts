/** Candidates for sampled softmax: distinct classes from the log-uniform (Zipfian) distribution over a vocabulary sorted by frequency. */

import { checkInteger } from "../core/checks.js";
import { streamId, uniformAt } from "../core/random.js";
import type { Candidates } from "../tensor/ops/losses.js";

/**
 * P(c) = log((c + 2)/(c + 1)) / log(V + 1): class c is drawn by inverting the distribution function. Draws are repeated until `samples` distinct classes
 * are found; after T draws a class is expected 1 − (1 − P)^T times, which is the correction (as in TensorFlow's log_uniform_candidate_sampler).
 */
export function logUniformCandidates(vocabSize: number, samples: number, { seed, step }: { seed: number; step: number }): Candidates {
  checkInteger("logUniformCandidates", "samples", samples, { min: 1, max: vocabSize, hint: `The vocabulary has ${vocabSize} entries.` });
  const key = { seed, stream: streamId("sampled softmax", "candidates"), step };
  const logV = Math.log(vocabSize + 1);
  const chosen = new Set<number>();
  let draws = 0;
  while (chosen.size < samples) {
    const c = Math.min(vocabSize - 1, Math.floor(Math.exp(uniformAt(key, draws++) * logV)) - 1);
    chosen.add(c);
  }
  const logExpectedOf = (c: number): number => Math.log(-Math.expm1(draws * Math.log1p(-Math.log((c + 2) / (c + 1)) / logV)));
  const list = Int32Array.from(chosen).sort();
  return { samples: list, logExpected: Float32Array.from(list, logExpectedOf), logExpectedOf };
}
