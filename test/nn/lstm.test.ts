/** The LSTM against its equations, one lane and one step at a time in float64; sentences packed with resets; sequences in pieces. */

import { describe, expect, it } from "vitest";
import { Lstm } from "#sparsegate/nn/layers.js";
import type { LstmState } from "#sparsegate/tensor/ops/lstm.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { Draw } from "../backend/helpers.js";
import { denseGradient, gradientErrors, param } from "../tensor/finite-differences.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const list = (t: Tensor): number[] => Array.from(t.dataSync());
const sigma = (z: number): number => 1 / (1 + Math.exp(-z));

interface Plain {
  h: number[];
  c: number[];
}

/** One step of one lane: i, f, o = σ, g = tanh of x·W + h·R + b; c' = f·c + i·g; h' = o·tanh c', times the projection. */
function plainStep(layer: Lstm, x: readonly number[], { h, c }: Plain): Plain {
  const H = c.length;
  const [W, R, b] = [layer.inputWeight, layer.recurrentWeight, layer.bias].map(list) as [number[], number[], number[]];
  const z = Array.from(
    { length: 4 * H },
    (_, j) => b[j]! + x.reduce((s, v, d) => s + v * W[d * 4 * H + j]!, 0) + h.reduce((s, v, p) => s + v * R[p * 4 * H + j]!, 0),
  );
  const cNext = c.map((before, j) => sigma(z[H + j]!) * before + sigma(z[j]!) * Math.tanh(z[2 * H + j]!));
  const hidden = cNext.map((v, j) => sigma(z[3 * H + j]!) * Math.tanh(v));
  const projection = layer.projection && list(layer.projection);
  const P = h.length;
  return {
    c: cNext,
    h: projection ? Array.from({ length: P }, (_, p) => hidden.reduce((s, v, j) => s + v * projection[j * P + p]!, 0)) : hidden,
  };
}

/** (T, B, P) outputs and the states at the end, lane by lane. */
function plainLstm(layer: Lstm, x: Tensor, state?: LstmState, resets?: ArrayLike<number>): { output: number[]; states: Plain[] } {
  const [T, B, D] = x.shape as [number, number, number];
  const [P, H] = [layer.outputSize, layer.bias.size / 4];
  const output = new Array<number>(T * B * P);
  const states = Array.from({ length: B }, (_, b) => {
    let now: Plain = {
      h: state ? list(state.h).slice(b * P, (b + 1) * P) : new Array<number>(P).fill(0),
      c: state ? list(state.c).slice(b * H, (b + 1) * H) : new Array<number>(H).fill(0),
    };
    for (let t = 0; t < T; t++) {
      if (resets?.[t * B + b]) now = { h: now.h.map(() => 0), c: now.c.map(() => 0) };
      now = plainStep(layer, list(x).slice((t * B + b) * D, (t * B + b + 1) * D), now);
      now.h.forEach((v, p) => (output[(t * B + b) * P + p] = v));
    }
    return now;
  });
  return { output, states };
}

function layer(D: number, H: number, P?: number, seed = 1): Lstm {
  const lstm = new Lstm({ inputSize: D, hiddenSize: H, projectionSize: P });
  const draw = new Draw(seed);
  for (const p of lstm.parameters()) p.backend.write(p.buffer, draw.floats(p.size, -1, 1));
  return lstm;
}
const input = (T: number, B: number, D: number, seed = 2): Tensor =>
  sg.tensor(new Draw(seed).floats(T * B * D, -1, 1), [T, B, D]);
const stateOf = (B: number, P: number, H: number): LstmState => ({
  h: sg.tensor(new Draw(5).floats(B * P, -1, 1), [B, P]),
  c: sg.tensor(new Draw(6).floats(B * H, -1, 1), [B, H]),
});
const ints = (data: ArrayLike<number>, shape: readonly number[]): Tensor => sg.tensor(data, shape, "int32");

const SHAPES = [
  { T: 5, B: 3, D: 4, H: 6 },
  { T: 5, B: 3, D: 4, H: 6, P: 2 },
  { T: 1, B: 4, D: 3, H: 5 },
  { T: 4, B: 1, D: 3, H: 5, P: 3 },
  { T: 1, B: 1, D: 1, H: 1 },
  { T: 3, B: 2, D: 17, H: 7, P: 9 },
] as const;

