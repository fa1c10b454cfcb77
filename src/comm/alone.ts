/** The transport of a program that is one rank: there is nobody to send to. */

import type { Group, Transport } from "./transport.js";

function nobody(): never {
  throw new Error("expected no messages in a program of one rank, got one");
}

export function aloneTransport(): Transport {
  const group = (): Group => ({ rank: 0, world: [0], calls: 0 });
  return {
    kind: "alone",
    whole: group(),
    numbers: 2 ** 24,
    send: nobody,
    receive: nobody,
    progress: () => false,
    idle: nobody,
    arrived: () => [],
    unasked: () => [],
    whereabouts: () => undefined,
    report: () => {},
    freshId: () => 0,
    split: group,
    free: () => {},
    fail: () => {},
    abort: () => {},
    close: () => {},
  };
}
