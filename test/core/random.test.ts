/** The definition of the random numbers: Philox against its published vectors, and the distributions drawn from it. */

import { describe, expect, it } from "vitest";
import { normalAt, philox4x32, streamId, uniformAt, uniformsFrom } from "#sparsegate/core/random.js";

const KEY = { seed: 20170123, stream: streamId("noise", "moe.0"), step: 7 };

describe("philox4x32", () => {
  // Known-answer tests of the Random123 distribution (kat_vectors, "philox4x32 10").
  const F = 0xffffffff;
  it.each([
    { counter: [0, 0, 0, 0], key: [0, 0], words: [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8] },
    { counter: [F, F, F, F], key: [F, F], words: [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd] },
    {
      counter: [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      key: [0xa4093822, 0x299f31d0],
      words: [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    },
  ])("meets the published vector of counter $counter", ({ counter, key, words }) => {
    expect(philox4x32(counter as [number, number, number, number], key as [number, number])).toEqual(words);
  });
});

describe("uniformsFrom", () => {
  it("gives the numbers of uniformAt one after another, from within a block too", () => {
    for (const first of [0, 3, 6, 2 ** 40 + 1]) {
      const next = uniformsFrom(KEY, first);
      for (let i = 0; i < 9; i++) expect(next()).toBe(uniformAt(KEY, first + i));
    }
  });
});

describe("uniformAt", () => {
  it("takes the upper 24 bits of word i mod 4 of block i div 4", () => {
    const zero = { seed: 0, stream: 0, step: 0 };
    expect(uniformAt(zero, 0)).toBe(0x6627e8 / 2 ** 24);
    expect(uniformAt(zero, 3)).toBe(0x9b00db / 2 ** 24);
    // Seed of 53 bits as key (low, high), block 5·2³² + 2 as counter words 0 and 1, then step and stream.
    const [, second] = philox4x32([2, 5, 11, 0x80000001], [0x89abcdef, 0x1234]);
    expect(uniformAt({ seed: 0x123489abcdef, stream: 0x80000001, step: 11 }, 4 * (5 * 2 ** 32 + 2) + 1)).toBe((second >>> 8) / 2 ** 24);
  });

  it("has mean 1/2 and variance 1/12 and lies in [0, 1)", () => {
    const n = 40_000;
    const x = Array.from({ length: n }, (_, i) => uniformAt(KEY, i));
    const { mean, variance } = moments(x);
    expect(Math.min(...x.slice(0, 10_000))).toBeGreaterThanOrEqual(0);
    expect(Math.max(...x.slice(0, 10_000))).toBeLessThan(1);
    // Five standard errors: √(1/12n) of the mean; √(1/180n) of the variance.
    expect(Math.abs(mean - 1 / 2)).toBeLessThan(5 * Math.sqrt(1 / 12 / n));
    expect(Math.abs(variance - 1 / 12)).toBeLessThan(5 * Math.sqrt(1 / 180 / n));
  });

  it("gives unrelated numbers for another seed, stream or step", () => {
    const n = 10_000;
    const draw = (key: typeof KEY): number[] => Array.from({ length: n }, (_, i) => uniformAt(key, i) - 0.5);
    const base = draw(KEY);
    for (const other of [{ ...KEY, seed: KEY.seed + 1 }, { ...KEY, seed: KEY.seed + 2 ** 32 }, { ...KEY, stream: KEY.stream ^ 1 }, { ...KEY, step: KEY.step + 1 }]) {
      const covariance = draw(other).reduce((sum, v, i) => sum + v * base[i], 0) / n;
      // The product of two independent ones has standard deviation 1/12.
      expect(Math.abs(covariance)).toBeLessThan((5 / 12) * Math.sqrt(1 / n));
    }
  });
});

describe("normalAt", () => {
  it("has the moments of the standard normal: 0, 1, 0, 3", () => {
    const n = 100_000;
    const x = Array.from({ length: n }, (_, i) => normalAt(KEY, i));
    const { mean, variance } = moments(x);
    const power = (p: number): number => x.reduce((sum, v) => sum + v ** p, 0) / n;
    // Five standard errors; Var xᵖ is 1, 2, 15 and 96 for p = 1..4.
    expect(Math.abs(mean)).toBeLessThan(5 * Math.sqrt(1 / n));
    expect(Math.abs(variance - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
    expect(Math.abs(power(3))).toBeLessThan(5 * Math.sqrt(15 / n));
    expect(Math.abs(power(4) - 3)).toBeLessThan(5 * Math.sqrt(96 / n));
  });

  it("is uncorrelated between neighbours, also within a Box-Muller pair", () => {
    const n = 40_000;
    for (const lag of [1, 2, 3]) {
      let sum = 0;
      for (let i = 0; i < n; i++) sum += normalAt(KEY, i) * normalAt(KEY, i + lag);
      expect(Math.abs(sum / n)).toBeLessThan(5 * Math.sqrt(1 / n));
    }
  });

  it("is always finite: u₁ is never 0", () => {
    for (let i = 0; i < 10_000; i++) expect(Number.isFinite(normalAt(KEY, i))).toBe(true);
  });

  it("depends on the element's number alone, not on where one starts to draw", () => {
    const forwards = Array.from({ length: 64 }, (_, i) => normalAt(KEY, i));
    const backwards = Array.from({ length: 64 }, (_, i) => normalAt(KEY, 63 - i)).reverse();
    const middle = Array.from({ length: 9 }, (_, i) => normalAt(KEY, 5 + i));
    expect(backwards).toEqual(forwards);
    expect(middle).toEqual(forwards.slice(5, 14));
  });
});

describe("streamId", () => {
  it("is FNV-1a of purpose:layer", () => {
    // Published 32-bit FNV-1a: offset basis 0x811c9dc5, "a" → 0xe40c292c; here the text is ":" → (0x811c9dc5 ^ 0x3a)·0x01000193.
    expect(streamId("", "")).toBe(Math.imul(0x811c9dc5 ^ 0x3a, 0x01000193) >>> 0);
  });

  it("tells purposes and layers apart", () => {
    const names = ["dropout", "noise", "init"].flatMap((purpose) => ["embedding", "lstm.0", "lstm.1", "moe.0"].map((layer) => streamId(purpose, layer)));
    expect(new Set(names).size).toBe(names.length);
  });
});

function moments(x: number[]): { mean: number; variance: number } {
  const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
  return { mean, variance: x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length };
}
