/** What mpirun leaves in the environment of the processes it starts. */

export interface MpiStart {
  /** Whose mpirun it was. Others than Open MPI's speak the protocol of MPICH (Hydra, Intel MPI, MVAPICH, Slurm's srun). */
  vendor: "Open MPI" | "MPICH";
  /** Ranks of the whole program; undefined where the environment does not tell. */
  size: number | undefined;
  /** Ranks on this host; undefined where the environment does not tell. */
  localSize: number | undefined;
}

/** @returns undefined in a process that mpirun has not started */
export function mpiStart(env: NodeJS.ProcessEnv = process.env): MpiStart | undefined {
  const number = (...names: string[]): number | undefined => {
    const text = names.map((name) => env[name]).find((value) => value !== undefined);
    return text === undefined ? undefined : Number(text);
  };
  const localSize = number("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS");
  if (env["OMPI_COMM_WORLD_SIZE"] !== undefined) return { vendor: "Open MPI", size: number("OMPI_COMM_WORLD_SIZE"), localSize };
  if (env["PMI_SIZE"] !== undefined || env["PMI_RANK"] !== undefined) return { vendor: "MPICH", size: number("PMI_SIZE"), localSize };
  // Started by srun alone, Open MPI has nothing but this.
  if (env["PMIX_RANK"] !== undefined) return { vendor: "Open MPI", size: undefined, localSize };
  return undefined;
}
