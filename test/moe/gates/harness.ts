/** Layers with any gate against the dense loop (dense-layer.ts): made from one description, filled with the same numbers on every backend, and compared. */

import fc from "fast-check";
import { afterAll, beforeAll, expect } from "vitest";
import type { Backend } from "#sparsegate/backend/backend.js";
import type { GateConfig } from "#sparsegate/moe/gates/index.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE, type MoEOutput } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../../backend/helpers.js";
import { denseGradient } from "../../tensor/finite-differences.js";
import { BACKENDS } from "../../use-backend.js";
import { leaves, matrix, vector } from "../dense.js";
import { add, differentiate, times, type Scalar, type Vector } from "../scalar.js";
import type { GateParameters, Spec } from "./dense-gates.js";
import { denseLayer, type DenseExpert, type DenseModel, type DenseResult } from "./dense-layer.js";

export interface Case {
  rows: number;
  D: number;
  /** Experts, or [groups, experts of each]. */
  E: number | readonly [groups: number, perGroup: number];
  /** Hidden widths of an expert. */
  F: readonly number[];
  gate: Spec;
  /** Of a hierarchical layer. */
  secondary?: Spec;
  importanceWeight: number;
  loadWeight: number;
  activation: "relu" | "gelu" | "swiglu";
  bias: boolean;
  dropout: number;
  recompute: boolean;
  shared: number;
  training: boolean;
  /** Spread of W_g and of W_noise; 0 is where all logits are equal. */
  gateScale: number;
  noiseScale: number;
  /** Added to every element of x. */
  offset: number;
  seed: number;
  firstRow: number;
}

const STEP = 2;

export const contextOf = ({ training, seed, firstRow }: Case) => ({ training, seed, step: STEP, firstRow });

/** float32 numbers, so that every backend starts from the same ones. */
export function build(c: Case): { moe: MoE; x: Tensor } {
  const { rows, D, E, F, gate, secondary, activation, bias, dropout, recompute, shared, importanceWeight, loadWeight } = c;
  const common = {
    hiddenSize: D,
    expertHiddenSize: F,
    activation,
    bias,
    expertDropout: dropout,
    recompute,
    sharedExperts: shared,
  };
  const weights = { importanceWeight, loadWeight };
  // A layer says topK; what is left are the gate's options.
  const config = ({ topK: _, ...options }: Spec): GateConfig => options as GateConfig;
  const moe =
    typeof E === "number"
      ? new MoE({ ...common, ...weights, numExperts: E, gate: config(gate), topK: gate.topK })
      : new HierarchicalMoE({
          ...common,
          ...weights,
          numExperts: E,
          gate: config(gate),
          secondaryGate: config(secondary!),
          topK: [gate.topK, secondary!.topK],
        });
  const draw = new Draw(c.seed);
  for (const [path, p] of moe.namedState()) {
    const end = path.split(".").at(-1);
    const [low, high] =
      end === "logThreshold"
        ? [-Math.log(p.shape.at(-1)!) - 0.5, -Math.log(p.shape.at(-1)!) + 0.5]
        : end === "noiseWeight"
          ? [-c.noiseScale, c.noiseScale]
          : path.startsWith("gate") && end === "weight"
            ? [-c.gateScale, c.gateScale]
            : path.startsWith("gate")
              ? [-0.3, 0.3]
              : [-1, 1];
    p.backend.write(p.buffer, draw.floats(p.size, low, high));
  }
  const x = sg.keep(
    sg.tensor(
      draw.floats(rows * D, -1, 1).map((v) => Math.fround(v + c.offset)),
      [rows, D],
    ),
  );
  x.requiresGrad = true;
  return { moe, x };
}

/** Matrices of a tensor (..., rows, cols), one after another. */
const matrices = (flat: Vector, shape: readonly number[]): ReturnType<typeof matrix>[] => {
  const [rows, cols] = shape.slice(-2) as [number, number];
  return Array.from({ length: flat.length / (rows * cols) }, (_, i) => matrix(flat, i * rows * cols, rows, cols));
};
const vectors = (flat: Vector, width: number): Vector[] =>
  Array.from({ length: flat.length / width }, (_, i) => vector(flat, i * width, width));

