/** A small real corpus that npm brings: the messages of the TypeScript 5 compiler in English and thirteen other languages. */

import { existsSync, readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { ConfigError, FileError, expectation } from "../core/errors.js";
import { philox4x32, streamId } from "../core/random.js";

/** One message in one language. */
export interface Message {
  /** The same for all translations of a message. */
  readonly key: string;
  /** `en`, `de`, `pt-br`, and so on. */
  readonly language: string;
  /** The text on one line, with its `{0}` placeholders. */
  readonly text: string;
}

/** English table entries: a call of `diag` with code, category, key and text, on one line or several, the text in any of the three quotes; 4000 is written 4e3. */
const ENTRY = /\bdiag\(\s*[\de]+,\s*\d+ \/\* \w+ \*\/,\s*"(\w+)",\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`)/g;

/** The folder of a TypeScript 5 package, installed as `typescript-messages` or `typescript` beside sparsegate or the working directory. */
export function findMessages(): string | undefined {
  for (const from of [import.meta.url, pathToFileURL(join(process.cwd(), "package.json")).href]) {
    const require = createRequire(from);
    for (const name of ["typescript-messages", "typescript"]) {
      try {
        const file = require.resolve(`${name}/package.json`);
        const { version } = JSON.parse(readFileSync(file, "utf8")) as { version?: unknown };
        if (typeof version === "string" && version.startsWith("5.")) return dirname(file);
      } catch {
        // Not installed there: the next place may have it.
      }
    }
  }
  return undefined;
}

/** All messages of a TypeScript 5 package: English first, then the languages by name, each in the order of its table. */
export function loadMessages(folder: string): Message[] {
  const lib = join(folder, "lib");
  // Since 5.3 the compiler of the command line is in _tsc.js; before, in tsc.js.
  const compiler = ["_tsc.js", "tsc.js"].map((name) => join(lib, name)).find((path) => existsSync(path));
  if (compiler === undefined) throw new FileError(expectation(folder, "a TypeScript 5 package with lib/_tsc.js", "none", "Install typescript@5."));
  const messages: Message[] = [];
  const push = (key: string, language: string, text: string): void => {
    const line = text.replace(/\s+/gu, " ").trim();
    if (line !== "") messages.push({ key, language, text: line });
  };
  for (const [, key, text] of readFileSync(compiler, "utf8").matchAll(ENTRY)) push(key, "en", unquote(text));
  if (messages.length === 0) throw new FileError(expectation(compiler, "a table of messages", "none", "Install typescript@5.9.3."));
  for (const language of readdirSync(lib).sort()) {
    const file = join(lib, language, "diagnosticMessages.generated.json");
    if (!existsSync(file)) continue;
    let table: Record<string, string>;
    try {
      table = JSON.parse(readFileSync(file, "utf8")) as Record<string, string>;
    } catch (cause) {
      throw new FileError(expectation(file, "JSON", (cause as Error).message), { cause });
    }
    for (const [key, text] of Object.entries(table)) push(key, language, text);
  }
  return messages;
}

/** The text of a JavaScript string literal without its quotes and escapes. */
function unquote(literal: string): string {
  return literal.slice(1, -1).replace(/\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([^]))/g, (_, four?: string, two?: string, one?: string) => {
    if (one === undefined) return String.fromCharCode(parseInt(four ?? two ?? "", 16));
    return { n: "\n", r: "\r", t: "\t" }[one] ?? one;
  });
}

/** Messages in three parts. */
export interface MessageSplit {
  readonly train: Message[];
  readonly valid: Message[];
  readonly test: Message[];
}

/** Splits by a hash of the key, so that a message and all its translations are in one part; shares are of keys, and approximate. */
export function splitMessages(
  messages: readonly Message[],
  { seed, validShare, testShare }: { readonly seed: number; readonly validShare: number; readonly testShare: number },
): MessageSplit {
  if (!(validShare >= 0 && testShare >= 0 && validShare + testShare < 1)) {
    throw new ConfigError(expectation("validShare and testShare", "shares from 0 that leave some for training", [validShare, testShare]));
  }
  const split: MessageSplit = { train: [], valid: [], test: [] };
  for (const message of messages) {
    const [word] = philox4x32([streamId("split", message.key), 0, 0, 0], [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0]);
    const place = word / 2 ** 32;
    const part = place < testShare ? split.test : place < testShare + validShare ? split.valid : split.train;
    part.push(message);
  }
  return split;
}
