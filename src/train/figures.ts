/** The figures of reports, drawn with Observable Plot into inline SVG. Colours are the page's CSS variables, so they follow its theme. */

import type * as PlotModule from "@observablehq/plot";
import type { DemoReport, ReportRun } from "./report.js";

/** The demo's four figures as SVG text; empty where there is nothing to draw. */
export interface Figures {
  capacity: string;
  learning: string;
  /** One chart a MoE run. */
  load: { name: string; svg: string }[];
  specialisation: string;
}

/** How a run is drawn: its CSS colour, and dashed when it has no experts to choose from. */
export interface RunStyle {
  color: string;
  dashed: boolean;
}

/** A run that chooses among experts; the others are the dense baselines. */
export function isMoe(run: Pick<ReportRun, "numExperts">): boolean {
  return run.numExperts > 1;
}

/** Style of each run, by its place: the page defines --series-1 to --series-8; more runs start over. */
export function runStyles(runs: readonly Pick<ReportRun, "numExperts">[]): RunStyle[] {
  return runs.map((run, i) => ({ color: `var(--series-${(i % 8) + 1})`, dashed: !isMoe(run) }));
}

type Plot = typeof PlotModule;
type Draw = (options: PlotModule.PlotOptions) => string;

/** What a figure is drawn with. */
export interface Drawing {
  plot: Plot;
  /** A plot as the text of an SVG. */
  draw: Draw;
}

const WIDTH = 720;
const MAX_POINTS = 150; // a curve is averaged down to this many: enough for its shape at this width, with less of its noise
const MAX_LINES = 32; // with more experts than this, bands of quantiles are drawn instead of a line each

/** Plot and linkedom are loaded here, at first use, because they take about 0.3 s. */
export async function drawing(): Promise<Drawing> {
  const [plot, { parseHTML }] = await Promise.all([import("@observablehq/plot"), import("linkedom")]);
  const { document } = parseHTML("<!doctype html><html><body></body></html>");
  const draw: Draw = (options) => {
    const svg = plot.plot({
      document: document as never,
      width: WIDTH,
      className: "plot",
      style: { background: "none" },
      ...options,
    });
    return printable(String(svg.outerHTML));
  };
  return { plot, draw };
}

/** Draws every figure of the demo. */
export async function drawFigures(data: DemoReport): Promise<Figures> {
  const { plot, draw } = await drawing();
  return {
    capacity: capacityFigure({ plot, draw }, data.runs),
    learning: learningFigure(plot, draw, data.runs),
    load: data.runs
      .filter((run) => isMoe(run) && run.loadOverTime.length > 1)
      .map((run) => ({ name: run.name, svg: loadFigure({ plot, draw }, run) })),
    specialisation: specialisationFigure(plot, draw, data.specialisation),
  };
}

/** Test perplexity against parameters: the MoE runs joined by a line, each dense run a point with a rule that shows where the line crosses it. */
export function capacityFigure(
  { plot, draw }: Drawing,
  runs: readonly Pick<ReportRun, "name" | "parameters" | "testPerplexity" | "numExperts">[],
): string {
  const styles = runStyles(runs);
  const points = runs
    .map((run, i) => ({ x: run.parameters, y: run.testPerplexity, name: run.name, moe: isMoe(run), color: styles[i].color }))
    .filter(({ x, y }) => x > 0 && Number.isFinite(y))
    .sort((a, b) => a.x - b.x);
  if (points.length === 0) return "";
  const height = 380;
  const xDomain = padded(
    points.map(({ x }) => Math.log(x)),
    0.12,
  ).map(Math.exp);
  const yDomain = padded(
    points.map(({ y }) => y),
    0.12,
  );
  const labels = placeLabels(
    points.map(({ x, y, name }) => ({
      x: 56 + ((WIDTH - 76) * Math.log(x / xDomain[0])) / Math.log(xDomain[1] / xDomain[0]),
      y: height - 44 - ((height - 68) * (y - yDomain[0])) / (yDomain[1] - yDomain[0]),
      text: name,
    })),
  );
  const moe = points.filter((point) => point.moe);
  return draw({
    height,
    marginLeft: 56,
    marginRight: 20,
    marginTop: 24,
    marginBottom: 44,
    ariaLabel: "Test perplexity against the number of parameters",
    x: { type: "log", domain: xDomain, label: "parameters", ticks: logTicks(xDomain), tickFormat: compact },
    y: { domain: yDomain, label: "↑ test perplexity", grid: true, labelArrow: "none" },
    marks: [
      plot.ruleY(
        points.filter((point) => !point.moe),
        { y: "y", stroke: "color", strokeDasharray: "4 4", strokeOpacity: 0.7 },
      ),
      plot.line(moe, { x: "x", y: "y", stroke: "currentColor", strokeOpacity: 0.45, strokeWidth: 1.5 }),
      plot.dot(points, {
        x: "x",
        y: "y",
        fill: "color",
        r: 5.5,
        stroke: "var(--page)",
        strokeWidth: 1.5,
        symbol: (point: { moe: boolean }) => (point.moe ? "circle" : "square"),
      }),
      ...points.map((point, i) =>
        plot.text([point], {
          x: "x",
          y: "y",
          text: "name",
          fill: "currentColor",
          stroke: "var(--page)",
          strokeWidth: 4,
          fontSize: 12,
          ...labels[i],
        }),
      ),
    ],
    color: { type: "identity" },
    symbol: { type: "identity" },
  });
}

