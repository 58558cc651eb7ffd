/** How each rank of a supervised cluster is, for whoever asks. Read next: supervisor.ts. */
import type { Cluster } from './cluster.ts';
import type { Restarts } from './restarts.ts';

export interface RankHealth {
  readonly rank: number;
  readonly pid: number;
  readonly state: 'ok' | 'starting' | 'lost';
  /** Since the rank was certainly there: an answer, or a heartbeat. */
  readonly lastSeenMs: number;
  readonly restarts: number;
  readonly error?: string;
}

/** @param error why the cluster does not work; undefined: it does  @param lost whom that concerns; empty: all */
export function healthOf(
  cluster: Cluster,
  error: Error | undefined,
  lost: readonly number[],
  restarts: Restarts,
): RankHealth[] {
  return cluster.ranks.map(({ rank, pid }) => {
    const isLost = error !== undefined && (lost.length === 0 || lost.includes(rank));
    return {
      rank,
      pid,
      state: isLost ? 'lost' : error === undefined ? 'ok' : 'starting',
      lastSeenMs: cluster.lastSeenMs(rank),
      restarts: restarts.of(rank),
      ...(isLost ? { error: error.message } : {}),
    };
  });
}
