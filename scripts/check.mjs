// Everything that can be checked without running the program: types, lint, import rules and the published package. One line a check.
//
// node scripts/check.mjs [--counts FILE]     FILE receives {"passed": n, "failed": n}, for .ci/run
import { spawnSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const tsc = "node_modules/typescript/bin/tsc"; // by path: node_modules/.bin/tsc may be the TypeScript 5 of the demo's corpus
const folders = ["src", "test", "bench", "scripts", "examples"].filter((folder) => existsSync(`${root}${folder}`));

const checks = [
  { name: "types of src/", command: [tsc, "--noEmit"] },
  { name: "types of test/", command: [tsc, "--noEmit", "-p", "test/tsconfig.json"], needs: "test/tsconfig.json" },
  { name: "lint", command: ["node_modules/oxlint/bin/oxlint", "--type-aware", "--deny-warnings", ...folders] },
  { name: "import rules", command: ["scripts/imports.mjs"] },
  { name: "published package", command: ["node_modules/publint/src/cli.js", "--strict"], needs: "dist/index.js" },
];

const counts = { passed: 0, failed: 0 };
for (const { name, command, needs } of checks) {
  if (needs !== undefined && !existsSync(`${root}${needs}`)) {
    console.log(`skipped  ${name} (no ${needs})`);
    continue;
  }
  const start = performance.now();
  const { status, error, stdout, stderr } = spawnSync(process.execPath, command, {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: "0" },
  });
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  if (status === 0) {
    counts.passed++;
    console.log(`ok       ${name} (${seconds} s)`);
  } else {
    counts.failed++;
    console.log(`FAILED   ${name} (${seconds} s): node ${command.join(" ")}`);
    console.log(`${error?.message ?? ""}${stdout ?? ""}${stderr ?? ""}`.trimEnd().replace(/^/gm, "  | "));
  }
}

const countsAt = process.argv.indexOf("--counts");
if (countsAt !== -1) writeFileSync(process.argv[countsAt + 1], JSON.stringify(counts));
process.exitCode = counts.failed > 0 ? 1 : 0;
