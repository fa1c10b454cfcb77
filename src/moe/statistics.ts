/** How evenly rows spread over experts: the figures of the paper's Table 6. */

/** Standard deviation over mean (population, as the paper's CV); 0 for a mean of 0. */
export function coefficientOfVariation(values: ArrayLike<number>): number {
  const n = values.length;
  let total = 0;
  for (let i = 0; i < n; i++) total += values[i]!;
  if (n === 0 || total === 0) return 0;
  const mean = total / n;
  let squares = 0;
  for (let i = 0; i < n; i++) squares += (values[i]! - mean) ** 2;
  return Math.sqrt(squares / n) / mean;
}

/** The columns of Table 6, and how many experts got nothing. */
export interface BalanceStatistics {
  cvImportance: number;
  cvLoad: number;
  maxOverMeanLoad: number;
  /** Experts without a row. */
  unused: number;
}

/** Balance figures of one batch. @param importance gate values summed per expert; @param load rows per expert */
export function balanceStatistics(importance: ArrayLike<number>, load: ArrayLike<number>): BalanceStatistics {
  let [total, most, unused] = [0, 0, 0];
  for (let i = 0; i < load.length; i++) {
    total += load[i]!;
    most = Math.max(most, load[i]!);
    if (load[i] === 0) unused++;
  }
  return {
    cvImportance: coefficientOfVariation(importance),
    cvLoad: coefficientOfVariation(load),
    maxOverMeanLoad: total === 0 ? 0 : (most * load.length) / total,
    unused,
  };
}
