/** What a mailbox is made with. Read next: mailbox.ts. */
import type { GroupStats } from './group.ts';
import type { CurveOptions } from './zmq.ts';

export interface MailboxSettings {
  readonly rank: number;
  readonly worldSize: number;
  readonly epoch: number;
  /** Where each rank is bound. [worldSize] */
  readonly endpoints: readonly string[];
  /** The same on all ranks of this group, another in any other group. 32 bits */
  readonly groupTag: number;
  /** Deadline of every receive and every send. */
  readonly timeoutMs: number;
  /** Of the socket that connects to this peer; undefined: frames travel in the clear. */
  readonly curveOf?: ((peer: number) => CurveOptions) | undefined;
  /** Fault drills only: what is sent instead of a frame; null: nothing. */
  readonly tamper?: Tamper | undefined;
}

/** Of a group that is made of another one's ranks and takes its mailbox. */
export interface Successor {
  readonly stats: GroupStats;
  /** What a receive waits beyond the deadline: what the sender waits for may be late first, and then it says so. */
  readonly graceMs: number;
  /** As messages call a rank. */
  readonly nameOf: (rank: number) => string;
}

export type Tamper = (frame: Buffer, to: number) => Buffer | null;
