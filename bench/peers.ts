/** The MoE layer against a straightforward PyTorch one: a loop over experts with index_add (bench/peers/torch_moe.py). */

import { wholeNumbers, interleave, ratio, round, steadiness, useCpu, type BenchResult, type Benchmark } from "./harness.js";
import { D, F, K, ROWS, layer, training } from "./moe-layer.js";
import { PAUSE_MS, PythonPeer } from "./peers/peer.js";

/** How many times faster we have to be, by number of experts. */
const BOUNDS: Record<number, number> = { 64: 5, 256: 10 };

export const peers: Benchmark = {
  question: `how many times faster than a straightforward PyTorch MoE (same work, same threads, same BLAS library) is the layer?`,
  options: { experts: "16,64,256", rounds: 5, install: "no" },
  async run({ experts, rounds, install }): Promise<BenchResult> {
    const counts = wholeNumbers("experts", experts, K);
    const backend = useCpu();
    const start = (ourKernels: boolean): ReturnType<typeof PythonPeer.start> =>
      PythonPeer.start("torch_moe.py", "torch", [String(backend.threads)], install === "yes", { ourKernels });
    const [torch, helped] = [await start(false), await start(true)];
    if ("missing" in torch || "missing" in helped) {
      backend.dispose();
      const reason = "missing" in torch ? torch.missing : (helped as { missing: string }).missing;
      return { rows: [], targets: [], notes: [`PyTorch is missing, nothing was measured: ${reason}`] };
    }
    const rows: BenchResult["rows"] = [];
    const targets: BenchResult["targets"] = [];
    const timings: Parameters<typeof steadiness>[0] = {};
    for (const E of counts) {
      const { moe, x, weights } = layer(E);
      const work = `moe ${E} ${ROWS} ${D} ${F} ${K}`;
      const times = await interleave(
        { torch: () => torch.peer.ask(work), sparsegate: training(moe, x, weights), helped: () => helped.peer.ask(work) },
        { rounds: Number(rounds), pauseMs: PAUSE_MS },
      );
      moe.dispose();
      const useful = 2 * ROWS * K * 2 * D * F * 3;
      for (const [side, timing] of Object.entries(times)) timings[`${E}, ${side}`] = timing;
      const faster = ratio(times.torch, times.sparsegate);
      rows.push({
        experts: E,
        "torch ms": round(1000 * times.torch.median),
        "torch GF/s": round(useful / times.torch.median / 1e9),
        "sparsegate ms": round(1000 * times.sparsegate.median),
        "sparsegate GF/s": round(useful / times.sparsegate.median / 1e9),
        "times faster": round(faster),
        "torch with our kernels ms": round(1000 * times.helped.median),
        "times faster than that": round(ratio(times.helped, times.sparsegate)),
      });
      if (BOUNDS[E] !== undefined)
        targets.push({ name: `times faster than PyTorch with ${E} experts`, value: faster, bound: BOUNDS[E] });
    }
    for (const { peer } of [torch, helped]) peer.stop();
    backend.dispose();
    return { rows, targets, notes: [`peer: ${torch.hello}`, steadiness(timings), ...backend.notes] };
  },
};
