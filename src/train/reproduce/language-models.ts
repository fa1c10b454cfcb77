/** Tables 7 and 8 of the paper (App. C and D): language models of equal computation and growing capacity, with equal tokens, text and settings for all. */

import { PAPER_MODELS, type PaperModel } from "../../models/catalogue.js";
import { computeCost, totalExperts } from "../../models/cost.js";
import { validPerplexity } from "../trainer.js";
import type { Claim, Figures, PaperTable, TableRow } from "./table.js";

/**
 * What all rows have in common. The paper's regimen (App. C): Adam, a linear rise, then 1/√step, sampled softmax, dropout, w = 0.1 for both losses. Its
 * numbers are for batches of 300,000 words, of which a corpus of a few million would be a few dozen steps; these are for one.
 */
const CONFIG = {
  model: "MoE-32",
  /** 128 units instead of 512. */
  scale: 0.25,
  /** 2,048 tokens a step: of the same text a dense model learned more from it than from 4,096. */
  batch_size: 64,
  time_steps: 32,
  max_steps: 4883,
  learning_rate: 3e-3,
  /** Set, so that it does not depend on the number of steps and rows can be carried on. */
  warmup_steps: 500,
  dropout: 0.1,
  /** A sixteenth of 32,000 words: at this width the exact softmax would take eight times the operations of all the rest. */
  sampled_softmax: 2048,
  max_grad_norm: 1,
  eval_steps: 500,
  save_steps: 250,
  save_total_limit: 1,
  logging_steps: 50,
};

/** Models of the same computation without a choice of experts: the bar that experts have to pass. */
const DENSE = ["MoE-1-Wide", "MoE-1-Deep", "4xLSTM-512"];

function rowOf({ name, branching, ops, parameters, perplexity, perplexityTenth }: PaperModel): TableRow {
  return {
    key: name,
    labels: [name],
    changes: { model: name, ...(branching === undefined ? {} : { branching }) },
    paper: { ops, parameters, perplexity, ...(perplexityTenth === undefined ? {} : { perplexityTenth }) },
  };
}

const rowsOf = (table: 7 | 8): TableRow[] => PAPER_MODELS.filter((model) => model.table === table).map(rowOf);

const measure: PaperTable["measure"] = ({ model, result }) => {
  const { opsPerTimestep, parameters } = computeCost(model.config);
  const { middle } = model.config;
  const { test } = result;
  const valid = validPerplexity(result);
  const figures: Record<string, number> = {
    perplexity: test!.perplexity,
    ops: opsPerTimestep / 1e6,
    parameters: parameters / 1e6,
  };
  if (valid !== undefined) figures["validPerplexity"] = valid;
  if (middle.kind === "moe") figures["numExperts"] = totalExperts(middle);
  if (test!.balance) Object.assign(figures, { cvLoad: test!.balance.cvLoad, maxOverMeanLoad: test!.balance.maxOverMeanLoad });
  return figures;
};

const perplexityOf = (figures: ReadonlyMap<string, Figures>, key: string): number | undefined => figures.get(key)?.["perplexity"];

/** "MoE-32: 104.2" */
const told = (key: string, value: number): string => `${key} ${value.toFixed(2)}`;

/** "4.0% less" */
const difference = (less: number): string => `${Math.abs(100 * less).toFixed(1)}% ${less < 0 ? "more" : "less"}`;

/** One claim that a model is better than another, by the perplexities of both; none where one is missing. */
function better(figures: ReadonlyMap<string, Figures>, than: string, key: string, says: string): Claim[] {
  const [a, b] = [perplexityOf(figures, than), perplexityOf(figures, key)];
  if (a === undefined || b === undefined) return [];
  return [{ says, holds: b < a, because: `${told(than, a)}, ${told(key, b)}, ${difference(1 - b / a)}` }];
}

