/** Figures and tables as people read them. */

/** 8388608 → "8.4M". */
export function compact(n: number): string {
  for (const [limit, suffix] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]] as const) if (n >= limit) return `${(n / limit).toFixed(1)}${suffix}`;
  return n.toFixed(0);
}

export function bytes(n: number): string {
  return n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(2)} GiB` : `${(n / 2 ** 20).toFixed(1)} MiB`;
}

/** Columns of text, the first to the left, the rest to the right. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]!.length)));
  const line = (cells: readonly string[]): string => cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join("  ").trimEnd();
  return [line(head), widths.map((width) => "-".repeat(width)).join("  "), ...rows.map(line)].join("\n");
}
