/** A run on MPI ranks of which one is killed with SIGKILL at twenty instants, and resumed each time, ends as one that was never killed: bit for bit. */

import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { MPI_ENV as env, mpiruns } from "../comm/helpers.js";
import { flags, main, readWhole, run, seeded, sleep, start, steps, traces, until, writeTexts, type Outcome, type Started } from "./helpers.js";

const root = mkdtempSync(join(tmpdir(), "sparsegate-kill-ranks-"));
afterAll(() => rmSync(root, { recursive: true }));

const KILLS = 20;
const RANKS = 3;
/** From the kill to the end of mpirun. */
const BOUND_MS = 10_000;
const config = {
  train: "../train.txt", valid: "../valid.txt", test: "../test.txt", output_dir: "run", tokenizer: "words", model: "MoE-8", hidden_size: 16, expert_hidden_size: 16,
  batch_size: 4, time_steps: 6, dropout: 0.2, sampled_softmax: 12, max_steps: 300, save_steps: 3, eval_steps: 9, logging_steps: 3,
}; // prettier-ignore

/** Processes of ranks: what mpirun started, itself or by way of its daemon. */
function ranksOf({ child }: Started): number[] {
  const parents = new Map<number, number>();
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      // After the name, which stands in brackets and may hold anything: the state and the parent.
      parents.set(Number(entry), Number(readFileSync(`/proc/${entry}/stat`, "utf8").split(") ").at(-1)!.split(" ")[1]));
    } catch {
      // It has ended in the meantime.
    }
  }
  const under = (pid: number): boolean => pid === child.pid || (parents.has(pid) && under(parents.get(pid)!));
  return [...parents.keys()].filter((pid) => pid !== child.pid && under(pid) && commandOf(pid).includes(main));
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return "";
  }
}

// A file without tests fails, and without an mpirun there are none of it below.
if (mpiruns.length === 0) test.skip("a rank of an mpirun is killed: none is installed", () => {});

test.skipIf(process.platform !== "linux").each(mpiruns)("$name: one of three ranks is killed twenty times", { timeout: 300_000 }, async ({ name, command, args }) => {
  writeTexts(root);
  const mpirun = [command, ...args, "-n", String(RANKS), process.execPath, main];
  const [wholeFolder, killedFolder] = ["whole", "killed"].map((kind) => {
    const folder = join(root, `${name.replace(" ", "")}-${kind}`);
    mkdirSync(folder);
    return folder;
  }) as [string, string];
  const whole = await run(["train", ...flags(config)], { cwd: wholeFolder, command: mpirun, env });
  expect(whole.code, whole.stderr).toBe(0);

  const output = join(killedFolder, "run");
  const random = seeded(7);
  let kills = 0;
  let outcome: Outcome;
  do {
    const before = steps(output);
    const resume = before.length > 0 ? ["--resume", "run"] : [];
    const started = start(["train", ...flags(config), ...resume], { cwd: killedFolder, command: mpirun, env });
    if (kills < KILLS) {
      // One in four goes into the start-up; the others come some saves later, somewhere in a step, an evaluation or a save.
      if (random() < 0.25) {
        await until(() => ranksOf(started).length > 0, started);
        await sleep(500 * random());
      } else {
        const since = before.at(-1) ?? 0;
        await until(() => (steps(output).at(-1) ?? 0) > since, started);
        await sleep(100 * random());
      }
      const alive = ranksOf(started);
      const victim = alive[Math.floor(random() * alive.length)];
      const begun = performance.now();
      if (victim !== undefined) process.kill(victim, "SIGKILL");
      outcome = await started.ended;
      expect(performance.now() - begun, "time until all ranks had ended").toBeLessThan(BOUND_MS);
      expect(ranksOf(started), "ranks that were left").toEqual([]);
      if (victim !== undefined) {
        kills++;
        expect(outcome.code, outcome.stderr).not.toBe(0);
      }
    } else outcome = await started.ended;
    for (const step of steps(output)) readWhole(join(output, `checkpoint-${step}`));
    expect(steps(output).at(-1) ?? 0, "no step is lost").toBeGreaterThanOrEqual(before.at(-1) ?? 0);
  } while (outcome.code !== 0 && kills <= KILLS);
  expect(outcome.code, outcome.stderr).toBe(0);
  expect(kills).toBe(KILLS);
  const [expected, got] = [traces(join(wholeFolder, "run")), traces(output)];
  expect(got.files).toEqual(expected.files);
  expect(got.metrics).toEqual(expected.metrics);
});
