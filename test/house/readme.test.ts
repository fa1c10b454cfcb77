/** Every TypeScript example of README.md compiles against the built package and runs as printed. */

import { execFileSync, type ExecFileSyncOptions } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript-messages"; // TypeScript 5, kept for the demo's corpus; it has the JavaScript API that TypeScript 7 lacks
import { afterAll, describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const readme = existsSync(join(root, "README.md")) ? readFileSync(join(root, "README.md"), "utf8") : "";
const examples = [...readme.matchAll(/^```(?:ts|typescript)[ \t]*\n([\s\S]*?)^```[ \t]*$/gm)].map((match) => ({
  line: readme.slice(0, match.index).split("\n").length,
  code: match[1],
}));

// The package can import itself by name only from a file inside it, and outside node_modules.
let folder: string | undefined;
afterAll(() => folder !== undefined && rmSync(folder, { recursive: true, force: true }));

/** Runs node in the package and throws with what it printed when it fails. */
function node(...args: string[]): string {
  const options: ExecFileSyncOptions = { cwd: root, stdio: ["ignore", "pipe", "pipe"], timeout: 170_000 };
  try {
    return String(execFileSync(process.execPath, args, options));
  } catch (error) {
    const { stdout, stderr, message } = error as Error & { stdout?: Buffer; stderr?: Buffer };
    throw new Error(`${message}\n${String(stdout ?? "")}\n${String(stderr ?? "")}`, { cause: error });
  }
}

describe("README.md", () => {
  test("has a ```ts example that imports sparsegate", () => {
    expect(examples.some(({ code }) => /from "sparsegate"/.test(code))).toBe(true);
  });

  for (const { line, code } of examples) {
    test(`the example at line ${line} compiles and runs`, { timeout: 180_000 }, () => {
      folder ??= mkdtempSync(join(root, "dist", ".readme-"));
      const file = join(folder, `line-${line}`);
      writeFileSync(`${file}.ts`, `${code}\nexport {};\n`);
      const flags = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", "--types", "node"];
      node("node_modules/typescript/bin/tsc", "--ignoreConfig", ...flags, `${file}.ts`);
      const { outputText } = ts.transpileModule(code, {
        compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
      });
      writeFileSync(`${file}.js`, outputText);
      node(`${file}.js`);
    });
  }
});
