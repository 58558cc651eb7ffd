/** What happened to a supervised cluster, for its users: the latest events, and whoever wants to hear each. */

export interface ClusterEvent {
  /** ISO 8601 */
  readonly time: string;
  readonly kind: 'started' | 'lost' | 'recovered' | 'degraded' | 'failed';
  /** Undefined where it concerns all. */
  readonly rank: number | undefined;
  readonly text: string;
}

const keptEvents = 200;

export class EventLog {
  readonly latest: ClusterEvent[] = [];
  readonly #onEvent: ((event: ClusterEvent) => void) | undefined;

  constructor(onEvent: ((event: ClusterEvent) => void) | undefined) {
    this.#onEvent = onEvent;
  }

  note(kind: ClusterEvent['kind'], rank: number | undefined, text: string): void {
    const event = { time: new Date().toISOString(), kind, rank, text };
    this.latest.push(event);
    if (this.latest.length > keptEvents) this.latest.shift();
    this.#onEvent?.(event);
  }
}
