/**
 * What a backend must offer: memory and kernels. Everything above works through this interface alone.
 *
 * Two implementations stand side by side: `reference/` (float64, slow, obvious: the oracle of every test) and `cpu/`
 * (SIMD kernels over one WebAssembly memory, a worker pool, the machine's CBLAS). Kernels are enqueued in order; only
 * `read` waits, so that a GPU backend can stand behind the same interface. Routing tables (`offsets`, `order`, ...) are
 * data on the backend, never numbers on the host.
 *
 * All matrices are row-major. "float32" buffers hold float64 on the reference backend. Output operands are overwritten
 * unless a comment says "adds". Index -1 means "none" wherever a row or expert index is taken. Those of `routeByExpert`,
 * `limitPerExpert`, `gatherLast`, `scatterAddLast` and `bincount` may come from users: one past the end is not followed, and
 * is a TensorError that names it (by a backend that computes elsewhere, at the next read).
 */

/** What the elements of a buffer are. */
export type DType = "float32" | "int32";

/** Elements of one backend's memory. `at` gives a view further on; only the whole buffer, from `alloc`, may be freed. */
export interface Buf {
  readonly dtype: DType;
  readonly length: number;
  /** The part from element `offset`, `length` elements long (the rest when left out). */
  at(offset: number, length?: number): Buf;
}

/** Functions of one operand that `unary` computes. */
export const UNARY_OPS = [
  "neg", "exp", "log", "sqrt", "square", "tanh", "sigmoid", "relu", "gelu", "silu", "softplus", "normalCdf", "abs", "reciprocal",
] as const;
/** gelu is the tanh approximation; normalCdf is the standard normal distribution function. */
export type UnaryOp = (typeof UNARY_OPS)[number];

/** Functions of two operands that `binary` computes. */
export const BINARY_OPS = ["add", "sub", "mul", "div", "maximum", "minimum"] as const;
/** See `BINARY_OPS`. */
export type BinaryOp = (typeof BINARY_OPS)[number];

/** Element i of a broadcast operand is `buffer[floor(i / div) % mod]`: trailing vector (1, n), leading column (n, rows), scalar (1, 1). */
export interface Spread {
  readonly div: number;
  readonly mod: number;
}

/** Names one stream of random numbers. Element i of a stream depends on the key and i alone. */
export interface RandomKey {
  readonly seed: number;
  /** Hash of purpose and layer, unsigned 32 bit (`streamId`). */
  readonly stream: number;
  readonly step: number;
}

/** Rows in groups: group g of `count` has the rows offsets[g]..offsets[g+1], and is number first + g of `total`. */
export interface RowGroups<T = Buf> {
  /** int32 (count + 1) */
  readonly offsets: T;
  readonly count: number;
  readonly first: number;
  readonly total: number;
}

/** A deviation of the noise up to this counts as none: drawing again changes nothing, and a quotient by it would be ∞ or NaN. */
export const NO_NOISE = 1e-30;
/** Φ is 0 or 1 in float64 beyond so many standard deviations. */
export const MAX_DEVIATIONS = 100;

/** What is done to each part of a product while it is in the cache: max(y, 0), or 0 where `mask` (of the shape of y) is not above 0: relu and its gradient. */
export type Epilogue = "relu" | { mask: Buf };

/** Memory of a backend, in bytes. */
export interface MemoryUse {
  /** Bytes in live buffers. */
  used: number;
  /** Most bytes in live buffers since the start or `resetPeak`. */
  peak: number;
  /** Bytes taken from the system. */
  reserved: number;
  /** Bytes that can be had at most. */
  limit: number;
}

/** What an Adam update depends on besides its tensors (Kingma & Ba 2015). */
export interface AdamSettings {
  learningRate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  /** Decoupled weight decay (AdamW), times the learning rate. */
  weightDecay: number;
  /** Every gradient is multiplied by this first (clipping). */
  gradScale: number;
}

