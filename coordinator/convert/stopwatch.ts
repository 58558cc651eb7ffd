/** Seconds of consecutive stages, for a report. */
export class Stopwatch {
  readonly laps: Record<string, number> = {};
  readonly #startedAt = performance.now();
  #lapAt = this.#startedAt;

  /** Ends a stage that began at the last lap. */
  lap(stage: string): void {
    const now = performance.now();
    this.laps[stage] = rounded((this.laps[stage] ?? 0) + (now - this.#lapAt) / 1000);
    this.#lapAt = now;
  }

  total(): number {
    return rounded((performance.now() - this.#startedAt) / 1000);
  }
}

function rounded(seconds: number): number {
  return Math.round(seconds * 1000) / 1000;
}
