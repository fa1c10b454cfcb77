/** Layers whose numbers can be worked out by hand: experts that multiply by a constant, and gates whose probabilities are given. */

import type { ExpertModule } from "#sparsegate/moe/experts.js";
import type { GateConfig } from "#sparsegate/moe/gates/index.js";
import { MoE, type MoEOptions } from "#sparsegate/moe/layer.js";
import { Module } from "#sparsegate/nn/module.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";

export const list = (t: Tensor): number[] => Array.from(t.dataSync());
export const TRAINING = { training: true, seed: 1, step: 0, firstRow: 0 };
export const EVALUATION = { ...TRAINING, training: false };

/** Expert that multiplies by a constant, and remembers the rows that it saw. */
export class Times extends Module implements ExpertModule {
  readonly seen: number[][] = [];
  constructor(readonly factor: number) {
    super();
  }
  forward(x: Tensor): Tensor {
    const [rows, width] = x.shape as [number, number];
    const data = list(x);
    for (let r = 0; r < rows; r++) this.seen.push(data.slice(r * width, (r + 1) * width));
    return sg.affine(x, this.factor);
  }
}

/** A trainable leaf (rows, width). */
export function input(rows: readonly (readonly number[])[]): Tensor {
  const x = sg.keep(sg.tensor(rows.flat(), [rows.length, rows[0]?.length ?? 0]));
  x.requiresGrad = true;
  return x;
}

export function fill(p: Tensor, at: (i: number) => number): void {
  p.backend.write(
    p.buffer,
    Float64Array.from({ length: p.size }, (_, i) => at(i)),
  );
}

/**
 * A layer as wide as it has experts, whose gate has the unit matrix for W_g: rows x = ln p have the logits ln p, and softmax gives p again. Expert i multiplies
 * by factors[i].
 */
export function givenProbabilities(
  probabilities: readonly (readonly number[])[],
  factors: readonly number[],
  gate: GateConfig,
  options: Partial<MoEOptions> = {},
): { moe: MoE; x: Tensor; experts: Times[] } {
  const E = factors.length;
  const experts = factors.map((factor) => new Times(factor));
  const moe = new MoE({ hiddenSize: E, numExperts: E, gate, experts, ...options });
  fill(moe.namedParameters().get("gate.weight")!, (i) => (i % (E + 1) === 0 ? 1 : 0));
  return { moe, x: input(probabilities.map((row) => row.map(Math.log))), experts };
}

/** What each row was multiplied by: Σ gate·factor of its experts, as all of them are multiples of the row. */
export function multiples(output: Tensor, x: Tensor): number[] {
  const [rows, width] = x.shape as [number, number];
  const [y, data] = [list(output), list(x)];
  // −0 is 0.
  return Array.from({ length: rows }, (_, n) => y[n * width]! / data[n * width]! + 0);
}
