/** Ranks as tests run them: threads of this process, or processes of every mpirun that is installed. Nothing outlives its time limit. */

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { runRanks, type RunRanksOptions } from "#sparsegate/comm/index.js";

export const program = (name: string): URL => new URL(`programs/${name}.mjs`, import.meta.url);

export interface Ended {
  /** What the ranks' programs returned, in rank order; undefined where some did not come to their end. */
  results: unknown[] | undefined;
  /** All that was written, and the message of the launcher's error. */
  text: string;
  ms: number;
}

/** Runs a program in threads. */
export async function threads(size: number, name: string, data: unknown, options: RunRanksOptions = {}): Promise<Ended> {
  let text = "";
  const begun = performance.now();
  const ended = (results: unknown[] | undefined): Ended => ({ results, text, ms: performance.now() - begun });
  try {
    return ended(await runRanks(size, program(name), data, { onOutput: (_rank, _stream, words) => (text += words), ...options }));
  } catch (error) {
    text += `${(error as Error).name}: ${(error as Error).message}\n`;
    return ended(undefined);
  }
}

export interface Mpirun {
  name: "Open MPI" | "MPICH";
  command: string;
  args: string[];
  /** The other vendor's library, which must not be taken for this one's. */
  library: string;
}

/** The mpiruns of this machine. Those that are missing are named on stderr. */
export const mpiruns: Mpirun[] = findMpiruns();

function findMpiruns(): Mpirun[] {
  const found = new Map<string, Mpirun>();
  for (const command of ["mpirun", "mpirun.openmpi", "mpirun.mpich", "mpiexec.hydra"]) {
    const { stdout, stderr, status } = spawnSync(command, ["--version"], { encoding: "utf8" });
    if (status !== 0) continue;
    const said = `${stdout}${stderr}`;
    if (said.includes("Open MPI")) found.set("Open MPI", { name: "Open MPI", command, args: ["--oversubscribe"], library: "libmpi.so.40", ...found.get("Open MPI") });
    else if (/hydra/i.test(said)) found.set("MPICH", { name: "MPICH", command, args: [], library: "libmpich.so.12", ...found.get("MPICH") });
  }
  for (const name of ["Open MPI", "MPICH"]) if (!found.has(name)) console.warn(`${name} is not installed (no mpirun of its own): its tests are skipped.`);
  return [...found.values()];
}

/** For root, and for more ranks than cores. */
export const MPI_ENV = { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1", OMPI_MCA_rmaps_base_oversubscribe: "1", OMPI_MCA_orte_base_help_aggregate: "0" };

export interface MpiEnded extends Ended {
  code: number | null;
  /** Processes of ranks that were still there a second after mpirun had ended. */
  left: number[];
}

/** Runs a program under mpirun. What is not over after the time is killed, and so is what is left of it. */
export async function mpi(mpirun: Mpirun, size: number, name: string, data: unknown, { options = {}, env = {}, seconds = 60 }: { options?: object; env?: NodeJS.ProcessEnv; seconds?: number } = {}): Promise<MpiEnded> {
  const folder = mkdtempSync(join(tmpdir(), "sparsegate-mpi-"));
  const args = [...mpirun.args, "-n", String(size), process.execPath, fileURLToPath(program("mpi")), folder, program(name).href, JSON.stringify(data), JSON.stringify(options)];
  const begun = performance.now();
  const child = spawn(mpirun.command, args, { cwd: fileURLToPath(new URL("../..", import.meta.url)), env: { ...process.env, ...MPI_ENV, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  child.stdout.on("data", (words: Buffer) => (text += String(words)));
  child.stderr.on("data", (words: Buffer) => (text += String(words)));
  const pids = (): number[] => readdirSync(folder).filter((file) => file.endsWith(".pid")).map((file) => Number.parseInt(file, 10));
  const kill = setTimeout(() => {
    text += `killed after ${seconds} s\n`;
    for (const pid of [child.pid!, ...pids()]) signal(pid, "SIGKILL");
  }, 1000 * seconds);
  try {
    const code = await new Promise<number | null>((resolve, reject) => {
      child.on("error", reject);
      child.on("close", resolve);
    });
    clearTimeout(kill);
    const ms = performance.now() - begun;
    let left = pids().filter(lives);
    for (const until = Date.now() + 1000; left.length > 0 && Date.now() < until; left = left.filter(lives)) await new Promise((resolve) => setTimeout(resolve, 20));
    for (const pid of left) signal(pid, "SIGKILL");
    const names = Array.from({ length: size }, (_, rank) => `${rank}.json`);
    const whole = names.every((file) => readdirSync(folder).includes(file));
    return { results: whole ? names.map((file) => JSON.parse(readFileSync(join(folder, file), "utf8")) as unknown) : undefined, text, ms, code, left };
  } finally {
    clearTimeout(kill);
    rmSync(folder, { recursive: true, force: true });
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // It has ended.
  }
}

/** Whether a process does anything yet: one that has ended may stand in the system's list until somebody asks for its exit code. */
function lives(pid: number): boolean {
  try {
    return !/^State:\s*[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
