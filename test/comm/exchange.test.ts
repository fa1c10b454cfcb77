/** How messages pass through the memory that rank threads share: ranks' transports in one thread, so that each step is in the test's hand. */

import { beforeEach, describe, expect, test } from "vitest";
import { Engine, Operation } from "#sparsegate/comm/engine.js";
import { envelope } from "#sparsegate/comm/envelope.js";
import { makeShared, Shared, type SharedParts } from "#sparsegate/comm/threads/shared.js";
import { ThreadTransport } from "#sparsegate/comm/threads/transport.js";
import { LengthMismatch, Message } from "#sparsegate/comm/transport.js";

const PIECE = 4096;
let parts: SharedParts;
let [sender, receiver] = [] as unknown as [ThreadTransport, ThreadTransport];
beforeEach(() => {
  parts = makeShared(3, PIECE);
  sender = new ThreadTransport(parts, 0);
  receiver = new ThreadTransport(parts, 1);
});

const numbers = (length: number, first: number): Float32Array => Float32Array.from({ length }, (_, i) => first + i);
const operation = { messageEnded: (): void => {} };
function send(tag: number, data: Float32Array, to = 1): Message {
  const message = new Message(operation, sender.whole, to, tag, data, 0, data.byteLength, true);
  sender.send(message);
  return message;
}
function receive(tag: number, data: Float32Array): Message {
  const message = new Message(operation, receiver.whole, 0, tag, data, 0, data.byteLength, false);
  receiver.receive(message);
  return message;
}
/** Lets both ranks do what they can, until neither can do more. */
function move(): void {
  while ([sender.progress(), receiver.progress()].includes(true));
}
const outboxSlots = (): number => Math.floor(parts.outboxes[0]!.byteLength / PIECE);

