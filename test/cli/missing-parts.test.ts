/** A machine without a native library, without koffi, without SharedArrayBuffer: everything works, and says what it does without. */

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const cli = join(root, "dist", "cli", "main.js");

/** Node's options that take a part away before the program starts. */
const preload = (code: string): string[] => ["--import", `data:text/javascript,${encodeURIComponent(code)}`];
const NO_SHARED_MEMORY = preload("delete globalThis.SharedArrayBuffer;");
const NO_KOFFI = preload(`import Module from "node:module";
const resolve = Module._resolveFilename;
Module._resolveFilename = function (name, ...rest) {
  if (name === "koffi") throw Object.assign(new Error("Cannot find module 'koffi'"), { code: "MODULE_NOT_FOUND" });
  return resolve.call(this, name, ...rest);
};`);

const SITUATIONS: [name: string, options: string[], blas: string | undefined, says: RegExp][] = [
  ["SPARSEGATE_BLAS=none", [], "none", /No CBLAS: switched off \(SPARSEGATE_BLAS=none\)\. .* Unset SPARSEGATE_BLAS/],
  ["a library that does not exist", [], "/nowhere/libblas.so", /No CBLAS: \/nowhere\/libblas\.so.* Install one/],
  ["no koffi", NO_KOFFI, undefined, /No CBLAS: the optional package koffi.*is not installed.* Run npm install koffi/],
  ["no SharedArrayBuffer", NO_SHARED_MEMORY, undefined, /No SharedArrayBuffer here: one thread only\.\s[^]*No CBLAS: it needs shared memory/],
];

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "sparsegate-missing-"));
  writeFileSync(join(folder, "text.txt"), "the cat sat on the mat and the dog lay on the rug\n".repeat(40));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Runs node in the scratch folder. */
function node(args: string[], blas: string | undefined, cwd = folder): { status: number | null; stdout: string; stderr: string } {
  const { SPARSEGATE_BLAS: _, ...env } = process.env;
  return spawnSync(process.execPath, args, { cwd, encoding: "utf8", env: blas === undefined ? env : { ...env, SPARSEGATE_BLAS: blas } });
}

const SMALL = ["--hidden-size", "8", "--vocab-size", "280", "--batch-size", "4", "--time-steps", "4", "--max-steps", "3", "--warmup-steps", "2"];

describe.each(SITUATIONS)("with %s", (name, options, blas, says) => {
  const run = `run-${SITUATIONS.findIndex(([other]) => other === name)}`;

  it("train works and says on stderr what is missing, --no-progress or not; its JSON stays clean", () => {
    for (const quiet of [[], ["--no-progress"]]) {
      const flags = ["--train", "text.txt", "--model", "MoE-4", ...SMALL, "--output-dir", run, "--overwrite", "--json", ...quiet];
      const { status, stdout, stderr } = node([...options, cli, "train", ...flags], blas);
      expect(stderr).toMatch(says);
      expect(status).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({ steps: 3, finished: true });
    }
  });

  it("eval, generate and inspect work on what was trained, and say it too", () => {
    for (const command of [["eval", run, "--data", "text.txt"], ["generate", run, "--max-tokens", "3"], ["inspect", run]]) {
      const { status, stdout, stderr } = node([...options, cli, ...command], blas);
      expect(stderr).toMatch(says);
      expect(stderr).not.toContain("Warning:");
      expect(status).toBe(0);
      expect(stdout).not.toBe("");
    }
  });

  it("doctor reports it, with what would help", () => {
    const { status, stdout } = node([...options, cli, "doctor", "--json"], blas);
    expect(status).toBe(0);
    const report = JSON.parse(stdout) as { blas: string; blas_gflops: number | null; wasm_gflops: number; notes: string[] };
    expect(report.blas).toMatch(/^none: /);
    expect(report.blas_gflops).toBeNull();
    expect(report.wasm_gflops).toBeGreaterThan(0);
    expect(report.notes.join(" ")).toMatch(says);
  });

  it("the library computes, and warns once unless the user chose to do without", () => {
    const code = `import { tensor, matmul } from "sparsegate";
      console.log(matmul(tensor([[1, 2]]), tensor([[3], [4]])).item(), matmul(tensor([[1]]), tensor([[2]])).item());`;
    const { status, stdout, stderr } = node([...options, "--input-type=module", "-e", code], blas, root);
    expect(stderr).toMatch(blas === "none" ? /^$/ : says);
    expect(stderr.match(/SPARSEGATE_NO_BLAS/g) ?? []).toHaveLength(blas === "none" ? 0 : 1);
    expect(stdout).toBe("11 2\n");
    expect(status).toBe(0);
  });
});

it("the demo runs without SharedArrayBuffer and says so", { timeout: 240_000 }, () => {
  const { status, stdout, stderr } = node([...NO_SHARED_MEMORY, cli, "demo", "--max-steps", "1", "--json"], undefined);
  expect(stderr).toContain("No SharedArrayBuffer here: one thread only.");
  expect(status).toBe(0);
  const report = JSON.parse(stdout) as { runs: unknown[]; machine: { threads: number } };
  expect(report.runs).toHaveLength(4);
  expect(report.machine.threads).toBe(1);
});
