/**
 * The CPU backend: every tensor in one WebAssembly memory, SIMD kernels for everything, the machine's CBLAS for products when there is one, and a pool of
 * workers over the same memory. Each of the three helpers may be missing; what is missing is said in `notes`.
 */

import { availableParallelism } from "node:os";
import { ConfigError, TensorError } from "../../core/errors.js";
import { BINARY_OPS, UNARY_OPS, type AdamSettings, type Backend, type BinaryOp, type Buf, type DType, type Epilogue, type MemoryUse, type RandomKey, type RowGroups, type Spread, type UnaryOp } from "../backend.js";
import { checkIndices } from "../indices.js";
import { findCblas, type CblasSearch } from "./cblas.js";
import { Control, MAX_THREADS } from "./control.js";
import { EPILOGUE, Executor } from "./executor.js";
import { adviseHugePages } from "./huge-pages.js";
import { CpuMemory, ptr } from "./memory.js";
import { WORKSPACE_FLOATS } from "./pieces.js";
import { Pool, type WorkerSetup } from "./pool.js";
import { ProductList } from "./products.js";
import { MEMORY_LIMIT, instantiate, kernelNames, loadKernels, type SimdChoice } from "./wasm.js";

/** What may be chosen instead of found; the environment variables named here count where an option is left out. */
export interface CpuBackendOptions {
  /** Default: every core (SPARSEGATE_THREADS). */
  threads?: number;
  /** "auto" (default), "none", or the path of a library (SPARSEGATE_BLAS). */
  blas?: string;
  /** SPARSEGATE_SIMD. */
  simd?: SimdChoice;
  /** false: a private memory and no workers, as where SharedArrayBuffer does not exist. */
  shared?: boolean;
}

/** What `doctor` shows. */
export interface CpuProbe {
  variant: "simd" | "relaxed";
  threads: number;
  sharedMemory: boolean;
  /** The CBLAS in use, or why there is none. */
  blas: { name: string; version: string; path: string } | { reason: string };
  /** Every library tried, with what came of it. */
  tried: string[];
  notes: string[];
}

/** Elements below which a kernel runs on one thread: a fork and join costs a few microseconds. */
const GRAIN = 16_384;
const CHUNK = 65_536;

/** Rows that make up a grain. */
const rowGrain = (width: number): number => Math.max(1, Math.ceil(GRAIN / Math.max(width, 1)));

/** Segments that make up a grain, each row costing as much as `width` elements. */
const segmentGrain = (rows: number, segments: number, width: number): number => rowGrain(Math.ceil(rows / Math.max(segments, 1)) * width);

/** The backend that trains: float32, every core, a native BLAS for products when there is one. A program needs one at most; `defaultBackend` starts it. */
export class CpuBackend implements Backend {
  readonly name = "cpu";
  readonly description: string;
  readonly threads: number;
  /** In plain words: what is missing here and what that costs. */
  readonly notes: string[] = [];
  readonly variant: "simd" | "relaxed";
  readonly blas: CblasSearch;
  readonly shared: boolean;
  readonly #memory: CpuMemory;
  readonly #pool: Pool;
  readonly #list: ProductList;
  readonly #ids: Map<string, number>;
  readonly #kernels: Record<string, (...args: number[]) => number>;
  /** int32 (1): not 0 when a kernel on any thread has met an index past the end. */
  readonly #beyond: Buf;

