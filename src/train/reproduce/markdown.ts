/** A reproduction for a folder of results: the table as Markdown and JSON, and its figures as SVG files that stand alone. */

import { join } from "node:path";
import { makeFolder, writeFileAtomic } from "../atomic.js";
import { drawing } from "../figures.js";
import { COLORS } from "../page.js";
import { claimsOf, comparison, reproductionFigures, type Reproduction } from "./report.js";

/** Writes README.md, results.json and the figures into a folder, which is made. @throws FileError */
export async function writeResults(folder: string, reproduction: Reproduction): Promise<void> {
  const { table, done, text, trainTokens, testTokens, command, machine, createdAt } = reproduction;
  makeFolder(folder);
  const figures = reproductionFigures(await drawing(), reproduction);
  const legend = done.map(({ row }, i) => ({ name: row.labels.join(", "), color: colorAt(i) }));
  for (const { name, svg } of figures)
    writeFileAtomic(join(folder, `${name}.svg`), standalone(svg, name === "capacity" ? [] : legend));
  const { head, rows } = comparison(reproduction);
  const verdicts = claimsOf(reproduction).map(
    ({ says, holds, because }) => `- **${holds ? "Holds" : "Does not hold"}:** ${says} ${because}.`,
  );
  const parts = [
    `# ${table.title}`,
    table.about,
    `Trained on ${text}: ${trainTokens.toLocaleString("en")} tokens, and ${testTokens.toLocaleString("en")} for testing. Every row has the same seed and sees the same batches. ${machine}. ${createdAt.slice(0, 10)}.`,
    "```sh\n" + `npx ${command}` + "\n```",
    [head, head.map(() => "---"), ...rows]
      .map((cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`)
      .join("\n"),
    ...(verdicts.length > 0 ? [verdicts.join("\n")] : []),
    ...figures.map(({ name, caption, note }) => `![${caption}](${name}.svg)\n\n${`${caption} ${note}`.trim()}`),
  ];
  writeFileAtomic(join(folder, "README.md"), `${parts.join("\n\n")}\n`);
  const json = {
    table: table.name,
    command,
    machine,
    createdAt,
    rows: done.map(({ row, history: _, ...rest }) => ({ key: row.key, ...rest, paper: row.paper })),
  };
  writeFileAtomic(join(folder, "results.json"), `${JSON.stringify(json, null, 1)}\n`);
}

const colorAt = (i: number): string => COLORS[i % COLORS.length]!;

/** An SVG that has its own colours and background, with a legend above the drawing where there are names. */
export function standalone(svg: string, legend: readonly { name: string; color: string }[]): string {
  const [width, height] = ["width", "height"].map((name) =>
    Number(new RegExp(`<svg[^>]* ${name}="([\\d.]+)"`).exec(svg)?.[1]),
  ) as [number, number];
  const perLine = Math.max(1, Math.floor(width / 150));
  const above = legend.length === 0 ? 0 : 12 + 18 * Math.ceil(legend.length / perLine);
  const names = legend.map(({ name, color }, i) => {
    const [x, y] = [12 + 150 * (i % perLine), 18 + 18 * Math.floor(i / perLine)];
    return `<path d="M${x} ${y - 4}h18" stroke="${color}" stroke-width="3"/><text x="${x + 24}" y="${y}">${escape(name)}</text>`;
  });
  const inner = COLORS.reduce((text, color, i) => text.replaceAll(`var(--series-${i + 1})`, color), svg)
    .replaceAll("var(--page)", "#fff")
    .replace("<svg", `<svg y="${above}"`);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height + above}" viewBox="0 0 ${width} ${height + above}" font-family="system-ui,sans-serif" font-size="12" color="#1c2024" fill="#1c2024"><rect width="100%" height="100%" fill="#fff"/>${names.join("")}${inner}</svg>\n`;
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
