/** The MoE layer's useful rate against the machine's best large product, and where the rest of the time goes. */

import type { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { add, backward, keep, mean, mul, randomNormal, scope, setDefaultBackend, type Tensor } from "#sparsegate/tensor/index.js";
import { MoE } from "#sparsegate/moe/layer.js";
import {
  PRODUCTS,
  wholeNumbers,
  interleave,
  profiled,
  ratio,
  round,
  sgemmCases,
  shareOf,
  steadiness,
  useCpu,
  type BenchResult,
  type Benchmark,
} from "./harness.js";

export const [ROWS, D, F, K] = [2048, 512, 1024, 4];
const SGEMM = 2048;
/** Least share of the sgemm's rate, by number of experts. */
const BOUNDS: Record<number, number> = { 16: 0.75, 64: 0.7, 256: 0.45 };

/** What the experts are made of; all other time goes into the gate, routing, moving rows, losses and the tape. */
const EXPERTS = ["groupedGemm", "groupedGemmWeight", "unary", "unaryGrad"];
const PASSES = 9;

export function layer(numExperts: number): { moe: MoE; x: Tensor; weights: Tensor } {
  const x = keep(randomNormal([ROWS, D], { seed: 1 }));
  x.requiresGrad = true;
  return {
    moe: new MoE({ hiddenSize: D, numExperts, topK: K, expertHiddenSize: F }),
    x,
    weights: keep(randomNormal([ROWS, D], { seed: 2 })),
  };
}

/** One training pass of a layer: forward, both losses, backward to x and every parameter. Updates are left out: they are the optimiser's. */
export function training(moe: MoE, x: Tensor, weights: Tensor): () => void {
  let step = 0;
  return () =>
    scope(() => {
      const { output, auxLoss } = moe.forward(x, { training: true, seed: 0, step: step++, firstRow: 0 });
      backward(add(mean(mul(output, weights)), auxLoss));
      for (const p of [...moe.parameters(), x]) p.zeroGrad();
    });
}

export const moeLayer: Benchmark = {
  question: `how much of a ${SGEMM}³ sgemm's rate is left in an MoE layer (width ${D}, hidden ${F}, k ${K}, ${ROWS} rows, forward and backward)?`,
  options: { experts: "16,64,256", rounds: 9 },
  async run({ experts, rounds }): Promise<BenchResult> {
    const counts = wholeNumbers("experts", experts, K);
    const backend = useCpu();
    const gemms = sgemmCases(backend, SGEMM);
    const cases: Record<string, () => unknown> = { ...gemms };
    for (const E of counts) {
      const { moe, x, weights } = layer(E);
      cases[`E=${E}`] = training(moe, x, weights);
    }
    const times = await interleave(cases, { rounds: Number(rounds) });
    const best = Object.keys(gemms).reduce((a, b) => (times[b]!.median < times[a]!.median ? b : a));

    const rows: BenchResult["rows"] = Object.keys(gemms).map((name) => ({
      case: name,
      ms: round(1000 * times[name]!.median),
      "GF/s": round((2 * SGEMM ** 3) / times[name]!.median / 1e9),
      "of sgemm": null,
      products: null,
      "gate, routing, gather, scatter": null,
    }));
    const targets: BenchResult["targets"] = [];
    for (const E of counts) {
      const time = times[`E=${E}`]!.median;
      // Forward, gradient to the rows, gradient to the weights: three products of every assignment with its expert's 2·D·F weights.
      const flops = 2 * ROWS * K * 2 * D * F * 3;
      const ofSgemm = (flops / (2 * SGEMM ** 3)) * ratio(times[best]!, times[`E=${E}`]!);
      const { products, around, total } = stages(backend, E);
      rows.push({
        case: `MoE E=${E}`,
        ms: round(1000 * time),
        "GF/s": round(flops / time / 1e9),
        "of sgemm": round(ofSgemm),
        products: round(products / total),
        "gate, routing, gather, scatter": round(around / total),
      });
      if (BOUNDS[E] !== undefined)
        targets.push({ name: `useful rate with ${E} experts over sgemm`, value: ofSgemm, bound: BOUNDS[E] });
      if (E === 64)
        targets.push({
          name: "gate, routing, gather and scatter, share of the time at 64 experts",
          value: around / total,
          bound: 0.12,
          atMost: true,
        });
    }
    backend.dispose();
    return { rows, targets, notes: [steadiness(times), ...backend.notes] };
  },
};

/** Milliseconds a pass inside the experts' products, and in everything but the experts (gate, routing, gather, scatter, losses, tape). */
function stages(cpu: CpuBackend, numExperts: number): { products: number; around: number; total: number } {
  const { backend, profile } = profiled(cpu);
  // Tensors keep the backend they were made on, so the layer is made again, on the timed one.
  const before = setDefaultBackend(backend);
  const { moe, x, weights } = layer(numExperts);
  const pass = training(moe, x, weights);
  for (let i = 0; i < 3; i++) pass();
  for (const entry of profile.values()) Object.assign(entry, { ms: 0, calls: 0 });
  const begun = performance.now();
  for (let i = 0; i < PASSES; i++) pass();
  const total = performance.now() - begun;
  moe.dispose();
  x.dispose();
  weights.dispose();
  setDefaultBackend(before);
  const experts = shareOf(profile, 1, EXPERTS);
  return { products: shareOf(profile, 1, PRODUCTS), around: total - experts, total };
}
