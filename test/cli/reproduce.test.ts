/** `reproduce table-6` as a user runs it: six rows beside the paper's, stopped and gone on with, done rows kept, and rows of other settings not mixed in. */

import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { run, sentences, start, steps, until } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-reproduce-"));
beforeAll(() => writeFileSync(join(root, "text.txt"), `${sentences(1200, 4, 400).join("\n")}\n`));
afterAll(() => rmSync(root, { recursive: true }));

const KEYS = [
  "importance-0-load-0",
  "importance-0.2-load-0",
  "importance-0-load-0.2",
  "importance-0.1-load-0.1",
  "importance-0.01-load-0.01",
  "importance-1-load-1",
];
const args = (folder: string, ...more: string[]): string[] => [
  "reproduce",
  "table-6",
  "--data",
  "text.txt",
  "--max-steps",
  "8",
  "--output-dir",
  folder,
  ...more,
];
const result = (folder: string, key: string): string => join(root, folder, key, "result.json");
const figures = (folder: string): unknown[] =>
  KEYS.map((key) => (JSON.parse(readFileSync(result(folder, key), "utf8")) as { figures: unknown }).figures);

describe("reproduce table-6", () => {
  test(
    "trains six rows, prints them beside the paper's, says what holds, and writes a report",
    { timeout: 120_000 },
    async () => {
      const { code, stdout, stderr } = await run(args("whole"), { cwd: root });
      expect(code, stderr).toBe(0);
      expect(stderr).toContain("Row 6 of 6: w_importance 1, w_load 1");
      const rows = stdout.split("\n").filter((line) => /^(0|0\.\d+|1) /.test(line));
      expect(rows.map((row) => row.split(/ {2,}/).slice(0, 2))).toEqual([["0", "0"], ["0.2", "0"], ["0", "0.2"], ["0.1", "0.1"], ["0.01", "0.01"], ["1", "1"]]); // prettier-ignore
      expect(rows.map((row) => row.split(/ {2,}/)[3])).toEqual(["39.8", "35.6", "35.7", "35.6", "35.7", "35.7"]);
      // Eight steps are too few for anything to collapse.
      expect(stdout).toMatch(/^DOES NOT HOLD: Without a loss the gate collapses/m);
      expect(stdout).toContain(`Report with figures: ${join("whole", "report.html")}`);
      expect(readFileSync(join(root, "whole/report.html"), "utf8")).toMatch(/^<!doctype html>[^]*Table 6[^]*<\/html>\n$/);
    },
  );

  test("does not train again what is done, and gives it as JSON", { timeout: 60_000 }, async () => {
    const before = KEYS.map((key) => statSync(result("whole", key)).mtimeMs);
    const { code, stdout, stderr } = await run(args("whole", "--json", "--no-progress"), { cwd: root });
    expect([code, stderr.split("\n").filter((line) => line.startsWith("Row"))]).toEqual([0, []]);
    const json = JSON.parse(stdout) as { finished: boolean; rows: Record<string, unknown>[]; claims: unknown[] };
    expect(json).toMatchObject({ table: "table-6", finished: true });
    expect(json.rows.map((row) => row["key"])).toEqual(KEYS);
    expect(json.rows.map((row) => row["figures"])).toEqual(figures("whole"));
    expect(json.rows[5]).toMatchObject({ importance_weight: 1, load_weight: 1, paper: { cvImportance: 0.03 } });
    expect(json.claims).toHaveLength(4);
    expect(KEYS.map((key) => statSync(result("whole", key)).mtimeMs)).toEqual(before);
  });

  test(
    "stopped in its third row it keeps two, and goes on from that row's checkpoint to the same figures",
    { timeout: 180_000 },
    async () => {
      const job = start(args("parts"), { cwd: root });
      await until(() => job.stderr().includes("Row 3 of 6"), job, 60_000);
      job.child.kill("SIGINT");
      const { code, stderr } = await job.ended;
      expect(code, stderr).toBe(130);
      expect(stderr).toContain(
        `Interrupted after 2 of 6 rows. Go on with: sparsegate reproduce table-6 --data text.txt --output-dir parts --max-steps 8\n`,
      );
      expect(KEYS.map((key) => steps(join(root, "parts", key)).length)).toEqual([1, 1, 1, 0, 0, 0]);
      const again = await run(args("parts"), { cwd: root });
      expect(again.code, again.stderr).toBe(0);
      expect(again.stderr).not.toContain("Row 2 of 6");
      expect(again.stderr).toContain("Row 3 of 6: w_importance 0, w_load 0.2, from its checkpoint");
      expect(figures("parts")).toEqual(figures("whole"));
    },
  );

  test("does not mix rows of other steps, seeds or texts; --overwrite trains them anew", { timeout: 180_000 }, async () => {
    writeFileSync(join(root, "other.txt"), `${sentences(1200, 5, 400).join("\n")}\n`);
    const replaced = (from: string, to: string): string[] => args("whole").map((arg) => (arg === from ? to : arg));
    const where = join("whole", KEYS[0]!);
    const hint = "Give another folder, or --overwrite to train all rows anew.\n";
    for (const [line, says] of [
      [replaced("8", "9"), `--output-dir: expected rows of max_steps 9 in ${where}, got "max-steps 8". ${hint}`],
      [
        replaced("text.txt", "other.txt"),
        `--output-dir: expected rows of this text (--data) in ${where}, got "of another". ${hint}`,
      ],
    ] as const) {
      const { code, stderr } = await run([...line, "--no-progress"], { cwd: root });
      expect([code, stderr.split("\n").slice(-2).join("\n")]).toEqual([1, says]);
    }
    const before = figures("whole");
    const { code, stderr } = await run(args("whole", "--overwrite", "--seed", "3"), { cwd: root });
    expect(code, stderr).toBe(0);
    expect(figures("whole")).not.toEqual(before);
  });

  test("says what it can reproduce", { timeout: 30_000 }, async () => {
    const { code, stderr } = await run(["reproduce", "tabel-6"], { cwd: root });
    expect([code, stderr]).toEqual([1, 'reproduce: expected one of table-6, table-7, table-8, got "tabel-6". Did you mean table-6?\n']);
  });
});