/** The model that the loop takes, made of scalars by the paths of a layer's state. */
function modelOf(c: Case, shapes: ReadonlyMap<string, readonly number[]>, flat: ReadonlyMap<string, Vector>): DenseModel {
  const many = (path: string) => (flat.has(path) ? matrices(flat.get(path)!, shapes.get(path)!) : undefined);
  const wide = (path: string) => (flat.has(path) ? vectors(flat.get(path)!, shapes.get(path)!.at(-1)!) : undefined);
  const gatesAt = (path: string): GateParameters[] => {
    const [noise, threshold, bias] = [many(`${path}.noiseWeight`), wide(`${path}.logThreshold`), wide(`${path}.bias`)];
    return many(`${path}.weight`)!.map((weight, g) => ({
      weight,
      noiseWeight: noise?.[g],
      logThreshold: threshold?.[g],
      bias: bias?.[g]!.map((s) => s.value),
    }));
  };
  const expertsAt = (path: string): DenseExpert[] => {
    const [input, output] = [many(`${path}.inputWeight`)!, many(`${path}.outputWeight`)!];
    return input.map((weight, e) => ({
      layers: [
        { weight, bias: wide(`${path}.inputBias`)?.[e], gateWeight: many(`${path}.gateWeight`)?.[e] },
        ...c.F.slice(1).map((_, i) => ({
          weight: many(`${path}.hiddenWeights.${i}`)![e]!,
          bias: wide(`${path}.hiddenBiases.${i}`)?.[e],
          gateWeight: many(`${path}.hiddenGateWeights.${i}`)?.[e],
        })),
      ],
      outputWeight: output[e]!,
      outputBias: wide(`${path}.outputBias`)?.[e],
    }));
  };
  const { activation, dropout, importanceWeight, loadWeight } = c;
  const rest = { activation, dropout, importanceWeight, loadWeight, experts: expertsAt("experts"), expertsName: "moe.experts" };
  const shared = c.shared > 0 ? { shared: { expert: expertsAt("shared")[0]!, name: "moe.shared" } } : {};
  if (typeof c.E === "number")
    return { ...rest, ...shared, gate: { spec: c.gate, parameters: gatesAt("gate")[0]!, name: "moe.gate" } };
  return {
    ...rest,
    ...shared,
    gate: { spec: c.gate, parameters: gatesAt("gate.primary")[0]!, name: "moe.gate.primary" },
    secondary: { spec: c.secondary!, parameters: gatesAt("gate.secondary"), name: "moe.gate.secondary" },
  };
}

/** Fixed irregular weights of the output in the objective Σ w·y + auxLoss. */
const weightOf = (i: number): number => Math.fround(Math.sin(1.3 * i + 0.5));

export interface Wanted {
  result: DenseResult;
  objective: Scalar;
  /** Leaves by path, `x` among them. */
  flat: Map<string, Vector>;
}

/** The loop on the numbers of a layer and its input. */
export function oracle(c: Case, moe: MoE, x: Tensor): Wanted {
  const state = moe.namedState();
  const flat = new Map([...state].map(([path, t]) => [path, leaves(t)]));
  const shapes = new Map([...state].map(([path, t]) => [path, t.shape]));
  const inputs = leaves(x);
  const result = denseLayer(modelOf(c, shapes, flat), matrix(inputs, 0, c.rows, c.D), contextOf(c));
  const objective = add(...result.y.flat().map((v, i) => times(v, weightOf(i))), result.auxLoss);
  return { result, objective, flat: flat.set("x", inputs) };
}

/** Experts and weights of each row that were not dropped, in the order in which they stand. */
export function usedBy({ experts, gates, rowOffsets }: MoEOutput, rows: number): { expert: number; gate: number }[][] {
  const [list, weights] = [experts.dataSync(), gates.dataSync()];
  const starts = rowOffsets?.dataSync();
  const k = starts ? 0 : experts.shape[1]!;
  return Array.from({ length: rows }, (_, n) => {
    const found = [];
    for (let a = starts ? starts[n]! : n * k; a < (starts ? starts[n + 1]! : (n + 1) * k); a++)
      if (list[a]! >= 0) found.push({ expert: list[a]!, gate: weights[a]! });
    return found;
  });
}

