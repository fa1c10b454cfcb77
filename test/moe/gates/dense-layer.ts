/**
 * The whole layer as a dense loop in float64 with gradients of everything: flat or hierarchical gating (Shazeer et al. 2017, App. B), capacity, experts with
 * their variants, shared experts and losses. Every expert is evaluated for every row; those that a row does not use have weight zero.
 */

import { streamId, uniformAt } from "#sparsegate/core/random.js";
import { add, cvSquared, mul, relu, scalar, times, type Matrix, type Scalar, type Vector } from "../scalar.js";
import { decide, type Decision, type GateParameters, type Row, type Spec } from "./dense-gates.js";
import { dotOf, gelu, rowTimes, silu, sum } from "./dense-scalars.js";

/** One feed-forward expert: a layer after another, then the output. */
export interface DenseExpert {
  layers: { weight: Matrix; bias: Vector | undefined; gateWeight: Matrix | undefined }[];
  outputWeight: Matrix;
  outputBias: Vector | undefined;
}

export interface DenseModel {
  /** The flat gate, or the primary one. */
  gate: { spec: Spec; parameters: GateParameters; name: string };
  /** Parameters of each group. */
  secondary?: { spec: Spec; parameters: GateParameters[]; name: string };
  importanceWeight: number;
  loadWeight: number;
  activation: "relu" | "gelu" | "swiglu";
  dropout: number;
  experts: DenseExpert[];
  expertsName: string;
  shared?: { expert: DenseExpert; name: string };
}

export interface Context {
  training: boolean;
  seed: number;
  step: number;
  firstRow: number;
}

export interface DenseResult {
  y: Matrix;
  auxLoss: Scalar;
  importance: Vector;
  load: Vector;
  /** Experts and weights of each row, after capacity, in the order in which the gate gives them. */
  used: { expert: number; gate: Scalar }[][];
  /** Assignments before capacity, where every row has the same number. */
  requested: number | undefined;
  /** Distance to the nearest place where the layer is not smooth. */
  margin: number;
  /** Of sigmoid gates by their name, after the batch. */
  newBias: Map<string, number[]>;
}

/** One row's use of one expert. */
interface Assignment {
  row: number;
  /** 0 for the first choice. */
  rank: number;
  expert: number;
  gate: Scalar;
}

/**
 * At most max(1, ⌈factor · assignments / experts⌉) rows an expert: those that came first, all first choices before all second ones; or those of the highest
 * weight.
 */
function limit(
  all: Assignment[],
  slots: number,
  numExperts: number,
  spec: Spec,
  training: boolean,
): { kept: Assignment[]; gap: number } {
  const factor = training ? spec.capacityFactor : (spec.evalCapacityFactor ?? spec.capacityFactor);
  if (factor === undefined) return { kept: all, gap: Infinity };
  // Factors have one decimal: whole numbers keep the quotient from being rounded up past a whole one.
  const capacity = Math.max(1, Math.ceil((Math.round(10 * factor) * slots) / (10 * numExperts)));
  let gap = Infinity;
  const kept = new Set<Assignment>();
  for (let e = 0; e < numExperts; e++) {
    const mine = all.filter((a) => a.expert === e).sort((a, b) => a.rank - b.rank || a.row - b.row);
    if (spec.dropPolicy === "probability") {
      mine.sort((a, b) => b.gate.value - a.gate.value);
      const d = mine.length > capacity ? mine[capacity - 1]!.gate.value - mine[capacity]!.gate.value : Infinity;
      if (d > 0) gap = Math.min(gap, d);
    }
    for (const a of mine.slice(0, capacity)) kept.add(a);
  }
  return { kept: all.filter((a) => kept.has(a)), gap };
}

const LISTS: ReadonlySet<string> = new Set(["strictly-balanced", "expert-choice"]);
/** Experts that each row asks for, where that is the same for all. */
const perRow = (spec: Spec, training: boolean): number | undefined =>
  LISTS.has(spec.type) || (spec.type === "gshard" && (training ? spec.secondPolicy : spec.evalSecondPolicy) !== "all")
    ? undefined
    : spec.topK;

const assignmentsOf = ({ chosen, weights }: Decision): Assignment[] =>
  chosen.flatMap((of, row) =>
    of.flatMap((expert, rank) => (expert < 0 ? [] : [{ row, rank, expert, gate: weights[row]![expert]! }])),
  );

interface Gated {
  /** Before capacity, but for that of a primary gate. */
  wanted: Assignment[];
  kept: Assignment[];
  load: Vector | undefined;
  loss: Scalar;
  requested: number | undefined;
  margin: number;
  newBias: Map<string, number[]>;
}

function flat({ gate: { spec, parameters, name } }: DenseModel, x: Matrix, context: Context): Gated {
  const rows = x.map((row, n): Row => ({ x: row, id: context.firstRow + n }));
  const decision = decide(spec, parameters, rows, { ...context, name });
  const wanted = assignmentsOf(decision);
  const slots = x.length * spec.topK;
  const { kept, gap } = limit(wanted, slots, parameters.weight[0]!.length, spec, context.training);
  const each = perRow(spec, context.training);
  return {
    wanted,
    kept,
    load: decision.load,
    loss: add(decision.groupLoss, times(decision.rowLoss, 1 / Math.max(x.length, 1))),
    requested: each === undefined ? undefined : each * x.length,
    margin: Math.min(decision.margin, gap),
    newBias: new Map(decision.newBias ? [[name, decision.newBias]] : []),
  };
}

