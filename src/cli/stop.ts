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

/** What threads know a stop by, in memory that they share: an int32, not 0 after the first signal. */
export function shareStop({ signal }: Pick<Stop, "signal">): SharedArrayBuffer {
  const shared = new SharedArrayBuffer(4);
  if (signal.aborted) tell(shared);
  else signal.addEventListener("abort", () => tell(shared), { once: true });
  return shared;
}

/** Tells all threads to stop. @param shared of `shareStop` */
export function tell(shared: SharedArrayBuffer): void {
  Atomics.store(new Int32Array(shared), 0, 1);
}

/** In a thread: whether it has been told to stop. @param shared of `shareStop` */
export function toldBy(shared: SharedArrayBuffer): Pick<AbortSignal, "aborted"> {
  const told = new Int32Array(shared);
  return {
    get aborted(): boolean {
      return Atomics.load(told, 0) !== 0;
    },
  };
}
