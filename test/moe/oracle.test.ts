// The MoE layer against a dense loop over all experts, written from the paper's formulas in float64 with dual numbers replaced by finite differences.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { MoE } from "#sparsegate/moe/layer.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";

type Matrix = number[][];

function matrix(t: Tensor, rows: number, cols: number, at = 0): Matrix {
  const data = t.dataSync();
  return Array.from({ length: rows }, (_, i) => Array.from(data.slice(at + i * cols, at + (i + 1) * cols)));
}

const times = (a: Matrix, b: Matrix): Matrix => a.map((row) => b[0]!.map((_, j) => row.reduce((sum, v, p) => sum + v * b[p]![j]!, 0)));
const softplus = (x: number): number => Math.log1p(Math.exp(x));
/** Φ by Simpson's rule on the density: independent of any erf. */
function phi(x: number): number {
  const [lo, n] = [-12, 4000];
  if (x <= lo) return 0;
  const h = (x - lo) / n;
  let sum = 0;
  for (let i = 0; i <= n; i++) {
    const t = lo + i * h;
    sum += (i === 0 || i === n ? 1 : i % 2 === 1 ? 4 : 2) * Math.exp((-t * t) / 2);
  }
  return ((h / 3) * sum) / Math.sqrt(2 * Math.PI);
}
function cv2(v: readonly number[]): number {
  const mean = v.reduce((s, x) => s + x, 0) / v.length;
  return v.length === 1 || mean === 0 ? 0 : v.reduce((s, x) => s + (x - mean) ** 2, 0) / v.length / mean ** 2;
}

/** Eq. 1-5 and 8-11 as they stand, every expert evaluated for every row. */
function dense(moe: MoE, x: Matrix, noise: Matrix | undefined, k: number): { y: Matrix; aux: number; load: number[]; importance: number[] } {
  const E = moe.numExperts;
  const D = moe.hiddenSize;
  const parameters = moe.namedParameters();
  const clean = times(x, matrix(parameters.get("gate.weight")!, D, E));
  const std = times(x, matrix(parameters.get("gate.noiseWeight")!, D, E)).map((row) => row.map(softplus));
  const h = clean.map((row, n) => row.map((v, i) => v + (noise ? noise[n]![i]! * std[n]![i]! : 0)));
  const F = parameters.get("experts.inputWeight")!.shape[2]!;
  const experts = Array.from({ length: E }, (_, e) => {
    const hidden = times(x, matrix(parameters.get("experts.inputWeight")!, D, F, e * D * F)).map((row) => row.map((v) => Math.max(v, 0)));
    return times(hidden, matrix(parameters.get("experts.outputWeight")!, F, D, e * D * F));
  });
  const load = new Array<number>(E).fill(0);
  const importance = new Array<number>(E).fill(0);
  const y = x.map((_, n) => {
    const order = h[n]!.map((_, i) => i).sort((a, b) => h[n]![b]! - h[n]![a]! || a - b);
    const kept = order.slice(0, k);
    const total = kept.reduce((s, i) => s + Math.exp(h[n]![i]!), 0);
    const out = new Array<number>(D).fill(0);
    for (const i of kept) {
      const g = Math.exp(h[n]![i]!) / total;
      importance[i]! += g;
      for (let d = 0; d < D; d++) out[d]! += g * experts[i]![n]![d]!;
      if (!noise) load[i]! += 1;
    }
    if (noise) {
      for (let i = 0; i < E; i++) {
        const others = h[n]!.filter((_, j) => j !== i).sort((a, b) => b - a);
        load[i]! += k === E ? 1 : phi((clean[n]![i]! - others[k - 1]!) / std[n]![i]!);
      }
    }
    return out;
  });
  return { y, aux: 0.1 * cv2(importance) + (noise ? 0.1 * cv2(load) : 0), load, importance };
}

/** Gives the gate weights that are not zero. */
function stir(moe: MoE, seed: number): void {
  for (const [i, name] of ["gate.weight", "gate.noiseWeight"].entries()) {
    const p = moe.namedParameters().get(name)!;
    p.backend.randomNormal(p.buffer, p.size, { seed, stream: i, step: 0 }, 0, 0, 0.7);
  }
}

function noiseOf(moe: MoE, rows: number, context: { seed: number; step: number }): Matrix {
  // The layer's own draw, read back through the public key: what is checked is the layer, the numbers are checked elsewhere.
  const captured: Matrix[] = [];
  const backend = sg.defaultBackend();
  const original = backend.randomNormal.bind(backend);
  backend.randomNormal = (out, n, key, start, mean, std) => {
    original(out, n, key, start, mean, std);
    const data = backend.readSync(out);
    captured.push(Array.from({ length: rows }, (_, r) => Array.from(data.slice(r * moe.numExperts, (r + 1) * moe.numExperts))));
  };
  moe.forward(sg.zeros([rows, moe.hiddenSize]), { training: true, firstRow: 0, ...context });
  backend.randomNormal = original;
  return captured[0]!;
}

