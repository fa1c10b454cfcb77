/** The scores of attention and their gradients, a step at a time: the paper's product attention, and GNMT's additive one (Shazeer et al. 2017, App. G). */

import type { Buf } from "../../backend/backend.js";
import { empty, zeros, type Tensor } from "../tensor.js";

/** Scores of the queries of one step after another, for B lanes with S positions each, of width A. */
export interface Scorer {
  /** From h·W (B, A), overwritten by what the gradient needs, to scores (B, S). */
  forward(query: Buf, scores: Buf): void;
  /** Of the queries of all steps (T, B, A), as `forward` left them. */
  backward(queries: Tensor): ScoreGradient;
}

export interface ScoreGradient {
  /** From the gradient of step t's scores (B, S) to that of its h·W (B, A). Steps come last first. */
  step(t: number, dScores: Buf, dQuery: Buf): void;
  /** Gradients of keys and V, after all steps. @param dScores (T, B, S) */
  end(dScores: Tensor): { dKeys: Tensor; dV?: Tensor };
}

/** Additive attention where there is a V; else product attention. @param keys (S, B, A); @param v (A) */
export function scorer(keys: Tensor, v: Tensor | undefined, S: number, B: number, A: number): Scorer {
  return v ? additive(keys, v, S, B, A) : product(keys, S, B, A);
}

/** Σ_d keys_sd·tanh(query_d): a product for each lane. */
function product(keys: Tensor, S: number, B: number, A: number): Scorer {
  const backend = keys.backend;
  return {
    forward(query, scores) {
      backend.unary("tanh", query, query, B * A);
      // A lane's keys are S rows, B·A apart.
      backend.gemmBatched(B, false, true, 1, S, A, 1, query, A, A, keys.buffer, B * A, A, 0, scores, S, S);
    },
    backward: (queries) => ({
      step(t, dScores, dQuery) {
        const query = queries.buffer.at(t * B * A, B * A);
        backend.gemmBatched(B, false, false, 1, A, S, 1, dScores, S, S, keys.buffer, B * A, A, 0, dQuery, A, A);
        backend.unaryGrad("tanh", query, query, dQuery, dQuery, B * A); // of tanh, only its value counts
      },
      end(dScores) {
        const dKeys = empty(keys.shape, "float32", backend);
        backend.gemmBatched(B, true, false, S, A, queries.shape[0]!, 1, dScores.buffer, B * S, S, queries.buffer, B * A, A, 0, dKeys.buffer, B * A, A);
        return { dKeys };
      },
    }),
  };
}

/** Σ_d V_d·tanh(keys_sd + query_d): every pair of position and query has a vector of its own, which is computed again for the gradient. */
function additive(keys: Tensor, v: Tensor, S: number, B: number, A: number): Scorer {
  const backend = keys.backend;
  const n = S * B * A;
  const all = { div: 1, mod: Math.max(n, 1) };
  const activations = (query: Buf, out: Buf): void => {
    backend.binary("add", keys.buffer, all, query, { div: 1, mod: Math.max(B * A, 1) }, out, n);
    backend.unary("tanh", out, out, n);
  };
  return {
    forward(query, scores) {
      const e = empty([S, B, A], "float32", backend);
      const flat = empty([S, B], "float32", backend);
      activations(query, e.buffer);
      backend.gemm(false, false, S * B, 1, A, 1, e.buffer, A, v.buffer, 1, 0, flat.buffer, 1);
      backend.stridedCopy([B, S], flat.buffer, [1, B], scores, [S, 1]);
      for (const t of [e, flat]) t.dispose();
    },
    backward(queries) {
      const e = empty([S, B, A], "float32", backend);
      const de = empty([S, B, A], "float32", backend);
      const flat = empty([S, B], "float32", backend);
      const dKeys = zeros([S, B, A], "float32", backend);
      const dV = zeros([A], "float32", backend);
      return {
        step(t, dScores, dQuery) {
          activations(queries.buffer.at(t * B * A, B * A), e.buffer);
          backend.stridedCopy([S, B], dScores, [1, S], flat.buffer, [B, 1]);
          backend.gemm(true, false, A, 1, S * B, 1, e.buffer, A, flat.buffer, 1, 1, dV.buffer, 1);
          backend.gemm(false, false, S * B, A, 1, 1, flat.buffer, 1, v.buffer, A, 0, de.buffer, A);
          backend.unaryGrad("tanh", e.buffer, e.buffer, de.buffer, de.buffer, n); // of tanh, only its value counts
          backend.spreadSum(de.buffer, { div: 1, mod: Math.max(B * A, 1) }, 1, dQuery, n);
          backend.axpy(1, de.buffer, dKeys.buffer, n);
        },
        end: () => ({ dKeys, dV }),
      };
    },
  };
}
