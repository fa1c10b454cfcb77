/** `reproduce table-7` and `table-8` as a user runs them: killed between and inside rows and started again they give the same table, and more tokens carry rows on. */

import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseHTML } from "linkedom";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { run, sentences, start, steps, until } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-models-"));
beforeAll(() => {
  const folder = join(root, "text");
  mkdirSync(folder);
  for (const [i, [name, count]] of Object.entries({ train: 600, valid: 60, test: 50 }).entries()) {
    writeFileSync(join(folder, `${name}.txt`), `${sentences(count, i + 1).join("\n")}\n`);
  }
  writeFileSync(join(folder, "vocab-60.txt"), `${Array.from({ length: 60 }, (_, i) => `w${i}`).join("\n")}\n`);
});
afterAll(() => rmSync(root, { recursive: true }));

const ROWS = ["4xLSTM-512", "MoE-1-Wide", "MoE-4", "MoE-256-h"];
const SMALL = [
  "batch_size=8",
  "time_steps=8",
  "sampled_softmax=20",
  "warmup_steps=4",
  "save_steps=3",
  "eval_steps=5",
  "logging_steps=2",
];
/** 16 units wide, 64 tokens a step. */
const args = (table: string, folder: string, tokens: number, ...more: string[]): string[] => [
  "reproduce",
  table,
  "--data",
  "text",
  "--scale",
  "0.03125",
  "--tokens",
  String(tokens),
  "--output-dir",
  folder,
  "--json", // prettier-ignore
  ...SMALL.flatMap((setting) => ["--set", setting]),
  ...more,
];
interface Printed {
  finished: boolean;
  rows: { key: string; figures: Record<string, number>; tokens: number; tokens_per_second: number }[];
  claims: { says: string; holds: boolean }[];
  report: string;
}
async function table(line: readonly string[]): Promise<Printed> {
  const { code, stdout, stderr } = await run(line, { cwd: root });
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as Printed;
}
const figures = ({ rows }: Printed): unknown[] => rows.map(({ key, figures: of, tokens }) => [key, of, tokens]);
const rows = (...names: string[]): string[] => ["--rows", names.join(",")];
let whole: Printed;

