/** The leaders of hosts as the ranks of a transport: rank h of it is the leader of host h. See two-level-group.ts. */
import { InvariantError } from '../config/errors.ts';
import type { Mailbox } from './mailbox.ts';
import type { Payload } from './payload.ts';
import type { Transport } from './ring.ts';

export class LeaderTransport implements Transport {
  /** Index of the host. */
  readonly rank: number;
  /** Number of hosts. */
  readonly worldSize: number;
  readonly #mailbox: Mailbox;
  readonly #leaders: readonly number[]; // [hosts]
  readonly #others: readonly number[];

  constructor(mailbox: Mailbox, leaders: readonly number[], host: number) {
    this.rank = host;
    this.worldSize = leaders.length;
    this.#mailbox = mailbox;
    this.#leaders = leaders;
    this.#others = leaders.filter((_, other) => other !== host);
  }

  send(to: number, step: number, data: Float32Array, payload?: Payload): Promise<void> {
    return this.#mailbox.send(this.#leaderOf(to), step, data, payload);
  }

  sendToAll(step: number, data: Float32Array, payload?: Payload): Promise<void> {
    return this.#mailbox.sendToEach(this.#others, step, data, payload);
  }

  receive(
    from: number,
    step: number,
    length: number,
    take: (piece: Float32Array, offset: number) => void,
  ): Promise<void> {
    return this.#mailbox.receive(this.#leaderOf(from), step, length, take);
  }

  #leaderOf(host: number): number {
    const leader = this.#leaders[host];
    if (leader === undefined) throw new InvariantError(`host ${host} of ${this.worldSize} has no leader`);
    return leader;
  }
}
