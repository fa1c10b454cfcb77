/** One forward and backward pass of a layer, alone or as one rank of several: what came out for the rows that are here, and the gradients. */

import { CpuBackend } from "#sparsegate/backend/cpu/index.js";
import { ReferenceBackend } from "#sparsegate/backend/reference/index.js";
import { HierarchicalGate } from "#sparsegate/moe/gates/hierarchical.js";
import { NoisyTopKGate } from "#sparsegate/moe/gates/noisy-top-k.js";
import { HierarchicalMoE } from "#sparsegate/moe/hierarchical.js";
import { MoE } from "#sparsegate/moe/layer.js";
import { Dropout, Linear } from "#sparsegate/nn/layers.js";
import { add, affine, backward, mul, setDefaultBackend, sum, tensor } from "#sparsegate/tensor/index.js";

/** Numbers from -1 to 1 that depend on nothing but their place (a linear congruential generator of Numerical Recipes). */
export function numbers(count, seed) {
  let state = seed >>> 0;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** The rows of the whole batch that each rank has. */
const SPREADS = {
  lanes: (rows, size) => Array.from({ length: size }, (_, r) => [...new Array(rows).keys()].filter((row) => (row % 7) % size === r)),
  blocks: (rows, size) => Array.from({ length: size }, (_, r) => [...new Array(rows).keys()].filter((row) => Math.floor((row * size) / rows) === r)),
  backwards: (rows, size) => Array.from({ length: size }, (_, r) => [...new Array(rows).keys()].reverse().filter((row) => (row % 7) % size === r)),
  last: (rows, size) => Array.from({ length: size }, (_, r) => (r === size - 1 ? [...new Array(rows).keys()] : [])),
};

/** A linear expert that drops. */
class Dropping extends Linear {
  constructor(options) {
    super(options);
    this.dropout = new Dropout(0.3, options.name);
  }

  forward(x, context) {
    return this.dropout.forward(super.forward(x), context);
  }
}

export default function layer(comm, { options, hierarchical = false, madeGate = false, modules = false, rows = 42, width = 6, spread = "lanes", training = true, backend = "reference", toOne = false }) {
  const made = backend === "reference" ? new ReferenceBackend() : new CpuBackend({ threads: 1 });
  const before = setDefaultBackend(made);
  try {
    const here = SPREADS[spread](rows, comm?.size ?? 1)[comm?.rank ?? 0];
    const experts = modules ? { experts: (i) => new Dropping({ name: `expert.${i}`, inputSize: width, outputSize: width, seed: 3 }) } : {};
    const level = (numExperts, name, numGroups) => new NoisyTopKGate({ hiddenSize: width, numExperts, numGroups, topK: 2, name });
    const gate = madeGate ? { gate: new HierarchicalGate({ primary: level(3, "gate.primary"), secondary: level(options.numExperts / 3, "gate.secondary", 3) }) } : {};
    const moe = new (hierarchical ? HierarchicalMoE : MoE)({ hiddenSize: width, seed: 3, ...options, ...experts, ...gate, comm });
    // Gates that start at zero would show little.
    for (const [name, p] of moe.namedParameters()) {
      if (!name.startsWith("gate")) continue;
      const before = p.shard ? (p.shard.first * p.size) / p.shape[0] || 0 : 0;
      made.write(p.buffer, numbers(before + p.size, name.length).slice(before).map((v, i) => (toOne && i % options.numExperts === 1 ? 3 : v)));
    }
    const pick = (seed) => {
      const all = numbers(rows * width, seed).map((v) => (toOne ? Math.abs(v) : v));
      return tensor(here.flatMap((row) => all.slice(row * width, (row + 1) * width)), [here.length, width]);
    };
    const x = pick(1);
    x.requiresGrad = true;
    // Blocks follow one another: no ids are needed.
    const rowIds = spread === "blocks" ? {} : { rowIds: tensor(here, [here.length], "int32") };
    const out = moe.forward(x, { training, seed: 5, step: 2, firstRow: 84, ...rowIds });
    backward(add(affine(sum(mul(out.output, pick(2))), 1 / rows), out.auxLoss));
    const list = (t) => Array.from(t.dataSync());
    const gradients = {};
    for (const [name, p] of moe.namedParameters()) {
      if (!p.grad) continue;
      const { value, rows: used } = p.grad;
      const dense = new Array(p.size).fill(0);
      const flags = used ? list(used) : undefined;
      const each = flags ? value.size / flags.length : value.size;
      list(value).forEach((v, i) => {
        const slot = Math.floor(i / each);
        if (!flags || flags[slot] >= 0) dense[(flags ? flags[slot] : 0) * each + (i % each)] += v;
      });
      gradients[name] = { first: p.shard && p.shard.first / p.shard.total, dense };
    }
    return {
      here, width,
      output: list(out.output), dx: list(x.grad.value), auxLoss: out.auxLoss.item(), importance: list(out.importance), load: list(out.load), offsets: list(out.routing.offsets),
      gradients,
      state: Object.fromEntries([...moe.namedState()].filter(([, t]) => !t.requiresGrad).map(([name, t]) => [name, list(t)])),
      parameters: moe.numParameters(),
    };
  } finally {
    setDefaultBackend(before);
    made.dispose();
  }
}
