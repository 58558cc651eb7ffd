/** How long a receive may still wait when several are needed, or foreign messages come between. */
/** Time left until a moment fixed at construction; without a limit -1, which is ZeroMQ's "for ever". */
export class Deadline {
  readonly #at: number | null;

  constructor(timeoutMs: number | undefined) {
    this.#at = timeoutMs === undefined ? null : performance.now() + timeoutMs;
  }

  remainingMs(): number {
    return this.#at === null ? -1 : Math.max(0, Math.ceil(this.#at - performance.now()));
  }
}
