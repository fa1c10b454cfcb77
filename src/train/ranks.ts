/**
 * Training on ranks (Shazeer et al. 2017, section 3.1): each has its lanes of the batch, all ordinary parameters and its experts. The global batch and all
 * figures are those of one rank; gradients of ordinary parameters are added up in buckets, each begun as soon as the way back has filled it.
 */

import type { CommArray, Communicator, Pending } from "../comm/communicator.js";
import { firstNonFinite } from "../core/checks.js";
import { NonFiniteError } from "../core/errors.js";
import type { TranslationBatch } from "../models/translation-model.js";
import type { Module } from "../nn/module.js";
import { rowGradient } from "../tensor/ops/rows.js";
import { keep, scope } from "../tensor/scope.js";
import { tensor, type Shard, type Tensor } from "../tensor/tensor.js";
import type { Batch } from "../text/batches.js";
import type { PairBatch } from "../text/pair-batches.js";

/** Bytes of gradients that are added up together: large enough that a message's time counts little, small enough that one bucket travels while the next is filled. */
const BUCKET_BYTES = 4 * 2 ** 20;

/** The communicator, where there is more than one rank. */
export function several(comm: Communicator | undefined): Communicator | undefined {
  return comm && comm.size > 1 ? comm : undefined;
}

/** Which lanes of a batch a rank has: as even as can be, one after the other. */
export function lanesOf(batchSize: number, { rank, size }: Pick<Communicator, "rank" | "size">): Shard & { count: number } {
  const start = (r: number): number => Math.floor((r * batchSize) / size);
  return { first: start(rank), count: start(rank + 1) - start(rank), total: batchSize };
}

/** This rank's lanes of a batch. */
export function ownLanes(batch: Batch, comm: Pick<Communicator, "rank" | "size">): Batch {
  const lanes = lanesOf(batch.batchSize, comm);
  const cut = (all: Int32Array): Int32Array => cutLanes(all, batch.timeSteps, lanes);
  const targets = cut(batch.targets);
  return { ...batch, inputs: cut(batch.inputs), targets, resets: cut(batch.resets), batchSize: lanes.count, tokens: countTargets(targets) };
}

/** This rank's pairs of a batch, which may be none, and what it has to know of the others. */
export function ownPairs(batch: PairBatch, comm: Pick<Communicator, "rank" | "size">): TranslationBatch & { readonly tokens: number } {
  const { sourceLengths, targetLengths, sourceSteps, targetSteps } = batch;
  const lanes = lanesOf(batch.batchSize, comm);
  const targets = cutLanes(batch.targets, targetSteps, lanes);
  return {
    sources: cutLanes(batch.sources, sourceSteps, lanes),
    sourceLengths: sourceLengths.slice(lanes.first, lanes.first + lanes.count),
    inputs: cutLanes(batch.inputs, targetSteps, lanes),
    targets,
    sourceSteps,
    targetSteps,
    batchSize: lanes.count,
    tokens: countTargets(targets),
    whole: { first: lanes.first, sourceLengths, targetLengths },
  };
}

/** Of a rectangle (time, lane) the columns of some lanes. */
function cutLanes(all: Int32Array, steps: number, { first, count, total }: ReturnType<typeof lanesOf>): Int32Array {
  const own = new Int32Array(steps * count);
  for (let t = 0; t < steps; t++) own.set(all.subarray(t * total + first, t * total + first + count), t * count);
  return own;
}

const countTargets = (targets: Int32Array): number => targets.reduce((n, target) => n + (target >= 0 ? 1 : 0), 0);

/** int32: where each row of `ownLanes` stands in the batch of all ranks. */
export function rowIdsOf(batch: Batch, comm: Pick<Communicator, "rank" | "size">): Tensor {
  const { first, count } = lanesOf(batch.batchSize, comm);
  const ids = Int32Array.from({ length: batch.timeSteps * count }, (_, i) => Math.floor(i / count) * batch.batchSize + first + (i % count));
  return tensor(ids, [ids.length], "int32");
}

/** Σ over ranks of a number, the same on all. */
export function sumOverRanks(comm: Communicator | undefined, value: number): number {
  if (!comm) return value;
  const all = Float64Array.of(value);
  comm.allReduce(all);
  return all[0]!;
}

/** Whether something is true on any rank: what all then do alike. */
export function onAnyRank(comm: Communicator | undefined, value: boolean): boolean {
  if (!comm) return value;
  const all = Int32Array.of(value ? 1 : 0);
  comm.allReduce(all, "max");
  return all[0] === 1;
}

