/** A training run, alone or as one rank of several: the losses of its steps, and what the first rank kept. */

import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { train } from "#sparsegate/train/trainer.js";

export default async function run(comm, { config, text, options = {}, stopAt, killAt }) {
  const steps = [];
  const evaluations = [];
  const stop = new AbortController();
  const result = await train(checkConfig(config, "the test"), text, {
    ...options,
    comm,
    signal: stop.signal,
    onStep: (step, { loss, auxLoss, gradNorm, load }) => {
      steps.push({ loss, auxLoss, gradNorm, load, sent: comm?.traffic.bytesSent ?? 0 });
      // A signal reaches one rank alone.
      if (step === stopAt && (comm?.rank ?? 0) === (comm?.size ?? 1) - 1) stop.abort();
      if (step === killAt && comm?.rank === 1) throw new Error("the test ends this rank");
    },
    onEvaluation: (_step, evaluation) => evaluations.push({ ...evaluation, load: Array.from(evaluation.load ?? []) }),
  });
  const parameters = result.model.numParameters();
  result.model.dispose();
  if (comm) defaultBackend().dispose();
  return { steps, evaluations, taken: result.steps, finished: result.finished, parameters, test: result.test?.loss };
}
