/** Learning-rate schedules: functions from the step (counted from 1) to a rate. */

import { checkInteger, checkNumber } from "../core/checks.js";

/** Learning rate at a step, counted from 1. */
export type Schedule = (step: number) => number;

/** The same rate at every step. */
export function constant(learningRate: number): Schedule {
  checkNumber("constant", "learningRate", learningRate, { min: 0 });
  return () => learningRate;
}

/**
 * Rises linearly to `peak` over `warmupSteps`, stays there for `holdSteps` (Shazeer et al. 2017, App. E; none in App. C), then falls with 1/√step:
 * peak · min(step / warmup, 1, √((warmup + hold) / step)).
 */
export function inverseSquareRoot(peak: number, warmupSteps: number, holdSteps = 0): Schedule {
  checkNumber("inverseSquareRoot", "peak", peak, { min: 0 });
  checkInteger("inverseSquareRoot", "warmupSteps", warmupSteps, { min: 1 });
  checkInteger("inverseSquareRoot", "holdSteps", holdSteps, { min: 0 });
  return (step) => peak * Math.min(step / warmupSteps, 1, Math.sqrt((warmupSteps + holdSteps) / Math.max(step, 1)));
}

/**
 * Rises linearly to `peak` over `warmupSteps`, stays there for `holdSteps`, then falls linearly, to end at 0 one step after the last. What a run of known
 * length learns most from: it has the large steps of a high rate, and no noise of them at its end.
 */
export function linearDecay(peak: number, maxSteps: number, warmupSteps: number, holdSteps = 0): Schedule {
  checkNumber("linearDecay", "peak", peak, { min: 0 });
  checkInteger("linearDecay", "maxSteps", maxSteps, { min: 1 });
  checkInteger("linearDecay", "warmupSteps", warmupSteps, { min: 1 });
  checkInteger("linearDecay", "holdSteps", holdSteps, { min: 0 });
  const fall = Math.max(maxSteps + 1 - warmupSteps - holdSteps, 1);
  return (step) => peak * Math.min(step / warmupSteps, 1, Math.max((maxSteps + 1 - step) / fall, 0));
}

/**
 * Constant for `holdSteps`, then multiplied by `factor` at the start of every further `everySteps`
 * (Zaremba et al. 2014: hold 4 epochs, then halve each epoch).
 */
export function stepDecay(learningRate: number, { holdSteps, everySteps, factor }: { holdSteps: number; everySteps: number; factor: number }): Schedule {
  checkNumber("stepDecay", "learningRate", learningRate, { min: 0 });
  checkInteger("stepDecay", "holdSteps", holdSteps, { min: 0 });
  checkInteger("stepDecay", "everySteps", everySteps, { min: 1 });
  checkNumber("stepDecay", "factor", factor, { min: 0, max: 1 });
  return (step) => learningRate * factor ** Math.max(0, Math.ceil((step - holdSteps) / everySteps));
}
