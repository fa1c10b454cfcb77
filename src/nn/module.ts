/** Modules: things with parameters. Parameters are found by walking properties, and named by the path to them. */

import type { RandomKey } from "../backend/backend.js";
import { checkInteger, checkNumber, checkOneOf } from "../core/checks.js";
import { ConfigError, expectation } from "../core/errors.js";
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

/**
 * Base of everything with parameters: subclasses keep parameters and other modules as properties, by themselves or in arrays, plain objects and maps, and are
 * found there. What stands in a `#private` property or a Set is not.
 *
 * A parameter whose `requiresGrad` is set to false is frozen: it stays among the parameters and in the state, but gets no gradient, so that no optimiser moves it
 * once a gradient that is there has been dropped (`zeroGrad`).
 */
export abstract class Module {
  /** Whether `forward` without a context trains (dropout, gating noise). Set by `train()` and `eval()`. */
  training = true;
  #calls = 0;

  /** Every parameter by its path, such as `experts.inputWeight`, in a fixed order. One that two properties share has the first one's name. */
  namedParameters(prefix = ""): Map<string, Tensor> {
    return tensorsOf(this, prefix, isParameter);
  }

  /** The parameters of `namedParameters`. */
  parameters(): Tensor[] {
    return [...this.namedParameters().values()];
  }

  /** Every tensor that a checkpoint must hold: parameters, frozen ones too, and the buffers that change without gradients (`buffer`), by path. */
  namedState(prefix = ""): Map<string, Tensor> {
    return tensorsOf(this, prefix, (tensor) => isParameter(tensor) || buffers.has(tensor));
  }

  /** Number of trainable scalars: of frozen parameters none. */
  numParameters(): number {
    return this.parameters().reduce((sum, p) => sum + (p.requiresGrad ? p.size : 0), 0);
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
    for (const tensor of this.namedState().values()) {
      tensor.zeroGrad();
      tensor.dispose();
    }
  }

  #setTraining(training: boolean): this {
    for (const [, module] of partsOf(this, "")) if (module instanceof Module) module.training = training;
    return this;
  }

  /** The context of a call that was given none: the module's own mode, and a new step each time. */
  protected ownContext(): RunContext {
    return { training: this.training, seed: 0, step: this.#calls++, firstRow: 0 };
  }
}

/** The tensors and modules at a value and below it, each once and by the first path to it; module before its parts. */
function* partsOf(value: unknown, path: string, seen = new Set<unknown>()): Generator<[path: string, part: Tensor | Module]> {
  if (typeof value !== "object" || value === null || seen.has(value)) return;
  seen.add(value);
  if (value instanceof Tensor) yield [path, value];
  else {
    if (value instanceof Module) yield [path, value];
    for (const [name, part] of entriesOf(value)) yield* partsOf(part, path ? `${path}.${String(name)}` : String(name), seen);
  }
}

/** What a module, an array, a map or a plain object holds, by name; nothing of any other object. */
function entriesOf(value: object): Iterable<[unknown, unknown]> {
  if (Array.isArray(value) || value instanceof Map) return value.entries();
  return value instanceof Module || Object.getPrototypeOf(value) === Object.prototype ? Object.entries(value) : [];
}

/** @throws ConfigError for two tensors of one path, as by the keys 1 and "1" of a map: one would be lost */
function tensorsOf(module: Module, prefix: string, wanted: (tensor: Tensor) => boolean): Map<string, Tensor> {
  const found = new Map<string, Tensor>();
  for (const [path, part] of partsOf(module, prefix)) {
    if (!(part instanceof Tensor) || !wanted(part)) continue;
    if (found.has(path)) throw new ConfigError(expectation("Module", "each parameter to have a path of its own", path, "Rename a property or a key."));
    found.set(path, part);
  }
  return found;
}

const parameters = new WeakSet<Tensor>();
const buffers = new WeakSet<Tensor>();

/** Made as one, frozen since or not, or a leaf that asks for a gradient. A result that was kept has no node either once its scope has freed it. */
function isParameter(tensor: Tensor): boolean {
  return parameters.has(tensor) || (tensor.requiresGrad && !tensor.node && !tensor.disposed);
}

/** How a parameter starts. Random ones are drawn from a stream of the parameter's own name, so the order of construction does not matter. */
export type Init = { kind: "zeros" } | { kind: "ones" } | { kind: "constant"; value: number } | { kind: "uniform"; bound: number } | { kind: "normal"; std: number };

/**
 * Makes a trainable tensor that outlives every scope.
 * @param name path in the model; also the name of its random stream
 * @param shard which rows of the whole parameter `shape` has, where others have the rest: they start with the values that they have in the whole
 * @throws ConfigError for an init of no known kind or without its number, and a seed that is no integer
 */
export function parameter(name: string, shape: Shape, init: Init, seed = 0, shard?: Shard): Tensor {
  checkInit(name, init);
  checkInteger(name, "seed", seed);
  const backend = defaultBackend();
  const p = keep(empty(shape, "float32", backend));
  p.requiresGrad = true;
  parameters.add(p);
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

/** Numbers that an init of a kind must say. */
const OF_INIT: Readonly<Record<Init["kind"], readonly string[]>> = { zeros: [], ones: [], constant: ["value"], uniform: ["bound"], normal: ["std"] };

function checkInit(name: string, init: Init): void {
  const kind = checkOneOf(name, "init.kind", (init as Init | undefined)?.kind, Object.keys(OF_INIT) as Init["kind"][]);
  for (const number of OF_INIT[kind]) checkNumber(name, `init.${number}`, init[number as keyof Init]);
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
