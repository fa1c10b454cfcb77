/** A thread of `sparsegate train --ranks`: one rank. */

import type { Communicator } from "../comm/index.js";
import { Progress } from "../train/progress.js";
import { toldBy } from "./stop.js";
import { prepare, trainRank, type RankData } from "./train.js";

/** @returns whether the run was finished */
export default async function main(comm: Communicator, { options, stop }: RankData): Promise<boolean> {
  const signal = toldBy(stop);
  const run = prepare(options);
  const { finished } = await trainRank(run, comm, () => signal, new Progress({ enabled: run.progress && comm.rank === 0 }));
  return finished;
}
