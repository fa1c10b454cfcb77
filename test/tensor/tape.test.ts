/** The tape and scopes: graphs that are used once or kept, gradients that share memory or stay by rows, and memory that comes back. */

import { describe, expect, it } from "vitest";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import * as sg from "#sparsegate/tensor/index.js";
import type { Tensor } from "#sparsegate/tensor/index.js";
import { record } from "#sparsegate/tensor/tape.js";
import { Draw } from "../backend/helpers.js";
import { useBackend } from "../use-backend.js";
import { denseGradient, param } from "./finite-differences.js";

useBackend(() => new ReferenceBackend());

function leaf(data: readonly number[], shape?: readonly number[]): Tensor {
  const p = sg.keep(sg.tensor(data, shape));
  p.requiresGrad = true;
  return p;
}
const gradientOf = (p: Tensor): number[] => Array.from(denseGradient(p));

describe("backward", () => {
  it("adds to the gradient at each call, when the first keeps the graph", () => {
    const x = leaf([1, 2, 3]);
    const loss = sg.sum(sg.square(x));
    sg.backward(loss, { retainGraph: true });
    expect(gradientOf(x)).toEqual([2, 4, 6]);
    sg.backward(loss);
    expect(gradientOf(x)).toEqual([4, 8, 12]);
  });

  it("over a graph used before is a clear error that leaves every gradient as it was", () => {
    const [x, y] = [leaf([1, 2, 3]), leaf([5])];
    const shared = sg.square(x);
    sg.backward(sg.sum(shared));
    // Goes through `mul` to y before it comes to the part that is gone.
    expect(() => sg.backward(sg.sum(sg.mul(shared, y)))).toThrow(
      /backward: the graph at square was used by an earlier backward and freed\. Pass \{ retainGraph: true \}/,
    );
    expect(gradientOf(x)).toEqual([2, 4, 6]);
    expect(y.grad).toBeUndefined();
  });

  it("refuses a graph of which a part was freed, by a scope or by hand, and leaves every gradient as it was", () => {
    const [w, q] = [leaf([1, 2, 3]), leaf([5])];
    const freed = /^Tensor \[.*\]: its memory has been freed\. It was made inside a scope\(\) that has ended, or disposed\./;
    // Without its node, the square would pass for a leaf.
    const cut = sg.scope(() => sg.sum(sg.square(w)));
    expect(() => sg.backward(sg.add(sg.sum(q), cut))).toThrow(freed);
    let lost: Tensor | undefined;
    sg.scope(() => {
      lost = sg.sum(sg.square(w));
    });
    expect(() => sg.backward(lost!)).toThrow(freed);
    const gone = leaf([1, 2, 3]);
    const late = sg.add(sg.sum(q), sg.sum(sg.mul(gone, w)));
    gone.dispose();
    expect(() => sg.backward(late)).toThrow(freed);
    const during = leaf([1]);
    const disposing = record("dispose", sg.tensor([0], []), [during], () => {
      during.dispose();
      return [sg.tensor([1])];
    });
    expect(() => sg.backward(disposing)).toThrow(freed);
    expect([w, q, gone, during].map((p) => p.grad)).toEqual([undefined, undefined, undefined, undefined]);
  });

  it("keeps gradients apart that an operation passes on to several inputs", () => {
    // d passes one gradient to p and to a. p then gets more from c, which must not reach q through a.
    const [p, q] = [leaf([10, 20]), leaf([1, 2])];
    const a = sg.square(q);
    const c = sg.square(p);
    const d = sg.add(p, a);
    sg.backward(sg.add(sg.sum(d), sg.sum(c)));
    expect(gradientOf(q)).toEqual([2, 4]);
    expect(gradientOf(p)).toEqual([21, 41]);
  });

  it("is right for graphs of any form (300 random ones, of operations that pass memory on; slope along a random direction)", () => {
    const draw = new Draw(7);
    const pick = (n: number): number => Math.floor(draw.next() * n);
    for (let graph = 0; graph < 300; graph++) {
      const leaves = [0, 1, 2].map((i) => param([2, 3], 3 * graph + i));
      // Operations on nodes counted from the latest, so that leaves and late nodes meet.
      const recipe = Array.from({ length: 6 }, () => [pick(6), pick(5), pick(5)] as const);
      const f = (): Tensor => {
        const nodes = [...leaves];
        for (const [op, i, j] of recipe) {
          const [a, b] = [nodes.at(-1 - (i % nodes.length))!, nodes.at(-1 - (j % nodes.length))!];
          nodes.push(
            [
              () => sg.add(a, b),
              () => sg.add(a, b),
              () => sg.sub(a, b),
              () => sg.reshape(sg.reshape(a, [6]), [2, 3]),
              () => sg.sigmoid(a),
              () => sg.mul(a, b),
            ][op]!(),
          );
        }
        return nodes
          .slice(-3)
          .map((t) => sg.sum(t))
          .reduce((s, t) => sg.add(s, t));
      };
      sg.scope(() => sg.backward(f()));
      const [starts, directions] = [leaves.map((p) => p.dataSync()), leaves.map((p) => draw.floats(p.size))];
      const along = (h: number): number => {
        for (const [n, p] of leaves.entries())
          p.backend.write(
            p.buffer,
            starts[n]!.map((v, i) => v + h * directions[n]![i]!),
          );
        return sg.scope(() => sg.noGrad(f).item());
      };
      const slope = (along(1e-5) - along(-1e-5)) / 2e-5;
      const expected = leaves.reduce((sum, p, n) => sum + denseGradient(p).reduce((s, g, i) => s + g * directions[n]![i]!, 0), 0);
      expect(Math.abs(expected - slope), JSON.stringify(recipe)).toBeLessThan(1e-6 * Math.max(1, Math.abs(slope)));
    }
  });

  it("tells of each leaf once, as soon as its gradient is complete", () => {
    // The way back: sum, mul (c), add (a and b), square (a).
    const [a, b, c, unused] = [leaf([1, 2]), leaf([3, 5]), leaf([7, 11]), leaf([0, 0])];
    const loss = sg.sum(sg.mul(sg.add(sg.square(a), sg.add(a, b)), c));
    const told: [Tensor, number[]][] = [];
    const saw: boolean[] = [];
    sg.backward(loss, {
      onComplete: (p) => {
        told.push([p, gradientOf(p)]);
        saw.push(a.grad !== undefined);
      },
    });
    expect(told.map(([p]) => [a, b, c, unused].indexOf(p))).toEqual([2, 1, 0]);
    expect(told.map(([, gradient]) => gradient)).toEqual([[5, 11], [7, 11], [(2 * 1 + 1) * 7, (2 * 2 + 1) * 11]]);
    // c is complete before anything of a is known.
    expect(saw[0]).toBe(false);
  });

  it("tells of a leaf that is the loss, and of one whose gradient is none", () => {
    const told: Tensor[] = [];
    const onComplete = (p: Tensor): void => void told.push(p);
    const p = leaf([2], []);
    sg.backward(p, { onComplete });
    const without = record("nothing", sg.tensor([0], []), [p], () => [undefined]);
    sg.backward(without, { onComplete });
    expect(told).toEqual([p, p]);
    expect(gradientOf(p)).toEqual([1]);
  });

  it("takes a seed of the output's shape, and leaves it as it was", () => {
    const x = leaf([1, 2]);
    const seed = sg.tensor([10, 100]);
    sg.backward(sg.square(x), { seed });
    expect(gradientOf(x)).toEqual([20, 400]);
    x.zeroGrad();
    sg.backward(x, { seed });
    sg.backward(x, { seed });
    expect(gradientOf(x)).toEqual([20, 200]);
    expect(Array.from(seed.dataSync())).toEqual([10, 100]);
    expect(() => sg.backward(sg.square(x), { seed: sg.tensor([1]) })).toThrow("backward: expected seed of shape [2], got [1].");
  });

  it("refuses a loss that is no scalar, and one that depends on no parameter", () => {
    expect(() => sg.backward(sg.square(leaf([1, 2])))).toThrow(
      "backward: expected a scalar loss, got shape [2]. Take its sum or mean, or pass seed.",
    );
    expect(() => sg.backward(sg.tensor(1))).toThrow(/depends on none of them/);
    expect(() => sg.backward(sg.noGrad(() => sg.sum(sg.square(leaf([1, 2])))))).toThrow(/made under noGrad/);
  });

  it("records nothing under noGrad, and again after it, even when the body throws", () => {
    const x = leaf([1, 2]);
    expect(sg.noGrad(() => sg.square(x)).requiresGrad).toBe(false);
    expect(() =>
      sg.noGrad(() => {
        throw new Error("stop");
      }),
    ).toThrow("stop");
    expect(sg.square(x).requiresGrad).toBe(true);
  });
});

