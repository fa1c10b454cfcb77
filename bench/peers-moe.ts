/**
 * GShard, hierarchical and Switch-like layers against the published PyTorch module `mixture-of-experts` (lucidrains), on the shape of its own example. The
 * module is not part of this repository: --module names its file.
 */

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { FeedForwardExperts } from "#sparsegate/moe/feed-forward.js";
import type { GateConfig } from "#sparsegate/moe/gates/index.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE, type MoEOutput } from "#sparsegate/moe/layer.js";
import { add, backward, keep, mean, mul, randomNormal, scope, sum, tensor, type Tensor } from "#sparsegate/tensor/index.js";
import {
  UsageError,
  wholeNumbers,
  interleave,
  ratio,
  round,
  steadiness,
  useCpu,
  type BenchResult,
  type Benchmark,
} from "./harness.js";
import { PythonPeer } from "./peers/peer.js";

/** The module's example: 4 sequences of 1,024 tokens, width 512; its defaults: hidden width 4·512, ReLU, no biases, capacity factor 1.25. */
const [BATCH, LENGTH, D] = [4, 1024, 512];
const F = 4 * D;
const CAPACITY = 1.25;
/** How many times faster we have to be with 64 experts. */
const BOUND = 5;
/** How far outputs may be apart, relative to the largest: float32 sums of a few hundred products in different orders. */
const TOLERANCE = 1e-5;
/** Least of the peer's assignments that ours must work on. Random second experts and capacity per sequence make the two differ. */
const LEAST_WORK = 0.97;

type Policy = "random" | "none" | "all";

interface Layers {
  name: string;
  /** [experts], or [groups, experts of each]. */
  experts: readonly number[];
  policy: Policy;
  gate: "gshard" | "switch";
}

const cases = (counts: readonly number[]): Layers[] => [
  ...counts.map((E): Layers => ({ name: `GShard, ${E} experts`, experts: [E], policy: "random", gate: "gshard" })),
  ...counts.map((E): Layers => {
    const groups = Math.sqrt(E);
    if (!Number.isInteger(groups))
      throw new UsageError(`expected --experts to be squares (groups of as many experts), got ${E}.`);
    return { name: `GShard, ${groups} × ${groups} experts`, experts: [groups, groups], policy: "random", gate: "gshard" };
  }),
  ...counts.map((E): Layers => ({ name: `Switch-like, ${E} experts`, experts: [E], policy: "none", gate: "switch" })),
];

/**
 * Our layer of the same sizes. An expert of the peer takes ⌊capacity · tokens / experts⌋ tokens of each sequence, whether tokens have one expert or two;
 * ours counts assignments, two a token, over the batch: half the factor is the same number of places, and at two levels half at each.
 * @param capacity none: nothing is dropped
 */
function ourLayer({ experts, policy, gate }: Layers, width: number, hidden: number, capacity?: number): MoE {
  const config = (factor: number): GateConfig => {
    const limit = capacity === undefined ? {} : { capacityFactor: factor };
    return gate === "switch" ? { type: "switch", ...limit } : { type: "gshard", secondPolicy: policy, ...limit };
  };
  const c = capacity ?? 1;
  const sizes = { hiddenSize: width, expertHiddenSize: hidden };
  if (experts.length === 1) return new MoE({ ...sizes, numExperts: experts[0]!, gate: config(gate === "switch" ? c : c / 2) });
  const [groups, perGroup] = experts as [number, number];
  return new HierarchicalMoE({
    ...sizes,
    numExperts: [groups, perGroup],
    gate: config(c / 2),
    secondaryGate: config((c / 2) ** 2),
  });
}

/** Gate weights from the outermost in, then the experts'. */
function weightsOf(moe: MoE): { gates: Tensor[]; experts: Tensor[] } {
  const named = moe.namedParameters();
  const gates = ["gate.weight", "gate.primary.weight", "gate.secondary.weight"].flatMap((name) => named.get(name) ?? []);
  const { inputWeight, outputWeight } = moe.experts as FeedForwardExperts;
  return { gates, experts: [inputWeight, outputWeight] };
}

interface Routed {
  tokens: number;
  /** Assignments that reach an expert. */
  used: number;
  /** Share of tokens that no expert takes. */
  dropped: number;
  finite: boolean;
}

