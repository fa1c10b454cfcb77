/** The benchmarks by name: `npm run bench -- NAME`. */

import { comm } from "./comm.js";
import { gemm } from "./gemm.js";
import { generation } from "./generate.js";
import type { Benchmark } from "./harness.js";
import { largeLayer } from "./large-layer.js";
import { lmRanks } from "./lm-ranks.js";
import { lmStep } from "./lm-step.js";
import { memory } from "./memory.js";
import { moeExperts } from "./moe-experts.js";
import { moeLayer } from "./moe-layer.js";
import { peersLm } from "./peers-lm.js";
import { peersMoe } from "./peers-moe.js";
import { peers } from "./peers.js";
import { ptb } from "./ptb.js";
import { translation } from "./translate.js";

export const benchmarks: Record<string, Benchmark> = {
  "moe-layer": moeLayer,
  "moe-experts": moeExperts,
  peers,
  "peers-moe": peersMoe,
  "peers-lm": peersLm,
  gemm,
  "lm-step": lmStep,
  "lm-ranks": lmRanks,
  "large-layer": largeLayer,
  generate: generation,
  translate: translation,
  memory,
  ptb,
  comm,
};
