/** The allocator against a plain model: no two live blocks overlap, and everything freed joins up again. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Allocator } from "#sparsegate/backend/cpu/allocator.js";

const START = 1 << 16;
const PAGE = 1 << 16;
const MIB = 2 ** 20;

/** A space of up to `limit` that grows by pages and counts how often. */
function space(limit: number): { allocator: Allocator; growths: () => number } {
  let growths = 0;
  const allocator = new Allocator(START, START, limit, (to) => {
    growths++;
    return Math.min(limit, Math.ceil(to / PAGE) * PAGE);
  });
  return { allocator, growths: () => growths };
}

describe("Allocator", () => {
  it("keeps live blocks apart, aligned and within the space, and joins all of it again (any order of 200 calls)", () => {
    const step = fc.oneof(fc.record({ alloc: fc.oneof(fc.integer({ min: 0, max: 300 }), fc.integer({ min: 0, max: 300_000 }), fc.integer({ min: MIB - 100, max: 2 * MIB })) }), fc.record({ free: fc.nat() }));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const { allocator } = space(512 * MIB);
        const live: { at: number; bytes: number }[] = [];
        for (const action of steps) {
          if ("alloc" in action) live.push({ at: allocator.alloc(action.alloc), bytes: action.alloc });
          else if (live.length > 0) allocator.free(live.splice(action.free % live.length, 1)[0].at);
          const sorted = [...live].sort((a, b) => a.at - b.at);
          for (const [i, { at, bytes }] of sorted.entries()) {
            expect(at % (bytes < MIB ? 64 : 4096)).toBe(0);
            expect(at).toBeGreaterThanOrEqual(START);
            expect(at + bytes).toBeLessThanOrEqual(sorted[i + 1]?.at ?? allocator.reserved);
          }
          expect(allocator.used).toBeGreaterThanOrEqual(live.reduce((sum, { bytes }) => sum + bytes, 0));
        }
        for (const { at } of live) allocator.free(at);
        expect(allocator.used).toBe(0);
        if (allocator.reserved > START) expect(allocator.freeBlocks()).toEqual([{ start: START, size: allocator.reserved - START }]);
      }),
      { numRuns: 200 },
    );
  });

  it("takes freed memory again instead of growing", () => {
    const { allocator, growths } = space(256 * MIB);
    for (let step = 0; step < 50; step++) for (const at of [3 * MIB, 100, 5 * MIB].map((bytes) => allocator.alloc(bytes))) allocator.free(at);
    expect(allocator.reserved).toBeLessThan(12 * MIB);
    expect(growths()).toBeLessThan(4);
  });

  it("puts tensors of a power of two bytes at other places of the caches: in pages, sixteen of them a way, at least four from the one before", () => {
    const { allocator } = space(256 * MIB);
    for (const bytes of [MIB, 4 * MIB, 32 * MIB]) {
      const ways = [0, 1, 2, 3].map(() => (allocator.alloc(bytes) / 4096) % 16);
      expect(new Set(ways).size).toBe(4);
      for (const [i, way] of ways.slice(1).entries()) {
        const apart = (way - ways[i]! + 16) % 16;
        expect(Math.min(apart, 16 - apart)).toBeGreaterThanOrEqual(4);
      }
    }
  });

  it("finds the one block that fits among hundreds of its class that do not", () => {
    const { allocator } = space(8 * MIB);
    const blocks = Array.from({ length: 500 }, (_, i) => [allocator.alloc(i === 400 ? 1088 : 1024), allocator.alloc(64)]);
    // All else, but for what beginning a page and the pages left out after it take.
    const rest = allocator.alloc(allocator.limit - allocator.reserved + allocator.freeBlocks().reduce((sum, { size }) => sum + size, 0) - (5 * 4096 - 64));
    for (const [at] of blocks) allocator.free(at);
    expect(allocator.alloc(1088)).toBe(blocks[400][0]);
    expect(rest).toBeGreaterThan(0);
  });

  it("says what was asked, what is in use and what can be had when exhausted, and goes on working", () => {
    const { allocator } = space(2 * MIB);
    const at = allocator.alloc(MIB);
    expect(() => allocator.alloc(MIB)).toThrow(/Memory exhausted: 1\.0 MiB asked for, 1\.0 MiB in use, 2\.0 MiB can be had\. Run each step in a scope\(\)/);
    allocator.free(at);
    expect(allocator.alloc(MIB + 1000)).toBe(START);
  });

  it("takes just what is needed when the system refuses the larger step", () => {
    let end = START;
    const allocator = new Allocator(START, START, 1024 * MIB, (to) => (to <= 2 * MIB ? (end = to) : end));
    expect(allocator.alloc(MIB)).toBe(START);
    expect(() => allocator.alloc(2 * MIB)).toThrow("Memory exhausted");
  });

  it("refuses to free twice, what it never gave out, and sizes that are none", () => {
    const { allocator } = space(8 * MIB);
    const at = allocator.alloc(100);
    expect(() => allocator.free(at + 64)).toThrow(/free: expected the address of a live buffer/);
    allocator.free(at);
    expect(() => allocator.free(at)).toThrow(/Was it freed twice\?/);
    for (const bytes of [-4, NaN, 1.5]) expect(() => allocator.alloc(bytes)).toThrow(/whole number of bytes/);
  });

  it("remembers the most that was in use", () => {
    const { allocator } = space(8 * MIB);
    allocator.free(allocator.alloc(MIB / 2));
    allocator.alloc(64);
    expect([allocator.used, allocator.peak]).toEqual([64, MIB / 2]);
  });
});
