/** Early stopping: it ends where the count says, keeps the best parameters, tests those, and a run that was interrupted ends as one that was not. */

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Module, parameter } from "#sparsegate/nn/module.js";
import type { Optimizer } from "#sparsegate/optim/optimizers.js";
import { defaultBackend } from "#sparsegate/tensor/default-backend.js";
import { tokenizeCorpus } from "#sparsegate/text/dataset.js";
import { checkConfig, type TrainConfig } from "#sparsegate/train/config.js";
import { EarlyStopping } from "#sparsegate/train/early-stopping.js";
import { readMetrics } from "#sparsegate/train/metrics.js";
import { Progress } from "#sparsegate/train/progress.js";
import { loadModel, openCheckpoint } from "#sparsegate/train/restore.js";
import { runTask, type RunResult, type Task } from "#sparsegate/train/run.js";
import { evaluateOn, train } from "#sparsegate/train/trainer.js";
import { sentences, traces } from "../cli/helpers.js";

const kept = (folder: string): string[] => readdirSync(join(root, folder, "best")).sort();

const root = mkdtempSync(join(tmpdir(), "sparsegate-patience-"));
afterAll(() => {
  defaultBackend().dispose();
  rmSync(root, { recursive: true });
});

describe("EarlyStopping", () => {
  test("stops after so many evaluations that are not lower than the lowest, counting anew from each that is; of equal ones the last is the best", () => {
    const stopping = new EarlyStopping(2);
    const seen = [5, 4, 4, 3.9, 4.5, 3.9].map((loss, i) => [stopping.observe(10 * i, loss), stopping.stops, stopping.best?.step]);
    expect(seen).toEqual([
      [true, false, 0],
      [true, false, 10],
      [true, false, 20],
      [true, false, 30],
      [false, false, 30],
      [true, true, 50],
    ]);
    const again = new EarlyStopping(2);
    again.restore(JSON.parse(JSON.stringify(stopping.state())));
    expect([again.stops, again.best?.step]).toEqual([true, 50]);
  });

  test("never stops without a patience, nor before the first evaluation", () => {
    const never = new EarlyStopping(undefined);
    for (let step = 0; step < 50; step++) never.observe(step, step);
    expect(never.stops).toBe(false);
    expect(new EarlyStopping(1).stops).toBe(false);
    const fresh = new EarlyStopping(1);
    fresh.restore(undefined);
    expect([fresh.best, fresh.stops]).toEqual([undefined, false]);
  });
});

// Few sentences of many words: they are soon learned by heart, and others get worse.
const text = { train: sentences(40, 1, 200), valid: sentences(30, 2, 200), test: sentences(30, 3, 200) };
const configOf = (folder: string, more: Record<string, unknown> = {}): TrainConfig =>
  checkConfig(
    {
      train: "(in memory)",
      tokenizer: "words",
      model: "MoE-4",
      hidden_size: 16,
      dropout: 0,
      batch_size: 4,
      time_steps: 8,
      max_steps: 400,
      eval_steps: 5,
      save_steps: 7,
      logging_steps: 5,
      learning_rate: 0.03,
      schedule: "constant",
      patience: 3,
      output_dir: join(root, folder),
      ...more,
    },
    "the test",
  );
const evaluations = (folder: string): { step: number; loss: number }[] =>
  readMetrics(join(root, folder, "metrics.jsonl")).flatMap(({ step, ...record }) =>
    typeof record["eval/loss"] === "number" ? [{ step, loss: record["eval/loss"] }] : [],
  );

