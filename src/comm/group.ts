/**
 * The operations of a communicator, written once for every kind: what each rank sends to which, in what order, and how it is put together. Everyone sends to
 * everyone directly, but for broadcasts (a binomial tree) and barriers (dissemination: in round i, 2^i ranks further).
 */

import type { CommArray, Communicator, Counts, Pending, ReduceOp, Traffic } from "./communicator.js";
import { CommError } from "./communicator.js";
import { checkApart, checkCounts, checkEqual, checkOp, checkPeer, checkRank, checkSameType, checkSplit, checkTag } from "./checks.js";
import { reduceCall, typeOf, type Call, type TypeName } from "./envelope.js";
import { Operation, type Engine } from "./engine.js";
import { SHORT_BYTES, reduceLong, reduceShort } from "./reduce.js";
import type { Group } from "./transport.js";

type Steps = (operation: Operation) => Generator<void>;

export class GroupCommunicator implements Communicator {
  readonly rank: number;
  readonly size: number;
  readonly traffic: Traffic = { bytesSent: 0, bytesReceived: 0, calls: {} };
  /** All ranks but this one, the next one first: no rank is the first of everybody. */
  readonly others: readonly number[];
  #disposed = false;

  constructor(
    readonly engine: Engine,
    readonly group: Group,
    /** What `dispose` does beyond ending the use of this object. */
    readonly end: () => void,
  ) {
    this.rank = group.rank;
    this.size = group.world.length;
    this.others = Array.from({ length: this.size - 1 }, (_, i) => (this.rank + 1 + i) % this.size);
  }

  get kind(): Communicator["kind"] {
    return this.engine.transport.kind;
  }

