/** Cost of a training step against the number of experts, at the same work a row: what flat and hierarchical gates add, and what the parameters themselves cost. */

import { freemem } from "node:os";
import type { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE } from "#sparsegate/moe/layer.js";
import { balanceStatistics } from "#sparsegate/moe/statistics.js";
import { Adam } from "#sparsegate/optim/optimizers.js";
import { add, backward, keep, mean, mul, randomNormal, scope, setDefaultBackend } from "#sparsegate/tensor/index.js";
import {
  UsageError,
  wholeNumbers,
  interleave,
  profiled,
  ratio,
  round,
  shareOf,
  steadiness,
  timingOf,
  useCpu,
  type BenchResult,
  type Benchmark,
  type Line,
  type Profile,
  type Timing,
} from "./harness.js";

const [ROWS, D, F, K] = [8192, 128, 256, 4];
const WARMUP = 2;
/** Bytes of one expert's weights. */
const EXPERT_BYTES = 4 * 2 * D * F;
/** Weights of no more than this may stay in the processor's caches from one step to the next. */
const CACHES = 32 * 2 ** 20;
/** Too small to move the gates away from the even loads they start with: every round is the same work. */
const RATE = 1e-7;

const KINDS = ["flat", "hierarchical"] as const;
type Kind = (typeof KINDS)[number];
const FORMS = ["factored", "adam"] as const;
type Form = (typeof FORMS)[number];

/** What the experts themselves are made of (activations ride along with the products), and the calls of it in a pass; all other time is the gate's, the routing's, and that of moving rows. */
const EXPERTS = { "groupedGemm, experts": 4, "groupedGemmWeight, experts": 2 };
/** Where that other time goes. What is in none of these, and in no kernel, is "the rest": losses, sums, the tape and the collector. */
const STAGES: Record<string, readonly string[]> = {
  logits: ["gemm", "groupedGemm, gates", "groupedGemmWeight, gates"],
  selection: ["noisyTopK", "noisyTopKGrad", "topK", "softmax", "softmaxGrad"],
  routing: ["routeByExpert", "gatherIndices", "addIndices", "divideIndex", "bincount", "gatherLast", "scatterAddLast"],
  rows: ["gatherRows", "combineRows", "combineRowsGrad"],
};

/** About √E groups of √E experts: 16 groups of 16 for 256, 32 of 32 for 1,024, 64 of 64 for 4,096. */
export function groupsOf(numExperts: number): number {
  let groups = Math.floor(Math.sqrt(numExperts));
  while (numExperts % groups !== 0) groups--;
  return groups;
}

/** Counts the experts' products apart from those of the gates, by their number. */
function labelOf(numExperts: number): (method: string, args: readonly unknown[]) => string {
  return (method, args) =>
    method === "groupedGemm" || method === "groupedGemmWeight"
      ? `${method}, ${args[1] === numExperts ? "experts" : "gates"}`
      : method;
}

/** One layer with its optimisers, in a memory of its own: side by side the large ones would not fit into one. */
class Case {
  readonly cpu: CpuBackend;
  readonly #profile: Profile;
  readonly #step: (form: Form) => void;
  /** Seconds of forward and backward, of each update, and the share of the former outside the experts; a number a round. */
  readonly pass: number[] = [];
  readonly update: Record<Form, number[]> = { factored: [], adam: [] };
  readonly around: number[] = [];
  /** Milliseconds and calls of every kernel, all counted steps together. */
  readonly total: Profile = new Map();
  parameters = 0;
  maxOverMean = 0;

