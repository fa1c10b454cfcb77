/** What every demo begins with: its options, an output folder, a backend, Ctrl-C, and the compiler's messages split for it. */

import { loadMessages, splitMessages } from "../text/messages.js";
import { Progress } from "../train/progress.js";
import { openBackend } from "./backend.js";
import { makeOutputFolder } from "./output.js";
import { stopSignal, type Stop } from "./stop.js";

export interface DemoStart {
  backend: ReturnType<typeof openBackend>;
  progress: Progress;
  steps: number;
  seed: number;
  outputDir: string;
  stop: Stop;
  split: ReturnType<typeof splitMessages>;
}

/**
 * @param fullSteps unless --max-steps or --quick says otherwise
 * @param heldOut shares of the messages that are not trained on
 * @throws FileError where the output folder cannot be used
 */
export function beginDemo(options: Record<string, unknown>, fullSteps: number, quickSteps: number, heldOut: { validShare: number; testShare: number }): DemoStart {
  const progress = new Progress({ enabled: options["progress"] !== false });
  const steps = (options["maxSteps"] as number | undefined) ?? (options["quick"] === true ? quickSteps : fullSteps);
  const seed = options["seed"] as number;
  const outputDir = String(options["outputDir"]);
  makeOutputFolder(outputDir);
  const backend = openBackend();
  progress.note(`Backend: ${backend.description}`);
  const stop = stopSignal(() => progress.announce("Stopping after this step. Once more to stop at once."));
  return { backend, progress, steps, seed, outputDir, stop, split: splitMessages(loadMessages(), { seed, ...heldOut }) };
}
