/** The folder of --output-dir is tried before the work: what a process killed in between leaves there, the next save clears. */

import { mkdtempSync, readdirSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { makeOutputFolder } from "#sparsegate/cli/output.js";
import { temporaryWriter } from "#sparsegate/train/atomic.js";

// Killed before it deletes its trial.
vi.mock("node:fs", async (original) => ({ ...(await original<object>()), rmSync: () => {} }));

const root = mkdtempSync(join(tmpdir(), "sparsegate-output-"));
afterAll(() => rm(root, { recursive: true }));

test("the trial has the name of a half-written file of its process", () => {
  makeOutputFolder(root);
  const left = readdirSync(root);
  expect(left).toHaveLength(1);
  expect(temporaryWriter(left[0]!)).toBe(process.pid);
});
