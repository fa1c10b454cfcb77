/**
 * Carries operations to their end. An operation is a generator: it posts messages, yields, and goes on when all of them have ended. Whoever waits for one
 * moves all that are open, so that ranks may wait for theirs in different orders. Nobody waits for ever: see `Engine.wait`.
 */

import { CommError, type CommArray, type Pending, type Traffic } from "./communicator.js";
import { describe, envelope, opened, type Call, type TypeName } from "./envelope.js";
import { Scratch } from "./scratch.js";
import { LengthMismatch, Message, type Group, type Transport } from "./transport.js";

/** Waiting so long, look whether what came does not fit, or the other has ended. */
const LOOK_MS = 200;
const ELEMENT_BYTES: Record<TypeName, number> = { nothing: 1, float32: 4, int32: 4, float64: 8 };
const NOTHING = new Int32Array(new ArrayBuffer(0));

/** One call of a communicator on this rank, from its beginning to its end. */
export class Operation implements Pending {
  done = false;
  readonly tag: number;
  /** What it has posted since it last went on. */
  readonly #messages: Message[] = [];
  #open = 0;
  #steps: Iterator<void> | undefined;

  constructor(
    readonly engine: Engine,
    readonly group: Group,
    readonly traffic: Traffic,
    /** Name of the method, for messages. */
    readonly where: string,
    readonly call: Call,
    readonly type: TypeName,
    readonly number: number,
  ) {
    this.tag = envelope(call, type, number, engine.transport.numbers);
  }

  /** Posts a message to another rank: `count` elements of `data` from element `at`. */
  send(to: number, data: CommArray = NOTHING, at = 0, count = 0): void {
    const message = this.#post(to, data, at, count, true);
    this.traffic.bytesSent += message.length;
    this.engine.transport.send(message);
  }

  /** Posts what another rank's `send` is to fill. */
  receive(from: number, data: CommArray = NOTHING, at = 0, count = 0): void {
    const message = this.#post(from, data, at, count, false);
    this.traffic.bytesReceived += message.length;
    this.engine.transport.receive(message);
  }

  wait(): void {
    this.engine.wait(this);
  }

  /** Ranks that this operation waits for: those that have to send, else those that have to take. */
  get waitsFor(): number[] {
    const open = this.#messages.filter(({ done }) => !done);
    const receives = open.filter(({ sends }) => !sends);
    return [...new Set((receives.length > 0 ? receives : open).map(({ peer }) => peer))].sort((a, b) => a - b);
  }

  begin(steps: Iterator<void>): void {
    this.#steps = steps;
    this.advance();
  }

  /** Goes on as far as possible without waiting. */
  advance(): void {
    while (!this.done && this.#open === 0) {
      this.#messages.length = 0;
      this.done = this.#steps!.next().done === true;
    }
  }

  /** Called by each of its messages. */
  messageEnded(): void {
    if (--this.#open === 0) this.engine.movable.push(this);
  }

  #post(peer: number, data: CommArray, at: number, count: number, sends: boolean): Message {
    const size = data.BYTES_PER_ELEMENT;
    const message = new Message(this, this.group, peer, this.tag, data, at * size, count * size, sends);
    this.#messages.push(message);
    this.#open++;
    return message;
  }
}

export class Engine {
  /** Operations whose messages have all ended. */
  readonly movable: Operation[] = [];
  /** Begun and not ended. */
  readonly open = new Set<Operation>();
  /** Why nothing can be done any more. */
  failure: string | undefined;
  readonly scratch = new Scratch();

  /** @param timeout seconds that a call may wait without anything moving; 0: for ever */
  constructor(
    readonly transport: Transport,
    readonly timeout: number,
  ) {}

  begin(operation: Operation, steps: Iterator<void>): void {
    this.#refuseBroken(operation.where);
    try {
      operation.begin(steps);
      this.#settle();
    } catch (error) {
      this.fail(operation.where, error);
    }
    if (!operation.done) this.open.add(operation);
  }

  /**
   * Returns when the operation has ended. Looks now and then for what can only go wrong: a message of another call in place of the one awaited, a rank
   * that has ended. After `timeout` seconds in which nothing moved, gives up.
   * @throws CommError
   */
  wait(operation: Operation): void {
    if (operation.done) return;
    this.#refuseBroken(operation.where);
    try {
      this.#wait(operation);
    } catch (error) {
      this.fail(operation.where, error);
    }
  }

  /** Whatever goes wrong in the middle of operations leaves them unfinished: it ends the communicator, and the other ranks if the transport can. */
  fail(where: string, error: unknown): never {
    const told = error instanceof LengthMismatch ? mismatch(error) : error instanceof CommError ? error : new CommError(`${where}: ${(error as Error).message}`, { cause: error });
    this.failure ??= told.message;
    this.transport.fail(told.message);
    throw told;
  }

