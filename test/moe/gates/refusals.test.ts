/** What gates and layers refuse, and what they say. */

import { describe, expect, it } from "vitest";
import { ConfigError } from "#sparsegate/core/errors.js";
import { ExpertChoiceGate } from "#sparsegate/moe/gates/expert-choice.js";
import { HierarchicalGate } from "#sparsegate/moe/gates/hierarchical.js";
import { makeGate, type GateConfig } from "#sparsegate/moe/gates/index.js";
import { HierarchicalMoE, type HierarchicalMoEOptions } from "#sparsegate/moe/hierarchical.js";
import { MoE, type MoEOptions } from "#sparsegate/moe/layer.js";
import { Linear } from "#sparsegate/nn/layers.js";
import * as sg from "#sparsegate/tensor/index.js";
import { BACKENDS, useBackend } from "../../use-backend.js";

const flat = (gate: unknown, options: Partial<MoEOptions> = {}) =>
  new MoE({ hiddenSize: 3, numExperts: 4, gate: gate as GateConfig, ...options });
const deep = (options: object) =>
  new HierarchicalMoE({ hiddenSize: 3, numExperts: [2, 3], ...options } as HierarchicalMoEOptions);
const gate = (numExperts: number, numGroups?: number) => makeGate("switch", { hiddenSize: 3, numExperts, numGroups });

