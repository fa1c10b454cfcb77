/** The tape: what was computed from parameters, and its reversal. Define-by-run: each operation records its own gradient. */

import { TensorError } from "../core/errors.js";
import { checkTensor } from "./shapes.js";
import { keep, scope } from "./scope.js";
import { empty, sameShape, type Gradient, type Tensor } from "./tensor.js";

/** Gradient of one input: dense, by rows (see `Gradient`), or none. */
export type InputGradient = Tensor | Gradient | undefined;

/** Turns the gradient of the output into those of the inputs, in order. `needs[i]` says whether input i wants one. */
export type Backward = (dy: Tensor, needs: readonly boolean[]) => readonly InputGradient[];

export interface TapeNode {
  readonly name: string;
  readonly id: number;
  readonly inputs: readonly Tensor[];
  backward: Backward | undefined;
}

let nextId = 0;
let recording = true;

/** Runs `body` without recording: for evaluation and optimiser steps. */
export function noGrad<T>(body: () => T): T {
  const before = recording;
  recording = false;
  try {
    return body();
  } finally {
    recording = before;
  }
}

/**
 * `body` of some tensors, without keeping what its gradients need: that is computed again in the backward pass (Chen et al. 2016; Shazeer et al. 2017, App. D).
 * The gradients are the same bit for bit; only where the body uses an input more than once, and so do later operations, are the parts of its gradient
 * added in another order.
 *
 * @param body must compute the same at each call, from its inputs and parameters alone (what changes something besides does so in `oncePerPass`);
 * @param parameters leaves that it uses besides its inputs
 * @throws TensorError for a parameter that is no leaf; `backward` does for a body that uses a result computed outside it
 */
export function recompute(body: (...inputs: Tensor[]) => Tensor, inputs: readonly Tensor[], parameters: readonly Tensor[]): Tensor {
  for (const p of parameters) if (p.node) throw new TensorError(`recompute: expected parameters that are leaves, got the result of ${p.node.name}. Pass it among the inputs.`);
  // A body inside another one remembers with it; where there will be no way back there is nothing to remember.
  const memory = recording || memoryNow ? remembered((): Memory => ({ values: [], complete: false, next: 0 })) : undefined;
  // What is remembered outlives the body's own scope, as its result does.
  const { result } = noGrad(() => scope(() => ({ result: remembering(memory, () => body(...inputs)), kept: memory ? [...tensorsOf(memory)] : [] })));
  // A body may hand an input on; the node must not become its own input.
  const y = inputs.includes(result) ? result.alias() : result;
  return record("recompute", y, [...inputs, ...parameters], (dy, needs) => {
    const leaves = inputs.map((input, i) => {
      const leaf = input.alias();
      leaf.requiresGrad = needs[i]!;
      return leaf;
    });
    const firstId = nextId;
    const again = withGrad(() => remembering(memory, () => body(...leaves)));
    if (!again.requiresGrad) return [];
    const before = again.node && nodesBelow(again).find(({ node }) => node!.id < firstId);
    if (before) throw new TensorError(`recompute: expected a body that computes from its inputs and parameters alone, got one that uses the result of ${before.node!.name}. Pass it among the inputs.`);
    // Leaves among the parameters get their gradients here; those of the inputs are passed on.
    run(again, dy, {});
    return leaves.map((leaf) => {
      if (!leaf.grad) return undefined;
      const gradient = toDense(leaf.grad, leaf);
      leaf.zeroGrad();
      return gradient;
    });
  });
}

/** What was computed once for a body that runs twice. */
interface Memory {
  readonly values: (Tensor | Memory)[];
  complete: boolean;
  /** While the body runs again: which value comes next. */
  next: number;
}

let memoryNow: Memory | undefined;

function* tensorsOf({ values }: Memory): Generator<Tensor> {
  for (const value of values) {
    if ("storage" in value) yield value;
    else yield* tensorsOf(value);
  }
}

function remembering<T>(memory: Memory | undefined, body: () => T): T {
  if (!memory) return body();
  const before = memoryNow;
  memoryNow = memory;
  memory.next = 0;
  try {
    const result = body();
    memory.complete = true;
    return result;
  } finally {
    memoryNow = before;
  }
}

/** What `compute` gave; where `recompute` runs its body again, what it gave the first time, so that what it changes is changed once. It has no gradient. */
export function oncePerPass<T extends Tensor>(compute: () => T): T {
  return remembered(() => noGrad(compute));
}

function remembered<T extends Tensor | Memory>(compute: () => T): T {
  const memory = memoryNow;
  if (!memory) return compute();
  if (memory.complete) return memory.values[memory.next++] as T;
  const value = compute();
  memory.values.push(value);
  return value;
}

function withGrad<T>(body: () => T): T {
  const before = recording;
  recording = true;
  try {
    return body();
  } finally {
    recording = before;
  }
}

export function isRecording(): boolean {
  return recording;
}

