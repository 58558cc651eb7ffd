/**
 * From what the user asked for (sizes, or a share of the cache) to the settings of the published conversion: the
 * candidates, and the choice among them by predicted loss on a few layers. Pure: reads no file, starts nothing.
 * Read next: convert-checkpoint.ts.
 */
import { ConfigError, invariant } from '../../config/errors.ts';
import type { HeadLayout } from '../../model/transmla/attention-maps.ts';
import type { Dense } from '../../model/transmla/dense.ts';
import { predictedLoss } from '../../model/transmla/predicted-loss.ts';
import type { RecipeSettings } from '../../model/transmla/recipe.ts';
import { checkSettings, planLayer, type PublishedSettings, type SourceRope } from '../../model/transmla/published.ts';

/** null: not given. */
export interface SizeRequest {
  readonly exact: boolean;
  /** For stock code: one latent number is a constant, and rotary keys are no wider than a head. */
  readonly portable: boolean;
  readonly ropeDim: number | null;
  readonly kvRank: number | null;
  /** Cache numbers per token of the result over those of the source. */
  readonly cacheRatio: number | null;
  readonly freqfold: number | 'auto';
  readonly balance: number | 'auto';
}

/** Half the source's cache: where the loss is small and the gain is plain. */
export const defaultCacheRatio = 0.5;

/** Rope dims to try, as shares of a head. The recipe chooses slots one by one and has finer sizes. */
const publishedShares = [1 / 4, 1 / 2, 3 / 4, 1];
const recipeShares = [1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1];
/** Of a large cache, which drops as many numbers however it is split, up to this part may be rotary. */
const wideShares = [5 / 4, 3 / 2, 7 / 4, 2];
const widestPart = 2 / 5;

/** @throws ConfigError for sizes that contradict each other or do not fit the model */
export function candidateSettings(
  request: SizeRequest,
  layout: HeadLayout,
  shares: readonly number[] = publishedShares,
): PublishedSettings[] {
  checkRequest(request);
  const { headDim, numKvHeads } = layout;
  const merged = numKvHeads * headDim;
  const balance = request.balance === 'auto' ? 1 : request.balance;
  if (request.exact) return [{ ropeDim: merged, latentDim: merged, freqfold: 1, balance }];
  const total = cacheNumbers(request, merged);
  const ropeDims =
    request.ropeDim === null ? ropeDimsToTry(shares, headDim, merged, total, request.kvRank) : [request.ropeDim];
  const freqfolds = request.freqfold === 'auto' ? freqfoldsToTry(headDim) : [request.freqfold];
  const settings = ropeDims.flatMap((ropeDim) => {
    // More than 2 G d - p numbers would carry nothing.
    const latentDim = request.kvRank ?? Math.min(total - ropeDim, 2 * merged - ropeDim);
    return freqfolds.map((freqfold) => ({ ropeDim, latentDim, freqfold, balance }));
  });
  if (settings.some((candidate) => candidate.latentDim < 1))
    throw new ConfigError(
      `cache-ratio: ${total} numbers per token leave nothing for the latent beside rope-dim ${ropeDims.join(', ')}; raise --cache-ratio or lower --rope-dim`,
    );
  for (const candidate of settings) checkSettings(candidate, layout);
  return settings;
}

/**
 * The same for the recipe, which folds and balances nothing.
 * @throws ConfigError for sizes that contradict each other, do not fit, or belong to the published method
 */
export function recipeCandidates(request: SizeRequest, layout: HeadLayout): RecipeSettings[] {
  const given = (['freqfold', 'balance'] as const).filter((name) => request[name] !== 'auto');
  if (given.length > 0)
    throw new ConfigError(given.map((name) => `${name}: belongs to --method published; leave it out`).join('\n'));
  const total = cacheNumbers(request, layout.numKvHeads * layout.headDim);
  const wide = wideShares.filter((share) => !request.portable && share * layout.headDim <= widestPart * total);
  const candidates = candidateSettings({ ...request, freqfold: 1 }, layout, [...recipeShares, ...wide]);
  if (!request.portable) return candidates.map(({ ropeDim, latentDim }) => ({ ropeDim, latentDim }));
  return candidates.map(({ ropeDim, latentDim }) => {
    if (ropeDim > layout.headDim || latentDim < 2)
      throw new ConfigError(
        `portable: rope ${ropeDim} + latent ${latentDim}; expected a rope-dim of at most ${layout.headDim}, a head, and a latent of at least 2 numbers, of which one is a constant`,
      );
    return { ropeDim, latentDim: latentDim - 1 };
  });
}

/**
 * The candidate of smallest predicted loss, summed over the given layers; of equals the first.
 * @param keyValueMoments second moments of [key; value] of some layers, each [2 G d, 2 G d]
 */
export function chooseSettings(
  candidates: readonly PublishedSettings[],
  keyValueMoments: readonly Dense[],
  layout: HeadLayout,
  rope: SourceRope,
  longestDistance: number,
): PublishedSettings {
  const [first] = candidates;
  invariant(first !== undefined, 'no candidate settings');
  if (candidates.length === 1) return first;
  let best = first;
  let bestLoss = Infinity;
  for (const candidate of candidates) {
    let loss = 0;
    for (const moment of keyValueMoments) {
      loss += predictedLoss(planLayer(moment, layout, candidate), rope, longestDistance);
    }
    if (loss < bestLoss) [best, bestLoss] = [candidate, loss];
  }
  return best;
}

function checkRequest({ exact, ropeDim, kvRank, cacheRatio, freqfold, balance }: SizeRequest): void {
  const mistakes: string[] = [];
  if (exact && (ropeDim !== null || kvRank !== null || cacheRatio !== null))
    mistakes.push('exact: keeps every number of the cache; leave out --rope-dim, --kv-rank and --cache-ratio');
  if (exact && freqfold !== 'auto' && freqfold !== 1)
    mistakes.push(`exact: --freqfold ${freqfold} is an approximation; leave it out`);
  if (cacheRatio !== null && kvRank !== null && ropeDim !== null)
    mistakes.push('cache-ratio: --rope-dim and --kv-rank fix the cache already; leave one of the three out');
  if (cacheRatio !== null && !(cacheRatio > 0 && cacheRatio <= 1))
    mistakes.push(`cache-ratio: expected a number above 0 and at most 1, got ${cacheRatio}`);
  if (balance !== 'auto' && !(balance > 0 && Number.isFinite(balance)))
    mistakes.push(`balance: expected auto or a number above 0, got ${balance}`);
  if (mistakes.length > 0) throw new ConfigError(mistakes.join('\n'));
}

/** p + r in all. */
function cacheNumbers(request: SizeRequest, merged: number): number {
  if (request.kvRank !== null && request.ropeDim !== null) return request.kvRank + request.ropeDim;
  return 2 * Math.round(merged * (request.cacheRatio ?? defaultCacheRatio));
}

/** Shares of a head, where that fits beside a latent. */
function ropeDimsToTry(
  shares: readonly number[],
  headDim: number,
  merged: number,
  total: number,
  kvRank: number | null,
): number[] {
  if (kvRank !== null) return [Math.max(2, 2 * Math.floor((total - kvRank) / 2))];
  const sizes = shares.map((share) => Math.max(2, 2 * Math.round((headDim * share) / 2)));
  const fitting = [...new Set(sizes)].filter((size) => size <= merged && size < total);
  return fitting.length > 0 ? fitting : [2];
}

function freqfoldsToTry(headDim: number): number[] {
  return [1, 2, 4, 8].filter((freqfold) => (headDim / 2) % freqfold === 0);
}
