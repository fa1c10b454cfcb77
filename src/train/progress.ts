/** Progress of a long run: one live line on a terminal, a line now and then in a pipe or log, or nothing. */

/** The part of a stream that is used; `process.stderr` is one. */
export interface ProgressStream {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

export interface ProgressOptions {
  /** @default process.stderr, so that results on stdout stay clean */
  stream?: ProgressStream;
  /** False for `--no-progress`: nothing is written. @default true */
  enabled?: boolean;
  /** Seconds between lines when the stream is no terminal. @default 10, readable in a log of hours */
  intervalSeconds?: number;
  /** Milliseconds of any clock, for tests. @default performance.now */
  now?: () => number;
}

const redrawMs = 100; // 10 Hz: smooth to the eye, nothing against a training step

/** Shows the latest text of a run. Call `update` as often as you like: most calls cost a look at the clock. */
export class Progress {
  private readonly stream: ProgressStream;
  private readonly enabled: boolean;
  private readonly live: boolean;
  private readonly periodMs: number;
  private readonly now: () => number;
  private shownAt: number;
  private latest: string | (() => string) = "";
  private onScreen = "";
  private finished = false;

  constructor({
    stream = process.stderr,
    enabled = true,
    intervalSeconds = 10,
    now = () => performance.now(),
  }: ProgressOptions = {}) {
    this.stream = stream;
    this.enabled = enabled;
    this.live = stream.isTTY === true && process.env["TERM"] !== "dumb";
    this.periodMs = this.live ? redrawMs : 1000 * intervalSeconds;
    this.now = now;
    this.shownAt = this.live ? -Infinity : now(); // a log gets its first line after the first interval
  }

  /** Shows a new state, unless the last is too fresh. A function is called only when its text is shown. */
  update(text: string | (() => string)): void {
    if (!this.enabled || this.finished) return;
    this.latest = text;
    const time = this.now();
    if (time - this.shownAt < this.periodMs) return;
    this.shownAt = time;
    const line = this.line(text);
    if (this.live) this.draw(line);
    else this.stream.write(`${line}\n`);
  }

  /** Writes a line that stays, above the live one. Silent when progress is off. */
  note(text: string): void {
    if (!this.enabled) return;
    const erase = this.onScreen === "" ? "" : "\r\x1b[K";
    this.stream.write(`${erase}${oneLine(text)}\n`);
    if (this.onScreen !== "") {
      this.stream.write(this.onScreen);
    }
  }

  /** As `note`, but said even where progress is off: what the user has to know. */
  announce(text: string): void {
    if (this.enabled) this.note(text);
    else this.stream.write(`${oneLine(text)}\n`);
  }

  /**
   * Leaves a last line and a clean cursor behind; later calls do nothing.
   * @param text @default the last state given to update
   */
  finish(text: string | (() => string) = this.latest): void {
    if (!this.enabled || this.finished) return;
    this.finished = true;
    const last = this.line(text);
    if (!this.live) {
      if (last !== "") this.stream.write(`${last}\n`);
      return;
    }
    if (last === "" && this.onScreen === "") return;
    this.draw(last);
    this.stream.write("\n");
    this.onScreen = "";
  }

  private draw(line: string): void {
    // The last column stays free: many terminals wrap once it is filled.
    const shown = truncate(line, Math.max(1, (this.stream.columns || 80) - 1));
    this.stream.write(`\r${shown}\x1b[K`);
    this.onScreen = shown;
  }

  private line(text: string | (() => string)): string {
    return oneLine(typeof text === "function" ? text() : text);
  }
}

/** Control characters, line breaks among them, would break the line or the terminal. */
function oneLine(text: string): string {
  return text.replace(/[\p{Cc}\u2028\u2029]+/gu, " ");
}

/** Cuts text to a number of columns, with an ellipsis where something is missing. */
function truncate(text: string, columns: number): string {
  let width = 0;
  let kept = "";
  for (const character of text) {
    width += columnsOf(character);
    if (width > columns) return `${fit(kept, columns - 1)}…`;
    kept += character;
  }
  return text;
}

function fit(text: string, columns: number): string {
  let width = 0;
  let kept = "";
  for (const character of text) {
    width += columnsOf(character);
    if (width > columns) break;
    kept += character;
  }
  return kept;
}

/** Columns a character takes: none for combining marks, two for East Asian and emoji, else one. */
function columnsOf(character: string): number {
  if (/^[\p{Mn}\p{Me}\p{Cf}]/u.test(character)) return 0;
  return /^[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\p{Emoji_Presentation}\u3000-\u303f\uff01-\uff60]/u.test(
    character,
  )
    ? 2
    : 1;
}

/** A duration in the two units that matter: "45s", "3m 05s", "2h 07m", "4d 03h". @param seconds rounded to whole seconds; "?" when not finite */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const whole = Math.max(0, Math.round(seconds));
  const two = (count: number) => String(count).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)}h ${two(Math.floor(whole / 60) % 60)}m`;
  return `${Math.floor(whole / 86_400)}d ${two(Math.floor(whole / 3600) % 24)}h`;
}
