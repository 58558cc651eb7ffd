/** The rows of first and last tokens that stand beside a rank's cache. Read next: worker/schemes/recent-tokens.ts. */
import type { ModelConfig } from './model-config.ts';
import { size, type ExactTokens, type RankPlan, type ShardPlan } from './shard-plan.ts';

/** Numbers of such a row: keys and values of near tokens, or a whole latent beside a shard, or nothing. */
export function recentNumbers({ attention }: ModelConfig, { latentGroups }: ShardPlan, { kvHeads }: RankPlan): number {
  if (attention.kind !== 'mla') return 0;
  if (attention.near !== undefined) return 2 * size(kvHeads) * attention.nopeDim;
  return latentGroups > 1 ? attention.latentDim + attention.ropeDim : 0;
}

/** Products over positions are fastest, by far where there are many, when those come in whole vectors. */
const rowsAtOnce = 16;

/** Rows of a sequence, the last ones perhaps never used. */
export function recentRows({ sinks, window }: ExactTokens): number {
  return Math.ceil((sinks + window) / rowsAtOnce) * rowsAtOnce;
}
