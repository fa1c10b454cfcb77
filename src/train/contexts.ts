/** Which experts the tokens of a text went to (Shazeer et al. 2017, Table 9), as a page: contexts of the highest gate values, and the text coloured by expert. */

import type { LanguageModel } from "../models/language-model.js";
import { tokenizeCorpus, type TokenDataset } from "../text/dataset.js";
import { evaluationBatches } from "../text/batches.js";
import type { Tokenizer } from "../text/tokenizer.js";
import { evaluate } from "./evaluate.js";
import { fixed, html, origin, page, raw, type Html } from "./page.js";
import type { ExpertContext, ExpertProfile } from "./specialisation.js";

/** A token as the mixture saw it when it was read. */
export interface RoutedToken {
  text: string;
  /** Its experts by gate value, the highest first; none where all were dropped. */
  experts: { expert: number; gate: number }[];
}

/**
 * The first sentences of a text, token by token with their experts. @param limit sentences at most
 * @throws ConfigError for a text of empty lines
 */
export function routedText(model: LanguageModel, tokenizer: Tokenizer, lines: readonly string[], limit: number): RoutedToken[][] {
  const dataset: TokenDataset = tokenizeCorpus(lines.slice(0, limit), tokenizer);
  const sentences: RoutedToken[][] = Array.from({ length: dataset.sentences }, () => []);
  let sentence = -1;
  // One lane: the rows are the tokens in the order of the text. Position t reads token t − 1, and the end-of-sentence symbol where a sentence begins.
  const batches = evaluationBatches(dataset, { batchSize: 1, timeSteps: 64, mode: "sentences" });
  evaluate(model, batches, {
    onRouted: ({ batch, experts, gates, rowOffsets }) => {
      for (let row = 0; row < batch.timeSteps; row++) {
        if (batch.targets[row]! < 0) continue;
        if (batch.resets[row] === 1) {
          sentence++;
          continue;
        }
        const chosen: RoutedToken["experts"] = [];
        for (let j = rowOffsets[row]!; j < rowOffsets[row + 1]!; j++)
          if (experts[j]! >= 0) chosen.push({ expert: experts[j]!, gate: gates[j]! });
        sentences[sentence]!.push({
          text: tokenizer.tokenText(batch.inputs[row]!),
          experts: chosen.sort((a, b) => b.gate - a.gate),
        });
      }
    },
  });
  return sentences;
}

/** Colour of an expert: hues a golden angle apart, so that neighbours differ and any number have one. */
function hue(expert: number): string {
  return ((expert * 137.508) % 360).toFixed(1);
}

/** What the page is made of. */
export interface ContextsReport {
  title: string;
  command: string;
  /** ISO 8601. */
  createdAt: string;
  /** The text, in words. */
  text: string;
  profiles: readonly ExpertProfile[];
  sentences: readonly (readonly RoutedToken[])[];
}

/** The page. It refers to nothing outside itself. */
export function renderContexts({ title, command, createdAt, text, profiles, sentences }: ContextsReport): string {
  return page(
    title,
    html`<header>
        <h1>${title}</h1>
        <p class="lead">
          Tokens of ${text}, and the experts that the gate chose for them. For each expert, the places where its gate value is the highest (Shazeer et al. 2017, Table 9).
        </p>
        ${origin(command, createdAt)}
      </header>
      ${raw(STYLE)}
      <section>
        <h2>The text, coloured by expert</h2>
        <p class="note">Each token has the colour of the expert with its highest gate value, the stronger the higher. Pointing at one names all of its experts.</p>
        ${sentences.map((sentence) => html`<p class="routed">${sentence.map(tokenHtml)}</p>`)}
      </section>
      <section>
        <h2>Experts by their contexts</h2>
        ${profiles.map(profileHtml)}
      </section>`,
  );
}

function tokenHtml({ text, experts }: RoutedToken): Html {
  const [first] = experts;
  if (!first) return html`<span title="no expert">${text}</span> `;
  const title = experts.map(({ expert, gate }) => `expert ${expert}: ${fixed(gate, 2)}`).join(", ");
  return html`<span class="token" style="--hue:${hue(first.expert)};--strength:${fixed(100 * Math.min(1, Math.max(0.15, first.gate)) * 0.6, 0)}%" title="${title}">${text}</span> `;
}

function profileHtml({ expert, tokens, contexts }: ExpertProfile): Html {
  return html`<h3><i class="expert" style="--hue:${hue(expert)}"></i>Expert ${String(expert)} <small>${tokens.toLocaleString("en")} tokens</small></h3>
    ${contexts.map(
      ({ before, token, after, gate }) =>
        html`<p class="context"><span class="gate">${fixed(gate, 2)}</span><bdi>${spaced(before)}<mark>${token.trim()}</mark>${spaced(after, true)}</bdi></p>`,
    )}`;
}

/** Words around a token, a space between; subwords bring their own. */
function spaced(text: string, after = false): string {
  const trimmed = text.trim();
  if (trimmed === "") return "";
  return after ? ` ${trimmed}` : `${trimmed} `;
}

/** A context on one line of a terminal. */
export function contextLine({ before, token, after, gate }: ExpertContext): string {
  return `  ${gate.toFixed(2)}  ${spaced(before)}[${token.trim()}]${spaced(after, true)}`;
}

const STYLE = `<style>
.routed{margin:.35em 0;line-height:1.9}
.token{padding:.1em .2em;border-radius:3px;background:color-mix(in srgb,hsl(var(--hue) 70% 50%) var(--strength),transparent)}
.expert{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em;background:hsl(var(--hue) 70% 50%)}
h3 small{color:var(--soft);font-weight:400}
</style>`;
