/** The import rules: they hold in src/, and the checker fails when it should. */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { importViolations } from "../../scripts/imports.mjs";

const made: string[] = [];
afterEach(() => made.splice(0).forEach((folder) => rmSync(folder, { recursive: true })));

/** A source tree in a temporary folder, from path to text. */
function tree(files: Record<string, string>): string {
  const folder = mkdtempSync(join(tmpdir(), "sparsegate-imports-"));
  made.push(folder);
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), text);
  }
  return folder;
}

describe("import rules", () => {
  test("hold in src/", () => {
    expect(importViolations(fileURLToPath(new URL("../../src", import.meta.url)))).toEqual([]);
  });

  test("let a tree pass whose imports all run downwards", () => {
    const src = tree({
      "core/errors.ts": "export class E {}\n",
      "backend/backend.ts": 'import { E } from "../core/errors.js";\nexport interface Backend { e: E }\n',
      "tensor/tensor.ts": 'import type { Backend } from "../backend/backend.js";\nexport class Tensor { b!: Backend }\n',
      "moe/layer.ts":
        'import type { Backend } from "../backend/backend.js";\nimport { Tensor } from "../tensor/tensor.js";\nexport { Tensor, type Backend };\n',
      "index.ts": 'export * from "./moe/layer.js";\n',
    });
    expect(importViolations(src)).toEqual([]);
  });

  test("name the file and line of an import that runs upwards, also over several lines and in a re-export", () => {
    const src = tree({
      "core/a.ts": '/* one\n two */\nimport {\n  x,\n} from "../nn/x.js";\nexport const a = x;\n',
      "nn/x.ts": 'export const x = 1;\nexport * from "../moe/m.js";\n',
      "moe/m.ts": "export const m = 1;\n",
    });
    expect(importViolations(src)).toEqual([
      "src/core/a.ts:3: core/ may not import nn/",
      "src/nn/x.ts:2: nn/ may not import moe/",
    ]);
  });

  test("refuse values where only types are allowed, dynamic imports upwards, and src/index.ts from a room", () => {
    const src = tree({
      "backend/cpu/index.ts": "export class Cpu {}\n",
      "nn/linear.ts": 'import { Cpu } from "../backend/cpu/index.js";\nexport { Cpu };\n',
      "text/words.ts": 'export const load = () => import("../train/loop.js");\n',
      "train/loop.ts": 'import { all } from "../index.js";\nexport { all };\n',
      "index.ts": "export const all = 1;\n",
    });
    expect(importViolations(src)).toEqual([
      "src/nn/linear.ts:1: nn/ may import only types from backend/ (import type)",
      "src/text/words.ts:1: text/ may not import train/",
      "src/train/loop.ts:1: train/ may not import index.ts, which is the outside of the package",
    ]);
  });

  test("refuse a cycle between files of one room, but not one that only types close", () => {
    const value = tree({
      "nn/a.ts": 'import { b } from "./b.js";\nexport const a = b;\n',
      "nn/b.ts": 'import { c } from "./c.js";\nexport const b = c;\n',
      "nn/c.ts": 'import { a } from "./a.js";\nexport const c = a;\n',
    });
    expect(importViolations(value)).toEqual(["src/nn/a.ts:1: cycle: nn/a.ts -> nn/b.ts -> nn/c.ts -> nn/a.ts"]);
    const types = tree({
      "nn/a.ts": 'import type { B } from "./b.js";\nexport class A { b?: B }\n',
      "nn/b.ts": 'import { A } from "./a.js";\nexport class B extends A {}\n',
    });
    expect(importViolations(types)).toEqual([]);
  });

  test("see no imports in comments or strings, and know every room", () => {
    const src = tree({
      "core/a.ts":
        '// import { x } from "../nn/x.js";\n/*\nimport "../nn/x.js";\n*/\nexport const text = `\nimport "../nn/x.js";\n`;\n',
      "nn/x.ts": "export const x = 1;\n",
      "attic/y.ts": "export const y = 1;\n",
    });
    expect(importViolations(src)).toEqual(["src/attic/y.ts:1: attic/ is not a room that scripts/imports.mjs knows"]);
  });
});
