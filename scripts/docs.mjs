// Writes docs/api/, the API's documentation, with TypeDoc from the comments in the sources. Fails on an export, method or type without a comment, on a type
// that the API names but does not export, and on broken links. TypeDoc needs TypeScript 6, so it is a package of its own in scripts/typedoc, installed here
// when it is not.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("./typedoc", import.meta.url));

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: folder, stdio: "inherit" });
  if (error) console.error(`docs: ${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

const wanted = JSON.parse(readFileSync(`${folder}/package.json`, "utf8")).dependencies.typedoc;
const manifest = `${folder}/node_modules/typedoc/package.json`;
if (!existsSync(manifest) || JSON.parse(readFileSync(manifest, "utf8")).version !== wanted)
  run("npm", ["ci", "--prefer-offline", "--no-audit", "--no-fund"]);
run(process.execPath, ["node_modules/typedoc/bin/typedoc", "--options", "typedoc.json"]);
