/**
 * What ranks do together. Every implementation (in-process, ZeroMQ ring, direct exchange, shared memory, two levels)
 * passes the conformance suite test/suites/process-group.ts. `worldSize` 1 communicates nothing.
 *
 * All ranks call the same operations in the same order, one at a time. After an all-reduce every rank holds the same
 * bits, whichever implementation ran: a buffer of n elements is cut into worldSize chunks, chunk c being
 * [floor(c n / worldSize), floor((c + 1) n / worldSize)), and each element of chunk c is summed in the order of ranks
 * c, c + 1, ..., worldSize - 1, 0, ..., c - 1, rounded to float32 after each addition (see ring.ts for why). A group of
 * two levels sums the ranks of each host like this, and then the hosts' sums: the same bits on every rank, but others.
 *
 * After a failure the group is unusable: ranks no longer agree on what comes next. Disposing of a group makes an
 * operation in flight fail with a PeerError.
 */

import type { Payload } from './payload.ts';

export interface ProcessGroup extends AsyncDisposable {
  readonly rank: number;
  readonly worldSize: number;
  readonly stats: GroupStats;

  /**
   * Replaces `buffer` on every rank by the sum of all ranks' buffers. `label` names the operation in errors: 'layer 12,
   * attention'. `payload` is what the values travel as between hosts: with any but f32, the default, sums are rounded, to
   * the same bits on every rank.
   */
  allReduceSum(buffer: Float32Array, label: string, payload?: Payload): Promise<void>;

  /**
   * Concatenates the parts in rank order into `out`, on every rank. Parts may differ in length (also 0);
   * `lengths` gives each rank's [worldSize], and `part.length === lengths[rank]`.
   */
  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void>;

  /** Copies `buffer` of rank `root` to every rank. */
  broadcast(buffer: Float32Array, root: number, label: string): Promise<void>;

  /** Returns when every rank has called it. */
  barrier(label: string): Promise<void>;

  /**
   * `buffer` of rank `from` goes to rank `to` and back, nothing else travels meanwhile; it ends on `from` as it was. For
   * the other ranks it is over at once. undefined: no link belongs to two ranks alone, as in shared memory.
   */
  readonly roundTrip?: RoundTrip | undefined;
}

export type RoundTrip = (from: number, to: number, buffer: Float32Array, label: string) => Promise<void>;

/** Counters since the group was made; the caller takes differences. */
export interface GroupStats {
  operations: number;
  /** Elements handed to and taken from other ranks, in bytes, without headers. */
  bytesSent: number;
  bytesReceived: number;
  /** Time spent inside collectives, waiting included. */
  waitMs: number;
}

export function newGroupStats(): GroupStats {
  return { operations: 0, bytesSent: 0, bytesReceived: 0, waitMs: 0 };
}
