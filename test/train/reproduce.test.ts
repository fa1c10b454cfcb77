/** What a reproduced table claims: the paper's own figures bear it out, and figures that do not are said not to. */

import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseHTML } from "linkedom";
import { afterAll, describe, expect, test } from "vitest";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { checkConfig } from "#sparsegate/train/config.js";
import { Progress } from "#sparsegate/train/progress.js";
import { trainingBalance } from "#sparsegate/train/reproduce/balance.js";
import { reproductionText, tokenised } from "#sparsegate/train/reproduce/corpus.js";
import { TABLES } from "#sparsegate/train/reproduce/index.js";
import { claimsOf, comparison, renderReproduction } from "#sparsegate/train/reproduce/report.js";
import { reproduce, type DoneRow, type ReproduceOptions } from "#sparsegate/train/reproduce/run.js";
import type { Figures, PaperTable } from "#sparsegate/train/reproduce/table.js";
import { makeDatasets, modelConfig } from "#sparsegate/train/setup.js";
import { trainOn } from "#sparsegate/train/trainer.js";
import { BatchStream } from "#sparsegate/text/batches.js";
import { batchTensors } from "#sparsegate/train/evaluate.js";
import { loadMessages } from "#sparsegate/text/messages.js";
import { sentences, steps } from "../cli/helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-rows-"));
afterAll(() => {
  defaultBackend().dispose();
  rmSync(root, { recursive: true });
});

const table = TABLES.get("table-6")!;
/** Rows that came out as the paper's did, but for what `change` does to a row's figures. */
const done = (change: (figures: Figures, key: string) => Figures = (figures) => figures): DoneRow[] =>
  table.rows.map((row) => ({
    row,
    figures: change({ ...row.paper, testMaxOverMeanLoad: 1.5 }, row.key),
    tokens: 1000,
    tokensPerSecond: 10,
    curve: [],
    history: [1, 2, 3].map((step) => ({
      step,
      cvImportance: 1 / step,
      cvLoad: null,
      maxOverMeanLoad: step,
      entropy: 1,
      entropyOf: "kept" as const,
      droppedFraction: 0,
      unroutedFraction: 0,
      unused: 0,
      load: [1, 2],
    })),
  }));
const holds = (rows: DoneRow[]): boolean[] => claimsOf({ table, done: rows }).map((claim) => claim.holds);

