/** A module and its optimiser, saved by a program of one's own and loaded again: it goes on as if it had not stopped; what does not fit changes nothing. */

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import * as sg from "#sparsegate/index.js";
import { SafetensorsFile } from "#sparsegate/train/safetensors.js";
import { BACKENDS, useBackend } from "../use-backend.js";

const folder = mkdtempSync(join(tmpdir(), "sparsegate-tensors-"));
afterAll(() => rmSync(folder, { recursive: true }));

class Net extends sg.Module {
  readonly first = new sg.Linear({ inputSize: 3, outputSize: 4, name: "first" });
  readonly moe: sg.MoE;
  constructor(seed: number, gate: "sigmoid" | "noisy-top-k" = "sigmoid") {
    super();
    this.moe = new sg.MoE({ hiddenSize: 4, numExperts: 4, topK: 2, expertHiddenSize: 5, gate, seed });
  }
}

/** A program that trains, saves and loads. */
function program(seed: number) {
  const net = new Net(seed);
  const adam = new sg.Adam(net.namedParameters(), { factored: (name) => name.includes("experts") });
  const state = (kept: "prepare" | "state" = "prepare"): Map<string, sg.Tensor> => new Map([...net.namedState(), ...[...adam[kept]()].map(([name, t]) => [`adam.${name}`, t] as const)]);
  const train = (steps: number): void => {
    for (let i = 0; i < steps; i++) {
      sg.scope(() => {
        const x = net.first.forward(sg.randomNormal([16, 3], { seed: adam.steps }));
        const { output, auxLoss } = net.moe.forward(x, { training: true, seed: 1, step: adam.steps, firstRow: 0 });
        sg.backward(sg.add(sg.mean(sg.square(output)), auxLoss));
        adam.step(0.01);
        adam.zeroGrad();
      });
    }
  };
  const values = (): number[][] => [...state().values()].map((t) => Array.from(t.dataSync()));
  return { net, adam, state, train, values };
}

describe.each(BACKENDS.filter(({ name }) => name !== "reference"))("on the $name backend", ({ make }) => {
  useBackend(make);

  test("a program that goes on from a file equals one that was not interrupted", () => {
    const path = join(folder, "run.safetensors");
    const whole = program(1);
    whole.train(3);
    sg.saveTensors(path, whole.state(), { steps: String(whole.adam.steps) });
    whole.train(3);
    const second = program(2); // other numbers, all of them replaced
    second.adam.steps = Number(sg.loadTensors(path, second.state()).get("steps"));
    second.train(3);
    expect(second.values()).toEqual(whole.values());
    expect(new SafetensorsFile(path).names).toContain("moe.gate.bias"); // a buffer
    // Back in the same program: Adam's counts go back too, whichever way its tensors are got at.
    const end = whole.values();
    for (const kept of ["prepare", "state"] as const) {
      whole.train(1); // which counts
      whole.adam.steps = Number(sg.loadTensors(path, whole.state(kept)).get("steps"));
      whole.train(3);
      expect(whole.values(), kept).toEqual(end);
    }
  });
});

describe("what does not fit", () => {
  useBackend(BACKENDS[0].make);
  const path = join(folder, "net.safetensors");
  const refused = (net: sg.Module, message: string, file = path): void => {
    const before = [...net.namedState().values()].map((t) => Array.from(t.dataSync()));
    expect(() => sg.loadTensors(file, net.namedState())).toThrow(expect.objectContaining({ name: "FileError", message: expect.stringContaining(message) as string }));
    expect([...net.namedState().values()].map((t) => Array.from(t.dataSync()))).toEqual(before);
  };

  test("is refused, and leaves every tensor as it was", () => {
    sg.saveTensors(path, new Net(1).namedState());
    refused(new Net(2, "noisy-top-k"), 'expected a tensor moe.gate.noiseWeight, got "none". Is it of another model?');
    refused(new sg.Linear({ inputSize: 3, outputSize: 4 }), 'expected a tensor weight, got "none".');
    const wider = new Net(2);
    (wider as { first: sg.Linear }).first = new sg.Linear({ inputSize: 2, outputSize: 4 });
    refused(wider, "expected first.weight of shape [2, 4], got [3, 4]. Is it of another model?");
    const bytes = readFileSync(path);
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(join(folder, "flipped"), bytes);
    refused(new Net(2), "The file is damaged.", join(folder, "flipped"));
    refused(new Net(2), "no such file or folder", join(folder, "missing"));
    sg.saveTensors(join(folder, "counts"), new Map([["weight", sg.zeros([3, 4], "int32")]]));
    refused(new sg.Linear({ inputSize: 3, outputSize: 4, bias: false }), 'expected weight of F32, got "I32". Numbers of other kinds have to be converted first.', join(folder, "counts"));
  });

  test("tensors that are not asked for are refused, or left", () => {
    const net = new Net(1);
    sg.saveTensors(path, net.namedState());
    const part = new Map([...new Net(2).namedState()].filter(([name]) => name.startsWith("first.")));
    expect(() => sg.loadTensors(path, part)).toThrow('expected no other tensors than asked for, got "moe.experts.');
    expect(sg.loadTensors(path, part, { strict: false }).size).toBe(0);
    expect(Array.from(part.get("first.weight")!.dataSync())).toEqual(Array.from(net.first.weight.dataSync()));
  });

  test("metadata that are no text, or named as checksums are, are refused before anything is written", () => {
    const state = new Net(1).namedState();
    const at = join(folder, "never");
    expect(() => sg.saveTensors(at, state, { steps: 3 } as never)).toThrow("saveTensors: expected metadata steps to be text, got 3. Give String(value).");
    expect(() => sg.saveTensors(at, state, { crc32: "0" })).toThrow("saveTensors: expected metadata whose names do not begin with");
    expect(existsSync(at)).toBe(false);
  });

  test("a tensor that has been freed is found before another is changed", () => {
    const net = new Net(1);
    sg.saveTensors(path, net.namedState());
    const { first, moe } = new Net(2);
    const before = Array.from(first.weight.dataSync());
    const asked = new Map([["first.weight", first.weight], ["moe.gate.weight", moe.namedParameters().get("gate.weight")!]]);
    moe.dispose();
    expect(() => sg.loadTensors(path, asked, { strict: false })).toThrow("its memory has been freed");
    expect(Array.from(first.weight.dataSync())).toEqual(before);
  });

  test("a part of what is spread over ranks is neither saved nor filled as if it were the whole", () => {
    const part = sg.parameter("w", [2], { kind: "zeros" }, 0, { first: 0, total: 4 });
    expect(() => sg.saveTensors(path, new Map([["w", part]]))).toThrow('saveTensors: expected whole tensors, got "w". Its other parts are on other ranks.');
    sg.saveTensors(path, new Map([["w", sg.zeros([2])]]));
    expect(() => sg.loadTensors(path, new Map([["w", part]]))).toThrow('loadTensors: expected whole tensors, got "w". Its other parts are on other ranks.');
  });
});
