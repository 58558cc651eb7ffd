/**
 * Hands events from the scheduler, which never waits for a reader, to one reader. Unbounded: a generation has a limited
 * number of tokens. Read next: sequence.ts.
 */
export class EventChannel<Event> implements AsyncIterableIterator<Event, undefined> {
  readonly #events: Event[] = [];
  #waiting: { resolve: (result: IteratorResult<Event, undefined>) => void; reject: (error: Error) => void } | undefined;
  #end: { readonly error: Error | undefined } | undefined;

  push(event: Event): void {
    if (this.#end !== undefined) return;
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting === undefined) this.#events.push(event);
    else waiting.resolve({ done: false, value: event });
  }

  /** No more events; with an error, the reader gets it after those that are there. The first call counts. */
  end(error?: Error): void {
    if (this.#end !== undefined) return;
    this.#end = { error };
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (error === undefined) waiting?.resolve({ done: true, value: undefined });
    else waiting?.reject(error);
  }

  next(): Promise<IteratorResult<Event, undefined>> {
    const event = this.#events.shift();
    if (event !== undefined) return Promise.resolve({ done: false, value: event });
    if (this.#end?.error !== undefined) return Promise.reject(this.#end.error);
    if (this.#end !== undefined) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
    });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
