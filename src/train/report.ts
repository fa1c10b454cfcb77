/** The demo's report: one self-contained HTML page with what was run, what came out, and what the experts learned. */

import { mkdir, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { compact, drawFigures, isMoe, percent, printable, runStyles } from "./figures.js";

/** One trained model of the demo. */
export interface ReportRun {
  /** As in the paper: "MoE-1-Wide", "MoE-4", … */
  name: string;
  /** E; 0 or 1 for the dense baselines. */
  numExperts: number;
  /** All parameters, embedding and softmax included. */
  parameters: number;
  /** Parameters of the experts and gates. */
  moeParameters: number;
  /** Multiply-and-adds a token in the forward pass, embedding and softmax left out as in the paper's tables. */
  opsPerTimestep: number;
  /** Training throughput. */
  tokensPerSecond: number;
  testPerplexity: number;
  /** Coefficients of variation over the test set; null for dense models. */
  cvImportance: number | null;
  cvLoad: number | null;
  maxOverMeanLoad: number | null;
  /** Loss in nats a token. */
  curve: { tokens: number; loss: number; validPerplexity?: number }[];
  /** Rows each expert received, in any unit: the report shows them relative to their mean. */
  loadOverTime: { step: number; load: number[] }[];
}

/** Everything the report shows. */
export interface DemoReport {
  title: string;
  /** ISO 8601. */
  createdAt: string;
  /** The command that makes this page again. */
  command: string;
  machine: { cpu: string; threads: number; backend: string };
  corpus: { description: string; trainTokens: number; testTokens: number; vocabSize: number; languages: string[] };
  runs: ReportRun[];
  specialisation: {
    /** The run whose experts are shown. */
    model: string;
    languages: string[];
    /** Experts × languages: share of each expert's tokens; the experts sorted as they are to be shown. */
    heat: number[][];
    /** Number of the expert in each row of `heat`. @default the row's index */
    heatExperts?: number[];
    experts: {
      expert: number;
      /** Relative to an equal share: 1 is the mean. */
      load: number;
      topLanguages: { language: string; share: number }[];
      contexts: { before: string; token: string; after: string; gate: number; language: string }[];
    }[];
  };
  samples: { model: string; text: string }[];
}

/** Writes the report to `path` (beside it first, then renamed, so that no half page is ever there) and makes its folder. */
export async function writeReport(path: string, data: DemoReport): Promise<void> {
  const page = await renderReport(data);
  await mkdir(dirname(path), { recursive: true });
  const beside = `${path}.${process.pid}.tmp`;
  await writeFile(beside, page, "utf8");
  await rename(beside, path);
}

/** The report as the text of an HTML page that refers to nothing outside itself. */
export async function renderReport(data: DemoReport): Promise<string> {
  const figures = await drawFigures(data);
  const { machine, corpus, runs } = data;
  const page = html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>${data.title}</title>
        <style>
          ${raw(STYLE)}
        </style>
      </head>
      <body>
        <main>
          <header>
            <h1>${data.title}</h1>
            <p class="lead">
              ${plural(runs.length, "language model")} trained on ${corpus.description}: ${compact(corpus.trainTokens)} training
              tokens, ${compact(corpus.testTokens)} test tokens, a vocabulary of
              ${corpus.vocabSize.toLocaleString("en")}${corpus.languages.length > 1 ? ` and ${corpus.languages.length} languages` : ""}.
              They ran on ${machine.cpu} with ${plural(machine.threads, "thread")} (${machine.backend}). ${finding(runs)}
            </p>
            <p class="command">
              <code>${data.command}</code>
              <time datetime="${data.createdAt}">${data.createdAt.slice(0, 16).replace("T", " ")}</time>
            </p>
          </header>
          ${resultsTable(runs)}
          ${figure(
            1,
            figures.capacity,
            html`<b>Perplexity against capacity.</b> More experts add parameters while the work a token costs stays about the
              same. Squares and dashed rules are the dense baselines; lower is better.`,
          )}
          ${figure(2, figures.learning, html`<b>Learning curves.</b> Strong lines are validation perplexity where it was measured, faint ones training; dense models are dashed. What lies more than tenfold above the lowest is cut off.`, legend(runs))}
          ${
            figures.load.length === 0
              ? ""
              : html`<figure>
                  <h2>Figure 3</h2>
                  ${figures.load.map(
                    ({ name, svg }) =>
                      html`<h3>${name}</h3>
                        <div class="scroll">${raw(svg)}</div>`,
                  )}
                  <figcaption>
                    <b>Load of the experts over training,</b> relative to an equal share (dotted, 1). Up to 32 experts are a line
                    each; with more, the bands hold all of them and their middle 80%, and the line is the median.
                  </figcaption>
                </figure>`
          }
          ${figure(
            4,
            figures.specialisation,
            html`<b>What the experts of ${data.specialisation.model} specialise in.</b> Each column is an expert; the stronger the
              colour, the larger the language's share of its tokens.`,
          )}
          ${expertSection(data.specialisation)} ${samplesSection(data.samples)}
        </main>
      </body>
    </html>
`;
  return page.text;
}

/** The one comparison that the demo is made for, in words. */
function finding(runs: readonly ReportRun[]): string {
  const best = (list: ReportRun[]): ReportRun | undefined =>
    list.filter((run) => Number.isFinite(run.testPerplexity)).sort((a, b) => a.testPerplexity - b.testPerplexity)[0];
  const [moe, dense] = [best(runs.filter(isMoe)), best(runs.filter((run) => !isMoe(run)))];
  if (!moe || !dense) return "";
  const change = 1 - moe.testPerplexity / dense.testPerplexity;
  const compared = `${percent(Math.abs(change))} ${change >= 0 ? "lower" : "higher"} than that of the best dense model, ${dense.name} (${dense.testPerplexity.toFixed(1)})`;
  return `The best mixture, ${moe.name}, reaches a test perplexity of ${moe.testPerplexity.toFixed(1)}: ${compared}.`;
}

function resultsTable(runs: readonly ReportRun[]): Html {
  const best = Math.min(...runs.map((run) => run.testPerplexity).filter(Number.isFinite));
  const styles = runStyles(runs);
  const optional = (value: number | null): string => (value === null ? "–" : fixed(value, 2));
  return html`<section>
    <h2>Results</h2>
    <div class="scroll">
      <table class="numbers">
        <thead>
          <tr>
            <th>Model</th>
            <th>Test perplexity</th>
            <th>Experts</th>
            <th>Parameters</th>
            <th>in the MoE</th>
            <th>Ops / token</th>
            <th>Tokens / s</th>
            <th>CV importance</th>
            <th>CV load</th>
            <th>max / mean load</th>
          </tr>
        </thead>
        <tbody>
          ${runs.map(
            (run, i) =>
              html`<tr><th scope="row">${swatch(styles[i])}${run.name}</th><td${raw(run.testPerplexity === best ? ' class="best"' : "")}>${fixed(run.testPerplexity, 1)}</td>
<td>${isMoe(run) ? run.numExperts.toLocaleString("en") : "–"}</td><td>${compact(run.parameters)}</td><td>${run.moeParameters > 0 ? compact(run.moeParameters) : "–"}</td>
<td>${compact(run.opsPerTimestep)}</td><td>${compact(run.tokensPerSecond)}</td>
<td>${optional(run.cvImportance)}</td><td>${optional(run.cvLoad)}</td><td>${optional(run.maxOverMeanLoad)}</td></tr>`,
          )}
        </tbody>
      </table>
    </div>
    <p class="note">
      CV: standard deviation over mean, across experts; 0 is perfect balance. Ops: multiply-and-adds in the forward pass,
      embedding and softmax left out.
    </p>
  </section>`;
}

function expertSection({ model, experts }: DemoReport["specialisation"]): Html {
  if (experts.length === 0) return html``;
  return html`<section>
    <h2>Specialised experts of ${model}</h2>
    <div class="scroll">
      <table class="experts">
        <thead>
          <tr>
            <th>Expert</th>
            <th>Languages</th>
            <th>Tokens it was chosen for, by gate value</th>
          </tr>
        </thead>
        <tbody>
          ${experts.map(
            ({ expert, load, topLanguages, contexts }) =>
              html`<tr>
                <th scope="row">${String(expert)}<small>load ${fixed(load, 2)}</small></th>
                <td>
                  ${topLanguages.map(({ language, share }) => html`<div class="share"><bdi>${language}</bdi> <span>${percent(share)}</span></div>`)}
                </td>
                <td>
                  ${contexts.map(
                    ({ before, token, after, gate, language }) =>
                      html`<p class="context" title="${language}">
                        <span class="gate">${fixed(gate, 2)}</span>
                        <bdi>${visible(before)}<mark>${visible(token) || "∅"}</mark>${visible(after)}</bdi>
                      </p>`,
                  )}
                </td>
              </tr>`,
          )}
        </tbody>
      </table>
    </div>
  </section>`;
}

function samplesSection(samples: DemoReport["samples"]): Html {
  if (samples.length === 0) return html``;
  return html`<section>
    <h2>Generated messages</h2>
    ${[...new Set(samples.map(({ model }) => model))].map(
      (model) =>
        html`<h3>${model}</h3>
          <ul class="samples">
            ${samples.filter((sample) => sample.model === model).map(({ text }) => html`<li dir="auto">${text}</li>`)}
          </ul>`,
    )}
  </section>`;
}

function figure(number: number, svg: string, caption: Html, above: Html = html``): Html {
  if (svg === "") return html``;
  return html`<figure>
    <h2>Figure ${String(number)}</h2>
    ${above}
    <div class="scroll">${raw(svg)}</div>
    <figcaption>${caption}</figcaption>
  </figure>`;
}

function legend(runs: readonly ReportRun[]): Html {
  const styles = runStyles(runs);
  return html`<p class="legend">${runs.map((run, i) => html`<span>${swatch(styles[i])}${run.name}</span>`)}</p>`;
}

function swatch({ color, dashed }: { color: string; dashed: boolean }): Html {
  return html`<i class="${dashed ? "swatch dashed" : "swatch"}" style="--color:${color}"></i>`;
}

/** Line breaks and tabs made visible, so that a token that is one can be seen. */
function visible(text: string): string {
  return text.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥");
}

function fixed(value: number, digits: number): string {
  return Number.isFinite(value) ? value.toFixed(digits) : "–";
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** Text that is HTML already. Only `html` and `raw` make it. */
class Html {
  constructor(readonly text: string) {}
}

/** Ours, not the data's: put in as it is. */
function raw(text: string): Html {
  return new Html(text);
}

/** A template whose every inserted string is escaped, for text and for quoted attributes. */
function html(parts: TemplateStringsArray, ...values: (string | Html | Html[])[]): Html {
  const inserted = (value: string | Html | Html[]): string => {
    if (Array.isArray(value)) return value.map((part) => part.text).join("");
    return value instanceof Html ? value.text : escapeHtml(value);
  };
  return new Html(parts.map((part, i) => (i < values.length ? part + inserted(values[i]) : part)).join(""));
}

const ENTITIES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

function escapeHtml(text: string): string {
  return printable(text).replace(/[&<>"']/g, (character) => ENTITIES[character]);
}

const STYLE = `
:root{color-scheme:light dark;--page:#fff;--ink:#1c2024;--soft:#5c6670;--rule:#dde2e7;--tint:#f4f6f8;--mark:#ffe58a;--accent:#1767b5;
--series-1:#7a818a;--series-2:#a3752c;--series-3:#9a5b86;--series-4:#4f8a4c;--series-5:#2b83c6;--series-6:#d9662b;--series-7:#7a4fc0;--series-8:#c22f4d}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e6e9ec;--soft:#9aa5b0;--rule:#30363d;--tint:#1d2126;--mark:#6b5610;--accent:#5aa9f0;
--series-1:#a3abb5;--series-2:#d6a65a;--series-3:#d091bb;--series-4:#7fc27b;--series-5:#5db0ee;--series-6:#f39a63;--series-7:#b596f0;--series-8:#f0718a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:17px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:860px;margin:0 auto;padding:48px 20px 80px}
h1{font-size:2.1rem;line-height:1.2;margin:0 0 .5em;letter-spacing:-.015em;text-wrap:balance}
h2{font-size:1.25rem;line-height:1.3;margin:0 0 .6em}
h3{font-size:1rem;margin:1.2em 0 .2em}
section,figure{margin:52px 0 0;padding:0}
.lead{font-size:1.1rem;margin:0 0 1em;text-wrap:pretty;overflow-wrap:anywhere}
.command{margin:0;color:var(--soft);font-size:.85rem}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--tint);color:var(--ink);padding:.25em .5em;border-radius:4px;overflow-wrap:anywhere}
time{white-space:nowrap;margin-left:.5em}
figcaption,.note{color:var(--soft);font-size:.9rem;line-height:1.5;margin:.6em 0 0;max-width:70ch}
figcaption b{color:var(--ink)}
.scroll{overflow-x:auto}
svg.plot{display:block;width:100%;min-width:580px;height:auto;font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;--plot-background:var(--page)}
table{border-collapse:collapse;width:100%;font-size:.88rem;line-height:1.45}
th,td{padding:8px 10px;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th:first-child{padding-left:0}
thead th{color:var(--soft);font-weight:500;font-size:.8rem;line-height:1.25;vertical-align:bottom;border-bottom-color:var(--soft)}
tbody th{font-weight:600}
.numbers th:not(:first-child),.numbers td{text-align:right;font-variant-numeric:tabular-nums}
.numbers tbody th,.numbers td{white-space:nowrap}
.best{font-weight:700}
.swatch{display:inline-block;width:18px;height:0;border-top:3px solid var(--color);margin-right:8px;vertical-align:middle}
.swatch.dashed{border-top-style:dashed}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;margin:0 0 .4em;font-size:.85rem}
.experts{min-width:620px}
.experts th small{display:block;font-weight:400;color:var(--soft);white-space:nowrap}
.share{display:flex;justify-content:space-between;gap:1em;white-space:nowrap}
.share span,.gate{color:var(--soft);font-variant-numeric:tabular-nums}
.context{margin:0 0 .25em;padding-left:3.2em;position:relative;overflow-wrap:anywhere}
.context bdi{white-space:pre-wrap}
.gate{position:absolute;left:0}
mark{background:var(--mark);color:inherit;padding:.05em .15em;border-radius:3px}
.samples{list-style:none;margin:.4em 0 0;padding:0}
.samples li{padding:.45em 0;border-bottom:1px solid var(--rule);white-space:pre-wrap;overflow-wrap:anywhere}
@media (max-width:600px){body{font-size:16px}main{padding-top:28px}h1{font-size:1.6rem}}
@media print{:root{color-scheme:light;--page:#fff;--ink:#000;--soft:#444;--rule:#bbb;--tint:#f2f2f2;--mark:#ffe58a;--accent:#1767b5;
--series-1:#7a818a;--series-2:#a3752c;--series-3:#9a5b86;--series-4:#4f8a4c;--series-5:#2b83c6;--series-6:#d9662b;--series-7:#7a4fc0;--series-8:#c22f4d}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}body{font-size:10.5pt}main{max-width:none;padding:0}figure,tr,li{break-inside:avoid}h2,h3{break-after:avoid}
.scroll{overflow:visible}svg.plot,.experts{min-width:0}.numbers{font-size:.7rem}.numbers th,.numbers td{padding:4px 5px}}
`;
