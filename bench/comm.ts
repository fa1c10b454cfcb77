/** What it costs to send rows between ranks: in threads, under each mpirun, and by MPI's own blocking calls, which know no deadline. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { runRanks } from "#sparsegate/comm/index.js";
import { ran, round, type BenchResult, type Benchmark } from "./harness.js";
import type { Measured } from "./comm-rank.js";

const SHORT = 16;
const rank = new URL("./comm-rank.js", import.meta.url);

export const comm: Benchmark = {
  question:
    "what do all-to-all and all-reduce cost between 2 and 4 ranks, and what does asking, rather than blocking, add to MPI's own calls?",
  options: { seconds: 0.3, mostKib: 16384 },
  async run({ seconds, mostKib }): Promise<BenchResult> {
    const bytes = [SHORT, 4096, 65536, 2 ** 20, 2 ** 24].filter((size) => size <= 1024 * Number(mostKib));
    const data = { bytes, seconds: Number(seconds) };
    const rows: BenchResult["rows"] = [];
    const targets: BenchResult["targets"] = [];
    const notes: string[] = [];
    for (const size of [2, 4]) {
      const kinds: [name: string, run: () => Promise<Measured[]>][] = [
        ["threads", async () => (await runRanks<Measured[]>(size, rank, data))[0]!],
        ...["mpirun.openmpi", "mpirun.mpich"].map((command): [string, () => Promise<Measured[]>] => [
          command,
          () => Promise.resolve(underMpirun(command, size, data)),
        ]),
      ];
      for (const [name, run] of kinds) {
        const measured = await run();
        if (measured.length === 0) {
          notes.push(`${name} is not installed: left out`);
          continue;
        }
        for (const { call, bytes, micros, fastest, own } of measured) {
          // All-to-all: what goes to others; all-reduce: what any way of doing it has to send.
          const sent = call === "allReduce" ? 2 * (1 - 1 / size) * bytes : (1 - 1 / size) * bytes;
          rows.push({
            ranks: size,
            kind: name,
            call,
            "bytes a rank": bytes,
            "median us": round(micros),
            "fastest us": round(fastest),
            "GB/s a rank": bytes >= 65536 ? round(sent / micros / 1000) : null,
            "MPI's own, median us": own === undefined ? null : round(own.micros),
            fastest: own === undefined ? null : round(own.fastest),
          });
          // The fastest of many: other programs on the machine slow either down by more than there is between them.
          if (own !== undefined && size === 2 && bytes === SHORT)
            targets.push({
              name: `us that asking adds to ${call} of ${SHORT} bytes (${name})`,
              value: fastest - own.fastest,
              bound: 10,
              atMost: true,
            });
        }
      }
    }
    if (availableParallelism() < 4) notes.push(`4 ranks share ${availableParallelism()} cores: each waits for its turn`);
    notes.push("each kind is timed by rank 0, call after call; MPI's own calls in turn with ours");
    return { rows, targets, notes: [...new Set(notes)] };
  },
};

/** What rank 0 under mpirun has measured; nothing where there is no such mpirun. */
function underMpirun(command: string, size: number, data: object): Measured[] {
  const folder = mkdtempSync(join(tmpdir(), "sparsegate-comm-"));
  const out = join(folder, "out.json");
  try {
    if (!ran(command, ["-n", String(size), process.execPath, fileURLToPath(rank), JSON.stringify(data), out])) return [];
    return JSON.parse(readFileSync(out, "utf8")) as Measured[];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