describe("a gradient by rows", () => {
  const table = (): Tensor => leaf([1, 2, 3, 4, 5, 6, 7, 8], [4, 2]);
  const look = (t: Tensor, ...index: number[]): Tensor => sg.sum(sg.embedding(t, sg.tensor(index, [index.length], "int32")));
  const rowsOf = (t: Tensor): number[] => Array.from(t.grad!.rows!.dataSync()).filter((row) => row >= 0);

  it("holds the rows in use and no others", () => {
    const t = table();
    sg.backward(look(t, 3, 1, 3));
    expect(rowsOf(t)).toEqual([1, 3]);
    expect(gradientOf(t)).toEqual([0, 0, 1, 1, 0, 0, 2, 2]);
  });

  it("stays by rows when used twice in a graph, and in two", () => {
    const t = table();
    sg.backward(sg.add(look(t, 3), look(t, 0, 3)));
    expect(rowsOf(t)).toEqual([0, 3]);
    expect(gradientOf(t)).toEqual([1, 1, 0, 0, 0, 0, 2, 2]);
    sg.backward(look(t, 1));
    expect(rowsOf(t)).toEqual([0, 1, 3]);
    expect(gradientOf(t)).toEqual([1, 1, 1, 1, 0, 0, 2, 2]);
  });

  it("becomes dense when a dense one is added, in either order", () => {
    for (const order of [0, 1]) {
      const t = table();
      const parts = [() => sg.backward(look(t, 2)), () => sg.backward(sg.sum(sg.square(t)))];
      parts[order]!();
      parts[1 - order]!();
      expect(t.grad!.rows).toBeUndefined();
      expect(gradientOf(t)).toEqual([2, 4, 6, 8, 11, 13, 14, 16]);
    }
  });

  it("is what experts get: one row an expert, -1 for those without rows", () => {
    const w = leaf([1, 2, 3, 4], [4, 1, 1]);
    const bias = leaf([0, 0, 0, 0], [4, 1]);
    const offsets = sg.tensor([0, 1, 1, 3, 3], [5], "int32");
    sg.backward(sg.sum(sg.groupedBias(sg.groupedMatmul(sg.tensor([[5], [6], [7]]), w, offsets), bias, offsets)));
    for (const p of [w, bias]) expect(Array.from(p.grad!.rows!.dataSync())).toEqual([0, -1, 2, -1]);
    expect(gradientOf(w)).toEqual([5, 0, 13, 0]);
    expect(gradientOf(bias)).toEqual([1, 0, 2, 0]);
  });
});