  constructor(
    readonly kind: Kind,
    readonly numExperts: number,
    readonly forms: readonly Form[],
  ) {
    this.cpu = useCpu();
    const { backend, profile } = profiled(this.cpu, labelOf(numExperts));
    this.#profile = profile;
    setDefaultBackend(backend);
    const sizes = { hiddenSize: D, expertHiddenSize: F };
    const groups = groupsOf(numExperts);
    const moe =
      kind === "flat"
        ? new MoE({ ...sizes, numExperts, topK: K })
        : new HierarchicalMoE({ ...sizes, numExperts: [groups, numExperts / groups], topK: [2, K / 2] });
    this.parameters = moe.numParameters();
    const parameters = moe.namedParameters();
    const optimizers: Record<Form, Adam> = {
      factored: new Adam(parameters, { factored: (name) => /^experts\..*Weight$/.test(name) }),
      adam: new Adam(parameters),
    };
    const x = keep(randomNormal([ROWS, D], { seed: 1 }));
    const weights = keep(randomNormal([ROWS, D], { seed: 2 }));
    x.requiresGrad = true;
    let step = 0;
    this.#step = (form) => {
      const begun = performance.now();
      const routed = scope(() => {
        const { output, auxLoss, routing, importance } = moe.forward(x, { training: true, seed: 0, step: step++, firstRow: 0 });
        backward(add(mean(mul(output, weights)), auxLoss));
        return { offsets: routing.offsets, importance };
      });
      const ms = performance.now() - begun;
      this.pass.push(ms / 1000);
      this.around.push(1 - shareOf(profile, ms, Object.keys(EXPERTS)));
      if (step === 1) this.#measureBalance(routed.offsets.dataSync(), routed.importance.dataSync());
      routed.offsets.dispose();
      routed.importance.dispose();
      const updated = performance.now();
      optimizers[form].step(RATE);
      this.update[form].push((performance.now() - updated) / 1000);
      optimizers[form].zeroGrad();
      x.zeroGrad();
    };
  }

  /** Steps taken after the warm-up. */
  get steps(): number {
    return this.pass.length - WARMUP * this.forms.length;
  }

  /** A whole training step. */
  run(form: Form): void {
    for (const entry of this.#profile.values()) Object.assign(entry, { ms: 0, calls: 0 });
    this.#step(form);
    for (const [label, calls] of Object.entries(EXPERTS)) {
      const counted = this.#profile.get(label)?.calls ?? 0;
      if (counted !== calls)
        throw new Error(`${this.kind}, ${this.numExperts} experts: expected ${calls} of ${label}, got ${counted}.`);
    }
    if (this.steps <= 0) return;
    for (const [label, { ms, calls }] of this.#profile) {
      const sum = this.total.get(label) ?? { ms: 0, calls: 0 };
      this.total.set(label, { ms: sum.ms + ms, calls: sum.calls + calls });
    }
  }

  #measureBalance(offsets: ArrayLike<number>, importance: ArrayLike<number>): void {
    const load = Array.from({ length: this.numExperts }, (_, e) => offsets[e + 1]! - offsets[e]!);
    this.maxOverMean = balanceStatistics(importance, load).maxOverMeanLoad;
    const used = offsets[this.numExperts]!;
    if (used !== ROWS * K)
      throw new Error(`${this.kind}, ${this.numExperts} experts: expected ${ROWS * K} assignments, got ${used}.`);
  }
}

const caseName = (kind: Kind, numExperts: number, form: Form): string => `${kind} ${numExperts} ${form}`;

/** The forms of Adam that fit beside weights and gradients into a backend's memory: the full one keeps two more numbers a weight. */
function formsThatFit(forms: readonly Form[], numExperts: number, limit: number): Form[] {
  // Beside them: logits, noise and their gradients (4 numbers a row and expert), hidden activations and gathered rows.
  const rest = 4 * (4 * ROWS * numExperts + ROWS * K * (3 * F + 4 * D));
  return forms.filter((form) => (form === "adam" ? 4 : 2) * numExperts * EXPERT_BYTES + rest < limit);
}

