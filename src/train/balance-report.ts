/** How a run's experts were used over its training: read from its metrics, as a table for the terminal and as a page with figures. */

import { coefficientOfVariation } from "../moe/statistics.js";
import { drawing, loadFigure, stepsFigure, type Series } from "./figures.js";
import type { MetricRecord } from "./metrics.js";
import { figure, fixed, html, origin, page, raw, type Html } from "./page.js";

/** The balance of one step, as its record of metrics has it; null where a record of an earlier version lacks a figure. */
export interface BalanceRecord {
  step: number;
  cvImportance: number | null;
  cvLoad: number | null;
  maxOverMeanLoad: number | null;
  /** Of the gate, in nats, and what it is of. */
  entropy: number | null;
  entropyOf: "router" | "kept" | null;
  droppedFraction: number | null;
  unroutedFraction: number | null;
  unused: number | null;
  /** Rows that each expert computed. */
  load: number[];
}

/** Records that say something of experts, in order. @param numExperts E */
export function balanceHistory(records: readonly MetricRecord[], numExperts: number): BalanceRecord[] {
  return records.flatMap((record) => {
    const number = (tag: string): number | null => (typeof record[tag] === "number" ? record[tag] : null);
    if (number("moe/expert_load/moe/0") === null) return [];
    const root = (value: number | null): number | null => (value === null ? null : Math.sqrt(value));
    const entropyOf = (["router", "kept"] as const).find((kind) => number(`moe/${kind}_entropy`) !== null) ?? null;
    return [
      {
        step: record.step,
        cvImportance: root(number("moe/importance_cv2")),
        cvLoad: root(number("moe/load_cv2")),
        maxOverMeanLoad: number("moe/max_over_mean_load"),
        entropy: entropyOf && number(`moe/${entropyOf}_entropy`),
        entropyOf,
        droppedFraction: number("moe/dropped_fraction"),
        unroutedFraction: number("moe/unrouted_fraction"),
        unused: number("moe/unused_experts"),
        load: Array.from({ length: numExperts }, (_, e) => number(`moe/expert_load/moe/${e}`) ?? 0),
      },
    ];
  });
}

/** Columns of the table: heading, and the figure as text. */
export const BALANCE_COLUMNS: readonly [heading: string, cell: (record: BalanceRecord) => string][] = [
  ["step", ({ step }) => String(step)],
  ["CV(Importance)", ({ cvImportance }) => shown(cvImportance, 2)],
  ["CV(Load)", ({ cvLoad }) => shown(cvLoad, 2)],
  ["max/mean load", ({ maxOverMeanLoad }) => shown(maxOverMeanLoad, 2)],
  ["entropy", ({ entropy }) => shown(entropy, 2)],
  ["dropped", ({ droppedFraction }) => share(droppedFraction)],
  ["rows without expert", ({ unroutedFraction }) => share(unroutedFraction)],
  ["unused experts", ({ unused }) => shown(unused, 0)],
];

const shown = (value: number | null, digits: number): string => (value === null ? "-" : fixed(value, digits));
const share = (value: number | null): string => (value === null ? "-" : `${(100 * value).toFixed(1)}%`);

/** So many of the records, evenly spaced, the last among them. */
export function evenly<T>(records: readonly T[], count: number): T[] {
  if (records.length <= count) return [...records];
  return Array.from({ length: count }, (_, i) => records[Math.round(((i + 1) * records.length) / count) - 1]!);
}

/** What the page needs of a run. */
export interface BalanceReport {
  /** Of the model and its gate, as a heading. */
  title: string;
  /** The command that makes this page again. */
  command: string;
  /** ISO 8601. */
  createdAt: string;
  /** What was run, in pairs of name and value. */
  facts: readonly (readonly [name: string, value: string])[];
  history: readonly BalanceRecord[];
}

/** The page: facts, load of every expert over training, coefficients of variation over training, and a table. It refers to nothing outside itself. */
export async function renderBalance({ title, command, createdAt, facts, history }: BalanceReport): Promise<string> {
  const tools = await drawing();
  const load =
    history.length > 1
      ? loadFigure(tools, {
          numExperts: history[0]!.load.length,
          loadOverTime: history.map(({ step, load }) => ({ step, load })),
        })
      : "";
  const series = cvSeries(history);
  const cvs = stepsFigure(tools, series, {
    label: "coefficient of variation",
    ariaLabel: "CV(Importance) and CV(Load) over training",
  });
  const legend = html`<p class="legend">
    ${series.map(({ name, color }) => html`<span><i class="swatch" style="--color:${color}"></i>${name}</span>`)}
  </p>`;
  return page(
    title,
    html`<header>
        <h1>${title}</h1>
        ${origin(command, createdAt)}
      </header>
      ${pairs(facts)}
      ${figure(
        1,
        load,
        html`<b>Load of the experts over training,</b> relative to an equal share (dotted, 1). Up to 32 experts are a line each; with
          more, the bands hold all of them and their middle 80%, and the line is the median.`,
      )}
      ${figure(
        2,
        cvs,
        html`<b>Balance over training.</b> Standard deviation over mean across experts; 0 is perfect balance. Load is the smooth estimate
          where the gate has one, rows are those that experts computed.`,
        legend,
      )}
      ${history.length === 0 ? html`<p>No record of metrics says how experts were used.</p>` : balanceTable(history)}`,
  );
}

function cvSeries(history: readonly BalanceRecord[]): Series[] {
  const of = (name: string, color: string, value: (record: BalanceRecord) => number | null): Series => ({
    name,
    color,
    points: history.flatMap((record) => (value(record) === null ? [] : [{ step: record.step, value: value(record)! }])),
  });
  return [
    of("CV(Importance)", "var(--series-5)", ({ cvImportance }) => cvImportance),
    of("CV(Load)", "var(--series-6)", ({ cvLoad }) => cvLoad),
    of("CV of the rows", "var(--series-4)", ({ load }) => coefficientOfVariation(load)),
  ];
}

function pairs(facts: BalanceReport["facts"]): Html {
  return html`<section>
    <table>
      <tbody>
        ${facts.map(([name, value]) => html`<tr><th scope="row">${name}</th><td>${value}</td></tr>`)}
      </tbody>
    </table>
  </section>`;
}

function balanceTable(history: readonly BalanceRecord[]): Html {
  return html`<section>
    <h2>Figures</h2>
    <div class="scroll">
      <table class="numbers">
        <thead>
          <tr>
            ${BALANCE_COLUMNS.map(([heading]) => html`<th>${heading}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${evenly(history, 20).map(
            (record) =>
              html`<tr>
                ${BALANCE_COLUMNS.map(([, cell], i) => (i === 0 ? html`<th scope="row">${cell(record)}</th>` : html`<td>${cell(record)}</td>`))}
              </tr>`,
          )}
        </tbody>
      </table>
    </div>
    <p class="note">
      Entropy is that of the ${raw(history.some(({ entropyOf }) => entropyOf === "router") ? "gate's distribution over all experts" : "kept gate values")},
      in nats. Dropped: assignments beyond an expert's capacity.
    </p>
  </section>`;
}
