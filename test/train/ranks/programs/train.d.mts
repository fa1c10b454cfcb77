import type { Communicator } from "#sparsegate/comm/index.js";

export interface Trained {
  steps: { loss: number; auxLoss: number; gradNorm: number; load?: number[]; sent: number }[];
  evaluations: { loss: number; tokens: number; load: number[] }[];
  taken: number;
  finished: boolean;
  /** Of this rank. */
  parameters: number;
  test?: number;
}

export default function run(comm: Communicator | undefined, data: object): Promise<Trained>;
