// npm run bench -- NAME [--json] [--report FILE] [--OPTION VALUE]: compiles bench/*.ts and runs one benchmark against the built package. Without a name, or
// with --help, it lists them.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
if (!existsSync(`${here}../dist/index.js`)) {
  console.error("bench: expected the built package in dist/, found none. Run npm run build first.");
  process.exit(1);
}
const tsc = [`${here}../node_modules/typescript/bin/tsc`, "-p", `${here}tsconfig.json`];
if (spawnSync(process.execPath, tsc, { stdio: ["ignore", "inherit", "inherit"] }).status !== 0) process.exit(1);

const [name, ...flags] = process.argv.slice(2);
const { benchmarks } = await import("./.build/index.js");
const known = Object.keys(benchmarks);
const list = `npm run bench -- NAME [options]\n\n${Object.entries(benchmarks)
  .map(([key, { question }]) => `  ${key.padEnd(12)} ${question}`)
  .join("\n")}\n\nnpm run bench -- NAME --help lists the options of one; docs/benchmarks.md says how to read them.`;
if (name === undefined || name === "--help" || name === "-h") console.log(list);
else if (!known.includes(name)) {
  console.error(`bench: expected one of ${known.join(", ")}, got ${JSON.stringify(name)}.\n`);
  console.log(list);
  process.exitCode = 2;
} else {
  const { main } = await import("./.build/main.js");
  await main(name, benchmarks[name], flags);
}