/** Perplexity while training, on a log scale: the training loss faint, the validation perplexity strong. */
function learningFigure(plot: Plot, draw: Draw, runs: readonly ReportRun[]): string {
  const styles = runStyles(runs);
  const marks: PlotModule.Markish[] = [];
  runs.forEach((run, i) => {
    const train = averaged(run.curve.map(({ tokens, loss }) => ({ x: tokens, y: Math.exp(loss) })));
    const valid = run.curve.flatMap(({ tokens, validPerplexity: y }) =>
      y !== undefined && Number.isFinite(y) ? [{ x: tokens, y }] : [],
    );
    const dash = styles[i].dashed ? "7 3" : undefined;
    const faint = valid.length > 0;
    const common = { x: "x", y: "y", stroke: styles[i].color, strokeDasharray: dash };
    if (train.length > 0)
      marks.push(plot.line(train, { ...common, strokeWidth: faint ? 1 : 1.75, strokeOpacity: faint ? 0.35 : 1 }));
    if (valid.length > 0) {
      marks.push(plot.line(valid, { ...common, strokeWidth: 2 }));
      marks.push(plot.dot(valid.slice(-1), { x: "x", y: "y", r: 3, fill: styles[i].color }));
    }
  });
  const values = runs
    .flatMap(({ curve }) => curve.flatMap(({ loss, validPerplexity }) => [Math.exp(loss), validPerplexity ?? NaN]))
    .filter(Number.isFinite);
  if (values.length === 0) return "";
  const low = values.reduce((least, value) => Math.min(least, value));
  const high = values.reduce((most, value) => Math.max(most, value));
  const domain = [low * 0.95, Math.min(high * 1.05, low * 10)] as const;
  return draw({
    height: 380,
    marginLeft: 56,
    marginTop: 24,
    clip: true, // the first steps, at the perplexity of the vocabulary's size, would flatten all the rest
    ariaLabel: "Perplexity against tokens seen in training, one line a model",
    x: { label: "tokens seen", tickFormat: compact, ticks: 6 },
    y: {
      type: "log",
      domain,
      label: "↑ perplexity (log scale)",
      grid: true,
      tickFormat: compact,
      labelArrow: "none",
      ticks: logTicks(domain),
    },
    marks,
  });
}

