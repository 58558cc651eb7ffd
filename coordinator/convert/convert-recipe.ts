/**
 * The recipe over a whole model: sizes are chosen, then layers are refitted one by one (convert-refitted.ts) or, without
 * that step, converted all at once: the ranks return importance-weighted statistics layer by layer, this process reduces
 * each while the ranks compute the next. Formulas: model/transmla/recipe.ts.
 */
import { splitStatistics } from '../../collective/statistics.ts';
import { averageStatistics, type KeyValueStatistics } from '../../model/transmla/layer-statistics.ts';
import { headLayout, readGqaMaps, readOutputMap } from '../../model/transmla/read-layer.ts';
import {
  applyRecipe,
  applyWithoutRank,
  planRecipe,
  recipeLosses,
  recipeRotation,
  type RecipeSettings,
} from '../../model/transmla/recipe.ts';
import type { EncodedLayer } from '../../model/transmla/write-converted.ts';
import { startProgress } from '../progress.ts';
import { recipeCandidates } from './choose-settings.ts';
import { convertRefitted } from './convert-refitted.ts';
import { chooseSplit } from './choose-split.ts';
import type { LayerLoss } from './conversion-options.ts';
import { type ConversionJob, type ConvertedLayers, scoresApart } from './converted-layers.ts';

export async function convertRecipeModel(job: ConversionJob): Promise<ConvertedLayers> {
  const { watch, options } = job;
  const candidates = recipeCandidates(options.sizes, headLayout(job.source.config));
  const settings = job.progress.state.settings ?? (await chooseSplit(job, candidates));
  await job.progress.save({ settings });
  watch.lap('choose');
  const layers = options.without.has('refit')
    ? await convertLayers(job, settings, await gather(job))
    : await convertRefitted(job, settings);
  watch.lap('convert');
  return { ...settings, freqfold: 1, balance: null, ...layers };
}

/** [numLayers] */
async function gather({ source, cluster, text, options }: ConversionJob): Promise<KeyValueStatistics[]> {
  const { numLayers } = source.config;
  const layout = headLayout(source.config);
  using progress = startProgress('calibrate', numLayers, { name: 'layers', size: 1 });
  await cluster.calibration.begin(text.windows, false, [], options.near);
  const gathered: KeyValueStatistics[] = [];
  let arriving = cluster.calibration.statistics(0);
  for (let layer = 0; layer < numLayers; layer++) {
    const sums = await arriving;
    // Asked for before this layer is reduced: the ranks need not wait for this process.
    if (layer + 1 < numLayers) arriving = cluster.calibration.statistics(layer + 1);
    // A failure is thrown by the await above, or after an error of ours is not wanted any more.
    arriving.catch(() => undefined);
    const average = averageStatistics(
      splitStatistics(sums, layout),
      layout,
      options.without,
      scoresApart(source.config, options),
    );
    gathered.push(average);
    progress.update(layer + 1);
  }
  await cluster.calibration.end();
  return gathered;
}

async function convertLayers(
  { source, options, store }: ConversionJob,
  { ropeDim, latentDim }: RecipeSettings,
  statistics: readonly KeyValueStatistics[],
): Promise<Pick<ConvertedLayers, 'final' | 'withoutRank' | 'losses'>> {
  const { rope } = source.config;
  const layout = headLayout(source.config);
  const fullRank = 2 * layout.numKvHeads * layout.headDim - ropeDim;
  const final: EncodedLayer[] = [];
  const withoutRank: EncodedLayer[] = [];
  const losses: LayerLoss[] = [];
  using progress = startProgress('convert', statistics.length, { name: 'layers', size: 1 });
  for (const [layer, own] of statistics.entries()) {
    const maps = await readGqaMaps(source, layer);
    const output = await readOutputMap(source, layer);
    const plan = planRecipe(output, own, layout, ropeDim, options.without, options.sizes.portable);
    const converted = applyRecipe(maps, output, own, layout, rope, plan, latentDim);
    const rotation = recipeRotation(own, plan, latentDim);
    final.push(await store('final', layer, converted, rotation));
    const notMeasured = { headsMissed: null, headsMissedRefitted: null, outputMissed: null };
    losses.push({ ...recipeLosses(plan, latentDim), ...notMeasured });
    if (fullRank > latentDim) {
      const whole = applyWithoutRank(maps, output, own, layout, rope, plan);
      withoutRank.push(await store('without-rank', layer, whole, undefined));
    }
    progress.update(layer + 1);
  }
  return { final, withoutRank: withoutRank.length > 0 ? withoutRank : undefined, losses };
}
