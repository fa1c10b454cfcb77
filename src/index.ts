/** sparsegate: the sparsely-gated mixture-of-experts layer and what is needed to train and run networks with it. */

export { SparsegateError, TensorError, ConfigError, FileError, NonFiniteError } from "./core/errors.js";
export type { AdamSettings, Backend, BinaryOp, Buf, DType, MemoryUse, RandomKey, Spread, UnaryOp } from "./backend/backend.js";
export { CpuBackend, type CpuBackendOptions, type CpuProbe } from "./backend/cpu/index.js";
export type { Cblas, CblasSearch, Sgemm } from "./backend/cpu/cblas.js";
export type { SimdChoice } from "./backend/cpu/wasm.js";
export { ReferenceBackend } from "./backend/reference/index.js";
export * from "./tensor/index.js";
export { Module, parameter, type Init, type RunContext } from "./nn/module.js";
export { Linear, Embedding, LayerNorm, Dropout, Lstm, type LayerOptions } from "./nn/layers.js";
export { logUniformCandidates } from "./nn/candidates.js";
export { MoE, type MoEOptions, type MoEOutput } from "./moe/layer.js";
export { NoisyTopKGate, type NoisyTopKOptions } from "./moe/noisy-top-k.js";
export { FeedForwardExperts, type ExpertModule, type Experts, type FeedForwardOptions } from "./moe/experts.js";
export type { Gate, GateOutput } from "./moe/gate.js";
export { balanceStatistics, coefficientOfVariation, type BalanceStatistics } from "./moe/statistics.js";
export { Adam, Sgd, type AdamOptions, type Optimizer } from "./optim/optimizers.js";
export { constant, inverseSquareRoot, stepDecay, type Schedule } from "./optim/schedules.js";
export { clipScale, globalNorm } from "./optim/clip.js";
export { FeedForward, LanguageModel, computeCost, type LanguageModelConfig, type LanguageModelOutput, type MiddleConfig } from "./models/language-model.js";
export { presetMiddle, PRESET_NAMES, type PresetOptions } from "./models/presets.js";
