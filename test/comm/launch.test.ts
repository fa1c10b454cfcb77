/** `runRanks`: what ranks are given, what comes back, and what is refused. */

import { afterEach, describe, expect, test } from "vitest";
import { CommError, runRanks } from "#sparsegate/comm/index.js";
import { ConfigError } from "#sparsegate/core/errors.js";
import { program, threads } from "./helpers.js";

const before = process.env["SPARSEGATE_THREADS"];
afterEach(() => {
  if (before === undefined) delete process.env["SPARSEGATE_THREADS"];
  else process.env["SPARSEGATE_THREADS"] = before;
});

describe("runRanks", () => {
  test("gives each rank its data and arguments, shares out the cores while it runs, and returns what the ranks do", async () => {
    delete process.env["SPARSEGATE_THREADS"];
    const words = new Int32Array(new SharedArrayBuffer(4));
    const outputs: string[] = [];
    const results = await runRanks<{ rank: number; threads: string; cores: number; argv: string[]; data: { words: Int32Array } }>(3, program("machine"), { words }, {
      argv: ["--flag", "value"], onOutput: (rank, stream, text) => outputs.push(`${rank} ${stream} ${text}`),
    });
    words[0] = 41;
    for (const [rank, result] of results.entries()) {
      expect(result).toMatchObject({ rank, argv: ["--flag", "value"], threads: String(Math.max(1, Math.floor(result.cores / 3))) });
      expect(result.data.words[0]).toBe(41);
    }
    expect(outputs.sort()).toEqual([0, 1, 2].flatMap((rank) => ["stderr", "stdout"].map((stream) => `${rank} ${stream} ${stream} of rank ${rank}\n`)));
    expect(process.env["SPARSEGATE_THREADS"]).toBeUndefined();
  });

  test("leaves SPARSEGATE_THREADS as the user has set it", async () => {
    process.env["SPARSEGATE_THREADS"] = "5";
    const { results } = await threads(2, "machine", {});
    expect(results).toMatchObject([{ threads: "5" }, { threads: "5" }]);
    expect(process.env["SPARSEGATE_THREADS"]).toBe("5");
  });

  test("runs programs that ask for their communicator themselves", async () => {
    const { text, results } = await threads(3, "script", undefined, { argv: ["10"] });
    expect(results).toEqual([undefined, undefined, undefined]);
    expect(text.trim().split("\n").sort()).toEqual([0, 1, 2].map((rank) => `threads ${rank}: 60`));
  });

  test("ends all ranks by a signal", async () => {
    const controller = new AbortController();
    const begun = performance.now();
    const ended = threads(2, "ends", { way: "hang" }, { timeout: 60, signal: controller.signal });
    setTimeout(() => controller.abort(), 300);
    expect((await ended).text).toContain("all ranks were told to end (signal)");
    expect(performance.now() - begun).toBeLessThan(10_000);
  });

  test("reports a program that does not load, and a result that cannot be cloned", async () => {
    expect((await threads(1, "script", undefined, { argv: ["1"] })).results).toEqual([undefined]);
    expect((await threads(1, "uncloneable", undefined)).text).toMatch(/got a failure of rank 0: DataCloneError: .*could not be cloned/);
    expect((await threads(2, "no-such-program", undefined)).text).toMatch(/got a failure of rank \d: Error: Cannot find module .*no-such-program/);
  });

  test.each([0, 1.5, 257, "2"])("refuses %j ranks", async (size) => {
    await expect(runRanks(size as number, program("script"))).rejects.toThrow(new ConfigError(`runRanks: expected size to be an integer from 1 to 256, got ${JSON.stringify(size)}.`));
  });

  test("refuses pieces that would split a float64, and a signal that has been given", async () => {
    await expect(runRanks(1, program("script"), undefined, { pieceBytes: 12 })).rejects.toThrow("runRanks: expected pieceBytes to be a multiple of 8, got 12.");
    await expect(runRanks(1, program("script"), undefined, { signal: AbortSignal.abort() })).rejects.toThrow();
  });

  test("throws an error of the kind that communicators throw", async () => {
    await expect(runRanks(2, program("ends"), { way: "exit 3" }, { onOutput: () => {} })).rejects.toBeInstanceOf(CommError);
  });
});
