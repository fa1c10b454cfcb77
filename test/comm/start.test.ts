/** How a program becomes ranks: what is found in the environment, what is missing, and what MPI's libraries must not do to a Node process. */

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { mpiStart } from "#sparsegate/comm/mpi/environment.js";
import { mpi, mpiruns, program } from "./helpers.js";
import { code } from "./programs/machine.mjs";

const NO_KOFFI = `data:text/javascript,${encodeURIComponent(`import Module from "node:module";
const resolve = Module._resolveFilename;
Module._resolveFilename = function (name, ...rest) {
  if (name === "koffi") throw Object.assign(new Error("Cannot find module 'koffi'"), { code: "MODULE_NOT_FOUND" });
  return resolve.call(this, name, ...rest);
};`)}`;

/** Runs a program that asks for its communicator, in an environment as mpirun leaves it. */
function script(env: NodeJS.ProcessEnv, options: string[] = []): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [...options, fileURLToPath(program("script")), "1"], { encoding: "utf8", env: { ...process.env, ...env }, timeout: 20_000 });
}
const OPEN_MPI = { OMPI_COMM_WORLD_SIZE: "2", OMPI_COMM_WORLD_RANK: "0" };
const MPICH = { PMI_SIZE: "2", PMI_RANK: "0" };

describe("the environment", () => {
  test("tells whose mpirun it was, and how many ranks there are, here and in all", () => {
    expect(mpiStart({ OMPI_COMM_WORLD_SIZE: "8", OMPI_COMM_WORLD_LOCAL_SIZE: "2", PMIX_RANK: "3" })).toEqual({ vendor: "Open MPI", size: 8, localSize: 2 });
    expect(mpiStart({ PMI_SIZE: "4", PMI_RANK: "1", MPI_LOCALNRANKS: "4" })).toEqual({ vendor: "MPICH", size: 4, localSize: 4 });
    expect(mpiStart({ PMIX_RANK: "0" })).toEqual({ vendor: "Open MPI", size: undefined, localSize: undefined });
    expect(mpiStart({ PATH: "/bin", SLURM_NTASKS: "4" })).toBeUndefined();
  });

  test("without mpirun makes a program one rank alone", () => {
    expect(script({})).toMatchObject({ status: 0, stdout: "alone 0: 1\n", stderr: "" });
  });

  test.each(["soon", "-1", "", "Infinity"])("with SPARSEGATE_COMM_TIMEOUT=%j is refused", (value) => {
    const { status, stderr } = script({ SPARSEGATE_COMM_TIMEOUT: value });
    expect(stderr).toContain(`SPARSEGATE_COMM_TIMEOUT: expected seconds, 0 for ever, got ${JSON.stringify(value)}.`);
    expect(status).toBe(1);
  });
});

describe("a process that mpirun started", () => {
  test("says that it needs koffi where there is none", () => {
    const { status, stderr } = script(OPEN_MPI, ["--import", NO_KOFFI]);
    expect(stderr).toContain("communicator: expected the optional package koffi, by which MPI is called in a process that mpirun (Open MPI) started, got none. Run npm install koffi.");
    expect(status).toBe(1);
  });

  test("says which library it looked for where there is none, and what to install", () => {
    for (const [env, vendor, hint] of [[OPEN_MPI, "Open MPI", "libopenmpi3"], [MPICH, "MPICH", "libmpich12"]] as const) {
      const { status, stderr } = script({ ...env, SPARSEGATE_MPI: "/nowhere/libmpi.so" });
      expect(stderr).toContain(`communicator: expected the MPI library of the mpirun that started this process (${vendor}), got none (/nowhere/libmpi.so: `);
      expect(stderr).toContain(hint);
      expect(stderr).toContain("or set SPARSEGATE_MPI to its path.");
      expect(status).toBe(1);
    }
  });

  test("refuses a library that is no MPI", () => {
    const { status, stderr } = script({ ...OPEN_MPI, SPARSEGATE_MPI: "libm.so.6" });
    expect(stderr).toMatch(/got none \(libm\.so\.6: .*MPI_/);
    expect(status).toBe(1);
  });

  test.each(mpiruns)("refuses the library of $name where another vendor's mpirun started it", ({ name, library }) => {
    const other = name === "Open MPI" ? MPICH : OPEN_MPI;
    const { status, stderr } = script({ ...other, SPARSEGATE_MPI: library });
    expect(stderr).toContain(`communicator: expected the MPI library of the mpirun that started this process (${name === "Open MPI" ? "MPICH" : "Open MPI"}), got another vendor's (${library}: it is ${name}`);
    expect(status).toBe(1);
  });

  test.each(mpiruns.filter(({ name }) => name === "Open MPI"))("refuses a library that sees fewer ranks than mpirun started ($name)", ({ library }) => {
    // Nobody has started a second rank: the library takes this one for the whole program.
    const { status, stderr } = script({ ...OPEN_MPI, SPARSEGATE_MPI: library });
    expect(stderr).toMatch(/communicator: expected 2 ranks, as mpirun \(Open MPI\) started, got 1 from Open MPI .* Is that library another one than mpirun's\? Set SPARSEGATE_MPI/);
    expect(status).toBe(1);
  });
});

describe.each(mpiruns)("MPI ($name)", (mpirun) => {
  interface Found { rank: number; trap: string; code: string[]; threads: string; cores: number; affinity: number }

  test("leaves V8 its signal for accesses beyond a memory, and the system's functions as they are; cores are shared out", async () => {
    const { results, text } = await mpi(mpirun, 2, "machine", {}, { env: { SPARSEGATE_THREADS: undefined } });
    expect(results, text).toBeDefined();
    for (const { trap, code: found, threads, cores, affinity } of results as Found[]) {
      expect(trap).toMatch(/RuntimeError: memory access out of bounds/);
      expect(found).toEqual(code());
      expect(Number(threads)).toBe(Math.max(1, Math.min(affinity, Math.floor(cores / 2))));
    }
    expect(text).toContain("stdout of rank 1");
  });

  test("lets a program go on after dispose for longer than MPI_Finalize may take, and dispose of parts then", async () => {
    const { results, text, code } = await mpi(mpirun, 2, "dispose", { ms: 1500 }, { options: { finalizeSeconds: 0.3 } });
    expect(results, text).toEqual(["has come to its end", "has come to its end"]);
    expect([code, text]).toEqual([0, ""]);
  });
});

test.each([
  // Nothing is lost at the end; what comes after dispose is.
  { when: "at the end", status: 0, says: "all ranks had come to their end, and this one ends without it" },
  { when: "dispose", status: 1, says: "dispose cannot return, and this rank ends before it has come to its end" },
])("a process whose MPI_Finalize does not return ($when) ends by itself, and says so", ({ when, status, says }) => {
  const begun = performance.now();
  const stderr = `sparsegate: rank 1 of 4: MPI_Finalize did not return within 0.2 s; ${says}\n`;
  expect(spawnSync(process.execPath, [fileURLToPath(program("finalize")), when], { encoding: "utf8", timeout: 20_000 })).toMatchObject({ status, stderr });
  expect(performance.now() - begun).toBeLessThan(10_000);
});
