/** Importance and load as training sees them (Shazeer et al. 2017, section 4 and App. A): with noise, over so many rows that one batch's chance does not count. */

import type { LanguageModel } from "../../models/language-model.js";
import { balanceStatistics, type BalanceStatistics } from "../../moe/statistics.js";
import type { LstmState } from "../../tensor/ops/lstm.js";
import { scope } from "../../tensor/scope.js";
import { noGrad } from "../../tensor/tape.js";
import type { TrainConfig } from "../config.js";
import { batchTensors, carryStates } from "../evaluate.js";
import { batchStream, type Datasets } from "../setup.js";

/**
 * Figures of Importance(X) and Load(X), X being the rows of `batches` batches of the training text, in an order that training did not see. Load is the smooth
 * estimate that the load loss is made of, where the gate has one. The model is left as it is.
 */
export function trainingBalance(
  model: LanguageModel,
  { train }: Datasets,
  config: TrainConfig,
  batches: number,
): BalanceStatistics {
  const E = model.moe?.numExperts ?? 0;
  const [importance, load] = [new Float64Array(E), new Float64Array(E)];
  const seed = config.seed + 1;
  const stream = batchStream({ ...config, seed }, train);
  let states: LstmState[] | undefined;
  for (let step = 0; step < batches; step++) {
    noGrad(() =>
      scope(() => {
        const batch = stream.next();
        const { inputs, resets } = batchTensors(batch);
        const out = model.hidden(inputs, { training: true, seed, step, firstRow: batch.firstRow }, states, resets);
        states = carryStates(states, out.states);
        const [i, l] = [out.moe!.importance.dataSync(), out.moe!.load.dataSync()];
        for (let e = 0; e < E; e++) {
          importance[e]! += i[e]!;
          load[e]! += l[e]!;
        }
      }),
    );
  }
  carryStates(states, []);
  return balanceStatistics(importance, load);
}
