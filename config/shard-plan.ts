/**
 * Who holds what: pure arithmetic from (model, cluster) to the heads, latent columns, feed-forward columns and
 * vocabulary rows of every rank. Nobody else divides by worldSize. Sizes that do not divide are cut unevenly; a rank
 * may hold an empty range. Read next: worker/weights.ts, which loads exactly these ranges.
 */
import { ConfigError } from './errors.ts';
import type { ModelConfig } from './model-config.ts';
import { checkNearTokens, nearTokens } from './near-tokens.ts';
import { cutsLatent, validLatentGroups, type Scheme } from './schemes.ts';

/** Half-open: start <= i < end. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/** columns: every rank computes its columns of every chosen expert; experts: each expert lies whole on one rank. */
export const expertShardings = ['columns', 'experts'] as const;
export type ExpertSharding = (typeof expertShardings)[number];

/**
 * Which positions of a sequence a rank caches: of every `parts` blocks of `block` positions, block number `part`. Rows of
 * a cache hold them in order, without gaps.
 */
export interface Deal {
  readonly part: number;
  readonly parts: number;
  readonly block: number;
}

export interface ShardPlan {
  readonly scheme: Scheme;
  readonly worldSize: number;
  /** Number of latent shards (paper: g); 1 where the latent is whole or there is none. */
  readonly latentGroups: number;
  readonly expertSharding: ExpertSharding;
  /** Tokens whose whole latent every rank keeps, which `tpla` scores exactly; or the model's near tokens; else 0. */
  readonly exactTokens: ExactTokens;
  readonly ranks: readonly RankPlan[];
}

/** The first `sinks` tokens of a sequence and, for each token, the last `window`, its own included. */
export interface ExactTokens {
  readonly sinks: number;
  readonly window: number;
}

export interface RankPlan {
  readonly rank: number;
  /**
   * Query heads of the decode phase. In `tpla` and `tpla-exact`: all heads, divided among the ranks that share a latent
   * shard; in `dcp`: all heads.
   */
  readonly heads: Range;
  /**
   * Query heads of exact prefill: a part of `heads`; over all ranks every head occurs once. In `dcp`, in both phases:
   * the heads that this rank merges and maps to the output.
   */
  readonly prefillHeads: Range;
  /** KV heads read by `heads`, in `dcp` by `prefillHeads`; of a latent cache those of near tokens, else none. */
  readonly kvHeads: Range;
  /** Latent columns of this rank's group alone that its cache keeps and decode reads; empty for gqa. */
  readonly latent: Range;
  /** First latent columns, which every group keeps beside its own; empty but in `tpla` with an overlap. */
  readonly sharedLatent: Range;
  /** Columns of the rotary key that the cache of this rank keeps; empty for gqa. */
  readonly ropeKey: Range;
  readonly positions: Deal;
  /** Columns of gate and up, rows of the input of down; of dense layers. */
  readonly feedForward: Range;
  /** Experts that this rank holds, and which columns of each: all experts cut by columns, or whole experts dealt out. */
  readonly experts: Range;
  readonly expertColumns: Range;
  /** Columns of the shared experts: always cut. */
  readonly sharedColumns: Range;
  /** Rows of the embedding and of the output head. */
  readonly vocab: Range;
}

export interface PlanRequest {
  readonly worldSize: number;
  readonly scheme: Scheme;
  readonly latentGroups: number;
  /** Quantised weights are cut along columns at multiples of this; 1 for float weights. */
  readonly blockSize: number;
  /** How experts are cut; columns when absent. No meaning for a model without experts. */
  readonly expertSharding?: ExpertSharding;
  /** Relative size of each rank's share; equal when absent. [worldSize] */
  readonly shares?: readonly number[];
  /** None when absent. */
  readonly exactTokens?: ExactTokens;
  /** First latent columns that every group keeps; the last of the latent make room for them. 0 when absent. */
  readonly latentOverlap?: number;
}

export const maxWorldSize = 64;

/** Positions in a row that `dcp` gives to one rank: small, so that the shares of a short context differ by few. */
const dealBlock = 16;
const noTokens: ExactTokens = { sinks: 0, window: 0 };
const wholeDeal: Deal = { part: 0, parts: 1, block: 1 };

