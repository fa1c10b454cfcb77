/**
 * Messages between rank threads. Short ones are one piece, long ones several, of which few are on their way at once: what the exchange takes of memory depends on the
 * number of open messages, not on their lengths. Whoever is in a call takes in all that has arrived, asked for or not, so that no rank stands in another's way.
 */

import { availableParallelism } from "node:os";
import { opened } from "../envelope.js";
import { LengthMismatch, type Group, type Message, type Transport } from "../transport.js";
import { ENTRY, MOST_SLOTS, Outbox, RANK, Shared, type Ring, type SharedParts } from "./shared.js";

/** Pieces of one message on their way at once: one is written while the other is read. */
const WINDOW = 2;
/**
 * Looks at the bell before a thread goes to sleep, about 50 µs at most. Fewer each time that looking was in vain: the rank waited for may need this core.
 * More each time that it was not.
 */
const MOST_SPINS = 20_000;
const LEAST_SPINS = 500;
/** Bytes of messages that lie with the receiver until it asks for them, so that it may wait for others first, however many of these there are. */
const SHORT_BYTES = 2048;
/** A sleep at most, after which the engine looks whether all is well. */
const SLEEP_MS = 100;

export interface ThreadGroup extends Group {
  readonly id: number;
}

/** A message of this rank whose pieces are not all laid out. */
interface Sending {
  message: Message;
  sent: number;
  slots: number[];
}

/** A message that this rank has asked for. */
interface Receiving {
  message: Message;
  got: number;
}

/** A piece that has come before it was asked for. */
interface Piece {
  group: number;
  tag: number;
  total: number;
  bytes: number;
  slot: number;
  /** What it holds, where its slot has been given back. */
  copy?: Uint8Array;
}

export class ThreadTransport implements Transport<ThreadGroup> {
  readonly kind = "threads";
  readonly numbers = 2 ** 24;
  readonly whole: ThreadGroup;
  readonly #shared: Shared;
  readonly #rank: number;
  readonly #outbox: Outbox;
  /** By rank: rings to and from it, its outbox, and what is open with it. */
  readonly #peers: { rank: number; to: Ring; from: Ring; outbox: Outbox; sending: Sending[]; receiving: Receiving[]; early: Piece[] }[] = [];
  /** Who has which slot of the outbox. */
  readonly #owners: (Sending | undefined)[] = [];
  #spins: number;
  readonly #mostSpins: number;
  readonly #bell: number;
  readonly #sleeping: number;
  readonly #backlog: number;
  /** The bell's number before this rank last looked at everything. */
  #seen = 0;
  #unsent = 0;

