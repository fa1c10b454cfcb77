/** Numbering of experts and rows when a secondary gate works on rows in groups. */

import { addIndices } from "../../tensor/ops/gating.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { GroupedRows } from "./gate.js";

/** Experts numbered through all groups, group · numExperts + expert; as they are without groups. @param experts (N, ...) of the rows in order */
export function numberThrough(experts: Tensor, numExperts: number, groups: GroupedRows | undefined): Tensor {
  if (!groups) return experts;
  return addIndices(experts, groups.groupOf, numExperts, Math.max(1, experts.size / Math.max(groups.groupOf.size, 1)));
}
