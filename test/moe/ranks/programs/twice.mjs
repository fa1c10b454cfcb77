/** Two ranks that both say that theirs is the first row. */

import { MoE } from "#sparsegate/moe/layer.js";
import { tensor, zeros } from "#sparsegate/tensor/index.js";

export default function twice(comm) {
  new MoE({ hiddenSize: 2, numExperts: 2, comm }).forward(zeros([1, 2]), { training: true, seed: 0, step: 0, firstRow: 0, rowIds: tensor([0], [1], "int32") });
}