  #wait(operation: Operation): void {
    const { transport } = this;
    let [since, look, reported] = [0, 0, false];
    while (!operation.done) {
      if (this.#move()) {
        since = 0;
        continue;
      }
      const now = performance.now();
      if (since === 0) [since, look] = [now, now + LOOK_MS];
      else if (now >= look) {
        if (this.#look(operation, (now - since) / 1000)) {
          since = 0;
          continue;
        }
        look = now + LOOK_MS;
        reported = true;
      }
      transport.idle(now - since);
    }
    if (reported) transport.report(undefined);
  }

  /** @returns whether anything did */
  #move(): boolean {
    const moved = this.transport.progress();
    if (moved) this.#settle();
    return moved;
  }

  /** Lets operations go on whose messages have ended; they may end others' in turn. */
  #settle(): void {
    for (let operation; (operation = this.movable.pop()) !== undefined; ) {
      operation.advance();
      if (operation.done) this.open.delete(operation);
    }
  }

  #refuseBroken(where: string): void {
    if (this.failure !== undefined) throw new CommError(`${where}: expected ranks that work together, got an earlier failure (${this.failure})`);
  }

  /**
   * Between the last look at what has arrived and this one, a rank may have sent its last message and ended: what can only go wrong is looked at again.
   * @returns whether something has moved after all
   * @throws CommError when the operation cannot end any more, or has waited too long
   */
  #look(operation: Operation, seconds: number): boolean {
    const { where, group, call, number, type } = operation;
    const { transport } = this;
    const own = call === "sendTo" ? `tag ${number}` : `call ${number}`;
    const ranks = operation.waitsFor;
    for (const rank of ranks) {
      const other = transport.unasked(group, rank, number).find((tag) => tag !== operation.tag && opened(tag, transport.numbers).call !== "sendTo");
      if (other !== undefined && call !== "sendTo") {
        throw new CommError(
          `${where}: expected rank ${rank} to make the same call (${describe(operation)}, ${own} of this communicator), got ${describe(opened(other, transport.numbers))}. All ranks of a communicator make the same calls in the same order, on arrays of the same type.`,
        );
      }
      const { gone, text } = transport.whereabouts(group, rank) ?? { gone: false, text: "" };
      if (!gone) continue;
      // All that it sent is here by now.
      if (this.#move()) return true;
      throw new CommError(`${where}: expected rank ${rank} to take part (${describe(operation)}, ${own}), got its end: ${text}.`);
    }
    this.refuseStrays(group, where);
    transport.report(`${where} (${type === "nothing" ? "" : `${type}, `}${own}), for rank ${ranks.join(", ")}`);
    if (this.timeout > 0 && seconds >= this.timeout) {
      if (this.#move()) return true;
      const known = ranks.map((rank) => transport.whereabouts(group, rank)?.text).filter(Boolean).map((text) => ` ${text}.`).join("");
      throw new CommError(
        `${where}: expected rank ${ranks.join(", ")} to take part within ${this.timeout} s, got nothing (${describe(operation)}, ${own}).${known} It hangs, its host cannot be reached, or it has much to do by itself: SPARSEGATE_COMM_TIMEOUT is how many seconds to wait, 0 for ever.`,
      );
    }
    return false;
  }

  /** @throws CommError when a message has come of a call that this rank has made without asking for it: ranks did not mean the same */
  refuseStrays(group: Group, where: string): void {
    const { transport } = this;
    const stray = transport.arrived(group).map(({ from, tag }) => ({ from, ...opened(tag, transport.numbers) })).find((message) => this.#isPast(group, message));
    if (stray === undefined) return;
    this.fail(where, new CommError(`${where}: expected that all that was sent was asked for, got ${describe(stray)} (call ${stray.number}) from rank ${stray.from}, which this rank did not expect. Do all ranks give the same root?`));
  }

  /** Whether a message belongs to a call that this rank has made and ended, without asking for it. */
  #isPast(group: Group, { call, number }: { call: Call; number: number }): boolean {
    if (call === "sendTo" || call === "the end of the program") return false;
    for (const operation of this.open) if (operation.group === group && operation.call !== "sendTo" && operation.number === number) return false;
    // Numbers go round: what lies a little behind the next one is past, all else is ahead.
    const { numbers } = this.transport;
    const behind = (group.calls - number + numbers) % numbers;
    return behind > 0 && behind <= numbers / 4;
  }
}

function mismatch({ of: { peer, length, operation }, got }: LengthMismatch): CommError {
  const { call, type, number } = operation as Operation;
  const size = ELEMENT_BYTES[type];
  const where = call === "sendTo" ? "receiveFrom" : call.split(" ")[0];
  return new CommError(
    `${where}: expected ${length / size} elements of ${type} from rank ${peer} (${call === "sendTo" ? "tag" : "call"} ${number}), got ${typeof got === "string" ? got : got / size}. Counts and lengths have to agree on all ranks.`,
  );
}