/** Rows that each expert computes. */
export function routedCounts({ routing }: MoEOutput): number[] {
  const offsets = routing.offsets.dataSync();
  return Array.from({ length: offsets.length - 1 }, (_, e) => offsets[e + 1]! - offsets[e]!);
}

/**
 * float64 differs from float64 by the order of sums; float32 keeps 6e-8 of each term of a sum, for each hidden layer of an expert anew. Relative to the largest
 * element, or to this where that is less.
 */
const FLOOR = 0.01;
const TOLERANCE = (backend: string): number => (backend === "reference" ? 1e-9 : 1e-5);

/** Elements off by more than the tolerance times the largest element, or times FLOOR where that is less. */
function compare(name: string, got: ArrayLike<number>, want: readonly number[], tolerance: number): string[] {
  if (got.length !== want.length) return [`${name}: expected ${want.length} elements, got ${got.length}`];
  const scale = want.reduce((most, v) => Math.max(most, Math.abs(v)), FLOOR);
  const lines: string[] = [];
  for (const [i, w] of want.entries())
    if (!(Math.abs(got[i]! - w) <= tolerance * scale)) lines.push(`${name}[${i}]: expected ${w}, got ${got[i]}`);
  return lines.slice(0, 3);
}

const values = (list: readonly Scalar[]): number[] => list.map((s) => s.value);

function against(c: Case, { result, flat }: Wanted, tolerance: number): string[] {
  const { moe, x } = build(c);
  const lines: string[] = [];
  const check = (name: string, got: ArrayLike<number>, want: readonly number[]): void => {
    lines.push(...compare(name, got, want, tolerance));
  };
  sg.scope(() => {
    const out = moe.forward(x, contextOf(c));
    const weights = sg.tensor(
      Float64Array.from({ length: x.size }, (_, i) => weightOf(i)),
      x.shape,
    );
    sg.backward(sg.add(sg.sum(sg.mul(out.output, weights)), out.auxLoss));
    check("output", out.output.dataSync(), values(result.y.flat()));
    check("importance", out.importance.dataSync(), values(result.importance));
    check("load", out.load.dataSync(), values(result.load));
    check("auxLoss", out.auxLoss.dataSync(), [result.auxLoss.value]);
    const used = usedBy(out, c.rows);
    const want = result.used.map((of) => of.map((a) => a.expert));
    const got = used.map((of) => of.map((a) => a.expert));
    if (JSON.stringify(got) !== JSON.stringify(want))
      lines.push(`experts: expected ${JSON.stringify(want)}, got ${JSON.stringify(got)}`);
    check(
      "gates",
      used.flat().map((a) => a.gate),
      values(result.used.flat().map((a) => a.gate)),
    );
    const flatWanted = want.flat();
    check(
      "rows per expert",
      routedCounts(out),
      result.importance.map((_, e) => flatWanted.filter((i) => i === e).length),
    );
    if (out.requested !== result.requested) lines.push(`requested: expected ${result.requested}, got ${out.requested}`);
  });
  for (const [path, p] of [["x", x] as const, ...moe.namedParameters()])
    check(
      `gradient of ${path}`,
      denseGradient(p),
      flat.get(path)!.map((s) => s.gradient),
    );
  for (const [path, t] of moe.namedState())
    if (path.endsWith(".bias") && !moe.namedParameters().has(path))
      check(`state ${path}`, t.dataSync(), result.newBias.get(`moe.${path.slice(0, -".bias".length)}`)!);
  x.zeroGrad();
  x.dispose();
  moe.dispose();
  return lines;
}

/** How near a tie or a bend a random case may stand: float32 must fall on the same side. */
const MARGIN = 5e-5;

