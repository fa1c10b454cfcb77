/** A rank that ends before its time, in one of several ways, while the others wait for it. */

import { setTimeout as later } from "node:timers/promises";
import { sleep } from "./data.mjs";

/** What rank 1 does after a first barrier; the others reduce a vector of five float32. */
const ways = {
  throw: () => {
    throw new TypeError("out of ideas");
  },
  "reject later": () => {
    void Promise.reject(new Error("nobody listens"));
    return later(30_000);
  },
  "exit 0": () => process.exit(0),
  "exit 3": () => process.exit(3),
  return: () => undefined,
  abort: (comm) => comm.abort("enough is enough"),
  kill: () => process.kill(process.pid, "SIGKILL"),
  stop: () => process.kill(process.pid, "SIGSTOP"),
  hang: () => sleep(60_000),
  "be terminated": () => sleep(60_000),
  "other call": (comm) => comm.barrier(),
  "other type": (comm) => comm.allReduce(new Int32Array(5)),
  "other op": (comm) => comm.allReduce(new Float32Array(5), "max"),
  "more elements": (comm) => comm.allReduce(new Float32Array(7)),
  "fewer elements": (comm) => comm.allReduce(new Float32Array(3)),
  "far more elements": (comm) => comm.allReduce(new Float32Array(10_000)),
  "no such root": (comm) => comm.broadcast(new Float32Array(5), 7),
  "caught, and on": (comm) => {
    try {
      comm.allReduce(new Float32Array(7));
    } catch {
      comm.barrier();
    }
  },
};

export default async function main(comm, { way }) {
  comm.barrier();
  if (way === "other root") {
    comm.broadcast(new Float32Array(5), comm.rank === 1 ? 1 : 0);
    comm.barrier();
    return;
  }
  if (way === "other counts") {
    // Rank 1 has two elements for everyone, who expect one.
    const counts = new Array(comm.size).fill(comm.rank === 1 ? 2 : 1);
    const into = counts.map((count, r) => (r === comm.rank ? count : 1));
    comm.allToAll(new Float32Array(20), counts, new Float32Array(20), into);
    return;
  }
  if (comm.rank === 1) {
    await ways[way](comm);
    if (way !== "caught, and on") return;
  }
  for (let i = 0; i < 3; i++) comm.allReduce(new Float32Array(5));
  // Out of calls and busy for itself: it has to be ended from outside.
  if (way === "abort") sleep(60_000);
}
