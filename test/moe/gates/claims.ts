/** What is claimed of every gate: a flat layer with it equals the dense loop, for random shapes and at the edges, on every backend. */

import { describe, expect, it } from "vitest";
import type { Spec } from "./dense-gates.js";
import { COMMON, holds, layers, useBackends, type Case } from "./harness.js";
import { fewest, PICKS, plain, RANDOM, type GateType } from "./specs.js";

/** A layer of 7 rows, width 3, 5 experts of which a row uses 2, changed in some respects. */
export function flat(
  type: GateType,
  change: Partial<Case> & { E?: number } = {},
  options: Partial<Spec> & { k?: number } = {},
): Case {
  const { k = 2, ...rest } = options;
  const E = change.E ?? 5;
  return { ...COMMON, rows: 7, D: 3, ...change, E, gate: { ...plain(type, k, E), ...rest } };
}

const EVALUATION = { training: false };

/** By what is special about them. */
function edges(type: GateType): Record<string, Case> {
  const cases: Record<string, Case> = {
    "several rows": flat(type),
    "several rows in evaluation": flat(type, EVALUATION),
    "one row": flat(type, { rows: 1 }),
    "one row in evaluation": flat(type, { rows: 1, ...EVALUATION }),
    "no rows": flat(type, { rows: 0 }),
    "no rows in evaluation": flat(type, { rows: 0, ...EVALUATION }),
    "fewer rows than experts, most of which get none or share one": flat(type, { rows: 2, E: 11 }),
    "fewer rows than experts in evaluation": flat(type, { rows: 2, E: 11, ...EVALUATION }),
    "all logits equal: the lowest numbers win": flat(type, { gateScale: 0, noiseScale: 0 }),
    "all logits equal in evaluation": flat(type, { gateScale: 0, noiseScale: 0, ...EVALUATION }),
    "all rows want the same experts": flat(type, { rows: 12, gateScale: 1.5, offset: 2, noiseScale: 0.01 }),
    "all rows want the same experts in evaluation": flat(type, { rows: 12, gateScale: 1.5, offset: 2, ...EVALUATION }),
    "width one": flat(type, { D: 1, F: [1] }),
    "widths off the SIMD width: 5 and 7": flat(type, { D: 5, F: [7] }),
    "widths off the SIMD width: 7 and 17": flat(type, { D: 7, F: [17] }),
    "more experts than SIMD lanes, off their number": flat(type, { E: 21, rows: 30 }),
    "rows far into the streams of random numbers": flat(type, { firstRow: 2 ** 33 }),
  };
  if (fewest(type) === 1) {
    cases["one expert"] = flat(type, { E: 1 });
    cases["one row, one expert, width one"] = flat(type, { rows: 1, E: 1, D: 1, F: [1] });
  } else cases["two experts"] = flat(type, { E: 2 });
  if (type !== "switch" && type !== "gshard") {
    for (const mode of [{}, EVALUATION]) {
      const where = mode === EVALUATION ? " in evaluation" : "";
      cases[`k = 1${where}`] = flat(type, mode, { k: 1 });
      cases[`k = numExperts − 1${where}`] = flat(type, mode, { k: 4 });
      cases[`k = numExperts${where}`] = flat(type, mode, { k: 5 });
    }
  }
  if (!PICKS.has(type)) {
    for (const dropPolicy of ["arrival", "probability"] as const) {
      cases[`capacity of one row an expert, by ${dropPolicy}`] = flat(type, { rows: 12 }, { capacityFactor: 0.1, dropPolicy });
      cases[`capacity of two rows an expert, all rows wanting the same, by ${dropPolicy}`] = flat(
        type,
        { rows: 12, gateScale: 1.5, offset: 2 },
        { capacityFactor: 0.4, dropPolicy },
      );
      cases[`capacity beyond the rows, by ${dropPolicy}`] = flat(type, {}, { capacityFactor: 20, dropPolicy });
    }
    cases["capacity in evaluation alone"] = flat(type, { rows: 12, ...EVALUATION }, { evalCapacityFactor: 0.3 });
    cases["capacity in evaluation alone, training"] = flat(type, { rows: 12 }, { evalCapacityFactor: 0.3 });
  }
  return cases;
}

/** Output, losses, importance, load, dropped rows, and the gradients of everything, against the loop. */
export function equalsDenseLoop(type: GateType, runs = 60): void {
  describe(`a layer with the ${type} gate equals the dense loop over all experts`, () => {
    const { differences } = useBackends();
    it(`for ${runs} random shapes and settings`, () => holds(layers(RANDOM[type], fewest(type)), differences, runs, 1701));
    const cases = edges(type);
    it.each(Object.keys(cases))("%s", (edge) => {
      expect(differences(cases[edge]!)).toEqual([]);
    });
  });
}
