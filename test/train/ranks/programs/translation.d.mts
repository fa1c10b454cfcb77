import type { Communicator } from "#sparsegate/comm/index.js";

export interface Trained {
  steps: { loss: number; auxLoss: number; gradNorm: number; load: Record<string, number[]>; tokens: number }[];
  evaluations: { loss: number; bleu: number; translations: string[][] }[];
  taken: number;
  finished: boolean;
  parameters: number;
}

export default function run(comm: Communicator | undefined, data: object): Promise<Trained>;
