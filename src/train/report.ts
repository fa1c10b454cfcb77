/** The demo's report: one self-contained HTML page with what was run, what came out, and what the experts learned. */

import { writeFileAtomic } from "./atomic.js";
import { compact, drawFigures, isMoe, percent, runStyles } from "./figures.js";
import { figure, fixed, html, origin, page, plural, raw, type Html } from "./page.js";

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

/** Writes the report to `path`, whole, and makes its folder. */
export async function writeReport(path: string, data: DemoReport): Promise<void> {
  writeFileAtomic(path, await renderReport(data));
}

/** The report as the text of an HTML page that refers to nothing outside itself. */
export async function renderReport(data: DemoReport): Promise<string> {
  const figures = await drawFigures(data);
  const { machine, corpus, runs } = data;
  const body = html`<header>
      <h1>${data.title}</h1>
      <p class="lead">
        ${plural(runs.length, "language model")} trained on ${corpus.description}: ${compact(corpus.trainTokens)} training
        tokens, ${compact(corpus.testTokens)} test tokens, a vocabulary of
        ${corpus.vocabSize.toLocaleString("en")}${corpus.languages.length > 1 ? ` and ${corpus.languages.length} languages` : ""}.
        They ran on ${machine.cpu} with ${plural(machine.threads, "thread")} (${machine.backend}). ${finding(runs)}
      </p>
      ${origin(data.command, data.createdAt)}
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
    ${expertSection(data.specialisation)} ${samplesSection(data.samples)}`;
  return page(data.title, body);
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
