// Tests import the built package (#sparsegate/*), because workers and wasm load from dist/; the build runs once before them.
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: process.env["SPARSEGATE_NO_BUILD"] ? [] : ["test/setup.ts"],
    testTimeout: 60_000,
    pool: "forks",
    maxWorkers: 2,
  },
});