/** @throws ConfigError naming the key, the valid values and what to change. */
export function planShards(model: ModelConfig, request: PlanRequest): ShardPlan {
  const { worldSize, scheme, latentGroups, exactTokens = noTokens } = request;
  checkRequest(model, request);
  const shares = request.shares ?? new Array<number>(worldSize).fill(1);
  const feedForward = cut(model.feedForward.dim, shares, request.blockSize);
  const vocab = cut(model.vocabSize, shares, 1);
  const expertSharding = request.expertSharding ?? 'columns';
  const experts = cutExperts(model, expertSharding, shares, request.blockSize);
  const placesPerGroup = worldSize / latentGroups;
  const ranks: RankPlan[] = [];
  for (let rank = 0; rank < worldSize; rank++) {
    const place = rank % placesPerGroup;
    const group = Math.floor(rank / placesPerGroup);
    const groupHeads = at(cut(model.numHeads, sharesOfPlaces(shares, placesPerGroup), 1), place);
    const ownHeads = shift(
      at(cut(size(groupHeads), sharesOfGroups(shares, placesPerGroup, place), 1), group),
      groupHeads.start,
    );
    const heads = headsOf(scheme, model.numHeads, groupHeads, ownHeads);
    ranks.push({
      rank,
      heads,
      prefillHeads: ownHeads,
      kvHeads: kvHeadsOf(model, scheme === 'dcp' ? ownHeads : heads),
      ...latentOf(model, latentGroups, group, request.latentOverlap ?? 0),
      ropeKey: ropeKeyOf(model, request, rank),
      positions: scheme === 'dcp' ? { part: rank, parts: worldSize, block: dealBlock } : wholeDeal,
      feedForward: at(feedForward, rank),
      experts: at(experts.experts, rank),
      expertColumns: at(experts.expertColumns, rank),
      sharedColumns: at(experts.sharedColumns, rank),
      vocab: at(vocab, rank),
    });
  }
  return { scheme, worldSize, latentGroups, expertSharding, exactTokens: nearTokens(model) ?? exactTokens, ranks };
}

export function size(range: Range): number {
  return range.end - range.start;
}

/** The range of rows that a range of heads takes in a matrix with `factor` rows per head. */
export function times(range: Range, factor: number): Range {
  return { start: range.start * factor, end: range.end * factor };
}

/** How many of the first `length` positions the rank with this deal caches. */
export function heldPositions({ part, parts, block }: Deal, length: number): number {
  const rounds = Math.floor(length / (block * parts));
  const rest = length - rounds * block * parts;
  return rounds * block + Math.min(block, Math.max(0, rest - part * block));
}

/**
 * Cuts `total` into consecutive ranges in proportion to `shares`, boundaries at multiples of `block` (the last range
 * takes the remainder). Each boundary is within one block of the exact proportion.
 */
export function cut(total: number, shares: readonly number[], block: number): Range[] {
  const sum = shares.reduce((a, b) => a + b, 0);
  const blocks = Math.ceil(total / block);
  const ranges: Range[] = [];
  let cumulated = 0;
  let start = 0;
  for (const share of shares) {
    cumulated += share;
    // The tolerance keeps 3 * (1/3) from rounding below a whole block.
    const end = Math.min(total, Math.ceil((cumulated / sum) * blocks - 1e-9) * block);
    ranges.push({ start, end });
    start = end;
  }
  return ranges;
}

function checkRequest(model: ModelConfig, request: PlanRequest): void {
  const { worldSize, scheme, latentGroups } = request;
  if (!Number.isInteger(worldSize) || worldSize < 1 || worldSize > maxWorldSize)
    throw new ConfigError(`ranks: expected a whole number from 1 to ${maxWorldSize}, got ${worldSize}`);
  const isMla = model.attention.kind === 'mla';
  if (scheme === 'gqa' && isMla)
    throw new ConfigError(`scheme: gqa needs a key-value cache per head, but this model is MLA; use mla, dcp or tpla`);
  if (scheme !== 'gqa' && !isMla)
    throw new ConfigError(
      `scheme: ${scheme} needs a latent cache, but this ${model.architecture} model is GQA; convert it first (tpla convert) or use --scheme gqa`,
    );
  if (model.attention.kind === 'mla' && worldSize > model.attention.latentDim)
    throw new ConfigError(
      `ranks: ${worldSize} ranks cannot share a latent of ${model.attention.latentDim} columns; use at most ${model.attention.latentDim}`,
    );
  if (!cutsLatent(scheme) && latentGroups !== 1)
    throw new ConfigError(
      `latentGroups: ${latentGroups} has no meaning for scheme ${scheme}; leave it out or use scheme tpla`,
    );
  if (scheme === 'tpla-exact' && latentGroups !== worldSize)
    throw new ConfigError(
      `latentGroups: scheme tpla-exact cuts the latent over all ${worldSize} ranks, got ${latentGroups}; leave it out or use ${worldSize}`,
    );
  checkNearTokens(model, request.exactTokens);
  const { sinks, window } = request.exactTokens ?? noTokens;
  if (sinks + window > 0 && scheme !== 'tpla')
    throw new ConfigError(
      `window: exact attention to some tokens (window ${window}, sinks ${sinks}) is for scheme tpla, not for ${scheme}; leave both out`,
    );
  const overlap = request.latentOverlap ?? 0;
  if (overlap > 0 && (scheme !== 'tpla' || latentGroups === 1))
    throw new ConfigError(
      `overlap: columns that every latent group keeps are for scheme tpla in several groups; leave out the ${overlap}`,
    );
  if (model.attention.kind === 'mla' && overlap * latentGroups > model.attention.latentDim)
    throw new ConfigError(
      `overlap: ${overlap} columns in each of ${latentGroups} groups are more than the latent's ${model.attention.latentDim}; use at most ${Math.floor(model.attention.latentDim / latentGroups)}`,
    );
  if (worldSize % latentGroups !== 0)
    throw new ConfigError(
      `latentGroups: ${latentGroups} does not divide worldSize ${worldSize}; use ${validLatentGroups(worldSize).join(', ')}`,
    );
}

