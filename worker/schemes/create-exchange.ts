/** Which scheme exchanges what inside attention. */
import { nearTokens } from '../../config/near-tokens.ts';
import type { ShardPlan } from '../../config/shard-plan.ts';
import type { Chunk } from '../chunks.ts';
import type { RankParts } from '../rank-parts.ts';
import { DealtPositions } from './dealt-positions.ts';
import type { Exchange, RankSeat } from './exchange.ts';
import { SummedScores } from './summed-scores.ts';

/** Whether attention of one token of each of several sequences can be one: there is code for that in the scheme. */
export function joinsSequences({ model, cache }: RankParts, { scheme, worldSize }: ShardPlan): boolean {
  const keepsLatents = cache.recent !== undefined && nearTokens(model) === undefined;
  return !keepsLatents && (worldSize === 1 || scheme !== 'tpla-exact');
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