/** Whether an operation on these inputs has to be recorded. Operations ask before keeping what only `backward` needs. */
export function needsGrad(...inputs: readonly (Tensor | undefined)[]): boolean {
  return recording && inputs.some((input) => input !== undefined && input.requiresGrad);
}

/** Records that `output` was computed from `inputs`, when any of them needs a gradient. Returns `output`. */
export function record(name: string, output: Tensor, inputs: readonly Tensor[], backward: Backward): Tensor {
  if (needsGrad(...inputs)) {
    output.requiresGrad = true;
    output.node = { name, id: nextId++, inputs, backward };
  }
  return output;
}

/** What `backward` may be told. */
export interface BackwardOptions {
  /** Gradient of `loss`, in its shape; default: 1 for a scalar. */
  seed?: Tensor;
  /** Keep the graph for another backward. */
  retainGraph?: boolean;
  /**
   * Called with each leaf once nothing more will be added to its gradient, which may be none: what is done with it then goes on while the rest is computed.
   * Leaves come in an order that depends on the graph alone. It may read the gradient, but not write to it before `backward` returns: its memory may still be that
   * of another one on its way.
   */
  onComplete?: (leaf: Tensor) => void;
}

/**
 * Back-propagates from a scalar (or with `seed`, the gradient of a tensor of any shape) and adds dLoss/dp to `p.grad` of every leaf p with
 * `requiresGrad`. Each leaf's gradient outlives the scope; intermediate ones are freed as soon as they are used.
 *
 * @throws TensorError when `loss` is no scalar, depends on no parameter, or its graph was used before (pass `retainGraph` the first time), and when a tensor of
 * the graph that needs a gradient has been freed. Gradients are then as they were.
 */
export function backward(loss: Tensor, { seed, ...options }: BackwardOptions = {}): void {
  checkTensor("backward", loss);
  if (!seed && loss.size !== 1) {
    throw new TensorError(`backward: expected a scalar loss, got shape [${loss.shape.join(", ")}]. Take its sum or mean, or pass seed.`);
  }
  if (seed && !sameShape(seed.shape, loss.shape)) {
    throw new TensorError(`backward: expected seed of shape [${loss.shape.join(", ")}], got [${seed.shape.join(", ")}].`);
  }
  if (!loss.requiresGrad) throw new TensorError("backward: expected a loss computed from parameters, got one that depends on none of them (or was made under noGrad).");
  noGrad(() => scope(() => run(loss, seed, options)));
}

function run(loss: Tensor, seed: Tensor | undefined, { retainGraph = false, onComplete }: Omit<BackwardOptions, "seed">): void {
  void loss.buffer;
  const pending = new Map<Tensor, Tensor>();
  let start = seed;
  if (!start) {
    start = empty(loss.shape, "float32", loss.backend);
    loss.backend.fill(start.buffer, 1, start.size);
  }
  if (!loss.node) {
    addToLeaf(loss, start);
    return onComplete?.(loss);
  }
  const order = nodesBelow(loss);
  // Before anything is added to a leaf: a graph that is half used must not leave half of the gradients behind.
  for (const { node } of order) {
    if (!node!.backward) throw usedBefore(node!.name);
    // What was freed has lost its node, and would pass for a leaf.
    for (const input of node!.inputs) if (input.requiresGrad) void input.buffer;
  }
  const completed = onComplete && leavesByLastUse(order);
  accumulate(pending, loss, start);
  for (const output of order) {
    const dy = pending.get(output);
    if (dy) {
      pending.delete(output);
      passOn(dy, output.node!, pending);
      if (!retainGraph) output.node!.backward = undefined;
      dy.dispose();
    }
    for (const leaf of completed?.get(output) ?? []) onComplete!(leaf);
  }
}

/** Runs the gradient of one operation, in a scope of its own: what it needed in passing is freed before the next one runs. */
function passOn(dy: Tensor, node: TapeNode, pending: Map<Tensor, Tensor>): void {
  scope(() => {
    const gradients = node.backward!(dy, node.inputs.map((input) => input.requiresGrad));
    for (const [i, input] of node.inputs.entries()) {
      const gradient = gradients[i];
      if (!gradient || !input.requiresGrad) continue;
      if (input.node) accumulate(pending, input, toDense(gradient, input));
      else addToLeaf(input, gradient);
    }
  });
}

/** For the outputs of operations, the leaves that no later one of the order uses. */
function leavesByLastUse(order: readonly Tensor[]): Map<Tensor, Tensor[]> {
  const seen = new Set<Tensor>();
  const leaves = new Map<Tensor, Tensor[]>();
  for (const output of [...order].reverse()) {
    const last = new Set(output.node!.inputs.filter((input) => !input.node && input.requiresGrad && input.size > 0 && !seen.has(input)));
    for (const leaf of last) seen.add(leaf);
    leaves.set(output, [...last]);
  }
  return leaves;
}

function usedBefore(name: string): TensorError {
  return new TensorError(`backward: the graph at ${name} was used by an earlier backward and freed. Pass { retainGraph: true } to the first one, or compute the loss again.`);
}

