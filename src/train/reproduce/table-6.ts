/** Table 6 of the paper (App. A): what the two balance losses are worth, by weights from none to one each. */

import { trainingBalance } from "./balance.js";
import type { Claim, Figures, PaperTable, TableRow } from "./table.js";

/** w_importance, w_load; test perplexity, CV(Importance), CV(Load), max(Load)/mean(Load) of the paper's MoE-256 after 10 epochs of the 1-billion-word benchmark. */
const PAPER: readonly (readonly [
  importance: number,
  load: number,
  perplexity: number,
  cvImportance: number,
  cvLoad: number,
  maxOverMean: number,
])[] = [
  [0, 0, 39.8, 3.04, 3.01, 17.8],
  [0.2, 0, 35.6, 0.06, 0.17, 1.47],
  [0, 0.2, 35.7, 0.22, 0.04, 1.15],
  [0.1, 0.1, 35.6, 0.06, 0.05, 1.14],
  [0.01, 0.01, 35.7, 0.48, 0.11, 1.37],
  [1, 1, 35.7, 0.03, 0.02, 1.07],
];

/** Batches that importance and load are summed over: 2560 rows for each of 64 experts, where a step's batch has 320. */
const BALANCE_BATCHES = 8;

const keyOf = (importance: number, load: number): string => `importance-${importance}-load-${load}`;
const NONE = keyOf(0, 0);

const rows: TableRow[] = PAPER.map(([importance, load, perplexity, cvImportance, cvLoad, maxOverMeanLoad]) => ({
  key: keyOf(importance, load),
  labels: [String(importance), String(load)],
  changes: { importance_weight: importance, load_weight: load },
  paper: { perplexity, cvImportance, cvLoad, maxOverMeanLoad },
}));

export const table6: PaperTable = {
  name: "table-6",
  title: "Table 6: experts with different combinations of losses",
  about:
    "The paper trains MoE-256 with experts of a million parameters on 829 million words. Here it is MoE-64, 32 units wide, with the same gate, k = 4 and losses, for a thousand steps. " +
    "Importance and load are those of training, noise included, over batches of the training text; the last column is what the same model does with the test text, without noise.",
  labels: ["w_importance", "w_load"],
  columns: [
    { figure: "perplexity", heading: "test perplexity", digits: 2 },
    { figure: "cvImportance", heading: "CV(Importance)", digits: 2 },
    { figure: "cvLoad", heading: "CV(Load)", digits: 2 },
    { figure: "maxOverMeanLoad", heading: "max/mean load", digits: 2 },
    { figure: "testMaxOverMeanLoad", heading: "max/mean in the test", digits: 2 },
  ],
  rows,
  config: {
    model: "MoE-64",
    // Narrow and of few words, so that a step is quick: what is looked at is the gate.
    hidden_size: 32,
    vocab_size: 512,
    // 512 lanes, 320 rows an expert. The losses act on each batch: with 64 lanes its chance imbalance, at weights of 1, kept the gate from learning at all.
    batch_size: 512,
    time_steps: 10,
    // At weights of 1 the gate needs 800 steps at this rate until its logits are well above its noise (1.8 to 0.7); from then on it is better than no loss.
    max_steps: 1000,
    learning_rate: 2e-2,
    warmup_steps: 100,
    dropout: 0,
    max_grad_norm: 1,
    logging_steps: 10,
    save_steps: 200,
    save_total_limit: 1,
  },
  measure({ model, datasets, config, result }) {
    const { cvImportance, cvLoad, maxOverMeanLoad } = trainingBalance(model, datasets, config, BALANCE_BATCHES);
    const { perplexity, balance } = result.test!;
    return { perplexity, cvImportance, cvLoad, maxOverMeanLoad, testMaxOverMeanLoad: balance!.maxOverMeanLoad };
  },
  claims(figures) {
    const without = figures.get(NONE);
    const others = [...figures].filter(([key]) => key !== NONE).map(([, found]) => found);
    if (!without || others.length === 0) return [];
    const range = (name: string): string =>
      `${Math.min(...others.map((f) => f[name]!)).toFixed(2)} to ${Math.max(...others.map((f) => f[name]!)).toFixed(2)} with a loss`;
    const claim = (says: string, name: string, holds: boolean): Claim => ({
      says,
      holds,
      because: `${without[name]!.toFixed(2)} without, ${range(name)}`,
    });
    const every = (test: (f: Figures) => boolean): boolean => others.every(test);
    return [
      claim(
        "Without a loss the gate collapses onto few experts: CV(Importance) is above 1.",
        "cvImportance",
        without["cvImportance"]! > 1,
      ),
      claim("Without a loss the load does too: CV(Load) is above 1.", "cvLoad", without["cvLoad"]! > 1),
      claim(
        "Without a loss the perplexity is the worst.",
        "perplexity",
        every((f) => f["perplexity"]! < without["perplexity"]!),
      ),
      claim(
        "With any loss the busiest expert has less than twice the mean.",
        "maxOverMeanLoad",
        every((f) => f["maxOverMeanLoad"]! < 2),
      ),
    ];
  },
};
