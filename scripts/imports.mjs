// Checks that imports run one way (ARCHITECTURE.md, "Rooms"): each folder of src/ imports only the rooms named here, and no files form a cycle.
import { existsSync, readFileSync, readdirSync, statSync } from "node:fs";
import { dirname, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";

/** What each room may import. `types` rooms may be named in `import type` only. A room may always import itself. */
export const rooms = {
  core: { values: [], types: [] },
  kernels: { values: [], types: [] },
  backend: { values: ["core"], types: [] },
  tensor: { values: ["core", "backend"], types: [] },
  text: { values: ["core"], types: [] },
  comm: { values: ["core"], types: ["tensor"] },
  nn: { values: ["core", "tensor"], types: ["backend"] },
  moe: { values: ["core", "tensor", "nn"], types: ["backend", "comm"] },
  optim: { values: ["core", "tensor"], types: ["backend", "nn"] },
  models: { values: ["core", "tensor", "nn", "moe"], types: ["backend", "comm"] },
  train: { values: ["core", "backend", "tensor", "text", "comm", "nn", "moe", "optim", "models"], types: [] },
  cli: { values: ["core", "backend", "tensor", "text", "comm", "nn", "moe", "optim", "models", "train"], types: [] },
};

/**
 * The violations in a source tree, one line each, as `src/nn/linear.ts:3: …`; empty when all is well.
 * Files directly under the tree (index.ts) may import everything, and nothing in a room may import them.
 */
export function importViolations(src) {
  const files = sourceFiles(src);
  const known = new Set(files);
  const violations = [];
  const loads = new Map(); // file -> [{ target, line }] of what must be loaded before it: what a cycle is made of
  const report = (file, line, text) =>
    violations.push(`${join("src", relative(src, file)).split(sep).join("/")}:${line}: ${text}`);

  for (const file of files) {
    const from = roomOf(src, file);
    const edges = [];
    loads.set(file, edges);
    if (from !== undefined && !Object.hasOwn(rooms, from)) {
      report(file, 1, `${from}/ is not a room that scripts/imports.mjs knows`);
      continue;
    }
    for (const { specifier, line, typeOnly, dynamic } of importsOf(readFileSync(file, "utf8"))) {
      if (!specifier.startsWith(".")) {
        if (specifier === "sparsegate" || specifier.startsWith("#sparsegate"))
          report(file, line, "the sources import each other by relative path");
        continue;
      }
      const target = resolveImport(file, specifier, known);
      if (target === undefined) continue; // a .wasm or .json file; tsc reports what does not exist
      if (!typeOnly && !dynamic) edges.push({ target, line });
      const to = roomOf(src, target);
      if (from === undefined || from === to) continue;
      if (to === undefined)
        report(file, line, `${from}/ may not import ${relative(src, target)}, which is the outside of the package`);
      else if (rooms[from].values.includes(to)) continue;
      else if (!rooms[from].types.includes(to)) report(file, line, `${from}/ may not import ${to}/`);
      else if (!typeOnly) report(file, line, `${from}/ may import only types from ${to}/ (import type)`);
    }
  }
  for (const cycle of cycles(loads)) {
    const names = cycle.map(({ file }) => relative(src, file).split(sep).join("/"));
    report(cycle[0].file, cycle[0].line, `cycle: ${[...names, names[0]].join(" -> ")}`);
  }
  return violations;
}

function sourceFiles(folder) {
  return readdirSync(folder)
    .sort()
    .flatMap((name) => {
      const path = join(folder, name);
      if (statSync(path).isDirectory()) return sourceFiles(path);
      return /\.[cm]?ts$/.test(name) ? [path] : [];
    });
}

function roomOf(src, file) {
  const parts = relative(src, file).split(sep);
  return parts.length > 1 ? parts[0] : undefined;
}

function resolveImport(file, specifier, known) {
  const path = resolve(dirname(file), specifier);
  return [path, path.replace(/\.js$/, ".ts"), `${path}.ts`, join(path, "index.ts")].find((candidate) => known.has(candidate));
}

/** The import and re-export statements of a source text. Comments and template strings are blanked first, keeping the line numbers. */
function importsOf(source) {
  const blank = (text) => text.replace(/[^\n]/g, " ");
  const code = source.replace(/"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|\/\/[^\n]*|\/\*[\s\S]*?\*\//g, (token) =>
    /^["']/.test(token) ? token : blank(token),
  );
  const lineAt = (index) => code.slice(0, index).split("\n").length;
  const found = [];
  const statement = /^[ \t]*(?:import|export)\b(\s+type\b(?!\s*(?:,|from\b)))?(?:[\w$*{},\s]*?\bfrom\b)?\s*["']([^"'\n]+)["']/gm;
  for (const match of code.matchAll(statement)) {
    const keyword = match.index + match[0].search(/\S/);
    found.push({ specifier: match[2], line: lineAt(keyword), typeOnly: match[1] !== undefined, dynamic: false });
  }
  for (const match of code.matchAll(/(\btypeof\s+)?\bimport\(\s*["']([^"'\n]+)["']/g)) {
    found.push({ specifier: match[2], line: lineAt(match.index), typeOnly: match[1] !== undefined, dynamic: true });
  }
  return found;
}

/** Each cycle that a depth-first walk closes, as its files with the line of the import that leads to the next. */
function cycles(loads) {
  const found = [];
  const state = new Map();
  const path = [];
  const visit = (file) => {
    state.set(file, "open");
    for (const { target, line } of loads.get(file) ?? []) {
      if (state.get(target) === "done") continue;
      path.push({ file, line });
      if (state.get(target) === "open") found.push(path.slice(path.findIndex((step) => step.file === target)));
      else visit(target);
      path.pop();
    }
    state.set(file, "done");
  };
  for (const file of loads.keys()) if (!state.has(file)) visit(file);
  return found;
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const src = resolve(process.argv[2] ?? fileURLToPath(new URL("../src", import.meta.url)));
  const violations = existsSync(src) ? importViolations(src) : [`${src}: no such folder`];
  for (const violation of violations) console.error(violation);
  process.exitCode = violations.length > 0 ? 1 : 0;
}
