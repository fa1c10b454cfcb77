/** The sparsely-gated mixture-of-experts layer: y = Σ_i G(x)_i · E_i(x) over the experts the gate picks (Shazeer et al. 2017, eq. 1). */

import { checkInteger } from "../core/checks.js";
import { ConfigError, TensorError } from "../core/errors.js";
import { Module, type RunContext } from "../nn/module.js";
import { combine, dispatch, routeByExpert, type Routing } from "../tensor/ops/rows.js";
import { reshape } from "../tensor/ops/shape.js";
import type { Tensor } from "../tensor/tensor.js";
import { FeedForwardExperts, ModuleExperts, type ExpertModule, type Experts } from "./experts.js";
import type { Gate, GateOutput } from "./gate.js";
import { NoisyTopKGate } from "./noisy-top-k.js";

/** Sizes, balance losses and experts of an `MoE` layer. */
export interface MoEOptions {
  /** Width D of input and output. */
  hiddenSize: number;
  /** E */
  numExperts: number;
  /**
   * K, experts a row uses. Default 4, the paper's flat layers (App. C), or numExperts when there are fewer. With 1 the softmax over the kept logit is
   * constant 1: the gate then learns from the balance losses alone, not from the task (the paper asks for k > 1, section 2.1).
   */
  topK?: number;
  /** Hidden width F of the feed-forward experts. Default 2·hiddenSize, as in the paper (512 → 1024 → 512). */
  expertHiddenSize?: number;
  /** Biases in the feed-forward experts. Default false, as in the paper. */
  bias?: boolean;
  /** Weight of the importance loss. Default 0.1 (App. C). */
  importanceWeight?: number;
  /** Weight of the load loss. Default 0.1 (App. C). */
  loadWeight?: number;
  /**
   * One module per expert, or a function making expert i, instead of the built-in feed-forward ones. They map (rows, D) to (rows, D).
   * Name each differently: parameters of one name start with the same random numbers.
   */
  experts?: readonly ExpertModule[] | ((index: number) => ExpertModule);
  name?: string;
  seed?: number;
}

/** What `MoE.forward` gives: the output, the loss to add, and what the balance statistics are made from. */
export interface MoEOutput {
  /** (..., D) as the input. */
  output: Tensor;
  /** Scalar: add it to the loss. */
  auxLoss: Tensor;
  /** (E) Σ gate values, and (E) rows per expert (a smooth estimate while training). */
  importance: Tensor;
  load: Tensor;
  /** (N, K) the chosen experts and their weights, best first. */
  experts: Tensor;
  gates: Tensor;
  /** (E+1) int32: expert e got routing.offsets[e+1] − routing.offsets[e] rows. */
  routing: Routing;
}

/**
 * A layer of many experts of which each row uses `topK`.
 *
 * ```ts
 * const moe = new MoE({ hiddenSize: 512, numExperts: 16, topK: 4, expertHiddenSize: 1024 });
 * const { output, auxLoss } = moe.forward(randomNormal([4, 1024, 512]));
 * ```
 * Experts without rows cost nothing and get no update. No row is ever dropped. A batch without rows gives an empty output and no loss. A row that is
 * not finite gives NaN in its own output and in the losses; other rows' outputs are right.
 */
export class MoE extends Module {
  readonly hiddenSize: number;
  readonly numExperts: number;
  readonly gate: Gate;
  readonly experts: Experts;

  constructor(options: MoEOptions) {
    super();
    const { hiddenSize, numExperts, topK = Math.min(4, numExperts), expertHiddenSize = 2 * hiddenSize, name = "moe", seed = 0 } = options;
    this.hiddenSize = checkInteger("MoE", "hiddenSize", hiddenSize, { min: 1 });
    this.numExperts = checkInteger("MoE", "numExperts", numExperts, { min: 1 });
    this.gate = new NoisyTopKGate({
      hiddenSize,
      numExperts,
      topK,
      ...(options.importanceWeight === undefined ? {} : { importanceWeight: options.importanceWeight }),
      ...(options.loadWeight === undefined ? {} : { loadWeight: options.loadWeight }),
      name: `${name}.gate`,
    });
    this.experts = options.experts
      ? customExperts(options.experts, numExperts)
      : new FeedForwardExperts({ numExperts, hiddenSize, expertHiddenSize, bias: options.bias ?? false, name: `${name}.experts`, seed });
  }

  /**
   * @param x (..., D): all leading axes are rows, so the time steps of a sequence form one big batch (section 2)
   * @param context training or not, and what noise depends on; by default the module's own mode and a new step each call
   * @throws TensorError when the width of x is not `hiddenSize`
   */
  forward(x: Tensor, context: RunContext = this.ownContext()): MoEOutput {
    if (x.rank < 1 || x.shape.at(-1) !== this.hiddenSize) {
      throw new TensorError(`MoE.forward: expected x of width ${this.hiddenSize} (hiddenSize), got ${x.shape.at(-1) ?? "a scalar"}. Did the embedding size change?`);
    }
    const x_ND = x.rank === 2 ? x : reshape(x, [-1, this.hiddenSize]);
    const gated: GateOutput = this.gate.forward(x_ND, context);
    const routing = routeByExpert(gated.experts_NK, this.numExperts);
    const out_MD = this.experts.forward(dispatch(x_ND, routing), routing.offsets_E1, context);
    const y_ND = combine(out_MD, gated.gates_NK, routing);
    return {
      output: x.rank === 2 ? y_ND : reshape(y_ND, x.shape),
      auxLoss: gated.auxLoss,
      importance: gated.importance_E,
      load: gated.load_E,
      experts: gated.experts_NK,
      gates: gated.gates_NK,
      routing,
    };
  }
}

function customExperts(given: NonNullable<MoEOptions["experts"]>, numExperts: number): Experts {
  const modules = typeof given === "function" ? Array.from({ length: numExperts }, (_, i) => given(i)) : given;
  if (modules.length !== numExperts) throw new ConfigError(`MoE: expected ${numExperts} experts (numExperts), got ${modules.length}.`);
  return new ModuleExperts(modules);
}