describe("a run with a patience of three", () => {
  test("ends three evaluations after its best, whose parameters it keeps and tests", async () => {
    const config = configOf("whole");
    const result = await train(config, text);
    const found = evaluations("whole");
    const best = found.reduce((a, b) => (b.loss < a.loss ? b : a));
    expect(result).toMatchObject({ finished: true, steps: best.step + 15, best: { step: best.step } });
    expect(result.steps).toBeLessThan(400);
    expect(found.at(-1)!.step).toBe(result.steps);
    // What is tested is what best/ holds; the model itself goes on from its last step.
    const kept = loadModel(openCheckpoint("the test", join(root, "whole/best")));
    expect(openCheckpoint("the test", join(root, "whole/best")).step).toBe(best.step);
    const dataset = tokenizeCorpus(text.test, kept.tokenizer);
    expect(result.test!.loss).toBe(evaluateOn(kept.model, dataset, config).loss);
    expect(result.test!.loss).not.toBe(evaluateOn(result.model, dataset, config).loss);
    const last = loadModel(openCheckpoint("the test", join(root, "whole")));
    const values = (model: typeof last.model): number[][] => [...model.namedState().values()].map((t) => [...t.dataSync()]);
    expect(values(result.model)).toEqual(values(last.model));
    for (const { model } of [result, kept, last]) model.dispose();
  });

  test("interrupted at any step it ends as the one that was not, byte for byte", async () => {
    const whole = traces(join(root, "whole"));
    const first = evaluations("whole")[0]!.step;
    const end = evaluations("whole").at(-1)!.step;
    for (const at of [first + 1, end - 6, end - 5, end - 1, end]) {
      const config = configOf("parts");
      const stop = new AbortController();
      const before = await train(config, text, {
        overwrite: true,
        signal: stop.signal,
        onStep: (step) => void (step === at && stop.abort()),
      });
      before.model.dispose();
      expect(before.finished).toBe(false);
      const after = await train(config, text, { resume: config.output_dir });
      after.model.dispose();
      expect([after.finished, after.steps], `interrupted at step ${at}`).toEqual([true, end]);
      const { files, metrics } = traces(config.output_dir);
      expect(metrics).toEqual(whole.metrics);
      expect(files["model.safetensors"]).toBe(whole.files["model.safetensors"]);
      // Done already: nothing is trained, and the test is of the best step again.
      const done = await train(config, text, { resume: config.output_dir });
      expect([done.steps, done.test!.loss]).toEqual([end, after.test!.loss]);
      done.model.dispose();
    }
  });

  test("goes on with more patience, and begins anew without the best of the run before", async () => {
    const end = evaluations("whole").at(-1)!.step;
    const more = await train(configOf("whole", { patience: 5 }), text, { resume: join(root, "whole") });
    expect(more.steps).toBe(end + 10);
    more.model.dispose();
    const anew = await train(configOf("whole", { max_steps: 5 }), text, { overwrite: true });
    expect(readdirSync(join(root, "whole/best"))).toEqual(["checkpoint-5"]);
    anew.model.dispose();
  });

  test("needs a text to look at; without a patience there is no folder best/", async () => {
    await expect(train(configOf("none"), { train: text.train })).rejects.toThrow(
      'patience (--patience): expected a text for evaluation while training, got "none". Name it by --valid.',
    );
    const plain = await train(configOf("plain", { max_steps: 5, patience: undefined }), text);
    plain.model.dispose();
    expect([plain.best, existsSync(join(root, "plain/best"))]).toEqual([undefined, false]);
  });
});

