/** What a layer's experts are: all of them at once, rows grouped by expert in and out; and any module of matching widths as an expert. */

import { show, TensorError } from "../core/errors.js";
import { Module, type RunContext } from "../nn/module.js";
import { concat, slice } from "../tensor/ops/shape.js";
import { sameShape, Tensor, zeros } from "../tensor/tensor.js";

/** All experts of a layer: rows grouped by expert in, rows grouped by expert out. Where some are on other ranks, only those here get rows. */
export interface Experts extends Module {
  /** E, on all ranks. */
  readonly numExperts: number;
  /**
   * @param x_MD rows grouped by expert; @param offsets_E1 int32, expert e of those here has rows offsets[e]..offsets[e+1]
   * @param rowIds gives int32 (M), where each row stands among the layer's, from context.firstRow on (-1 in an unused tail): what randomness depends on, since it
   * does not depend on what stands beside the row. On ranks all are to call it, or none
   * @returns (M, D)
   */
  forward(x_MD: Tensor, offsets_E1: Tensor, context: RunContext, rowIds: () => Tensor): Tensor;
}

/** A single module D → D, called with the rows of one expert, never with none. */
export interface ExpertModule extends Module {
  /** The outputs of one expert for its rows, (rows, D) to (rows, D). @param context of the layer's call, for modules that differ in training: its rowIds are those of these rows, while training */
  forward(x: Tensor, context: RunContext): Tensor;
}

/** Experts that are modules of their own, run one after another on their rows. Those without rows are not called and get no gradient. */
export class ModuleExperts extends Module implements Experts {
  readonly numExperts: number;
  /** By number of the expert; undefined where it is on another rank. */
  readonly modules: readonly (ExpertModule | undefined)[];
  readonly #first: number;

  /** @param first number of the first expert here, and those after it follow: the others are undefined */
  constructor(modules: readonly (ExpertModule | undefined)[], first = 0) {
    super();
    this.modules = modules;
    this.numExperts = modules.length;
    this.#first = first;
  }

  forward(x_MD: Tensor, offsets_E1: Tensor, { rowIds: _, ...context }: RunContext, rowIds: () => Tensor): Tensor {
    const offsets = offsets_E1.dataSync();
    const ids = context.training ? rowIds() : undefined;
    const [m, width] = x_MD.shape as [number, number];
    const parts: Tensor[] = [];
    const here = offsets.length - 1;
    for (let e = 0; e < here; e++) {
      if (offsets[e] === offsets[e + 1]) continue;
      const module = this.modules[this.#first + e]!;
      const rows = slice(x_MD, 0, offsets[e]!, offsets[e + 1]!);
      const y: unknown = module.forward(rows, ids ? { ...context, rowIds: slice(ids, 0, offsets[e]!, offsets[e + 1]!) } : context);
      if (!(y instanceof Tensor) || !sameShape(y.shape, rows.shape)) {
        const got = y instanceof Tensor ? `[${y.shape.join(", ")}]` : show(y);
        throw new TensorError(`MoE expert ${this.#first + e}: expected an output of shape [${rows.shape.join(", ")}], got ${got}. Experts map width D to width D.`);
      }
      parts.push(y);
    }
    const used = offsets[here]!;
    // Places of dropped assignments; and a batch without rows has no parts at all.
    if (used < m || parts.length === 0) parts.push(zeros([m - used, width], "float32", x_MD.backend));
    return concat(parts, 0);
  }
}
