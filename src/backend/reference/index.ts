/** The reference backend: every kernel as plain loops in float64. Slow, obvious, and what all others are held to. */

import { normalAt, uniformAt } from "../../core/random.js";
import type { Backend, BinaryOp, Buf, DType, MemoryUse, RandomKey, RowGroups, Spread, UnaryOp } from "../backend.js";
import { BINARY, UNARY, UNARY_DERIVATIVE } from "./elementwise.js";
import { floats, ints, ReferenceMemory, type ReferenceBuf } from "./memory.js";
import * as optimisers from "./optimisers.js";
import * as products from "./products.js";
import * as gating from "./gating.js";
import { lstmCell, lstmCellGrad } from "./lstm.js";
import * as rows from "./rows.js";
import * as rowwise from "./rowwise.js";

/** The oracle of the tests: float64, one thread, written to be obvious. */
export class ReferenceBackend implements Backend {
  readonly name = "reference";
  readonly description = "plain TypeScript in float64, one thread (for tests: slow)";
  readonly threads = 1;
  readonly #memory = new ReferenceMemory();

  alloc(dtype: DType, length: number): Buf {
    return this.#memory.alloc(dtype, length);
  }
  free(buf: Buf): void {
    this.#memory.free(buf);
  }
  write(buf: Buf, data: ArrayLike<number>): void {
    (buf as ReferenceBuf).data.set(data);
  }
  readSync(buf: Buf): Float64Array | Int32Array {
    return (buf as ReferenceBuf).data.slice();
  }
  read(buf: Buf): Promise<Float64Array | Int32Array> {
    return Promise.resolve(this.readSync(buf));
  }
  copy(src: Buf, dst: Buf, n: number): void {
    (dst as ReferenceBuf).data.set((src as ReferenceBuf).data.subarray(0, n));
  }
  fill(dst: Buf, value: number, n: number): void {
    (dst as ReferenceBuf).data.fill(value, 0, n);
  }
  memory(): MemoryUse {
    return this.#memory.use();
  }
  resetPeak(): void {
    this.#memory.resetPeak();
  }
  dispose(): void {}

  unary(op: UnaryOp, x: Buf, y: Buf, n: number): void {
    for (let i = 0; i < n; i++) floats(y)[i] = UNARY[op](floats(x)[i]!);
  }
  unaryGrad(op: UnaryOp, x: Buf, y: Buf, dy: Buf, dx: Buf, n: number): void {
    for (let i = 0; i < n; i++) floats(dx)[i] = floats(dy)[i]! * UNARY_DERIVATIVE[op](floats(x)[i]!, floats(y)[i]!);
  }
  binary(op: BinaryOp, a: Buf, aSpread: Spread, b: Buf, bSpread: Spread, out: Buf, n: number): void {
    const at = (buf: Buf, { div, mod }: Spread, i: number): number => floats(buf)[Math.floor(i / div) % mod]!;
    for (let i = 0; i < n; i++) floats(out)[i] = BINARY[op](at(a, aSpread, i), at(b, bSpread, i));
  }
  affine(x: Buf, scale: number, shift: number, y: Buf, n: number): void {
    for (let i = 0; i < n; i++) floats(y)[i] = scale * floats(x)[i]! + shift;
  }
  axpy(scale: number, x: Buf, y: Buf, n: number): void {
    for (let i = 0; i < n; i++) floats(y)[i]! += scale * floats(x)[i]!;
  }
  spreadSum(x: Buf, { div, mod }: Spread, scale: number, out: Buf, n: number): void {
    const sums = new Float64Array(mod);
    for (let i = 0; i < n; i++) sums[Math.floor(i / div) % mod]! += floats(x)[i]!;
    for (let j = 0; j < mod; j++) floats(out)[j] = scale * sums[j]!;
  }
  stridedCopy(shape: readonly number[], src: Buf, srcStrides: readonly number[], dst: Buf, dstStrides: readonly number[]): void {
    const [from, to] = [(src as ReferenceBuf).data, (dst as ReferenceBuf).data];
    forEachIndex(shape, srcStrides, dstStrides, (s, d) => (to[d] = from[s]!));
  }
  stridedAdd(shape: readonly number[], src: Buf, srcStrides: readonly number[], dst: Buf, dstStrides: readonly number[]): void {
    forEachIndex(shape, srcStrides, dstStrides, (s, d) => (floats(dst)[d]! += floats(src)[s]!));
  }

  readonly gemm = products.gemm;
  gemmBatched(batch: number, transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
    a: Buf, lda: number, strideA: number, b: Buf, ldb: number, strideB: number, beta: number, c: Buf, ldc: number, strideC: number): void {
    for (let i = 0; i < batch; i++) products.gemm(transA, transB, m, n, k, alpha, a.at(i * strideA), lda, b.at(i * strideB), ldb, beta, c.at(i * strideC), ldc);
  }
  readonly groupedGemm = products.groupedGemm;
  readonly groupedGemmWeight = products.groupedGemmWeight;

