/**
 * A small real corpus that comes with the package: the messages of the TypeScript 5 compiler in English and thirteen other languages.
 * The build gathers them (scripts/messages.mjs); they are under the Apache License 2.0, whose text lies beside them.
 */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { brotliDecompressSync } from "node:zlib";
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

/** As the build wrote it: for each language one text per key, "" where a message is not translated. */
interface MessageFile {
  readonly keys: readonly string[];
  readonly texts: Readonly<Record<string, readonly string[]>>;
}

/**
 * All messages: English first, then the languages by name, each in the order of the English table.
 *
 * @param path of the packed messages; by default those that came with the package
 * @throws FileError when the file is missing or damaged
 */
export function loadMessages(path = fileURLToPath(new URL("./typescript-messages/messages.json.br", import.meta.url))): Message[] {
  let file: MessageFile;
  try {
    file = JSON.parse(brotliDecompressSync(readFileSync(path)).toString("utf8")) as MessageFile;
  } catch (cause) {
    const hint = "In a checkout run npm run build; otherwise install sparsegate again.";
    throw new FileError(expectation(path, "the compiler's messages, packed", (cause as Error).message, hint), { cause });
  }
  return Object.entries(file.texts).flatMap(([language, texts]) =>
    texts.flatMap((text, i) => (text === "" ? [] : [{ key: file.keys[i]!, language, text }])),
  );
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
