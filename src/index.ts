/** sparsegate: the sparsely-gated mixture-of-experts layer and what is needed to train and run networks with it. */

export { SparsegateError, TensorError, ConfigError, FileError, NonFiniteError } from "./core/errors.js";
export type { AdamSettings, Backend, BinaryOp, Buf, DType, Epilogue, MemoryUse, RandomKey, RowGroups, Spread, UnaryOp } from "./backend/backend.js";
export { CpuBackend, type CpuBackendOptions, type CpuProbe } from "./backend/cpu/index.js";
export type { Cblas, CblasSearch, Sgemm } from "./backend/cpu/cblas.js";
export type { Cut } from "./backend/cpu/pieces.js";
export type { SimdChoice } from "./backend/cpu/wasm.js";
export { ReferenceBackend } from "./backend/reference/index.js";
export * from "./tensor/index.js";
export * from "./comm/index.js";
export { Module, parameter, type Init, type RunContext } from "./nn/module.js";
export { Linear, Embedding, LayerNorm, Dropout, Lstm, type LayerOptions } from "./nn/layers.js";
export { AttentiveLstm, ATTENTION_KINDS, type AttentionKind, type AttentiveLstmOptions } from "./nn/attentive-lstm.js";
export { BidirectionalLstm, Lanes } from "./nn/bidirectional.js";
export { smoothedCrossEntropy, type SmoothedLoss } from "./nn/label-smoothing.js";
export { logUniformCandidates } from "./nn/candidates.js";
export { MoE, type MoEOptions, type MoEOutput, type BalanceOptions, type ExpertOptions } from "./moe/layer.js";
export { HierarchicalMoE, type HierarchicalMoEOptions } from "./moe/hierarchical.js";
export { GroupPlaces } from "./moe/group-places.js";
export { RankRows, type Assigned } from "./moe/ranks.js";
export { ModuleExperts, type ExpertModule, type Experts } from "./moe/experts.js";
export { FeedForwardExperts, type FeedForwardOptions, type Activation } from "./moe/feed-forward.js";
export { GATE_NAMES, makeGate, type GateConfig, type GateName, type GateTypes, type LayerGiven, type OwnOptions } from "./moe/gates/index.js";
export { RouterGate, type Choice, type Gate, type GateContext, type GateOptions, type GateOutput, type GroupedRows } from "./moe/gates/gate.js";
export { NoisyTopKGate, type NoisyTopKOptions } from "./moe/gates/noisy-top-k.js";
export { SoftmaxGate } from "./moe/gates/softmax.js";
export { StrictlyBalancedGate, type StrictlyBalancedOptions } from "./moe/gates/strictly-balanced.js";
export { SwitchGate, type SwitchOptions } from "./moe/gates/switch.js";
export { GShardGate, type GShardOptions, type SecondPolicy } from "./moe/gates/gshard.js";
export { ExpertChoiceGate, type ExpertChoiceOptions } from "./moe/gates/expert-choice.js";
export { TopKGate, type TopKOptions } from "./moe/gates/top-k.js";
export { SigmoidGate, type SigmoidOptions } from "./moe/gates/sigmoid.js";
export { HierarchicalGate, type HierarchicalGateOptions } from "./moe/gates/hierarchical.js";
export { capacityOf, type CapacityOptions } from "./moe/capacity.js";
export { balanceLoss, switchLoss, zLoss } from "./moe/losses.js";
export { balanceStatistics, coefficientOfVariation, moeStatistics, UnusedExperts, type BalanceStatistics, type MoEStatistics } from "./moe/statistics.js";
export { Adam, Sgd, type AdamOptions, type Optimizer, type OptimizerOptions } from "./optim/optimizers.js";
export { constant, inverseSquareRoot, linearDecay, stepDecay, type Schedule } from "./optim/schedules.js";
export { clipScale, globalNorm } from "./optim/clip.js";
export { FeedForward, LanguageModel, type LanguageModelConfig, type LanguageModelOutput, type MiddleConfig, type MoeMiddle } from "./models/language-model.js";
export {
  CONTEXT_TARGETS,
  TranslationModel,
  type ContextTarget,
  type DecoderState,
  type RoutedLayer,
  type SourceBatch,
  type TranslationBatch,
  type TranslationModelConfig,
  type TranslationModelOutput,
} from "./models/translation-model.js";
export { type LayerWatch } from "./models/non-finite.js";
export { beamSearch, type BeamOptions, type Hypothesis } from "./models/beam-search.js";
export { computeCost, inferenceBytes, translationCost, type Cost } from "./models/cost.js";
export { presetMiddle, PRESET_NAMES, type PresetOptions } from "./models/presets.js";
export { loadTensors, saveTensors } from "./train/tensors-file.js";
export { translate, type Translated, type TranslateOptions, type Translation } from "./train/translation/translate.js";
export { PAPER_MODELS, paperConfig, type PaperModel } from "./models/catalogue.js";
export {
  corpusBleu,
  sentenceBleu,
  multiBleu,
  formatBleu,
  type BleuOptions,
  type BleuScore,
  type BleuSmoothing,
} from "./text/bleu.js";
export type { BleuTokenization } from "./text/bleu-tokens.js";
export { corpusChrf, sentenceChrf, formatChrf, type ChrfOptions, type ChrfScore } from "./text/chrf.js";
export type { References } from "./text/score.js";
export {
  readParallel,
  readParallelFiles,
  languageToken,
  type EmptyPairs,
  type ParallelCorpus,
  type ParallelFiles,
  type ParallelOptions,
  type ParallelTable,
  type TableFormat,
} from "./text/parallel.js";
export { PAPER_LANGUAGES, countPlaceholders, messagePairs, placeholders, type PlaceholderCount } from "./text/message-pairs.js";
export { loadMessages, splitMessages, type Message, type MessageSplit } from "./text/messages.js";
export { BpeTokenizer, trainBpe, type BpeOptions } from "./text/bpe.js";
export type { Tokenizer } from "./text/tokenizer.js";
export { BpeDropout, PairDataset, tokenizePairs, type BpeDropoutOptions, type PairGroup, type PairOptions, type Sentences } from "./text/pair-dataset.js";
export {
  PairBatchStream,
  inCorpusOrder,
  pairEvaluationBatches,
  type PairBatch,
  type PairBatchOptions,
  type PairBatchStreamState,
} from "./text/pair-batches.js";
