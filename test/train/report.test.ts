/** The demo's report: whole, self-contained, and harmless whatever text the corpus holds. */

import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseHTML } from "linkedom";
import { describe, expect, test } from "vitest";
import { renderReport, writeReport, type DemoReport, type ReportRun } from "#sparsegate/train/report.js";

function run(name: string, numExperts: number, testPerplexity: number): ReportRun {
  const moe = numExperts > 1;
  return {
    name,
    numExperts,
    parameters: 1e6 + 1e5 * numExperts,
    moeParameters: 1e5 * numExperts,
    opsPerTimestep: 4e5,
    tokensPerSecond: 12_345,
    testPerplexity,
    cvImportance: moe ? 0.05 : null,
    cvLoad: moe ? 0.07 : null,
    maxOverMeanLoad: moe ? 1.3 : null,
    curve: [1, 2, 3, 4].map((i) => ({ tokens: 1000 * i, loss: 6 - i / 2, ...(i % 2 === 0 && { validPerplexity: 300 / i }) })),
    loadOverTime: moe
      ? [1, 2, 3].map((step) => ({ step, load: Array.from({ length: numExperts }, (_, e) => 1 + (e % step)) }))
      : [],
  };
}

function report(changes: Partial<DemoReport> = {}): DemoReport {
  return {
    title: "Experts and languages",
    createdAt: "2026-11-24T02:00:00.000Z",
    command: "npm start",
    machine: { cpu: "a made-up CPU", threads: 2, backend: "cpu, OpenBLAS" },
    corpus: {
      description: "compiler messages",
      trainTokens: 1_200_000,
      testTokens: 30_000,
      vocabSize: 8000,
      languages: ["en", "ja"],
    },
    runs: [run("MoE-1-Wide", 1, 80), run("MoE-4", 4, 70), run("MoE-256", 256, 60)],
    specialisation: {
      model: "MoE-256",
      languages: ["en", "ja"],
      heat: [
        [0.9, 0.1],
        [0.2, 0.8],
      ],
      heatExperts: [17, 203],
      experts: [
        {
          expert: 17,
          load: 1.2,
          topLanguages: [{ language: "en", share: 0.9 }],
          contexts: [{ before: "Cannot find ", token: "name", after: " 'x'.", gate: 0.61, language: "en" }],
        },
      ],
    },
    samples: [{ model: "MoE-256", text: "Type expected." }],
    ...changes,
  };
}

const parse = (page: string) => parseHTML(page).document;

describe("report", () => {
  test("shows every run, a chart for each figure and each MoE, the contexts and the samples", async () => {
    const document = parse(await renderReport(report()));
    expect([...document.querySelectorAll(".numbers tbody th")].map((cell) => cell.textContent)).toEqual([
      "MoE-1-Wide",
      "MoE-4",
      "MoE-256",
    ]);
    expect(document.querySelector(".best")?.textContent).toBe("60.0");
    expect([...document.querySelectorAll("figure h2")].map((title) => title.textContent)).toEqual([
      "Figure 1",
      "Figure 2",
      "Figure 3",
      "Figure 4",
    ]);
    expect(document.querySelectorAll("svg")).toHaveLength(5); // figure 3 has one for each of the two MoEs
    expect(document.querySelector(".context mark")?.textContent).toBe("name");
    expect(document.querySelector(".samples li")?.textContent).toBe("Type expected.");
    expect(document.querySelector(".lead")?.textContent).toContain(
      "MoE-256, reaches a test perplexity of 60.0: 25% lower than that of the best dense model, MoE-1-Wide (80.0).",
    );
  });

  test("draws a line for each of 4 experts, and bands for 256", async () => {
    const [four, many] = [
      ...parse(await renderReport(report()))
        .querySelectorAll("figure")[2]
        .querySelectorAll("svg"),
    ];
    expect(four.querySelectorAll('[aria-label="line"] path')).toHaveLength(4);
    expect(many.querySelectorAll('[aria-label="line"] path')).toHaveLength(1);
    expect(many.querySelectorAll('[aria-label="area"] path')).toHaveLength(2);
  });

  test("refers to nothing outside itself and runs no script", async () => {
    const page = await renderReport(report());
    expect(page.replaceAll("http://www.w3.org/", "")).not.toMatch(/https?:|<script|<link|<img|url\((?!#)|@import|src=/i);
  });

  test("escapes text wherever it lands", async () => {
    const evil = `</title></style></svg><script>alert("1")</script><img src=x onerror='2'>&amp;\u0000`;
    const data = report({
      title: evil,
      command: evil,
      createdAt: evil,
      machine: { cpu: evil, threads: 1, backend: evil },
      samples: [{ model: evil, text: evil }],
    });
    data.corpus.description = evil;
    data.runs = [run(evil, 1, 80), run(`${evil}2`, 4, 70)];
    data.specialisation.model = evil;
    data.specialisation.languages = [evil, `${evil}3`];
    data.specialisation.experts[0].topLanguages[0].language = evil;
    data.specialisation.experts[0].contexts[0] = { before: evil, token: evil, after: evil, gate: 1, language: evil };
    const page = await renderReport(data);
    expect(page).not.toMatch(/<script|<img|\0/);
    const document = parse(page);
    expect(document.querySelectorAll("script, img")).toHaveLength(0);
    expect(document.querySelector("h1")?.textContent).toBe(evil.replace("\0", "\ufffd"));
    expect(document.querySelector(".context")?.getAttribute("title")).toBe(evil.replace("\0", "\ufffd"));
  });

  test("is a page still when there are no runs, and when a perplexity is not finite", async () => {
    const nothing = { model: "none", languages: [], heat: [], experts: [] };
    expect(
      parse(await renderReport(report({ runs: [], specialisation: nothing, samples: [] }))).querySelectorAll("figure"),
    ).toHaveLength(0);
    const diverged = await renderReport(report({ runs: [run("MoE-4", 4, Infinity), run("MoE-1-Wide", 1, NaN)] }));
    expect(diverged).not.toMatch(/NaN|Infinity|undefined/);
  });

  test("is written whole, in a folder made for it", async () => {
    const folder = mkdtempSync(join(tmpdir(), "sparsegate-report-"));
    try {
      await writeReport(join(folder, "a", "report.html"), report());
      expect(readdirSync(join(folder, "a"))).toEqual(["report.html"]);
      expect(readFileSync(join(folder, "a", "report.html"), "utf8")).toMatch(/^<!doctype html>[\s\S]*<\/html>\n$/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
