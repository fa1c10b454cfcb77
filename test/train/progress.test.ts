/** The progress line: one line on a terminal, few lines in a pipe, none when told so. */

import { describe, expect, test } from "vitest";
import { formatDuration, Progress, type ProgressOptions } from "#sparsegate/train/progress.js";

/** A progress on a made-up stream and clock. */
function make(options: ProgressOptions & { isTTY?: boolean; columns?: number }) {
  const out = {
    text: "",
    isTTY: options.isTTY ?? false,
    columns: options.columns ?? 40,
    write: (text: string) => (out.text += text),
  };
  const clock = { ms: 0 };
  return { out, clock, progress: new Progress({ ...options, stream: out, now: () => clock.ms }) };
}

/** What a terminal shows after this text: carriage returns go back, ESC [K erases. */
function screen(text: string): string[] {
  const lines = [""];
  let column = 0;
  for (const token of text.match(/\p{Cc}\[K|[\s\S]/gu) ?? []) {
    const last = lines.length - 1;
    if (token === "\n") [column] = [0, lines.push("")];
    else if (token === "\r") column = 0;
    else if (token === "\x1b[K") lines[last] = lines[last].slice(0, column);
    else lines[last] = lines[last].slice(0, column) + token + lines[last].slice(++column);
  }
  return lines;
}

describe("on a terminal", () => {
  test("there is one line, which shows the latest text and nothing of a longer one before", () => {
    const { out, clock, progress } = make({ isTTY: true });
    progress.update("step 100 of 1000");
    clock.ms = 100;
    progress.update("step 2");
    expect(screen(out.text)).toEqual(["step 2"]);
    progress.note("a warning\nin two lines");
    expect(screen(out.text)).toEqual(["a warning in two lines", "step 2"]);
    progress.finish("done");
    progress.finish();
    progress.update("late");
    expect(screen(out.text)).toEqual(["a warning in two lines", "done", ""]);
  });

  test("it is drawn at most ten times a second, and texts that are not shown are not made", () => {
    const { out, clock, progress } = make({ isTTY: true });
    let made = 0;
    for (clock.ms = 0; clock.ms < 1000; clock.ms++) progress.update(() => `step ${++made}`);
    expect(made).toBe(10);
    expect(out.text.split("\r").length - 1).toBe(10);
    progress.finish();
    expect(screen(out.text)).toEqual(["step 11", ""]);
  });

  test("it never fills the terminal's width, wide characters counted as two", () => {
    const { out, progress } = make({ isTTY: true, columns: 10 });
    progress.update("123456789");
    expect(screen(out.text)).toEqual(["123456789"]);
    progress.finish("1234567890");
    expect(screen(out.text)).toEqual(["12345678…", ""]);
    const wide = make({ isTTY: true, columns: 10 });
    wide.progress.update("混合専門家の模型");
    expect(screen(wide.out.text)).toEqual(["混合専門…"]);
  });

  test("escape sequences in the text do not reach it", () => {
    const { out, progress } = make({ isTTY: true });
    progress.update("a\x1b[2Jb\rc");
    expect(out.text).toBe("\ra [2Jb c\x1b[K");
  });
});

describe("in a pipe", () => {
  test("there is a line an interval, without escape sequences, and a last one", () => {
    const { out, clock, progress } = make({ intervalSeconds: 10 });
    for (let second = 0; second <= 35; second++) {
      clock.ms = 1000 * second;
      progress.update(`second ${second}, ${"long ".repeat(20)}`.trim());
    }
    progress.note("saved");
    progress.finish("done");
    expect(out.text.split("\n").map((line) => line.slice(0, 9))).toEqual([
      "second 10",
      "second 20",
      "second 30",
      "saved",
      "done",
      "",
    ]);
    expect(out.text).toMatch(/^[ -~\n]*$/);
    expect(out.text.split("\n")[0].length).toBeGreaterThan(100); // not cut
  });
});

test("switched off it writes nothing", () => {
  const { out, progress } = make({ enabled: false, isTTY: true });
  progress.update("a");
  progress.note("b");
  progress.finish("c");
  expect(out.text).toBe("");
});

test("durations are given in the two units that matter", () => {
  expect([0, 59.4, 60, 185, 3599.6, 7620, 90_000, NaN, Infinity].map(formatDuration)).toEqual(
    ["0s", "59s", "1m 00s", "3m 05s", "1h 00m", "2h 07m", "1d 01h", "?", "?"], // prettier-ignore
  );
});
