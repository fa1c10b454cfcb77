/** What a rank's process or thread finds: whether MPI has left alone what V8 needs, and what the launcher gave it. */

import { createRequire } from "node:module";
import { availableParallelism, cpus } from "node:os";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";

/** The first bytes of functions that libraries like to write over. */
export function code() {
  const koffi = createRequire(import.meta.url)("koffi");
  const libc = koffi.load("libc.so.6");
  return ["munmap", "madvise", "mremap"].map((name) => Buffer.from(koffi.decode(libc.symbol(name), "uint8_t", 12)).toString("hex"));
}

/** What a kernel says of an index far beyond the memory. */
function trap() {
  const backend = new CpuBackend({ threads: 1 });
  const [x, out] = [1, 2].map(() => backend.alloc("float32", 4096));
  const index = backend.alloc("int32", 1);
  backend.write(index, [2 ** 18 - 300]);
  try {
    backend.gatherRows(x, index, out, 1, 4096);
    return "nothing";
  } catch (error) {
    return `${error.name}: ${error.message}`;
  } finally {
    backend.dispose();
  }
}

export default function main(comm, data) {
  console.log(`stdout of rank ${comm.rank}`);
  console.error(`stderr of rank ${comm.rank}`);
  comm.barrier();
  return {
    rank: comm.rank, trap: trap(), code: process.platform === "linux" ? code() : [], threads: process.env.SPARSEGATE_THREADS,
    cores: cpus().length, affinity: availableParallelism(), argv: process.argv.slice(2), data,
  };
}
