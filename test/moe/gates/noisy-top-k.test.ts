/** Noisy top-k gating (Shazeer et al. 2017, section 2.1 and App. A) against the loop, from hardly any noise to much. */

import { describe, expect, it } from "vitest";
import { COMMON, useBackends, type Case } from "./harness.js";
import { equalsDenseLoop } from "./claims.js";
import { plain } from "./specs.js";

equalsDenseLoop("noisy-top-k");

describe("a layer with the noisy-top-k gate equals the dense loop", () => {
  const { differences } = useBackends();
  const layer = (change: Partial<Case>): Case => ({
    ...COMMON,
    rows: 9,
    D: 3,
    E: 6,
    gate: plain("noisy-top-k", 2, 6),
    ...change,
  });
  it("with no noise to speak of: softplus of −6 and less", () => {
    expect(differences(layer({ noiseScale: 8, offset: -6, gateScale: 0.3 }))).toEqual([]);
  });
  it("with much noise", () => {
    expect(differences(layer({ noiseScale: 4, offset: 3 }))).toEqual([]);
  });
  it("with noise alone, as at the start of training", () => {
    expect(differences(layer({ gateScale: 0, noiseScale: 0 }))).toEqual([]);
  });
  it("in parts of 32 rows and what is left, in which the load is summed up", () => {
    for (const rows of [31, 32, 33, 64, 65]) expect(differences(layer({ rows }))).toEqual([]);
  });
});
