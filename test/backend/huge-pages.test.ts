/** Pages of 2 MiB: asked for where the system gives them on request only, and nothing else anywhere else. */

import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { findCblas } from "#sparsegate/backend/cpu/cblas.js";
import { adviseHugePages } from "#sparsegate/backend/cpu/huge-pages.js";
import { CpuBackend } from "#sparsegate/backend/cpu/index.js";

const SETTING = "/sys/kernel/mm/transparent_hugepage/enabled";
const onRequest = existsSync(SETTING) && readFileSync(SETTING, "utf8").includes("[madvise]");
const found = findCblas("auto").found;
if (!onRequest || !found) console.warn(`SKIPPED a test of large pages: ${found ? "this system gives none on request" : "no CBLAS, whose package makes the call"}`);

/** KiB of this process in large pages. */
const inHugePages = (): number => Number(/^AnonHugePages:\s+(\d+) kB/m.exec(readFileSync("/proc/self/smaps_rollup", "utf8"))![1]);

describe("adviseHugePages", () => {
  it.skipIf(!onRequest || !found)("puts a backend's memory into large pages", () => {
    const before = inHugePages();
    const backend = new CpuBackend({ threads: 1 });
    const length = 2 ** 24;
    const buf = backend.alloc("float32", length);
    backend.fill(buf, 1, length);
    // Some of 64 MiB may find no free large page.
    expect(inHugePages() - before).toBeGreaterThan(32 * 1024);
    backend.dispose();
  });

  it.skipIf(!onRequest || !found)("takes an address that is nobody's as advice not taken", () => {
    expect(adviseHugePages(2 ** 46, 2 ** 21)).toBe(false);
  });
});
