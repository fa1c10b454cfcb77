// Checks the tracked files themselves: nothing of one machine, nothing large, no long source that does not say why.
import { execFileSync } from "node:child_process";
import { readFileSync, statSync } from "node:fs";
import { basename, extname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const MOST_BYTES = 512 * 1024;
const MOST_LINES = 500;
const SOURCES = new Set([".ts", ".mts", ".tsx", ".mjs", ".js"]);
/** Where a person's or a machine's own folders begin. */
const MACHINE_PATH = /(?<![\w.\-/])\/(?:home|root|Users|work|farm|mnt|srv)\/[\w.]|\b[A-Z]:\\Users\\/;
/** A package's place in one registry, which the lock file does without; in .npmrc the choice of one. */
const REGISTRY = /"resolved": *"[a-z+]+:\/\//;
const REGISTRY_CHOICE = /^\s*(?:@[\w-]+:)?registry\s*=/;

/** What is wrong with one file, a line each. */
export function complaints(path, bytes) {
  const found = [];
  if (bytes.length > MOST_BYTES) found.push(`${path}: expected at most ${MOST_BYTES} bytes, got ${bytes.length}`);
  if (bytes.includes(0)) return found; // binary
  const lines = bytes.toString("utf8").split("\n");
  for (const [i, line] of lines.entries()) {
    if (MACHINE_PATH.test(line)) found.push(`${path}:${i + 1}: an absolute path of one machine`);
    if (REGISTRY.test(line) || (basename(path) === ".npmrc" && REGISTRY_CHOICE.test(line)))
      found.push(`${path}:${i + 1}: the address of a registry`);
  }
  const count = lines.at(-1) === "" ? lines.length - 1 : lines.length;
  if (SOURCES.has(extname(path)) && count > MOST_LINES && !reasonGiven(lines))
    found.push(
      `${path}: ${count} lines; expected at most ${MOST_LINES}, or a word at the top why it is over ${MOST_LINES} lines`,
    );
  return found;
}

/** Whether the comment that opens a file speaks of its length. */
function reasonGiven(lines) {
  const end = lines.findIndex((line) => !/^(#!|\/\/|\/\*|\s\*)/.test(line));
  return lines.slice(0, Math.max(end, 1)).join(" ").includes(`${MOST_LINES} lines`);
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const root = fileURLToPath(new URL("..", import.meta.url));
  const paths = execFileSync("git", ["ls-files", "-z"], { cwd: root, encoding: "utf8" })
    .split("\0")
    .filter((path) => path !== "");
  const files = paths.filter((path) => statSync(join(root, path), { throwIfNoEntry: false })?.isFile());
  const all = files.flatMap((path) => complaints(path, readFileSync(join(root, path))));
  for (const complaint of all) console.error(complaint);
  if (files.length === 0) console.error("expected tracked files, found none");
  process.exitCode = all.length > 0 || files.length === 0 ? 1 : 0;
}
