/**
 * A cluster that serves on some of its ranks until the others come back: which ranks they are in the whole cluster, and
 * which of the missing a process could be that offers itself. Pure. Read next: ../supervisor.ts, places.ts.
 */
import type { ClusterConfig } from '../../config/cluster.ts';
import type { Offer } from '../../collective/greetings.ts';

export interface Reduced {
  readonly whole: ClusterConfig;
  /** The numbers that its ranks have in the whole cluster, ascending. [worldSize] */
  readonly numbers: readonly number[];
  /** Told of an offer that was refused only because the cluster is not whole. */
  readonly onSpare: (offer: Offer) => void;
}

/** Workers that were told to stop offer themselves again; longer pauses than this come after failures alone. */
const leastRejoinSeconds = 10;

/** What a cluster of these ranks is started with; `reduced` is undefined where it is whole. */
export function configOf(
  whole: ClusterConfig,
  numbers: readonly number[],
  onSpare: (offer: Offer) => void,
): { readonly config: ClusterConfig; readonly reduced: Reduced | undefined } {
  const joinSeconds = Math.max(leastRejoinSeconds, whole.faults.rejoinMs / 1000);
  const ranks = numbers.flatMap((number) => whole.ranks[number] ?? []);
  const config = { ...whole, ranks, coordinator: { ...whole.coordinator, joinSeconds } };
  return { config, reduced: ranks.length === whole.ranks.length ? undefined : { whole, numbers, onSpare } };
}

/** The missing rank that this process could be: the one it asks for, or the lowest that joins; null: none. */
export function missingRank({ whole, numbers }: Reduced, { rank }: Pick<Offer, 'rank'>): number | null {
  const missing = whole.ranks.flatMap(({ host }, number) =>
    host === 'join' && !numbers.includes(number) && (rank === null || rank === number) ? [number] : [],
  );
  return missing[0] ?? null;
}
