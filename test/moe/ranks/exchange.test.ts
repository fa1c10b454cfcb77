/** No row is lost on its way to its expert or doubled, whatever the load. */

import { expect, test } from "vitest";
import { runRanks } from "#sparsegate/comm/index.js";
import { placeExperts } from "#sparsegate/moe/exchange.js";

type Told = { sent: number[]; received: number[] }[];

test.each([2, 3, 4])("150 random loads on %i ranks: all rows for one rank, and ranks without any, among them", async (size) => {
  const told = await runRanks<Told>(size, new URL("programs/exchange.mjs", import.meta.url), undefined, { timeout: 30 });
  const sorted = (rows: number[]): number[] => rows.sort((a, b) => a - b);
  let [most, none] = [0, 0];
  for (const i of told[0]!.keys()) {
    const sent = sorted(told.flatMap((rank) => rank[i]!.sent));
    const received = sorted(told.flatMap((rank) => rank[i]!.received));
    expect(new Set(sent).size).toBe(sent.length);
    expect(received).toEqual(sent);
    if (told.filter((rank) => rank[i]!.received.length > 0).length === 1) most++;
    if (told.some((rank) => rank[i]!.sent.length === 0)) none++;
  }
  expect(told[0]).toHaveLength(150);
  expect(Math.min(most, none)).toBeGreaterThan(10);
});

test("experts are dealt out in order, as evenly as can be, and units stay together", () => {
  expect(placeExperts(5, 2)).toEqual([0, 2, 5]);
  expect(placeExperts(2, 4)).toEqual([0, 0, 1, 1, 2]);
  expect(placeExperts(12, 2, 4)).toEqual([0, 4, 12]);
  for (const [experts, ranks] of [[256, 7], [13, 4], [3, 8]] as const) {
    const bounds = placeExperts(experts, ranks);
    const counts = bounds.slice(1).map((to, r) => to - bounds[r]!);
    expect([bounds[0], bounds.at(-1)]).toEqual([0, experts]);
    expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
  }
});