/** Memory and kernels; see the head of this file for what all of them share. */
export interface Backend {
  readonly name: "reference" | "cpu";
  /** One line for people: what computes, with how many threads. */
  readonly description: string;
  readonly threads: number;

  // ---- memory -------------------------------------------------------------------------------------------------
  /** Uninitialised memory. @throws TensorError when the backend's memory is exhausted, naming the bytes asked and in use. */
  alloc(dtype: DType, length: number): Buf;
  /** Gives back a whole buffer, as `alloc` returned it. */
  free(buf: Buf): void;
  /** Fills a buffer from the host. */
  write(buf: Buf, data: ArrayLike<number>): void;
  /** A copy of the elements; waits for whatever is enqueued. */
  readSync(buf: Buf): Float32Array | Float64Array | Int32Array;
  /** As `readSync`, for backends that compute elsewhere. */
  read(buf: Buf): Promise<Float32Array | Float64Array | Int32Array>;
  /** dst[i] = src[i] for i < n. */
  copy(src: Buf, dst: Buf, n: number): void;
  /** dst[i] = value for i < n. */
  fill(dst: Buf, value: number, n: number): void;
  /** Memory in use now, at most, and taken from the system. */
  memory(): MemoryUse;
  /** Starts counting the peak anew from what is in use. */
  resetPeak(): void;
  /** Stops workers and lets go of the memory. Nothing of this backend can be used afterwards. */
  dispose(): void;

  // ---- elementwise --------------------------------------------------------------------------------------------
  /** y = op(x). y may be x. */
  unary(op: UnaryOp, x: Buf, y: Buf, n: number): void;
  /** dx = dy · op'(x), given x and y = op(x). dx may be dy. */
  unaryGrad(op: UnaryOp, x: Buf, y: Buf, dy: Buf, dx: Buf, n: number): void;
  /** out_i = a_spread(i) op b_spread(i). out may be a or b where their spread is the identity (1, n). */
  binary(op: BinaryOp, a: Buf, aSpread: Spread, b: Buf, bSpread: Spread, out: Buf, n: number): void;
  /** y = scale·x + shift. y may be x. */
  affine(x: Buf, scale: number, shift: number, y: Buf, n: number): void;
  /** y += scale·x. */
  axpy(scale: number, x: Buf, y: Buf, n: number): void;
  /** out[j] = scale · Σ of x_i over all i < n with floor(i / div) % mod = j; out has `mod` elements. Order of addition is fixed. */
  spreadSum(x: Buf, spread: Spread, scale: number, out: Buf, n: number): void;
  /** dst[Σ i_d·dstStrides_d] = src[Σ i_d·srcStrides_d] for every index of `shape` (rank ≤ 6). Serves permute, slice, concat, expand. */
  stridedCopy(shape: readonly number[], src: Buf, srcStrides: readonly number[], dst: Buf, dstStrides: readonly number[]): void;
  /** As `stridedCopy`, but adds into dst; dst strides may be 0 (sums over that axis in fixed order). */
  stridedAdd(shape: readonly number[], src: Buf, srcStrides: readonly number[], dst: Buf, dstStrides: readonly number[]): void;

  // ---- matrix products ----------------------------------------------------------------------------------------
  /** C = alpha·op(A)·op(B) + beta·C with op(A) m×k, op(B) k×n, C m×n; row strides lda, ldb, ldc. beta 0 does not read C. */
  gemm(transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
    a: Buf, lda: number, b: Buf, ldb: number, beta: number, c: Buf, ldc: number): void;
  /** `gemm` for each of `batch` consecutive matrices, strides in elements (0 shares an operand). */
  gemmBatched(batch: number, transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
    a: Buf, lda: number, strideA: number, b: Buf, ldb: number, strideB: number,
    beta: number, c: Buf, ldc: number, strideC: number): void;
  /**
   * For each group e: rows offsets[e]..offsets[e+1] of y = those rows of x times w[e] (or w[e]ᵀ).
   * x M×p, y M×q, w groups×p×q (transW: groups×q×p). Rows of y beyond offsets[groups], of m in all, become zero.
   */
  groupedGemm(offsets_E1: Buf, groups: number, m: number, x: Buf, w: Buf, transW: boolean, y: Buf, p: number, q: number, then?: Epilogue): void;
  /**
   * dw[e] (p×q) = x[rows of e]ᵀ · dy[rows of e]; groups without rows are not touched, and touched[e] = e or -1
   * where there are none. With `accumulate`, adds where touched[e] was ≥ 0 before, writes where it was -1.
   */
  groupedGemmWeight(offsets_E1: Buf, groups: number, x: Buf, dy: Buf, dw: Buf, touched_E: Buf, p: number, q: number, accumulate: boolean): void;

