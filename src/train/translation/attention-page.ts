/** What translations read, as a page with a figure for each: a row for each token written, a column for each token of the source. */

import { drawing } from "../figures.js";
import { figure, fixed, html, origin, page } from "../page.js";
import type { Translation } from "./translate.js";

/** Widths and heights of a cell, and room for the words at the left and above. */
const [CELL, LEFT, TOP] = [22, 130, 110];

/** The page. @param translations the best of each source; those without tokens are left out @param command what made it @param createdAt ISO 8601 */
export async function attentionPage(title: string, translations: readonly { source: string; translation: Translation }[], command: string, createdAt: string): Promise<string> {
  const { plot, draw } = await drawing();
  const figures = translations
    .filter(({ translation }) => translation.targetTokens.length > 0)
    .map(({ source, translation: { text, score, sourceTokens, targetTokens, attention } }, i) => {
      // The same word may stand twice: places are numbered, and labelled with the words.
      const cells = attention.flatMap((row, target) => Array.from(row, (share, from) => ({ from, target, share })));
      const svg = draw({
        width: LEFT + CELL * sourceTokens.length + 20,
        height: TOP + CELL * targetTokens.length + 20,
        marginLeft: LEFT,
        marginTop: TOP,
        marginBottom: 10,
        marginRight: 10,
        ariaLabel: "Attention: rows are tokens written, columns tokens read",
        color: { type: "linear", scheme: "blues", domain: [0, 1] },
        x: { axis: "top", tickRotate: -60, label: null, domain: sourceTokens.map((_, place) => place), tickFormat: (place: number) => sourceTokens[place]!, tickSize: 0 },
        y: { label: null, domain: targetTokens.map((_, place) => place), tickFormat: (place: number) => targetTokens[place]!, tickSize: 0 },
        marks: [plot.cell(cells, { x: "from", y: "target", fill: "share", title: (cell: (typeof cells)[number]) => cell.share.toFixed(3) })],
      });
      return figure(i + 1, svg, html`<b>${source}</b><br />${text} (score ${fixed(score, 3)})`);
    });
  return page(title, html`<h1>${title}</h1>${origin(command, createdAt)}${figures}`);
}