/** The texts of each rank, on all. */
export function gatherStrings(comm: Communicator, own: readonly string[]): string[][] {
  const bytes = Int32Array.from(Buffer.from(JSON.stringify(own)));
  const counts = new Int32Array(comm.size);
  comm.allGather(Int32Array.of(bytes.length), counts);
  const all = new Int32Array(counts.reduce((sum, n) => sum + n, 0));
  comm.allGather(bytes, all, counts);
  let end = 0;
  return Array.from(counts, (count) => JSON.parse(Buffer.from(all.subarray(end, (end += count))).toString()) as string[]);
}

/** The error where a parameter of another rank is not finite, which that rank names: all ranks end then, and none runs the model again. */
export function onOtherRank(model: Module, comm: Communicator | undefined, where: string): NonFiniteError | undefined {
  if (!comm) return undefined;
  const here = [...model.namedState().values()].some((tensor) => firstNonFinite(tensor.dataSync()) >= 0);
  return onAnyRank(comm, here) && !here ? new NonFiniteError(`${where}: expected finite values in the parameters of all ranks, got others on another rank.`) : undefined;
}

/**
 * Adds up over ranks the gradients of all parameters that every rank has; those of parts (`Tensor.shard`) are whole where they are.
 *
 *     const sums = new GradientSums(comm);
 *     backward(loss, { onComplete: (p) => sums.add(p) });
 *     sums.finish();
 */
export class GradientSums {
  readonly #comm: Communicator;
  readonly #open: { bucket: CommArray; sum: Pending; members: readonly Tensor[] }[] = [];
  readonly #byRows: Tensor[] = [];
  #members: Tensor[] = [];
  #elements = 0;

  constructor(comm: Communicator) {
    this.#comm = comm;
  }

  /** Takes the gradient of a parameter, to which nothing more is added on this rank. Called on all ranks in the same order. */
  add(p: Tensor): void {
    // Alone, the sum is what is there; a copy of it would take as much memory again as the experts' gradients.
    if (this.#comm.size === 1 || !p.grad || p.shard) return;
    if (p.grad.rows) {
      this.#byRows.push(p);
      return;
    }
    if (4 * (this.#elements + p.size) > BUCKET_BYTES) this.#send();
    this.#members.push(p);
    this.#elements += p.size;
    if (4 * this.#elements >= BUCKET_BYTES) this.#send();
  }

  /** Begins the sum of what has been gathered. */
  #send(): void {
    if (this.#members.length === 0) return;
    const parts = this.#members.map((p) => p.grad!.value.dataSync());
    const bucket = new (parts[0]!.constructor as new (length: number) => Float32Array)(this.#elements);
    for (let at = 0, i = 0; i < parts.length; at += parts[i++]!.length) bucket.set(parts[i]!, at);
    this.#open.push({ bucket, sum: this.#comm.allReduceStart(bucket), members: this.#members });
    [this.#members, this.#elements] = [[], 0];
  }

  /** Waits for all sums and puts them in the gradients' place. */
  finish(): void {
    this.#send();
    // Asked for their numbers of rows, ranks wait for each other: all else is on its way by then.
    for (const p of this.#byRows) gatherRowGradient(this.#comm, p);
    for (const { bucket, sum, members } of this.#open) {
      sum.wait();
      let at = 0;
      for (const { grad, size, backend } of members) {
        backend.write(grad!.value.buffer, bucket.subarray(at, at + size));
        at += size;
      }
    }
  }
}

/** A gradient by rows stays by rows: ranks send each other those in use, and add up those of the same number. */
function gatherRowGradient(comm: Communicator, p: Tensor): void {
  const { value, rows } = p.grad!;
  const [flags, values] = [rows!.dataSync(), value.dataSync()];
  // Not by the slots: a rank without rows has none.
  const width = p.size / Math.max(p.shape[0]!, 1);
  const used = [...flags.keys()].filter((slot) => flags[slot]! >= 0);
  const counts = new Int32Array(comm.size);
  comm.allGather(Int32Array.of(used.length), counts);
  const total = counts.reduce((sum, n) => sum + n, 0);
  const make = (length: number): Float32Array => new (values.constructor as new (length: number) => Float32Array)(length);
  const [own, all, index] = [make(used.length * width), make(total * width), new Int32Array(total)];
  for (const [i, slot] of used.entries()) own.set(values.subarray(slot * width, (slot + 1) * width), i * width);
  comm.allGather(Int32Array.from(used, (slot) => flags[slot]!), index, counts);
  comm.allGather(own, all, Array.from(counts, (n) => n * width));
  scope(() => {
    const { backend } = p;
    const sum = rowGradient(tensor(all, [total, width], "float32", backend), tensor(index, [total], "int32", backend), total, p.shape[0]!, width);
    p.zeroGrad();
    p.grad = { value: keep(sum.value), rows: keep(sum.rows!) };
  });
}
