/**
 * The groups of a hierarchical mixture over ranks: the whole of a secondary mixture, gate and experts, is on one of them (Shazeer et al. 2017, section 3.1).
 * Rows go to the gate of each group that the primary gate dealt them to; what comes back are its logits, which all ranks get, to choose alike.
 */

import { addIndices, gatherIndices } from "../tensor/ops/gating.js";
import { dispatch, routeByExpert, type Routing } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import { noGrad } from "../tensor/tape.js";
import { tensor, type Tensor } from "../tensor/tensor.js";
import { placedOn, placeExperts, RowExchange } from "./exchange.js";
import { gatherOfRanks, type Assigned, type RankRows } from "./ranks.js";

/** Places are pairs of a row and a group that it was dealt to, group after group. Made by all ranks at once, which then call the same methods in the same order. */
export class GroupPlaces {
  /** The first of the groups that are here. */
  readonly first: number;
  /** How many groups are here. */
  readonly count: number;
  readonly #ranks: RankRows;
  readonly #numGroups: number;
  /** int32: the group of each assignment of this rank's rows, and where these go. */
  readonly #groups: Tensor;
  readonly #routing: Routing;
  readonly #exchange: RowExchange;
  /** Places of each rank's rows. */
  readonly #counts: number[];
  /** int32 (P): for each place of all, which it is of those of all ranks one after the other; and the other way for those of this rank's rows. -1 in an unused tail. */
  readonly #source: Tensor;
  readonly #own: Tensor;

  /** @param choice of the primary gate, for the rows of all ranks; @param routing of these to the groups */
  constructor(ranks: RankRows, choice: Assigned, routing: Routing, numGroups: number) {
    const { comm } = ranks;
    const bounds = placeExperts(numGroups, comm.size);
    ({ first: this.first, count: this.count } = placedOn(bounds, comm.rank));
    this.#ranks = ranks;
    this.#numGroups = numGroups;
    const own = noGrad(() => ranks.take(choice));
    this.#groups = reshape(own.experts, [-1]);
    this.#routing = routeByExpert(own, numGroups);
    this.#exchange = new RowExchange(comm, bounds, this.#routing);

    const [offsets, rows] = [routing.offsets.dataSync(), routing.rows.dataSync()];
    const used = offsets[numGroups]!;
    const groupOf = new Int32Array(used);
    for (let g = 0; g < numGroups; g++) groupOf.fill(g, offsets[g], offsets[g + 1]);
    const rankOf = groupOf.map((_, p) => ranks.rankOf(rows[p]!));
    // As `#routing` of each rank has them: by group, then in the order of the rank's rows.
    const byRank = Int32Array.from(groupOf.keys()).sort((a, b) => rankOf[a]! - rankOf[b]! || groupOf[a]! - groupOf[b]! || ranks.places[rows[a]!]! - ranks.places[rows[b]!]!);
    const counts = new Array<number>(comm.size).fill(0);
    for (const rank of rankOf) counts[rank]!++;
    const source = new Int32Array(rows.length).fill(-1);
    for (const [i, p] of byRank.entries()) source[p] = i;
    const before = counts.slice(0, comm.rank).reduce((sum, n) => sum + n, 0);
    const here = new Int32Array(this.#routing.rows.size).fill(-1);
    here.set(byRank.subarray(before, before + counts[comm.rank]!));
    this.#counts = counts;
    const int = (data: Int32Array): Tensor => tensor(data, [data.length], "int32", routing.rows.backend);
    [this.#source, this.#own] = [int(source), int(here)];
  }

  /** int32 (groups here + 1): where the rows of each group that is here begin. */
  get offsets(): Tensor {
    return this.#exchange.offsets;
  }

  /** This rank's rows (n, D) to the ranks of their groups. @returns the rows for the groups here, group after group */
  toGroups(x: Tensor): Tensor {
    return this.#exchange.toExperts(dispatch(x, this.#routing));
  }

  /** int32: of each of these rows the number row·G + group, as `GroupedRows.rowIds`. */
  rowIds(): Tensor {
    const { order, rows } = this.#routing;
    return this.#exchange.numbersToExperts(addIndices(gatherIndices(this.#groups, order), gatherIndices(this.#ranks.own, rows), this.#numGroups));
  }

  /** What the groups here made of their rows, by way of the ranks that the rows are from, to all: (P, width), in the order of places. Its gradient is that of each rank's own rows, as in `RankRows`. */
  gather(made: Tensor): Tensor {
    const own = this.#exchange.fromExperts(made, this.#routing.rows.size);
    return gatherOfRanks(this.#ranks.comm, own, this.#counts, this.#source, this.#own);
  }
}
