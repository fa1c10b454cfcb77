/** Training over hosts: four network namespaces, each with an address of its own, joined by mpirun with a host file; then one of them is cut off. */

import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, readdirSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { readMetrics } from "#sparsegate/train/metrics.js";
import { MPI_ENV, mpiruns } from "../comm/helpers.js";
import { flags, main, run, sleep, start, steps, until, writeTexts } from "./helpers.js";

const HOSTS = [1, 2, 3, 4];
const bridge = `sg${process.pid}b`;
const nameOf = (host: number): string => `sg${process.pid}h${host}`;
const addressOf = (host: number): string => `10.77.0.${host}`;
const openMpi = mpiruns.find(({ name }) => name === "Open MPI");
const refusal = openMpi ? setUp() : "no Open MPI here";
if (refusal !== undefined) console.warn(`SKIPPED tests over hosts: ${refusal}`);

const root = mkdtempSync(join(tmpdir(), "sparsegate-hosts-"));
const agent = join(root, "agent.sh");
/** After which a rank that nobody hears of is given up. */
const TIMEOUT_S = 5;
/** For that, five seconds to end in, and the same on the other side of the cut; on machines with fewer cores than hosts. */
const BOUND_MS = 60_000;
const config = {
  train: "train.txt", valid: "valid.txt", tokenizer: "words", model: "MoE-6", top_k: 2, hidden_size: 12, batch_size: 8, time_steps: 5, max_steps: 20, logging_steps: 1, eval_steps: 1000,
}; // prettier-ignore

function ip(...args: string[]): string | undefined {
  const { status, stderr, error } = spawnSync("ip", args, { encoding: "utf8" });
  return status === 0 ? undefined : (error?.message ?? stderr.trim());
}

/** Namespaces, and a bridge between them in one more. @returns why there can be none */
function setUp(): string | undefined {
  const links = HOSTS.flatMap((host) => [
    ["netns", "add", nameOf(host)],
    ["link", "add", `h${host}`, "netns", bridge, "type", "veth", "peer", "name", "eth0", "netns", nameOf(host)],
    ["-n", bridge, "link", "set", `h${host}`, "master", "bridge", "up"],
    ["-n", nameOf(host), "address", "add", `${addressOf(host)}/24`, "dev", "eth0"],
    ["-n", nameOf(host), "link", "set", "eth0", "up"],
    ["-n", nameOf(host), "link", "set", "lo", "up"],
    // How often what was sent to a host that is gone is sent again before mpirun is told: by default for a quarter of an hour.
    ["netns", "exec", nameOf(host), "sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_retries2"],
  ]);
  for (const args of [["netns", "add", bridge], ["-n", bridge, "link", "add", "bridge", "type", "bridge"], ["-n", bridge, "link", "set", "bridge", "up"], ...links]) {
    const failure = ip(...args);
    if (failure !== undefined) {
      tearDown();
      return `ip ${args.join(" ")}: ${failure}`;
    }
  }
  return undefined;
}

function tearDown(): void {
  for (const name of [bridge, ...HOSTS.map(nameOf)]) ip("netns", "delete", name);
}

/** mpirun on the first hosts: what ssh is elsewhere enters the namespace here, under the host's own name. */
function mpirunOn(hosts: readonly number[]): string[] {
  const file = join(root, `hosts-${hosts.length}`);
  writeFileSync(file, hosts.map((host) => `${addressOf(host)} slots=1\n`).join(""));
  const settings = {
    plm_rsh_agent: agent, btl: "tcp,self", pml: "ob1", btl_tcp_if_include: "10.77.0.0/24", oob_tcp_if_include: "10.77.0.0/24",
    oob_tcp_keepalive_time: "5", oob_tcp_keepalive_intvl: "2", oob_tcp_keepalive_probes: "3",
  }; // prettier-ignore
  const mca = Object.entries(settings).flatMap(([name, value]) => ["--mca", name, value]);
  return ["ip", "netns", "exec", nameOf(hosts[0]!), openMpi!.command, "--hostfile", file, "--map-by", "node", "--bind-to", "none", ...mca,
    "-x", "SPARSEGATE_COMM_TIMEOUT", "-x", "SPARSEGATE_THREADS", "-n", String(hosts.length), process.execPath, main]; // prettier-ignore
}

