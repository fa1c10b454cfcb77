/** A reproduced table as text and as a page with figures: our figures beside the paper's. */

import { capacityFigure, drawing, perplexityFigure, stepsFigure, type Drawing, type Series } from "../figures.js";
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
  // How fast a row was is no figure of the table's: it is another each time.
  const speeds = table.stops !== undefined;
  const inPaper = (name: string): boolean => table.rows.some(({ paper }) => name in paper);
  const head = [
    ...table.labels,
    ...table.columns.flatMap(({ figure: name, heading }) => (inPaper(name) ? [heading, "(paper)"] : [heading])),
    ...(speeds ? ["tokens (M)", "tokens/s"] : []),
  ];
  const rows = done.map(({ row, figures, tokens, tokensPerSecond }) => [
    ...row.labels,
    ...table.columns.flatMap(({ figure: name, digits }) => {
      const ours = fixed(figures[name] ?? NaN, digits);
      if (!inPaper(name)) return [ours];
      const theirs = row.paper[name];
      return [ours, theirs === undefined ? "-" : String(theirs)];
    }),
    ...(speeds ? [fixed(tokens / 1e6, 2), fixed(tokensPerSecond, 0)] : []),
  ]);
  return { head, rows };
}

/** The claims of the rows that are done. */
export function claimsOf({ table, done }: Pick<Reproduction, "table" | "done">): Claim[] {
  return table.claims(new Map(done.map(({ row, figures }) => [row.key, figures])));
}

/** A figure of a reproduction: its name as a file, the SVG, and what it shows. */
export interface ReproductionFigure {
  name: string;
  svg: string;
  caption: string;
  note: string;
}

/** Colour of a row, by its place. */
const colorOf = (i: number): string => `var(--series-${(i % 8) + 1})`;

/** The figures that there is something to draw in. */
export function reproductionFigures(tools: Drawing, { table, done }: Pick<Reproduction, "table" | "done">): ReproductionFigure[] {
  const balance = (value: (record: DoneRow["history"][number]) => number | null): Series[] =>
    done.flatMap(({ row, history }, i) => {
      const points = history.flatMap((record) => (value(record) === null ? [] : [{ step: record.step, value: value(record)! }]));
      return points.length === 0 ? [] : [{ name: row.labels.join(", "), color: colorOf(i), points }];
    });
  const runs = done.map(({ row, figures }) => ({
    name: row.labels.join(", "),
    parameters: 1e6 * (figures["parameters"] ?? NaN),
    testPerplexity: figures["perplexity"] ?? NaN,
    numExperts: figures["numExperts"] ?? 0,
  }));
  const figures: ReproductionFigure[] = [
    {
      name: "capacity",
      svg: table.drawsCapacity ? capacityFigure(tools, runs) : "",
      caption: "Test perplexity against parameters without embedding and softmax.",
      note: "Mixtures are joined by a line; the others are squares with a rule across.",
    },
    {
      name: "learning",
      svg: table.drawsCapacity
        ? perplexityFigure(
            tools,
            done.map(({ curve }, i) => ({ color: colorOf(i), points: curve })),
          )
        : "",
      caption: "Perplexity of the validation text over training.",
      note: "",
    },
    {
      name: "importance",
      svg: stepsFigure(
        tools,
        balance(({ cvImportance }) => cvImportance),
        { label: "CV(Importance)", ariaLabel: "CV(Importance) over training, a line each row" },
      ),
      caption: "CV(Importance) of each step's batch over training.",
      note: "0 is perfect balance.",
    },
    {
      name: "load",
      svg: stepsFigure(
        tools,
        balance(({ maxOverMeanLoad }) => maxOverMeanLoad),
        { label: "max/mean load", ariaLabel: "Load of the busiest expert over the mean, over training, a line each row" },
      ),
      caption: "Load of the busiest expert over the mean, of each step's batch.",
      note: "1 is perfect balance.",
    },
  ];
  return figures.filter(({ svg }) => svg !== "");
}

/** The page: the table, what it shows, and its figures. It refers to nothing outside itself. */
export async function renderReproduction(reproduction: Reproduction): Promise<string> {
  const { table, done, text, trainTokens, testTokens, command, machine, createdAt } = reproduction;
  const names = done.map(({ row }) => row.labels.map((label, i) => `${table.labels[i]} ${label}`).join(", "));
  const legend = html`<p class="legend">
    ${names.map((name, i) => html`<span><i class="swatch" style="--color:${colorOf(i)}"></i>${name}</span>`)}
  </p>`;
  const figures = reproductionFigures(await drawing(), reproduction);
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
      ${figures.map(({ name, svg, caption, note }, i) => figure(i + 1, svg, html`<b>${caption}</b> ${note}`, name === "capacity" ? html`` : legend))}`,
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
