// Every kernel of the CPU backend. The first two arguments, begin and end, are the part of the parallel axis to do; the rest follow Backend's methods.

export * from "./elementwise";
export * from "./strided";
export * from "./rows";
export * from "./rowwise";
export * from "./cells";
export * from "./random";
export * from "./optim";
export { gemm, gemmScratchBytes } from "./gemm";