describe("the exchange between rank threads", () => {
  test("takes a few pieces of memory for a message of a thousand, whenever it is asked for", () => {
    const empty = outboxSlots();
    const data = numbers((1000 * PIECE) / 4 - 1, 1);
    const sent = send(1, data);
    move();
    expect(sent.done).toBe(false);
    const got = receive(1, new Float32Array(data.length));
    move();
    expect([sent.done, got.done]).toEqual([true, true]);
    expect(Buffer.from(got.data.buffer).equals(Buffer.from(data.buffer))).toBe(true);
    expect(outboxSlots() - empty).toBeLessThanOrEqual(4);
  });

  test("grows with the messages that are open at once, which then come in any order, and shrinks no message", () => {
    const empty = outboxSlots();
    const data = Array.from({ length: 20 }, (_, tag) => numbers((3 * PIECE) / 4, 1000 * tag));
    const sent = data.map((array, tag) => send(tag, array));
    move();
    expect(outboxSlots() - empty).toBeGreaterThanOrEqual(40);
    // The last first.
    const got = data.map((array, i) => receive(data.length - 1 - i, new Float32Array(array.length)));
    move();
    expect([...sent, ...got].every(({ done }) => done)).toBe(true);
    expect(got.map((message) => message.data)).toEqual(data.toReversed());
  });

  test("holds no message up by another that was given the same memory and that nobody asks for", () => {
    const data = numbers((3 * PIECE) / 4, 1);
    const long = send(1, data);
    const got = receive(1, new Float32Array(data.length));
    // Two of its three pieces have been taken, and their memory is given to the next message before the sender looks.
    receiver.progress();
    const other = send(2, numbers((3 * PIECE) / 4, 5), 2);
    move();
    expect([long.done, got.done, other.done]).toEqual([true, true, false]);
    expect(got.data).toEqual(data);
  });

  test("holds more short messages than a ring has room for, and those of one tag in order", () => {
    const sent = Array.from({ length: 300 }, (_, i) => send(7, numbers(i % 3, i)));
    expect(sent.filter(({ done }) => done).length).toBeLessThan(300);
    move();
    expect(sent.every(({ done }) => done)).toBe(true);
    for (let i = 0; i < 300; i++) expect(receive(7, new Float32Array(i % 3)).data).toEqual(numbers(i % 3, i));
  });

  test("holds short messages without end for a rank that waits for another one first, in order and each as it was sent", () => {
    const empty = outboxSlots();
    const [least, most] = [numbers(1, -1), numbers(2048 / 4, 0)];
    const sent: Message[] = [];
    // More than an outbox has slots.
    for (let i = 0; i < 2500; i++) {
      sent.push(send(0, least.fill(i)), send(0, most.fill(i)));
      if (i % 25 === 0) move();
    }
    const [last, got] = [send(1, numbers(3, 7)), receive(1, new Float32Array(3))];
    move();
    expect([last.done, got.done, sent.every(({ done }) => done)]).toEqual([true, true, true]);
    expect(got.data).toEqual(numbers(3, 7));
    expect(outboxSlots() - empty).toBeLessThanOrEqual(128);
    for (let i = 0; i < 2500; i++) {
      for (const { length } of [least, most]) {
        const { done, data } = receive(0, new Float32Array(length));
        expect(done && data.every((value) => value === i)).toBe(true);
      }
    }
    expect(sender.whereabouts(sender.whole, 1).text).toBe("Rank 1 is in no call of a communicator");
  });

  test("says so when a rank cannot send because too many long messages wait to be asked for", () => {
    const long = numbers(2048 / 4 + 1, 0);
    for (let i = 0; i < 4096; i++) {
      send(0, long);
      if (i % 50 === 0) move();
    }
    const last = send(1, numbers(1, 0));
    receive(1, new Float32Array(1));
    move();
    expect(last.done).toBe(false);
    expect(sender.whereabouts(sender.whole, 1).text).toBe("Rank 1 is in no call of a communicator. This rank cannot send: 4096 pieces of long messages, the most there may be, wait to be asked for");
    receive(0, new Float32Array(long.length));
    move();
    expect(last.done).toBe(true);
  });

  test("tells which message has come that nobody asked for, and refuses one of another length", () => {
    send(3, numbers(2, 0));
    move();
    expect(receiver.arrived(receiver.whole)).toEqual([{ from: 0, tag: 3 }]);
    expect(() => receive(3, new Float32Array(4))).toThrow(LengthMismatch);
  });
});

describe("a rank that sends its last message and ends", () => {
  /** Waits for a message, while something comes between the engine's questions: what has arrived, and whether the other rank is there. */
  function wait(between: () => void, timeout = 30): Float32Array {
    const engine = new Engine(receiver, timeout);
    const data = new Float32Array(3);
    const operation = new Operation(engine, receiver.whole, { bytesSent: 0, bytesReceived: 0, calls: {} }, "receiveFrom", "sendTo", "float32", 0);
    const steps = function* (): Generator<void> {
      operation.receive(0, data, 0, 3);
      yield;
    };
    engine.begin(operation, steps());
    const whereabouts = receiver.whereabouts.bind(receiver);
    receiver.whereabouts = (group, rank) => {
      between();
      between = () => {};
      return whereabouts(group, rank);
    };
    engine.wait(operation);
    return data;
  }
  const tag = envelope("sendTo", "float32", 0, 2 ** 24);

  test("is not missed where both happen after the other has looked for messages", () => {
    expect(wait(() => {
      send(tag, numbers(3, 5));
      new Shared(parts).end(0);
    })).toEqual(numbers(3, 5));
  });

  test("nor where time is up then", () => {
    expect(wait(() => void send(tag, numbers(3, 5)), 0.001)).toEqual(numbers(3, 5));
  });

  test("is missed where it was another message", () => {
    expect(() => wait(() => {
      send(tag + 1, numbers(3, 5));
      new Shared(parts).end(0);
    })).toThrow("receiveFrom: expected rank 0 to take part (sendTo of float32, tag 0), got its end: its thread was terminated from outside.");
  });
});
