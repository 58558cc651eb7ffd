/** Which scheme exchanges what inside attention. */
import type { ShardPlan } from '../../config/shard-plan.ts';
import type { Chunk } from '../chunks.ts';
import type { RankParts } from '../rank-parts.ts';
import { DealtPositions } from './dealt-positions.ts';
import type { Exchange, RankSeat } from './exchange.ts';
import { SummedScores } from './summed-scores.ts';

export function exchangesInside({ scheme, worldSize }: ShardPlan): boolean {
  return worldSize > 1 && (scheme === 'tpla-exact' || scheme === 'dcp');
}

/** undefined: attention of this scheme needs no exchange. */
export function createExchange(parts: RankParts, seat: RankSeat, chunk: Chunk): Exchange | undefined {
  if (seat.plan.worldSize === 1) return undefined;
  switch (seat.plan.scheme) {
    case 'tpla-exact':
      return new SummedScores(parts, seat, chunk);
    case 'dcp':
      return new DealtPositions(parts, seat, chunk);
    case 'gqa':
    case 'mla':
    case 'tpla':
    case 'gla':
      return undefined;
  }
}
