/**
 * Optimisers. Parameters whose gradient comes by rows (embeddings, experts) are updated lazily: only the rows in use, each with its own count of
 * updates for the bias correction, so that an expert without rows is left exactly as it was.
 */

import type { AdamSettings } from "../backend/backend.js";
import { checkNumber, checkOptions } from "../core/checks.js";
import { ConfigError, expectation } from "../core/errors.js";
import { keep, scope } from "../tensor/scope.js";
import { toDense } from "../tensor/tape.js";
import { zeros, type Gradient, type Tensor } from "../tensor/tensor.js";

/** Updates parameters from their gradients. */
export interface Optimizer {
  /** One update of every parameter that has a gradient. Gradients are multiplied by `gradScale` first (clipping). */
  step(learningRate: number, gradScale?: number): void;
  /** Drops every gradient. */
  zeroGrad(): void;
  /** Its own tensors by name, for checkpoints. Made at the first use of a parameter. */
  state(): Map<string, Tensor>;
  /** Tensors that `state` will hold for every parameter, made now if they were not: to be filled from a checkpoint. */
  prepare(): Map<string, Tensor>;
  /** Steps taken so far. */
  steps: number;
  /** Frees the optimiser's own tensors; parameters stay. */
  dispose(): void;
}

/** What every optimiser takes. */
export interface OptimizerOptions {
  /** By what the learning rate of a parameter, by name, is multiplied. Default 1 for all. */
  learningRateScale?: (name: string) => number;
}

abstract class Base implements Optimizer {
  steps = 0;
  protected readonly slots = new Map<string, Tensor>();
  readonly #scales: ReadonlyMap<string, number>;

  constructor(readonly parameters: ReadonlyMap<string, Tensor>, { learningRateScale = () => 1 }: OptimizerOptions) {
    if (!(parameters instanceof Map)) throw new ConfigError(expectation("Optimizer", "a map of parameters by name", parameters, "Pass module.namedParameters()."));
    if (parameters.size === 0) throw new ConfigError("Optimizer: expected at least one parameter, got none. Pass module.namedParameters().");
    const names = new Map<Tensor, string>();
    for (const [name, p] of parameters) {
      if (names.has(p)) throw new ConfigError(expectation("Optimizer", "each parameter once", `${name}, which is ${names.get(p)}`, "Pass module.namedParameters()."));
      names.set(p, name);
    }
    this.#scales = new Map(Array.from(parameters.keys(), (name) => [name, learningRateScale(name)]));
    for (const [name, scale] of this.#scales) checkNumber("Optimizer", `learningRateScale of ${name}`, scale, { min: 0 });
  }

  step(learningRate: number, gradScale = 1): void {
    checkNumber("Optimizer.step", "learningRate", learningRate, { min: 0 });
    checkNumber("Optimizer.step", "gradScale", gradScale);
    this.steps++;
    for (const [name, p] of this.parameters) if (p.grad) this.update(name, p, p.grad, learningRate * this.#scales.get(name)!, gradScale);
  }

  /** One update of one parameter. */
  protected abstract update(name: string, p: Tensor, grad: Gradient, learningRate: number, gradScale: number): void;
  /** Names and shapes of the tensors kept for a parameter. */
  protected abstract layout(name: string, p: Tensor): { suffix: string; shape: readonly number[]; dtype: "float32" | "int32" }[];

  /** A tensor kept for a parameter, made at its first use. */
  protected slot(name: string, suffix: string): Tensor {
    const found = this.slots.get(`${name}.${suffix}`);
    if (found) return found;
    this.#make(name);
    return this.slots.get(`${name}.${suffix}`)!;
  }

  #make(name: string): void {
    const p = this.parameters.get(name)!;
    for (const { suffix, shape, dtype } of this.layout(name, p)) {
      const made = keep(zeros(shape, dtype, p.backend));
      // Whatever is kept for a parameter has its rows.
      made.shard = p.shard;
      this.slots.set(`${name}.${suffix}`, made);
    }
  }

  zeroGrad(): void {
    for (const p of this.parameters.values()) p.zeroGrad();
  }

  state(): Map<string, Tensor> {
    return this.slots;
  }

  prepare(): Map<string, Tensor> {
    for (const [name, p] of this.parameters) if (this.layout(name, p).some(({ suffix }) => !this.slots.has(`${name}.${suffix}`))) this.#make(name);
    return this.slots;
  }

  dispose(): void {
    for (const tensor of this.slots.values()) tensor.dispose();
    this.slots.clear();
  }
}

/** Hyperparameters of `Adam`, with its usual defaults. */
export interface AdamOptions extends OptimizerOptions {
  /** 0.9. With 0 no first moment is stored (App. D). */
  beta1?: number;
  beta2?: number;
  epsilon?: number;
  weightDecay?: number;
  /**
   * Parameters, by name, whose second moment is kept as row and column means only, with beta1 = 0: 8 instead of 16 bytes a scalar
   * (Shazeer et al. 2017, App. D). They must have three axes (experts, rows, columns) or two.
   */
  factored?: (name: string) => boolean;
}

/** Adam (Kingma & Ba 2015), lazy for gradients by rows, factored on request. */
export class Adam extends Base {
  readonly options: Required<Omit<AdamOptions, keyof OptimizerOptions>>;
  /** Updates of parameters whose last gradient was dense, which a step need not read; their tensors say the same. Forgotten when these may be filled from elsewhere. */
  readonly #counts = new Map<string, number>();

