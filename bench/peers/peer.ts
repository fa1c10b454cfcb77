/** Other systems on the same work: found where they are installed, installed on demand with `--install yes`, and named as missing otherwise. */

import { spawn, spawnSync, type ChildProcessByStdio } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface, type Interface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";

const scripts = fileURLToPath(new URL("../../peers/", import.meta.url));
const installed = fileURLToPath(new URL("../node_modules/", import.meta.url));

/**
 * What the caller's environment said before a backend of ours set it for itself: a peer runs as its users would run it, and OpenBLAS picks kernels by
 * itself unless they chose some.
 */
const CORE_TYPE = "OPENBLAS_CORETYPE";
const askedCoreType = process.env[CORE_TYPE];

/** PyTorch's threads wait for work at full speed for 25 ms after a pass, on the cores that the next case is to use. */
export const PAUSE_MS = 60;

/** A Python script of this folder that answers one line to each line. */
export class PythonPeer {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;
  readonly #reader: Interface;

  private constructor(child: ChildProcessByStdio<Writable, Readable, null>) {
    this.#child = child;
    this.#reader = createInterface({ input: child.stdout });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  /**
   * Starts a script; `args` begin with the number of threads.
   * @param ourKernels gives its BLAS the hint that our backend gives the same library, in place of the choice it makes by itself
   * @returns the peer and its first line, or why it is missing
   */
  static async start(
    script: string,
    module: string,
    args: readonly string[],
    install: boolean,
    { ourKernels = false }: { ourKernels?: boolean } = {},
  ): Promise<{ peer: PythonPeer; hello: string } | { missing: string }> {
    let python = findPython(module);
    if (!python && install) {
      spawnSync("apt-get", ["install", "-y", "-q", `python3-${module}`], { stdio: ["ignore", "ignore", "inherit"] });
      python = findPython(module);
    }
    if (!python)
      return { missing: `no Python with ${module} here: install python3-${module}, or pass --install yes on Debian as root` };
    const env: NodeJS.ProcessEnv = { ...process.env, OMP_NUM_THREADS: args[0], OPENBLAS_NUM_THREADS: args[0] };
    if (!ourKernels) {
      delete env[CORE_TYPE];
      if (askedCoreType !== undefined) env[CORE_TYPE] = askedCoreType;
    }
    const peer = new PythonPeer(
      spawn(python, [`${scripts}${script}`, ...args], {
        stdio: ["pipe", "pipe", "inherit"],
        env,
      }),
    );
    try {
      return { peer, hello: await peer.#next() };
    } catch {
      return { missing: `${script} ended as it began; what ${python} said stands above` };
    }
  }

  /** Sends a line and gives the number that comes back. */
  async ask(line: string): Promise<number> {
    this.#child.stdin.write(`${line}\n`);
    const answer = Number(await this.#next());
    if (!Number.isFinite(answer)) throw new Error(`the peer did not answer ${line} with a number`);
    return answer;
  }

  /** Sends an object and gives the one that comes back. */
  async tell<Answer extends object>(message: object): Promise<Answer> {
    this.#child.stdin.write(`${JSON.stringify(message)}\n`);
    return JSON.parse(await this.#next()) as Answer;
  }

  stop(): void {
    this.#child.stdin.end();
    this.#reader.close();
  }

  async #next(): Promise<string> {
    const { value, done } = (await this.#lines.next()) as IteratorResult<string, undefined>;
    if (done) throw new Error("the peer ended; its message stands above");
    return value;
  }
}

function findPython(module: string): string | undefined {
  return ["/usr/bin/python3", "python3"].find(
    (python) => spawnSync(python, ["-c", `import ${module}`], { stdio: "ignore" }).status === 0,
  );
}

/** A package of the npm registry, from a folder of its own that git ignores. @returns what `require` gives for each, or why it is missing */
export function npmPeer(
  packages: Record<string, string>,
  install: boolean,
): { modules: Record<string, unknown> } | { missing: string } {
  const names = Object.keys(packages);
  const there = (): boolean => names.every((name) => existsSync(`${installed}${name}`));
  if (!there() && install) {
    mkdirSync(installed, { recursive: true });
    const wanted = names.map((name) => `${name}@${packages[name]}`);
    spawnSync(
      "npm",
      ["install", "--no-save", "--ignore-scripts", "--prefix", fileURLToPath(new URL("..", import.meta.url)), ...wanted],
      { stdio: ["ignore", "ignore", "inherit"] },
    );
  }
  if (!there()) return { missing: `${names.join(", ")} not installed: pass --install yes` };
  const require = createRequire(installed);
  return { modules: Object.fromEntries(names.map((name) => [name, require(name) as unknown])) };
}