/** Load of every expert over training, relative to an equal share (1): a line each, or quantile bands when there are many. */
export function loadFigure({ plot, draw }: Drawing, run: Pick<ReportRun, "numExperts" | "loadOverTime">): string {
  const steps = run.loadOverTime.map(({ step, load }) => {
    const mean = load.reduce((sum, value) => sum + value, 0) / Math.max(1, load.length);
    return { step, shares: load.map((value) => (mean > 0 ? value / mean : 0)) };
  });
  const every = Math.ceil(steps.length / MAX_POINTS);
  const shown = steps.filter((_, i) => i % every === 0 || i === steps.length - 1);
  const marks: PlotModule.Markish[] = [];
  if (run.numExperts <= MAX_LINES) {
    const points = shown.flatMap(({ step, shares }) => shares.map((share, expert) => ({ step, share, expert })));
    marks.push(
      plot.line(points, {
        x: "step",
        y: "share",
        z: "expert",
        stroke: "var(--accent)",
        strokeWidth: 1,
        strokeOpacity: run.numExperts <= 8 ? 0.9 : 0.55,
      }),
    );
  } else {
    const bands = shown.map(({ step, shares }) => {
      const sorted = [...shares].sort((a, b) => a - b);
      return {
        step,
        min: quantile(sorted, 0),
        q10: quantile(sorted, 0.1),
        median: quantile(sorted, 0.5),
        q90: quantile(sorted, 0.9),
        max: quantile(sorted, 1),
      };
    });
    marks.push(
      plot.areaY(bands, { x: "step", y1: "min", y2: "max", fill: "var(--accent)", fillOpacity: 0.15 }),
      plot.areaY(bands, { x: "step", y1: "q10", y2: "q90", fill: "var(--accent)", fillOpacity: 0.3 }),
      plot.line(bands, { x: "step", y: "median", stroke: "var(--accent)", strokeWidth: 2 }),
    );
  }
  return draw({
    height: 220,
    marginLeft: 56,
    marginTop: 24,
    ariaLabel: "Load of the experts over training, relative to an equal share",
    x: { label: "training step", tickFormat: compact, ticks: 6 },
    y: { type: "sqrt", label: "↑ load (1 = equal share)", grid: true, zero: true, ticks: 5, labelArrow: "none" },
    marks: [plot.ruleY([1], { stroke: "currentColor", strokeOpacity: 0.6, strokeDasharray: "2 3" }), ...marks],
  });
}

/** A curve of a `stepsFigure`. */
export interface Series {
  name: string;
  /** CSS colour. */
  color: string;
  points: readonly { step: number; value: number }[];
}

/** Quantities over training, a line each; values that are not finite are left out. Empty where none has two points. */
export function stepsFigure(
  { plot, draw }: Drawing,
  series: readonly Series[],
  { label, ariaLabel }: { label: string; ariaLabel: string },
): string {
  const lines = series.map(({ color, points }) => ({
    color,
    points: averaged(points.map(({ step, value }) => ({ x: step, y: value }))),
  }));
  const drawn = lines.filter(({ points }) => points.length > 1);
  if (drawn.length === 0) return "";
  return draw({
    height: 240,
    marginLeft: 56,
    marginTop: 24,
    ariaLabel,
    x: { label: "training step", tickFormat: compact, ticks: 6 },
    y: { label: `↑ ${label}`, grid: true, zero: true, ticks: 5, labelArrow: "none" },
    marks: drawn.map(({ color, points }) => plot.line(points, { x: "x", y: "y", stroke: color, strokeWidth: 1.75 })),
  });
}

/** Perplexity on a logarithmic scale over the tokens that were trained on, a line each model. Empty where none has two points. */
export function perplexityFigure(
  { plot, draw }: Drawing,
  curves: readonly { color: string; points: readonly { tokens: number; perplexity: number }[] }[],
): string {
  const drawn = curves.filter(({ points }) => points.length > 1);
  if (drawn.length === 0) return "";
  // The first evaluations are far above the rest, and would leave no room for what the curves differ in.
  const last = drawn.map(({ points }) => points.at(-1)!.perplexity);
  const domain = [0.95 * Math.min(...last), 2.5 * Math.max(...last)] as const;
  return draw({
    height: 380,
    marginLeft: 56,
    marginTop: 24,
    ariaLabel: "Perplexity of the validation text over training, a line each model",
    x: { label: "training tokens", tickFormat: compact, ticks: 6 },
    y: {
      type: "log",
      domain,
      clamp: true,
      label: "↑ valid perplexity",
      grid: true,
      ticks: logTicks(domain),
      tickFormat: compact,
      labelArrow: "none",
    },
    marks: drawn.map(({ color, points }) =>
      plot.line(
        points.filter(({ perplexity }) => perplexity <= domain[1]),
        { x: "tokens", y: "perplexity", stroke: color, strokeWidth: 1.75 },
      ),
    ),
  });
}

