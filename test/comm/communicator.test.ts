/** One suite for every kind of communicator: alone, threads and MPI; the checks themselves are in programs/suite.mjs, and run in the ranks. */

import { beforeAll, describe, expect, test } from "vitest";
import { communicator } from "#sparsegate/comm/index.js";
import { mpi, mpiruns, threads, type Ended } from "./helpers.js";
import suite, { checks } from "./programs/suite.mjs";

type Outcomes = Record<string, { ok: boolean; error?: string; value?: unknown }> & { kind: string; size: number; rank: number };

const LOST_NO_ROW = "allToAll of random routings loses and doubles no row, also when all go to one rank";
const SAME_BITS = "allReduce gives the same bits on every rank, at every length, again and again";
/** Two segments of a long all-reduce, the second of them odd. */
const MOST = 2 ** 22 + 1001;

interface Situation {
  name: string;
  kind: string;
  size: number;
  run: () => Promise<Ended>;
}
const SMALL_PIECES = 64;
const inThreads = (size: number, data: object = {}): Situation => ({ name: `${size} threads`, kind: "threads", size, run: () => threads(size, "suite", data, { timeout: 30 }) });
const situations: Situation[] = [
  {
    name: "alone", kind: "alone", size: 1,
    run: async () => ({ results: [suite(await communicator(), {})], text: "", ms: 0 }),
  },
  ...[1, 3, 7].map((size) => inThreads(size)),
  ...[2, 4].map((size) => inThreads(size, { most: MOST })),
  { name: `3 threads, pieces of ${SMALL_PIECES} bytes`, kind: "threads", size: 3, run: () => threads(3, "suite", {}, { timeout: 30, pieceBytes: SMALL_PIECES }) },
  ...mpiruns.flatMap((mpirun): Situation[] => [
    ...[2, 4].map((size) => ({ name: `${size} ranks of ${mpirun.name}`, kind: "mpi", size, run: () => mpi(mpirun, size, "suite", { most: MOST }, { options: { timeout: 30 } }) })),
    // Over TCP, as between hosts.
    {
      name: `2 ranks of ${mpirun.name}, pieces of ${SMALL_PIECES} bytes`, kind: "mpi", size: 2,
      run: () => mpi(mpirun, 2, "suite", {}, { options: { timeout: 30, pieceBytes: SMALL_PIECES }, env: { OMPI_MCA_btl: "tcp,self", UCX_TLS: "tcp,self" } }),
    },
  ]),
];

/** Digests of the same sums, by number of ranks, then by situation. */
const digests = new Map<number, Map<string, string>>();

describe.each(situations)("$name", ({ name, kind, size, run }) => {
  let ended: Ended;
  const outcomes = (): Outcomes[] => ended.results as Outcomes[];
  beforeAll(async () => {
    ended = await run();
  }, 120_000);

  test("all ranks come to their end, as ranks of this kind", () => {
    expect(ended.results, ended.text).toBeDefined();
    expect(outcomes().map(({ kind, size, rank }) => [kind, size, rank])).toEqual(Array.from({ length: size }, (_, rank) => [kind, size, rank]));
  });

  test.each(Object.keys(checks))("%s", (name) => {
    // Where a rank failed, its words are here; checks after that one were not run.
    expect(ended.results, ended.text).toBeDefined();
    for (const outcome of outcomes()) expect(outcome[name]).toMatchObject({ ok: true });
  });

  test("what all ranks sent is what all received, taken together", () => {
    const rows = outcomes().map((outcome) => outcome[LOST_NO_ROW]!.value as { sent: number[]; received: number[] });
    const [sent, received] = (["sent", "received"] as const).map((key) => rows.flatMap((row) => row[key]).sort((a, b) => a - b));
    expect(sent!.length).toBeGreaterThan(300);
    expect(new Set(sent).size).toBe(sent!.length);
    expect(received).toEqual(sent);
  });

  test("sums have the same bits on all ranks", () => {
    const found = outcomes().map((outcome) => outcome[SAME_BITS]!.value as { some: string; most: string });
    for (const digest of found) expect(digest).toEqual(found[0]);
    digests.set(size, (digests.get(size) ?? new Map<string, string>()).set(name, found[0]!.some));
  });
});

test.each([2, 3, 4])("sums over %i ranks have the same bits in threads, under every MPI, and in pieces of any size", (size) => {
  const found = Object.fromEntries(digests.get(size) ?? []);
  expect(Object.keys(found)).toEqual(situations.filter((situation) => situation.size === size).map(({ name }) => name));
  expect(new Set(Object.values(found)).size, JSON.stringify(found)).toBe(1);
});
