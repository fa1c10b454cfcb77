/** Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends the process at once. */

export interface Stop {
  /** Aborted by the first signal. */
  signal: AbortSignal;
  /** 128 and the signal's number, as shells count: 130 after Ctrl-C, 143 after SIGTERM; 0 without a signal. */
  exitCode(): number;
  /** Gives the signals back to the system. */
  end(): void;
}

const CODES = { SIGINT: 130, SIGTERM: 143 } as const;

/** Listens from now on. @param onFirst called at the first signal, to say what happens next */
export function stopSignal(onFirst: () => void): Stop {
  const controller = new AbortController();
  let code = 0;
  const names = Object.keys(CODES) as (keyof typeof CODES)[];
  const end = (): void => {
    for (const name of names) process.off(name, listener);
  };
  const listener = (name: NodeJS.Signals): void => {
    if (controller.signal.aborted) process.exit(code);
    code = CODES[name as keyof typeof CODES];
    onFirst();
    controller.abort();
    // Without listeners the system ends the process at a second signal, even in the middle of saving. Not yet, though: one that has been caught
    // already still has to find its listener.
    setTimeout(end, 10);
  };
  for (const name of names) process.on(name, listener);
  return { signal: controller.signal, exitCode: () => code, end };
}