/** Language × expert: the stronger the colour, the larger the language's part of the expert's tokens. */
function specialisationFigure(plot: Plot, draw: Draw, { heat, heatExperts, languages }: DemoReport["specialisation"]): string {
  if (heat.length === 0 || languages.length === 0) return "";
  const names = heat.map((_, row) => String(heatExperts?.[row] ?? row));
  const cells = heat.flatMap((shares, row) =>
    shares.map((share, column) => ({
      row,
      language: languages[column] ?? String(column),
      share,
      title: `expert ${names[row]}, ${languages[column] ?? column}: ${percent(share)}`,
    })),
  );
  const few = heat.length <= 48;
  return draw({
    height: 56 + 22 * languages.length,
    marginLeft: 24 + 6.6 * Math.min(20, Math.max(...languages.map((language) => language.length))),
    marginTop: 10,
    marginBottom: 44,
    ariaLabel: "Share of each expert's tokens by language",
    x: {
      type: "band",
      padding: few ? 0.06 : 0,
      label: `expert${few ? "" : "s"} (${heat.length} shown)`,
      labelAnchor: "center",
      labelArrow: "none",
      ticks: few ? undefined : [],
      tickSize: 0,
      tickFormat: (row: number) => names[row],
      tickRotate: heat.length > 24 ? -60 : 0,
    },
    y: { domain: languages, label: null, padding: 0.06, tickSize: 0 },
    opacity: { type: "linear", domain: [0, 1], range: [0.04, 1] },
    marks: [plot.cell(cells, { x: "row", y: "language", fill: "var(--accent)", fillOpacity: "share", title: "title" })],
  });
}

/** Label offsets, tried above, below, right and left of each point in turn, that cover neither points nor labels placed before. */
function placeLabels(
  points: readonly { x: number; y: number; text: string }[],
): { dx: number; dy: number; textAnchor: "start" | "middle" | "end" }[] {
  const taken = points.map(({ x, y }) => ({ left: x - 6, right: x + 6, top: y - 6, bottom: y + 6 }));
  return points.map(({ x, y, text }) => {
    const width = 6.8 * text.length;
    const choices = [
      { dx: 0, dy: -15, textAnchor: "middle" as const, left: -width / 2 },
      { dx: 0, dy: 16, textAnchor: "middle" as const, left: -width / 2 },
      { dx: 11, dy: 0, textAnchor: "start" as const, left: 11 },
      { dx: -11, dy: 0, textAnchor: "end" as const, left: -11 - width },
      { dx: 0, dy: -30, textAnchor: "middle" as const, left: -width / 2 },
      { dx: 0, dy: 31, textAnchor: "middle" as const, left: -width / 2 },
    ].map(({ left, ...offset }) => {
      const box = { left: x + left, right: x + left + width, top: y + offset.dy - 7, bottom: y + offset.dy + 7 };
      const inside = box.left >= 40 && box.right <= WIDTH;
      const clashes = taken.filter(
        (other) => other.left < box.right && box.left < other.right && other.top < box.bottom && box.top < other.bottom,
      ).length;
      return { offset, box, cost: clashes + (inside ? 0 : 10) };
    });
    const best = choices.reduce((least, choice) => (choice.cost < least.cost ? choice : least));
    taken.push(best.box);
    return best.offset;
  });
}

function padded(values: readonly number[], share: number): [number, number] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = (high - low || Math.abs(high) || 1) * share;
  return [low - pad, high + pad];
}

/** 1, 2 and 5 times the powers of ten within a domain; only the powers when there are many. */
function logTicks([low, high]: readonly number[]): number[] {
  const decades = Math.log10(high / low);
  const ticks: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const digit of decades > 3 ? [1] : decades < 0.8 ? [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9] : [1, 2, 5]) {
      const tick = digit * 10 ** power;
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

/** A curve averaged down to MAX_POINTS points; points that are not finite are left out. */
function averaged(points: readonly { x: number; y: number }[]): { x: number; y: number }[] {
  const finite = points.filter(({ y }) => Number.isFinite(y));
  const size = Math.ceil(finite.length / MAX_POINTS);
  if (size <= 1) return finite;
  return Array.from({ length: Math.ceil(finite.length / size) }, (_, i) => {
    const part = finite.slice(i * size, (i + 1) * size);
    return { x: part.at(-1)!.x, y: part.reduce((sum, { y }) => sum + y, 0) / part.length };
  });
}

/** Linear interpolation between the order statistics of a sorted list. */
function quantile(sorted: readonly number[], q: number): number {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

/** 1234567 as "1.2M". */
export function compact(value: number): string {
  return Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
}

/** 0.1234 as "12%"; below one percent with a decimal. */
export function percent(share: number): string {
  if (!Number.isFinite(share)) return "–";
  return `${(100 * share).toFixed(share > 0 && share < 0.01 ? 1 : 0)}%`;
}

/** Text without the control characters that HTML does not allow, whatever the corpus held: each becomes U+FFFD. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => ("\t\n\r".includes(character) ? character : "\ufffd"));
}
