/** Training of translation models: what the loop of run.ts asks of them. */

import type { Communicator } from "../../comm/communicator.js";
import { TranslationModel } from "../../models/translation-model.js";
import type { Optimizer } from "../../optim/optimizers.js";
import { PairBatchStream } from "../../text/pair-batches.js";
import type { PairDataset } from "../../text/pair-dataset.js";
import type { Tokenizer } from "../../text/tokenizer.js";
import type { Checkpoint } from "../checkpoint.js";
import { several } from "../ranks.js";
import { runTask, type EvaluatedText, type RunOptions, type RunResult, type StepOptions, type Task } from "../run.js";
import { crc32 } from "../safetensors.js";
import { makeOptimizer } from "../setup.js";
import { translationModelConfig, type TranslationConfig } from "./config.js";
import type { TranslationDatasets } from "./data.js";
import { translationEvaluationSteps, type EvaluationOptions, type TranslationEvaluation } from "./evaluate.js";
import { PARTS, translationStep, type TranslationStep } from "./step.js";

export type TranslationTrainOptions = RunOptions<TranslationStep, TranslationEvaluation>;
export type TranslationTrainResult = RunResult<TranslationEvaluation, TranslationModel>;

/** @throws ConfigError, FileError, NonFiniteError (the last good checkpoint stays) */
export async function trainTranslation(
  config: TranslationConfig,
  datasets: TranslationDatasets,
  options: TranslationTrainOptions = {},
  checkpoint?: Checkpoint,
): Promise<TranslationTrainResult> {
  return runTask(config, datasets, options, checkpoint, () => new TranslationTask(config, datasets, several(options.comm)));
}

/** How a run's texts are evaluated. */
export function evaluationOptions(config: TranslationConfig, multilingual: boolean): EvaluationOptions {
  return { batchTokens: config.batch_tokens, multilingual, beamSize: config.eval_beam_size, maxSourceTokens: config.max_source_tokens };
}

/**
 * A translation model on its pairs. The model of the lowest validation loss is kept: BLEU of a short text by greedy search is so noisy that its highest is
 * often that of a worse model (docs/results/multi30k.md).
 */
class TranslationTask implements Task<TranslationStep, TranslationEvaluation, TranslationModel> {
  readonly model: TranslationModel;
  readonly optimizer: Optimizer;
  readonly tokenizer: Tokenizer;
  readonly stream: PairBatchStream;
  readonly corpus: number;
  readonly corpusFlags = "--train and --train-target";
  readonly unit = "target tokens";
  readonly keepsBest = true;

  constructor(
    readonly config: TranslationConfig,
    readonly datasets: TranslationDatasets,
    readonly comm: Communicator | undefined,
  ) {
    this.tokenizer = datasets.tokenizer;
    this.model = new TranslationModel(translationModelConfig(config, datasets.tokenizer.vocabSize), comm);
    this.optimizer = makeOptimizer(config, this.model.namedParameters());
    const { batch_tokens: batchTokens, seed, sampling_temperature: temperature } = config;
    const { train, bpeDropout } = datasets;
    this.stream = new PairBatchStream(train, { batchTokens, seed, temperature, ...(bpeDropout ? { bpeDropout } : {}) });
    this.corpus = checksum(datasets.train);
  }

  step({ learningRate, statistics }: StepOptions): TranslationStep {
    const { seed, max_grad_norm: maxGradNorm } = this.config;
    return translationStep(this.model, this.optimizer, this.stream.next(), { seed, learningRate, maxGradNorm, statistics, comm: this.comm });
  }

  stepMetrics({ statistics: ofParts, auxLoss }: TranslationStep): Record<string, number> {
    const values: Record<string, number> = {};
    for (const part of PARTS) {
      const statistics = ofParts[part];
      if (!statistics) continue;
      values["moe/aux_loss"] = auxLoss;
      values[`moe/importance_cv2/${part}`] = statistics.importanceCv2;
      values[`moe/load_cv2/${part}`] = statistics.loadCv2;
      values[`moe/max_over_mean_load/${part}`] = statistics.maxOverMeanLoad;
      values[`moe/dropped_fraction/${part}`] = statistics.droppedFraction;
      for (const [i, load] of statistics.load.entries()) values[`moe/expert_load/${part}/${i}`] = load;
    }
    return values;
  }

  position(): string {
    return `  epoch ${this.stream.epoch + 1}`;
  }

  evaluation(text: EvaluatedText): Generator<void, TranslationEvaluation> {
    const { model, datasets, config } = this;
    return translationEvaluationSteps(model, datasets.tokenizer, datasets[text]!, { ...evaluationOptions(config, datasets.multilingual), comm: this.comm });
  }

  evaluationMetrics({ loss, perplexity, bleu, texts }: TranslationEvaluation): Record<string, number> {
    const values: Record<string, number> = { loss, perplexity, bleu };
    if (texts.length > 1) {
      for (const text of texts) {
        values[`perplexity/${text.name}`] = text.perplexity;
        values[`bleu/${text.name}`] = text.bleu.score;
      }
    }
    return values;
  }
}

function checksum({ sources, targets }: PairDataset): number {
  const bytes = (ids: Int32Array): Uint8Array => new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
  return crc32(Buffer.concat([sources.ids, sources.starts, targets.ids, targets.starts].map(bytes)));
}
