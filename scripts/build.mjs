// Builds dist/: the AssemblyScript kernels in four variants, then the TypeScript sources.
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, rmSync, chmodSync, existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = (script, ...args) => execFileSync(process.execPath, [script, ...args], { cwd: root, stdio: "inherit" });

rmSync(`${root}dist`, { recursive: true, force: true });
mkdirSync(`${root}dist/backend/cpu`, { recursive: true });

// Static data sits at the bottom of the memory that all threads share; the heap of the backend starts above it.
const common = ["src/kernels/index.ts", "--runtime", "stub", "--importMemory", "--noAssert", "-O3", "--disableWarning", "112",
  "--enable", "simd", "--disable", "mutable-globals", "--use", "abort="];
const shared = ["--enable", "threads", "--sharedMemory", "--initialMemory", "16", "--maximumMemory", "65536"];
const asc = "node_modules/assemblyscript/bin/asc.js";
const variants = [
  ["simd", shared],
  ["simd-unshared", []],
  ["relaxed", [...shared, "--enable", "relaxed-simd", "--use", "RELAXED=1"]],
  ["relaxed-unshared", ["--enable", "relaxed-simd", "--use", "RELAXED=1"]],
];
// Side by side: each takes some seconds.
const compile = ([name, flags]) =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [asc, ...common, ...flags, "--outFile", `dist/backend/cpu/kernels.${name}.wasm`], { cwd: root, stdio: "inherit" });
    child.on("exit", (code) => (code === 0 ? resolve() : reject(new Error(`asc failed for ${name}`))));
  });
await Promise.all(variants.map(compile));

run("node_modules/typescript/bin/tsc", "-p", "tsconfig.json");
const cli = `${root}dist/cli/main.js`;
if (existsSync(cli)) chmodSync(cli, 0o755);
