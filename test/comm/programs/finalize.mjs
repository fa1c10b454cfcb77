/** A process whose MPI_Finalize does not return, without an MPI: `node finalize.mjs WHEN`, which is "dispose" or "at the end". */

import { MpiTransport } from "#sparsegate/comm/mpi/transport.js";
import { sleep } from "./data.mjs";

let out;
const mpi = {
  address: (array) => ((out ??= array), 0),
  intAt: () => 2 ** 30,
  status: { words: 6 },
  requestWords: 2,
  call: {
    MPI_Comm_get_attr: () => ((out[0] = 1), 0),
    // As a call of the library: it gives nobody else a turn.
    MPI_Finalize: () => (sleep(15_000), 0),
  },
};
const transport = new MpiTransport(mpi, 0, 1, 4, { pieceBytes: 64, finalizeSeconds: 0.2, oversubscribed: false });
if (process.argv[2] === "dispose") transport.close();
else process.on("exit", () => transport.close(true));
