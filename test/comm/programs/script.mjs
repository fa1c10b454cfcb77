/** A rank's program without a function: it asks for its communicator itself, and adds up its arguments over the ranks. */

import { communicator } from "#sparsegate/comm/index.js";

const comm = await communicator();
const sum = Float64Array.of(Number(process.argv[2]) * (comm.rank + 1));
comm.allReduce(sum);
if ((await communicator()) !== comm) throw new Error("expected one communicator, got two");
console.log(`${comm.kind} ${comm.rank}: ${sum[0]}`);