function hierarchical({ gate, secondary }: DenseModel, x: Matrix, context: Context): Gated {
  const { spec, parameters, name } = secondary!;
  const groups = parameters.length;
  const perGroup = parameters[0]!.weight[0]!.length;
  const primary = flat({ gate } as DenseModel, x, context);
  // Places that the primary gate gives, dropped ones too: what losses of the secondary gates are the mean over, and what their capacity is a share of.
  const places = LISTS.has(gate.spec.type) ? primary.kept.length : x.length * gate.spec.topK;
  let margin = primary.margin;
  const losses = [primary.loss];
  const load: Vector = [];
  let smooth = primary.load !== undefined;
  const wanted: Assignment[] = [];
  const newBias: number[] = [];
  for (const [g, own] of parameters.entries()) {
    const members = primary.kept.filter((a) => a.expert === g);
    const rows = members.map((a): Row => ({ x: x[a.row]!, id: (context.firstRow + a.row) * groups + g }));
    const decision = decide(spec, own, rows, { ...context, name });
    margin = Math.min(margin, decision.margin);
    losses.push(times(decision.groupLoss, 1 / groups), times(decision.rowLoss, 1 / Math.max(places, 1)));
    newBias.push(...(decision.newBias ?? []));
    for (const a of assignmentsOf(decision)) {
      const member = members[a.row]!;
      wanted.push({ row: member.row, rank: a.rank, expert: g * perGroup + a.expert, gate: mul(member.gate, a.gate) });
    }
    if (!decision.load) smooth = false;
    else
      load.push(
        ...decision.load.map((l) =>
          primary.load && members.length > 0 ? times(mul(primary.load[g]!, l), 1 / members.length) : scalar(0),
        ),
      );
  }
  const { kept, gap } = limit(
    wanted,
    places * spec.topK,
    groups * perGroup,
    LISTS.has(spec.type) ? { type: spec.type, topK: spec.topK } : spec,
    context.training,
  );
  const [first, second] = [perRow(gate.spec, context.training), perRow(spec, context.training)];
  return {
    wanted,
    kept,
    load: smooth ? load : undefined,
    loss: sum(losses),
    requested: first === undefined || second === undefined ? undefined : first * second * x.length,
    margin: Math.min(margin, gap),
    newBias: newBias.length > 0 ? primary.newBias.set(name, newBias) : primary.newBias,
  };
}

/** Which elements stay, and what they are multiplied by. */
type Mask = (layer: number, width: number, j: number) => number;

function evaluate(expert: DenseExpert, x: Vector, activation: DenseModel["activation"], mask: Mask): { y: Vector; bend: number } {
  let [h, bend] = [x, Infinity];
  for (const [i, { weight, bias, gateWeight }] of expert.layers.entries()) {
    const z = rowTimes(h, weight).map((v, j) => (bias ? add(v, bias[j]!) : v));
    const gate = gateWeight ? rowTimes(h, gateWeight) : undefined;
    if (activation === "relu") bend = Math.min(bend, ...z.map((v) => Math.abs(v.value)));
    h = z.map((v, j) => {
      const a = activation === "relu" ? relu(v) : activation === "gelu" ? gelu(v) : mul(silu(v), gate![j]!);
      return times(a, mask(i, z.length, j));
    });
  }
  return { y: rowTimes(h, expert.outputWeight).map((v, d) => (expert.outputBias ? add(v, expert.outputBias[d]!) : v)), bend };
}

export function denseLayer(model: DenseModel, x: Matrix, context: Context): DenseResult {
  const { experts, activation, dropout } = model;
  const E = experts.length;
  const gated = model.secondary ? hierarchical(model, x, context) : flat(model, x, context);
  let { margin } = gated;
  /** Numbered by global row and expert. */
  const maskOf =
    (name: string, id: number): Mask =>
    (layer, width, j) => {
      if (!context.training || dropout === 0) return 1;
      const u = uniformAt(
        { seed: context.seed, step: context.step, stream: streamId("expert dropout", name) + layer },
        id * width + j,
      );
      return u >= dropout ? 1 / (1 - dropout) : 0;
    };
  const y = x.map((row, n) => {
    const id = context.firstRow + n;
    const G = Array.from({ length: E }, () => scalar(0));
    for (const a of gated.kept) if (a.row === n) G[a.expert] = a.gate;
    const outputs = experts.map((expert, e) => {
      const { y: out, bend } = evaluate(expert, row, activation, maskOf(model.expertsName, id * E + e));
      if (gated.kept.some((a) => a.row === n && a.expert === e)) margin = Math.min(margin, bend);
      return out;
    });
    const { shared } = model;
    const always = shared && evaluate(shared.expert, row, activation, maskOf(shared.name, id));
    if (always) margin = Math.min(margin, always.bend);
    return row.map((_, d) => {
      const routed = dotOf(
        G,
        outputs.map((out) => out[d]!),
      );
      return always ? add(routed, always.y[d]!) : routed;
    });
  });
  const ofExpert = (e: number): Assignment[] => gated.wanted.filter((a) => a.expert === e);
  const importance = experts.map((_, e) => sum(ofExpert(e).map((a) => a.gate)));
  const load = gated.load ?? experts.map((_, e) => scalar(ofExpert(e).length));
  const losses = [gated.loss, times(cvSquared(importance), model.importanceWeight)];
  if (gated.load) losses.push(times(cvSquared(load), model.loadWeight));
  return {
    y,
    auxLoss: sum(losses),
    importance,
    load,
    used: x.map((_, n) => gated.kept.filter((a) => a.row === n).map(({ expert, gate }) => ({ expert, gate }))),
    requested: gated.requested,
    margin,
    newBias: gated.newBias,
  };
}