describe("reproduce table-7", () => {
  test("trains the rows that are named with equal tokens, and reports them with figures", { timeout: 120_000 }, async () => {
    whole = await table(args("table-7", "whole", 1500, ...rows(...ROWS), "--results", "results"));
    expect(whole.finished).toBe(true);
    // In the order of the paper; 24 steps of 64 tokens are the first to make up 1500.
    expect(whole.rows.map(({ key, tokens }) => [key, tokens])).toEqual(ROWS.map((key) => [key, 1536]));
    for (const { figures: of, tokens_per_second } of whole.rows) {
      expect(of["perplexity"]).toBeGreaterThan(1);
      expect(of["perplexity"]).toBeLessThan(70);
      expect(tokens_per_second).toBeGreaterThan(0);
    }
    // 16 wide: two LSTMs of 2·16·64 weights and 64 biases, a network of 16·128 and 128·16.
    expect(whole.rows[1]!.figures).toMatchObject({ ops: (2 * 2048 + 4096) / 1e6, parameters: (2 * 2112 + 4096) / 1e6 });
    expect(whole.rows[3]!.figures["numExperts"]).toBe(256);
    expect(whole.claims.map(({ says }) => says)).toEqual([]);
    const { document } = parseHTML(readFileSync(join(root, whole.report), "utf8"));
    expect(document.querySelectorAll("tbody tr")).toHaveLength(4);
    expect([...document.querySelectorAll("svg")].map((svg) => svg.getAttribute("aria-label"))).toEqual([
      "Test perplexity against the number of parameters",
      "Perplexity of the validation text over training, a line each model",
      "CV(Importance) over training, a line each row",
      "Load of the busiest expert over the mean, over training, a line each row",
    ]);
    // Every row has its curve: two steps of evaluation and the end.
    expect(document.querySelectorAll("svg")[1]!.querySelectorAll('[aria-label="line"] path')).toHaveLength(4);
  });

  test("writes results that stand alone: Markdown, JSON and SVG without a page's colours", () => {
    const folder = join(root, "results");
    expect(readdirSync(folder).sort()).toEqual([
      "README.md",
      "capacity.svg",
      "importance.svg",
      "learning.svg",
      "load.svg",
      "results.json",
    ]);
    const text = readFileSync(join(folder, "README.md"), "utf8");
    expect(text).toContain(
      "npx sparsegate reproduce table-7 --data text --rows 4xLSTM-512,MoE-1-Wide,MoE-4,MoE-256-h --scale 0.03125 --tokens 1500",
    );
    expect(text.split("\n").filter((line) => /^\| (4x|MoE)/.test(line))).toHaveLength(4);
    for (const [, file] of text.matchAll(/\]\((\w+\.svg)\)/g)) {
      const svg = readFileSync(join(folder, file!), "utf8");
      expect(svg).toMatch(/^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg" width="720" height="\d+"/);
      expect(svg).not.toContain("var(");
      expect(svg.match(/<svg/g)).toHaveLength(2);
      if (file !== "capacity.svg") for (const name of ROWS) expect(svg).toContain(`>${name}</text>`);
    }
    expect((JSON.parse(readFileSync(join(folder, "results.json"), "utf8")) as Printed).rows.map(({ figures: of }) => of)).toEqual(
      whole.rows.map(({ figures: of }) => of),
    );
  });

  test(
    "killed inside a row, between rows, and at once, and started again, gives the same table",
    { timeout: 240_000 },
    async () => {
      const line = args("table-7", "killed", 1500, ...rows(...ROWS));
      const folder = (key: string): string => join(root, "killed", key);
      for (const moment of [
        (): boolean => existsSync(folder(ROWS[0]!)),
        (): boolean => steps(folder(ROWS[0]!)).at(-1)! >= 9,
        (): boolean => existsSync(join(folder(ROWS[1]!), "result-24.json")),
        (): boolean => steps(folder(ROWS[3]!)).at(-1)! >= 12,
      ]) {
        const job = start(line, { cwd: root });
        await until(moment, job, 60_000);
        job.child.kill("SIGKILL");
        expect((await job.ended).signal).toBe("SIGKILL");
      }
      expect(existsSync(join(folder(ROWS[3]!), "result-24.json"))).toBe(false);
      const { code, stdout, stderr } = await run(line, { cwd: root });
      expect(code, stderr).toBe(0);
      expect(stderr).not.toContain("Row 2 of 4");
      expect(stderr).toContain("Row 4 of 4: model MoE-256-h, from its checkpoint");
      expect(figures(JSON.parse(stdout) as Printed)).toEqual(figures(whole));
    },
  );

  test("does not carry on a row whose rate falls to 0 at its last step: that would be another training", { timeout: 120_000 }, async () => {
    const line = (name: string, folder: string, tokens: number, overwrite: string[] = []): string[] =>
      args(name, folder, tokens, ...rows("4xLSTM-512"), "--set", "schedule=linear", ...overwrite);
    const few = await table(line("table-7", "linear", 640));
    const refused = await run(line("table-7", "linear", 1280), { cwd: root });
    expect([refused.code, refused.stdout]).toEqual([1, ""]);
    expect(refused.stderr).toContain("--output-dir: expected rows of 20 steps in");
    expect(refused.stderr).toContain('got "a row of 10 steps whose rate has its end there (schedule linear)". Give another folder, or --overwrite');
    expect(figures(await table(line("table-7", "linear", 640)))).toEqual(figures(few));
    // A row of another schedule is refused for that, not for what a linear one would have done.
    await table(args("table-7", "held", 640, ...rows("4xLSTM-512")));
    const held = await run(line("table-7", "held", 1280), { cwd: root });
    expect([held.code, held.stdout]).toEqual([1, ""]);
    expect(held.stderr).toContain("inverse-sqrt");
    expect(held.stderr).not.toContain("has its end there");
    const tenth = await run(line("table-8", "tenth", 1280), { cwd: root });
    expect([tenth.code, tenth.stdout]).toEqual([1, ""]);
    expect(tenth.stderr).toContain("expected one that does not depend on the last step, got");
    expect(existsSync(join(root, "tenth", "4xLSTM-512"))).toBe(false);
    // Trained anew it is as in a folder of its own.
    const anew = await table(line("table-7", "linear", 1280, ["--overwrite"]));
    expect(figures(anew)).toEqual(figures(await table(line("table-7", "linear-anew", 1280))));
  });

  test(
    "carries chosen rows on to more tokens, as if they had been trained so far from the start, and keeps the table of fewer",
    { timeout: 240_000 },
    async () => {
      const line = (folder: string, tokens: number, ...names: string[]): string[] =>
        args("table-7", folder, tokens, ...rows(...names));
      const more = await table(line("whole", 2500, "MoE-1-Wide", "MoE-4"));
      const anew = await table(line("anew", 2500, "moe-1-wide", "moe-4"));
      expect(figures(more)).toEqual(figures(anew));
      expect(more.rows.map(({ key, tokens }) => [key, tokens])).toEqual([["MoE-1-Wide", 2560], ["MoE-4", 2560]]); // prettier-ignore
      expect(more.report).not.toBe(whole.report);
      // The table of fewer tokens is still there, for whichever rows are named.
      expect(figures(await table(line("whole", 1500, "MoE-1-Wide")))).toEqual(figures(whole));
      // A row cannot go back.
      const { code, stderr } = await run(line("whole", 2000, "MoE-4"), { cwd: root });
      expect([code, stderr]).toEqual([1, `--output-dir: expected a row of at most 32 steps in ${join("whole", "MoE-4")}, got "a checkpoint of step 40". Give another folder, or --overwrite to train all rows anew.\n`]); // prettier-ignore
    },
  );

  test(
    "gives all rows the same settings, or one of them its own, but for what would feed it other batches",
    { timeout: 120_000 },
    async () => {
      const { rows: trained } = await table(
        args(
          "table-7",
          "settings",
          300,
          ...rows("MoE-4", "MoE-1-Wide"),
          "--set",
          "MoE-4:dropout=0.3",
          "--set",
          "learning-rate=1e-3",
        ),
      );
      expect(trained).toHaveLength(2);
      const config = (key: string): Record<string, unknown> =>
        JSON.parse(readFileSync(join(root, "settings", key, "config.json"), "utf8")) as Record<string, unknown>;
      expect([config("MoE-4"), config("MoE-1-Wide")]).toMatchObject([
        { dropout: 0.3, learning_rate: 1e-3, hidden_size: 16 },
        { dropout: 0.1, learning_rate: 1e-3, hidden_size: 16 },
      ]);
      for (const [more, says] of [
        [
          ["--set", "MoE-4:batch_size=9"],
          '--set: expected batch_size for all rows alike, got "for one". Rows see the same batches.',
        ],
        [["--set", "dropuot=0.3"], '--set: expected the name of an option of train, got "dropuot". Did you mean dropout?'],
        [["--set", "dropout"], '--set: expected KEY=VALUE, got "dropout". Like dropout=0.2.'],
        [["--rows", "MoE-5"], /^--rows: expected rows of table-7: LSTM-512-512, .* got "MoE-5"\. Did you mean MoE-4\?/],
        [["--max-steps", "4"], "--tokens: expected left out beside --max-steps, got 300."],
        [["--set", "MoE-4:dropout=2"], /^table-7: expected dropout \(--dropout\) to be a number from 0 to 0\.99, got 2\./],
      ] as const) {
        const { code, stderr } = await run(args("table-7", "refused", 300, ...more), { cwd: root });
        expect([code, stderr.trim()]).toEqual([1, typeof says === "string" ? says : expect.stringMatching(says)]);
      }
    },
  );

  test("says which text of a folder is missing", { timeout: 30_000 }, async () => {
    mkdirSync(join(root, "half"));
    writeFileSync(join(root, "half", "train.txt"), "a b c\n");
    const { code, stderr } = await run(["reproduce", "table-7", "--data", "half", "--output-dir", "no"], { cwd: root });
    expect([code, stderr]).toEqual([1, '--data: expected test.txt or test.txt.gz in half, got "neither".\n']);
  });
});