for (const [name, make, bytes] of [
  ["reference", () => new ReferenceBackend(), 8],
  ["cpu", () => new CpuBackend({ threads: 1 }), 4],
] as const) {
  describe(`scope on the ${name} backend`, () => {
    useBackend(make);
    const used = (): number => sg.defaultBackend().memory().used;

    it("frees what is made inside but for its result", () => {
      const start = used();
      const kept = sg.scope(() => ({ sums: [sg.add(sg.zeros([16]), sg.zeros([16]))], other: 1 }));
      expect(used() - start).toBe(16 * bytes);
      kept.sums[0]!.dispose();
      expect(used()).toBe(start);
      expect(() => kept.sums[0]!.dataSync()).toThrow(/its memory has been freed/);
    });

    it("passes its result to the enclosing scope, which frees it", () => {
      const start = used();
      sg.scope(() => {
        const inner = sg.scope(() => sg.zeros([16]));
        expect(inner.dataSync()).toHaveLength(16);
        expect(used() - start).toBe(16 * bytes);
      });
      expect(used()).toBe(start);
    });

    it("frees everything when its body throws", () => {
      const start = used();
      expect(() =>
        sg.scope(() => {
          sg.zeros([16]);
          throw new Error("stop");
        }),
      ).toThrow("stop");
      expect(used()).toBe(start);
    });

    it("leaves alone what is kept, and gradients of parameters", () => {
      const start = used();
      const p = leaf(new Array<number>(16).fill(1));
      const kept: Tensor[] = [];
      sg.scope(() => {
        sg.backward(sg.sum(sg.square(p)));
        kept.push(sg.keep(sg.zeros([16])));
      });
      // p, its gradient, and the one that was kept.
      expect(used() - start).toBe(3 * 16 * bytes);
      expect(Array.from(p.grad!.value.dataSync())).toEqual(new Array<number>(16).fill(2));
      p.zeroGrad();
      p.dispose();
      kept[0]!.dispose();
      expect(used()).toBe(start);
    });

    it("reports the most that was in use at once", () => {
      const start = used();
      sg.defaultBackend().resetPeak();
      sg.scope(() => {
        const x = sg.zeros([1024]);
        sg.scope(() => void sg.zeros([1024]));
        sg.square(x);
      });
      const { peak } = sg.defaultBackend().memory();
      expect(peak - start).toBeGreaterThanOrEqual(2 * 1024 * bytes);
      expect(peak - start).toBeLessThan(3 * 1024 * bytes);
      expect(used()).toBe(start);
    });

    it("frees intermediate gradients one by one: a chain of n squares needs one or two at a time", () => {
      const chain = (n: number): number => {
        const p = leaf(new Array<number>(4096).fill(1));
        const extra = sg.scope(() => {
          let y = p;
          for (let i = 0; i < n; i++) y = sg.square(y);
          const loss = sg.sum(y);
          const forward = used();
          sg.defaultBackend().resetPeak();
          sg.backward(loss);
          return sg.defaultBackend().memory().peak - forward;
        });
        p.zeroGrad();
        p.dispose();
        return extra;
      };
      expect(chain(20)).toBe(chain(4));
      expect(chain(20)).toBeLessThan(3 * 4096 * bytes);
    });
  });
}
