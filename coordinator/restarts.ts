/** How often ranks were started again: how many are left, how long to wait before the next, what to tell of each rank. */

/** Restarts are counted over this long: a server that lives for months may lose more ranks than its ceiling. */
const windowMs = 600_000;
const maxBackoffMs = 30_000;

export interface RestartLimits {
  /** Most restarts within the window. */
  readonly restarts: number;
  /** Before the second attempt of an outage; doubled for each further one. */
  readonly backoffMs: number;
}

export class Restarts {
  readonly #limits: RestartLimits;
  #times: number[] = [];
  readonly #ofRank = new Map<number, number>();

  constructor(limits: RestartLimits) {
    this.#limits = limits;
  }

  get isNoneLeft(): boolean {
    return this.#latest().length >= this.#limits.restarts;
  }

  /** Counts one. @param attempt of this outage, from 0  @returns how long to wait before it, in milliseconds */
  begin(attempt: number): number {
    this.#times = [...this.#latest(), performance.now()];
    // At once the first time; a cause that stays is not helped by haste.
    return attempt === 0 ? 0 : Math.min(maxBackoffMs, this.#limits.backoffMs * 2 ** (attempt - 1));
  }

  /** Another cluster has restarts of its own. */
  forget(): void {
    this.#times = [];
  }

  /** These ranks are there again. */
  succeeded(ranks: readonly number[]): void {
    for (const rank of ranks) this.#ofRank.set(rank, this.of(rank) + 1);
  }

  /** How often the rank was started again. */
  of(rank: number): number {
    return this.#ofRank.get(rank) ?? 0;
  }

  /** Within the window. */
  #latest(): number[] {
    const now = performance.now();
    return this.#times.filter((time) => now - time < windowMs);
  }
}
