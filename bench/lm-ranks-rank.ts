/** One rank of the benchmark `lm-ranks`, alone or under mpirun: trains the language model of `lm-step`, and writes what it saw. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { communicator } from "#sparsegate/comm/index.js";
import { trainStep } from "#sparsegate/train/step.js";
import { useCpu } from "./harness.js";
import { type SIZES, batches, makeTraining } from "./lm-step.js";

export type Options = typeof SIZES & { steps: number };

export interface RankSaw {
  /** Of each step after the first two. */
  seconds: number[];
  losses: number[];
  /** A step, on average. */
  bytesSent: number;
  parameters: number;
  peakBytes: number;
  residentBytes: number;
}

const WARM_UP = 2;

async function main(options: Options, folder: string): Promise<void> {
  const comm = await communicator();
  // After the communicator, which gives each rank of a host its part of the cores.
  const backend = useCpu();
  const training = makeTraining(options.model, options.hiddenSize, options.vocabSize, comm);
  const next = batches(options.vocabSize, options.timeSteps, options.batchSize);
  const settings = { seed: 0, learningRate: 1e-3, maxGradNorm: 1, sampledSoftmax: options.sampled };
  const saw: RankSaw = {
    seconds: [],
    losses: [],
    bytesSent: 0,
    parameters: training.model.numParameters(),
    peakBytes: 0,
    residentBytes: 0,
  };
  let before = 0;
  for (let step = 0; step < WARM_UP + options.steps; step++) {
    if (step === WARM_UP) before = comm.traffic.bytesSent;
    const batch = next();
    comm.barrier();
    const begun = performance.now();
    const { loss } = trainStep(training, batch, settings);
    if (step >= WARM_UP) saw.seconds.push((performance.now() - begun) / 1000);
    saw.losses.push(loss);
  }
  saw.bytesSent = (comm.traffic.bytesSent - before) / options.steps;
  saw.peakBytes = backend.memory().peak;
  saw.residentBytes = process.memoryUsage().rss;
  writeFileSync(join(folder, `${comm.rank}.json`), JSON.stringify(saw));
  backend.dispose();
}

await main(JSON.parse(process.argv[2]!) as Options, process.argv[3]!);
