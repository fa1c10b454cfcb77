/**
 * What a communicator has to do, checked by each rank for itself, in step with the others: data are made from seeds, so that every rank knows what all have,
 * and expects what a plain computation gives. Run as a rank's program; returns for each check "ok", or what was wrong.
 */

import { createHash } from "node:crypto";
import fc from "fast-check";
import { ARRAYS, random, refused, same, shared, sleep, starts, values } from "./data.mjs";

const types = Object.keys(ARRAYS);
const type = fc.constantFrom(...types);
const seed = fc.nat(1e6);

/** Runs a property on all ranks with the same cases. Without shrinking: a rank that fails leaves the others, which end by it. */
const property = (runs, ...rest) => fc.assert(fc.property(...rest), { seed: 20170123, numRuns: runs, endOnFailure: true });

/** How many rows each rank has for each: anything, mostly nothing, all for one rank, or none at all from some. */
const loads = (size) => {
  const matrix = (count) => fc.array(fc.array(count, { minLength: size, maxLength: size }), { minLength: size, maxLength: size });
  return fc.oneof(
    matrix(fc.nat(40)),
    matrix(fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, fc.nat(9))),
    fc.tuple(matrix(fc.nat(40)), fc.nat(size - 1)).map(([rows, one]) => rows.map((row) => row.map((count, to) => (to === one ? count : 0)))),
    fc.tuple(matrix(fc.nat(40)), fc.nat(size - 1)).map(([rows, empty]) => rows.map((row, from) => (from === empty ? row.map(() => 0) : row))),
  );
};
const perRank = (size, arbitrary) => fc.array(arbitrary, { minLength: size, maxLength: size });
/** Around the limits between short and long all-reduces (16 KiB), and little. */
const lengths = fc.oneof(fc.nat(70), fc.constantFrom(0, 1, 2047, 2048, 2049, 4096, 4097, 5003, 20_011));

/** The sum, largest or smallest of the ranks' values, in plain arithmetic: float64, in rank order, rounded once. */
function reduced(op, type, parts) {
  const out = new ARRAYS[type](parts[0].length);
  for (let i = 0; i < out.length; i++) {
    const column = parts.map((part) => part[i]);
    out[i] = op === "sum" ? column.reduce((a, b) => a + b) : Math[op](...column);
  }
  return out;
}

/** A value that tells where a row comes from, where it goes to, and which one it is; exact in float32. */
const label = (from, to, i) => (from * 8 + to) * 4096 + i;