  // ---- rows ---------------------------------------------------------------------------------------------------
  /** out[r] = src[index[r]], or zeros where the index is -1. */
  gatherRows(src: Buf, index: Buf, out: Buf, rows: number, width: number): void;
  /**
   * y[n] = Σ weights[j] · src[position[j]] over the assignments j of row n (weights null: all 1); position -1 adds nothing. Row n has the assignments
   * rowOffsets[n]..rowOffsets[n+1], or n·k..(n+1)·k where rowOffsets is null.
   */
  combineRows(src: Buf, position_M: Buf, weights_M: Buf | null, rowOffsets_N1: Buf | null, y: Buf, n: number, k: number, width: number): void;
  /** dSrc[position[j]] = weights[j]·dy[n]; dWeights[j] = dy[n]·src[position[j]] (0 for -1). Rows of dSrc that no position names, and weights of no row, are left alone (see `zeroTail`). Either output may be null. */
  combineRowsGrad(src: Buf, position_M: Buf, weights_M: Buf, rowOffsets_N1: Buf | null, dy: Buf, dSrc: Buf | null, dWeights_M: Buf | null, n: number, k: number, width: number): void;
  /** Rows of x beyond offsets[groups], of m in all, become zero. */
  zeroTail(offsets_E1: Buf, groups: number, m: number, x: Buf, width: number): void;
  /** Adds bias[e] to the rows of group e: y[r] = x[r] + bias[group of r], and x[r] beyond offsets[groups], of m in all. y may be x. */
  groupedBias(offsets_E1: Buf, groups: number, m: number, x: Buf, bias_EW: Buf, y: Buf, width: number): void;
  /** dBias[e] = Σ dy[rows of e] (0 without rows); touched[e] = e, or -1 without rows. */
  groupedBiasGrad(offsets_E1: Buf, groups: number, dy: Buf, dBias_EW: Buf, touched_E: Buf, width: number): void;
  /**
   * Counting sort of assignments: expert_M[j] in [-1, groups). order[p] = j sorted by expert, stable; offsets[e]..offsets[e+1] are
   * the places of expert e; position[j] = place of j, or -1 where expert is -1. Unused tail of order is -1.
   */
  routeByExpert(expert_M: Buf, m: number, groups: number, offsets_E1: Buf, order_M: Buf, position_M: Buf): void;
  /**
   * Gives each of `groups` experts at most `capacity` assignments; the rest of expert_M (n·k of them, k a row) becomes -1. First come, first served,
   * all first choices before all second ones (priority null); or those of the highest priority, equal ones by the same order, NaN last.
   */
  limitPerExpert(expert_NK: Buf, priority_NK: Buf | null, n: number, k: number, groups: number, capacity: number): void;
  /** out[i] = index[i] < 0 ? -1 : src[index[i]], int32. */
  gatherIndices(src: Buf, index: Buf, out: Buf, n: number): void;
  /** out[i] = a[i] + scale·b[floor(i / divisor)], -1 where either is -1; int32. */
  addIndices(a: Buf, b: Buf, scale: number, divisor: number, out: Buf, n: number): void;
  /** out[i] = keep[i] > 0 ? index[i] : -1 (keep float32; NaN keeps nothing). out may be index. */
  maskIndices(index: Buf, keep: Buf, out: Buf, n: number): void;
  /** out[i] = index[i] < 0 ? -1 : floor(index[i] / divisor), int32. Turns assignments into rows (divisor K). */
  divideIndex(index: Buf, divisor: number, out: Buf, n: number): void;
  /**
   * Distinct values of index (n of them, each in [0, limit)), ascending, in rows[0..u); the rest of rows (length n) is -1.
   * order lists places grouped by value, offsets[s]..offsets[s+1] those of slot s (offsets has n + 1 entries, tail = n).
   */
  uniqueIndices(index: Buf, n: number, limit: number, rows: Buf, offsets: Buf, order: Buf): void;
  /** out[s] = Σ over p in offsets[s]..offsets[s+1] of src[order[p]]; zeros for empty slots. */
  segmentSumRows(src: Buf, order: Buf, offsets: Buf, slots: number, out: Buf, width: number): void;
  /** dst[rows[s]] += src[s]; rows are distinct, -1 is skipped. */
  addRowsAt(src: Buf, rows: Buf, slots: number, dst: Buf, width: number): void;
  /** dst[r] = flags[r] ? 0 : src[r]. dst may be src. */
  maskRows(flags: Buf, src: Buf, dst: Buf, rows: number, width: number): void;
  /** out[r, j] = src[r, index[r, j]] (cols wide), 0 for -1. */
  gatherLast(src: Buf, index: Buf, out: Buf, rows: number, cols: number, k: number): void;
  /** dst[r, index[r, j]] += src[r, j]; dst must hold values already. */
  scatterAddLast(src: Buf, index: Buf, dst: Buf, rows: number, cols: number, k: number): void;
  /** out[index[i]] = Σ of src[i] over i (float scalars, out of length `size` overwritten, -1 skipped); added in order of i. */
  bincount(src: Buf, index: Buf, n: number, out: Buf, size: number): void;