const env = { ...MPI_ENV, SPARSEGATE_COMM_TIMEOUT: String(TIMEOUT_S) };
const losses = (folder: string): number[] => readMetrics(join(root, folder, "metrics.jsonl")).flatMap((record) => ("train/loss" in record ? [Number(record["train/loss"])] : []));

/** Processes inside a host. */
const inside = (host: number): number[] => (spawnSync("ip", ["netns", "pids", nameOf(host)], { encoding: "utf8" }).stdout.match(/\d+/g) ?? []).map(Number);

const ranksOn = (host: number): number[] =>
  inside(host).filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(`${main}\0train`) && /\bnode$/.test(readlinkSync(`/proc/${pid}/exe`));
    } catch {
      return false;
    }
  });

beforeAll(() => {
  writeTexts(root);
  const cases = HOSTS.map((host) => `  ${addressOf(host)}) name=${nameOf(host)} ;;`).join("\n");
  writeFileSync(agent, `#!/bin/sh\nhost=$1\nshift\ncase $host in\n${cases}\nesac\nexec ip netns exec $name unshare --uts sh -c "hostname $host; $*"\n`, { mode: 0o755 });
});
afterAll(() => {
  if (refusal === undefined) {
    for (const pid of HOSTS.flatMap(inside)) process.kill(pid, "SIGKILL");
    tearDown();
  }
  rmSync(root, { recursive: true });
});

test.skipIf(refusal !== undefined)("four hosts train to the losses of one rank; with one cut off the others end, and three go on from the checkpoint", { timeout: 300_000 }, async () => {
  const one = await run(["train", ...flags({ ...config, output_dir: "one" })], { cwd: root });
  expect(one.code, one.stderr).toBe(0);
  const four = await run(["train", ...flags({ ...config, output_dir: "four" })], { cwd: root, command: mpirunOn(HOSTS), env });
  expect(four.code, four.stderr).toBe(0);
  const [got, expected] = [losses("four"), losses("one")];
  expect(got).toHaveLength(20);
  for (const [i, loss] of expected.entries()) expect(Math.abs(got[i]! - loss)).toBeLessThanOrEqual(1e-5 * loss);

  const cut = start(["train", ...flags({ ...config, output_dir: "cut", max_steps: 1_000_000, save_steps: 5 })], { cwd: root, command: mpirunOn(HOSTS), env });
  await until(() => steps(join(root, "cut")).length > 1, cut, 60_000);
  await sleep(100);
  const ended = once(cut.child, "exit");
  const begun = performance.now();
  expect(ip("-n", nameOf(4), "link", "set", "eth0", "down")).toBeUndefined();
  expect((await ended)[0]).not.toBe(0);
  while (HOSTS.some((host) => ranksOn(host).length > 0) && performance.now() - begun < BOUND_MS) await sleep(100);
  expect(performance.now() - begun).toBeLessThan(BOUND_MS);
  expect(HOSTS.flatMap(ranksOn)).toEqual([]);
  // Open MPI's own daemon on the host that was cut off hears from nobody, and holds on to the output of mpirun.
  for (const pid of HOSTS.flatMap(inside)) process.kill(pid, "SIGKILL");
  const { stderr } = await cut.ended;
  expect(stderr).toContain(`expected rank 3 to take part within ${TIMEOUT_S} s`);
  expect(stderr).toContain("has ended before its time, and so all ranks end");

  const last = steps(join(root, "cut")).at(-1)!;
  const three = await run(["train", "--resume", "cut", "--max-steps", String(last + 5)], { cwd: root, command: mpirunOn(HOSTS.slice(0, 3)), env });
  expect(three.code, three.stderr).toBe(0);
  expect(steps(join(root, "cut")).at(-1)).toBe(last + 5);
  expect(readdirSync(join(root, "cut")).filter((name) => name.includes(".tmp-"))).toEqual([]);
  expect(readFileSync(join(root, "cut", "metrics.jsonl"), "utf8")).toContain(`"step":${last + 5},`);
});
