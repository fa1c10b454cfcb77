import type { Communicator } from "#sparsegate/comm/index.js";

/** What one rank has to show, or one alone. @param data of the case, see layer.test.ts */
export default function layer(comm: Communicator | undefined, data: object): unknown;