/** By rank; empty for a model without experts. */
function cutExperts(
  model: ModelConfig,
  sharding: ExpertSharding,
  shares: readonly number[],
  blockSize: number,
): Readonly<Record<'experts' | 'expertColumns' | 'sharedColumns', readonly Range[]>> {
  if (model.experts === null) return { experts: [], expertColumns: [], sharedColumns: [] };
  const { count, dim, sharedDim } = model.experts;
  const whole = (end: number): Range[] => shares.map(() => ({ start: 0, end }));
  return {
    experts: sharding === 'experts' ? cut(count, shares, 1) : whole(count),
    expertColumns: sharding === 'experts' ? whole(dim) : cut(dim, shares, blockSize),
    sharedColumns: cut(sharedDim, shares, blockSize),
  };
}

function headsOf(scheme: Scheme, numHeads: number, groupHeads: Range, ownHeads: Range): Range {
  if (scheme === 'dcp') return { start: 0, end: numHeads };
  return scheme === 'gla' ? ownHeads : groupHeads;
}

function kvHeadsOf({ attention, numHeads }: ModelConfig, heads: Range): Range {
  const { numKvHeads = 0 } = attention.kind === 'gqa' ? attention : (attention.near ?? {});
  if (numKvHeads === 0 || size(heads) === 0) return { start: 0, end: 0 };
  const queriesPerKvHead = numHeads / numKvHeads;
  return { start: Math.floor(heads.start / queriesPerKvHead), end: Math.floor((heads.end - 1) / queriesPerKvHead) + 1 };
}

/** With an overlap of k columns in g groups, the last (g - 1) k columns are nobody's: the cache stays as large. */
function latentOf(
  model: ModelConfig,
  latentGroups: number,
  group: number,
  overlap: number,
): Pick<RankPlan, 'latent' | 'sharedLatent'> {
  const sharedLatent = { start: 0, end: overlap };
  if (model.attention.kind !== 'mla') return { latent: sharedLatent, sharedLatent };
  const dealt = model.attention.latentDim - latentGroups * overlap;
  const own = at(cut(dealt, new Array<number>(latentGroups).fill(1), 1), group);
  return { latent: shift(own, overlap), sharedLatent };
}

/** Latent columns in the order in which a rank's cache has them. */
export function cachedLatent({ latent, sharedLatent }: RankPlan): Range[] {
  return [sharedLatent, latent].filter((range) => size(range) > 0);
}

/** Numbers of the latent that a rank keeps of a token. */
export function latentWidth({ latent, sharedLatent }: RankPlan): number {
  return size(sharedLatent) + size(latent);
}

/** Partial scores are summed before softmax in `tpla-exact`, so that the rotary key can be cut too. */
function ropeKeyOf(model: ModelConfig, { scheme, worldSize }: PlanRequest, rank: number): Range {
  if (model.attention.kind !== 'mla') return { start: 0, end: 0 };
  const { ropeDim } = model.attention;
  if (scheme !== 'tpla-exact') return { start: 0, end: ropeDim };
  return at(cut(ropeDim, new Array<number>(worldSize).fill(1), 1), rank);
}

/** What each place in a latent group contributes, summed over the groups. */
function sharesOfPlaces(shares: readonly number[], placesPerGroup: number): number[] {
  const sums = new Array<number>(placesPerGroup).fill(0);
  shares.forEach((share, rank) => (sums[rank % placesPerGroup] = (sums[rank % placesPerGroup] ?? 0) + share));
  return sums;
}

/** The shares, one for each group, of the ranks that stand at `place` in their group. */
function sharesOfGroups(shares: readonly number[], placesPerGroup: number, place: number): number[] {
  return shares.filter((_, rank) => rank % placesPerGroup === place);
}

function shift(range: Range, by: number): Range {
  return { start: range.start + by, end: range.end + by };
}

function at(ranges: readonly Range[], index: number): Range {
  return ranges[index] ?? { start: 0, end: 0 };
}