/** What became of the tokens of our layer. */
function routed({ experts, rowOffsets, routing, output, auxLoss }: MoEOutput, tokens: number): Routed {
  const list = experts.dataSync();
  const starts = rowOffsets?.dataSync() ?? Int32Array.from({ length: tokens + 1 }, (_, n) => (n * list.length) / tokens);
  let dropped = 0;
  for (let n = 0; n < tokens; n++) if (!list.slice(starts[n], starts[n + 1]).some((e) => e >= 0)) dropped++;
  const offsets = routing.offsets.dataSync();
  const finite = Number.isFinite(auxLoss.item()) && output.dataSync().every(Number.isFinite);
  return { tokens, used: offsets.at(-1)!, dropped: dropped / tokens, finite };
}

const bytesOf = (tensors: readonly Tensor[]): Uint8Array =>
  Buffer.concat(
    tensors.map((t) => {
      const values = Float32Array.from(t.dataSync());
      return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
    }),
  );

/** The layers compute the same: equal weights, equal inputs, nothing dropped at random or for want of room. @throws Error where they do not */
async function checkEqual(peer: PythonPeer, folder: string): Promise<void> {
  const [length, width, hidden] = [64, 32, 48];
  const small: Layers[] = [
    { name: "flat", experts: [4], policy: "all", gate: "gshard" },
    // With two experts a level the peer gives a token 2 + 1 of them, not 2 × 2: equal only with one.
    { name: "hierarchical", experts: [2, 3], policy: "none", gate: "gshard" },
  ];
  for (const layers of small) {
    const moe = ourLayer(layers, width, hidden);
    const x = keep(randomNormal([1, length, width], { seed: 5 }));
    const { gates, experts } = weightsOf(moe);
    const [data, to] = [join(folder, "check"), join(folder, "outputs")];
    writeFileSync(data, bytesOf([x, ...gates, ...experts]));
    await peer.tell({ do: "make", ...layers, width, hidden, capacity: 8, shape: [1, length], data, whole: true });
    writeFileSync(to, new Uint8Array(4 * (2 * x.size + 1)));
    await peer.tell({ do: "outputs", to });
    const theirs = new Float32Array(new Uint8Array(readFileSync(to)).buffer);
    x.requiresGrad = true;
    const ours = scope(() => {
      const { output, auxLoss } = moe.forward(x);
      backward(sum(mul(output, tensor(x.dataSync(), x.shape))));
      return [...output.dataSync(), ...x.grad!.value.dataSync(), auxLoss.item()];
    });
    // The inner loss of the peer's hierarchy counts empty places as tokens; ours does not.
    const compared = layers.experts.length === 1 ? ours.length : ours.length - 1;
    const largest = ours.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const error = ours.slice(0, compared).reduce((most, value, i) => Math.max(most, Math.abs(value - theirs[i]!)), 0) / largest;
    if (!(error < TOLERANCE))
      throw new Error(`${layers.name}: expected the outputs of the two to agree within ${TOLERANCE}, got ${error}.`);
    moe.dispose();
    x.dispose();
  }
}