for (const { name, make } of BACKENDS) {
  const digits = name === "reference" ? 12 : 5;
  const close = (got: readonly number[], want: readonly number[]): void => {
    expect(got.length).toBe(want.length);
    got.forEach((v, i) => expect(v, `element ${i}`).toBeCloseTo(want[i]!, digits));
  };

  describe(`LSTM on the ${name} backend`, () => {
    useBackend(make);

    for (const { T, B, D, H, ...rest } of SHAPES) {
      const P = "P" in rest ? rest.P : undefined;
      it(`follows its equations: T = ${T}, B = ${B}, ${D} → ${H}${P === undefined ? "" : ` → ${P}`}; from zero, from a state, with resets`, () => {
        const lstm = layer(D, H, P);
        const x = input(T, B, D);
        const resets = new Draw(3).ints(T * B, 0, 2);
        for (const [state, flags] of [
          [undefined, undefined],
          [stateOf(B, P ?? H, H), undefined],
          [stateOf(B, P ?? H, H), resets],
        ] as const) {
          const got = lstm.forward(x, state, flags && ints(flags, [T, B]));
          const want = plainLstm(lstm, x, state, flags);
          expect(got.output.shape).toEqual([T, B, P ?? H]);
          close(list(got.output), want.output);
          close(
            list(got.state.h),
            want.states.flatMap((s) => s.h),
          );
          close(
            list(got.state.c),
            want.states.flatMap((s) => s.c),
          );
        }
      });
    }

    it("sentences packed with resets give what they give one by one: outputs, and gradients of weights and inputs", () => {
      const lstm = layer(3, 4, 2);
      const lengths = [3, 1, 2];
      const T = 6;
      const starts = [0, 3, 4];
      const weights = sg.tensor(new Draw(7).floats(T * 2, -1, 1), [T, 1, 2]);
      const run = (x: Tensor, from: number, resets?: Tensor): { y: number[]; gradients: number[][] } => {
        x.requiresGrad = true;
        for (const p of lstm.parameters()) p.zeroGrad();
        const { output } = lstm.forward(x, undefined, resets);
        sg.backward(sg.sum(sg.mul(output, sg.slice(weights, 0, from, from + x.shape[0]!))));
        return { y: list(output), gradients: [x, ...lstm.parameters()].map((p) => [...denseGradient(p)]) };
      };
      const packed = run(input(T, 1, 3), 0, ints([1, 0, 0, 1, 1, 0], [T, 1]));
      const alone = lengths.map((length, i) => run(sg.slice(input(T, 1, 3), 0, starts[i]!, starts[i]! + length), starts[i]!));
      close(
        packed.y,
        alone.flatMap((r) => r.y),
      );
      close(
        packed.gradients[0]!,
        alone.flatMap((r) => r.gradients[0]!),
      );
      for (let n = 1; n < packed.gradients.length; n++)
        close(
          packed.gradients[n]!,
          packed.gradients[n]!.map((_, i) => alone.reduce((s, r) => s + r.gradients[n]![i]!, 0)),
        );
    });

    it("a sequence in pieces with the state carried gives one long run, and lanes do not touch one another", () => {
      const lstm = layer(3, 4, 5);
      const x = input(7, 2, 3);
      const resets = ints(new Draw(4).ints(14, 0, 2), [7, 2]);
      const whole = lstm.forward(x, undefined, resets);
      let state: LstmState | undefined;
      const parts: number[] = [];
      for (const [from, to] of [
        [0, 2],
        [2, 3],
        [3, 7],
      ] as const) {
        const { output, state: next } = lstm.forward(sg.slice(x, 0, from, to), state, sg.slice(resets, 0, from, to));
        parts.push(...list(output));
        state = next;
      }
      close(parts, list(whole.output));
      close(list(state!.h), list(whole.state.h));
      close(list(state!.c), list(whole.state.c));
      for (const lane of [0, 1])
        close(
          list(lstm.forward(sg.slice(x, 1, lane, lane + 1), undefined, sg.slice(resets, 1, lane, lane + 1)).output),
          list(sg.slice(whole.output, 1, lane, lane + 1)),
        );
    });

    it("stops gradients at the carried state (truncated back-propagation): a piece's gradients are those of its own steps", () => {
      const lstm = layer(3, 4);
      const x = input(4, 2, 3);
      x.requiresGrad = true;
      const first = lstm.forward(sg.slice(x, 0, 0, 2));
      expect([first.state.h.requiresGrad, first.state.c.requiresGrad]).toEqual([false, false]);
      sg.backward(sg.sum(lstm.forward(sg.slice(x, 0, 2, 4), first.state).output));
      const got = [...denseGradient(x)];
      expect(got.slice(0, 12)).toEqual(new Array(12).fill(0));
      expect(got.slice(12).every((g) => g !== 0)).toBe(true);
      // The same with the state as plain numbers.
      const copy = sg.tensor(x.dataSync().slice(12), [2, 2, 3]);
      copy.requiresGrad = true;
      for (const p of lstm.parameters()) p.zeroGrad();
      sg.backward(
        sg.sum(
          lstm.forward(copy, { h: sg.tensor(first.state.h.dataSync(), [2, 4]), c: sg.tensor(first.state.c.dataSync(), [2, 4]) })
            .output,
        ),
      );
      close([...denseGradient(copy)], got.slice(12));
    });

    it("forgets everything at a reset, even a state that is not finite", () => {
      const lstm = layer(2, 3);
      const bad = { h: sg.full([1, 3], NaN), c: sg.full([1, 3], Infinity) };
      const x = input(2, 1, 2);
      close(list(lstm.forward(x, bad, ints([1, 0], [2, 1])).output), list(lstm.forward(x).output));
    });
  });
}

describe("LSTM gradients by finite differences", () => {
  useBackend(BACKENDS[0].make);
  it.each(SHAPES)("%o: inputs and every parameter, with resets and a carried state", ({ T, B, D, H, ...rest }) => {
    const P = "P" in rest ? rest.P : undefined;
    const lstm = layer(D, H, P);
    const x = param([T, B, D], 1);
    const resets = ints(new Draw(3).ints(T * B, 0, 2), [T, B]);
    expect(gradientErrors([x, ...lstm.parameters()], () => lstm.forward(x, stateOf(B, P ?? H, H), resets).output)).toEqual([]);
  });
});
