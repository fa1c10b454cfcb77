/** Candidates for sampled softmax: distinct classes from the log-uniform (Zipfian) distribution over a vocabulary sorted by frequency. */

import { checkInteger } from "../core/checks.js";
import { streamId } from "../core/random.js";
import { defaultBackend } from "../tensor/default-backend.js";
import type { RandomKey } from "../backend/backend.js";
import type { Candidates } from "../tensor/ops/losses.js";

/** P(c) = log((c + 2)/(c + 1)) / log(V + 1) of class c, from 0: Zipf's law. */
export function logUniform(c: number, vocabSize: number): number {
  return Math.log((c + 2) / (c + 1)) / Math.log(vocabSize + 1);
}

/**
 * Class c is drawn with the probability of `logUniform`, by inverting the distribution function. Draws are repeated until `samples` distinct classes
 * are found; after T draws a class is expected 1 − (1 − P)^T times, which is the correction (as in TensorFlow's log_uniform_candidate_sampler).
 */
export function logUniformCandidates(vocabSize: number, samples: number, { seed, step }: { seed: number; step: number }): Candidates {
  checkInteger("logUniformCandidates", "samples", samples, { min: 1, max: vocabSize, hint: `The vocabulary has ${vocabSize} entries.` });
  const draw = uniforms({ seed, stream: streamId("sampled softmax", "candidates"), step }, samples);
  const logV = Math.log(vocabSize + 1);
  const seen = new Uint8Array(vocabSize);
  const list = new Int32Array(samples);
  let draws = 0;
  for (let found = 0; found < samples; draws++) {
    const c = Math.min(vocabSize - 1, Math.floor(Math.exp(draw(draws) * logV)) - 1);
    if (seen[c] === 0) list[found++] = c;
    seen[c] = 1;
  }
  list.sort();
  const logExpectedOf = (c: number): number => Math.log(-Math.expm1(draws * Math.log1p(-logUniform(c, vocabSize))));
  return { samples: list, logExpected: Float32Array.from(list, logExpectedOf), logExpectedOf };
}

/** Element i of a stream of uniform numbers, asked for in order: drawn on the backend, a block at a time. */
function uniforms(key: RandomKey, block: number): (i: number) => number {
  const backend = defaultBackend();
  let [from, values] = [0, new Float32Array(0) as ArrayLike<number>];
  return (i) => {
    if (i - from >= values.length) {
      from = i;
      const drawn = backend.alloc("float32", block);
      backend.randomUniform(drawn, block, key, from, 0, 1);
      values = backend.readSync(drawn);
      backend.free(drawn);
    }
    return values[i - from]!;
  };
}
