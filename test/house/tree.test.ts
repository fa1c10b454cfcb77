/** The check of the tracked files fails when it should. */

import { describe, expect, test } from "vitest";
import { complaints } from "../../scripts/tree.mjs";

const check = (path: string, text: string): string[] => complaints(path, Buffer.from(text));
// In pieces, so that this file passes the check itself.
const home = ["", "home", "someone", "x"].join("/");

describe("the check of tracked files", () => {
  test("names the line of an absolute path of one machine, and lets relative and well-known paths pass", () => {
    expect(check("a.ts", `one\nread("${home}")\n`)).toEqual(["a.ts:2: an absolute path of one machine"]);
    expect(check("a.md", `see C:${"\\"}Users${"\\"}someone\n`)).toEqual(["a.md:1: an absolute path of one machine"]);
    expect(check("a.ts", `"./home/x" "../root/y" "/usr/lib/x" "https://example.org${home}"\n`)).toEqual([]);
  });

  test("refuses a lock file that names a registry, and an .npmrc that chooses one", () => {
    const entry = (address: string): string => `  "resolved": "${address}",\n`;
    expect(check("package-lock.json", entry("https://registry.example.org/a.tgz"))).toEqual([
      "package-lock.json:1: the address of a registry",
    ]);
    expect(check(".npmrc", `fund=false\n${"registry"}=https://registry.example.org\n`)).toEqual([
      ".npmrc:2: the address of a registry",
    ]);
    expect(check("package-lock.json", '  "version": "1.0.0",\n  "url": "https://example.org"\n')).toEqual([]);
  });

  test("refuses files over 512 KiB, binary ones too", () => {
    expect(complaints("a.bin", new Uint8Array(512 * 1024))).toEqual([]);
    expect(complaints("a.bin", new Uint8Array(512 * 1024 + 1))).toHaveLength(1);
  });

  test("refuses a source over 500 lines that does not say why at its top", () => {
    const lines = (n: number): string => "x;\n".repeat(n);
    expect(check("a.ts", lines(500))).toEqual([]);
    expect(check("a.ts", lines(501))).toHaveLength(1);
    expect(check("a.ts", `/** A list. */\n${lines(500)}// over 500 lines\n`)).toHaveLength(1);
    expect(check("a.ts", `/**\n * A list.\n * Over 500 lines, as it is one list.\n */\n${lines(500)}`)).toEqual([]);
    expect(check("a.json", lines(501))).toEqual([]);
  });
});