  readonly gatherRows = rows.gatherRows;
  readonly combineRows = rows.combineRows;
  readonly combineRowsGrad = rows.combineRowsGrad;
  readonly zeroTail = rows.zeroTail;
  readonly groupedBias = rows.groupedBias;
  readonly groupedBiasGrad = rows.groupedBiasGrad;
  readonly routeByExpert = rows.routeByExpert;
  readonly limitPerExpert = rows.limitPerExpert;
  gatherIndices(src: Buf, index: Buf, out: Buf, n: number): void {
    for (let i = 0; i < n; i++) ints(out)[i] = ints(index)[i]! < 0 ? -1 : ints(src)[ints(index)[i]!]!;
  }
  addIndices(a: Buf, b: Buf, scale: number, divisor: number, out: Buf, n: number): void {
    for (let i = 0; i < n; i++) {
      const [first, second] = [ints(a)[i]!, ints(b)[Math.floor(i / divisor)]!];
      ints(out)[i] = first < 0 || second < 0 ? -1 : first + scale * second;
    }
  }
  maskIndices(index: Buf, keep: Buf, out: Buf, n: number): void {
    for (let i = 0; i < n; i++) ints(out)[i] = floats(keep)[i]! > 0 ? ints(index)[i]! : -1;
  }
  divideIndex(index: Buf, divisor: number, out: Buf, n: number): void {
    for (let i = 0; i < n; i++) ints(out)[i] = ints(index)[i]! < 0 ? -1 : Math.floor(ints(index)[i]! / divisor);
  }
  uniqueIndices(index: Buf, n: number, _limit: number, distinct: Buf, offsets: Buf, order: Buf): void {
    rows.uniqueIndices(index, n, distinct, offsets, order);
  }
  readonly segmentSumRows = rows.segmentSumRows;
  readonly addRowsAt = rows.addRowsAt;
  readonly maskRows = rows.maskRows;
  readonly gatherLast = rows.gatherLast;
  readonly scatterAddLast = rows.scatterAddLast;
  readonly bincount = rows.bincount;

  readonly softmax = rowwise.softmax;
  readonly softmaxGrad = rowwise.softmaxGrad;
  readonly logSoftmax = rowwise.logSoftmax;
  readonly logSoftmaxGrad = rowwise.logSoftmaxGrad;
  readonly logSumExp = rowwise.logSumExp;
  readonly layerNorm = rowwise.layerNorm;
  readonly layerNormGrad = rowwise.layerNormGrad;
  readonly topK = rowwise.topK;
  readonly rowDot = rowwise.rowDot;
  readonly crossEntropy = rowwise.crossEntropy;
  readonly sampledCrossEntropy = rowwise.sampledCrossEntropy;

  readonly lstmCell = lstmCell;
  readonly lstmCellGrad = lstmCellGrad;
  readonly noisyTopK = gating.noisyTopK;
  readonly noisyTopKGrad = gating.noisyTopKGrad;
  readonly columnCuts = gating.columnCuts;
  readonly listAbove = gating.listAbove;
  readonly cvSquared = gating.cvSquared;
  readonly cvSquaredGrad = gating.cvSquaredGrad;

  randomUniform(out: Buf, n: number, key: RandomKey, start: number, low: number, high: number): void {
    for (let i = 0; i < n; i++) floats(out)[i] = low + (high - low) * uniformAt(key, start + i);
  }
  randomNormal(out: Buf, n: number, key: RandomKey, start: number, mean: number, std: number): void {
    for (let i = 0; i < n; i++) floats(out)[i] = mean + std * normalAt(key, start + i);
  }
  dropout(x: Buf, y: Buf, n: number, rate: number, key: RandomKey, start: number): void {
    for (let i = 0; i < n; i++) floats(y)[i] = uniformAt(key, start + i) >= rate ? floats(x)[i]! / (1 - rate) : 0;
  }
  randomUniformRows(out: Buf, rowIds: Buf, rows: number, width: number, key: RandomKey, start: number, low: number, high: number): void {
    for (let r = 0; r < rows; r++) {
      const id = ints(rowIds)[r]!;
      if (id < 0) floats(out).fill(0, r * width, (r + 1) * width);
      else this.randomUniform(out.at(r * width), width, key, (start + id) * width, low, high);
    }
  }
  dropoutRows(x: Buf, y: Buf, rowIds: Buf, groups: RowGroups | null, rows: number, width: number, rate: number, key: RandomKey, start: number): void {
    const ends = groups ? ints(groups.offsets).subarray(1, groups.count + 1) : [];
    for (let r = 0; r < rows; r++) {
      const id = ints(rowIds)[r]!;
      const row = groups ? (start + id) * groups.total + groups.first + ends.findIndex((end) => r < end) : start + id;
      if (id < 0) floats(y).fill(0, r * width, (r + 1) * width);
      else this.dropout(x.at(r * width), y.at(r * width), width, rate, key, row * width);
    }
  }

  readonly sumSquares = optimisers.sumSquares;
  readonly adam = optimisers.adam;
  readonly adamRows = optimisers.adamRows;
  readonly factoredAdamRows = optimisers.factoredAdamRows;
  readonly sgd = optimisers.sgd;
  readonly sgdRows = optimisers.sgdRows;
}

/** Calls `visit` with the source and destination offset of every index of `shape`, last axis fastest. */
function forEachIndex(shape: readonly number[], srcStrides: readonly number[], dstStrides: readonly number[], visit: (src: number, dst: number) => void): void {
  const walk = (axis: number, s: number, d: number): void => {
    if (axis === shape.length) visit(s, d);
    else for (let i = 0; i < shape[axis]!; i++) walk(axis + 1, s + i * srcStrides[axis]!, d + i * dstStrides[axis]!);
  };
  walk(0, 0, 0);
}
