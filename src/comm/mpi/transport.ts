/**
 * Messages between processes, by MPI. Nothing here blocks: sends and receives are begun and asked after, so that the engine can give up on a rank that hangs.
 * Long messages go in pieces, few at a time, the last one shorter than the others (empty if need be): every length is below 2^31, the engine sees long
 * messages move, and a length that the two sides do not agree on shows in the first piece that differs.
 */

import { writeSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { CommError } from "../communicator.js";
import { CALLS, KINDS, TYPES, USER_TAGS, envelope, opened } from "../envelope.js";
import { LengthMismatch, type Group, type Message, type Transport } from "../transport.js";
import type { GuardStart } from "./guard.js";
import { SYSTEM_LIBRARY, type Handle, type Mpi } from "./library.js";

/** Pieces of one message on their way at once. */
const WINDOW = 4;
/**
 * A rank that waits asks on for a while, then gives its core to whoever wants it between questions, which costs little where nobody does, and then naps. How long
 * each, in milliseconds; ranks that have to share cores (the second of each pair) begin to give earlier, as the rank waited for may need this one's.
 */
const SPIN_MS = [0.05, 0] as const;
const YIELD_MS = [20, 0.1] as const;
/** A nap between polls, at first and at most, and the part of the time waited so far that it may be. */
const NAP_MS = 0.05;
const LONGEST_NAP_MS = 2;
const NAP_SHARE = 1 / 16;

/** Some mpiruns lose what they have not passed on when MPI_Abort comes. */
const LAST_WORDS_MS = 200;
/** MPI_Abort asks mpirun, and may wait for ever where that cannot be reached. */
const ABORT_SECONDS = 5;

/** All libraries have tags of 19 bits, so that there are few numbers. */
const NUMBERS = USER_TAGS;
/**
 * After so many calls without one, a message to a rank is sent such that it ends when the other has come to it: no rank gets so far ahead of another that its
 * numbers have gone round. (A rank that only sends, as in `gather`, would not be held up by anything.)
 */
const LEASH = 256;

/** What the last message of a rank to every other says. */
const GOODBYE = envelope("the end of the program", "nothing", 0, NUMBERS);

export interface MpiGroup extends Group {
  readonly handle: Handle;
  /** For each rank, the number of the last call in which this one has waited for it. */
  readonly met: number[];
}

/** A message with what of it has been begun and has ended. */
interface Transfer {
  message: Message;
  /** Bytes begun; all, and the last piece, when `whole`. */
  begun: number;
  whole: boolean;
  /** Pieces on their way. */
  open: number;
}

export class MpiTransport implements Transport<MpiGroup> {
  readonly kind = "mpi";
  readonly numbers = NUMBERS;
  readonly whole: MpiGroup;
  readonly #mpi: Mpi;
  readonly #pieceBytes: number;
  readonly #finalizeSeconds: number;
  /** Whether there are more ranks on this host than cores: 1, else 0. */
  readonly #shares: 0 | 1;
  /** Requests as MPI knows them, those that have ended among them; by place, whose they are and how long the piece is. */
  #requests: Int32Array;
  #indices: Int32Array;
  #statuses: Int32Array;
  #owners: (Transfer | undefined)[] = [];
  #lengths: number[] = [];
  #unused: number[] = [];
  #count = 0;
  readonly #out = new Int32Array(new ArrayBuffer(16));
  readonly #probed: Int32Array;
  readonly #probedAt: number;
  readonly #outAt: number;
  #requestsAt = 0;
  #indicesAt = 0;
  #statusesAt = 0;
  readonly #addresses = new WeakMap<ArrayBufferLike, number>();
  readonly #nap = new Int32Array(new SharedArrayBuffer(4));
  /** MPI is over, and every call of it but few would end the process. */
  #closed = false;

  constructor(mpi: Mpi, handle: Handle, rank: number, size: number, options: { pieceBytes: number; finalizeSeconds: number; oversubscribed: boolean }) {
    this.#mpi = mpi;
    this.#pieceBytes = options.pieceBytes;
    this.#finalizeSeconds = options.finalizeSeconds;
    this.#shares = options.oversubscribed ? 1 : 0;
    this.whole = { handle, rank, world: Array.from({ length: size }, (_, i) => i), calls: 0, met: new Array<number>(size).fill(0) };
    this.#outAt = mpi.address(this.#out);
    this.#probed = new Int32Array(new ArrayBuffer(4 * mpi.status.words));
    this.#probedAt = mpi.address(this.#probed);
    this.#requests = this.#indices = this.#statuses = new Int32Array(0);
    this.#grow(64);
    const bound = this.#tagBound(handle);
    const most = KINDS * NUMBERS - 1;
    if (bound < most) throw new CommError(`communicator: expected an MPI library with tags up to ${most} at least, got ${bound} (${mpi.version}).`);
  }

  send(message: Message): void {
    this.#begin({ message, begun: 0, whole: false, open: 0 });
  }

  receive(message: Message): void {
    this.#begin({ message, begun: 0, whole: false, open: 0 });
  }

  progress(): boolean {
    if (this.#count === 0) return false;
    const { call, status } = this.#mpi;
    const code = call.MPI_Testsome(this.#count, this.#requestsAt, this.#outAt, this.#indicesAt, this.#statusesAt);
    const ended = this.#out[0]!;
    if (ended <= 0 && code === 0) return false;
    const [indices, statuses] = [this.#indices, this.#statuses];
    for (let i = 0; i < ended; i++) {
      const place = indices[i]!;
      const [transfer, length] = [this.#owners[place]!, this.#lengths[place]!];
      const at = i * status.words;
      // Only with an error among them does MPI fill in the errors of all.
      if (code !== 0) this.#checkPiece(transfer, statuses[at + status.error]!);
      if (!transfer.message.sends) this.#checkLength(transfer, length, statuses, at);
      this.#owners[place] = undefined;
      this.#unused.push(place);
      transfer.open--;
      if (!transfer.whole) this.#begin(transfer);
      else if (transfer.open === 0) transfer.message.end();
    }
    if (code !== 0 && ended <= 0) throw new Error(this.#textOf(code));
    if (this.#unused.length === this.#count) this.#count = this.#unused.length = 0;
    return true;
  }

  idle(waited: number): void {
    if (waited < SPIN_MS[this.#shares]) return;
    if (waited < YIELD_MS[this.#shares]) return this.#mpi.yield();
    Atomics.wait(this.#nap, 0, 0, Math.min(LONGEST_NAP_MS, Math.max(NAP_MS, waited * NAP_SHARE)));
  }

  /** The first one, which may hide others. */
  arrived(group: MpiGroup): { from: number; tag: number }[] {
    const first = this.#probe(group, this.#mpi.anySource, this.#mpi.anyTag);
    return first === undefined ? [] : [first];
  }

  unasked(group: MpiGroup, from: number, number: number): number[] {
    const tags = CALLS.flatMap((call) => TYPES.map((type) => envelope(call, type, number, NUMBERS)));
    return tags.filter((tag) => this.#probe(group, from, tag) !== undefined);
  }

  whereabouts(group: MpiGroup, rank: number): { gone: boolean; text: string } | undefined {
    const world = group.world[rank]!;
    if (this.#probe(this.whole, world, GOODBYE) === undefined) return undefined;
    return { gone: true, text: "its program has come to its end" };
  }

  report(): void {}

  freshId(): number {
    return 0;
  }

  split(parent: MpiGroup, color: number, key: number, rank: number, world: readonly number[]): MpiGroup {
    // Blocks, but for the call that all ranks of the parent are in: it is made at the end of one of ours.
    this.check(this.#mpi.call.MPI_Comm_split(parent.handle, color, key, this.#outAt));
    const handle = this.#handle();
    this.check(this.#mpi.call.MPI_Comm_set_errhandler(handle, this.#mpi.errorsReturn));
    this.check(this.#mpi.call.MPI_Comm_rank(handle, this.#outAt));
    if (this.#out[0] !== rank) throw new Error(`expected MPI_Comm_split to make this rank ${rank}, got ${this.#out[0]}`);
    return { handle, rank, world, calls: 0, met: new Array<number>(world.length).fill(0) };
  }

  free(group: MpiGroup): void {
    if (this.#closed) return;
    this.#out[0] = group.handle % 2 ** 32;
    this.#out[1] = Math.floor(group.handle / 2 ** 32);
    this.check(this.#mpi.call.MPI_Comm_free(this.#outAt));
  }

  /** The program's end tells the others, see `open.ts`; a rank that goes on in spite of it gets the same error in every call. */
  fail(): void {}

  abort(message: string): void {
    this.endAll(`ends all ranks: ${message}`, 1);
    process.exit(1);
  }

  /** @param atEnd whether the program has nothing left to do, so that nothing is lost where MPI_Finalize does not return */
  close(atEnd = false): void {
    const { rank, world } = this.whole;
    const seconds = this.#finalizeSeconds;
    const lost = atEnd ? "all ranks had come to their end, and this one ends without it" : "dispose cannot return, and this rank ends before it has come to its end";
    const text = `sparsegate: rank ${rank} of ${world.length}: MPI_Finalize did not return within ${seconds} s; ${lost}\n`;
    const returned = new Int32Array(new SharedArrayBuffer(4));
    const guard: GuardStart = { seconds, returned, text, code: atEnd ? 0 : 1, library: SYSTEM_LIBRARY };
    new Worker(new URL("./guard.js", import.meta.url), { workerData: guard, execArgv: [] }).unref();
    const code = this.#mpi.call.MPI_Finalize();
    this.#closed = true;
    Atomics.store(returned, 0, 1);
    Atomics.notify(returned, 0);
    this.check(code);
  }

  /** Says why, and ends all ranks and this process, which does not return from MPI_Abort, or not from this call. */
  endAll(why: string, code: number): void {
    const { rank, world } = this.whole;
    writeSync(2, `sparsegate: rank ${rank} of ${world.length} ${why}\n`);
    // mpirun ends the others by this one's exit code.
    if (this.#closed) return;
    Atomics.wait(this.#nap, 0, 0, LAST_WORDS_MS);
    this.#mpi.alarm(ABORT_SECONDS);
    this.#mpi.call.MPI_Abort(this.#mpi.world, code);
  }

  /** @throws Error with the library's text for an error code */
  check(code: number): void {
    if (code !== 0) throw new Error(this.#textOf(code));
  }

  /** Begins as many pieces as the window has room for. */
  #begin(transfer: Transfer): void {
    const { message } = transfer;
    const { call, byte } = this.#mpi;
    const { handle } = message.group as MpiGroup;
    const address = message.length === 0 ? 0 : this.#addressOf(message.data.buffer) + message.data.byteOffset + message.offset;
    while (!transfer.whole && transfer.open < WINDOW) {
      const bytes = Math.min(this.#pieceBytes, message.length - transfer.begun);
      const place = this.#unused.pop() ?? this.#fresh();
      const at = this.#requestsAt + 4 * this.#mpi.requestWords * place;
      const start = !message.sends ? call.MPI_Irecv : transfer.begun === 0 && this.#isTimeToMeet(message) ? call.MPI_Issend : call.MPI_Isend;
      this.check(start(address + transfer.begun, bytes, byte, message.peer, message.tag, handle, at));
      this.#owners[place] = transfer;
      this.#lengths[place] = bytes;
      transfer.begun += bytes;
      transfer.whole = bytes < this.#pieceBytes;
      transfer.open++;
    }
  }

  /** Whether it is time to wait for the other rank once. */
  #isTimeToMeet({ group, peer, tag }: Message): boolean {
    const { call, number } = opened(tag, NUMBERS);
    const { met } = group as MpiGroup;
    if (call === "sendTo" || (number - met[peer]! + NUMBERS) % NUMBERS < LEASH) return false;
    met[peer] = number;
    return true;
  }

  /** A place for a request, at the end. */
  #fresh(): number {
    if (this.#count === this.#indices.length) this.#grow(2 * this.#count);
    return this.#count++;
  }

  #grow(places: number): void {
    const { requestWords, status, address } = this.#mpi;
    const requests = new Int32Array(new ArrayBuffer(4 * requestWords * places));
    requests.set(this.#requests);
    this.#requests = requests;
    this.#indices = new Int32Array(new ArrayBuffer(4 * places));
    this.#statuses = new Int32Array(new ArrayBuffer(4 * status.words * places));
    [this.#requestsAt, this.#indicesAt, this.#statusesAt] = [address(requests), address(this.#indices), address(this.#statuses)];
  }

  #checkPiece({ message }: Transfer, code: number): void {
    if (code === 0) return;
    const text = this.#textOf(code);
    if (/MPI_ERR_TRUNCATE|truncat/i.test(text)) throw new LengthMismatch(message, "more");
    throw new Error(text);
  }

  #checkLength({ message }: Transfer, length: number, statuses: Int32Array, at: number): void {
    const { count } = this.#mpi.status;
    const got = (statuses[at + count]! >>> 0) + this.#mpi.countHigh(statuses[at + count + 1]!) * 2 ** 32;
    if (got === length) return;
    throw new LengthMismatch(message, message.length < this.#pieceBytes ? got : "less");
  }

  /** A message that has arrived and that nobody has asked for. */
  #probe(group: MpiGroup, source: number, tag: number): { from: number; tag: number } | undefined {
    const { call, status } = this.#mpi;
    this.check(call.MPI_Iprobe(source, tag, group.handle, this.#outAt, this.#probedAt));
    return this.#out[0] === 0 ? undefined : { from: this.#probed[status.source]!, tag: this.#probed[status.tag]! };
  }

  /** Byte 0 of a buffer. Memory does not move while its object lives, and shared memory keeps its place as it grows. */
  #addressOf(buffer: ArrayBufferLike): number {
    let address = this.#addresses.get(buffer);
    if (address === undefined) this.#addresses.set(buffer, (address = this.#mpi.address(new Uint8Array(buffer))));
    return address;
  }

  /** The communicator that a call has just written. */
  #handle(): Handle {
    return this.#mpi.vendor === "MPICH" ? this.#out[0]! : (this.#out[0]! >>> 0) + this.#out[1]! * 2 ** 32;
  }

  #tagBound(handle: Handle): number {
    // The attribute is a pointer to an int.
    const place = new BigInt64Array(new ArrayBuffer(8));
    this.check(this.#mpi.call.MPI_Comm_get_attr(handle, this.#mpi.tagBound, this.#mpi.address(place), this.#outAt));
    return this.#out[0] === 0 ? 32767 : this.#mpi.intAt(place[0]!);
  }

  #textOf(code: number): string {
    const text = new Uint8Array(new ArrayBuffer(4096));
    this.#mpi.call.MPI_Error_string(code, this.#mpi.address(text), this.#outAt);
    return `MPI says: ${new TextDecoder().decode(text.subarray(0, this.#out[0])).trim()}`;
  }
}
