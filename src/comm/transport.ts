/** What carries messages from rank to rank. It knows nothing of calls, only of who sends how much to whom under which tag. */

import type { CommArray, Communicator } from "./communicator.js";

/** The ranks of one communicator, as a transport knows them. */
export interface Group {
  /** This rank's place in it. */
  readonly rank: number;
  /** For each place, the rank in the whole program. */
  readonly world: readonly number[];
  /** Number of the next call, which goes round at `Transport.numbers`; the same on all its ranks. */
  calls: number;
}

/** One message, to be sent or received. Both sides post it with the same length; messages between two ranks under one tag arrive in order. */
export class Message {
  done = false;

  constructor(
    readonly operation: { messageEnded(): void },
    readonly group: Group,
    /** The other rank's place in the group. */
    readonly peer: number,
    readonly tag: number,
    readonly data: CommArray,
    /** Bytes from the beginning of `data`. */
    readonly offset: number,
    /** Bytes. */
    readonly length: number,
    readonly sends: boolean,
  ) {}

  /** The transport's word that it has arrived, or that its data may be used again. */
  end(): void {
    this.done = true;
    this.operation.messageEnded();
  }
}

/** What a transport throws when a message is not of the length it should have. */
export class LengthMismatch extends Error {
  constructor(
    readonly of: Message,
    /** What came, in bytes; or that it was more than there is room for. */
    readonly got: number | "more" | "less",
  ) {
    super("LengthMismatch");
  }
}

export interface Transport<G extends Group = Group> {
  readonly kind: Communicator["kind"];
  /** All ranks of the program. */
  readonly whole: G;
  /** Numbers that a tag has room for: a power of 2, and far more than one rank can be ahead of another in calls. */
  readonly numbers: number;
  send(message: Message): void;
  receive(message: Message): void;
  /** Moves what can be moved, without waiting. @returns whether anything did @throws Error when the ranks cannot go on */
  progress(): boolean;
  /** Waits a little for something to move. @param waited milliseconds since anything did */
  idle(waited: number): void;
  /** Messages that have come and that nobody has asked for: what can be seen of them at once. */
  arrived(group: G): { from: number; tag: number }[];
  /** Tags of such messages from one rank that bear a number. Slow: for finding out what went wrong. */
  unasked(group: G, from: number, number: number): number[];
  /** What is known of a rank that others wait for: that it has ended (`gone`), or where it is. */
  whereabouts(group: G, rank: number): { gone: boolean; text: string } | undefined;
  /** Tells others where this rank waits, once it has waited for long; undefined when it goes on. */
  report(where: string | undefined): void;
  /** A number that no other call on any rank gets, for `split`; 0 where the transport needs none. */
  freshId(): number;
  /** Called by all ranks of `parent` at the same time. @param id the same on all ranks of the new group, from `freshId` of one of them */
  split(parent: G, color: number, key: number, rank: number, world: readonly number[], id: number): G;
  free(group: G): void;
  /** Makes all other ranks end, if it can from here, and lets this one go on to its own end. */
  fail(message: string): void;
  /** Ends all ranks, and this process where others cannot be ended otherwise. */
  abort(message: string): void;
  /** Ends what is between the ranks, in good order: every rank is in this call. */
  close(): void;
}
