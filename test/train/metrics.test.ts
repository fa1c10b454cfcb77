/** The metrics file: every step once, whatever was interrupted. */

import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { ConfigError, FileError } from "#sparsegate/core/errors.js";
import { MetricsWriter, readMetrics } from "#sparsegate/train/metrics.js";

const folder = mkdtempSync(join(tmpdir(), "sparsegate-metrics-"));
afterAll(() => rmSync(folder, { recursive: true }));
let files = 0;
const newPath = () => join(folder, `run-${files++}`, "metrics.jsonl");

function write(path: string, steps: number[], options?: { resumeStep: number }): void {
  const writer = new MetricsWriter(path, options);
  for (const step of steps) writer.write(step, { "train/loss": step / 4 }, 1000 + step);
  writer.close();
}

test("records are JSON lines of step, time and tags", () => {
  const path = newPath();
  const writer = new MetricsWriter(path);
  writer.write(20, { "train/loss": 4.5, "moe/expert_load/0/3": 12, signature: "nrefs:1|case:mixed" }, 1764000000.5);
  writer.write(21, { "train/loss": NaN }, 1764000001);
  expect(readFileSync(path, "utf8")).toBe(
    '{"step":20,"time":1764000000.5,"train/loss":4.5,"moe/expert_load/0/3":12,"signature":"nrefs:1|case:mixed"}\n' +
      '{"step":21,"time":1764000001,"train/loss":null}\n',
  );
  writer.write(22, {});
  expect(Math.abs(readMetrics(path)[2].time - Date.now() / 1000)).toBeLessThan(10);
  writer.close();
});

test("a resumed run has each step once: records after the resumed step are dropped, those at it stay", () => {
  const path = newPath();
  write(path, [10, 20, 20, 30, 40]);
  write(path, [30, 40, 50], { resumeStep: 20 });
  expect(readMetrics(path).map(({ step }) => step)).toEqual([10, 20, 20, 30, 40, 50]);
});

test("a run that is not resumed begins an empty file", () => {
  const path = newPath();
  write(path, [10, 20]);
  write(path, [1]);
  expect(readMetrics(path).map(({ step }) => step)).toEqual([1]);
});

test("a last line torn at any byte is left out, and a resumed run writes whole lines after it", () => {
  const path = newPath();
  write(path, [1, 2]);
  const text = readFileSync(path, "utf8");
  const second = text.indexOf("\n") + 1;
  for (let length = second; length < text.length - 1; length++) {
    writeFileSync(path, text.slice(0, length));
    expect(
      readMetrics(path).map(({ step }) => step),
      `cut to ${length}`,
    ).toEqual([1]);
    write(path, [2], { resumeStep: 1 });
    expect(readMetrics(path).map(({ step }) => step)).toEqual([1, 2]);
  }
});

test("a damaged line in the middle is an error that names file and line", () => {
  const path = newPath();
  write(path, [1]);
  appendFileSync(path, '{"step":2,"ti\n{"step":3,"time":4}\n');
  expect(() => readMetrics(path)).toThrow(FileError);
  expect(() => readMetrics(path)).toThrow(`${path}: expected a record on line 2`);
});

test("a missing file, a closed writer, a path below a file and the tags step and time are refused", () => {
  const path = newPath();
  expect(() => readMetrics(path)).toThrow(/ENOENT/);
  const writer = new MetricsWriter(path);
  expect(() => writer.write(1, { step: 2 })).toThrow(ConfigError);
  writer.close();
  writer.close();
  expect(() => writer.write(1, {})).toThrow(FileError);
  expect(() => new MetricsWriter(join(path, "below"))).toThrow(FileError);
});
