/** Tensors: a shape over memory of one backend, with the gradient and the tape node that made it. */

import type { Backend, Buf, DType } from "../backend/backend.js";
import { expectation, TensorError } from "../core/errors.js";
import { defaultBackend } from "./default-backend.js";
import { track, untrack } from "./scope.js";
import type { TapeNode } from "./tape.js";

export type Shape = readonly number[];

/** One allocation and the number of tensors that look at it. */
export class Storage {
  references = 0;
  freed = false;
  constructor(
    readonly backend: Backend,
    readonly buffer: Buf,
  ) {}
}

/**
 * Lets the garbage collector free what was made outside every scope and then forgotten. Inside a scope the scope frees it, at a known time.
 */
const collector = new FinalizationRegistry<Storage>((storage) => release(storage));

function release(storage: Storage): void {
  if (storage.freed) return;
  storage.references -= 1;
  if (storage.references > 0) return;
  storage.freed = true;
  storage.backend.free(storage.buffer);
}

/**
 * Gradient of a parameter. Dense: `value` has the parameter's shape. By rows: slot s of `value` belongs to row `rows[s]` of the
 * parameter's first axis, and to none where it is -1, so that only the rows in use are stored or updated.
 */
export interface Gradient {
  value: Tensor;
  rows?: Tensor;
}

/** Which part of a larger tensor one is, that is cut along its first axis and spread over ranks: the rows from `first`, of `total` in all. */
export interface Shard {
  first: number;
  total: number;
}

/**
 * A multi-dimensional array of float32 or int32, row-major, on a backend.
 *
 * Made by `tensor`, `zeros`, `randomNormal`, ... and by operations. Freed at the end of the scope that it was made in (`scope`), by
 * `dispose`, or, outside every scope, by the garbage collector, which comes to it between turns of the event loop alone: a loop that never returns there
 * (awaiting `data` does not) needs a scope.
 */
export class Tensor {
  /** Set on parameters; the tape records what is computed from them. */
  requiresGrad = false;
  /** After `backward`: dLoss/dthis, for tensors made with `requiresGrad` (parameters). */
  grad: Gradient | undefined;
  /** @internal How it was computed; undefined for leaves. */
  node: TapeNode | undefined;
  /** Of a parameter (and of what an optimiser keeps for it) whose other parts are on other ranks. */
  shard: Shard | undefined;
  /** Shown in error messages; parameters carry their path in the model. */
  name = "";
  readonly size: number;
  #disposed = false;

  /** @internal Use `tensor`, `zeros` or an operation. */
  constructor(
    readonly storage: Storage,
    readonly shape: Shape,
    readonly dtype: DType,
  ) {
    this.size = sizeOf(shape);
    storage.references += 1;
    if (!track(this)) collector.register(this, storage, this);
  }

  get backend(): Backend {
    return this.storage.backend;
  }