describe("table 6", () => {
  test("has the paper's six rows and figures (Shazeer et al. 2017, App. A)", () => {
    expect(table.rows.map(({ changes, paper }) => [...Object.values(changes), ...Object.values(paper)])).toEqual([
      [0, 0, 39.8, 3.04, 3.01, 17.8],
      [0.2, 0, 35.6, 0.06, 0.17, 1.47],
      [0, 0.2, 35.7, 0.22, 0.04, 1.15],
      [0.1, 0.1, 35.6, 0.06, 0.05, 1.14],
      [0.01, 0.01, 35.7, 0.48, 0.11, 1.37],
      [1, 1, 35.7, 0.03, 0.02, 1.07],
    ]);
    const configs = table.rows.map(({ changes }) => checkConfig({ train: "x", ...table.config, ...changes }, "the test"));
    // Equal tokens, order and seeds: nothing but the two weights differs.
    const rest = configs.map(({ importance_weight: _, load_weight: __, ...others }) => JSON.stringify(others));
    expect(new Set(rest).size).toBe(1);
    for (const [i, config] of configs.entries()) {
      expect(modelConfig(config, 100).middle).toMatchObject({
        importanceWeight: table.rows[i]!.changes["importance_weight"],
        loadWeight: table.rows[i]!.changes["load_weight"],
      });
    }
  });

  test("claims what the paper's own figures show", () => {
    expect(holds(done())).toEqual([true, true, true, true]);
  });

  test("says of each claim that it does not hold where the figures are against it", () => {
    const without = "importance-0-load-0";
    const one = "importance-1-load-1";
    const set = (key: string, name: string, value: number) => (figures: Figures, at: string) =>
      at === key ? { ...figures, [name]: value } : figures;
    expect(holds(done(set(without, "cvImportance", 0.9)))).toEqual([false, true, true, true]);
    expect(holds(done(set(without, "cvLoad", 0.9)))).toEqual([true, false, true, true]);
    expect(holds(done(set(one, "perplexity", 40)))).toEqual([true, true, false, true]);
    expect(holds(done(set(one, "maxOverMeanLoad", 2)))).toEqual([true, true, true, false]);
    expect(holds(done(set(one, "perplexity", NaN)))).toEqual([true, true, false, true]);
    // Half a table claims nothing.
    expect(claimsOf({ table, done: done().slice(1) })).toEqual([]);
    expect(claimsOf({ table, done: done().slice(0, 1) })).toEqual([]);
  });

  test("is shown with our figures beside the paper's, where it has some", () => {
    const { head, rows } = comparison({ table, done: done().slice(0, 1) });
    expect(head.slice(0, 4)).toEqual(["w_importance", "w_load", "test perplexity", "(paper)"]);
    expect(head.slice(-1)).toEqual(["max/mean in the test"]);
    expect(rows).toEqual([["0", "0", "39.80", "39.8", "3.04", "3.04", "3.01", "3.01", "17.80", "17.8", "1.50"]]);
  });

  test("is a page with every row, two figures, and nothing from outside; text is escaped", async () => {
    const text = `lines of </style><script>alert(1)</script>`;
    const common = {
      table,
      text,
      trainTokens: 1000,
      testTokens: 50,
      command: "sparsegate reproduce table-6",
      machine: "a CPU",
      createdAt: "2026-01-02T03:04:05Z",
    };
    const page = await renderReproduction({ ...common, done: done() });
    expect(page.replaceAll("http://www.w3.org/", "")).not.toMatch(
      /https?:|<script|<link|<img|url\((?!#)|@import|src=|NaN|undefined/i,
    );
    const { document } = parseHTML(page);
    expect(document.querySelectorAll("tbody tr")).toHaveLength(6);
    expect(document.querySelectorAll("svg")).toHaveLength(2);
    expect(document.querySelectorAll("svg")[0]!.querySelectorAll('[aria-label="line"] path')).toHaveLength(6);
    expect([...document.querySelectorAll("li b")].map((b) => b.textContent)).toEqual(["Holds:", "Holds:", "Holds:", "Holds:"]);
    // Interrupted after a row.
    const part = await renderReproduction({ ...common, done: done().slice(0, 1) });
    expect(parseHTML(part).document.querySelectorAll("tbody tr")).toHaveLength(1);
  });
});

describe("tables 7 and 8", () => {
  const paper = (name: string): Map<string, Figures> => new Map(TABLES.get(name)!.rows.map(({ key, paper: figures }) => [key, figures]));
  test("claim what the paper's own figures show, and say of each that it does not hold where they are against it", () => {
    const [seven, eight] = [TABLES.get("table-7")!, TABLES.get("table-8")!];
    const all = seven.claims(paper("table-7"));
    expect(all.map(({ holds: it }) => it)).toEqual([true, true, true, true, true]);
    // The best dense model of as much computation is MoE-1-Deep; LSTM-2048-512, with 44.7, computes more.
    expect(all[4]!.because).toBe("MoE-1-Deep 45.70, MoE-256 35.70, 21.9% less");
    for (const [key, perplexity, wanted] of [
      ["MoE-32", 46, [false, true, true, false, true]],
      ["MoE-256", 46, [true, false, true, true, false]],
      ["MoE-1024-h", 36.1, [true, true, false, true, true]],
      ["4xLSTM-512", 35, [true, true, true, false, false]],
    ] as const) {
      const changed = paper("table-7").set(key, { perplexity });
      expect(seven.claims(changed).map(({ holds: it }) => it), key).toEqual(wanted);
    }
    expect(eight.claims(paper("table-8")).map(({ holds: it }) => it)).toEqual([true, true, true, true, true, true, true]);
    const shrinking = paper("table-8").set("MoE-32", { perplexityTenth: 48.5, perplexity: 46 });
    expect(eight.claims(shrinking)[0]).toMatchObject({ holds: false, because: "11.0% less after a tenth, 2.1% less after all" });
    // Half a table claims what it can.
    expect(seven.claims(new Map([["MoE-32", { perplexity: 1 }]]))).toEqual([]);
    expect(eight.claims(new Map([["MoE-32", { perplexity: 1 }]]))).toEqual([]);
  });

  test("give all rows the same settings but for the model, none of which depends on the number of steps", () => {
    for (const name of ["table-7", "table-8"]) {
      const { rows, config, usual } = TABLES.get(name)!;
      for (const { changes } of rows) expect(["model", "branching"]).toEqual(expect.arrayContaining(Object.keys(changes)));
      const of = (max_steps: number): object => ({ ...checkConfig({ train: "x", ...config, max_steps }, "the test"), max_steps: 0 });
      expect(of(30)).toEqual(of(30_000));
      expect(rows.map(({ key }) => key)).toEqual(expect.arrayContaining([...usual!]));
    }
  });
});

describe("the text of a reproduction", () => {
  test("is the messages without a file: no translation of a test message is trained on", () => {
    const { train, test: kept } = reproductionText(undefined, 0);
    expect(train.length + kept.length).toBe(loadMessages().length);
    expect(kept.length / (train.length + kept.length)).toBeCloseTo(0.05, 1);
  });

  test("is a twentieth of a file's lines for testing, the same for the same seed, and needs some", () => {
    const readme = fileURLToPath(new URL("../../CHANGELOG.md", import.meta.url));
    const lines = readFileSync(readme, "utf8").split("\n").length - 1;
    const one = reproductionText(readme, 0);
    expect(one.train.length + one.test.length).toBe(lines);
    expect(reproductionText(readme, 0)).toEqual(one);
    const { train, test: held } = tokenised(one, 300);
    expect(train.sentences).toBeGreaterThan(held!.sentences);
    expect(() => reproductionText(fileURLToPath(new URL("../tsconfig.json", import.meta.url)), 5)).toThrow(
      /^--data: expected some hundred lines/,
    );
  });
});

describe("the rows of a table", () => {
  const settings = { train: "x", tokenizer: "words", model: "MoE-4", hidden_size: 8, dropout: 0, batch_size: 4, time_steps: 6, warmup_steps: 1, max_steps: 6, eval_steps: 2, save_steps: 2, logging_steps: 1 };
  const datasets = makeDatasets(checkConfig(settings, "the test"), { train: sentences(60), valid: sentences(10, 2), test: sentences(10, 3) });
  const two: PaperTable = {
    name: "two",
    title: "",
    about: "",
    labels: ["rate"],
    columns: [],
    rows: ["slow", "fast"].map((key, i) => ({ key, labels: [key], changes: { learning_rate: [0.001, 0.01][i] }, paper: {} })),
    config: settings,
    measure: ({ result }) => ({ perplexity: result.test!.perplexity }),
    claims: () => [],
  };
  /** @returns the rows that are done, and what was said of those that were trained */
  const rowsOf = async (table: PaperTable, folder: string, options: Partial<ReproduceOptions> = {}): Promise<{ done: DoneRow[]; said: string }> => {
    let said = "";
    const progress = new Progress({ intervalSeconds: 1e9, stream: { write: (line: string) => ((said += line), true) } });
    return { done: await reproduce(table, datasets, { outputDir: join(root, folder), progress, ...options }), said };
  };
  const perplexities = (rows: readonly DoneRow[]): unknown[] => rows.map(({ figures }) => figures["perplexity"]);

  test("that --overwrite was to train anew are, where it was interrupted before they began and gone on with without it", async () => {
    const patient = { ...two, config: { ...settings, patience: 9 } };
    const { done: before } = await rowsOf(patient, "anew");
    const rows = ["slow", "fast"].map((key) => join(root, "anew", key));
    expect(rows.map((row) => [steps(row), steps(join(row, "best"))])).toEqual([[[4, 6], [4, 6]], [[4, 6], [4, 6]]]); // prettier-ignore
    const stopped = await rowsOf(patient, "anew", { overwrite: true, signal: AbortSignal.abort() });
    expect([stopped.done, stopped.said]).toEqual([[], ""]);
    expect(rows.map((row) => [steps(row), steps(join(row, "best")), existsSync(join(row, "result.json"))])).toEqual([[[], [], false], [[], [], false]]); // prettier-ignore
    const after = await rowsOf(patient, "anew");
    expect(after.said).toBe("Row 1 of 2: rate slow\nRow 2 of 2: rate fast\n");
    expect(perplexities(after.done)).toEqual(perplexities(before));
  });

  test("are all there still where --overwrite asks for what cannot be", async () => {
    await rowsOf(two, "all");
    const rows = ["slow", "fast"].map((key) => join(root, "all", key));
    const before = rows.map(steps);
    await expect(rowsOf(two, "all", { overwrite: true, changes: { text_mode: "continuous", batch_size: 4096 } })).rejects.toThrow("tokens");
    expect([rows.map(steps), rows.every((row) => existsSync(join(row, "result.json")))]).toEqual([before, true]);
  });

  test("are all there still where another training holds one that --overwrite would discard", async () => {
    await rowsOf(two, "held");
    const [slow, fast] = ["slow", "fast"].map((key) => join(root, "held", key)) as [string, string];
    writeFileSync(join(fast, ".lock"), JSON.stringify({ pid: process.ppid, host: hostname() }));
    const written = (): number => statSync(join(slow, "result.json")).mtimeMs;
    const before = written();
    await expect(rowsOf(two, "held", { overwrite: true })).rejects.toThrow(`${fast}, which process ${process.ppid} holds`);
    expect(written()).toBe(before);
  });

  test("measured on their way are refused more steps where a checkpoint is past the way's stop, before others are trained", async () => {
    const carried: PaperTable = { ...two, stops: (all) => [Math.ceil(all / 3), all] };
    const more = (max_steps: number): Partial<ReproduceOptions> => ({ changes: { max_steps } });
    await rowsOf(carried, "carried", { rows: ["fast"] });
    await expect(rowsOf(carried, "carried", more(12))).rejects.toThrow(`--output-dir: expected a row of at most 4 steps, where two measures it too, in ${join(root, "carried/fast")}, got "a checkpoint of step 6".`);
    expect(existsSync(join(root, "carried/slow"))).toBe(false);
    // The stop lies ahead, or was measured.
    expect((await rowsOf(carried, "carried", { ...more(18), rows: ["fast"] })).said).toBe("Row 1 of 1: rate fast to step 18, from its checkpoint\n");
    expect((await rowsOf(carried, "ahead", { ...more(2), rows: ["fast"] })).done).toHaveLength(1);
    expect((await rowsOf(carried, "ahead", { ...more(9), rows: ["fast"] })).said).toMatch(/to step 3, from its checkpoint\n.*to step 9, from its checkpoint\n$/);
  });

  describe("with a patience", () => {
    // At such a rate it is soon no better.
    const short: PaperTable = { ...two, rows: two.rows.slice(1), config: { ...settings, patience: 1, max_steps: 60, learning_rate: 1 } };
    const hasty: PaperTable = { ...short, rows: [{ ...short.rows[0]!, changes: {} }] };

    test("count the tokens of the steps they made", async () => {
      const { done } = await rowsOf(hasty, "short");
      const [last] = steps(join(root, "short/fast")).slice(-1);
      expect(last).toBeLessThan(60);
      expect(done.map(({ tokens }) => tokens)).toEqual([last! * 24]);
      expect((await rowsOf(hasty, "short")).done.map(({ tokens }) => tokens)).toEqual([last! * 24]);
    });

    test("are other rows where they are evaluated at other steps, which without one makes no difference", async () => {
      const often = { changes: { eval_steps: 1 } };
      await expect(rowsOf(hasty, "short", often)).rejects.toThrow(`expected rows of eval_steps 1 in ${join(root, "short/fast")}, got "eval-steps 2".`);
      const { done } = await rowsOf(two, "plain");
      const again = await rowsOf(two, "plain", often);
      expect([perplexities(again.done), again.said]).toEqual([perplexities(done), ""]);
    });

    test("whose result an earlier version left are measured again, without training", async () => {
      const path = join(root, "short/fast/result.json");
      const { done: before } = await rowsOf(hasty, "short");
      const { steps: _, figures, ...rest } = JSON.parse(readFileSync(path, "utf8")) as { steps: number; figures: Figures };
      writeFileSync(path, JSON.stringify({ ...rest, figures: { ...figures, perplexity: 1 } }));
      const { done, said } = await rowsOf(hasty, "short");
      expect([perplexities(done), said]).toEqual([perplexities(before), "Row 1 of 1: rate fast, from its checkpoint\n"]);
      expect(done.map(({ tokens }) => tokens)).toEqual(before.map(({ tokens }) => tokens));
    });
  });
});

test("trainingBalance sums importance and smooth load over batches, with the noise of training, and leaves the model as it is", async () => {
  const settings = checkConfig(
    { train: "x", tokenizer: "words", model: "MoE-8", hidden_size: 8, batch_size: 4, time_steps: 6, max_steps: 30, dropout: 0 },
    "the test",
  );
  const datasets = makeDatasets(settings, { train: sentences(100) });
  const { model } = await trainOn(settings, datasets, { ephemeral: true });
  const before = [...model.namedState().values()].map((t) => [...t.dataSync()]);
  const used = defaultBackend().memory().used;
  const found = trainingBalance(model, datasets, settings, 1);
  expect(trainingBalance(model, datasets, settings, 1)).toEqual(found);
  expect(defaultBackend().memory().used).toBe(used);
  expect([...model.namedState().values()].map((t) => [...t.dataSync()])).toEqual(before);
  // One batch by hand.
  const batch = new BatchStream(datasets.train, { batchSize: 4, timeSteps: 6, mode: "sentences", seed: 1 }).next();
  const { inputs, resets } = batchTensors(batch);
  const { moe } = model.hidden(inputs, { training: true, seed: 1, step: 0, firstRow: 0 }, undefined, resets);
  const load = Array.from(moe!.load.dataSync());
  expect(load.some((x) => !Number.isInteger(x))).toBe(true);
  expect(found.maxOverMeanLoad).toBeCloseTo((Math.max(...load) * 8) / load.reduce((a, b) => a + b, 0), 5);
  // More batches even out what one has by chance.
  expect(trainingBalance(model, datasets, settings, 30).cvLoad).toBeLessThan(found.cvLoad);
  model.dispose();
});