/** Milliseconds of each stage and kernel of a step, largest first, for a look with BENCH_PROFILE=1. */
function printProfile({ kind, numExperts, total, steps }: Case): void {
  const ms = (labels: readonly string[]): number => labels.reduce((sum, label) => sum + (total.get(label)?.ms ?? 0), 0) / steps;
  const stages = Object.entries({ experts: Object.keys(EXPERTS), ...STAGES }).map(
    ([stage, labels]) => `${stage} ${round(ms(labels))}`,
  );
  console.error(`\n${kind}, ${numExperts} experts, ms a step: ${stages.join(", ")}`);
  for (const [label, entry] of [...total].sort((a, b) => b[1].ms - a[1].ms).slice(0, 16))
    console.error(
      `  ${label.padEnd(28)} ${(entry.ms / steps).toFixed(2).padStart(8)} ms ${(entry.calls / steps).toFixed(1)} calls`,
    );
}

export const moeExperts: Benchmark = {
  question: `how does the cost of a training step grow from 16 to 4,096 experts at the same work a row (width ${D}, hidden ${F}, k ${K}, ${ROWS} rows)?`,
  options: { experts: "16,64,256,1024,4096", optimizers: "factored,adam", rounds: 7 },
  async run({ experts, optimizers, rounds }): Promise<BenchResult> {
    const counts = wholeNumbers("experts", experts, K);
    const forms = String(optimizers)
      .split(",")
      .map((name) => {
        const form = FORMS.find((known) => known === name);
        if (!form) throw new UsageError(`expected --optimizers to be of ${FORMS.join(", ")}, got ${JSON.stringify(name)}.`);
        return form;
      });
    const notes: string[] = [];
    const made: Case[] = [];
    const cases: Record<string, () => unknown> = {};

    // What the machine moves, beside what it is asked to move.
    const probe = useCpu();
    const { limit } = probe.memory();
    const block = 32 * 2 ** 20;
    const [from, to] = [probe.alloc("float32", block), probe.alloc("float32", block)];
    probe.fill(from, 1, block);
    cases["copy"] = () => probe.copy(from, to, block);

    for (const numExperts of counts) {
      const fitting = formsThatFit(forms, numExperts, limit);
      for (const form of forms)
        if (!fitting.includes(form))
          notes.push(
            `${form} with ${numExperts} experts was left out: weights, gradients and its state exceed one backend's 4 GiB`,
          );
      for (const kind of KINDS) {
        const bytes = (fitting.includes("adam") ? 5 : 3) * numExperts * EXPERT_BYTES;
        if (fitting.length === 0 || bytes > freemem()) {
          notes.push(
            `${kind} with ${numExperts} experts was left out: it needs some ${round(bytes / 2 ** 30, 2)} GiB, and ${round(freemem() / 2 ** 30, 2)} are free`,
          );
          continue;
        }
        const layer = new Case(kind, numExperts, fitting);
        made.push(layer);
        for (const form of fitting) cases[caseName(kind, numExperts, form)] = () => layer.run(form);
      }
    }
    const times = await interleave(cases, { rounds: Number(rounds), warmup: WARMUP });
    const rate = (2 * 4 * block) / times["copy"]!.median;

    /** Of all steps those of the rounds that count. */
    const counted = (all: readonly number[]): number[] => all.slice(WARMUP * (all.length / (WARMUP + Number(rounds))));
    const passOf = (layer: Case): Timing => timingOf(counted(layer.pass));
    const stepOf = (kind: Kind, numExperts: number, form: Form): Timing | undefined => times[caseName(kind, numExperts, form)];
    const floorOf = (numExperts: number): number => (6 * numExperts * EXPERT_BYTES) / rate;
    const rows = made.map((layer) => {
      const { kind, numExperts, update } = layer;
      const pass = passOf(layer);
      const step = (form: Form): number | null => {
        const timing = stepOf(kind, numExperts, form);
        return timing ? round(1000 * timing.median) : null;
      };
      const updateMs = (form: Form): number | null =>
        update[form].length > 0 ? round(1000 * timingOf(counted(update[form])).median) : null;
      return {
        experts: numExperts,
        gate: kind,
        "forward+backward ms": round(1000 * pass.median),
        "factored Adam ms": updateMs("factored"),
        "Adam ms": updateMs("adam"),
        "step, factored ms": step("factored"),
        "step, Adam ms": step("adam"),
        "GF/s of forward+backward": round((2 * ROWS * K * 2 * D * F * 3) / pass.median / 1e9),
        "outside the experts": round(timingOf(counted(layer.around)).median),
        "weights' traffic alone ms": round(1000 * floorOf(numExperts)),
        "max/mean load": round(layer.maxOverMean),
        "parameters M": round(layer.parameters / 1e6),
        "peak GiB": round(layer.cpu.memory().peak / 2 ** 30),
      };
    });

    const targets: BenchResult["targets"] = [];
    const form = forms.includes("factored") ? "factored" : "adam";
    for (const kind of [...KINDS].reverse()) {
      const [few, many] = [stepOf(kind, 16, form), stepOf(kind, 1024, form)];
      if (few && many)
        targets.push({ name: `step with 1,024 experts over 16, ${kind}`, value: ratio(many, few), bound: 2, atMost: true });
      const [fewPass, manyPass] = [16, 1024]
        .map((E) => made.find((c) => c.kind === kind && c.numExperts === E))
        .map((c) => c && passOf(c));
      if (fewPass && manyPass)
        targets.push({
          name: `forward and backward with 1,024 experts over 16, ${kind}`,
          value: ratio(manyPass, fewPass),
          bound: 2,
          atMost: true,
        });
    }
    const [flat, deep] = KINDS.map((kind) => stepOf(kind, 4096, form));
    if (flat && deep)
      targets.push({ name: "step with 4,096 experts, hierarchical over flat", value: ratio(deep, flat), bound: 1, atMost: true });
    const largest = rows.find(({ experts: E, gate }) => E === 4096 && gate === "hierarchical");
    if (largest)
      targets.push({
        name: "share of forward and backward outside the experts (gates, routing, moving rows), 4,096 hierarchical",
        value: largest["outside the experts"],
        bound: 0.25,
        atMost: true,
      });

    if (process.env["BENCH_PROFILE"]) for (const layer of made) printProfile(layer);
    notes.push(
      `weights' traffic alone: reading every weight three times (forward, backward, update), writing it once, and writing and reading its gradient, at the ${round(rate / 1e9)} GB/s of a plain copy`,
      steadiness(times),
      ...(made[0]?.cpu.notes ?? []),
    );
    for (const layer of made) layer.cpu.dispose();
    probe.dispose();

    const color = (kind: Kind): number => KINDS.indexOf(kind);
    const ofKind = (kind: Kind, what: (row: (typeof rows)[number]) => number | null): Line["points"] =>
      rows.filter(({ gate }) => gate === kind).flatMap((row) => (what(row) === null ? [] : [{ x: row.experts, y: what(row)! }]));
    return {
      rows,
      targets,
      notes,
      figures: [
        {
          title: "Milliseconds of a training step",
          caption:
            "The experts' arithmetic is the same everywhere: 4 experts a row. Grey: the time that the weights and their gradients take to be moved once, whatever is computed; no step comes below it once they outgrow the caches.",
          x: "experts",
          y: "ms a step",
          logY: true,
          lines: [
            ...KINDS.flatMap((kind) => [
              { name: `${kind}, factored Adam`, color: color(kind), points: ofKind(kind, (row) => row["step, factored ms"]) },
              { name: `${kind}, Adam`, color: color(kind), dashed: true, points: ofKind(kind, (row) => row["step, Adam ms"]) },
            ]),
            {
              name: "weights' traffic alone",
              color: 2,
              points: [...new Set(rows.map((row) => row.experts))]
                .filter((x) => x * EXPERT_BYTES > CACHES)
                .map((x) => ({ x, y: 1000 * floorOf(x) })),
            },
          ],
        },
        {
          title: "Share of forward and backward outside the experts",
          caption:
            "Gates, routing, moving rows, losses and the tape: everything that is not the experts' grouped products and activations.",
          x: "experts",
          y: "share",
          lines: KINDS.map((kind) => ({
            name: kind,
            color: color(kind),
            points: ofKind(kind, (row) => row["outside the experts"]),
          })),
        },
      ],
    };
  },
};
