/** A benchmark's report: one page with its figures, table and targets, which loads nothing. Figures are drawn by Observable Plot, as in the demo's report. */

import { mkdir, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { compact, printable } from "#sparsegate/train/figures.js";
import { round, type BenchResult, type Figure, type Target } from "./harness.js";

export interface Report extends Omit<BenchResult, "figures"> {
  name: string;
  question: string;
  machine: { cpu: string; cores: number; node: string };
  options: Record<string, number | string>;
  figures: readonly Figure[];
}

export function met({ value, bound, atMost }: Target): boolean {
  return atMost ? value <= bound : value >= bound;
}

const [WIDTH, HEIGHT] = [720, 400];
const colorOf = (color: number): string => `var(--series-${(color % 4) + 1})`;

/** SVG text of each figure. */
async function draw(figures: readonly Figure[]): Promise<string[]> {
  if (figures.length === 0) return [];
  const [plot, { parseHTML }] = await Promise.all([import("@observablehq/plot"), import("linkedom")]);
  const { document } = parseHTML("<!doctype html><html><body></body></html>");
  return figures.map(({ title, x, y, logY = false, lines }) => {
    const marks = lines.flatMap(({ points, color, dashed }) => [
      plot.line(points, { x: "x", y: "y", stroke: colorOf(color), strokeWidth: 2, strokeDasharray: dashed ? "6 4" : undefined }),
      plot.dot(points, { x: "x", y: "y", r: 3.5, fill: colorOf(color) }),
    ]);
    const at = [...new Set(lines.flatMap(({ points }) => points.map((point) => point.x)))].sort((a, b) => a - b);
    const svg = plot.plot({
      document: document as never,
      width: WIDTH,
      height: HEIGHT,
      marginLeft: 56,
      marginRight: 24,
      marginTop: 28,
      marginBottom: 44,
      className: "plot",
      style: { background: "none" },
      ariaLabel: title,
      x: {
        type: "log",
        base: 2,
        label: x,
        labelArrow: "none",
        ticks: at,
        tickFormat: (value: number) => value.toLocaleString("en"),
      },
      y: {
        type: logY ? "log" : "linear",
        label: `↑ ${y}`,
        labelArrow: "none",
        grid: true,
        zero: !logY,
        ticks: 6,
        tickFormat: compact,
      },
      marks,
    });
    return printable(String(svg.outerHTML));
  });
}

/** Writes the page. */
export async function writeReport(path: string, report: Report): Promise<void> {
  const { name, question, machine, options, rows, targets, notes, figures } = report;
  const svgs = await draw(figures);
  const columns = Object.keys(rows[0] ?? {});
  const cell = (value: string | number | null | undefined): string => {
    if (typeof value === "number") return `<td>${round(value, 4).toLocaleString("en", { maximumSignificantDigits: 4 })}</td>`;
    return `<td>${escape(value ?? "–")}</td>`;
  };
  const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(name)}</title>
<style>${STYLE}</style>
<main>
<h1>${escape(name)}</h1>
<p>${escape(question)}</p>
<p class="soft">${escape(
    `${machine.cores} × ${machine.cpu}, Node ${machine.node}; ${Object.entries(options)
      .map(([option, value]) => `${option} ${value === "" ? "none" : value}`)
      .join(", ")}`,
  )}</p>
${figures
  .map(
    ({ title, caption, lines }, i) => `<figure>
<h2>${escape(title)}</h2>
<p class="legend">${lines
      .map(
        (line) =>
          `<span><i class="${line.dashed ? "dashed" : ""}" style="--color:${colorOf(line.color)}"></i>${escape(line.name)}</span>`,
      )
      .join("")}</p>
<div class="scroll">${svgs[i]!}</div>
<figcaption>${escape(caption)}</figcaption>
</figure>`,
  )
  .join("\n")}
<h2>Measured</h2>
<div class="scroll"><table>
<thead><tr>${columns.map((column) => `<th>${escape(column)}</th>`).join("")}</tr></thead>
<tbody>
${rows.map((row) => `<tr>${columns.map((column) => cell(row[column])).join("")}</tr>`).join("\n")}
</tbody>
</table></div>
<h2>Targets</h2>
<ul>
${targets
  .map(
    (target) =>
      `<li><b>${met(target) ? "met" : "missed"}</b> ${escape(target.name)}: ${round(target.value)}, ${target.atMost ? "at most" : "at least"} ${target.bound}</li>`,
  )
  .join("\n")}
</ul>
${notes.map((note) => `<p class="soft">${escape(note)}</p>`).join("\n")}
</main>
</html>
`;
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, page);
}

const ENTITIES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

function escape(text: string): string {
  return printable(text).replace(/[&<>"]/g, (character) => ENTITIES[character]!);
}

const STYLE = `
:root{color-scheme:light dark;--page:#fff;--ink:#1c2024;--soft:#5c6670;--rule:#dde2e7;--series-1:#2b83c6;--series-2:#d9662b;--series-3:#7a818a;--series-4:#4f8a4c}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e6e9ec;--soft:#9aa5b0;--rule:#30363d;--series-1:#5db0ee;--series-2:#f39a63;--series-3:#a3abb5;--series-4:#7fc27b}}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:920px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:1.8rem;margin:0 0 .3em}
h2{font-size:1.15rem;margin:2.2em 0 .5em}
figure{margin:0}
figcaption,.soft{color:var(--soft);font-size:.9rem;max-width:75ch}
.scroll{overflow-x:auto}
svg.plot{display:block;width:100%;max-width:720px;min-width:560px;height:auto;font:12px system-ui,sans-serif;--plot-background:var(--page)}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;margin:0;font-size:.88rem}
.legend i{display:inline-block;width:22px;border-top:3px solid var(--color);margin-right:7px;vertical-align:middle}
.legend i.dashed{border-top-style:dashed}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 9px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:500;white-space:normal;vertical-align:bottom}
`;
