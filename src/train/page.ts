/** What the HTML pages of reports are made of: templates that escape, the style they share, and figures with captions. */

import { printable } from "./figures.js";

/** A page that refers to nothing outside itself. @param body what stands in its main part */
export function page(title: string, body: Html): string {
  return html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>${title}</title>
        <style>
          ${raw(STYLE)}
        </style>
      </head>
      <body>
        <main>${body}</main>
      </body>
    </html>
`.text;
}

/** The line below a title: what made the page, and when. @param createdAt ISO 8601 */
export function origin(command: string, createdAt: string): Html {
  return html`<p class="command">
    <code>${command}</code>
    <time datetime="${createdAt}">${createdAt.slice(0, 16).replace("T", " ")}</time>
  </p>`;
}

/** A numbered figure; nothing where there is no drawing. */
export function figure(number: number, svg: string, caption: Html, above: Html = html``): Html {
  if (svg === "") return html``;
  return html`<figure>
    <h2>Figure ${String(number)}</h2>
    ${above}
    <div class="scroll">${raw(svg)}</div>
    <figcaption>${caption}</figcaption>
  </figure>`;
}

/** A number with so many digits after the point; a dash for one that is not finite. */
export function fixed(value: number, digits: number): string {
  return Number.isFinite(value) ? value.toFixed(digits) : "–";
}

/** "1 thread", "2 threads". */
export function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** Text that is HTML already. Only `html` and `raw` make it. */
export class Html {
  constructor(readonly text: string) {}
}

/** Ours, not the data's: put in as it is. */
export function raw(text: string): Html {
  return new Html(text);
}

/** A template whose every inserted string is escaped, for text and for quoted attributes. */
export function html(parts: TemplateStringsArray, ...values: (string | Html | Html[])[]): Html {
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

/** Colours of series on a light page. */
export const COLORS = ["#7a818a", "#a3752c", "#9a5b86", "#4f8a4c", "#2b83c6", "#d9662b", "#7a4fc0", "#c22f4d"] as const;

const SERIES = COLORS.map((color, i) => `--series-${i + 1}:${color}`).join(";");

const STYLE = `
:root{color-scheme:light dark;--page:#fff;--ink:#1c2024;--soft:#5c6670;--rule:#dde2e7;--tint:#f4f6f8;--mark:#ffe58a;--accent:#1767b5;
${SERIES}}
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
${SERIES}}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}body{font-size:10.5pt}main{max-width:none;padding:0}figure,tr,li{break-inside:avoid}h2,h3{break-after:avoid}
.scroll{overflow:visible}svg.plot,.experts{min-width:0}.numbers{font-size:.7rem}.numbers th,.numbers td{padding:4px 5px}}
`;
