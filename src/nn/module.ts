/** Modules: things with parameters. Parameters are found by walking properties, and named by the path to them. */

import type { RandomKey } from "../backend/backend.js";
import { streamId } from "../core/random.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { keep } from "../tensor/scope.js";
import { empty, Tensor, type Shape, type Shard } from "../tensor/tensor.js";

/** What a forward pass depends on besides its input. Everything random follows from it, so one context gives one result. */
export interface RunContext {
  /** Dropout and gating noise happen only while training. */
  training: boolean;
  seed: number;
  /** Number of the training step: noise differs between steps. */
  step: number;
  /** Global index of the first row of this call, on all ranks together; rows draw their own noise, whoever computes them. */
  firstRow: number;
  /** int32 (rows): where each row of this rank stands among the rows of all, from 0. Left out: the rows are all here, or follow those of the ranks before. */
  rowIds?: Tensor;
}

/** Base of everything with parameters: subclasses keep parameters and other modules as properties, and are found by them. */
export abstract class Module {
  /** Whether `forward` without a context trains (dropout, gating noise). Set by `train()` and `eval()`. */
  training = true;
  #calls = 0;

  /** Every parameter by its path, such as `experts.inputWeight`, in a fixed order. */
  namedParameters(prefix = ""): Map<string, Tensor> {
    const found = new Map<string, Tensor>();
    for (const [property, value] of Object.entries(this)) collect(found, value, prefix ? `${prefix}.${property}` : property);
    return found;
  }

  /** Every parameter once, also where two properties share it. */
  parameters(): Tensor[] {
    return [...new Set(this.namedParameters().values())];
  }

  /** Every tensor that a checkpoint must hold: parameters, and the buffers that change without gradients (`buffer`), by path. */
  namedState(prefix = ""): Map<string, Tensor> {
    const found = new Map<string, Tensor>();
    for (const [property, value] of Object.entries(this)) collect(found, value, prefix ? `${prefix}.${property}` : property, true);
    return found;
  }

  /** Number of trainable scalars. */
  numParameters(): number {
    return this.parameters().reduce((sum, p) => sum + p.size, 0);
  }

  /** Turns training behaviour on (dropout, gating noise), in this module and those inside it. */
  train(): this {
    return this.#setTraining(true);
  }

  /** Turns training behaviour off, in this module and those inside it. */
  eval(): this {
    return this.#setTraining(false);
  }

  /** Frees all parameters, their gradients, and buffers. */
  dispose(): void {
    for (const tensor of new Set(this.namedState().values())) {
      tensor.zeroGrad();
      tensor.dispose();
    }
  }

  #setTraining(training: boolean): this {
    for (const module of this.#modules()) module.training = training;
    return this;
  }

  *#modules(): Generator<Module> {
    yield this;
    for (const part of Object.values(this)) yield* Module.#within(part);
  }

  /** Modules in a property, found where `collect` finds parameters. */
  static *#within(value: unknown): Generator<Module> {
    if (value instanceof Module) yield* value.#modules();
    else if (Array.isArray(value)) for (const part of value) yield* Module.#within(part);
  }

  /** The context of a call that was given none: the module's own mode, and a new step each time. */
  protected ownContext(): RunContext {
    return { training: this.training, seed: 0, step: this.#calls++, firstRow: 0 };
  }
}

function collect(found: Map<string, Tensor>, value: unknown, path: string, withBuffers = false): void {
  if (value instanceof Tensor) {
    if ((value.requiresGrad && !value.node) || (withBuffers && buffers.has(value))) found.set(path, value);
  } else if (value instanceof Module) {
    for (const [name, tensor] of withBuffers ? value.namedState(path) : value.namedParameters(path)) found.set(name, tensor);
  } else if (Array.isArray(value)) {
    for (const [i, part] of value.entries()) collect(found, part, `${path}.${i}`, withBuffers);
  }
}

const buffers = new WeakSet<Tensor>();

/** How a parameter starts. Random ones are drawn from a stream of the parameter's own name, so the order of construction does not matter. */
export type Init = { kind: "zeros" } | { kind: "ones" } | { kind: "constant"; value: number } | { kind: "uniform"; bound: number } | { kind: "normal"; std: number };

/**
 * Makes a trainable tensor that outlives every scope.
 * @param name path in the model; also the name of its random stream
 * @param shard which rows of the whole parameter `shape` has, where others have the rest: they start with the values that they have in the whole
 */
export function parameter(name: string, shape: Shape, init: Init, seed = 0, shard?: Shard): Tensor {
  const backend = defaultBackend();
  const p = keep(empty(shape, "float32", backend));
  p.requiresGrad = true;
  p.name = name;
  p.shard = shard;
  const key: RandomKey = { seed, stream: streamId("init", name), step: 0 };
  const start = (shard?.first ?? 0) * shape.slice(1).reduce((product, n) => product * n, 1);
  if (init.kind === "zeros") backend.fill(p.buffer, 0, p.size);
  else if (init.kind === "ones") backend.fill(p.buffer, 1, p.size);
  else if (init.kind === "constant") backend.fill(p.buffer, init.value, p.size);
  else if (init.kind === "uniform") backend.randomUniform(p.buffer, p.size, key, start, -init.bound, init.bound);
  else backend.randomNormal(p.buffer, p.size, key, start, 0, init.std);
  return p;
}

/** Makes a tensor of zeros that belongs to a module's state but has no gradient: it outlives every scope, and is saved in checkpoints. */
export function buffer(name: string, shape: Shape): Tensor {
  const backend = defaultBackend();
  const made = keep(empty(shape, "float32", backend));
  made.name = name;
  backend.fill(made.buffer, 0, made.size);
  buffers.add(made);
  return made;
}

/** Uniform with the variance 1/fanIn that keeps the scale of activations (LeCun). */
export function fanInUniform(fanIn: number): Init {
  return { kind: "uniform", bound: Math.sqrt(3 / Math.max(fanIn, 1)) };
}
