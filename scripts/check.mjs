// Everything that can be checked beside the tests, one line a check: types, lint, format, import rules, the tracked files, the published package.
//
// node scripts/check.mjs [--all] [--counts FILE]
//   --all     also what takes minutes and needs npm's registry or its cache: the API's documentation, the packed package in empty projects, Node 24
//   --counts  FILE receives {"passed": n, "failed": n, "skipped": n}, for .ci/run
import { spawnSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const present = (...paths) => paths.filter((path) => existsSync(`${root}${path}`));
const tsc = "node_modules/typescript/bin/tsc"; // by path: node_modules/.bin/tsc may be the TypeScript 5 of the demo's text
/** Exit status by which a check says that it cannot run here; its last line says why. */
const SKIPPED = 77;

const checks = [
  { name: "types of src/", command: [tsc, "--noEmit"] },
  { name: "types of test/", command: [tsc, "--noEmit", "-p", "test/tsconfig.json"] },
  { name: "types of bench/", command: [tsc, "--noEmit", "-p", "bench/tsconfig.json"], needs: "bench/tsconfig.json" },
  {
    name: "lint",
    command: [
      "node_modules/oxlint/bin/oxlint",
      "--type-aware",
      "--deny-warnings",
      ...present("src", "test", "bench", "scripts", "examples"),
    ],
  },
  // The sources and their tests are wrapped by hand, tables of arguments and of cases above all.
  {
    name: "format",
    command: ["node_modules/oxfmt/bin/oxfmt", "--check", ...present("scripts", "test/house", "bench", "examples")],
  },
  { name: "import rules", command: ["scripts/imports.mjs"] },
  { name: "tracked files", command: ["scripts/tree.mjs"] },
  { name: "published package", command: ["node_modules/publint/src/cli.js", "--strict"], needs: "dist/index.js" },
  { name: "API documentation", command: ["scripts/docs.mjs"], slow: true },
  { name: "packed package in empty projects", command: ["scripts/tarball.mjs"], slow: true },
  { name: "backend under Node 24", command: ["scripts/node24.mjs"], slow: true },
];

const all = process.argv.includes("--all");
const counts = { passed: 0, failed: 0, skipped: 0 };
const skip = (name, why) => {
  counts.skipped++;
  console.log(`skipped  ${name}: ${why}`);
};
for (const { name, command, needs, slow } of checks) {
  if (slow && !all) continue;
  if (needs !== undefined && !existsSync(`${root}${needs}`)) {
    skip(name, `there is no ${needs}`);
    continue;
  }
  const start = performance.now();
  const { status, error, stdout, stderr } = spawnSync(process.execPath, command, {
    cwd: root,
    encoding: "utf8",
    maxBuffer: 2 ** 26,
    env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: "0" },
  });
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  if (status === SKIPPED) skip(name, stdout.trimEnd().split("\n").at(-1));
  else if (status === 0) {
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
