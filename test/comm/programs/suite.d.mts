import type { Communicator } from "#sparsegate/comm/index.js";

export const checks: Record<string, (comm: Communicator, options: { most: number }) => unknown>;
export default function main(comm: Communicator, options?: { most?: number }): Record<string, unknown>;
