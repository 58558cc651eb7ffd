/**
 * The split of a cache between rotary key and latent, when only the cache's size was given: by what the recipe expects
 * to lose on a few early layers, which show the balance well and are reached soon. The statistics are those of the
 * original model on two windows. Read next: model/transmla/recipe.ts (recipeLosses), choose-settings.ts (candidates).
 */
import { splitStatistics } from '../../collective/statistics.ts';
import { invariant } from '../../config/errors.ts';
import { averageStatistics, type KeyValueStatistics } from '../../model/transmla/layer-statistics.ts';
import { headLayout, readOutputMap } from '../../model/transmla/read-layer.ts';
import { planRecipe, recipeLosses, type RecipeSettings } from '../../model/transmla/recipe.ts';
import { startProgress } from '../progress.ts';
import type { ConversionJob } from './converted-layers.ts';

/**
 * A unit of loss by rotation over one by rank. First order would say 1. Errors of pairs that lost RoPE change sign from
 * key to key and partly cancel in the softmax; measured perplexities choose 40 of 128, 48 of 192 and 64 of 256 numbers
 * for the rotary key, and so does this weight; 1 chooses more.
 */
const rotationShare = 0.15;

const windowsToLookAt = 2;

/** @param candidates at least one; of several, the one of least expected loss */
export async function chooseSplit(job: ConversionJob, candidates: readonly RecipeSettings[]): Promise<RecipeSettings> {
  const [first] = candidates;
  invariant(first !== undefined, 'no candidate sizes');
  if (candidates.length === 1) return first;
  const { source, cluster, text, options } = job;
  const layout = headLayout(source.config);
  const layers = earlyLayers(source.config.numLayers);
  const scores = candidates.map(() => 0);
  const last = layers.at(-1) ?? 0;
  using progress = startProgress('choose sizes', last + 1, { name: 'layers', size: 1 });
  await cluster.calibration.begin(text.windows.slice(0, windowsToLookAt), false);
  for (let layer = 0; layer <= last; layer++) {
    const sums = await cluster.calibration.statistics(layer);
    progress.update(layer + 1);
    if (!layers.includes(layer)) continue;
    const statistics = averageStatistics(splitStatistics(sums, layout), layout, options.without);
    const losses = await lossesOf(job, layer, statistics, candidates);
    // Losses of layers differ by orders of magnitude, so their logarithms are added.
    losses.forEach((loss, i) => (scores[i] = (scores[i] ?? 0) + Math.log(Math.max(loss, Number.MIN_VALUE))));
  }
  await cluster.calibration.end();
  return candidates[scores.indexOf(Math.min(...scores))] ?? first;
}

async function lossesOf(
  { source, options }: ConversionJob,
  layer: number,
  statistics: KeyValueStatistics,
  candidates: readonly RecipeSettings[],
): Promise<number[]> {
  const layout = headLayout(source.config);
  const output = await readOutputMap(source, layer);
  return candidates.map(({ ropeDim, latentDim }) => {
    const plan = planRecipe(output, statistics, layout, ropeDim, options.without, options.sizes.portable);
    const { rotation, rank } = recipeLosses(plan, latentDim);
    return rotationShare * rotation + rank;
  });
}

/** Three of the first third. */
function earlyLayers(numLayers: number): number[] {
  const places = [1 / 18, 1 / 6, 5 / 18].map((share) => Math.floor(share * numLayers));
  return [...new Set(places)];
}
