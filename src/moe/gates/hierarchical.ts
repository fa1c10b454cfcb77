/** Hierarchical gating (Shazeer et al. 2017, App. B): a primary gate deals rows to groups, each group's secondary gate to its experts. */

import { ConfigError, expectation } from "../../core/errors.js";
import { checkNumber } from "../../core/checks.js";
import { Module } from "../../nn/module.js";
import { div, maximum, mul } from "../../tensor/ops/elementwise.js";
import { addIndices, gatherIndices } from "../../tensor/ops/gating.js";
import { bincount, dispatch, routeByExpert } from "../../tensor/ops/rows.js";
import { reshape } from "../../tensor/ops/shape.js";
import { full, zeros, type Tensor } from "../../tensor/tensor.js";
import { limitToCapacity } from "../capacity.js";
import { GroupPlaces } from "../group-places.js";
import { addLosses } from "../losses.js";
import { measure, perRow, type Choice, type Gate, type GateContext, type GateOutput, type GroupedRows, type RouterGate } from "./gate.js";
import { pick } from "./list.js";

/** The gates of a `HierarchicalGate`, and its losses. */
export interface HierarchicalGateOptions {
  /** The gate over the groups: its numExperts is their number. */
  primary: RouterGate;
  /** The gates over each group's experts (numGroups: the number of groups; numExperts: those of one group). */
  secondary: RouterGate;
  /** w_importance and w_load of CV(Importance_H)² and CV(Load_H)². Default: the primary gate's. Those of the two gates themselves are not used. */
  importanceWeight?: number;
  loadWeight?: number;
}

/**
 * G(x)_ij = G_primary(x)_i · G_i(x)_j over all a·b experts, expert j of group i being number i·b + j. Secondary gates see only the rows that their group
 * received, as one grouped product.
 *
 * Importance_H_ij = Σ_x G_primary(x)_i·G_i(x)_j and Load_H_ij = Load_primary_i · Load_i(X^(i))_j / |X^(i)|, with X^(i) the rows of group i: this form keeps a
 * gradient into the primary gate. Where one of the gates has no smooth load, rows are counted and there is no load loss. Losses of the gates' own (Switch's,
 * GShard's, z-loss) are added up. Rows that the capacity of a group drops are seen by no secondary gate, and are in neither importance nor counted load.
 */
export class HierarchicalGate extends Module implements Gate {
  readonly numExperts: number;
  readonly importanceWeight: number;
  readonly loadWeight: number;
  readonly primary: RouterGate;
  readonly secondary: RouterGate;

  constructor({ primary, secondary, importanceWeight = primary.importanceWeight, loadWeight = primary.loadWeight }: HierarchicalGateOptions) {
    super();
    const where = "HierarchicalGate";
    if (primary.numGroups !== undefined) throw new ConfigError(expectation(where, "a primary gate without numGroups", primary.numGroups));
    if (secondary.numGroups !== primary.numExperts) {
      throw new ConfigError(expectation(where, `a secondary gate with numGroups ${primary.numExperts}, the experts of the primary one`, secondary.numGroups ?? "none"));
    }
    this.primary = primary;
    this.secondary = secondary;
    this.numExperts = primary.numExperts * secondary.numExperts;
    this.importanceWeight = checkNumber(where, "importanceWeight", importanceWeight, { min: 0 });
    this.loadWeight = checkNumber(where, "loadWeight", loadWeight, { min: 0 });
  }

  /** Experts of all groups, weights and losses for the rows of a layer. @param x (N, D) */
  forward(x: Tensor, context: GateContext): GateOutput {
    const { primary, secondary } = this;
    const [numGroups, perGroup] = [primary.numExperts, secondary.numExperts];
    const numRows = context.ranks?.total ?? x.shape[0]!;
    const wanted = primary.route(x, context);
    const first: Choice = { ...wanted, experts: limitToCapacity(wanted.experts, wanted.gates, numGroups, primary.capacity, context.training) };

    // The rows of all groups, group after group: each place is a pair of a row and a group.
    const routing = routeByExpert(first, numGroups);
    const groupOf = gatherIndices(reshape(first.experts, [-1]), routing.order);
    const places = context.ranks && new GroupPlaces(context.ranks, first, routing, numGroups);
    const groups: GroupedRows = { offsets: routing.offsets, count: numGroups, groupOf, rowIds: addIndices(groupOf, routing.rows, numGroups), ...(places ? { places } : {}) };
    const second = secondary.route(places ? places.toGroups(x) : dispatch(x, routing), context, groups);

    const placeGates = pick(reshape(first.gates, [-1]), routing.order);
    const assigned = assign(second, placeGates, routing.rows, groups, perGroup);
    const measured = measure({ ...assigned, ...hierarchicalLoad(first.load, second.load, groups, perGroup) }, this.numExperts);
    const { experts, gates, rows } = this.#limited(assigned, second, context);

    // In the order of rows, as a layer wants them.
    const byRow = routeByExpert({ experts: reshape(rows, [-1, 1]) }, numRows);
    const [ofRow, ofPlace] = [perRow(first), perRow(second)];
    const loss = second.loss ? addLosses(wanted.loss, second.loss) : wanted.loss;
    return {
      ...measured,
      experts: gatherIndices(experts, byRow.order),
      gates: pick(gates, byRow.order),
      rows: gatherIndices(rows, byRow.order),
      rowOffsets: byRow.offsets,
      ...(ofRow === undefined || ofPlace === undefined ? {} : { requested: numRows * ofRow * ofPlace }),
      ...(loss ? { loss } : {}),
    };
  }

  /** What fits into the experts, whose capacity is the same in all groups: all first choices of the secondary gates before all second ones, each in the order of rows. */
  #limited(assigned: Listed, { experts }: Choice, context: GateContext): Listed {
    if (experts.rank !== 2) return assigned;
    const limited = limitToCapacity(reshape(assigned.experts, experts.shape), reshape(assigned.gates, experts.shape), this.numExperts, this.secondary.capacity, context.training);
    return { ...assigned, experts: reshape(limited, [-1]) };
  }
}

/** Assignments as three vectors: experts of all groups, weights, rows of the layer's input. */
interface Listed {
  experts: Tensor;
  gates: Tensor;
  rows: Tensor;
}

/** From what secondary gates chose for places to experts of all groups, weighted by both gates. */
function assign({ experts, gates, rows: place }: Choice, placeGates: Tensor, rowOf: Tensor, groups: GroupedRows, perGroup: number): Listed {
  if (place) {
    return {
      experts: addIndices(experts, gatherIndices(groups.groupOf, place), perGroup),
      gates: mul(gates, pick(placeGates, place)),
      rows: gatherIndices(rowOf, place),
    };
  }
  const k = experts.shape[1]!;
  return {
    experts: reshape(addIndices(experts, groups.groupOf, perGroup, k), [-1]),
    gates: reshape(mul(gates, reshape(placeGates, [-1, 1])), [-1]),
    rows: addIndices(zeros([experts.size], "int32", experts.backend), rowOf, 1, k),
  };
}

/** Load_primary_i · Load_i(X^(i))_j / |X^(i)|; nothing where a gate has no smooth load. */
function hierarchicalLoad(primary: Tensor | undefined, secondary: Tensor | undefined, { groupOf, count }: GroupedRows, perGroup: number): { load?: Tensor } {
  if (!primary || !secondary) return {};
  const rows = bincount(full(groupOf.shape, 1, "float32", groupOf.backend), groupOf, count);
  const share = div(primary, maximum(rows, 1));
  return { load: reshape(mul(reshape(secondary, [count, perGroup]), reshape(share, [count, 1])), [-1]) };
}
