/** The WebAssembly module: every kernel, under the name of its method of the backend. What kernels share is imported, not exported. */

export * from "./elementwise";
export * from "./strided";
export * from "./rows";
export * from "./softmax";
export * from "./normalise";
export * from "./losses";
export * from "./lstm";
export * from "./gating";
export * from "./random";
export * from "./optim";
export * from "./gemm";