  barrier(): void {
    const { rank, size } = this;
    this.#run("barrier", "barrier", "nothing", function* (operation) {
      for (let distance = 1; distance < size; distance *= 2) {
        operation.receive((rank - distance + size) % size);
        operation.send((rank + distance) % size);
        yield;
      }
    });
    // What was sent before the others came here has arrived by now.
    this.engine.refuseStrays(this.group, "barrier");
  }

  broadcast(data: CommArray, root: number): void {
    const type = typeOf("broadcast", "data", data);
    const { rank, size } = this;
    checkRank("broadcast", "root", root, size);
    this.#run("broadcast", "broadcast", type, function* (operation) {
      // Counted from the root: the parent of a rank is the one without its lowest bit, its children those with one lower bit more.
      const place = (rank - root + size) % size;
      const low = place === 0 ? 2 ** Math.ceil(Math.log2(size)) : place & -place;
      if (place > 0) {
        operation.receive((place - low + root) % size, data, 0, data.length);
        yield;
      }
      for (let bit = low / 2; bit >= 1; bit /= 2) if (place + bit < size) operation.send((place + bit + root) % size, data, 0, data.length);
      yield;
    });
  }

  allReduce(data: CommArray, op: ReduceOp = "sum"): void {
    this.#allReduce("allReduce", data, op).wait();
  }

  allReduceStart(data: CommArray, op: ReduceOp = "sum"): Pending {
    return this.#allReduce("allReduceStart", data, op);
  }

  allGather(send: CommArray, receive: CommArray, counts?: Counts): void {
    const [where, { others }] = ["allGather", this] as const;
    const type = checkSameType(where, send, receive);
    const each = checkCounts(where, "counts", counts ?? new Array<number>(this.size).fill(send.length), this.size, "receive", receive.length);
    checkEqual(where, `the length of send (counts[${this.rank}])`, each[this.rank]!, send.length);
    const starts = offsets(each);
    const own = starts[this.rank]!;
    const inPlace = send.buffer === receive.buffer && send.byteOffset === receive.byteOffset + own * receive.BYTES_PER_ELEMENT;
    if (!inPlace) checkApart(where, send, send.length, receive, 0, starts[this.size]!);
    this.#run(where, where, type, function* (operation) {
      if (!inPlace) receive.set(send, own);
      for (const peer of others) {
        operation.receive(peer, receive, starts[peer]!, each[peer]!);
        operation.send(peer, send, 0, send.length);
      }
      yield;
    });
  }

  allToAll(send: CommArray, sendCounts: Counts, receive: CommArray, receiveCounts: Counts): void {
    const [where, { rank, others }] = ["allToAll", this] as const;
    const type = checkSameType(where, send, receive);
    const [out, into] = [checkCounts(where, "sendCounts", sendCounts, this.size, "send", send.length), checkCounts(where, "receiveCounts", receiveCounts, this.size, "receive", receive.length)];
    checkEqual(where, `receiveCounts[${this.rank}] (what this rank sends to itself)`, out[this.rank]!, into[this.rank]!);
    const [outAt, intoAt] = [offsets(out), offsets(into)];
    checkApart(where, send, outAt[this.size]!, receive, 0, intoAt[this.size]!);
    this.#run(where, where, type, function* (operation) {
      for (const peer of others) {
        operation.receive(peer, receive, intoAt[peer]!, into[peer]!);
        operation.send(peer, send, outAt[peer]!, out[peer]!);
      }
      receive.set(send.subarray(outAt[rank]!, outAt[rank + 1]!), intoAt[rank]!);
      yield;
    });
  }

  gather(send: CommArray, receive: CommArray | undefined, root: number, counts?: Counts): void {
    const [where, { others }] = ["gather", this] as const;
    checkRank(where, "root", root, this.size);
    if (this.rank !== root) {
      this.#run(where, where, typeOf(where, "send", send), function* (operation) {
        operation.send(root, send, 0, send.length);
        yield;
      });
      return;
    }
    const type = checkSameType(where, send, receive!);
    const each = checkCounts(where, "counts", counts ?? new Array<number>(this.size).fill(send.length), this.size, "receive", receive!.length);
    checkEqual(where, `the length of send (counts[${root}])`, each[root]!, send.length);
    const starts = offsets(each);
    checkApart(where, send, send.length, receive!, 0, starts[this.size]!);
    this.#run(where, where, type, function* (operation) {
      for (const peer of others) operation.receive(peer, receive!, starts[peer]!, each[peer]!);
      receive!.set(send, starts[root]!);
      yield;
    });
  }

  scatter(send: CommArray | undefined, receive: CommArray, root: number, counts?: Counts): void {
    const [where, { others }] = ["scatter", this] as const;
    checkRank(where, "root", root, this.size);
    if (this.rank !== root) {
      this.#run(where, where, typeOf(where, "receive", receive), function* (operation) {
        operation.receive(root, receive, 0, receive.length);
        yield;
      });
      return;
    }
    const type = checkSameType(where, send!, receive);
    const each = checkCounts(where, "counts", counts ?? new Array<number>(this.size).fill(receive.length), this.size, "send", send!.length);
    checkEqual(where, `the length of receive (counts[${root}])`, each[root]!, receive.length);
    const starts = offsets(each);
    checkApart(where, send!, starts[this.size]!, receive, 0, receive.length);
    this.#run(where, where, type, function* (operation) {
      for (const peer of others) operation.send(peer, send!, starts[peer]!, each[peer]!);
      receive.set(send!.subarray(starts[root]!, starts[root + 1]!));
      yield;
    });
  }

  sendTo(data: CommArray, to: number, tag = 0): void {
    const type = typeOf("sendTo", "data", data);
    checkPeer("sendTo", "to", to, this.rank, this.size);
    checkTag("sendTo", tag);
    this.#run("sendTo", "sendTo", type, function* (operation) {
      operation.send(to, data, 0, data.length);
      yield;
    }, tag);
  }

  receiveFrom(data: CommArray, from: number, tag = 0): void {
    const type = typeOf("receiveFrom", "data", data);
    checkPeer("receiveFrom", "from", from, this.rank, this.size);
    checkTag("receiveFrom", tag);
    this.#run("receiveFrom", "sendTo", type, function* (operation) {
      operation.receive(from, data, 0, data.length);
      yield;
    }, tag);
  }

  split(color: number, key = 0): Communicator {
    checkSplit(color, key);
    const [{ transport }, { others }] = [this.engine, this];
    const WORDS = 3;
    const all = new Int32Array(WORDS * this.size);
    const own = all.subarray(WORDS * this.rank, WORDS * (this.rank + 1));
    own.set([color, key, transport.freshId()]);
    this.#run("split", "split", "int32", function* (operation) {
      for (const peer of others) {
        operation.receive(peer, all, WORDS * peer, WORDS);
        operation.send(peer, own, 0, WORDS);
      }
      yield;
    });
    const members = Array.from(this.group.world.keys()).filter((rank) => all[WORDS * rank] === color);
    // Sorting is stable: where keys are equal, ranks keep their order.
    members.sort((a, b) => all[WORDS * a + 1]! - all[WORDS * b + 1]!);
    const world = members.map((rank) => this.group.world[rank]!);
    try {
      const group = transport.split(this.group, color, key, members.indexOf(this.rank), world, all[WORDS * members[0]! + 2]!);
      return new GroupCommunicator(this.engine, group, () => transport.free(group));
    } catch (error) {
      this.engine.fail("split", error);
    }
  }

  abort(message: string): never {
    this.engine.failure ??= `abort: ${message}`;
    this.engine.transport.abort(message);
    throw new CommError(`rank ${this.rank} of ${this.size} ended all ranks: ${message}`);
  }

  dispose(): void {
    if (this.#disposed) return;
    if (this.engine.failure === undefined) {
      const open = [...this.engine.open].filter(({ group }) => group === this.group).length;
      if (open > 0) throw new CommError(`dispose: expected every operation to have ended, got ${open} still open. Call wait() on what allReduceStart returned.`);
    }
    this.#disposed = true;
    this.end();
  }

  #allReduce(where: string, data: CommArray, op: ReduceOp): Pending {
    const type = typeOf(where, "data", data);
    checkOp(where, op);
    const long = data.byteLength > SHORT_BYTES;
    if (this.size === 1) return this.#begin(where, reduceCall(op, long), type, function* () {});
    return this.#begin(where, reduceCall(op, long), type, (operation) => (long ? reduceLong : reduceShort)(operation, op, data, this.rank, this.size));
  }

  #run(where: string, call: Call, type: TypeName, steps: Steps, tag?: number): void {
    this.#begin(where, call, type, steps, tag).wait();
  }

  #begin(where: string, call: Call, type: TypeName, steps: Steps, tag?: number): Pending {
    if (this.#disposed) throw new CommError(`${where}: expected a communicator in use, got one that was disposed of.`);
    const { engine, group, traffic } = this;
    const number = tag ?? group.calls;
    if (tag === undefined) group.calls = (group.calls + 1) % engine.transport.numbers;
    traffic.calls[where] = (traffic.calls[where] ?? 0) + 1;
    const operation = new Operation(engine, group, traffic, where, call, type, number);
    engine.begin(operation, steps(operation));
    return operation;
  }
}

/** Where each part begins, and where the last one ends. */
function offsets(counts: readonly number[]): number[] {
  const starts = [0];
  for (const count of counts) starts.push(starts.at(-1)! + count);
  return starts;
}
