/** Ranks and what they say to each other. */

export { CommError, type CommArray, type Communicator, type Counts, type Pending, type ReduceOp, type Traffic } from "./communicator.js";
export { communicator, type CommunicatorOptions } from "./open.js";
export { runRanks, type RankThread, type RunRanksOptions } from "./threads/launch.js";