  constructor(parameters: ReadonlyMap<string, Tensor>, options: AdamOptions = {}) {
    checkOptions("Adam", options, ["beta1", "beta2", "epsilon", "weightDecay", "factored", "learningRateScale"] satisfies (keyof AdamOptions)[]);
    const { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weightDecay = 0, factored = () => false, ...common } = options;
    super(parameters, common);
    checkNumber("Adam", "beta1", beta1, { min: 0, max: 0.999999 });
    checkNumber("Adam", "beta2", beta2, { min: 0, max: 0.99999999 });
    checkNumber("Adam", "epsilon", epsilon, { min: 0, max: 1e30 });
    // In float32 it keeps the step of what never had a gradient from being 0/0.
    if (!(Math.fround(epsilon) > 0)) throw new ConfigError(expectation("Adam", "epsilon above 0 in float32", epsilon, "The usual one is 1e-8."));
    checkNumber("Adam", "weightDecay", weightDecay, { min: 0 });
    this.options = { beta1, beta2, epsilon, weightDecay, factored };
  }

  /** Leading axis of a factored parameter: one matrix each. */
  #matrices(p: Tensor): [count: number, height: number, width: number] {
    if (p.rank === 3) return [p.shape[0]!, p.shape[1]!, p.shape[2]!];
    if (p.rank === 2) return [1, p.shape[0]!, p.shape[1]!];
    throw new ConfigError(`Adam: expected a factored parameter to have two or three axes, got [${p.shape.join(", ")}] for ${p.name}.`);
  }

  protected layout(name: string, p: Tensor): { suffix: string; shape: readonly number[]; dtype: "float32" | "int32" }[] {
    const steps = { suffix: "steps", shape: [p.shape[0] ?? 1], dtype: "int32" as const };
    if (this.options.factored(name)) {
      const [count, height, width] = this.#matrices(p);
      return [
        { suffix: "rowMean", shape: [count, height], dtype: "float32" },
        { suffix: "colMean", shape: [count, width], dtype: "float32" },
        { ...steps, shape: [count] },
      ];
    }
    const moments = this.options.beta1 === 0 ? [] : [{ suffix: "m", shape: p.shape, dtype: "float32" as const }];
    return [...moments, { suffix: "v", shape: p.shape, dtype: "float32" }, steps];
  }

  protected update(name: string, p: Tensor, { value, rows }: Gradient, learningRate: number, gradScale: number): void {
    const { beta1, beta2, epsilon, weightDecay, factored } = this.options;
    const settings: AdamSettings = { learningRate, beta1, beta2, epsilon, weightDecay, gradScale };
    const steps = this.slot(name, "steps").buffer;
    if (factored(name)) {
      const [count, height, width] = this.#matrices(p);
      // Rows of a single matrix share its column means, so there they cannot be updated one by one.
      const byMatrix = p.rank === 3 ? rows : undefined;
      scope(() => {
        const gradient = rows && !byMatrix ? toDense({ value, rows }, p) : value;
        p.backend.factoredAdamRows(p.buffer, gradient.buffer, byMatrix?.buffer ?? null, byMatrix?.size ?? count, height, width,
          this.slot(name, "rowMean").buffer, this.slot(name, "colMean").buffer, steps, { ...settings, beta1: 0 });
      });
      return;
    }
    const m = beta1 === 0 ? null : this.slot(name, "m").buffer;
    const v = this.slot(name, "v").buffer;
    if (rows) {
      p.backend.adamRows(p.buffer, value.buffer, rows.buffer, rows.size, p.size / Math.max(p.shape[0]!, 1), m, v, steps, settings);
      this.#counts.delete(name);
    } else {
      const count = (this.#counts.get(name) ?? this.#savedCount(name)) + 1;
      p.backend.fill(steps, count, steps.length);
      this.#counts.set(name, count);
      p.backend.adam(p.buffer, value.buffer, m, v, p.size, count, settings);
    }
  }

  /** As `Optimizer.state`. What fills these tensors before the next step is taken for their state. */
  override state(): Map<string, Tensor> {
    this.#counts.clear();
    return super.state();
  }

  /** As `Optimizer.prepare`. What fills these tensors before the next step is taken for their state. */
  override prepare(): Map<string, Tensor> {
    this.#counts.clear();
    return super.prepare();
  }

  /** Updates of the row that has had the most, as its tensor says. */
  #savedCount(name: string): number {
    let count = 0;
    for (const n of this.slot(name, "steps").dataSync()) count = Math.max(count, n);
    // Checkpoints from before dense updates were counted have moments and no count.
    if (count === 0 && this.steps > 1 && this.slot(name, "v").dataSync().some((x) => x !== 0)) count = this.steps - 1;
    return count;
  }
}

/** Stochastic gradient descent: p −= learningRate · g. */
export class Sgd extends Base {
  constructor(parameters: ReadonlyMap<string, Tensor>, options: OptimizerOptions = {}) {
    checkOptions("Sgd", options, ["learningRateScale"] satisfies (keyof OptimizerOptions)[]);
    super(parameters, options);
  }

  protected layout(): [] {
    return [];
  }

  protected update(_name: string, p: Tensor, { value, rows }: Gradient, learningRate: number, gradScale: number): void {
    if (rows) p.backend.sgdRows(p.buffer, value.buffer, rows.buffer, rows.size, p.size / Math.max(p.shape[0]!, 1), learningRate, gradScale);
    else p.backend.sgd(p.buffer, value.buffer, p.size, learningRate, gradScale);
  }
}
