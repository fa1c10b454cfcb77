// Writes the demo's text into dist/: the messages of the TypeScript 5 compiler in English and thirteen other languages, taken from the development
// dependency `typescript-messages`, in one compressed file, with the licence they come under and what was changed beside it (Apache-2.0, section 4).
// src/text/messages.ts reads it.
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants } from "node:zlib";

/** An entry of the compiler's English table: `diag` with code, category, key and text, the text in any of the three quotes; 4000 is written 4e3. */
const ENTRY = /\bdiag\(\s*[\de]+,\s*\d+ \/\* \w+ \*\/,\s*"(\w+)",\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`)/g;

/**
 * The messages of a TypeScript 5 package: `keys` in the order of the English table, and for each language as many texts, "" where a message is not
 * translated. A text is on one line and keeps its {0} placeholders.
 */
export function collectMessages(folder) {
  const lib = join(folder, "lib");
  const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const tables = new Map([["en", new Map()]]);
  for (const [, key, literal] of readFileSync(join(lib, "_tsc.js"), "utf8").matchAll(ENTRY))
    tables.get("en").set(key, unquote(literal));
  for (const language of readdirSync(lib).sort()) {
    const file = join(lib, language, "diagnosticMessages.generated.json");
    if (existsSync(file)) tables.set(language, new Map(Object.entries(JSON.parse(readFileSync(file, "utf8")))));
  }
  const keys = [...new Set([...tables.values()].flatMap((table) => [...table.keys()]))];
  const oneLine = (text) => text.replace(/\s+/gu, " ").trim();
  const texts = Object.fromEntries(
    [...tables].map(([language, table]) => [language, keys.map((key) => oneLine(table.get(key) ?? ""))]),
  );
  return { source: `typescript ${version}`, keys, texts };
}

/** The text of a JavaScript string literal without its quotes and escapes. */
function unquote(literal) {
  return literal.slice(1, -1).replace(/\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([^]))/g, (_, four, two, one) => {
    if (one === undefined) return String.fromCharCode(parseInt(four ?? two, 16));
    return { n: "\n", r: "\r", t: "\t" }[one] ?? one;
  });
}

/** Writes messages.json.br, LICENSE.txt and NOTICE.txt into the folder `out`. */
export function writeMessages(folder, out) {
  const messages = collectMessages(folder);
  const languages = Object.keys(messages.texts).length;
  const english = messages.texts.en.filter((text) => text !== "").length;
  if (english < 2000 || languages < 14)
    throw new Error(`messages: expected 2000 messages in 14 languages in ${folder}, got ${english} in ${languages}.`);
  mkdirSync(out, { recursive: true });
  // Quality 11 takes seconds and saves a fourteenth.
  writeFileSync(
    join(out, "messages.json.br"),
    brotliCompressSync(JSON.stringify(messages), { params: { [constants.BROTLI_PARAM_QUALITY]: 9 } }),
  );
  writeFileSync(join(out, "LICENSE.txt"), readFileSync(join(folder, "LICENSE.txt")));
  // The copyright notice as the compiler's own file has it.
  const copyright = /^Copyright \(c\).*$/m.exec(readFileSync(join(folder, "lib", "_tsc.js"), "utf8"))?.[0];
  if (copyright === undefined) throw new Error(`messages: expected a copyright notice in ${folder}/lib/_tsc.js, found none.`);
  writeFileSync(
    join(out, "NOTICE.txt"),
    `messages.json.br holds the diagnostic messages of the TypeScript compiler in ${languages} languages, from the npm package ${messages.source}
(https://github.com/microsoft/TypeScript).

${copyright}
Licensed under the Apache License, Version 2.0, in LICENSE.txt beside this file.

Changed: the messages alone were taken out of lib/_tsc.js and lib/*/diagnosticMessages.generated.json, white space within a message was made single
spaces, and all were gathered in one compressed file. No other part of TypeScript is included.
`,
  );
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const root = fileURLToPath(new URL("..", import.meta.url));
  writeMessages(`${root}node_modules/typescript-messages`, `${root}dist/text/typescript-messages`);
}
