/** The engine's public face: tensors, scopes, the tape and every operation. */

export { Tensor, tensor, empty, full, zeros, type Shape, type Shard, type Gradient, type Nested } from "./tensor.js";
export { scope, keep } from "./scope.js";
export { backward, noGrad, oncePerPass, recompute, type BackwardOptions } from "./tape.js";
export { defaultBackend, setDefaultBackend } from "./default-backend.js";
export * from "./ops/elementwise.js";
export * from "./ops/shape.js";
export { matmul, groupedMatmul, groupedFeedForward, groupedBias } from "./ops/products.js";
export * from "./ops/reduce.js";
export {
  embedding,
  routeByExpert,
  dispatch,
  combine,
  bincount,
  moveBack,
  moveRows,
  rowMove,
  type Assignments,
  type Routing,
  type RowMove,
} from "./ops/rows.js";
export * from "./ops/gating.js";
export * from "./ops/random.js";
export * from "./ops/losses.js";
export * from "./ops/lstm.js";
export * from "./ops/attentive-lstm.js";
