/** `sparsegate models`: the paper's language models, with cost and size computed from their architecture beside what it prints. No model is made. */

import { PAPER_MODELS, paperConfig } from "../models/catalogue.js";
import { computeCost, totalExperts } from "../models/cost.js";
import { table } from "./format.js";

export function modelsCommand({ scale = 1, json = false }: { scale?: number; json?: boolean }): void {
  const models = PAPER_MODELS.map((paper) => {
    const config = paperConfig(paper, { scale });
    const { middle, hiddenSize, lstmSize } = config;
    return { paper, hiddenSize, lstmSize, experts: middle.kind === "moe" ? totalExperts(middle) : 0, cost: computeCost(config) };
  });
  if (json) {
    const rows = models.map(({ paper, hiddenSize, lstmSize, experts, cost }) => ({
      model: paper.name,
      table: paper.table,
      hidden_size: hiddenSize,
      lstm_size: lstmSize,
      num_experts: experts,
      branching: paper.branching ?? null,
      ops_per_timestep: cost.opsPerTimestep,
      parameters: cost.parameters,
      paper: {
        ops_millions: paper.ops,
        parameters_millions: paper.parameters,
        perplexity: paper.perplexity,
        perplexity_tenth: paper.perplexityTenth ?? null,
      },
    }));
    process.stdout.write(`${JSON.stringify({ scale, models: rows })}\n`);
    return;
  }
  const head = [
    "model",
    "table",
    "width",
    "LSTM units",
    "experts",
    "groups",
    "ops/timestep (M)",
    "(paper)",
    "parameters (M)",
    "(paper)",
    "perplexity (paper)",
  ];
  const rows = models.map(({ paper, hiddenSize, lstmSize, experts, cost }) => [
    paper.name,
    String(paper.table),
    String(hiddenSize),
    String(lstmSize),
    experts > 0 ? String(experts) : "-",
    String(paper.branching ?? "-"),
    millions(cost.opsPerTimestep),
    paper.ops.toFixed(1),
    millions(cost.parameters),
    paper.parameters.toFixed(1),
    paper.perplexity.toFixed(1),
  ]);
  const note =
    scale === 1 ? "" : ` The paper's figures are of its own widths; here they are ${scale} of that, with as many experts.`;
  process.stdout.write(
    `${table(head, rows)}\n\nMultiply-adds a token without the softmax; parameters without embedding and softmax.${note}\n`,
  );
}

/** Two places where it is small, so that small scales can be told apart. */
const millions = (n: number): string => (n / 1e6).toFixed(n < 1e7 ? 2 : 1);