/** Outputs of recorded operations that `loss` depends on, latest first: an order in which every gradient is complete when used. */
function nodesBelow(loss: Tensor): Tensor[] {
  const seen = new Set<Tensor>([loss]);
  const stack = [loss];
  while (stack.length > 0) {
    for (const input of stack.pop()!.node!.inputs) {
      if (input.node && !seen.has(input)) {
        seen.add(input);
        stack.push(input);
      }
    }
  }
  return [...seen].sort((a, b) => b.node!.id - a.node!.id);
}

/**
 * Adds to the gradient waiting for `target`. A waiting tensor that nobody else looks at is added to in place; one that shares its memory
 * (an operation may pass its dy on) is left as it is and a sum is made.
 */
function accumulate(pending: Map<Tensor, Tensor>, target: Tensor, gradient: Tensor): void {
  const before = pending.get(target);
  if (!before) {
    pending.set(target, keep(gradient.alias(target.shape)));
  } else if (before.storage.references === 1) {
    target.backend.axpy(1, gradient.buffer, before.buffer, target.size);
  } else {
    const sum = keep(empty(target.shape, "float32", target.backend));
    const spread = { div: 1, mod: Math.max(target.size, 1) };
    target.backend.binary("add", before.buffer, spread, gradient.buffer, spread, sum.buffer, target.size);
    before.dispose();
    pending.set(target, sum);
  }
}

/** Adds a gradient to a leaf. Gradients by rows stay by rows as long as only such are added. */
function addToLeaf(leaf: Tensor, gradient: Tensor | Gradient): void {
  void leaf.buffer;
  const { value, rows } = "rows" in gradient || "value" in gradient ? (gradient as Gradient) : { value: gradient as Tensor, rows: undefined };
  if (!leaf.grad) {
    leaf.grad = rows ? { value: own(value, value.shape), rows: own(rows, rows.shape) } : { value: own(value, leaf.shape) };
    return;
  }
  // In place only where nobody else looks: an operation that passes its dy on (add, reshape) gives the same memory to several inputs.
  if (!rows && !leaf.grad.rows && leaf.grad.value.storage.references === 1) {
    leaf.backend.axpy(1, value.buffer, leaf.grad.value.buffer, leaf.size);
    return;
  }
  if (rows && leaf.grad.rows) {
    mergeRows(leaf, leaf.grad, { value, rows });
    return;
  }
  const dense = toDense(leaf.grad, leaf);
  leaf.backend.axpy(1, toDense({ value, ...(rows ? { rows } : {}) }, leaf).buffer, dense.buffer, leaf.size);
  leaf.zeroGrad();
  leaf.grad = { value: keep(dense) };
}

/** A tensor that outlives the scope and shares its memory with nobody: the given one when it can be taken over, else a copy. */
function own(value: Tensor, shape: readonly number[]): Tensor {
  // The operation's own handle is the only one: take the memory over. Two handles mean that somebody else still reads it.
  if (value.storage.references === 1) return keep(value.alias(shape));
  const copy = empty(shape, value.dtype, value.backend);
  value.backend.copy(value.buffer, copy.buffer, value.size);
  return keep(copy);
}

/** Sum of two gradients by rows: one slot a row of the parameter, in use where either was. */
function mergeRows(leaf: Tensor, a: Gradient, b: Gradient): void {
  const rowCount = leaf.shape[0]!;
  const width = leaf.size / Math.max(rowCount, 1);
  const backend = leaf.backend;
  const merged = empty(leaf.shape, "float32", backend);
  backend.fill(merged.buffer, 0, merged.size);
  const flags = new Int32Array(rowCount).fill(-1);
  for (const part of [a, b]) {
    const rows = part.rows!;
    backend.addRowsAt(part.value.buffer, rows.buffer, rows.size, merged.buffer, width);
    for (const row of rows.dataSync()) if (row >= 0) flags[row] = row;
  }
  const rows = empty([rowCount], "int32", backend);
  backend.write(rows.buffer, flags);
  leaf.zeroGrad();
  leaf.grad = { value: keep(merged), rows: keep(rows) };
}

/** The gradient with the parameter's own shape. */
export function toDense(gradient: Tensor | Gradient, like: Tensor): Tensor {
  const isPair = "value" in gradient;
  const value = isPair ? gradient.value : (gradient as Tensor);
  const rows = isPair ? gradient.rows : undefined;
  if (!rows) {
    if (!isPair) return value;
    const copy = empty(like.shape, "float32", like.backend);
    like.backend.copy(value.buffer, copy.buffer, like.size);
    return copy;
  }
  const dense = empty(like.shape, "float32", like.backend);
  like.backend.fill(dense.buffer, 0, dense.size);
  like.backend.addRowsAt(value.buffer, rows.buffer, rows.size, dense.buffer, like.size / Math.max(like.shape[0]!, 1));
  return dense;
}
