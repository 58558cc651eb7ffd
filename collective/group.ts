/**
 * What ranks do together. Every implementation (in-process, ZeroMQ ring, direct exchange, shared memory) passes the
 * conformance suite test/suites/process-group.ts. `worldSize` 1 communicates nothing.
 *
 * All ranks call the same operations in the same order. After an all-reduce every rank holds the same bits: each
 * element is summed over ranks in one fixed order.
 */

export interface ProcessGroup extends AsyncDisposable {
  readonly rank: number;
  readonly worldSize: number;
  readonly stats: GroupStats;

  /** Replaces `buffer` on every rank by the sum of all ranks' buffers. `label` names the operation in errors: 'layer 12, attention'. */
  allReduceSum(buffer: Float32Array, label: string): Promise<void>;

  /**
   * Concatenates the parts in rank order into `out`, on every rank. Parts may differ in length (also 0);
   * `lengths` gives each rank's [worldSize], and `part.length === lengths[rank]`.
   */
  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void>;

  /** Copies `buffer` of rank `root` to every rank. */
  broadcast(buffer: Float32Array, root: number, label: string): Promise<void>;

  /** Returns when every rank has called it. */
  barrier(label: string): Promise<void>;
}

/** Counters since the group was made; the caller takes differences. */
export interface GroupStats {
  operations: number;
  bytesSent: number;
  bytesReceived: number;
  /** Time spent inside collectives, waiting included. */
  waitMs: number;
}

export function newGroupStats(): GroupStats {
  return { operations: 0, bytesSent: 0, bytesReceived: 0, waitMs: 0 };
}
