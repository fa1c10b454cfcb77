/**
 * What the documents say holds: every TypeScript example, in them and in examples/, compiles and runs, every command line has flags that exist, every link leads somewhere, and the
 * environment variables named are those that are read.
 */

import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { trainConfigSchema } from "#sparsegate/train/config.js";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Files under a folder by the end of their name, those of docs/api left out: they are generated. */
function filesUnder(folder: string, end: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .map((path) => join(folder, path))
    .filter((path) => path.endsWith(end) && !path.startsWith(join("docs", "api")));
}

const documents = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", ...filesUnder("docs", ".md")].map((path) => ({
  path,
  text: readFileSync(join(root, path), "utf8"),
}));

/** Fenced blocks of a document in one of some languages. */
function blocks(text: string, languages: readonly string[]): { line: number; code: string }[] {
  return [...text.matchAll(/^```(\w+)[^\n]*\n([^]*?)^```[ \t]*$/gm)]
    .filter(([, language]) => languages.includes(language!))
    .map((match) => ({ line: text.slice(0, match.index).split("\n").length, code: match[2]! }));
}

/** Runs node at the root of the package. */
function node(...args: string[]): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8", timeout: 170_000 });
  return { status, output: stdout + stderr };
}

describe("TypeScript examples", () => {
  const printed = documents.flatMap(({ path, text }) =>
    blocks(text, ["ts", "typescript"]).map(({ line, code }) => ({
      title: `${path}, line ${line}`,
      name: `${path.replace(/\W/g, "-")}-${line}`,
      code,
    })),
  );
  const files = filesUnder("examples", ".ts").map((path) => ({
    title: path,
    name: path.replace(/\W/g, "-"),
    code: readFileSync(join(root, path), "utf8"),
  }));
  const examples = [...printed, ...files];
  // The package can import itself by name only from a file inside it, and outside node_modules.
  let folder: string;
  let compiled: { status: number | null; output: string };
  beforeAll(() => {
    folder = mkdtempSync(join(root, "dist", ".examples-"));
    for (const { name, code } of examples) writeFileSync(join(folder, `${name}.ts`), `${code}\nexport {};\n`);
    const flags = "--ignoreConfig --strict --skipLibCheck --target es2022 --module nodenext --types node".split(" ");
    compiled = node("node_modules/typescript/bin/tsc", ...flags, ...examples.map(({ name }) => join(folder, `${name}.ts`)));
  }, 120_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test("in examples/ are all linked from README.md", () => {
    expect(files.map(({ title }) => title).filter((path) => !documents[0]!.text.includes(`](${path})`))).toEqual([]);
  });

  test("begin in README.md with one that imports sparsegate", () => {
    expect(blocks(documents[0]!.text, ["ts"])[0]!.code).toContain('from "sparsegate"');
  });

  for (const { title, name } of examples) {
    test(`compile and run: ${title}`, { timeout: 180_000 }, () => {
      const errors = compiled.output.split("\n").filter((line) => line.includes(`${name}.ts`));
      expect(errors).toEqual([]);
      expect(node(join(folder, `${name}.js`))).toMatchObject({ status: 0 });
    });
  }
});

interface Help {
  /** Flag -> whether it takes a value. */
  flags: Map<string, boolean>;
  /** Arguments needed, and allowed. */
  least: number;
  most: number;
}

/** What `sparsegate <command> --help` says can be given. */
function helpOf(command: string): Help {
  const { output } = node("dist/cli/main.js", command, "--help");
  const flags = new Map(
    [...output.matchAll(/^ {2}(?:-\w, )?(--[\w-]+)(?: ([<[]))?/gm)].map(([, flag, value]) => [flag!, value !== undefined]),
  );
  const usage = /^Usage: sparsegate \S+ \[options\](.*)$/m.exec(output)?.[1] ?? "";
  return { flags, least: usage.match(/</g)?.length ?? 0, most: usage.match(/[<[]/g)?.length ?? 0 };
}

const commands = new Map(
  [...node("dist/cli/main.js", "--help").output.matchAll(/^ {2}([a-z]+) .*/gm)].map(([, name]) => [
    name!,
    undefined as Help | undefined,
  ]),
);
const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { scripts: Record<string, string> };

/** Benchmarks by name, as `npm run bench` lists them. */
const benchmarks = new Map(
  [...node("bench/run.mjs").output.matchAll(/^ {2}([a-z][\w-]*) .*/gm)].map(([, name]) => [name!, undefined as Help | undefined]),
);

/** What `npm run bench -- <name> --help` says can be given. */
function helpOfBenchmark(name: string): Help {
  const { output } = node("bench/run.mjs", name, "--help");
  const flags = [...output.matchAll(/^ {2}(--[\w-]+)( [A-Z]+)?/gm)];
  return { flags: new Map(flags.map(([, flag, value]) => [flag!, value !== undefined])), least: 0, most: 0 };
}

/** What is wrong with what follows `npm run bench --`. */
function benchProblem([name, ...rest]: readonly string[]): string {
  if (name === undefined || name === "--help") return "";
  if (!benchmarks.has(name)) return `no benchmark ${name}`;
  const help = benchmarks.get(name) ?? helpOfBenchmark(name);
  benchmarks.set(name, help);
  return flagsProblem(name, help, rest);
}

/** What is wrong with a command line, "" when nothing is. Only sparsegate's and npm's own are looked at. */
function problem(line: string): string {
  const words = [...line.matchAll(/"[^"]*"|'[^']*'|[^\s"']+/g)].map(([word]) => word);
  while (/^(\w+=\S*|npx)$/.test(words[0] ?? "")) words.shift();
  if (words[0] === "npm") {
    if (words[1] === "run" && words[2] === "bench") return benchProblem(words.slice(words[3] === "--" ? 4 : 3));
    if (words[1] === "start" && words[2] === "--") return problem(["sparsegate demo", ...words.slice(3)].join(" "));
    const script = words[1] === "run" ? words[2] : ["start", "test"].includes(words[1]!) ? words[1] : undefined;
    return script === undefined || script in scripts ? "" : `no script ${script}`;
  }
  if (words[0] !== "sparsegate") return "";
  const [, command, ...rest] = words;
  if (command === undefined || command.startsWith("-")) return "";
  if (!commands.has(command)) return `no command ${command}`;
  const help = commands.get(command) ?? helpOf(command);
  commands.set(command, help);
  return flagsProblem(command, help, rest);
}

/** What is wrong with the flags and arguments of a command. */
function flagsProblem(command: string, help: Help, rest: readonly string[]): string {
  let given = 0;
  for (let i = 0; i < rest.length; i++) {
    const [flag, value] = rest[i]!.split("=", 2);
    if (!flag!.startsWith("--")) {
      given++;
      continue;
    }
    const takesValue = help.flags.get(flag!);
    if (flag === "--help") continue;
    if (takesValue === undefined) return `${command} has no ${flag}`;
    if (takesValue && value === undefined && rest[i + 1] !== undefined && !rest[i + 1]!.startsWith("--")) i++;
  }
  return given < help.least || given > help.most ? `${command} takes ${help.least} to ${help.most} arguments, not ${given}` : "";
}

/** The command lines of a document: those of its shell blocks, and code in running text that begins with the program's name. */
function commandLines(text: string): string[] {
  const shell = blocks(text, ["sh", "bash", "shell"]).flatMap(({ code }) => code.replace(/\\\n\s*/g, " ").split("\n"));
  const inline = [...text.matchAll(/`((?:npx )?sparsegate [a-z][^`\n]*|npm run [^`\n]*)`/g)].map(([, code]) => code!);
  // Without comments, and files that a command reads from or writes to.
  const plain = shell.map((line) => line.replace(/(^|\s)#.*$/, "").replace(/ [<>] \S+/g, ""));
  return [...plain.flatMap((line) => line.split("&&")), ...inline].map((line) => line.trim());
}

describe("command lines", () => {
  for (const { path, text } of documents) {
    const lines = commandLines(text).filter((line) => /\b(sparsegate|npm)\b/.test(line));
    if (lines.length === 0) continue;
    test(`of ${path} have commands and flags that exist`, () => {
      expect(lines.map((line) => [line, problem(line)]).filter(([, what]) => what !== "")).toEqual([]);
    });
  }

  test("are found wrong when they are", () => {
    expect(problem("sparsegate train --train a.txt --model=MoE-4 --no-progress")).toBe("");
    expect(problem("SPARSEGATE_BLAS=none npx sparsegate eval run --data x.txt")).toBe("");
    expect(problem("npx sparsegate train --num-expert 4")).toBe("train has no --num-expert");
    expect(problem("sparsegate trian")).toBe("no command trian");
    expect(problem("sparsegate eval")).toMatch(/^eval takes 1 to 1 arguments, not 0/);
    expect(problem("npm start -- --quik")).toBe("demo has no --quik");
    expect(problem("npm run nothing")).toBe("no script nothing");
    expect(problem("npm run bench -- moe-layer --rounds 3 --json")).toBe("");
    expect(problem("npm run bench -- moe-layr")).toBe("no benchmark moe-layr");
    expect(problem("npm run bench -- moe-layer --round 3")).toBe("moe-layer has no --round");
  });
});

describe("benchmarks", () => {
  const { text } = documents.find(({ path }) => path === join("docs", "benchmarks.md"))!;

  test("are all in docs/benchmarks.md", () => {
    expect(benchmarks.size).toBeGreaterThan(0);
    expect([...benchmarks.keys()].filter((name) => !text.includes(`| \`${name}\` |`))).toEqual([]);
  });

  for (const name of benchmarks.keys()) {
    test(`say what each option of ${name} means`, () => {
      const { status, output } = node("bench/run.mjs", name, "--help");
      expect(status).toBe(0);
      expect(output.split("\n").filter((line) => /^ {2}--/.test(line) && !/^ {2}--[\w-]+( [A-Z]+)? +\w/.test(line))).toEqual([]);
    });
  }
});

describe("links", () => {
  /** A heading's anchor as GitHub makes it. */
  const anchor = (heading: string): string =>
    heading
      .trim()
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .replace(/ /g, "-");
  const anchors = (text: string): string[] => [...text.matchAll(/^#+ (.+)$/gm)].map(([, heading]) => anchor(heading!));

  for (const { path, text } of documents) {
    test(`of ${path} lead somewhere`, () => {
      const prose = text.replace(/^```[^]*?^```/gm, "").replace(/`[^`\n]*`/g, "");
      const broken = [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
        .map(([, target]) => target!)
        .filter((target) => !/^[a-z]+:/.test(target))
        .filter((target) => {
          const [file, fragment] = target.split("#", 2);
          const to = file === "" ? join(root, path) : join(root, dirname(path), file!);
          if (!existsSync(to)) return true;
          return fragment !== undefined && !anchors(readFileSync(to, "utf8")).includes(fragment);
        });
      expect(broken).toEqual([]);
    });
  }
});

describe("environment variables", () => {
  const names = (text: string): string[] => text.match(/\bSPARSEGATE_[A-Z_]+/g) ?? [];
  const read = new Set(
    [...filesUnder("src", ".ts"), "vitest.config.ts"].flatMap((path) => names(readFileSync(join(root, path), "utf8"))),
  );

  test("that the sources name are in README.md, but for those of the tests", () => {
    const told = new Set(names(documents[0]!.text));
    expect([...read].filter((name) => !told.has(name) && name !== "SPARSEGATE_NO_BUILD")).toEqual([]);
  });

  test("that a document names are read", () => {
    const options = Object.keys(trainConfigSchema.shape).map((key) => `SPARSEGATE_TRAIN_${key.toUpperCase()}`);
    const known = new Set([...read, ...options]);
    for (const { path, text } of documents) expect([path, names(text).filter((name) => !known.has(name))]).toEqual([path, []]);
  });
});

describe("code that a document names", () => {
  // Packages that building the API's documentation installed have words of their own.
  const sources = [
    ...filesUnder("src", ".ts"),
    ...filesUnder("scripts", ".mjs").filter((path) => !path.includes("node_modules")),
  ];
  const words = new Set(sources.flatMap((path) => readFileSync(join(root, path), "utf8").match(/[A-Za-z_$][\w$]*/g) ?? []));

  for (const { path, text } of documents) {
    const code = [...text.replace(/^```[^]*?^```/gm, "").matchAll(/`([^`\n]+)`/g)].map(([, span]) => span!);
    test(`in ${path} exists`, () => {
      const files = code.filter((span) => /^[\w./-]+\.(ts|mjs)$/.test(span) && span.includes("/"));
      expect(files.filter((file) => ![file, `src/${file}`].some((place) => existsSync(join(root, place))))).toEqual([]);
      // camelCase and Class.method: plain words may be anything.
      const names = code.filter(
        (span) =>
          /^[A-Za-z][\w.]*$/.test(span) && /[a-z][A-Z]|_[A-Z]|^[A-Z]\w*[.a-z]/.test(span) && !/\.(ts|mjs|md|json)$/.test(span),
      );
      expect(names.filter((name) => !name.split(".").every((part) => words.has(part)))).toEqual([]);
    });
  }
});
