/** The probability P(x, i) behind the load loss: its sum over experts, and an estimate of it by drawing noise again and counting. */

import { describe, expect, it } from "vitest";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { BACKENDS, useBackend } from "../use-backend.js";
import { gateNoise } from "./dense.js";

const D = 8;
const CONTEXT = { training: true, seed: 11, step: 3, firstRow: 0 };

function layer(E: number, k: number, seed: number, gateScale: number, noiseScale: number): MoE {
  const draw = new Draw(seed);
  const moe = new MoE({ hiddenSize: D, numExperts: E, topK: k, expertHiddenSize: 1, name: "moe" });
  for (const [name, scale] of [
    ["gate.weight", gateScale],
    ["gate.noiseWeight", noiseScale],
  ] as const) {
    const p = moe.namedParameters().get(name)!;
    p.backend.write(p.buffer, draw.floats(p.size, -scale, scale));
  }
  return moe;
}

/** A standard normal number by the sum of twelve uniform ones would be too coarse in the tails: Box and Muller. */
const normal = (draw: Draw): number => Math.sqrt(-2 * Math.log(1 - draw.next())) * Math.cos(2 * Math.PI * draw.next());

describe("Σ_i P(x, i) is k on average", () => {
  useBackend(BACKENDS[1].make);
  // In expectation over the noise the sum is k exactly: P(x, i) is the probability that i is chosen, given the other experts' noise.
  for (const [E, k] of [
    [2, 1],
    [8, 1],
    [8, 2],
    [16, 4],
    [16, 15],
    [256, 4],
  ] as const) {
    for (const [gateScale, noiseScale] of [
      [0, 0],
      [0.5, 0.5],
      [2, 0.2],
    ] as const) {
      it(`to 1% over 20,000 rows: ${k} of ${E}, logits spread by ${gateScale}, noise by ${noiseScale}`, () => {
        const rows = 20_000;
        const moe = layer(E, k, 7, gateScale, noiseScale);
        const load = sg.scope(() => Array.from(moe.forward(sg.randomNormal([rows, D], { seed: 1 }), CONTEXT).load.dataSync()));
        const average = load.reduce((s, v) => s + v, 0) / rows;
        expect(Math.abs(average - k)).toBeLessThan(0.01 * k);
        moe.dispose();
      });
    }
  }
});

for (const { name, make } of BACKENDS) {
  describe(`P(x, i) on the ${name} backend`, () => {
    useBackend(make);
    it("is the share of new draws of expert i's own noise for which i is among the k largest, within 4 sigma", () => {
      const R = 20_000;
      const draw = new Draw(23);
      for (const [E, k, gateScale, noiseScale] of [
        [5, 2, 0.5, 0.5],
        [4, 1, 1, 0.3],
        [6, 5, 0.3, 1],
        [9, 4, 0, 0],
      ] as const) {
        const moe = layer(E, k, E, gateScale, noiseScale);
        const row = draw.floats(D, -1, 1);
        // The load of a batch of one row is P(x, ·).
        const load = sg.scope(() => moe.forward(sg.tensor(row, [1, D]), CONTEXT).load.dataSync());
        const product = (weights: ArrayLike<number>): number[] =>
          Array.from({ length: E }, (_, i) => row.reduce((s, v, d) => s + v * weights[d * E + i]!, 0));
        const clean = product(moe.namedParameters().get("gate.weight")!.dataSync());
        const std = product(moe.namedParameters().get("gate.noiseWeight")!.dataSync()).map((v) => Math.log1p(Math.exp(v)));
        const noisy = gateNoise("moe.gate", 1, E, CONTEXT)[0]!.map((z, i) => clean[i]! + z * std[i]!);
        for (let i = 0; i < E; i++) {
          let chosen = 0;
          for (let r = 0; r < R; r++) {
            const again = clean[i]! + normal(draw) * std[i]!;
            if (noisy.filter((v, j) => j !== i && v > again).length < k) chosen++;
          }
          const sigma = Math.sqrt((load[i]! * (1 - load[i]!)) / R);
          expect(
            Math.abs(chosen / R - load[i]!),
            `expert ${i} of ${E}, k = ${k}: P ${load[i]}, counted ${chosen / R}`,
          ).toBeLessThan(4 * sigma + 1 / R);
        }
        moe.dispose();
      }
    });
  });
}
