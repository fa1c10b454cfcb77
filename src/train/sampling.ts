/** A token drawn from logits: by temperature, from the most likely k, or from the most likely that make up a probability (Holtzman et al. 2020). */

/** How a token is drawn. */
export interface Sampling {
  /** Divides the logits; 0 takes the most likely token, the first of several. */
  temperature: number;
  /** Keep only the so many most likely tokens; 0 keeps all. */
  topK: number;
  /** Keep the fewest tokens whose probabilities, after topK, sum to this. */
  topP: number;
}

/** What is looked at first for topP: tokens of a thousandth of the best one's weight. Only where those are not enough are all put in order. */
const LIKELY = 1e-3;

/** The index drawn by `uniform` in [0, 1) from softmax(logits / temperature), restricted by topK and topP. */
export function sampleLogits(logits: ArrayLike<number>, { temperature, topK, topP }: Sampling, uniform: number): number {
  const most = argmax(logits);
  if (temperature === 0) return most;
  const weights = new Float64Array(logits.length);
  let total = 0;
  if (topP >= 1 && (topK === 0 || topK >= logits.length)) {
    for (let i = 0; i < weights.length; i++) total += weights[i] = Math.exp((logits[i]! - logits[most]!) / temperature);
    return drawnOfAll(weights, total * uniform);
  }
  const kept = topK > 0 && topK < logits.length ? mostLikely(logits, topK) : Array.from({ length: logits.length }, (_, i) => i);
  for (const i of kept) total += weights[i] = Math.exp((logits[i]! - logits[most]!) / temperature);
  if (topP >= 1) return drawn(kept, weights, total * uniform);
  const nucleus = (candidates: number[]): { chosen: number[]; mass: number } => {
    const order = candidates.sort((a, b) => weights[b]! - weights[a]! || a - b);
    let [count, mass] = [0, 0];
    while (count < order.length && (count === 0 || mass < topP * total)) mass += weights[order[count++]!]!;
    return { chosen: order.slice(0, count), mass };
  };
  let { chosen, mass } = nucleus(kept.filter((i) => weights[i]! >= LIKELY));
  if (mass < topP * total) ({ chosen, mass } = nucleus(kept));
  return drawn(chosen, weights, mass * uniform);
}

function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

/** Indices of the k largest, in order of index; of several that are equal the first. */
function mostLikely(logits: ArrayLike<number>, k: number): number[] {
  const limit = Float64Array.from(logits).sort()[logits.length - k]!;
  const above: number[] = [];
  const equal: number[] = [];
  for (let i = 0; i < logits.length; i++) {
    if (logits[i]! > limit) above.push(i);
    else if (logits[i] === limit) equal.push(i);
  }
  return [...above, ...equal.slice(0, k - above.length)].sort((a, b) => a - b);
}

/** As `drawn`, from all, without a list of them. */
function drawnOfAll(weights: Float64Array, target: number): number {
  let [sum, last] = [0, 0];
  for (let i = 0; i < weights.length; i++) {
    if (weights[i] === 0) continue;
    last = i;
    sum += weights[i]!;
    if (sum > target) break;
  }
  return last;
}

/** The first of some indices at which the sum of their weights is above `target`. */
function drawn(indices: readonly number[], weights: ArrayLike<number>, target: number): number {
  let sum = 0;
  let last = indices[0]!;
  for (const i of indices) {
    if (weights[i] === 0) continue;
    last = i;
    sum += weights[i]!;
    if (sum > target) break;
  }
  return last;
}
