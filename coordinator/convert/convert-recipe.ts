/**
 * The recipe over a whole model: the ranks return importance-weighted statistics layer by layer, this process reduces
 * each while the ranks compute the next, then chooses sizes and converts. Formulas: model/transmla/recipe.ts.
 */
import { splitStatistics } from '../../collective/statistics.ts';
import {
  averageStatistics,
  keyValueStatistics,
  type KeyValueStatistics,
} from '../../model/transmla/layer-statistics.ts';
import { headLayout, readGqaMaps, readOutputMap } from '../../model/transmla/read-layer.ts';
import {
  applyRecipe,
  planRecipe,
  recipeLoss,
  recipeRotation,
  type RecipeSettings,
} from '../../model/transmla/recipe.ts';
import type { EncodedLayer } from '../../model/transmla/write-converted.ts';
import { startProgress } from '../progress.ts';
import { recipeCandidates } from './choose-settings.ts';
import { type ConversionJob, type ConvertedLayers, sampledLayers } from './converted-layers.ts';

export async function convertRecipeModel(job: ConversionJob): Promise<ConvertedLayers> {
  const { watch } = job;
  const statistics = await gather(job);
  watch.lap('calibrate');
  const settings = await choose(job, statistics);
  watch.lap('choose');
  const layers = await convertLayers(job, settings, statistics);
  watch.lap('convert');
  return { ...settings, freqfold: 1, balance: null, ...layers };
}

/** [numLayers] */
async function gather({ source, cluster, text }: ConversionJob): Promise<KeyValueStatistics[]> {
  const { numLayers, numHeads, hiddenDim } = source.config;
  const { headDim } = headLayout(source.config);
  using progress = startProgress('calibrate', numLayers, { name: 'layers', size: 1 });
  await cluster.calibration.begin(text.windows);
  const gathered: KeyValueStatistics[] = [];
  let arriving = cluster.calibration.statistics(0);
  for (let layer = 0; layer < numLayers; layer++) {
    const sums = await arriving;
    // Asked for before this layer is reduced: the ranks need not wait for this process.
    if (layer + 1 < numLayers) arriving = cluster.calibration.statistics(layer + 1);
    // A failure is thrown by the await above, or after an error of ours is not wanted any more.
    arriving.catch(() => undefined);
    const average = averageStatistics(splitStatistics(sums, { hiddenDim, numHeads, headDim }), numHeads, headDim);
    gathered.push(keyValueStatistics(await readGqaMaps(source, layer), average));
    progress.update(layer + 1);
  }
  await cluster.calibration.end();
  return gathered;
}

/**
 * The candidate whose expected losses, relative to those of the others, are least over the sampled layers. Losses of
 * layers differ by orders of magnitude, so their logarithms are added.
 */
async function choose(
  { source, options }: ConversionJob,
  statistics: readonly KeyValueStatistics[],
): Promise<RecipeSettings> {
  const layout = headLayout(source.config);
  const candidates = recipeCandidates(options.sizes, layout);
  const sums = candidates.map(() => 0);
  for (const layer of candidates.length > 1 ? sampledLayers(source.config.numLayers) : []) {
    const own = statistics[layer];
    if (own === undefined) continue;
    const output = await readOutputMap(source, layer);
    candidates.forEach(({ ropeDim, latentDim }, i) => {
      const loss = recipeLoss(planRecipe(output, own, layout, ropeDim, options.sizes.portable), latentDim);
      sums[i] = (sums[i] ?? 0) + Math.log(Math.max(loss, Number.MIN_VALUE));
    });
  }
  const best = sums.indexOf(Math.min(...sums));
  return candidates[best] ?? { ropeDim: 0, latentDim: 0 };
}

async function convertLayers(
  { source, options, store }: ConversionJob,
  { ropeDim, latentDim }: RecipeSettings,
  statistics: readonly KeyValueStatistics[],
): Promise<Pick<ConvertedLayers, 'final' | 'withoutRank'>> {
  const { rope } = source.config;
  const layout = headLayout(source.config);
  const fullRank = 2 * layout.numKvHeads * layout.headDim - ropeDim;
  const final: EncodedLayer[] = [];
  const withoutRank: EncodedLayer[] = [];
  using progress = startProgress('convert', statistics.length, { name: 'layers', size: 1 });
  for (const [layer, own] of statistics.entries()) {
    const maps = await readGqaMaps(source, layer);
    const output = await readOutputMap(source, layer);
    const plan = planRecipe(output, own, layout, ropeDim, options.sizes.portable);
    const converted = applyRecipe(maps, output, own, layout, rope, plan, latentDim);
    const rotation = recipeRotation(own, plan, latentDim);
    final.push(await store(layer, converted.maps, rotation, converted.output));
    if (fullRank > latentDim) {
      const whole = applyRecipe(maps, output, own, layout, rope, plan, fullRank);
      withoutRank.push(await store(layer, whole.maps, undefined, whole.output));
    }
    progress.update(layer + 1);
  }
  return { final, withoutRank: withoutRank.length > 0 ? withoutRank : undefined };
}
