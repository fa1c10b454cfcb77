/** `sparsegate plan`: what a run needs on so many ranks and hosts, before there are any. */

import { resolveConfig } from "../train/config.js";
import { planRanks } from "../train/plan-ranks.js";
import { checkLanguageModel } from "../train/setup.js";
import { bytes, compact, table } from "./format.js";
import { flagsOf } from "./train.js";

type Options = Record<string, unknown>;

export function planCommand(options: Options): void {
  const flags = flagsOf(options);
  // No text is read: the vocabulary is as large as --vocab-size says.
  const config = resolveConfig({ file: options["config"] as string | undefined, env: process.env, flags: { ...flags, train: flags["train"] ?? "(none)" } });
  checkLanguageModel("plan", config);
  const plan = planRanks(config, config.vocab_size, options["ranks"] as number, options["hosts"] as number);
  const values = {
    model: config.model,
    ranks: plan.ranks,
    hosts: plan.hosts,
    vocab_size: config.vocab_size,
    parameters_per_rank: plan.parameters,
    moe_parameters_per_rank: plan.moeParameters,
    memory_bytes_per_rank: Math.round(plan.bytes),
    memory_bytes_per_host: Math.round(plan.bytesOfHost),
    flops_per_rank_and_step: Math.round(plan.flops),
    bytes_sent_per_rank_and_step: Math.round(plan.sent.all),
    of_these_rows: Math.round(plan.sent.rows),
    of_these_gates: Math.round(plan.sent.gates),
    of_these_gradients: Math.round(plan.sent.gradients),
    bytes_sent_per_host_and_step: Math.round(plan.sentByHost),
    flops_per_byte: Number.isFinite(plan.flopsPerByte) ? Math.round(plan.flopsPerByte) : null,
    expert_ops_per_number: plan.opsPerNumber,
  };
  if (options["json"] === true) process.stdout.write(`${JSON.stringify(values)}\n`);
  else {
    const text = (key: string, value: string | number | null | undefined): string => {
      if (typeof value !== "number") return value ?? "-";
      if (/bytes|of_these/.test(key) && key !== "flops_per_byte") return bytes(value);
      return /parameters|flops/.test(key) ? compact(value) : String(value);
    };
    process.stdout.write(`${table(["", "plan"], Object.entries(values).map(([key, value]) => [key, text(key, value)]))}\n`);
  }
}