  // ---- row-wise functions -------------------------------------------------------------------------------------
  /** y = exp(x) / Σ exp(x), over each row. */
  softmax(x: Buf, y: Buf, rows: number, cols: number): void;
  /** dx = y · (dy − Σ y·dy), over each row. */
  softmaxGrad(y: Buf, dy: Buf, dx: Buf, rows: number, cols: number): void;
  /** y = x − log Σ exp(x), over each row. */
  logSoftmax(x: Buf, y: Buf, rows: number, cols: number): void;
  /** dx = dy − exp(y)·Σdy. */
  logSoftmaxGrad(y: Buf, dy: Buf, dx: Buf, rows: number, cols: number): void;
  /** out[r] = log Σ exp(x[r]). */
  logSumExp(x: Buf, out: Buf, rows: number, cols: number): void;
  /** y = gamma · (x − mean) · rstd + beta over each row; mean and rstd = 1/√(variance + epsilon), one a row, are kept for the gradient. */
  layerNorm(x: Buf, gamma: Buf, beta: Buf, y: Buf, mean: Buf, rstd: Buf, rows: number, cols: number, epsilon: number): void;
  /** dx; dGamma and dBeta of length cols (overwritten). */
  layerNormGrad(x: Buf, gamma: Buf, mean: Buf, rstd: Buf, dy: Buf, dx: Buf, dGamma: Buf, dBeta: Buf, rows: number, cols: number): void;
  /** The k largest of each row, largest first, equal ones by lower index; NaN counts as −∞. values and indices rows×k. */
  topK(x: Buf, values: Buf, indices: Buf, rows: number, cols: number, k: number): void;
  /** out[r] = a[r]·b[r] over cols. */
  rowDot(a: Buf, b: Buf, out: Buf, rows: number, cols: number): void;

