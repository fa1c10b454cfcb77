/** A reproduced table as text and as a page with figures: our figures beside the paper's. */

import { drawing, stepsFigure, type Series } from "../figures.js";
import { figure, fixed, html, origin, page, type Html } from "../page.js";
import type { DoneRow } from "./run.js";
import type { Claim, PaperTable } from "./table.js";

/** What a report is made from. */
export interface Reproduction {
  table: PaperTable;
  done: readonly DoneRow[];
  /** The text, in words. */
  text: string;
  trainTokens: number;
  testTokens: number;
  /** The command that makes this again, and what it ran on. */
  command: string;
  machine: string;
  /** ISO 8601. */
  createdAt: string;
}

/** Headings and rows: each figure, and beside it the paper's where it has one. */
export function comparison({ table, done }: Pick<Reproduction, "table" | "done">): { head: string[]; rows: string[][] } {
  const inPaper = (name: string): boolean => table.rows.some(({ paper }) => name in paper);
  const head = [
    ...table.labels,
    ...table.columns.flatMap(({ figure: name, heading }) => (inPaper(name) ? [heading, "(paper)"] : [heading])),
  ];
  const rows = done.map(({ row, figures }) => [
    ...row.labels,
    ...table.columns.flatMap(({ figure: name, digits }) => {
      const ours = fixed(figures[name] ?? NaN, digits);
      if (!inPaper(name)) return [ours];
      const theirs = row.paper[name];
      return [ours, theirs === undefined ? "-" : String(theirs)];
    }),
  ]);
  return { head, rows };
}

/** The claims of the rows that are done. */
export function claimsOf({ table, done }: Pick<Reproduction, "table" | "done">): Claim[] {
  return table.claims(new Map(done.map(({ row, figures }) => [row.key, figures])));
}

/** The page: the table, what it shows, and balance over training, a line each row. It refers to nothing outside itself. */
export async function renderReproduction(reproduction: Reproduction): Promise<string> {
  const { table, done, text, trainTokens, testTokens, command, machine, createdAt } = reproduction;
  const tools = await drawing();
  const colors = done.map((_, i) => `var(--series-${(i % 8) + 1})`);
  const names = done.map(({ row }) => row.labels.map((label, i) => `${table.labels[i]} ${label}`).join(", "));
  const curve = (value: (record: DoneRow["history"][number]) => number | null): Series[] =>
    done.map(({ history }, i) => ({
      name: names[i]!,
      color: colors[i]!,
      points: history.flatMap((record) => (value(record) === null ? [] : [{ step: record.step, value: value(record)! }])),
    }));
  const legend = html`<p class="legend">
    ${names.map((name, i) => html`<span><i class="swatch" style="--color:${colors[i]!}"></i>${name}</span>`)}
  </p>`;
  const cv = stepsFigure(
    tools,
    curve(({ cvImportance }) => cvImportance),
    { label: "CV(Importance)", ariaLabel: "CV(Importance) over training, a line each row" },
  );
  const busiest = stepsFigure(
    tools,
    curve(({ maxOverMeanLoad }) => maxOverMeanLoad),
    { label: "max/mean load", ariaLabel: "Load of the busiest expert over the mean, over training, a line each row" },
  );
  return page(
    table.title,
    html`<header>
        <h1>${table.title}</h1>
        <p class="lead">
          ${table.about} Trained on ${text}: ${trainTokens.toLocaleString("en")} tokens, and ${testTokens.toLocaleString("en")} for testing.
          Every row has the same seed and sees the same batches. ${machine}.
        </p>
        ${origin(command, createdAt)}
      </header>
      ${resultTable(reproduction)} ${claimList(claimsOf(reproduction))}
      ${figure(1, cv, html`<b>CV(Importance) of each step's batch over training.</b> 0 is perfect balance.`, legend)}
      ${figure(2, busiest, html`<b>Load of the busiest expert over the mean, of each step's batch.</b> 1 is perfect balance.`, legend)}`,
  );
}

function resultTable(reproduction: Reproduction): Html {
  const { head, rows } = comparison(reproduction);
  return html`<section>
    <h2>Results</h2>
    <div class="scroll">
      <table class="numbers">
        <thead>
          <tr>
            ${head.map((heading) => html`<th>${heading}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${rows.map((cells) => html`<tr>${cells.map((cell, i) => (i === 0 ? html`<th scope="row">${cell}</th>` : html`<td>${cell}</td>`))}</tr>`)}
        </tbody>
      </table>
    </div>
  </section>`;
}

function claimList(claims: readonly Claim[]): Html {
  if (claims.length === 0) return html``;
  return html`<section>
    <h2>What it shows</h2>
    <ul>
      ${claims.map(({ says, holds, because }) => html`<li><b>${holds ? "Holds" : "Does not hold"}:</b> ${says} ${because}.</li>`)}
    </ul>
  </section>`;
}
