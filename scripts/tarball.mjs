// Packs the built package, installs the tarball into empty projects as a user would, and uses it there: the README's example, the demo, a small training
// run, and everything again without optional packages. Run `npm run build` first. Needs npm's registry or its cache.
//
// node scripts/tarball.mjs          prints what it did; exit status 1 at the first thing that is not as it should be
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
/** The demo's text is half of it. Enough for code to grow by, and too little for a second text. */
const MOST_BYTES = 1_200_000;

const scratch = mkdtempSync(join(tmpdir(), "sparsegate-tarball-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));

function expect(condition, what, got) {
  if (!condition) throw new Error(`expected ${what}, got ${got}`);
}

/** Runs a command and returns what it printed. A status other than 0 is an error that shows all of it. */
function run(cwd, command, ...args) {
  // What npm sets for the scripts that it runs must not reach the npm of another project.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_|^SPARSEGATE_/i.test(name)));
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, env, encoding: "utf8", maxBuffer: 2 ** 26 });
  if (error || status !== 0)
    throw new Error(`${[command, ...args].join(" ")}: ${error?.message ?? `status ${status}`}\n${stdout}${stderr}`);
  return { stdout, stderr };
}

/** An empty project with the tarball installed. */
function project(name, tarball, ...flags) {
  const folder = join(scratch, name);
  mkdirSync(folder);
  writeFileSync(join(folder, "package.json"), `${JSON.stringify({ name, private: true, type: "module" })}\n`);
  run(folder, "npm", "install", "--prefer-offline", "--no-audit", "--no-fund", ...flags, tarball);
  return folder;
}

/** The README's first example, checked against the installed types and run. */
function example(folder) {
  const code = /^```ts\n([^]*?)^```/m.exec(readFileSync(`${root}README.md`, "utf8"))?.[1];
  expect(code?.includes('from "sparsegate"'), "README.md to begin with an example of sparsegate", code);
  writeFileSync(join(folder, "example.ts"), code);
  const compiler = `${root}node_modules/typescript/bin/tsc`;
  const flags = [
    "--ignoreConfig",
    "--strict",
    "--target",
    "es2022",
    "--lib",
    "es2023,dom",
    "--module",
    "nodenext",
    "--types",
    "",
  ];
  run(folder, process.execPath, compiler, ...flags, "example.ts");
  const { stdout, stderr } = run(folder, process.execPath, "example.js");
  expect(stdout.includes("4, 1024, 512"), "the example to print the shape [4, 1024, 512]", stdout);
  return stderr;
}

function sparsegate(folder, ...args) {
  return run(folder, "npx", "--no-install", "sparsegate", ...args);
}

try {
  const [packed] = JSON.parse(run(root, "npm", "pack", "--ignore-scripts", "--json", "--pack-destination", scratch).stdout);
  const paths = packed.files.map(({ path }) => path);
  const stray = paths.filter((path) => /\.map$|^src\/|^test\/|^scripts\/|(^|\/)\./.test(path));
  expect(stray.length === 0, "no source maps, sources, tests or hidden files", stray.join(", "));
  for (const path of [
    "LICENSE",
    "README.md",
    ...["messages.json.br", "LICENSE.txt", "NOTICE.txt"].map((name) => `dist/text/typescript-messages/${name}`),
  ])
    expect(paths.includes(path), `${path} in the tarball`, "none");
  expect(packed.size <= MOST_BYTES, `a tarball of at most ${MOST_BYTES} bytes`, packed.size);
  console.log(`packed: ${packed.size} bytes, ${packed.unpackedSize} unpacked, ${paths.length} files`);
  const tarball = join(scratch, packed.filename);

  const full = project("full", tarball);
  const strays = ["typescript", "typescript-messages", "assemblyscript", "vitest"].filter((name) =>
    existsSync(join(full, "node_modules", name)),
  );
  expect(strays.length === 0, "no development dependency installed", strays.join(", "));
  example(full);
  console.log("the README's example compiles and runs");
  const found = JSON.parse(sparsegate(full, "doctor", "--json").stdout);
  expect(found.shared_memory && found.wasm_gflops > 0, "doctor to find shared memory and working kernels", JSON.stringify(found));
  console.log(`doctor: ${found.blas}`);
  const { stdout: table } = sparsegate(full, "demo", "--quick", "--no-progress");
  for (const model of ["MoE-1-Wide", "MoE-4", "MoE-32", "MoE-256"])
    expect(new RegExp(`^${model} .* \\d+\\.\\d\\d`, "m").test(table), `a perplexity of ${model} in the demo's table`, table);
  expect(existsSync(join(full, "runs", "demo", "report.html")), "the demo's report", "none");
  console.log("demo --quick reports");
  writeFileSync(join(full, "text.txt"), "the cat sat on the mat and the dog lay on the rug\n".repeat(200));
  const size =
    "--model MoE-4 --hidden-size 16 --vocab-size 280 --batch-size 8 --time-steps 8 --max-steps 20 --warmup-steps 5".split(" ");
  const result = JSON.parse(sparsegate(full, "train", "--train", "text.txt", "--output-dir", "run", "--json", ...size).stdout);
  expect(result.finished && result.steps === 20, "a finished run of 20 steps", JSON.stringify(result));
  const { perplexity } = JSON.parse(sparsegate(full, "eval", "run", "--data", "text.txt", "--json").stdout);
  expect(perplexity > 1 && perplexity < 280, "a perplexity between 1 and that of a uniform guess, 280", perplexity);
  expect(
    sparsegate(full, "generate", "run", "--prompt", "the cat", "--max-tokens", "5").stdout.startsWith("the cat"),
    "text that begins with the prompt",
    "other text",
  );
  console.log(`train, eval, generate: perplexity ${perplexity.toFixed(1)} after 20 steps`);

  const bare = project("bare", tarball, "--omit=optional");
  expect(!existsSync(join(bare, "node_modules", "koffi")), "no koffi under --omit=optional", "one");
  const warning = example(bare);
  expect(/koffi.*is not installed/.test(warning), "the example to warn that koffi is missing", JSON.stringify(warning));
  const without = JSON.parse(sparsegate(bare, "doctor", "--json").stdout);
  expect(/^none: .*koffi.*is not installed/.test(without.blas), "doctor to say that koffi is missing", without.blas);
  expect(without.wasm_gflops > 0, "working kernels without koffi", without.wasm_gflops);
  console.log("without optional packages: the example and doctor work, and say that koffi is missing");
} catch (error) {
  console.error(`tarball: ${error.message}`);
  process.exitCode = 1;
}
