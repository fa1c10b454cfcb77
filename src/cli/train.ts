/** `sparsegate train`. */

import { join } from "node:path";
import { defaultBackend } from "../tensor/default-backend.js";
import { flagOf, resolveConfig, trainConfigSchema, type TrainConfig } from "../train/config.js";
import { writeFileAtomic } from "../train/atomic.js";
import { Progress } from "../train/progress.js";
import { corporaOf, makeTokenizer, planRun } from "../train/setup.js";
import { train } from "../train/trainer.js";
import { openBackend } from "./backend.js";
import { bytes, compact, table } from "./format.js";

/** Aborts at the first Ctrl-C or SIGTERM; a second one ends the process. */
export function stopSignal(progress: Progress): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    process.on(name, () => {
      if (controller.signal.aborted) process.exit(130);
      progress.note("Stopping after this step; a checkpoint is written. Once more to stop at once.");
      controller.abort();
    });
  }
  return controller.signal;
}

export async function trainCommand(options: Record<string, unknown>): Promise<void> {
  const flags: Record<string, unknown> = {};
  for (const key of Object.keys(trainConfigSchema.shape)) {
    const value = options[flagOf(key).slice(2).replaceAll(/-(.)/g, (_, c: string) => c.toUpperCase())];
    // commander gives --no-x flags the value true when absent; only what the user set may win over the file.
    if (value !== undefined && !(value === true && (key === "sigmoid" || key === "residual"))) flags[key] = value;
  }
  const config = resolveConfig({ file: options["config"] as string | undefined, env: process.env, flags });
  if (options["dryRun"] === true) return dryRun(config, options["json"] === true);
  const progress = new Progress({ enabled: options["progress"] !== false });
  openBackend();
  const signal = stopSignal(progress);
  writeFileAtomic(join(config.output_dir, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
  const resume = options["resume"] === undefined ? undefined : options["resume"] === true ? config.output_dir : (options["resume"] as string);
  const result = await train(config, corporaOf(config), { progress, signal, resume });
  progress.finish(`${config.model}: ${result.steps} steps, ${Math.round(result.tokensPerSecond)} tokens/s`);
  const summary = {
    model: config.model,
    steps: result.steps,
    finished: result.finished,
    tokens_per_second: Math.round(result.tokensPerSecond),
    peak_bytes: result.peakBytes,
    valid_perplexity: result.valid?.perplexity ?? null,
    test_perplexity: result.test?.perplexity ?? null,
    output_dir: config.output_dir,
  };
  if (options["json"] === true) process.stdout.write(`${JSON.stringify(summary)}\n`);
  else {
    process.stdout.write(`${Object.entries(summary).filter(([, value]) => value !== null).map(([key, value]) => `${key}: ${value}`).join("\n")}\n`);
    if (!result.finished) process.stdout.write(`Interrupted. Go on with --resume ${config.output_dir}\n`);
  }
  defaultBackend().dispose();
}

function dryRun(config: TrainConfig, json: boolean): void {
  const vocabSize = makeTokenizer(config, corporaOf(config).train).vocabSize;
  const plan = planRun(config, vocabSize);
  if (json) process.stdout.write(`${JSON.stringify({ ...plan, vocab_size: vocabSize })}\n`);
  else {
    process.stdout.write(
      `${table(["model", "vocabulary", "parameters", "in experts", "ops/timestep", "memory"], [[config.model, String(vocabSize), compact(plan.parameters), compact(plan.moeParameters), compact(plan.opsPerTimestep), bytes(plan.bytes)]])}\n`,
    );
  }
}
