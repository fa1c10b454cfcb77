/** `sparsegate inspect RUN --contexts`: what each expert takes, by the places of a text where its gate value is the highest (Shazeer et al. 2017, Table 9). */

import { ConfigError, expectation } from "../core/errors.js";
import { defaultBackend } from "../tensor/default-backend.js";
import { readLines } from "../text/corpus.js";
import { writeFileAtomic } from "../train/atomic.js";
import type { Checkpoint } from "../train/checkpoint.js";
import { contextLine, renderContexts, routedText } from "../train/contexts.js";
import { caveats } from "../train/moe-config.js";
import { loadModel } from "../train/restore.js";
import { specialisation } from "../train/specialisation.js";
import { openBackend } from "./backend.js";
import { print } from "./output.js";

/** Experts that the terminal shows, those with the most tokens, and contexts of each. */
const SHOWN_EXPERTS = 16;
const SHOWN_CONTEXTS = 4;
/** Sentences that the page shows in colour. */
const SHOWN_SENTENCES = 60;

export function contextsCommand(checkpoint: Checkpoint, run: string, options: Record<string, unknown>): void {
  const path = (options["data"] as string | undefined) ?? checkpoint.config["test"] ?? checkpoint.config["valid"];
  if (typeof path !== "string")
    throw new ConfigError(
      expectation("inspect", "--data, a text file", "none", `${run} was trained without --test and --valid.`),
    );
  const limit = options["lines"] as number;
  const lines: string[] = [];
  for (const line of readLines(path)) {
    if (lines.length >= limit) break;
    if (line.trim() !== "") lines.push(line);
  }
  if (lines.length === 0)
    throw new ConfigError(expectation("--data", `a text with a line in ${path}, and --lines of at least 1`, "none"));
  openBackend();
  const { model, config, tokenizer } = loadModel(checkpoint);
  if (!model.moe) throw new ConfigError(expectation("--contexts", "a model with experts to choose from", config.model));
  for (const note of caveats(config)) process.stderr.write(`${note}\n`);
  const { experts } = specialisation(
    model,
    tokenizer,
    lines.map((text) => ({ text, label: "" })),
  );
  const byTokens = [...experts].sort((a, b) => b.tokens - a.tokens || a.expert - b.expert);
  if (options["json"] === true) {
    const found = experts.map(({ expert, tokens, contexts }) => ({
      expert,
      tokens,
      contexts: contexts.map(({ label: _, ...context }) => context),
    }));
    print(
      {
        model: config.model,
        step: checkpoint.step,
        text: path,
        lines: lines.length,
        experts: found.sort((a, b) => a.expert - b.expert),
      },
      true,
    );
  } else {
    for (const { expert, tokens, contexts } of byTokens.slice(0, SHOWN_EXPERTS)) {
      process.stdout.write(
        `expert ${expert}, ${tokens} tokens\n${contexts
          .slice(0, SHOWN_CONTEXTS)
          .map((context) => `${contextLine(context)}\n`)
          .join("")}`,
      );
    }
    if (experts.length > SHOWN_EXPERTS)
      process.stdout.write(`${experts.length - SHOWN_EXPERTS} more experts with fewer tokens: --html or --json has them.\n`);
  }
  const file = options["html"];
  if (typeof file === "string") {
    writeFileAtomic(
      file,
      renderContexts({
        title: `What the experts of ${config.model} take`,
        command: [
          "sparsegate inspect",
          run,
          "--contexts",
          ...(options["data"] === undefined ? [] : ["--data", path]),
          "--html",
          file,
        ].join(" "),
        createdAt: new Date().toISOString(),
        text: path,
        profiles: [...experts].sort((a, b) => a.expert - b.expert),
        sentences: routedText(model, tokenizer, lines, SHOWN_SENTENCES),
      }),
    );
    process.stderr.write(`Page: ${file}\n`);
  }
  defaultBackend().dispose();
}