test(
  "reproduce table-8 measures each row after a tenth of the tokens and carries it on to all, killed on the way too",
  { timeout: 180_000 },
  async () => {
    const line = (folder: string): string[] => args("table-8", folder, 2560, ...rows("4xLSTM-512", "MoE-32"));
    const eight = await table(line("eight"));
    const tenth = await table(args("table-7", "tenth", 256, ...rows("4xLSTM-512", "MoE-32")));
    const all = await table(args("table-7", "all", 2560, ...rows("4xLSTM-512", "MoE-32")));
    expect(eight.rows.map(({ figures: of }) => of["perplexityTenth"])).toEqual(
      tenth.rows.map(({ figures: of }) => of["perplexity"]),
    );
    expect(eight.rows.map(({ figures: of }) => of["perplexity"])).toEqual(all.rows.map(({ figures: of }) => of["perplexity"]));
    expect(eight.claims.map(({ says }) => says)).toEqual([
      "MoE-32 gains more over 4xLSTM-512 from all of the data than from a tenth.",
    ]);
    const job = start(line("eight-killed"), { cwd: root });
    await until(() => existsSync(join(root, "eight-killed/MoE-32/result-4.json")), job, 60_000);
    job.child.kill("SIGKILL");
    await job.ended;
    expect(figures(await table(line("eight-killed")))).toEqual(figures(eight));
  },
);