  constructor(parts: SharedParts, rank: number) {
    const { size, pieceBytes, outboxes } = parts;
    this.#shared = new Shared(parts);
    this.#rank = rank;
    this.whole = { id: 0, rank, world: Array.from({ length: size }, (_, i) => i), calls: 0 };
    this.#outbox = new Outbox(outboxes[rank]!, pieceBytes);
    for (let other = 0; other < size; other++) {
      const [to, from] = [this.#shared.queue(rank, other), this.#shared.queue(other, rank)];
      this.#peers.push({ rank: other, to, from, outbox: new Outbox(outboxes[other]!, pieceBytes), sending: [], receiving: [], early: [] });
    }
    this.#spins = this.#mostSpins = size > availableParallelism() ? LEAST_SPINS : MOST_SPINS;
    [this.#bell, this.#sleeping, this.#backlog] = [RANK.bell, RANK.sleeping, RANK.backlog].map((word) => this.#shared.place(rank, word)) as [number, number, number];
  }

  send(message: Message): void {
    const peer = this.#peers[message.group.world[message.peer]!]!;
    const sending: Sending = { message, sent: 0, slots: [] };
    if (peer.sending.length === 0 && this.#layOut(peer.rank, sending)) return message.end();
    peer.sending.push(sending);
    this.#unsent++;
    Atomics.store(this.#shared.words, this.#backlog, 1);
  }

  receive(message: Message): void {
    const peer = this.#peers[message.group.world[message.peer]!]!;
    const receiving: Receiving = { message, got: 0 };
    const { id } = message.group as ThreadGroup;
    for (let i = 0; i < peer.early.length; ) {
      const piece = peer.early[i]!;
      if (piece.group !== id || piece.tag !== message.tag) i++;
      else {
        peer.early.splice(i, 1);
        if (this.#takeIn(peer.rank, receiving, piece)) return message.end();
      }
    }
    peer.receiving.push(receiving);
  }

  progress(): boolean {
    const { words } = this.#shared;
    this.#seen = Atomics.load(words, this.#bell);
    this.#refuseFailed();
    let moved = false;
    for (const peer of this.#peers) {
      for (let at; (at = peer.from.next) >= 0; moved = true) {
        const piece: Piece = { group: words[at + ENTRY.group]!, tag: words[at + ENTRY.tag]!, total: words[at + ENTRY.high]! * 2 ** 30 + words[at + ENTRY.low]!, bytes: words[at + ENTRY.bytes]!, slot: words[at + ENTRY.slot]! };
        peer.from.pop();
        this.#wakeSender(peer.rank);
        const place = peer.receiving.findIndex(({ message }) => message.tag === piece.tag && (message.group as ThreadGroup).id === piece.group);
        if (place < 0) peer.early.push(this.#keep(peer.rank, piece));
        else if (this.#takeIn(peer.rank, peer.receiving[place]!, piece)) peer.receiving.splice(place, 1)[0]!.message.end();
      }
    }
    if (this.#unsent > 0) moved = this.#layOutMore() || moved;
    return moved;
  }

  idle(): void {
    const { words } = this.#shared;
    for (let spins = 0; spins < this.#spins; spins++) {
      if (Atomics.load(words, this.#bell) === this.#seen) continue;
      this.#spins = Math.min(this.#mostSpins, this.#spins * 2);
      return;
    }
    this.#spins = Math.max(LEAST_SPINS, this.#spins >> 1);
    Atomics.store(words, this.#sleeping, 1);
    Atomics.wait(words, this.#bell, this.#seen, SLEEP_MS);
    Atomics.store(words, this.#sleeping, 0);
  }

  arrived(group: ThreadGroup): { from: number; tag: number }[] {
    return group.world.flatMap((world, from) => this.#peers[world]!.early.filter((piece) => piece.group === group.id).map(({ tag }) => ({ from, tag })));
  }

  unasked(group: ThreadGroup, rank: number, number: number): number[] {
    return this.arrived(group).filter(({ from, tag }) => from === rank && opened(tag, this.numbers).number === number).map(({ tag }) => tag);
  }

  whereabouts(group: ThreadGroup, rank: number): { gone: boolean; text: string } {
    const other = group.world[rank]!;
    if (this.#shared.hasEnded(other)) return { gone: true, text: this.#shared.endOf(other) };
    const report = this.#shared.reportOf(other);
    const full = this.#outbox.isFull ? `. This rank cannot send: ${MOST_SLOTS} pieces of long messages, the most there may be, wait to be asked for` : "";
    return { gone: false, text: `Rank ${rank} ${report === "" ? "is in no call of a communicator" : `waits in ${report}`}${full}` };
  }

  report(where: string | undefined): void {
    this.#shared.report(this.#rank, where ?? "");
  }

  freshId(): number {
    return this.#shared.freshId();
  }

  split(_parent: ThreadGroup, _color: number, _key: number, rank: number, world: readonly number[], id: number): ThreadGroup {
    return { id, rank, world, calls: 0 };
  }

  free(): void {}

  fail(message: string): void {
    this.#shared.fail(this.#rank, message);
  }

  abort(message: string): void {
    this.#shared.fail(this.#rank, message);
  }

  close(): void {}

  #refuseFailed(): void {
    if (!this.#shared.hasFailed) return;
    const { rank, message } = this.#shared.failure!;
    throw new Error(`expected rank ${rank} of ${this.#peers.length} to take part, got its end: ${message}`);
  }

  /** Lays out pieces of a message as far as its window and the ring go. @returns whether all are */
  #layOut(to: number, sending: Sending): boolean {
    const { words, parts } = this.#shared;
    const { message, slots } = sending;
    const { to: ring } = this.#peers[to]!;
    let rang = false;
    do {
      const at = ring.room;
      if (at < 0) break;
      const bytes = Math.min(parts.pieceBytes, message.length - sending.sent);
      let slot = -1;
      if (bytes > 0) {
        for (let i = slots.length - 1; i >= 0; i--) if (this.#owners[slots[i]!] !== sending || this.#outbox.isFree(slots[i]!)) slots.splice(i, 1);
        if (slots.length >= WINDOW || (slot = this.#outbox.take()) < 0) break;
        const { data, offset } = message;
        const view = this.#outbox.view(slot);
        (bytes === view.length ? view : view.subarray(0, bytes)).set(new Uint8Array(data.buffer, data.byteOffset + offset + sending.sent, bytes));
        this.#owners[slot] = sending;
        slots.push(slot);
      }
      words[at + ENTRY.group] = (message.group as ThreadGroup).id;
      words[at + ENTRY.tag] = message.tag;
      words[at + ENTRY.high] = Math.floor(message.length / 2 ** 30);
      words[at + ENTRY.low] = message.length % 2 ** 30;
      words[at + ENTRY.bytes] = bytes;
      words[at + ENTRY.slot] = slot;
      ring.push();
      sending.sent += bytes;
      rang = true;
    } while (sending.sent < message.length);
    if (rang) this.#shared.ring(to);
    return rang && sending.sent === message.length;
  }

  #layOutMore(): boolean {
    let moved = false;
    for (const peer of this.#peers) {
      for (let i = 0; i < peer.sending.length; ) {
        const sending = peer.sending[i]!;
        const before = sending.sent;
        const whole = this.#layOut(peer.rank, sending);
        moved ||= whole || sending.sent > before;
        if (!whole) i++;
        else {
          peer.sending.splice(i, 1);
          this.#unsent--;
          sending.message.end();
        }
      }
    }
    if (this.#unsent === 0) Atomics.store(this.#shared.words, this.#backlog, 0);
    return moved;
  }

  /** Copies a piece to where it belongs. @returns whether the message is whole */
  #takeIn(from: number, receiving: Receiving, piece: Piece): boolean {
    const { message } = receiving;
    if (piece.total !== message.length) throw new LengthMismatch(message, piece.total);
    if (piece.slot >= 0) {
      const { data, offset } = message;
      new Uint8Array(data.buffer, data.byteOffset + offset + receiving.got, piece.bytes).set(piece.copy ?? this.#bytesOf(from, piece));
      if (piece.copy === undefined) this.#release(from, piece);
      receiving.got += piece.bytes;
    }
    return receiving.got === message.length;
  }

  /** A piece that nobody has asked for yet. Those of short messages give their slots back, as the one that this rank waits for may come after any number of them. */
  #keep(from: number, piece: Piece): Piece {
    if (piece.slot < 0 || piece.total > SHORT_BYTES) return piece;
    piece.copy = this.#bytesOf(from, piece).slice();
    this.#release(from, piece);
    return piece;
  }

  /** What a piece holds, where its sender has laid it out. */
  #bytesOf(from: number, { slot, bytes }: Piece): Uint8Array {
    const view = this.#peers[from]!.outbox.view(slot);
    return bytes === view.length ? view : view.subarray(0, bytes);
  }

  #release(from: number, { slot }: Piece): void {
    this.#peers[from]!.outbox.free(slot);
    this.#wakeSender(from);
  }

  /** Only a rank that waits for room has to be told that there is some. */
  #wakeSender(rank: number): void {
    if (Atomics.load(this.#shared.words, this.#shared.place(rank, RANK.backlog)) !== 0) this.#shared.ring(rank);
  }
}
