/** Runs a rank's program under mpirun, as `runRanks` does in threads: `node mpi.mjs FOLDER PROGRAM DATA OPTIONS`, the last two as JSON. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { communicator } from "#sparsegate/comm/index.js";

const [folder, program, data, options] = process.argv.slice(2);
// By these the tests see that no process stays behind.
writeFileSync(join(folder, `${process.pid}.pid`), "");
const comm = await communicator(JSON.parse(options));
const { default: main } = await import(program);
const result = await main(comm, JSON.parse(data));
writeFileSync(join(folder, `${comm.rank}.json`), JSON.stringify(result ?? null));