  // ---- losses -------------------------------------------------------------------------------------------------
  /**
   * loss[r] = logSumExp(logits[r]) − logits[r, target[r]], 0 where target is -1. With gradScale ≠ 0 the logits are overwritten by
   * gradScale·(softmax − onehot), zeros where target is -1.
   */
  crossEntropy(logits: Buf, target: Buf, loss: Buf, rows: number, cols: number, gradScale: number): void;
  /**
   * Sampled softmax over one true class and `cols` sampled ones. The true logit becomes trueLogit[r] − trueShift[r]; sampled
   * logits become logits[r, j] − shift[j], left out where samples[j] = target[r] (accidental hits). loss[r] as in crossEntropy; with
   * gradScale ≠ 0 logits and trueLogit are overwritten by their gradients (zeros where target is -1).
   */
  sampledCrossEntropy(logits: Buf, shift: Buf, samples: Buf, trueLogit: Buf, trueShift: Buf, target: Buf, loss: Buf, rows: number, cols: number, gradScale: number): void;

  // ---- LSTM cell, gates in the order i, f, g, o -----------------------------------------------------------------
  /** gates (rows×4h, pre-activations) are overwritten by activations; c = f·cPrev + i·g; h = o·tanh(c). */
  lstmCell(gates: Buf, cPrev: Buf, c: Buf, h: Buf, rows: number, hidden: number): void;
  /** From dh and dc (gradient from the next step, overwritten by that for cPrev) to dGates (pre-activation). dGates may be gates. */
  lstmCellGrad(gates: Buf, cPrev: Buf, c: Buf, dh: Buf, dc: Buf, dGates: Buf, rows: number, hidden: number): void;

  // ---- gating (Shazeer et al. 2017) --------------------------------------------------------------------------------
  /**
   * Noisy top-k gating (section 2.1, App. A), row by row: std = softplus(raw), noisy = clean + ε·std, its min(k+1, cols) largest with their experts as from
   * `topK`, and the load: load[s, i] = Σ over the rows of segment s of P(x, i) = Φ((clean_i − kth_excluding(noisy, k, i)) / std_i), the threshold being
   * topValues[k] for the k chosen and topValues[k−1] for the others (P = 1 where k = cols). Where std is at most NO_NOISE, P is 1 for the chosen and 0 for
   * the others, without a gradient.
   *
   * @param key ε of row r is elements (start + rowIds[r])·cols.. of this normal stream; rowIds null: r itself
   * @param offsets_S1 segment s has the rows offsets[s]..offsets[s+1]; null: `segments` parts of equal size (the last may be smaller). Rows beyond the
   * last offset get values of 0 and experts of -1.
   */
  noisyTopK(clean: Buf, raw: Buf, key: RandomKey, start: number, rowIds: Buf | null, offsets_S1: Buf | null, segments: number,
    topValues: Buf, topIndices: Buf, load_SE: Buf, rows: number, cols: number, k: number): void;
  /**
   * Gradients to clean and raw (rows×cols, overwritten; 0 beyond the last offset) from those of topValues (null: none) and of the load. dLoad has a row a
   * segment, or one for all where offsets is null; null: none.
   */
  noisyTopKGrad(clean: Buf, raw: Buf, topValues: Buf, topIndices: Buf, dTopValues: Buf | null, dLoad: Buf | null, offsets_S1: Buf | null, segments: number,
    dClean: Buf, dRaw: Buf, rows: number, cols: number, k: number): void;
  /**
   * For each column of each segment the m = clamp(floor(k·rows / cols), 1, rows) largest values (App. F's batchwise mask; rows: those of the segment; k > 0, not always whole):
   * row r of segment s is chosen for column i where x[r, i] > cut[s, i], or equals it and r ≤ cutRow[s, i]. Equal values by lower row; NaN counts as −∞.
   */
  columnCuts(x: Buf, offsets_S1: Buf | null, segments: number, rows: number, cols: number, k: number, cut: Buf, cutRow: Buf): void;
  /**
   * Lists the elements of x above the cuts, row by row: column, row and the place where each row begins (rowOffsets, rows + 1). Without cutRow an element
   * must be greater than the cut. A null list is not written: rowOffsets[rows] then tells how long it has to be. Unused tails (up to `length`) are -1.
   */
  listAbove(x: Buf, cut: Buf, cutRow: Buf | null, offsets_S1: Buf | null, segments: number, rows: number, cols: number,
    column_M: Buf | null, row_M: Buf | null, rowOffsets_N1: Buf, length: number): void;
  /** out[0] = CV(x)² = population variance / mean² (0 where the mean is 0, or n = 1). */
  cvSquared(x: Buf, n: number, out: Buf): void;
  /** dx = dy[0] · ∂CV²/∂x. */
  cvSquaredGrad(x: Buf, n: number, dy: Buf, dx: Buf): void;