  get rank(): number {
    return this.shape.length;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** The memory. @throws TensorError when it has been freed. */
  get buffer(): Buf {
    if (this.#disposed) {
      throw new TensorError(
        `Tensor${this.name ? ` ${this.name}` : ""} [${this.shape.join(", ")}]: its memory has been freed. ` +
          "It was made inside a scope() that has ended, or disposed. Return it from the scope, or call keep() on it.",
      );
    }
    return this.storage.buffer;
  }

  /** A copy of the elements, once they are computed. */
  async data(): Promise<Float32Array | Float64Array | Int32Array> {
    return this.backend.read(this.buffer.at(0, this.size));
  }

  /** A copy of the elements; blocks until they are computed. */
  dataSync(): Float32Array | Float64Array | Int32Array {
    return this.backend.readSync(this.buffer.at(0, this.size));
  }

  /** The value of a tensor with one element. */
  item(): number {
    if (this.size !== 1) throw new TensorError(`Tensor.item: expected a tensor with one element, got shape [${this.shape.join(", ")}].`);
    return this.dataSync()[0]!;
  }

  /** Frees the memory now, unless another tensor looks at it too. Calling it twice is harmless. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    if (!untrack(this)) collector.unregister(this);
    this.node = undefined;
    release(this.storage);
  }

  /** @internal Takes the tensor out of its scope's care; the caller or the collector frees it. */
  handToCollector(): void {
    if (!this.#disposed) collector.register(this, this.storage, this);
  }

  /** @internal Another tensor over the same memory, possibly of another shape. It has no tape node. */
  alias(shape: Shape = this.shape): Tensor {
    void this.buffer;
    return new Tensor(this.storage, shape, this.dtype);
  }

  /** Drops the gradient. */
  zeroGrad(): void {
    this.grad?.value.dispose();
    this.grad?.rows?.dispose();
    this.grad = undefined;
  }

  /** Shape, type and name, for messages. */
  toString(): string {
    const values = this.#disposed ? "freed" : Array.from(this.dataSync().slice(0, 8), (v) => Number(v.toPrecision(5))).join(", ");
    return `Tensor(${this.dtype} [${this.shape.join(", ")}]: ${values}${this.size > 8 ? ", ..." : ""})`;
  }
}

export function sizeOf(shape: Shape): number {
  return shape.reduce((product, n) => product * n, 1);
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((n, i) => n === b[i]);
}

/** Uninitialised memory of a shape. */
export function empty(shape: Shape, dtype: DType = "float32", backend: Backend = defaultBackend()): Tensor {
  if (dtype !== "float32" && dtype !== "int32") throw new TensorError(`tensor: expected dtype float32 or int32, got ${String(dtype)}.`);
  if (!Array.isArray(shape)) throw new TensorError(expectation("tensor", "a shape, as [2, 3]", shape));
  for (const n of shape) {
    if (!Number.isInteger(n) || n < 0) throw new TensorError(`tensor: expected a shape of non-negative integers, got [${shape.join(", ")}].`);
  }
  return new Tensor(new Storage(backend, backend.alloc(dtype, sizeOf(shape))), shape, dtype);
}

export function full(shape: Shape, value: number, dtype: DType = "float32", backend: Backend = defaultBackend()): Tensor {
  const result = empty(shape, dtype, backend);
  backend.fill(result.buffer, value, result.size);
  return result;
}

export function zeros(shape: Shape, dtype: DType = "float32", backend: Backend = defaultBackend()): Tensor {
  return full(shape, 0, dtype, backend);
}

/** Numbers as nested arrays; lists of one level have equal lengths. */
export type Nested = number | readonly Nested[];

/**
 * A tensor from numbers: nested arrays, or flat data with a shape.
 * @param data nested arrays (`[[1, 2], [3, 4]]`) or a flat array or typed array
 * @param shape needed when `data` is flat and the tensor is not a vector
 * @throws TensorError for ragged arrays, a length that does not fit the shape, values that are no numbers, and int32 values out of range
 */
export function tensor(data: Nested | ArrayLike<number>, shape?: Shape, dtype: DType = "float32", backend: Backend = defaultBackend()): Tensor {
  let flat: ArrayLike<number>;
  let found: number[];
  if (typeof data === "number") [flat, found] = [[data], []];
  else if (ArrayBuffer.isView(data)) [flat, found] = [data as unknown as ArrayLike<number>, [(data as unknown as ArrayLike<number>).length]];
  else [flat, found] = flatten(data as readonly Nested[]);
  const target = shape ?? found;
  if (sizeOf(target) !== flat.length) {
    throw new TensorError(`tensor: expected ${sizeOf(target)} elements for shape [${target.join(", ")}], got ${flat.length}.`);
  }
  for (let i = 0; i < flat.length; i++) {
    const v = flat[i];
    if (typeof v !== "number") throw new TensorError(`tensor: expected numbers, got ${typeof v} at element ${i}.`);
    if (dtype === "int32" && (v | 0) !== v) throw new TensorError(`tensor: expected 32-bit integers (dtype int32), got ${v} at element ${i}.`);
  }
  const result = empty(target, dtype, backend);
  backend.write(result.buffer, flat);
  return result;
}

function flatten(data: readonly Nested[]): [number[], number[]] {
  const shape: number[] = [];
  for (let level: Nested = data; Array.isArray(level); level = level[0]!) {
    shape.push(level.length);
    if (level.length === 0) break;
  }
  const flat: number[] = [];
  const visit = (value: Nested, depth: number): void => {
    if (Array.isArray(value)) {
      if (depth >= shape.length || value.length !== shape[depth]) throw new TensorError("tensor: expected nested arrays of equal lengths, got ragged ones.");
      for (const part of value) visit(part, depth + 1);
    } else {
      if (depth !== shape.length) throw new TensorError("tensor: expected nested arrays of equal depth, got ragged ones.");
      flat.push(value as number);
    }
  };
  visit(data, 0);
  return [flat, shape];
}
