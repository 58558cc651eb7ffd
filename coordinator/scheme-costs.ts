/**
 * What each scheme costs for a model and a number of ranks: cache per rank and bytes on the wire per decoded token, from
 * sizes alone. docs/schemes.md derives the formulas.
 */
import type { ModelConfig } from '../config/model-config.ts';
import { nearTokens } from '../config/near-tokens.ts';
import { recentNumbers, recentRows } from '../config/recent-numbers.ts';
import { defaultLatentGroups, isExact, schemes, type Scheme } from '../config/schemes.ts';
import { latentWidth, planShards, size, type RankPlan, type ShardPlan } from '../config/shard-plan.ts';
import type { WorkerOptions } from '../collective/setup.ts';
import { weightLayout } from '../model/tensor-types.ts';

export interface SchemeCost {
  readonly scheme: Scheme;
  /** The same logits as one rank, to rounding. */
  readonly exact: boolean;
  /** On the rank that holds most. */
  readonly cacheBytesPerToken: number;
  /** By each rank, with a full context. */
  readonly bytesSentPerToken: number;
}

/** One entry for each scheme that the model can have, with its usual latent groups. */
export function schemeCosts(
  model: ModelConfig,
  worldSize: number,
  cacheType: WorkerOptions['cacheType'],
  contextTokens: number,
): SchemeCost[] {
  const isLatent = model.attention.kind === 'mla';
  return schemes
    .filter((scheme) => (scheme === 'gqa') !== isLatent)
    .map((scheme) => {
      const latentGroups = defaultLatentGroups(scheme, worldSize);
      const plan = planShards(model, { worldSize, scheme, latentGroups, blockSize: 1 });
      return {
        scheme,
        exact: isExact(scheme, latentGroups),
        cacheBytesPerToken: Math.max(...plan.ranks.map((rank) => cacheBytesPerToken(model, rank, cacheType))),
        bytesSentPerToken: Math.round(bytesSentPerToken(model, plan, contextTokens)),
      };
    });
}

/** All layers; for a rank to which positions are dealt, on average over them. */
export function cacheBytesPerToken(model: ModelConfig, rank: RankPlan, type: WorkerOptions['cacheType']): number {
  const { blockBytes, blockSize } = weightLayout(type);
  return (model.numLayers * cacheNumbersOf(model, rank) * blockBytes) / blockSize;
}

/** What a rank keeps of first and last tokens beside its rows of all, of one sequence: float32, all layers. */
export function exactTokenBytes(model: ModelConfig, plan: ShardPlan, rank: RankPlan): number {
  // Of near tokens a copy is kept for prompts that go on.
  const copies = nearTokens(model) === undefined ? 1 : 2;
  return copies * model.numLayers * recentRows(plan.exactTokens) * recentNumbers(model, plan, rank) * 4;
}

/** Numbers that one token leaves in this rank's cache of one layer. */
export function cacheNumbersOf(model: ModelConfig, rank: RankPlan): number {
  switch (model.attention.kind) {
    case 'gqa':
      return 2 * size(rank.kvHeads) * model.attention.headDim;
    case 'mla':
      return (latentWidth(rank) + size(rank.ropeKey)) / rank.positions.parts;
  }
}

/**
 * Float32 sent by each rank for a decoded token with `cachedTokens` in the cache. In a ring of N ranks a sum sends
 * 2 (N - 1) / N of the buffer, and a gather N - 1 times the part. Everywhere: two sums per layer and one for the
 * embedding, hiddenDim numbers each.
 */
export function bytesSentPerToken(model: ModelConfig, plan: ShardPlan, cachedTokens: number): number {
  const { worldSize, scheme } = plan;
  const { numLayers, numHeads, hiddenDim, attention } = model;
  const sum = (numbers: number): number => (numbers * 4 * 2 * (worldSize - 1)) / worldSize;
  const gather = (numbers: number): number => numbers * 4 * (worldSize - 1);
  const everywhere = sum((2 * numLayers + 1) * hiddenDim);
  if (scheme === 'tpla-exact') return everywhere + numLayers * sum(numHeads * cachedTokens);
  if (scheme === 'dcp' && attention.kind === 'mla')
    return everywhere + numLayers * gather(numHeads * (attention.valueDim + 1));
  return everywhere;
}
