// npm run bench -- NAME [--json] [--OPTION VALUE]: compiles bench/*.ts and runs one benchmark against the built package.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
if (!existsSync(`${here}../dist/index.js`)) {
  console.error("bench: expected the built package in dist/, found none. Run npm run build first.");
  process.exit(1);
}
execFileSync(process.execPath, [`${here}../node_modules/typescript/bin/tsc`, "-p", `${here}tsconfig.json`], { stdio: "inherit" });

const [name, ...flags] = process.argv.slice(2);
const { benchmarks } = await import("./.build/index.js");
const known = Object.keys(benchmarks);
if (name === undefined || !known.includes(name)) {
  if (name !== undefined) console.error(`bench: expected one of ${known.join(", ")}, got ${JSON.stringify(name)}.\n`);
  console.log(
    `npm run bench -- NAME [--json] [--option value]\n\n${Object.entries(benchmarks)
      .map(([key, { question }]) => `  ${key.padEnd(14)} ${question}`)
      .join("\n")}`,
  );
  process.exitCode = name === undefined ? 0 : 2;
} else {
  const { main } = await import("./.build/harness.js");
  await main(name, benchmarks[name], flags);
}
