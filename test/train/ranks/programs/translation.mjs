/** A training run of a translation model, alone or as one rank of several: the figures of its steps and evaluations. */

import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { tokenizerOf, openCheckpoint } from "#sparsegate/train/restore.js";
import { makeTranslationDatasets } from "#sparsegate/train/translation/data.js";
import { trainTranslation } from "#sparsegate/train/translation/trainer.js";

export default async function run(comm, { config: given, corpora, resume, stopAt }) {
  const config = checkConfig(given, "the test");
  const steps = [];
  const evaluations = [];
  const stop = new AbortController();
  const checkpoint = resume && openCheckpoint("--resume", resume);
  const result = await trainTranslation(
    config,
    makeTranslationDatasets(config, corpora, checkpoint && tokenizerOf(checkpoint)),
    {
      comm,
      signal: stop.signal,
      onStep: (step, { loss, auxLoss, gradNorm, load, tokens }) => {
        steps.push({ loss, auxLoss, gradNorm, load, tokens });
        // A signal reaches one rank alone.
        if (step === stopAt && (comm?.rank ?? 0) === (comm?.size ?? 1) - 1) stop.abort();
      },
      onEvaluation: (_step, { loss, bleu, texts }) => evaluations.push({ loss, bleu, translations: texts.map(({ translations }) => translations) }),
    },
    checkpoint,
  );
  const parameters = result.model.numParameters();
  result.model.dispose();
  if (comm) defaultBackend().dispose();
  return { steps, evaluations, taken: result.steps, finished: result.finished, parameters };
}
