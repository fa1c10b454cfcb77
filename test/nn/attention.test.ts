/** The attending LSTM against its equations, one lane and one step at a time, with both attentions of App. G; padding, and sequences in pieces. */

import { describe, expect, it } from "vitest";
import { AttentiveLstm, type AttentionKind } from "#sparsegate/nn/attentive-lstm.js";
import { Lanes } from "#sparsegate/nn/bidirectional.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const list = (t: Tensor): number[] => Array.from(t.dataSync());
const sigma = (z: number): number => 1 / (1 + Math.exp(-z));
const random = (shape: number[], seed: number): Tensor =>
  sg.tensor(
    new Draw(seed).floats(
      shape.reduce((n, m) => n * m, 1),
      -1,
      1,
    ),
    shape,
  );
/** v·W of a row vector and a row-major matrix. */
const times = (v: readonly number[], W: readonly number[], n: number): number[] =>
  Array.from({ length: n }, (_, j) => v.reduce((s, x, i) => s + x * W[i * n + j]!, 0));

function layer(kind: AttentionKind, [D, H, C, A]: readonly number[], P?: number): AttentiveLstm {
  const made = new AttentiveLstm({ kind, inputSize: D!, hiddenSize: H!, projectionSize: P, memorySize: C!, attentionSize: A! });
  const draw = new Draw(1);
  for (const p of made.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -1, 1));
  return made;
}

/** App. G and the cell, for one lane: `values` are the positions that are not padding. */
function plain(m: AttentiveLstm, x: readonly number[][], values: readonly number[][]): { h: number[][]; p: number[][] } {
  const [W, R, b, Wc, Wq, U, V] = [m.lstm.inputWeight, m.lstm.recurrentWeight, m.lstm.bias, m.contextWeight, m.queryWeight, m.memoryWeight, m.v].map(list) as number[][];
  const [H, P, A] = [m.lstm.bias.size / 4, m.lstm.outputSize, V!.length];
  let [h, c] = [new Array<number>(P).fill(0), new Array<number>(H).fill(0)];
  const out: { h: number[][]; p: number[][] } = { h: [], p: [] };
  for (const input of x) {
    const query = times(h, Wq!, A);
    const scores = values.map((value) => {
      const key = times(value, U!, A);
      return V!.reduce((s, v, d) => s + v * (m.kind === "product" ? Math.tanh(key[d]!) * Math.tanh(query[d]!) : Math.tanh(key[d]! + query[d]!)), 0);
    });
    const total = scores.reduce((s, z) => s + Math.exp(z), 0);
    const p = scores.map((z) => Math.exp(z) / total);
    const context = values[0]!.map((_, j) => values.reduce((s, value, i) => s + p[i]! * value[j]!, 0));
    const z = [times(input, W!, 4 * H), times(context, Wc!, 4 * H), times(h, R!, 4 * H)].reduce((s, part) => s.map((v, j) => v + part[j]!), b!);
    c = c.map((before, j) => sigma(z[H + j]!) * before + sigma(z[j]!) * Math.tanh(z[2 * H + j]!));
    const hidden = c.map((v, j) => sigma(z[3 * H + j]!) * Math.tanh(v));
    h = m.lstm.projection ? times(hidden, list(m.lstm.projection), P) : hidden;
    out.h.push(h);
    out.p.push(p);
  }
  return out;
}

for (const { name, make } of BACKENDS) {
  const digits = name === "reference" ? 12 : 5;
  const close = (got: readonly number[], want: readonly number[]): void => {
    expect(got.length).toBe(want.length);
    got.forEach((v, i) => expect(v, `element ${i}`).toBeCloseTo(want[i]!, digits));
  };

  describe(`AttentiveLstm on the ${name} backend`, () => {
    useBackend(make);
    const [T, B, S, D, H, C, A] = [4, 3, 5, 2, 3, 4, 3];
    const lanes = (): Lanes => new Lanes(Int32Array.of(5, 2, 1), S);

    for (const kind of ["product", "additive"] as const) {
      for (const P of [undefined, 2]) {
        it(`follows App. G with ${kind} attention over each lane's own positions${P ? ", projected" : ""}`, () => {
          const m = layer(kind, [D, H, C, A], P);
          const [x, values] = [random([T, B, D], 2), random([S, B, C], 3)];
          const got = m.forward(x, m.memory(values, lanes().attentionBias()));
          for (const [lane, length] of [5, 2, 1].entries()) {
            const rows = (t: Tensor, steps: number, width: number): number[][] => Array.from({ length: steps }, (_, i) => list(t).slice((i * B + lane) * width, (i * B + lane + 1) * width));
            const want = plain(m, rows(x, T, D), rows(values, length, C));
            close(rows(got.output, T, P ?? H).flat(), want.h.flat());
            close(rows(got.weights, T, S).flat(), want.p.flatMap((p) => [...p, ...new Array<number>(S - length).fill(0)]));
          }
        });
      }

      it(`goes on where it stopped, a step at a time, with ${kind} attention`, () => {
        const m = layer(kind, [D, H, C, A], 2);
        const [x, values] = [random([T, B, D], 2), random([S, B, C], 3)];
        const memory = m.memory(values, lanes().attentionBias());
        const whole = m.forward(x, memory);
        let state: sg.LstmState | undefined;
        const pieces: number[] = [];
        for (let t = 0; t < T; t++) {
          const one = m.forward(sg.slice(x, 0, t, t + 1), memory, state);
          state = one.state;
          pieces.push(...list(one.output));
        }
        close(pieces, list(whole.output));
        close(list(state!.c), list(whole.state.c));
      });
    }

    it("has the scores worked by hand: A = Σ V·tanh(xU)·tanh(yW), or Σ V·tanh(xU + yW)", () => {
      // U = W = V = 1: at the first step h = 0, so that the product's scores are 0 and additive ones tanh(x).
      const [one, atanh] = [[1], [0.5, 0.25].map(Math.atanh)];
      for (const [kind, want] of [
        ["product", [0.5, 0.5]],
        ["additive", [Math.exp(0.5) / (Math.exp(0.5) + Math.exp(0.25)), Math.exp(0.25) / (Math.exp(0.5) + Math.exp(0.25))]],
      ] as const) {
        const m = layer(kind, [1, 1, 1, 1]);
        for (const p of [m.queryWeight, m.memoryWeight, m.v]) p.backend.write(p.buffer, one);
        const memory = m.memory(sg.tensor(atanh, [2, 1, 1]), sg.zeros([1, 2]));
        // With h = atanh(0.8): 0.8·0.5 and 0.8·0.25.
        const asked = m.forward(sg.zeros([1, 1, 1]), memory, { h: sg.tensor([Math.atanh(0.8)], [1, 1]), c: sg.zeros([1, 1]) });
        close(list(m.forward(sg.zeros([1, 1, 1]), memory).weights), want);
        const scores = kind === "product" ? [0.4, 0.2] : atanh.map((x) => Math.tanh(x + Math.atanh(0.8)));
        const share = 1 / (1 + Math.exp(scores[1]! - scores[0]!));
        close(list(asked.weights), [share, 1 - share]);
      }
    });

    it("refuses a memory of another width, and an unknown kind", () => {
      expect(() => layer("product", [D, H, C, A]).memory(sg.zeros([S, B, 3]), sg.zeros([B, S]))).toThrow("AttentiveLstm.memory: expected values (S, batch, 4), got [5, 3, 3].");
      expect(() => layer("dot" as never, [D, H, C, A])).toThrow('AttentiveLstm: expected kind to be one of product, additive, got "dot".');
    });
  });
}
