/**
 * Numbers that know their gradient: reverse-mode differentiation of single float64 values. Formulas written with them are slow and plain, and share nothing
 * with the tensors, the tape or the kernels that they are the measure of.
 */

export class Scalar {
  /** ∂(what `differentiate` was called on)/∂this. */
  gradient = 0;

  constructor(
    readonly value: number,
    readonly inputs: readonly Scalar[] = [],
    /** ∂this/∂input, one each. */
    readonly slopes: readonly number[] = [],
  ) {}
}

export type Vector = Scalar[];
export type Matrix = Vector[];

export const scalar = (value: number): Scalar => new Scalar(value);
export const add = (...terms: readonly Scalar[]): Scalar =>
  new Scalar(
    terms.reduce((sum, t) => sum + t.value, 0),
    terms,
    terms.map(() => 1),
  );
export const sub = (a: Scalar, b: Scalar): Scalar => new Scalar(a.value - b.value, [a, b], [1, -1]);
export const mul = (a: Scalar, b: Scalar): Scalar => new Scalar(a.value * b.value, [a, b], [b.value, a.value]);
export const div = (a: Scalar, b: Scalar): Scalar =>
  new Scalar(a.value / b.value, [a, b], [1 / b.value, -a.value / b.value ** 2]);
export const times = (a: Scalar, factor: number): Scalar => new Scalar(a.value * factor, [a], [factor]);
export const exp = (a: Scalar): Scalar => new Scalar(Math.exp(a.value), [a], [Math.exp(a.value)]);
export const log = (a: Scalar): Scalar => new Scalar(Math.log(a.value), [a], [1 / a.value]);
export const relu = (a: Scalar): Scalar => new Scalar(Math.max(a.value, 0), [a], [a.value > 0 ? 1 : 0]);
/** log(1 + eˣ). */
export const softplus = (a: Scalar): Scalar =>
  new Scalar(
    a.value > 0 ? a.value + Math.log1p(Math.exp(-a.value)) : Math.log1p(Math.exp(a.value)),
    [a],
    [1 / (1 + Math.exp(-a.value))],
  );
/** Φ with its density for a slope. */
export const normalCdf = (a: Scalar): Scalar => new Scalar(phi(a.value), [a], [density(a.value)]);

const density = (x: number): number => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);

/** Φ(x) = ½ + φ(x)·(x + x³/3 + x⁵/(3·5) + …) (Marsaglia 2004), right to 1e-15 absolute; beyond 8 it is 0 or 1 to that accuracy. */
export function phi(x: number): number {
  if (Number.isNaN(x)) return x;
  if (Math.abs(x) > 8) return x < 0 ? 0 : 1;
  let [sum, term] = [x, x];
  for (let n = 3; Math.abs(term) > 1e-18; n += 2) {
    term *= (x * x) / n;
    sum += term;
  }
  return 0.5 + density(x) * sum;
}

/** Σ a·b of two vectors. */
export const dot = (a: Vector, b: Vector): Scalar => add(...a.map((v, i) => mul(v, b[i]!)));

/** x·W for a vector x of width D and W (D, E). */
export const vectorTimes = (x: Vector, w: Matrix): Vector =>
  (w[0] ?? []).map((_, j) =>
    dot(
      x,
      w.map((row) => row[j]!),
    ),
  );

/** CV(v)²: population variance over squared mean; 0 for a mean of 0. */
export function cvSquared(v: Vector): Scalar {
  const mean = times(add(...v), 1 / v.length);
  if (mean.value === 0) return scalar(0);
  const squares = v.map((x) => mul(sub(x, mean), sub(x, mean)));
  return div(times(add(...squares), 1 / v.length), mul(mean, mean));
}

/** Fills in `gradient` of everything that `of` was computed from, starting from zero. */
export function differentiate(of: Scalar): void {
  const order: Scalar[] = [];
  const seen = new Set<Scalar>();
  // Depth first without recursion: graphs are deep.
  const stack: [node: Scalar, next: number][] = [[of, 0]];
  seen.add(of);
  while (stack.length > 0) {
    const top = stack.at(-1)!;
    const input = top[0].inputs[top[1]++];
    if (input === undefined) {
      order.push(top[0]);
      stack.pop();
    } else if (!seen.has(input)) {
      seen.add(input);
      stack.push([input, 0]);
    }
  }
  for (const node of order) node.gradient = 0;
  of.gradient = 1;
  for (const node of order.reverse())
    for (const [i, input] of node.inputs.entries()) input.gradient += node.gradient * node.slopes[i]!;
}
