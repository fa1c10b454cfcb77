/** Switch routing: one expert a row, scaled by its probability over ALL experts (Fedus, Zoph & Shazeer 2021, section 2). */

import { checkNumber } from "../../core/checks.js";
import { streamId } from "../../core/random.js";
import { affine, mul } from "../../tensor/ops/elementwise.js";
import { softmax, topK } from "../../tensor/ops/reduce.js";
import { reshape } from "../../tensor/ops/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { switchLoss } from "../losses.js";
import type { RankRows } from "../ranks.js";
import { RouterGate, type Choice, type GateContext, type GateOptions, type GroupedRows } from "./gate.js";
import { numberThrough } from "./groups.js";

/** Options of `SwitchGate`. */
export interface SwitchOptions extends GateOptions {
  /** α of the loss α·n·Σ f·P. Default 0.01 (eq. 4). */
  auxLossWeight?: number;
  /** ε: while training the router sees x times numbers uniform in [1−ε, 1+ε]; the experts see x. Default 0.01. */
  jitter?: number;
}

/**
 * p = softmax(x·W_g), expert i = argmax p, output p_i·E_i(x): the softmax comes BEFORE the choice, so that the gate has a gradient with a single expert.
 * W_g starts with a tenth of the usual variance (section 2.4: initial weights reduced tenfold). Everything is float32 here, the router too.
 */
export class SwitchGate extends RouterGate {
  readonly topK = 1;
  readonly auxLossWeight: number;
  readonly jitter: number;
  readonly #stream: number;

  constructor(options: SwitchOptions) {
    // Truncated normal of variance s/fanIn with s = 0.1 in the paper; a normal here.
    super("SwitchGate", options, { name: "gate", init: { kind: "normal", std: Math.sqrt(0.1 / options.hiddenSize) }, importanceWeight: 0, loadWeight: 0 });
    this.auxLossWeight = checkNumber("SwitchGate", "auxLossWeight", options.auxLossWeight ?? 0.01, { min: 0 });
    this.jitter = checkNumber("SwitchGate", "jitter", options.jitter ?? 0.01, { min: 0, max: 1 });
    this.#stream = streamId("jitter", options.name ?? "gate");
  }

  protected override routerInput(x: Tensor, context: GateContext, groups: GroupedRows | undefined): Tensor {
    if (!context.training || this.jitter === 0) return x;
    const rows = groups?.places ? { ...groups, rowIds: groups.places.rowIds() } : groups;
    return mul(x, rowsOfUniform(x, 1 - this.jitter, 1 + this.jitter, { seed: context.seed, stream: this.#stream, step: context.step }, context.firstRow, rows, context.ranks));
  }

  protected choose(logits: Tensor, _x: Tensor, _context: GateContext, groups: GroupedRows | undefined): Choice {
    const probabilities = softmax(logits);
    const { values, indices } = topK(probabilities, 1);
    const first = numberThrough(reshape(indices, [-1]), this.numExperts, groups);
    return { experts: indices, gates: values, loss: affine(switchLoss(probabilities, first, groups), this.auxLossWeight), probabilities };
  }
}

/** Numbers uniform in [low, high) of the shape of x (N, width): row r draws its own, whatever rows stand beside it. @param ranks where x has this rank's rows alone */
export function rowsOfUniform(x: Tensor, low: number, high: number, key: { seed: number; stream: number; step: number }, firstRow: number, groups: GroupedRows | undefined, ranks?: RankRows): Tensor {
  const [rows, width] = x.shape as [number, number];
  const { backend } = x;
  const y = empty(x.shape, "float32", backend);
  const ids = idsOf(groups, ranks);
  if (!ids) {
    backend.randomUniform(y.buffer, y.size, key, firstRow * width, low, high);
    return y;
  }
  backend.randomUniformRows(y.buffer, ids.rowIds.buffer, rows, width, key, firstRow * ids.perRow, low, high);
  return y;
}

/** What each row's numbers are found by, where the rows are not all those there are, in order. */
function idsOf(groups: GroupedRows | undefined, ranks: RankRows | undefined): { rowIds: Tensor; perRow: number } | undefined {
  if (groups) return { rowIds: groups.rowIds, perRow: groups.count };
  return ranks && { rowIds: ranks.own, perRow: 1 };
}