const CASES = [
  { name: "several rows", rows: 7, D: 3, E: 5, F: 4, k: 2 },
  { name: "one row", rows: 1, D: 3, E: 4, F: 2, k: 2 },
  { name: "one expert", rows: 5, D: 3, E: 1, F: 4, k: 1 },
  { name: "k = numExperts", rows: 4, D: 3, E: 3, F: 2, k: 3 },
  { name: "more experts than assignments", rows: 2, D: 3, E: 12, F: 2, k: 2 },
  { name: "k = 1", rows: 6, D: 4, E: 4, F: 3, k: 1 },
];

for (const [backendName, make, tolerance] of [
  ["reference", () => new ReferenceBackend(), 1e-9],
  ["cpu", () => new CpuBackend({ threads: 2 }), 2e-5],
  ["cpu without BLAS", () => new CpuBackend({ threads: 1, blas: "none" }), 2e-5],
] as const) {
  describe(`MoE on the ${backendName} backend equals the dense loop over all experts`, () => {
    let before: ReturnType<typeof sg.setDefaultBackend>;
    beforeAll(() => {
      before = sg.setDefaultBackend(make());
    });
    afterAll(() => {
      sg.defaultBackend().dispose();
      sg.setDefaultBackend(before);
    });
    for (const { name, rows, D, E, F, k } of CASES) {
      it(`${name}: output, losses and every gradient`, () => {
        const moe = new MoE({ hiddenSize: D, numExperts: E, topK: k, expertHiddenSize: F, seed: 1 });
        stir(moe, 5);
        const x = sg.keep(sg.randomNormal([rows, D], { seed: 9 }));
        x.requiresGrad = true;
        const context = { training: true, seed: 3, step: 2, firstRow: 0 };
        const noise = noiseOf(moe, rows, context);
        const weights = Array.from({ length: rows * D }, (_, i) => Math.sin(1.3 * i + 0.5));
        const objective = (): number => {
          const { y, aux } = dense(moe, matrix(x, rows, D), noise, k);
          return y.flat().reduce((s, v, i) => s + v * weights[i]!, 0) + aux;
        };
        const out = moe.forward(x, context);
        const expected = dense(moe, matrix(x, rows, D), noise, k);
        out.output.dataSync().forEach((v, i) => expect(v).toBeCloseTo(expected.y.flat()[i]!, tolerance < 1e-8 ? 8 : 4));
        expect(out.auxLoss.item()).toBeCloseTo(expected.aux, tolerance < 1e-8 ? 7 : 4);
        sg.backward(sg.add(sg.sum(sg.mul(out.output, sg.tensor(weights, [rows, D]))), out.auxLoss));
        // Finite differences of the DENSE objective: an independent gradient. Only on the reference, where parameters are float64.
        if (backendName !== "reference") return;
        for (const p of [x, ...moe.parameters()]) {
          const gradient = sg.scope(() => Array.from(p.grad ? p.grad.value.dataSync() : new Float64Array(p.size)));
          const touched = p.grad?.rows?.dataSync();
          const data = p.dataSync();
          for (let i = 0; i < p.size; i++) {
            const at = (h: number): number => {
              const moved = data.slice();
              moved[i]! += h;
              p.backend.write(p.buffer, moved);
              return objective();
            };
            const slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            const row = Math.floor(i / (p.size / p.shape[0]!));
            const got = touched && touched[row]! < 0 ? 0 : gradient[i]!;
            expect(Math.abs(got - slope), `${p.name || "x"}[${i}]: ${got} against ${slope}`).toBeLessThan(1e-6 * Math.max(1, Math.abs(slope)));
          }
          p.backend.write(p.buffer, data);
        }
      });
    }
    it("evaluation draws no noise and counts rows", () => {
      const moe = new MoE({ hiddenSize: 3, numExperts: 4, topK: 2, expertHiddenSize: 2 });
      stir(moe, 6);
      const x = sg.randomNormal([6, 3], { seed: 1 });
      const out = moe.forward(x, { training: false, seed: 0, step: 0, firstRow: 0 });
      const expected = dense(moe, matrix(x, 6, 3), undefined, 2);
      out.output.dataSync().forEach((v, i) => expect(v).toBeCloseTo(expected.y.flat()[i]!, 4));
      expect(Array.from(out.load.dataSync())).toEqual(expected.load);
    });
    it("refuses k beyond numExperts and x of another width", () => {
      expect(() => new MoE({ hiddenSize: 3, numExperts: 2, topK: 3 })).toThrow(/topK to be an integer from 1 to 2, got 3/);
      const moe = new MoE({ hiddenSize: 3, numExperts: 2, topK: 1 });
      expect(() => moe.forward(sg.zeros([2, 4]))).toThrow("MoE.forward: expected x of width 3 (hiddenSize), got 4. Did the embedding size change?");
    });
  });
}
