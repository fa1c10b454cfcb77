/** How messages pass through the memory that rank threads share: ranks' transports in one thread, so that each step is in the test's hand. */

import { beforeEach, describe, expect, test } from "vitest";
import { makeShared, type SharedParts } from "#sparsegate/comm/threads/shared.js";
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

  test("tells which message has come that nobody asked for, and refuses one of another length", () => {
    send(3, numbers(2, 0));
    move();
    expect(receiver.arrived(receiver.whole)).toEqual([{ from: 0, tag: 3 }]);
    expect(() => receive(3, new Float32Array(4))).toThrow(LengthMismatch);
  });
});
