/** Memory for what other ranks send, used again: fresh memory costs as much as the message, since the system hands it out page by page. */

import type { CommArray } from "./communicator.js";

/** Kept for the next call, at most, in bytes. */
const MOST_KEPT = 64 * 2 ** 20;

export class Scratch {
  readonly #kept: ArrayBufferLike[] = [];
  #bytes = 0;

  /** An array of the type of another, of `length` elements at least, whatever they are. */
  take(like: CommArray, length: number): CommArray {
    const bytes = length * like.BYTES_PER_ELEMENT;
    let best = -1;
    for (const [i, { byteLength }] of this.#kept.entries()) if (byteLength >= bytes && (best < 0 || byteLength < this.#kept[best]!.byteLength)) best = i;
    let buffer: ArrayBufferLike;
    if (best < 0) buffer = new ArrayBuffer(2 ** Math.ceil(Math.log2(Math.max(4096, bytes))));
    else {
      [buffer] = this.#kept.splice(best, 1) as [ArrayBufferLike];
      this.#bytes -= buffer.byteLength;
    }
    return new (like.constructor as new (buffer: ArrayBufferLike, at: number, length: number) => CommArray)(buffer, 0, length);
  }

  give({ buffer }: CommArray): void {
    if (this.#bytes + buffer.byteLength > MOST_KEPT) return;
    this.#kept.push(buffer);
    this.#bytes += buffer.byteLength;
  }
}