export const peersMoe: Benchmark = {
  question: `how many times faster than PyTorch's published mixture-of-experts module is the layer with GShard, hierarchical and Switch gates (${BATCH} × ${LENGTH} tokens, width ${D}, hidden ${F})?`,
  options: { module: "", experts: "16,64", rounds: 5, install: "no" },
  async run({ module, experts, rounds, install }): Promise<BenchResult> {
    const nothing = (why: string): BenchResult => ({ rows: [], targets: [], notes: [`nothing was measured: ${why}`] });
    const how =
      "Pass --module FILE, the file mixture_of_experts/mixture_of_experts.py of github.com/lucidrains/mixture-of-experts, or of the package mixture-of-experts 0.2.3 on PyPI";
    if (module === "") return nothing(`the peer's module is missing. ${how}`);
    if (!existsSync(String(module))) return nothing(`there is no file ${module}. ${how}`);
    const layers = cases(wholeNumbers("experts", experts, 4));
    const backend = useCpu();
    const torch = await PythonPeer.start(
      "torch_gshard.py",
      "torch",
      [String(backend.threads), String(module)],
      install === "yes",
    );
    const missing = "missing" in torch ? torch.missing : (JSON.parse(torch.hello) as { missing?: string }).missing;
    if ("missing" in torch || missing !== undefined) {
      backend.dispose();
      return nothing(missing!);
    }
    const { peer, hello } = torch;
    const folder = mkdtempSync(join(tmpdir(), "sparsegate-bench-"));
    const rows: BenchResult["rows"] = [];
    const targets: BenchResult["targets"] = [];
    const timings: Parameters<typeof steadiness>[0] = {};
    try {
      await checkEqual(peer, folder);
      for (const each of layers) {
        const moe = ourLayer(each, D, F, CAPACITY);
        const [x, factor] = [1, 2].map((seed) => keep(randomNormal([BATCH, LENGTH, D], { seed }))) as [Tensor, Tensor];
        const data = join(folder, "data");
        writeFileSync(data, bytesOf([x, ...weightsOf(moe).gates]));
        const shape = { width: D, hidden: F, capacity: CAPACITY, shape: [BATCH, LENGTH] };
        const theirs = await peer.tell<Routed>({ do: "make", ...each, ...shape, data, whole: false });
        x.requiresGrad = true;
        let step = 0;
        const forward = (): MoEOutput => moe.forward(x, { training: true, seed: 0, step: step++, firstRow: 0 });
        const ours = scope(() => routed(forward(), BATCH * LENGTH));
        for (const [side, { finite }] of Object.entries({ sparsegate: ours, torch: theirs }))
          if (!finite) throw new Error(`${each.name}: expected finite outputs of ${side}.`);
        if (ours.used < LEAST_WORK * theirs.used)
          throw new Error(
            `${each.name}: expected at least ${LEAST_WORK} of the peer's ${theirs.used} assignments, got ${ours.used}.`,
          );
        const times = await interleave(
          {
            torch: async () => (await peer.tell<{ seconds: number }>({ do: "time" })).seconds,
            sparsegate: () =>
              scope(() => {
                const { output, auxLoss } = forward();
                backward(add(mean(mul(output, factor)), auxLoss));
                for (const p of [...moe.parameters(), x]) p.zeroGrad();
              }),
          },
          { rounds: Number(rounds), warmup: 1 },
        );
        for (const [side, timing] of Object.entries(times)) timings[`${each.name}, ${side}`] = timing;
        for (const t of [x, factor]) t.dispose();
        moe.dispose();
        // Products of each assignment with its expert's 2·D·F weights, forward, to the rows and to the weights: what counts, not what is computed.
        const gflops = ({ used }: Routed, seconds: number): number => round((used * 2 * 2 * D * F * 3) / seconds / 1e9);
        const faster = ratio(times.torch, times.sparsegate);
        rows.push({
          layer: each.name,
          "torch ms": round(1000 * times.torch.median),
          "sparsegate ms": round(1000 * times.sparsegate.median),
          "times faster": round(faster),
          "torch assignments": theirs.used,
          "sparsegate assignments": ours.used,
          "torch tokens dropped": round(theirs.dropped),
          "sparsegate tokens dropped": round(ours.dropped),
          "torch useful GF/s": gflops(theirs, times.torch.median),
          "sparsegate useful GF/s": gflops(ours, times.sparsegate.median),
        });
        if (each.experts.reduce((product, n) => product * n, 1) === 64)
          targets.push({ name: `times faster than the module, ${each.name}`, value: faster, bound: BOUND });
      }
    } finally {
      peer.stop();
      rmSync(folder, { recursive: true, force: true });
      backend.dispose();
    }
    const notes = [
      `peer: ${hello}, ${module}; both with ${backend.threads} threads, the same inputs and the same starting weights of the gates (ours)`,
      `outputs, gradients of the inputs and (flat) auxiliary losses agreed within ${TOLERANCE} where both take every token`,
      "capacity: the module counts places in each sequence, sparsegate over the batch, the same number in all; the module's second group uses one expert, ours two (more work for ours); Switch-like: the module without second experts, whose weight is p1/(p1+p2), and sparsegate's Switch gate, whose weight is p1",
      steadiness(timings),
      ...backend.notes,
    ];
    return { rows, targets, notes };
  },
};