/** Opens the three backends for a file. */
export function useBackends(): { differences: (c: Case, margin?: number) => string[] | undefined } {
  const open: { name: string; backend: Backend }[] = [];
  let before: Backend | undefined;
  beforeAll(() => {
    for (const { name, make } of BACKENDS) open.push({ name, backend: make() });
    before = sg.setDefaultBackend(open[0]!.backend);
  });
  afterAll(() => {
    sg.setDefaultBackend(before);
    for (const { backend } of open) backend.dispose();
  });
  return {
    /** In what the layer differs from the loop on any backend; undefined where the case stands too near a tie or a bend. */
    differences: (c, margin = 0) => {
      const { moe, x } = build(c);
      const wanted = oracle(c, moe, x);
      x.dispose();
      moe.dispose();
      if (wanted.result.margin < margin) return undefined;
      differentiate(wanted.objective);
      return open.flatMap(({ name, backend }) => {
        const previous = sg.setDefaultBackend(backend);
        try {
          return against(c, wanted, TOLERANCE(name) * c.F.length).map((line) => `${name}: ${line}`);
        } finally {
          sg.setDefaultBackend(previous);
        }
      });
    },
  };
}

/** Holds `runs` random cases to the loop; all of them must have been compared. */
export function holds(
  arbitrary: fc.Arbitrary<Case>,
  differences: (c: Case, margin?: number) => string[] | undefined,
  runs: number,
  seed: number,
): void {
  let compared = 0;
  fc.assert(
    fc.property(arbitrary, (c) => {
      const lines = differences(c, MARGIN);
      fc.pre(lines !== undefined);
      compared++;
      expect(lines).toEqual([]);
    }),
    { seed, numRuns: runs },
  );
  expect(compared).toBe(runs);
}

/** What cases have in common. */
export const COMMON = {
  F: [4],
  importanceWeight: 0.3,
  loadWeight: 0.3,
  activation: "relu",
  bias: true,
  dropout: 0,
  recompute: false,
  shared: 0,
  training: true,
  gateScale: 1,
  noiseScale: 0.5,
  offset: 0,
  seed: 3,
  firstRow: 0,
} as const satisfies Partial<Case>;

/** Random layers with the gate that `spec` draws for a number of experts. */
export function layers(spec: (numExperts: number) => fc.Arbitrary<Spec>, minExperts = 1): fc.Arbitrary<Case> {
  return fc
    .record({ E: fc.integer({ min: minExperts, max: 7 }), rest: shapes() })
    .chain(({ E, rest }) => spec(E).map((gate) => ({ ...rest, E, gate })));
}

/** Random hierarchical layers. */
export function hierarchies(
  primary: (groups: number) => fc.Arbitrary<Spec>,
  secondary: (perGroup: number) => fc.Arbitrary<Spec>,
  minimum: readonly [groups: number, perGroup: number] = [1, 1],
): fc.Arbitrary<Case> {
  const [a, b] = minimum;
  return fc
    .record({ groups: fc.integer({ min: a, max: 4 }), perGroup: fc.integer({ min: b, max: 4 }), rest: shapes() })
    .chain(({ groups, perGroup, rest }) =>
      fc
        .tuple(primary(groups), secondary(perGroup))
        .map(([gate, second]) => ({ ...rest, E: [groups, perGroup] as const, gate, secondary: second })),
    );
}

/** Everything of a case but its gates. Widths on and off the SIMD width of 4. */
function shapes(): fc.Arbitrary<Omit<Case, "E" | "gate">> {
  return fc
    .record({
      rows: fc.integer({ min: 1, max: 9 }),
      D: fc.constantFrom(1, 2, 3, 4, 5, 7, 8, 9),
      F: fc.constantFrom(1, 2, 3, 4, 5, 7),
      importanceWeight: fc.constantFrom(0, 0.3, 1),
      loadWeight: fc.constantFrom(0, 0.3, 1),
      bias: fc.boolean(),
      training: fc.boolean(),
      gateScale: fc.constantFrom(0.3, 1, 2),
      noiseScale: fc.constantFrom(0, 0.3, 1),
      seed: fc.integer({ min: 0, max: 1e6 }),
      firstRow: fc.constantFrom(0, 1, 3, 1000),
    })
    .map((shape) => ({ ...COMMON, ...shape, F: [shape.F] }));
}