describe("a run that is resumed", () => {
  class Counter extends Module {
    readonly step = parameter("step", [1], { kind: "zeros" });
  }
  const figures = { loss: 1, gradNorm: 1, tokens: 1 };
  type Figures = { loss: number };
  /** A model that is the number of its steps. The validation text has the losses that are given, the test text the number of the model that is tested. */
  const task = (losses: readonly number[]): Task<typeof figures, Figures> => {
    const model = new Counter();
    const state = parameter("state", [1], { kind: "zeros" });
    const optimizer = { steps: 0, prepare: () => new Map([["state", state]]), dispose() {} };
    return {
      model,
      optimizer: optimizer as unknown as Optimizer,
      tokenizer: { save: () => ({ file: "tokenizer.json", text: "{}" }) } as Task<typeof figures, Figures>["tokenizer"],
      stream: { state: () => ({}), restore() {} },
      corpus: 1,
      corpusFlags: "--train",
      unit: "tokens",
      keepsBest: true,
      step() {
        model.step.backend.write(model.step.buffer, [++optimizer.steps]);
        return figures;
      },
      stepMetrics: () => ({}),
      position: () => "",
      *evaluation(which) {
        yield;
        return { loss: which === "test" ? model.step.item() : (losses[optimizer.steps - 1] ?? 9) };
      },
      evaluationMetrics: ({ loss }) => ({ loss }),
    };
  };
  const texts = { valid: true, test: true };
  const config = (folder: string, more: Record<string, unknown> = {}): TrainConfig =>
    configOf(folder, { model: "LSTM", max_steps: 5, eval_steps: 1, save_steps: 1, save_total_limit: 9, logging_steps: 1, ...more });
  let said = "";
  const resume = (from: string, given: TrainConfig, losses: readonly number[]): Promise<RunResult<Figures>> => {
    said = "";
    const progress = new Progress({ enabled: false, stream: { write: (line: string) => ((said += line), true) } });
    return runTask(given, texts, { overwrite: true, progress }, openCheckpoint("--resume", join(root, from)), () => task(losses));
  };
  /** Best at the steps 1, 3, 4 and 5, of which best/ keeps the last two. */
  const begin = (folder: string): Promise<RunResult<Figures>> => runTask(config(folder), texts, { overwrite: true }, undefined, () => task([5, 6, 4, 3, 2]));

  test("in another folder has the best step there too, in place of those of another run, and tests it at its end", async () => {
    expect((await begin("a")).best).toEqual({ step: 5, loss: 2 });
    await begin("b");
    const result = await resume("a", config("b", { max_steps: 20 }), []);
    expect(result).toMatchObject({ finished: true, steps: 8, best: { step: 5, loss: 2 }, test: { loss: 5 } });
    expect([kept("b"), said]).toEqual([["checkpoint-5"], ""]);
    const files = (run: string): Buffer[] => ["config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"].map((name) => readFileSync(join(root, run, "best/checkpoint-5", name)));
    expect(files("b")).toEqual(files("a"));
  });

  test("by another name of its folder is the same run: nothing of it is in the way", async () => {
    await begin("real");
    symlinkSync(join(root, "real"), join(root, "alias"));
    expect(await resume("alias", config("real"), [])).toMatchObject({ finished: true, steps: 5, best: { step: 5 } });
    expect([readdirSync(join(root, "real")), kept("real")]).toEqual([expect.arrayContaining(["checkpoint-1", "checkpoint-5"]), ["checkpoint-4", "checkpoint-5"]]);
  });

  test("in another folder at its end is saved there, with its own metrics and none of what was there", async () => {
    await begin("done");
    mkdirSync(join(root, "there"));
    writeFileSync(join(root, "there/metrics.jsonl"), '{"step":1,"time":1,"train/loss":77}\n');
    expect(await resume("done", config("there"), [])).toMatchObject({ finished: true, steps: 5 });
    expect(readdirSync(join(root, "there"))).toContain("checkpoint-5");
    const records = (run: string): string => readFileSync(join(root, run, "metrics.jsonl"), "utf8");
    expect(records("there")).toBe(records("done"));
    expect(openCheckpoint("--resume", join(root, "there")).step).toBe(5);
  });

  test("from before the steps that best/ holds forgets the best of then, says so, and ends with a best that is there", async () => {
    await begin("back");
    const result = await resume("back/checkpoint-2", config("back", { max_steps: 20 }), []);
    expect(said).toBe(`The best step so far, 1, is forgotten: its parameters are not in ${join(root, "back/best")} any more. The next evaluation is the best until one is lower.\n`);
    // Of the losses, which are all 9, the last is the best.
    expect(result).toMatchObject({ finished: true, steps: 6, best: { step: 6, loss: 9 }, test: { loss: 6 } });
    expect(kept("back")).toContain("checkpoint-6");
  });

  test("at its end, without its best step, tests the last and names none as the best", async () => {
    await begin("lost");
    rmSync(join(root, "lost/best"), { recursive: true });
    const result = await resume("lost", config("lost"), []);
    expect(result).toMatchObject({ finished: true, steps: 5, test: { loss: 5 } });
    expect(result).not.toHaveProperty("best");
    expect(said).toContain("The best step so far, 5, is forgotten");
  });

  test("with a best step that is damaged is refused before it begins", async () => {
    await begin("damaged");
    const path = join(root, "damaged/best/checkpoint-5");
    writeFileSync(join(path, "tokenizer.json"), "[]");
    await expect(resume("damaged", config("damaged", { max_steps: 20 }), [])).rejects.toThrow(`Or delete ${path}: the best step is then forgotten.`);
  });
});
