/** Tables of the paper that can be reproduced in kind: what one consists of. Each is a file of its own beside this one; `run.ts` trains their rows. */

import type { LanguageModel } from "../../models/language-model.js";
import type { TrainConfig } from "../config.js";
import type { Datasets } from "../setup.js";
import type { TrainResult } from "../trainer.js";

/** Figures by name. */
export type Figures = Readonly<Record<string, number>>;

/** One model of a table. */
export interface TableRow {
  /** A name for its folder and for JSON. */
  key: string;
  /** What stands in the first columns, as many as the table's `labels`. */
  labels: readonly string[];
  /** What its configuration changes in the table's. */
  changes: Readonly<Record<string, unknown>>;
  /** What the paper says of it, by the names of columns. */
  paper: Figures;
}

/** One quantity of the table. */
export interface TableColumn {
  /** The name of the figure in `Figures`. */
  figure: string;
  heading: string;
  digits: number;
}

/** Something the paper's table says, and whether ours says it too. */
export interface Claim {
  says: string;
  holds: boolean;
  /** The figures it rests on. */
  because: string;
}

/** A table of the paper. */
export interface PaperTable {
  /** As on the command line: table-6. */
  name: string;
  title: string;
  /** What is the same as in the paper's, and what is not. */
  about: string;
  labels: readonly string[];
  columns: readonly TableColumn[];
  rows: readonly TableRow[];
  /** What all rows have in common. Equal seeds, tokens and order of text follow from it. */
  config: Readonly<Record<string, unknown>>;
  /** The rows that are trained where none are named, by key. Default: all. */
  usual?: readonly string[];
  /**
   * Steps at which a row is measured, the last among them. A table that has this can be carried on: its rows' results are kept for each number of steps, and
   * with more steps they go on from their checkpoints, where each stop is measured already or still lies ahead. No setting may then depend on the number of steps.
   */
  stops?(maxSteps: number): number[];
  /** One row's figures from those of its stops. Default: the last stop's. */
  combine?(stops: readonly Figures[]): Figures;
  /** Draw perplexity against parameters, and over training: needs the figures perplexity and parameters, and numExperts where there are experts. */
  drawsCapacity?: boolean;
  /** Figures of a row's trained model. */
  measure(trained: { model: LanguageModel; datasets: Datasets; config: TrainConfig; result: TrainResult }): Figures;
  /** What the table is to show. @param figures by the keys of rows */
  claims(figures: ReadonlyMap<string, Figures>): Claim[];
}
