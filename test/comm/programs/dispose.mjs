/** A rank that disposes of the communicator of all ranks, then of a part of it, and has much to do yet. */

import { setTimeout as later } from "node:timers/promises";
import { refused } from "./data.mjs";

export default async function main(comm, { ms }) {
  const part = comm.split(0);
  comm.dispose();
  refused(() => part.barrier(), "the communicator of all ranks was disposed of");
  part.dispose();
  await later(ms);
  return "has come to its end";
}