const CASES: [claim: string, make: () => unknown, message: RegExp][] = [
  [
    "an unknown gate, with the nearest name",
    () => flat("swich"),
    /^gate: expected one of noisy-top-k, softmax, .*, sigmoid, got "swich"\. Did you mean switch\?$/,
  ],
  ["an unknown gate of a configuration", () => flat({ type: "topk" }), /got "topk"\. Did you mean top-k\?$/],
  ["a gate that no name is near", () => flat("best"), /^gate: expected one of .*, got "best"\.$/],
  ["a name of Object's own", () => flat("constructor"), /^gate: expected one of .*, got "constructor"\.$/],
  ["a configuration without a type", () => flat({ jitter: 0.1 }), /^gate: expected one of .*, got undefined\.$/],
  ["null for a gate", () => flat(null), /^gate: expected one of .*, got null\.$/],
  ["a number for a gate", () => flat(4), /^gate: expected one of .*, got 4\.$/],
  [
    "an option that no gate has, with the nearest of this one",
    () => flat({ type: "switch", jiter: 0.1 }),
    /^gate switch: expected options among .*, got "jiter"\. Did you mean jitter\?$/,
  ],
  [
    "an option of another gate",
    () => flat({ type: "top-k", jitter: 0.1 }),
    /^gate top-k: expected options among .*auxLossWeight, got "jitter"\.$/,
  ],
  [
    "topK among the gate's options",
    () => flat({ type: "top-k", topK: 3 }),
    /^gate top-k: expected options among .*, got "topK"\. It is an option of the layer\.$/,
  ],
  [
    "a capacity where experts pick rows",
    () => flat({ type: "strictly-balanced", capacityFactor: 1 }),
    /^gate strictly-balanced: expected options among .*, got "capacityFactor"\. The experts of this gate pick their rows/,
  ],
  [
    "a capacity of the layer where experts pick rows",
    () => flat("expert-choice", { evalCapacityFactor: 1 }),
    /^gate expert-choice: .*got "evalCapacityFactor"\. The experts/,
  ],
  [
    "topK of switch",
    () => flat("switch", { topK: 2 }),
    /^gate switch: expected topK 1, which this gate always has, got 2\. Leave topK out, or take another gate\.$/,
  ],
  ["topK of gshard", () => flat("gshard", { topK: 1 }), /^gate gshard: expected topK 2, which this gate always has, got 1\./],
  ["topK of softmax", () => flat("softmax", { topK: 3 }), /^gate softmax: expected topK 4, which this gate always has, got 3\./],
  [
    "topK beyond the experts: noisy-top-k",
    () => flat("noisy-top-k", { topK: 5 }),
    /^NoisyTopKGate: expected topK to be an integer from 1 to 4, got 5\. A row cannot use more experts/,
  ],
  [
    "topK beyond the experts: top-k",
    () => flat("top-k", { topK: 5 }),
    /^TopKGate: expected topK to be an integer from 1 to 4, got 5\./,
  ],
  [
    "topK beyond the experts: sigmoid",
    () => flat("sigmoid", { topK: 5 }),
    /^SigmoidGate: expected topK to be an integer from 1 to 4, got 5\./,
  ],
  [
    "topK beyond the experts: strictly-balanced",
    () => flat("strictly-balanced", { topK: 4.5 }),
    /^StrictlyBalancedGate: expected topK to be a finite number from 0\.000001 to 4, got 4\.5\./,
  ],
  [
    "topK beyond the experts: expert-choice",
    () => flat("expert-choice", { topK: 5 }),
    /^ExpertChoiceGate: expected topK to be a finite number from 0\.000001 to 4, got 5/,
  ],
  [
    "topK 0",
    () => flat("expert-choice", { topK: 0 }),
    /^ExpertChoiceGate: expected topK to be a finite number from 0\.000001 to 4, got 0/,
  ],
  [
    "half an expert where experts are counted",
    () => flat("top-k", { topK: 1.5 }),
    /^TopKGate: expected topK to be an integer from 1 to 4, got 1\.5/,
  ],
  [
    "gshard with one expert",
    () => flat("gshard", { numExperts: 1 }),
    /^GShardGate: expected numExperts of at least 2 \(a first and a second expert\), got 1\. Use the Switch gate/,
  ],
  [
    "a capacity of nothing",
    () => flat("switch", { capacityFactor: 0 }),
    /^SwitchGate: expected capacityFactor above 0 \(rows an expert takes at most, over its equal share\), got 0\. Leave it out to drop nothing\.$/,
  ],
  [
    "a negative capacity in evaluation",
    () => flat({ type: "gshard", evalCapacityFactor: -1 }),
    /^GShardGate: expected evalCapacityFactor above 0 .*, got -1\./,
  ],
  [
    "a capacity that is no number",
    () => flat("top-k", { capacityFactor: NaN }),
    /^TopKGate: expected capacityFactor above 0 .*, got NaN\./,
  ],
  [
    "a capacity that is infinite",
    () => flat("top-k", { capacityFactor: Infinity }),
    /^TopKGate: expected capacityFactor above 0 .*, got Infinity\. Leave it out to drop nothing/,
  ],
  [
    "a capacity in words",
    () => flat("top-k", { capacityFactor: "2" as unknown as number }),
    /^TopKGate: expected capacityFactor above 0 .*, got "2"\./,
  ],
  [
    "an unknown policy of dropping",
    () => flat("switch", { dropPolicy: "random" as "arrival" }),
    /^SwitchGate: expected dropPolicy arrival or probability, got "random"/,
  ],
  [
    "an unknown policy for the second expert",
    () => flat({ type: "gshard", secondPolicy: "some" }),
    /^GShardGate: expected secondPolicy to be one of all, none, threshold, random, got "some"/,
  ],
  [
    "an unknown policy in evaluation",
    () => flat({ type: "gshard", evalSecondPolicy: "some" }),
    /^GShardGate: expected evalSecondPolicy to be one of all, none, threshold, got "some"/,
  ],
  [
    "a threshold of 0",
    () => flat({ type: "gshard", secondThreshold: 0 }),
    /^GShardGate: expected secondThreshold to be a finite number from 1e-9 to 1, got 0/,
  ],
  [
    "jitter beyond 1",
    () => flat({ type: "switch", jitter: 1.5 }),
    /^SwitchGate: expected jitter to be a finite number from 0 to 1, got 1\.5/,
  ],
  [
    "a negative weight of the gate's own loss",
    () => flat({ type: "switch", auxLossWeight: -1 }),
    /^SwitchGate: expected auxLossWeight to be a finite number of at least 0, got -1/,
  ],
  [
    "a negative z-loss",
    () => flat("top-k", { zLossWeight: -1 }),
    /^TopKGate: expected zLossWeight to be a finite number of at least 0, got -1/,
  ],
  [
    "a negative importance loss",
    () => flat("softmax", { importanceWeight: -1 }),
    /^SoftmaxGate: expected importanceWeight to be a finite number of at least 0/,
  ],
  [
    "a negative loss of thresholds",
    () => flat({ type: "strictly-balanced", thresholdWeight: -1 }),
    /^StrictlyBalancedGate: expected thresholdWeight to be a finite number of at least 0/,
  ],
  [
    "biases that move backwards",
    () => flat({ type: "sigmoid", biasUpdateRate: -0.1 }),
    /^SigmoidGate: expected biasUpdateRate to be a finite number of at least 0/,
  ],
  [
    "a negative scale",
    () => flat({ type: "sigmoid", scale: -1 }),
    /^SigmoidGate: expected scale to be a finite number of at least 0/,
  ],
  [
    "a gate made for another number of experts",
    () => flat(gate(5)),
    /^MoE: expected a gate of 4 experts \(numExperts\), got 5\.$/,
  ],
  [
    "losses and limits beside a gate made elsewhere",
    () => flat(gate(4), { importanceWeight: 1, topK: 1 }),
    /^MoE: expected no importanceWeight, topK beside a gate made elsewhere, got SwitchGate\. Give them to the gate\.$/,
  ],
  [
    "a flat numExperts for two levels",
    () => deep({ numExperts: 6 }),
    /^HierarchicalMoE: expected numExperts \[groups, experts of each group\], got 6\.$/,
  ],
  [
    "three levels",
    () => deep({ numExperts: [2, 2, 2] }),
    /^HierarchicalMoE: expected numExperts \[groups, experts of each group\], got \[2, 2, 2\]\.$/,
  ],
  [
    "no groups",
    () => deep({ numExperts: [0, 3] }),
    /^HierarchicalMoE: expected numExperts\[0\] \(groups\) to be an integer of at least 1, got 0\.$/,
  ],
  [
    "empty groups",
    () => deep({ numExperts: [2, 0] }),
    /^HierarchicalMoE: expected numExperts\[1\] \(experts of each group\) to be an integer of at least 1, got 0\.$/,
  ],
  [
    "a flat topK for two levels",
    () => deep({ topK: 2 }),
    /^HierarchicalMoE: expected topK \[groups a row goes to, experts it uses in each\], got 2\.$/,
  ],
  ["topK beyond the groups", () => deep({ topK: [3, 1] }), /^NoisyTopKGate: expected topK to be an integer from 1 to 2, got 3\./],
  [
    "topK beyond the experts of a group",
    () => deep({ topK: [1, 4] }),
    /^NoisyTopKGate: expected topK to be an integer from 1 to 3, got 4\./,
  ],
  [
    "an unknown gate inside the groups",
    () => deep({ secondaryGate: "swich" }),
    /^gate: expected one of .*, got "swich"\. Did you mean switch\?$/,
  ],
  ["no options in groups", () => new HierarchicalMoE(undefined as never), /^HierarchicalMoE: expected an object of options, got undefined\.$/],
  [
    "a capacity that is neither level's",
    () => deep({ capacityFactor: 1 }),
    /^HierarchicalMoE: expected no capacityFactor beside its gates, got 1\. Give them to one, as in secondaryGate: /,
  ],
  [
    "a primary gate that is in groups itself",
    () => new HierarchicalGate({ primary: gate(2, 2), secondary: gate(3, 2) }),
    /^HierarchicalGate: expected a primary gate without numGroups, got 2\.$/,
  ],
  [
    "secondary gates of another number of groups",
    () => new HierarchicalGate({ primary: gate(2), secondary: gate(3, 4) }),
    /^HierarchicalGate: expected a secondary gate with numGroups 2, the experts of the primary one, got 4\.$/,
  ],
  [
    "a secondary gate without groups",
    () => new HierarchicalGate({ primary: gate(2), secondary: gate(3) }),
    /^HierarchicalGate: expected a secondary gate with numGroups 2, the experts of the primary one, got "none"\.$/,
  ],
  [
    "a negative number of shared experts",
    () => flat("top-k", { sharedExperts: -1 }),
    /^MoE: expected sharedExperts to be an integer of at least 0, got -1/,
  ],
  [
    "an unknown activation",
    () => flat("top-k", { activation: "tanh" as "relu" }),
    /^FeedForwardExperts: expected activation to be one of relu, gelu, swiglu, got "tanh"/,
  ],
  [
    "no hidden layer",
    () => flat("top-k", { expertHiddenSize: [] }),
    /^FeedForwardExperts: expected expertHiddenSize to name at least one hidden layer, got \[\]/,
  ],
  [
    "a hidden layer of width 0",
    () => flat("top-k", { expertHiddenSize: [4, 0] }),
    /^FeedForwardExperts: expected expertHiddenSize to be an integer of at least 1, got 0/,
  ],
  [
    "dropout of everything",
    () => flat("top-k", { expertDropout: 1 }),
    /^FeedForwardExperts: expected expertDropout to be a finite number from 0 to 0\.999, got 1/,
  ],
  ["no width of the experts", () => flat("top-k", { expertHiddenSize: null as never }), /^FeedForwardExperts: expected expertHiddenSize to be an integer of at least 1, got null/],
  ["an expert that is none", () => flat("top-k", { experts: [undefined, undefined, undefined, undefined] as never }), /^MoE: expected expert 0 to be a module with a method forward\(x\), got undefined/],
  ["a function that makes no expert", () => flat("top-k", { experts: ((i: number) => (i === 2 ? {} : new Linear({ inputSize: 3, outputSize: 3, name: `${i}` }))) as never }), /^MoE: expected expert 2 to be a module/],
  ["experts that are no list", () => flat("top-k", { experts: "abc" as never }), /^MoE: expected experts to be an array of modules, or a function that makes expert i, got "abc"/],
  [
    "options of the built-in experts beside others",
    () => flat("top-k", { activation: "gelu", expertDropout: 0.1, experts: (i) => new Linear({ inputSize: 3, outputSize: 3, name: `${i}` }) }),
    /^MoE: expected no activation, expertDropout beside experts made elsewhere, got "gelu"\. Give them to the experts\.$/,
  ],
  [
    "a context without a row to begin with",
    () => flat("top-k").forward(sg.zeros([2, 3]), { training: true } as never),
    /^MoE\.forward: expected context\.seed to be an integer, got undefined/,
  ],
  [
    "a width of 0",
    () => new ExpertChoiceGate({ hiddenSize: 0, numExperts: 2, topK: 1 }),
    /^ExpertChoiceGate: expected hiddenSize to be an integer of at least 1, got 0/,
  ],
  [
    "no experts",
    () => makeGate("top-k", { hiddenSize: 3, numExperts: 0 }),
    /^TopKGate: expected numExperts to be an integer of at least 1, got 0/,
  ],
];

describe("gates and layers refuse", () => {
  useBackend(BACKENDS[0].make);
  it.each(CASES)("%s", (_, make, message) => {
    expect(make).toThrow(ConfigError);
    expect(make).toThrow(message);
  });
  it("no capacity that is left out by name", () => {
    expect(deep({ capacityFactor: undefined, dropPolicy: undefined }).numExperts).toBe(6);
  });
  it("rows in groups for a gate without, and the other way round", () => {
    const x = sg.zeros([4, 3]);
    const context = { training: true, seed: 0, step: 0, firstRow: 0 };
    expect(() => new MoE({ hiddenSize: 3, numExperts: 4, gate: gate(4, 2) }).forward(x, context)).toThrow(
      /^SwitchGate\.route: expected rows in 2 groups \(numGroups\), got "none"\.$/,
    );
    const groups = {
      offsets: sg.tensor([0, 2, 4], [3], "int32"),
      count: 2,
      groupOf: sg.zeros([4], "int32"),
      rowIds: sg.zeros([4], "int32"),
      rows: sg.zeros([4], "int32"),

    };
    expect(() => gate(4).route(x, context, groups)).toThrow(
      /^SwitchGate\.route: expected rows in no groups \(numGroups\), got 2\.$/,
    );
  });
});