/** The best of the dense models of equal computation that are done. */
function bestDense(figures: ReadonlyMap<string, Figures>): string | undefined {
  const done = DENSE.filter((key) => figures.has(key));
  return done.sort((a, b) => perplexityOf(figures, a)! - perplexityOf(figures, b)!)[0];
}

export const table7: PaperTable = {
  name: "table-7",
  title: "Table 7: more experts at equal computation",
  about:
    "The paper trains its models, 512 units wide, on ten passes of 829 million words; its perplexities are of another corpus and another vocabulary, so that only the order and the ratios can be compared. Perplexity is exact, over the whole vocabulary, counting the end of each sentence.",
  labels: ["model"],
  columns: [
    { figure: "perplexity", heading: "test perplexity", digits: 2 },
    { figure: "validPerplexity", heading: "valid perplexity", digits: 2 },
    { figure: "ops", heading: "ops/timestep (M)", digits: 3 },
    { figure: "parameters", heading: "parameters (M)", digits: 2 },
    { figure: "cvLoad", heading: "CV(Load) in the test", digits: 2 },
    { figure: "maxOverMeanLoad", heading: "max/mean in the test", digits: 2 },
  ],
  rows: rowsOf(7),
  usual: ["LSTM-512-512", "LSTM-1024-512", "LSTM-2048-512", ...DENSE, "MoE-4", "MoE-32", "MoE-256", "MoE-256-h", "MoE-1024-h"],
  config: CONFIG,
  stops: (maxSteps) => [maxSteps],
  drawsCapacity: true,
  measure,
  claims(figures) {
    const dense = bestDense(figures);
    const overDense =
      dense === undefined
        ? []
        : ["MoE-32", "MoE-256"].flatMap((key) =>
            better(figures, dense, key, `${key} is better than the best dense model of equal computation.`),
          );
    return [
      ...better(figures, "MoE-4", "MoE-32", "Eight times the experts are better at equal computation."),
      ...better(figures, "MoE-32", "MoE-256", "Eight times the experts once more are better still."),
      ...better(figures, "MoE-256-h", "MoE-1024-h", "So are four times the experts of a hierarchical mixture."),
      ...overDense,
    ];
  },
};

export const table8: PaperTable = {
  name: "table-8",
  title: "Table 8: the more data, the more experts are worth",
  about:
    "The paper trains on 10 and on 100 billion words of another corpus; here the same models are measured after a tenth of the tokens, and carried on to all of them. Perplexity is exact, over the whole vocabulary, counting the end of each sentence.",
  labels: ["model"],
  columns: [
    { figure: "perplexityTenth", heading: "after a tenth", digits: 2 },
    { figure: "perplexity", heading: "after all", digits: 2 },
    { figure: "ops", heading: "ops/timestep (M)", digits: 3 },
    { figure: "parameters", heading: "parameters (M)", digits: 2 },
  ],
  rows: rowsOf(8),
  usual: ["4xLSTM-512", "MoE-32", "MoE-256-h", "MoE-1024-h"],
  config: CONFIG,
  stops: (maxSteps) => (maxSteps < 2 ? [maxSteps] : [Math.ceil(maxSteps / 10), maxSteps]),
  combine: (stops) => ({ ...stops.at(-1)!, perplexityTenth: stops[0]!["perplexity"]! }),
  drawsCapacity: true,
  measure,
  claims(figures) {
    const dense = figures.get("4xLSTM-512");
    if (!dense) return [];
    return [...figures].flatMap(([key, row]) => {
      if (key === "4xLSTM-512") return [];
      const [tenth, all] = (["perplexityTenth", "perplexity"] as const).map((name) => 1 - row[name]! / dense[name]!) as [
        number,
        number,
      ];
      return [
        {
          says: `${key} gains more over 4xLSTM-512 from all of the data than from a tenth.`,
          holds: all > tenth,
          because: `${difference(tenth)} after a tenth, ${difference(all)} after all`,
        },
      ];
    });
  },
};
