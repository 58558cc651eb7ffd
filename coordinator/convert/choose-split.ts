/**
 * The split of a cache between rotary key and latent, when only the cache's size was given. Each candidate is tried on
 * three layers spread over the depth, as early layers want more rotary numbers than later ones: the layer is converted, the
 * ranks run its attention on the original model's stream, and W_UV is refitted. The split whose heads miss the smallest share of the original
 * heads' outputs is taken. Nothing is weighed by hand. Read next: choose-settings.ts (candidates), convert-refitted.ts.
 */
import { type RefitShape, splitFields, valueEquationFields } from '../../collective/refit-maps.ts';
import { splitStatistics } from '../../collective/statistics.ts';
import { invariant } from '../../config/errors.ts';
import { averageStatistics, type KeyValueStatistics } from '../../model/transmla/layer-statistics.ts';
import { headLayout, readGqaMaps, readOutputMap } from '../../model/transmla/read-layer.ts';
import { applyRecipe, planRecipe, type RecipeSettings } from '../../model/transmla/recipe.ts';
import { refitValues } from '../../model/transmla/refit.ts';
import { startProgress } from '../progress.ts';
import { type ConversionJob, sampledLayers, scoresApart } from './converted-layers.ts';
import { layerMaps, splitUp } from './refit-payloads.ts';

const windowsToLookAt = 2;

/** @param candidates at least one; of several, the one that misses least */
export async function chooseSplit(job: ConversionJob, candidates: readonly RecipeSettings[]): Promise<RecipeSettings> {
  const [first] = candidates;
  invariant(first !== undefined, 'no candidate sizes');
  if (candidates.length === 1) return first;
  const { source, cluster, text, options } = job;
  const { calibration } = cluster;
  const layout = headLayout(source.config);
  const layers = sampledLayers(source.config.numLayers);
  const scores = candidates.map(() => 0);
  const last = layers.at(-1) ?? 0;
  using progress = startProgress('choose sizes', last + 1, { name: 'layers', size: 1 });
  await calibration.begin(text.windows.slice(0, windowsToLookAt), true, [], options.near);
  // Programs need sizes from the start; `missedShare` sets its own.
  await calibration.sizes(first.ropeDim, first.latentDim);
  for (let layer = 0; layer <= last; layer++) {
    if (layers.includes(layer)) {
      const sums = splitStatistics(await calibration.statistics(layer), layout);
      await calibration.original();
      const statistics = averageStatistics(sums, layout, options.without, scoresApart(source.config, options));
      for (const [i, candidate] of candidates.entries()) {
        const share = await missedShare(job, layer, statistics, candidate);
        // Shares of layers differ by orders of magnitude, so their logarithms are added.
        scores[i] = (scores[i] ?? 0) + Math.log(Math.max(share, Number.MIN_VALUE));
      }
      await calibration.align();
    } else await calibration.follow(layer);
    progress.update(layer + 1);
  }
  await calibration.end();
  options.log(
    `missed share of the heads' outputs, rope + latent: ${candidates
      .map(({ ropeDim, latentDim }, i) => {
        const share = Math.exp((scores[i] ?? 0) / layers.length);
        return `${ropeDim} + ${latentDim}: ${share.toPrecision(3)}`;
      })
      .join(', ')}`,
  );
  return candidates[scores.indexOf(Math.min(...scores))] ?? first;
}

/** Of the layer that the ranks are at. */
async function missedShare(
  { source, cluster, options }: ConversionJob,
  layer: number,
  statistics: KeyValueStatistics,
  { ropeDim, latentDim }: RecipeSettings,
): Promise<number> {
  const layout = headLayout(source.config);
  const shape: RefitShape = { hiddenDim: source.config.hiddenDim, ...layout, ropeDim, latentDim };
  const output = await readOutputMap(source, layer);
  const plan = planRecipe(output, statistics, layout, ropeDim, options.without, options.sizes.portable);
  const maps = await readGqaMaps(source, layer);
  const converted = applyRecipe(maps, output, statistics, layout, source.config.rope, plan, latentDim);
  await cluster.calibration.sizes(ropeDim, latentDim);
  const sums = await cluster.calibration.attend(layerMaps(converted, shape, options.dtype));
  const [, valueUp] = splitUp(converted.maps, shape);
  const { missedBefore, missedAfter } = refitValues(
    splitFields(sums, valueEquationFields(shape)),
    valueUp,
    converted.meanValue,
    layout,
  );
  return options.without.has('refit') ? missedBefore : missedAfter;
}
