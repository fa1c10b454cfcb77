/** The paper's MoE-256 language model in training, against the same written straightforwardly in PyTorch (bench/peers/torch_lm.py). */

import { trainStep } from "#sparsegate/train/step.js";
import { interleave, ratio, round, steadiness, useCpu, wholeNumbers, type BenchResult, type Benchmark } from "./harness.js";
import { batches, makeTraining } from "./lm-step.js";
import { PAUSE_MS, PythonPeer } from "./peers/peer.js";

/** How many times as many tokens a second we have to train on. */
const BOUND = 3;
/** Between the two first losses, in nats: both models begin at random, near the logarithm of the number of classes. */
const SAME_LOSS = 0.5;

export const peersLm: Benchmark = {
  question:
    "how many times as many tokens a second does MoE-256 train on as the same language model in PyTorch (same threads, same BLAS library)?",
  options: { hiddenSizes: "128,512", timeSteps: 32, batchSize: 64, vocabSize: 32000, sampled: 2048, rounds: 7, install: "no" },
  async run({ hiddenSizes, timeSteps, batchSize, vocabSize, sampled, rounds, install }): Promise<BenchResult> {
    const widths = wholeNumbers("hiddenSizes", hiddenSizes, 1);
    const rows: BenchResult["rows"] = [];
    const targets: BenchResult["targets"] = [];
    const notes: string[] = [];
    const timings: Parameters<typeof steadiness>[0] = {};
    for (const hiddenSize of widths) {
      const backend = useCpu();
      const torch = await PythonPeer.start("torch_lm.py", "torch", [String(backend.threads)], install === "yes");
      if ("missing" in torch) {
        backend.dispose();
        return { rows: [], targets: [], notes: [`PyTorch is missing, nothing was measured: ${torch.missing}`] };
      }
      const sizes = { timeSteps: Number(timeSteps), batchSize: Number(batchSize), vocabSize: Number(vocabSize) };
      const training = makeTraining("MoE-256", hiddenSize, sizes.vocabSize);
      const settings = { seed: 0, learningRate: 1e-3, maxGradNorm: undefined, sampledSoftmax: Number(sampled) };
      const [ours, theirs] = [0, 1].map(() => batches(sizes.vocabSize, sizes.timeSteps, sizes.batchSize)) as [
        ReturnType<typeof batches>,
        ReturnType<typeof batches>,
      ];
      const ask = (): Promise<{ seconds: number; loss: number }> => {
        const { inputs, targets: words } = theirs();
        return torch.peer.tell({
          ...sizes,
          hiddenSize,
          experts: 256,
          topK: 4,
          dropout: 0.1,
          sampled: Number(sampled),
          inputs: [...inputs],
          targets: [...words],
        });
      };
      const losses = [trainStep(training, ours(), settings).loss, (await ask()).loss] as const;
      if (!(Math.abs(losses[0] - losses[1]) < SAME_LOSS))
        throw new Error(`expected both models to begin at the same loss, got ${losses.join(" and ")}`);
      const times = await interleave(
        { torch: async () => (await ask()).seconds, sparsegate: () => trainStep(training, ours(), settings).loss },
        { rounds: Number(rounds), pauseMs: PAUSE_MS },
      );
      torch.peer.stop();
      backend.dispose();
      const tokens = sizes.timeSteps * sizes.batchSize;
      const faster = ratio(times.torch, times.sparsegate);
      for (const [side, timing] of Object.entries(times)) timings[`${hiddenSize}, ${side}`] = timing;
      rows.push({
        width: hiddenSize,
        "torch tokens/s": Math.round(tokens / times.torch.median),
        "sparsegate tokens/s": Math.round(tokens / times.sparsegate.median),
        "times faster": round(faster),
        "first loss, torch": round(losses[1], 4),
        "first loss, sparsegate": round(losses[0], 4),
      });
      targets.push({ name: `times as fast as PyTorch at width ${hiddenSize}`, value: faster, bound: BOUND });
      if (notes.length === 0) notes.push(`peer: ${torch.hello}`, ...backend.notes);
    }
    return { rows, targets, notes: [...notes, steadiness(timings)] };
  },
};
