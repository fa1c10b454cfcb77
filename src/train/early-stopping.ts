/** Early stopping: training ends when the validation text has not got better for some evaluations. */

/** What is kept of it in a checkpoint. */
export interface EarlyStoppingState {
  /** The lowest loss (nats, or whatever is to be low) and the last step it was at; null before the first evaluation. */
  best: { step: number; loss: number } | null;
  /** Evaluations since. */
  since: number;
}

/** Counts evaluations without a lower loss. */
export class EarlyStopping {
  #best: EarlyStoppingState["best"] = null;
  #since = 0;

  /** @param patience evaluations without a lower loss after which training ends; never when undefined */
  constructor(readonly patience: number | undefined) {}

  /** Takes an evaluation in. One of a step that was seen already, as when it is made again, counts once. @returns whether none was lower */
  observe(step: number, loss: number): boolean {
    if (this.#best !== null && step === this.#best.step) return false;
    const lowest = this.#best?.loss ?? Infinity;
    this.#since = loss < lowest ? 0 : this.#since + 1;
    if (this.#best !== null && !(loss <= lowest)) return false;
    this.#best = { step, loss };
    return true;
  }

  /** Whether training is to end. */
  get stops(): boolean {
    return this.patience !== undefined && this.#since >= this.patience;
  }

  /** The lowest loss and its step; of equal ones the last, which was trained longer. */
  get best(): { step: number; loss: number } | undefined {
    return this.#best ?? undefined;
  }

  /** Lets go of a best whose parameters are lost: the next evaluation is the best, whatever it gives. A run that is to end still is. */
  forgetBest(): void {
    this.#best = null;
  }

  /** For a checkpoint. */
  state(): EarlyStoppingState {
    return { best: this.#best, since: this.#since };
  }

  /** Goes on from a checkpoint's. One that has none leaves it at the beginning. */
  restore(state: unknown): void {
    if (typeof state !== "object" || state === null) return;
    const { best = null, since = 0 } = state as Partial<EarlyStoppingState>;
    this.#best = best;
    this.#since = since;
  }
}