  constructor(options: CpuBackendOptions = {}) {
    const { env } = process;
    this.shared = options.shared ?? typeof SharedArrayBuffer === "function";
    if (!this.shared) this.notes.push(options.shared === false ? "Private memory (shared: false): one thread only." : "No SharedArrayBuffer here: one thread only.");
    const threads = options.threads ?? numberFrom("SPARSEGATE_THREADS", env["SPARSEGATE_THREADS"]) ?? availableParallelism();
    if (!Number.isInteger(threads) || threads < 1 || threads > MAX_THREADS) throw new ConfigError(`CpuBackend: expected threads to be an integer from 1 to ${MAX_THREADS}, got ${threads}.`);
    this.threads = this.shared ? threads : 1;
    const simd = options.simd ?? ((env["SPARSEGATE_SIMD"] ?? "auto") as SimdChoice);
    if (!["auto", "simd", "relaxed"].includes(simd)) throw new ConfigError(`SPARSEGATE_SIMD: expected auto, simd or relaxed, got ${JSON.stringify(simd)}.`);
    const { module, variant, notes } = loadKernels(simd, this.shared);
    this.variant = variant;
    this.#memory = new CpuMemory(this.shared);
    this.#kernels = instantiate(module, this.#memory.wasm);
    this.#beyond = this.#memory.alloc("int32", 1);
    this.#memory.view(this.#beyond)[0] = 0;

    const blasChoice = options.blas ?? env["SPARSEGATE_BLAS"] ?? "auto";
    // A private memory may move when it grows; a library that keeps addresses cannot follow.
    this.blas = this.shared ? findCblas(blasChoice) : { found: undefined, reason: "it needs shared memory", hint: "", tried: [] };
    if (!this.blas.found) {
      const { reason, hint } = this.blas;
      this.notes.push(`No CBLAS: ${reason}. Matrix products run in WebAssembly, at about a quarter of the rate.${hint === "" ? "" : ` ${hint}`}`);
      // Which SIMD there is matters to products alone, and only to those that WebAssembly does.
      this.notes.push(...notes);
    } else {
      // Shared memory never moves, so that advice given once holds for all that it grows to.
      adviseHugePages(this.blas.found.addressOf(this.#memory.wasm), MEMORY_LIMIT);
    }
    const names = kernelNames(module);
    this.#ids = new Map(names.map((name, i) => [name, i]));
    const scratchBytes = Math.max(this.#kernels["gemmScratchBytes"]!(), 4 * WORKSPACE_FLOATS);
    const control = new Control(this.shared ? new SharedArrayBuffer(Control.BYTES) : new ArrayBuffer(Control.BYTES));
    const executor = new Executor(this.#kernels, names, control.items, this.#memory.allocBytes(scratchBytes), this.#memory.wasm, this.blas.found);
    const setups = Array.from({ length: this.threads - 1 }, (): WorkerSetup => ({
      module,
      memory: this.#memory.wasm,
      names,
      control: control.buffer as SharedArrayBuffer,
      scratch: this.#memory.allocBytes(scratchBytes),
      blas: this.blas.found?.path,
    }));
    this.#pool = new Pool(this.threads, executor, control, setups);
    this.#list = new ProductList(this.#pool, control.items);
    this.description = `${this.threads} thread${this.threads === 1 ? "" : "s"}, ${variant === "relaxed" ? "relaxed " : ""}SIMD kernels, products by ${this.blas.found ? this.blas.found.description : "WebAssembly"}`;
  }

  /** What was found on this machine. */
  probe(): CpuProbe {
    const { found, tried } = this.blas;
    const blas = found ? { name: found.name, version: found.version, path: found.path } : { reason: (this.blas as { reason: string }).reason };
    return { variant: this.variant, threads: this.threads, sharedMemory: this.shared, blas, tried, notes: this.notes };
  }

  /** Waits until all workers run, for benchmarks; kernels need not. */
  awaitWorkers(): void {
    this.#pool.awaitWorkers();
  }

  /** Runs a kernel over [0, total) of its parallel axis. */
  #run(kernel: string, total: number, grain: number, ...args: number[]): void {
    this.#pool.run(this.#ids.get(kernel)!, total, grain, args);
  }

  /** Runs a sequential kernel on this thread. */
  #once(kernel: string, ...args: number[]): number {
    return this.#kernels[kernel]!(0, 1, ...args);
  }

  /** After a kernel on all threads: refuses what it marked in `#beyond`. */
  #checkMarked(kernel: string, index: Buf, n: number, limit: number): void {
    const mark = this.#memory.view(this.#beyond);
    const beyond = mark[0]!;
    mark[0] = 0;
    this.#checkIndices(kernel, beyond, index, n, limit);
  }

  /** Kernels say only that there is an index past the end; which one is looked up here. */
  #checkIndices(kernel: string, beyond: number, index: Buf, n: number, limit: number): void {
    if (beyond !== 0) checkIndices(kernel, this.#memory.view(index), n, -1, limit);
  }

  // ---- memory -------------------------------------------------------------------------------------------------
  alloc(dtype: DType, length: number): Buf {
    return this.#memory.alloc(dtype, length);
  }
  free(buf: Buf): void {
    this.#memory.free(buf);
  }
  write(buf: Buf, data: ArrayLike<number>): void {
    this.#memory.view(buf).set(data);
  }
  readSync(buf: Buf): Float32Array | Int32Array {
    return this.#memory.view(buf).slice();
  }
  read(buf: Buf): Promise<Float32Array | Int32Array> {
    return Promise.resolve(this.readSync(buf));
  }
  copy(src: Buf, dst: Buf, n: number): void {
    this.#run("copy", n, 4 * GRAIN, ptr(src), ptr(dst), n);
  }
  fill(dst: Buf, value: number, n: number): void {
    this.#run(dst.dtype === "float32" ? "fill" : "fillInt", n, 4 * GRAIN, ptr(dst), value, n);
  }
  memory(): MemoryUse {
    return this.#memory.use();
  }
  resetPeak(): void {
    this.#memory.resetPeak();
  }
  dispose(): void {
    this.#pool.dispose();
  }
  /** Absolute address of a buffer, for a benchmark that calls the library directly. */
  addressOf(buf: Buf): number {
    if (!this.blas.found) throw new TensorError("CpuBackend.addressOf: expected a CBLAS to be in use, got none.");
    return this.blas.found.addressOf(this.#memory.wasm) + ptr(buf);
  }

  // ---- elementwise --------------------------------------------------------------------------------------------
  unary(op: UnaryOp, x: Buf, y: Buf, n: number): void {
    this.#run("unary", n, GRAIN, UNARY_OPS.indexOf(op), ptr(x), ptr(y), n);
  }
  unaryGrad(op: UnaryOp, x: Buf, y: Buf, dy: Buf, dx: Buf, n: number): void {
    this.#run("unaryGrad", n, GRAIN, UNARY_OPS.indexOf(op), ptr(x), ptr(y), ptr(dy), ptr(dx), n);
  }
  binary(op: BinaryOp, a: Buf, aSpread: Spread, b: Buf, bSpread: Spread, out: Buf, n: number): void {
    this.#run("binary", n, GRAIN, BINARY_OPS.indexOf(op), ptr(a), aSpread.div, aSpread.mod, ptr(b), bSpread.div, bSpread.mod, ptr(out), n);
  }
  affine(x: Buf, scale: number, shift: number, y: Buf, n: number): void {
    this.#run("affine", n, GRAIN, ptr(x), scale, shift, ptr(y), n);
  }
  axpy(scale: number, x: Buf, y: Buf, n: number): void {
    this.#run("axpy", n, GRAIN, scale, ptr(x), ptr(y), n);
  }
  spreadSum(x: Buf, spread: Spread, scale: number, out: Buf, n: number): void {
    this.#run("spreadSum", spread.mod, Math.max(16, Math.ceil((GRAIN * spread.mod) / Math.max(n, 1))), ptr(x), spread.div, spread.mod, scale, ptr(out), n);
  }
  stridedCopy(shape: readonly number[], src: Buf, srcStrides: readonly number[], dst: Buf, dstStrides: readonly number[]): void {
    this.#strided("stridedCopy", shape, src, srcStrides, dst, dstStrides);
  }
  stridedAdd(shape: readonly number[], src: Buf, srcStrides: readonly number[], dst: Buf, dstStrides: readonly number[]): void {
    this.#strided("stridedAdd", shape, src, srcStrides, dst, dstStrides);
  }
  #strided(kernel: "stridedCopy" | "stridedAdd", shape: readonly number[], src: Buf, srcStrides: readonly number[], dst: Buf, dstStrides: readonly number[]): void {
    if (shape.length > 6) throw new TensorError(`${kernel}: expected at most 6 axes, got ${shape.length}.`);
    if (shape.includes(0)) return;
    const missing = 6 - shape.length;
    const pad = (list: readonly number[], filler: number): number[] => [...new Array<number>(missing).fill(filler), ...list];
    const descriptor = this.alloc("int32", 18);
    this.write(descriptor, [...pad(shape, 1), ...pad(srcStrides, 0), ...pad(dstStrides, 0)]);
    const outer = shape.slice(0, -1).reduce((product, n) => product * n, 1);
    if (kernel === "stridedAdd") this.#kernels[kernel]!(0, outer, shape.length, ptr(descriptor), ptr(src), ptr(dst));
    else this.#run(kernel, outer, rowGrain(shape.at(-1) ?? 1), shape.length, ptr(descriptor), ptr(src), ptr(dst));
    this.free(descriptor);
  }

  // ---- matrix products ----------------------------------------------------------------------------------------
  gemm(transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number, a: Buf, lda: number, b: Buf, ldb: number, beta: number, c: Buf, ldc: number): void {
    const work = m * n * k;
    this.#list.addCut(this.#list.pieces(work, work), transA, transB, m, n, k, alpha, ptr(a), lda, ptr(b), ldb, beta, ptr(c), ldc);
    this.#list.flush();
  }
  gemmBatched(batch: number, transA: boolean, transB: boolean, m: number, n: number, k: number, alpha: number,
    a: Buf, lda: number, strideA: number, b: Buf, ldb: number, strideB: number, beta: number, c: Buf, ldc: number, strideC: number): void {
    const pieces = this.#list.pieces(m * n * k, batch * m * n * k);
    for (let i = 0; i < batch; i++) {
      this.#list.addCut(pieces, transA, transB, m, n, k, alpha, ptr(a) + 4 * i * strideA, lda, ptr(b) + 4 * i * strideB, ldb, beta, ptr(c) + 4 * i * strideC, ldc);
    }
    this.#list.flush();
  }
  groupedGemm(offsets: Buf, groups: number, m: number, x: Buf, w: Buf, transW: boolean, y: Buf, p: number, q: number, then?: Epilogue): void {
    const at = this.#memory.view(offsets);
    const epilogue = then === undefined ? EPILOGUE.none : then === "relu" ? EPILOGUE.relu : EPILOGUE.mask;
    const mask = typeof then === "object" ? ptr(then.mask) : 0;
    const used = at[groups]!;
    for (let e = 0; e < groups; e++) {
      const first = at[e]!;
      const rows = at[e + 1]! - first;
      const pieces = this.#list.pieces(rows * p * q, used * p * q);
      this.#list.addCut(pieces, false, transW, rows, q, p, 1, ptr(x) + 4 * first * p, p, ptr(w) + 4 * e * p * q, transW ? p : q, 0, ptr(y) + 4 * first * q, q, epilogue, mask + 4 * first * q);
    }
    this.#list.flush();
    this.zeroTail(offsets, groups, m, y, q);
  }
  groupedGemmWeight(offsets: Buf, groups: number, x: Buf, dy: Buf, dw: Buf, touched: Buf, p: number, q: number, accumulate: boolean): void {
    const at = this.#memory.view(offsets);
    const flags = this.#memory.view(touched);
    const total = at[groups]! * p * q;
    for (let e = 0; e < groups; e++) {
      const first = at[e]!;
      const rows = at[e + 1]! - first;
      const before = accumulate && flags[e]! >= 0;
      if (rows > 0) {
        const pieces = this.#list.pieces(rows * p * q, total);
        this.#list.addCut(pieces, true, false, p, q, rows, 1, ptr(x) + 4 * first * p, p, ptr(dy) + 4 * first * q, q, before ? 1 : 0, ptr(dw) + 4 * e * p * q, q);
      }
      flags[e] = rows > 0 || before ? e : -1;
    }
    this.#list.flush();
  }

  // ---- rows ---------------------------------------------------------------------------------------------------
  gatherRows(src: Buf, index: Buf, out: Buf, rows: number, width: number): void {
    this.#run("gatherRows", rows, rowGrain(width), ptr(src), ptr(index), ptr(out), rows, width);
  }
  combineRows(src: Buf, position: Buf, weights: Buf | null, rowOffsets: Buf | null, y: Buf, n: number, k: number, width: number): void {
    this.#run("combineRows", n, rowGrain(width * k), ptr(src), ptr(position), ptr(weights), ptr(rowOffsets), ptr(y), n, k, width);
  }
  combineRowsGrad(src: Buf, position: Buf, weights: Buf, rowOffsets: Buf | null, dy: Buf, dSrc: Buf | null, dWeights: Buf | null, n: number, k: number, width: number): void {
    this.#run("combineRowsGrad", n, rowGrain(width * k), ptr(src), ptr(position), ptr(weights), ptr(rowOffsets), ptr(dy), ptr(dSrc), ptr(dWeights), n, k, width);
  }
  zeroTail(offsets: Buf, groups: number, m: number, x: Buf, width: number): void {
    const used = this.#memory.view(offsets)[groups]!;
    if (used < m) this.fill(x.at(used * width), 0, (m - used) * width);
  }
  groupedBias(offsets: Buf, groups: number, m: number, x: Buf, bias: Buf, y: Buf, width: number): void {
    const used = this.#memory.view(offsets)[groups]!;
    this.#run("groupedBias", used, rowGrain(width), ptr(offsets), groups, ptr(x), ptr(bias), ptr(y), width);
    if (used < m && ptr(x) !== ptr(y)) this.copy(x.at(used * width), y.at(used * width), (m - used) * width);
  }
  groupedBiasGrad(offsets: Buf, groups: number, dy: Buf, dBias: Buf, touched: Buf, width: number): void {
    const at = this.#memory.view(offsets);
    const flags = this.#memory.view(touched);
    for (let e = 0; e < groups; e++) flags[e] = at[e + 1]! > at[e]! ? e : -1;
    this.#run("groupedBiasGrad", groups, rowGrain((width * at[groups]!) / Math.max(groups, 1)), ptr(offsets), groups, ptr(dy), ptr(dBias), width);
  }
  routeByExpert(expert: Buf, m: number, groups: number, offsets: Buf, order: Buf, position: Buf): void {
    this.#checkIndices("routeByExpert", this.#once("routeByExpert", ptr(expert), m, groups, ptr(offsets), ptr(order), ptr(position)), expert, m, groups);
  }
  limitPerExpert(expert: Buf, priority: Buf | null, n: number, k: number, groups: number, capacity: number): void {
    const scratch = this.alloc("int32", groups + 2 + (priority ? 3 * n * k : 0));
    const beyond = this.#once("limitPerExpert", ptr(expert), ptr(priority), n, k, groups, capacity, ptr(scratch));
    this.free(scratch);
    this.#checkIndices("limitPerExpert", beyond, expert, n * k, groups);
  }
  gatherIndices(src: Buf, index: Buf, out: Buf, n: number): void {
    this.#run("gatherIndices", n, GRAIN, ptr(src), ptr(index), ptr(out), n);
  }
  addIndices(a: Buf, b: Buf, scale: number, divisor: number, out: Buf, n: number): void {
    this.#run("addIndices", n, GRAIN, ptr(a), ptr(b), scale, divisor, ptr(out), n);
  }
  maskIndices(index: Buf, keep: Buf, out: Buf, n: number): void {
    this.#run("maskIndices", n, GRAIN, ptr(index), ptr(keep), ptr(out), n);
  }
  divideIndex(index: Buf, divisor: number, out: Buf, n: number): void {
    this.#run("divideIndex", n, GRAIN, ptr(index), divisor, ptr(out), n);
  }
  uniqueIndices(index: Buf, n: number, limit: number, rows: Buf, offsets: Buf, order: Buf): void {
    const scratch = this.alloc("int32", 4 * n + 1024);
    this.#once("uniqueIndices", ptr(index), n, limit, ptr(rows), ptr(offsets), ptr(order), ptr(scratch));
    this.free(scratch);
  }
  segmentSumRows(src: Buf, order: Buf, offsets: Buf, slots: number, out: Buf, width: number): void {
    this.#run("segmentSumRows", slots, rowGrain(width), ptr(src), ptr(order), ptr(offsets), slots, ptr(out), width);
  }
  addRowsAt(src: Buf, rows: Buf, slots: number, dst: Buf, width: number): void {
    this.#run("addRowsAt", slots, rowGrain(width), ptr(src), ptr(rows), slots, ptr(dst), width);
  }
  maskRows(flags: Buf, src: Buf, dst: Buf, rows: number, width: number): void {
    this.#run("maskRows", rows, rowGrain(width), ptr(flags), ptr(src), ptr(dst), rows, width);
  }
  gatherLast(src: Buf, index: Buf, out: Buf, rows: number, cols: number, k: number): void {
    this.#run("gatherLast", rows, rowGrain(k), ptr(src), ptr(index), ptr(out), rows, cols, k, ptr(this.#beyond));
    this.#checkMarked("gatherLast", index, rows * k, cols);
  }
  scatterAddLast(src: Buf, index: Buf, dst: Buf, rows: number, cols: number, k: number): void {
    this.#run("scatterAddLast", rows, rowGrain(k), ptr(src), ptr(index), ptr(dst), rows, cols, k, ptr(this.#beyond));
    this.#checkMarked("scatterAddLast", index, rows * k, cols);
  }
  bincount(src: Buf, index: Buf, n: number, out: Buf, size: number): void {
    this.#checkIndices("bincount", this.#once("bincount", ptr(src), ptr(index), n, ptr(out), size), index, n, size);
  }

  // ---- row-wise functions -------------------------------------------------------------------------------------
  softmax(x: Buf, y: Buf, rows: number, cols: number): void {
    this.#run("softmax", rows, rowGrain(4 * cols), ptr(x), ptr(y), rows, cols);
  }
  softmaxGrad(y: Buf, dy: Buf, dx: Buf, rows: number, cols: number): void {
    this.#run("softmaxGrad", rows, rowGrain(cols), ptr(y), ptr(dy), ptr(dx), rows, cols);
  }
  logSoftmax(x: Buf, y: Buf, rows: number, cols: number): void {
    this.#run("logSoftmax", rows, rowGrain(4 * cols), ptr(x), ptr(y), rows, cols);
  }
  logSoftmaxGrad(y: Buf, dy: Buf, dx: Buf, rows: number, cols: number): void {
    this.#run("logSoftmaxGrad", rows, rowGrain(4 * cols), ptr(y), ptr(dy), ptr(dx), rows, cols);
  }
  logSumExp(x: Buf, out: Buf, rows: number, cols: number): void {
    this.#run("logSumExp", rows, rowGrain(4 * cols), ptr(x), ptr(out), rows, cols);
  }
  layerNorm(x: Buf, gamma: Buf, beta: Buf, y: Buf, mean: Buf, rstd: Buf, rows: number, cols: number, epsilon: number): void {
    this.#run("layerNorm", rows, rowGrain(cols), ptr(x), ptr(gamma), ptr(beta), ptr(y), ptr(mean), ptr(rstd), rows, cols, epsilon);
  }
  layerNormGrad(x: Buf, gamma: Buf, mean: Buf, rstd: Buf, dy: Buf, dx: Buf, dGamma: Buf, dBeta: Buf, rows: number, cols: number): void {
    const args = [ptr(x), ptr(gamma), ptr(mean), ptr(rstd), ptr(dy), ptr(dx), ptr(dGamma), ptr(dBeta), rows, cols];
    this.#run("layerNormGradRows", rows, rowGrain(cols), ...args);
    this.#run("layerNormGradColumns", cols, Math.max(16, rowGrain(rows)), ...args);
  }
  topK(x: Buf, values: Buf, indices: Buf, rows: number, cols: number, k: number): void {
    this.#run("topK", rows, rowGrain(cols * 2), ptr(x), ptr(values), ptr(indices), rows, cols, k);
  }
  rowDot(a: Buf, b: Buf, out: Buf, rows: number, cols: number): void {
    this.#run("rowDot", rows, rowGrain(cols), ptr(a), ptr(b), ptr(out), rows, cols);
  }

  // ---- losses -------------------------------------------------------------------------------------------------
  crossEntropy(logits: Buf, target: Buf, loss: Buf, rows: number, cols: number, gradScale: number): void {
    this.#run("crossEntropy", rows, rowGrain(4 * cols), ptr(logits), ptr(target), ptr(loss), rows, cols, gradScale);
  }
  sampledCrossEntropy(logits: Buf, shift: Buf, samples: Buf, trueLogit: Buf, trueShift: Buf, target: Buf, loss: Buf, rows: number, cols: number, gradScale: number): void {
    this.#run("sampledCrossEntropy", rows, rowGrain(4 * cols), ptr(logits), ptr(shift), ptr(samples), ptr(trueLogit), ptr(trueShift), ptr(target), ptr(loss), rows, cols, gradScale);
  }

  // ---- LSTM cell ------------------------------------------------------------------------------------------------
  lstmCell(gates: Buf, cPrev: Buf, c: Buf, h: Buf, rows: number, hidden: number): void {
    this.#run("lstmCell", rows, rowGrain(16 * hidden), ptr(gates), ptr(cPrev), ptr(c), ptr(h), rows, hidden);
  }
  lstmCellGrad(gates: Buf, cPrev: Buf, c: Buf, dh: Buf, dc: Buf, dGates: Buf, rows: number, hidden: number): void {
    this.#run("lstmCellGrad", rows, rowGrain(8 * hidden), ptr(gates), ptr(cPrev), ptr(c), ptr(dh), ptr(dc), ptr(dGates), rows, hidden);
  }

  // ---- gating ---------------------------------------------------------------------------------------------------
  noisyTopK(clean: Buf, raw: Buf, key: RandomKey, start: number, rowIds: Buf | null, offsets: Buf | null, segments: number,
    topValues: Buf, topIndices: Buf, load: Buf, rows: number, cols: number, k: number): void {
    const scratch = this.alloc("float32", 2 * segments * cols);
    this.#run("noisyTopK", segments, segmentGrain(rows, segments, 16 * cols), ptr(clean), ptr(raw), ...keyWords(key), start, ptr(rowIds), ptr(offsets), segments,
      ptr(topValues), ptr(topIndices), ptr(load), rows, cols, k, ptr(scratch));
    this.free(scratch);
    const used = offsets ? this.#memory.view(offsets)[segments]! : rows;
    const width = Math.min(k + 1, cols);
    if (used === rows) return;
    this.fill(topValues.at(used * width), 0, (rows - used) * width);
    this.fill(topIndices.at(used * width), -1, (rows - used) * width);
  }
  noisyTopKGrad(clean: Buf, raw: Buf, topValues: Buf, topIndices: Buf, dTopValues: Buf | null, dLoad: Buf | null, offsets: Buf | null, segments: number,
    dClean: Buf, dRaw: Buf, rows: number, cols: number, k: number): void {
    this.#run("noisyTopKGrad", segments, segmentGrain(rows, segments, 16 * cols), ptr(clean), ptr(raw), ptr(topValues), ptr(topIndices), ptr(dTopValues), ptr(dLoad), ptr(offsets), segments,
      ptr(dClean), ptr(dRaw), rows, cols, k);
    const used = offsets ? this.#memory.view(offsets)[segments]! : rows;
    if (used < rows) for (const d of [dClean, dRaw]) this.fill(d.at(used * cols), 0, (rows - used) * cols);
  }
  columnCuts(x: Buf, offsets: Buf | null, segments: number, rows: number, cols: number, k: number, cut: Buf, cutRow: Buf): void {
    const parts = Math.ceil(cols / 16);
    const scratch = this.alloc("float32", rows * parts);
    this.#run("columnCuts", segments * parts, segmentGrain(rows, segments, 16 * 16), ptr(x), ptr(offsets), segments, rows, cols, k, ptr(cut), ptr(cutRow), ptr(scratch));
    this.free(scratch);
  }
  listAbove(x: Buf, cut: Buf, cutRow: Buf | null, offsets: Buf | null, segments: number, rows: number, cols: number,
    column: Buf | null, row: Buf | null, rowOffsets: Buf, length: number): void {
    this.#once("listAbove", ptr(x), ptr(cut), ptr(cutRow), ptr(offsets), segments, rows, cols, ptr(column), ptr(row), ptr(rowOffsets), length);
  }
  cvSquared(x: Buf, n: number, out: Buf): void {
    this.#once("cvSquared", ptr(x), n, ptr(out));
  }
  cvSquaredGrad(x: Buf, n: number, dy: Buf, dx: Buf): void {
    this.#once("cvSquaredGrad", ptr(x), n, ptr(dy), ptr(dx));
  }

  // ---- random numbers ---------------------------------------------------------------------------------------------
  randomUniform(out: Buf, n: number, key: RandomKey, start: number, low: number, high: number): void {
    this.#run("randomUniform", n, GRAIN, ptr(out), n, ...keyWords(key), start, low, high);
  }
  randomNormal(out: Buf, n: number, key: RandomKey, start: number, mean: number, std: number): void {
    this.#run("randomNormal", n, GRAIN / 4, ptr(out), n, ...keyWords(key), start, mean, std);
  }
  dropout(x: Buf, y: Buf, n: number, rate: number, key: RandomKey, start: number): void {
    this.#run("dropout", n, GRAIN / 2, ptr(x), ptr(y), n, rate, ...keyWords(key), start);
  }
  randomUniformRows(out: Buf, rowIds: Buf, rows: number, width: number, key: RandomKey, start: number, low: number, high: number): void {
    this.#run("randomUniformRows", rows, rowGrain(width), ptr(out), ptr(rowIds), rows, width, ...keyWords(key), start, low, high);
  }
  dropoutRows(x: Buf, y: Buf, rowIds: Buf, groups: RowGroups | null, rows: number, width: number, rate: number, key: RandomKey, start: number): void {
    const { offsets, count, first, total } = groups ?? { offsets: null, count: 1, first: 0, total: 1 };
    this.#run("dropoutRows", rows, rowGrain(2 * width), ptr(x), ptr(y), ptr(rowIds), ptr(offsets), count, first, total, rows, width, rate, ...keyWords(key), start);
  }

  // ---- optimisers ---------------------------------------------------------------------------------------------------
  sumSquares(x: Buf, n: number, rows: Buf | null, width: number, out: Buf): void {
    const count = rows ? n / Math.max(width, 1) : Math.ceil(n / CHUNK);
    if (count === 0) return;
    const partials = this.alloc("float32", 2 * count);
    this.#run("sumSquaresPartial", count, rows ? rowGrain(width) : 1, ptr(x), n, ptr(rows), width, ptr(partials));
    this.#kernels["sumSquaresFinish"]!(count, ptr(partials), ptr(out));
    this.free(partials);
  }
  adam(param: Buf, grad: Buf, m: Buf | null, v: Buf, n: number, step: number, settings: AdamSettings): void {
    this.#run("adam", n, GRAIN, ptr(param), ptr(grad), ptr(m), ptr(v), n, step, ...adamWords(settings));
  }
  adamRows(param: Buf, grad: Buf, rows: Buf, slots: number, width: number, m: Buf | null, v: Buf, steps: Buf, settings: AdamSettings): void {
    this.#run("adamRows", slots, rowGrain(width), ptr(param), ptr(grad), ptr(rows), slots, width, ptr(m), ptr(v), ptr(steps), ...adamWords(settings));
  }
  factoredAdamRows(param: Buf, grad: Buf, rows: Buf | null, slots: number, height: number, width: number, rowMean: Buf, colMean: Buf, steps: Buf, settings: AdamSettings): void {
    const roots = this.alloc("float32", slots * width);
    this.#run("factoredAdamRows", slots, rowGrain(height * width), ptr(param), ptr(grad), ptr(rows), slots, height, width, ptr(rowMean), ptr(colMean), ptr(steps), ptr(roots), ...adamWords(settings));
    this.free(roots);
  }
  sgd(param: Buf, grad: Buf, n: number, learningRate: number, gradScale: number): void {
    this.#run("sgd", n, GRAIN, ptr(param), ptr(grad), n, learningRate, gradScale);
  }
  sgdRows(param: Buf, grad: Buf, rows: Buf, slots: number, width: number, learningRate: number, gradScale: number): void {
    this.#run("sgdRows", slots, rowGrain(width), ptr(param), ptr(grad), ptr(rows), slots, width, learningRate, gradScale);
  }
}

function keyWords({ seed, stream, step }: RandomKey): [number, number, number, number] {
  return [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0, stream >>> 0, step >>> 0];
}

function adamWords(s: AdamSettings): number[] {
  return [s.learningRate, s.beta1, s.beta2, s.epsilon, s.weightDecay, s.gradScale];
}

function numberFrom(name: string, value: string | undefined): number | undefined {
  if (value === undefined || value === "") return undefined;
  const n = Number(value);
  if (!Number.isInteger(n) || n < 1) throw new ConfigError(`${name}: expected a positive integer, got ${JSON.stringify(value)}.`);
  return n;
}