export const checks = {
  "allToAll brings each rank what the others have for it, and nothing else"(comm) {
    const { rank, size } = comm;
    property(40, loads(size), type, fc.boolean(), (rows, type, slack) => {
      const out = rows[rank];
      const into = rows.map((row) => row[rank]);
      const send = shared(type, out.flatMap((count, to) => Array.from({ length: count }, (_, i) => label(rank, to, i))), slack ? 5 : 0);
      const receive = shared(type, new Array(starts(into).at(-1)).fill(-1), slack ? 9 : 0);
      comm.allToAll(send, out, receive, Int32Array.from(into));
      const expected = into.flatMap((count, from) => Array.from({ length: count }, (_, i) => label(from, rank, i)));
      same("what came", receive, [...expected, ...new Array(slack ? 9 : 0).fill(-7)]);
    });
  },

  "allToAll of random routings loses and doubles no row, also when all go to one rank"(comm) {
    const { rank, size } = comm;
    const received = [];
    const width = 3;
    // Rows with their own number, sent and sent back, as tokens to experts.
    for (let round = 0; round < 12; round++) {
      const next = random(100 * round + rank);
      const count = round % 4 === 3 && rank === 0 ? 0 : Math.floor(60 * next());
      const to = Array.from({ length: count }, () => (round % 3 === 0 ? round % size : Math.floor(size * next()))).sort((a, b) => a - b);
      const out = Array.from({ length: size }, (_, other) => to.filter((peer) => peer === other).length);
      const into = new Int32Array(size);
      comm.allToAll(Int32Array.from(out), new Array(size).fill(1), into, new Array(size).fill(1));
      const send = Float32Array.from({ length: width * count }, (_, i) => 100_000 * round + 10_000 * rank + i);
      const receive = new Float32Array(width * into.reduce((a, b) => a + b, 0));
      const wide = (counts) => Array.from(counts, (rows) => rows * width);
      comm.allToAll(send, wide(out), receive, wide(into));
      received.push(...receive);
      const back = new Float32Array(send.length);
      comm.allToAll(receive, wide(into), back, wide(out));
      same("rows that came back", back, send);
    }
    const sent = [];
    for (let round = 0; round < 12; round++) {
      const next = random(100 * round + rank);
      const count = round % 4 === 3 && rank === 0 ? 0 : Math.floor(60 * next());
      for (let i = 0; i < width * count; i++) sent.push(100_000 * round + 10_000 * rank + i);
    }
    return { sent, received };
  },

  "allReduce is the sum in float64 in rank order, rounded once, the largest or the smallest"(comm) {
    const { rank, size } = comm;
    property(size > 4 ? 15 : 40, lengths, type, fc.constantFrom("sum", "max", "min"), seed, (length, type, op, seed) => {
      const parts = Array.from({ length: size }, (_, r) => values(type, length, seed + r));
      const data = shared(type, parts[rank]);
      comm.allReduce(data, op);
      same(`${op} of ${length} ${type}`, data, reduced(op, type, parts));
    });
  },

  "allReduce passes NaN and infinities on, and keeps zeros' signs"(comm) {
    const { rank, size } = comm;
    const special = [NaN, Infinity, -Infinity, 0, -0, 1, 3.4e38, -1];
    for (const op of ["sum", "max", "min"]) {
      for (const length of [special.length ** 2, 6000]) {
        const parts = Array.from({ length: size }, (_, r) => Float32Array.from({ length }, (_, i) => special[Math.floor(i / 8 ** (r % 2)) % 8]));
        const data = parts[rank].slice();
        comm.allReduce(data, op);
        same(op, data, reduced(op, "float32", parts));
      }
    }
    // Of NaNs with other bits than JavaScript's, one on each rank, no rank's is passed on.
    const data = Float32Array.of(0);
    const bits = new Uint32Array(data.buffer);
    bits[0] = 0x7fc00001 + rank;
    comm.allReduce(data);
    if (size > 1) same("bits of a sum of NaNs", bits, [0x7fc00000]);
  },

  "allReduce gives the same bits on every rank, at every length, again and again"(comm, { most }) {
    const digest = (lengths) => {
      const hash = createHash("sha256");
      for (const length of lengths) {
        const first = values("float32", length, comm.rank + 1);
        const again = first.slice();
        comm.allReduce(first);
        comm.allReduce(again);
        const [one, two] = [first, again].map((array) => createHash("sha256").update(new Uint8Array(array.buffer)).digest("hex"));
        if (one !== two) throw new Error(`expected the same sum of ${length} elements again, got another`);
        hash.update(one);
      }
      return hash.digest("hex");
    };
    return { some: digest([3, 4096, 4097, 100_003]), most: digest([most]) };
  },

  "started reductions end in whatever order each rank waits for them, with other calls in between"(comm) {
    const { rank, size } = comm;
    property(size > 4 ? 6 : 15, fc.array(fc.tuple(lengths, type, fc.constantFrom("sum", "max", "min"), seed), { minLength: 1, maxLength: 7 }), fc.nat(2), (jobs, between) => {
      const open = jobs.map(([length, type, op, seed]) => {
        const parts = Array.from({ length: size }, (_, r) => values(type, length, seed + r));
        const data = shared(type, parts[rank]);
        return { data, expected: reduced(op, type, parts), pending: comm.allReduceStart(data, op) };
      });
      if (between === 1) comm.barrier();
      if (between === 2) {
        const sum = Float32Array.of(rank);
        comm.allReduce(sum);
        same("a call in between", sum, [(size * (size - 1)) / 2]);
      }
      const next = random(rank + jobs.length);
      for (const { data, expected, pending } of open.sort(() => next() - 0.5)) {
        pending.wait();
        pending.wait();
        if (!pending.done) throw new Error("expected a pending that was waited for to be done");
        same("a started reduction", data, expected);
      }
    });
    // One rank waits before another has come to its barrier, and the other way round.
    const data = Float32Array.of(1);
    const pending = comm.allReduceStart(data);
    if (rank % 2 === 0) pending.wait();
    comm.barrier();
    pending.wait();
    same("across a barrier", data, [size]);
  },

  "broadcast gives everyone the root's data, from every root"(comm) {
    const { rank, size } = comm;
    property(25, fc.nat(size - 1), lengths, type, seed, (root, length, type, seed) => {
      const data = shared(type, values(type, length, rank === root ? seed : rank));
      comm.broadcast(data, root);
      same(`from ${root}`, data, values(type, length, seed));
    });
  },

  "allGather puts uneven parts together in rank order, in place too"(comm) {
    const { rank, size } = comm;
    property(25, perRank(size, fc.nat(50)), type, seed, fc.boolean(), (counts, type, seed, inPlace) => {
      const parts = counts.map((count, r) => values(type, count, seed + r));
      const receive = shared(type, new Array(starts(counts).at(-1)).fill(0), 2);
      const own = receive.subarray(starts(counts)[rank], starts(counts)[rank + 1]);
      own.set(inPlace ? parts[rank] : []);
      comm.allGather(inPlace ? own : parts[rank], receive, counts);
      same("all parts", receive, [...parts.flatMap((part) => [...part]), -7, -7]);
    });
    const receive = new Int32Array(2 * size);
    comm.allGather(Int32Array.of(rank, -rank), receive);
    same("even parts", receive, Array.from({ length: size }, (_, r) => [r, 0 - r]).flat());
  },

  "gather and scatter move uneven parts to and from every root"(comm) {
    const { rank, size } = comm;
    property(25, perRank(size, fc.nat(50)), fc.nat(size - 1), type, seed, (counts, root, type, seed) => {
      const parts = counts.map((count, r) => values(type, count, seed + r));
      const all = parts.flatMap((part) => [...part]);
      const receive = rank === root ? shared(type, new Array(all.length).fill(0), 1) : undefined;
      comm.gather(parts[rank], receive, root, rank === root ? counts : undefined);
      if (receive) same("gathered", receive, [...all, -7]);
      const back = shared(type, new Array(counts[rank]).fill(0));
      comm.scatter(rank === root ? shared(type, all) : undefined, back, root, rank === root ? counts : undefined);
      same("scattered", back, parts[rank]);
    });
    const receive = rank === 0 ? new Int32Array(size) : undefined;
    comm.gather(Int32Array.of(rank + 5), receive, 0);
    if (receive) same("even parts", receive, Array.from({ length: size }, (_, r) => r + 5));
    const one = new Int32Array(1);
    comm.scatter(receive, one, 0);
    same("even parts back", one, [rank + 5]);
  },

  "sendTo and receiveFrom pair by tag, in order within one, and pass by other calls"(comm) {
    const { rank, size } = comm;
    if (size === 1) return;
    const [next, before] = [(rank + 1) % size, (rank + size - 1) % size];
    for (const [tag, value] of [[7, 70], [3, 30], [7, 71], [8191, 1]]) comm.sendTo(Int32Array.of(value, rank), next, tag);
    comm.sendTo(new Float64Array(0), next);
    comm.barrier();
    const got = new Int32Array(2);
    for (const [tag, value] of [[8191, 1], [7, 70], [7, 71], [3, 30]]) {
      comm.receiveFrom(got, before, tag);
      same(`tag ${tag}`, got, [value, before]);
    }
    comm.receiveFrom(new Float64Array(0), before);
    // Long ones, which wait for their receiver, from rank to rank.
    const long = values("float32", 300_000, 1);
    if (rank > 0) comm.receiveFrom(long.fill(0), before, 1);
    same("a long one", long.subarray(0, 50_000), values("float32", 300_000, 1).subarray(0, 50_000));
    if (rank < size - 1) comm.sendTo(long, next, 1);
  },

  "sendTo returns at once from any number of short messages, though the other waits for one that is sent after them"(comm) {
    const { rank, size } = comm;
    if (size === 1) return;
    const [next, before] = [(rank + 1) % size, (rank + size - 1) % size];
    // Up to 2 KiB.
    const lengths = Array.from({ length: 4200 }, (_, i) => (i % 100 === 0 ? 512 : 1));
    for (const [i, length] of lengths.entries()) comm.sendTo(new Int32Array(length).fill(i), next, 5);
    comm.sendTo(Int32Array.of(rank), next, 6);
    const got = new Int32Array(1);
    comm.receiveFrom(got, before, 6);
    same("the last one", got, [before]);
    for (const [i, length] of lengths.entries()) {
      const data = new Int32Array(length);
      comm.receiveFrom(data, before, 5);
      same(`message ${i}`, data, new Int32Array(length).fill(i));
    }
  },

  "barrier lets nobody go before all have come"(comm) {
    const { rank, size } = comm;
    const clock = () => performance.timeOrigin + performance.now();
    for (let round = 0; round < 3; round++) {
      sleep(10 * ((rank + round) % size));
      const times = new Float64Array(2 * size);
      const came = clock();
      comm.barrier();
      comm.allGather(Float64Array.of(came, clock()), times);
      const last = Math.max(...times.filter((_, i) => i % 2 === 0));
      // Clocks of processes agree to a fraction of a millisecond.
      times.forEach((left, i) => {
        if (i % 2 === 1 && left < last - 1) throw new Error(`rank ${(i - 1) / 2} left ${last - left} ms before the last came`);
      });
    }
  },

  "split makes groups by color, ordered by key, that work by themselves and split again"(comm) {
    const { rank, size } = comm;
    property(size > 4 ? 4 : 8, perRank(size, fc.nat(2)), perRank(size, fc.integer({ min: -2, max: 2 })), perRank(size, fc.nat(1)), seed, (colors, keys, inner, seed) => {
      const members = colors.map((color, r) => [color, keys[r], r]).filter(([color]) => color === colors[rank]).sort((a, b) => a[1] - b[1] || a[2] - b[2]).map(([, , r]) => r);
      const sub = comm.split(colors[rank], keys[rank]);
      same("place and size", [sub.rank, sub.size], [members.indexOf(rank), members.length]);
      const all = new Int32Array(sub.size);
      sub.allGather(Int32Array.of(rank), all);
      same("members", all, members);
      // Both at once: what is open in one must not meet what is open in the other.
      const [data, whole] = [values("float32", 5000, seed + rank), values("float32", 5000, seed + 50 + rank)];
      const pendings = [sub.allReduceStart(data), comm.allReduceStart(whole)];
      for (const pending of rank % 2 === 0 ? pendings : pendings.reverse()) pending.wait();
      same("in the group", data, reduced("sum", "float32", members.map((r) => values("float32", 5000, seed + r))));
      same("in the whole", whole, reduced("sum", "float32", Array.from({ length: size }, (_, r) => values("float32", 5000, seed + 50 + r))));
      const nested = sub.split(inner[rank]);
      const deepest = Int32Array.of(1);
      nested.allReduce(deepest);
      same("nested", deepest, [members.filter((r) => inner[r] === inner[rank]).length]);
      same("kinds", [sub.kind === comm.kind, nested.kind === comm.kind], [true, true]);
      nested.dispose();
      sub.dispose();
      refused(() => sub.barrier(), "barrier: expected a communicator in use, got one that was disposed of.");
    });
  },

  "traffic counts payload to and from others, and calls"(comm) {
    const { rank, size } = comm;
    const others = size - 1;
    const sub = comm.split(0);
    same("before", [sub.traffic.bytesSent, sub.traffic.bytesReceived, Object.keys(sub.traffic.calls).length], [0, 0, 0]);
    const step = (what, sent, received, call) => {
      const before = { ...sub.traffic };
      call();
      same(what, [sub.traffic.bytesSent - before.bytesSent, sub.traffic.bytesReceived - before.bytesReceived], [sent, received]);
    };
    step("barrier", 0, 0, () => sub.barrier());
    // Rank r sends r + 1 floats to everyone.
    const counts = Array.from({ length: size }, (_, r) => r + 1);
    const [sum, own] = [(size * (size + 1)) / 2, rank + 1];
    step("allToAll", 4 * own * others, 4 * (sum - own), () => sub.allToAll(new Float32Array(size * own), new Array(size).fill(own), new Float32Array(sum), counts));
    step("allGather", 8 * own * others, 8 * (sum - own), () => sub.allGather(new Float64Array(own), new Float64Array(sum), counts));
    step("gather", rank === 0 ? 0 : 4 * own, rank === 0 ? 4 * (sum - 1) : 0, () => sub.gather(new Int32Array(own), rank === 0 ? new Int32Array(sum) : undefined, 0, counts));
    step("scatter", rank === 0 ? 4 * (sum - 1) : 0, rank === 0 ? 0 : 4 * own, () => sub.scatter(rank === 0 ? new Int32Array(sum) : undefined, new Int32Array(own), 0, counts));
    // 100 floats whole to everyone; of size x 1600, one part of 1600 to each, and the sum of the own one.
    step("short allReduce", 400 * others, 400 * others, () => sub.allReduce(new Float32Array(100)));
    if (size > 2) step("long allReduce", 2 * 6400 * others, 2 * 6400 * others, () => sub.allReduce(new Float32Array(size * 1600)));
    if (size === 4) step("broadcast", [800, 0, 400, 0][rank], [0, 400, 400, 400][rank], () => sub.broadcast(new Float32Array(100), 0));
    if (size === 2) step("broadcast", [400, 0][rank], [0, 400][rank], () => sub.broadcast(new Float32Array(100), 0));
    const calls = { barrier: 1, allToAll: 1, allGather: 1, gather: 1, scatter: 1, allReduce: size > 2 ? 2 : 1, ...([2, 4].includes(size) && { broadcast: 1 }) };
    same("calls", Object.entries(sub.traffic.calls).flat(), Object.entries(calls).flat());
    sub.dispose();
  },

  "wrong arguments are refused by name before anything is sent"(comm) {
    const { rank, size } = comm;
    const ones = new Array(size).fill(1);
    const [f, i] = [new Float32Array(size), new Int32Array(size)];
    refused(() => comm.broadcast(f, size), `broadcast: expected root to be a rank from 0 to ${size - 1}, got ${size}.`);
    refused(() => comm.gather(f, f, -1), "gather: expected root to be a rank from 0");
    refused(() => comm.scatter(f, f, 0.5), "scatter: expected root to be a rank from 0");
    refused(() => comm.broadcast([1, 2], 0), "broadcast: expected data to be a Float32Array, Int32Array or Float64Array, got object.");
    refused(() => comm.allReduce(new Uint8Array(2)), "allReduce: expected data to be a Float32Array, Int32Array or Float64Array, got Uint8Array.");
    refused(() => comm.allReduce(f, "mean"), 'allReduce: expected op to be one of sum, max, min, got "mean".');
    refused(() => comm.allReduceStart(null), "allReduceStart: expected data to be a Float32Array, Int32Array or Float64Array, got null.");
    refused(() => comm.allToAll(f, ones, i, ones), "allToAll: expected send and receive to be of one type, got");
    refused(() => comm.allToAll(f, [...ones, 1], f.slice(), ones), `allToAll: expected sendCounts to have a count for each of ${size} ranks, got ${size + 1}.`);
    refused(() => comm.allToAll(f, ones.with(0, -1), f.slice(), ones), "allToAll: expected sendCounts[0] to be a whole number, got -1.");
    refused(() => comm.allToAll(f, ones.with(0, 0.5), f.slice(), ones), "allToAll: expected sendCounts[0] to be a whole number, got 0.5.");
    refused(() => comm.allToAll(f, undefined, f.slice(), ones), "allToAll: expected sendCounts to have a count for each of");
    refused(() => comm.allToAll(f, ones, new Float32Array(size - 1), ones), `allToAll: expected receive to have at least ${size} elements (the sum of receiveCounts), got ${size - 1}.`);
    refused(() => comm.allToAll(f, ones.with(rank, 0), f.slice(), ones), `allToAll: expected receiveCounts[${rank}] (what this rank sends to itself) to be 0, got 1.`);
    refused(() => comm.allToAll(f, ones, f, ones), "allToAll: expected send and receive to lie apart");
    refused(() => comm.allGather(f, new Float32Array(size * size - 1)), `allGather: expected receive to have at least ${size * size} elements`);
    refused(() => comm.allGather(f, new Float32Array(9 * size), new Array(size).fill(size + 1)), `allGather: expected the length of send (counts[${rank}]) to be ${size + 1}, got ${size}.`);
    refused(() => comm.allGather(f.subarray(0, 1), f.fill(0).subarray(0, size), new Array(size).fill(1).map((_, r) => (r === rank ? 2 : 0))), "allGather: expected ");
    refused(() => comm.split(-1), "split: expected color to be an integer from 0 to 2147483647, got -1.");
    refused(() => comm.split(0, 2 ** 31), "split: expected key to be a 32-bit integer, got 2147483648.");
    refused(() => comm.sendTo(f, rank), `sendTo: expected to to be another rank, got "${rank}, this one".`);
    if (size > 1) {
      const other = (rank + 1) % size;
      refused(() => comm.sendTo(f, other, 8192), "sendTo: expected tag to be an integer from 0 to 8191, got 8192.");
      refused(() => comm.receiveFrom(f, other, -1), "receiveFrom: expected tag to be an integer from 0 to 8191, got -1.");
      refused(() => comm.receiveFrom(f, size), `receiveFrom: expected from to be a rank from 0 to ${size - 1}, got ${size}.`);
    }
    // Nothing was sent: all ranks still work together.
    const sum = Float32Array.of(1);
    comm.allReduce(sum);
    same("afterwards", sum, [size]);
  },

  "arrays may lie in a WebAssembly memory that grows between calls"(comm) {
    const { rank, size } = comm;
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 64, shared: true });
    for (let round = 0; round < 3; round++) {
      const data = new Float32Array(memory.buffer, 65536 * (1 + 2 * round) - 40_004, 10_001).fill(rank + round);
      comm.allReduce(data);
      same("in the memory", data.subarray(0, 3), new Array(3).fill((size * (size - 1)) / 2 + round * size));
      same("at its end", data.subarray(-1), data.subarray(0, 1));
      memory.grow(2);
    }
  },

  "a rank that only sends does not run away from one that receives, and more calls than there are numbers stay apart"(comm) {
    const { rank, size } = comm;
    const counts = Array.from({ length: size }, (_, r) => (r === 0 ? 0 : 1));
    comm.barrier();
    const begun = performance.now();
    if (rank === 0) sleep(400);
    for (let i = 0; i < 8200; i++) {
      const receive = rank === 0 ? new Int32Array(size - 1) : undefined;
      comm.gather(Int32Array.from({ length: counts[rank] }, () => 10 * i + rank), receive, 0, counts);
      if (receive) same(`call ${i}`, receive, Array.from({ length: size - 1 }, (_, r) => 10 * i + r + 1));
    }
    const ms = performance.now() - begun;
    if (ms < 300) throw new Error(`expected every rank to take 400 ms at least, as rank 0 does, got ${ms}`);
  },
};

/** @returns outcomes by name: "ok" with what the check returned, or the error; after an error the ranks are out of step, and the rest is not run */
export default function main(comm, { most = 10_007 } = {}) {
  const outcomes = { kind: comm.kind, size: comm.size, rank: comm.rank };
  for (const [name, check] of Object.entries(checks)) {
    try {
      outcomes[name] = { ok: true, value: check(comm, { most }) };
    } catch (error) {
      outcomes[name] = { ok: false, error: `rank ${comm.rank}: ${error.stack ?? error}` };
      // Those that are in step see an error too, rather than wait for long.
      if (comm.size > 1) throw new Error(`${name}: rank ${comm.rank}: ${error.message}`, { cause: error });
      return outcomes;
    }
  }
  return outcomes;
}
