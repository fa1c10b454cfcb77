/** Ranks that end before their time, hang, or do not make the same call: all others end too, soon, and say which rank it was and why. */

import { describe, expect, test } from "vitest";
import { mpi, mpiruns, threads } from "./helpers.js";

/** What one of the others, or mpirun, has to say when rank 1 of three goes its own way. */
interface Way {
  way: string;
  says: RegExp;
  /** Seconds without movement after which the others give up; those of the test are enough otherwise. */
  timeout?: number;
}
const SECONDS = 10;

/** What is found out by what arrives, in threads and under MPI alike. */
const disagreements: Way[] = [
  { way: "other call", says: /expected rank \d to make the same call \((allReduce \(sum\) of float32|barrier), call 1 of this communicator\), got (allReduce \(sum\) of float32|barrier)\. All ranks/ },
  { way: "other type", says: /expected rank \d to make the same call \(allReduce \(sum\) of (float32|int32), call 1 of this communicator\), got allReduce \(sum\) of (float32|int32)\./ },
  { way: "other op", says: /got allReduce \(max\) of float32\.|got allReduce \(sum\) of float32\./ },
  { way: "more elements", says: /allReduce: expected [57] elements of float32 from rank \d \(call 1\), got (5|7|more)\. Counts and lengths have to agree/ },
  { way: "fewer elements", says: /allReduce: expected [35] elements of float32 from rank \d \(call 1\), got (3|5|more)\. Counts and lengths have to agree/ },
  { way: "far more elements", says: /expected rank \d to make the same call \(allReduce \(sum(, long)?\) of float32, call 1 of this communicator\), got allReduce \(sum(, long)?\) of float32\./ },
  { way: "other counts", says: /allToAll: expected 1 elements of float32 from rank 1 \(call 1\), got (2|more)\./ },
  { way: "other root", says: /barrier: expected that all that was sent was asked for, got broadcast of float32 \(call 1\) from rank \d, which this rank did not expect\. Do all ranks give the same root\?/ },
  { way: "no such root", says: /broadcast: expected root to be a rank from 0 to 2, got 7\./ },
];

describe("in threads", () => {
  const ways: Way[] = [
    ...disagreements,
    { way: "throw", says: /(allReduce|barrier): expected rank 1 of 3 to take part, got its end: TypeError: out of ideas/ },
    { way: "reject later", says: /(allReduce|barrier): expected rank 1 of 3 to take part, got its end: Error: nobody listens/ },
    { way: "exit 0", says: /allReduce: expected rank 1 to take part \(allReduce \(sum\) of float32, call 1\), got its end: it ended by itself \(exit code 0\)\./ },
    { way: "return", says: /allReduce: expected rank 1 to take part \(allReduce \(sum\) of float32, call 1\), got its end: it ended by itself \(exit code 0\)\./ },
    { way: "exit 3", says: /(allReduce|barrier): expected rank 1 of 3 to take part, got its end: it ended by itself \(exit code 3\)/ },
    { way: "abort", says: /(allReduce|barrier): expected rank 1 of 3 to take part, got its end: enough is enough/ },
    { way: "hang", timeout: 1, says: /allReduce: expected rank 1 to take part within 1 s, got nothing \(allReduce \(sum\) of float32, call 1\)\. Rank 1 is in no call of a communicator\. It hangs, .*SPARSEGATE_COMM_TIMEOUT/ },
  ];
  test.each(ways)("$way: the others end, and say so", async ({ way, timeout = 30, says }) => {
    const { results, text, ms } = await threads(3, "ends", { way }, { timeout });
    expect(text).toMatch(says);
    expect(text).toMatch(/CommError: runRanks: expected 3 ranks to come to their end, got a failure of rank \d: /);
    // Each rank that was ended has said so itself.
    // In the call that each is in: a rank may not have left the barrier before.
    if (way === "throw") for (const rank of [0, 2]) expect(text).toMatch(new RegExp(`rank ${rank} of 3: (allReduce|barrier): expected rank 1 of 3 to take part, got its end: TypeError: out of ideas`));
    expect(results).toBeUndefined();
    expect(ms).toBeLessThan(1000 * SECONDS);
  });

  test("be terminated: the others end, and say so", async () => {
    const { text, ms } = await threads(3, "ends", { way: "be terminated" }, { timeout: 30, onStart: (workers) => void setTimeout(() => void workers[1]!.terminate(), 500) });
    expect(text).toMatch(/(allReduce|barrier): expected rank 1 of 3 to take part, got its end: its thread was terminated from outside/);
    expect(text).toContain("got a failure of rank 1: its thread was terminated from outside");
    expect(ms).toBeLessThan(1000 * SECONDS);
  });

  test("a rank that has caught its error gets it again in every call", async () => {
    const { text } = await threads(2, "ends", { way: "caught, and on" }, { timeout: 30 });
    expect(text).toMatch(/barrier: expected ranks that work together, got an earlier failure \(allReduce: expected /);
  });
});

describe.each(mpiruns)("under $name", (mpirun) => {
  const open = mpirun.name === "Open MPI";
  const ended = "sparsegate: rank \\d of 3 has ended before its time, and so all ranks end \\(exit code \\d\\): ";
  const ways: Way[] = [
    ...disagreements.filter(({ way }) => ["other type", "more elements", "fewer elements", "other counts", "other root"].includes(way)).map(({ way, says }) => ({ way, says: new RegExp(`${ended}.*(${says.source})`) })),
    { way: "throw", says: new RegExp(`${ended.replace("\\d", "1")}TypeError: out of ideas\\n.*at `) },
    { way: "exit 0", says: /allReduce: expected rank 1 to take part \(allReduce \(sum\) of float32, call 1\), got its end: its program has come to its end\./ },
    { way: "exit 3", says: /sparsegate: rank 1 of 3 has ended before its time, and so all ranks end \(exit code 3\)/ },
    { way: "abort", says: /sparsegate: rank 1 of 3 ends all ranks: enough is enough/ },
    // Nobody is left to say anything but mpirun, which ends the others.
    { way: "kill", says: open ? /mpirun noticed that process rank 1 .*exited on signal 9 \(Killed\)/ : /BAD TERMINATION[^]*EXIT CODE: 9[^]*Killed \(signal 9\)/ },
    { way: "stop", timeout: 1, says: /allReduce: expected rank 1 to take part within 1 s, got nothing \(allReduce \(sum\) of float32, call 1\)\. It hangs, its host cannot be reached/ },
  ];
  test.each(ways)("$way: all end, and one says why", async ({ way, timeout = 30, says }) => {
    const { results, text, ms, code, left } = await mpi(mpirun, 3, "ends", { way }, { options: { timeout }, seconds: 20 });
    expect(text).toMatch(says);
    expect(code).not.toBe(0);
    expect(left).toEqual([]);
    expect(results).toBeUndefined();
    expect(ms).toBeLessThan(1000 * SECONDS);
  });
});