  // ---- random numbers (core/random.ts is the definition) --------------------------------------------------------------
  /** out[i] = element start + i of the stream: uniform in [low, high). */
  randomUniform(out: Buf, n: number, key: RandomKey, start: number, low: number, high: number): void;
  /** Standard normal times std plus mean. */
  randomNormal(out: Buf, n: number, key: RandomKey, start: number, mean: number, std: number): void;
  /** y = x/(1−rate) where the uniform element start + i ≥ rate, else 0. y may be x. Its gradient is itself. */
  dropout(x: Buf, y: Buf, n: number, rate: number, key: RandomKey, start: number): void;
  /** `randomUniform` of rows in any order: row r is elements (start + rowIds[r])·width.. of the stream; zeros where rowIds[r] is -1. */
  randomUniformRows(out: Buf, rowIds: Buf, rows: number, width: number, key: RandomKey, start: number, low: number, high: number): void;
  /**
   * `dropout` of rows in any order: row r draws elements (start + rowIds[r])·width.. of the stream; zeros where rowIds[r] is -1. In groups, each row of the stream
   * is one for every group of `total`: row r of group g draws elements ((start + rowIds[r])·total + first + g)·width..; rows of no group have id -1.
   */
  dropoutRows(x: Buf, y: Buf, rowIds: Buf, groups: RowGroups | null, rows: number, width: number, rate: number, key: RandomKey, start: number): void;

  // ---- optimisers ------------------------------------------------------------------------------------------------
  /** out[0] += Σ x² over n elements, or over the slots with rows[s] ≥ 0 (each width wide) when rows is given. */
  sumSquares(x: Buf, n: number, rows: Buf | null, width: number, out: Buf): void;
  /** Adam; step counts from 1 (bias correction). m may be null when beta1 = 0. */
  adam(param: Buf, grad: Buf, m: Buf | null, v: Buf, n: number, step: number, settings: AdamSettings): void;
  /** Lazy Adam: only param[rows[s]], with its own count of updates in steps[rows[s]] (incremented first). grad is slots×width. */
  adamRows(param: Buf, grad: Buf, rows: Buf, slots: number, width: number, m: Buf | null, v: Buf, steps: Buf, settings: AdamSettings): void;
  /**
   * Adam with beta1 = 0 and a factored second moment (App. D) over matrices of height×width, one a slot: rowMean (height) and colMean (width) of g² decay with
   * beta2; v_ij = row_i·col_j / mean(row). rows null: slots are all matrices in order and steps counts each alike. No weight decay of v.
   */
  factoredAdamRows(param: Buf, grad: Buf, rows: Buf | null, slots: number, height: number, width: number, rowMean: Buf, colMean: Buf, steps: Buf, settings: AdamSettings): void;
  /** param −= lr·gradScale·grad. */
  sgd(param: Buf, grad: Buf, n: number, learningRate: number, gradScale: number): void;
  /** param[rows[s]] −= lr·gradScale·grad[s]; rows are distinct, -1 is skipped. */
  sgdRows(param: Buf, grad: Buf, rows: Buf, slots: number, width: number, learningRate: number, gradScale: number): void;
}
