// Builds dist/: the AssemblyScript kernels in four variants, the TypeScript sources, and the demo's text.
// Kernels take most of the time and seldom change: what was compiled is kept in node_modules/.cache under a hash of everything it depends on.
import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { writeMessages } from "./messages.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = (script, ...args) => execFileSync(process.execPath, [script, ...args], { cwd: root, stdio: "inherit" });

rmSync(`${root}dist`, { recursive: true, force: true });
mkdirSync(`${root}dist/backend/cpu`, { recursive: true });

// Static data sits at the bottom of the memory that all threads share; the heap of the backend starts above it.
const always =
  "--runtime stub --importMemory --noAssert -O3 --disableWarning 112 --enable simd --disable mutable-globals --use abort=";
const common = ["src/kernels/index.ts", ...always.split(" ")];
const shared = ["--enable", "threads", "--sharedMemory", "--initialMemory", "16", "--maximumMemory", "65536"];
const asc = "node_modules/assemblyscript/bin/asc.js";
const variants = [
  ["simd", shared],
  ["simd-unshared", []],
  ["relaxed", [...shared, "--enable", "relaxed-simd", "--use", "RELAXED=1"]],
  ["relaxed-unshared", ["--enable", "relaxed-simd", "--use", "RELAXED=1"]],
];
const sources = createHash("sha256").update(readFileSync(`${root}node_modules/assemblyscript/package.json`));
for (const name of readdirSync(`${root}src/kernels`).sort())
  sources.update(name).update(readFileSync(`${root}src/kernels/${name}`));
const cache = `${root}node_modules/.cache/sparsegate-kernels`;
mkdirSync(cache, { recursive: true });
// Side by side: each takes some seconds.
const compile = ([name, flags]) =>
  new Promise((resolve, reject) => {
    const hash = sources.copy().update([...common, ...flags].join(" "));
    const kept = `${cache}/${hash.digest("hex")}.wasm`;
    const take = () => resolve(copyFileSync(kept, `${root}dist/backend/cpu/kernels.${name}.wasm`));
    if (existsSync(kept)) return take();
    const made = `${kept}.${process.pid}.wasm`;
    const child = spawn(process.execPath, [asc, ...common, ...flags, "--outFile", made], { cwd: root, stdio: "inherit" });
    child.on("exit", (code) => {
      if (code !== 0) return reject(new Error(`asc failed for ${name}`));
      renameSync(made, kept);
      take();
    });
  });
await Promise.all(variants.map(compile));

run("node_modules/typescript/bin/tsc", "-p", "tsconfig.json");
writeMessages(`${root}node_modules/typescript-messages`, `${root}dist/text/typescript-messages`);
const cli = `${root}dist/cli/main.js`;
if (existsSync(cli)) chmodSync(cli, 0o755);
