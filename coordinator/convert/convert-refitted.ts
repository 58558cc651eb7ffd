/**
 * The recipe with refit: layers in order, each planned on statistics of the stream that the converted layers before it
 * produce, then refitted to the original's outputs. The ranks hold both streams and compute sums; this process plans
 * and solves. While it plans a layer, the ranks take the original stream through it.
 * Formulas: model/transmla/recipe.ts, refit.ts.
 */
import {
  outputEquationFields,
  type RefitShape,
  splitFields,
  valueEquationFields,
} from '../../collective/refit-maps.ts';
import { splitStatistics } from '../../collective/statistics.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { floatTypeOf, roundFloats } from '../../model/transmla/encode-floats.ts';
import type { LatentRotation } from '../../model/transmla/latent-rotation.ts';
import { averageStatistics, type KeyValueStatistics } from '../../model/transmla/layer-statistics.ts';
import { headLayout, readGqaMaps, readOutputMap } from '../../model/transmla/read-layer.ts';
import {
  applyRecipe,
  applyWithoutRank,
  planRecipe,
  recipeLosses,
  recipeRotation,
  type RecipeLayer,
  type RecipeSettings,
} from '../../model/transmla/recipe.ts';
import { refitOutput, refitValues } from '../../model/transmla/refit.ts';
import type { EncodedLayer } from '../../model/transmla/write-converted.ts';
import { startProgress } from '../progress.ts';
import type { LayerLoss } from './conversion-options.ts';
import { type ConversionJob, type ConvertedLayers, scoresApart } from './converted-layers.ts';
import { joinUp, layerMaps, outputMaps, splitUp } from './refit-payloads.ts';

export async function convertRefitted(
  job: ConversionJob,
  settings: RecipeSettings,
): Promise<Pick<ConvertedLayers, 'final' | 'withoutRank' | 'losses'>> {
  const { source, cluster, text, progress: saved } = job;
  const { numLayers } = source.config;
  const { calibration } = cluster;
  const { final, withoutRank, losses } = await finishedBefore(job, settings);
  const result = { final, withoutRank: isCut(source, settings) ? withoutRank : undefined, losses };
  if (losses.length === numLayers) return result;
  using progress = startProgress('convert', numLayers, { name: 'layers', size: 1 });
  await calibration.begin(text.windows, true, [], job.options.near);
  await calibration.sizes(settings.ropeDim, settings.latentDim);
  if (losses.length > 0) await calibration.restore(losses.length, await saved.streams());
  for (let layer = losses.length; layer < numLayers; layer++) {
    const converted = await convertLayer(job, settings, layer);
    final.push(await job.store('final', layer, converted.final, converted.rotation));
    const whole = converted.withoutRank;
    if (whole !== undefined) withoutRank.push(await job.store('without-rank', layer, whole, undefined));
    losses.push(converted.loss);
    progress.update(layer + 1);
    if (layer + 1 < numLayers && saved.isDue()) await saved.saveLayers(losses, () => calibration.streams());
  }
  await saved.saveLastLayer(losses);
  await calibration.end();
  return result;
}

interface Finished {
  readonly final: EncodedLayer[];
  readonly withoutRank: EncodedLayer[];
  readonly losses: LayerLoss[];
}

async function finishedBefore(
  { source, options, progress, find }: ConversionJob,
  settings: RecipeSettings,
): Promise<Finished> {
  const losses = [...(progress.state.losses ?? [])];
  const finished: Finished = { final: [], withoutRank: [], losses };
  for (let layer = 0; layer < losses.length; layer++) {
    finished.final.push(await find('final', layer));
    if (isCut(source, settings)) finished.withoutRank.push(await find('without-rank', layer));
  }
  const all = source.config.numLayers;
  if (losses.length > 0)
    options.log(`an earlier run of this conversion finished ${losses.length} of ${all} layers: going on`);
  return finished;
}

/** Whether the latent leaves anything out. */
function isCut({ config }: Checkpoint, { ropeDim, latentDim }: RecipeSettings): boolean {
  const { numKvHeads, headDim } = headLayout(config);
  return 2 * numKvHeads * headDim - ropeDim > latentDim;
}

interface ConvertedLayer {
  readonly final: RecipeLayer;
  readonly rotation: LatentRotation;
  /** Undefined when nothing is dropped. */
  readonly withoutRank: RecipeLayer | undefined;
  readonly loss: LayerLoss;
}

/** What does not decide the next message is computed while the ranks work on the last one. */
async function convertLayer(job: ConversionJob, settings: RecipeSettings, layer: number): Promise<ConvertedLayer> {
  const { source, cluster, options } = job;
  const { ropeDim, latentDim } = settings;
  const { rope, hiddenDim } = source.config;
  const { dtype } = options;
  const layout = headLayout(source.config);
  const shape: RefitShape = { hiddenDim, ...layout, ...settings };
  const { calibration } = cluster;
  const maps = await readGqaMaps(source, layer);
  const output = await readOutputMap(source, layer);
  const statistics = await statisticsOf(job, layer);
  const passing = inBackground(calibration.original());
  const plan = planRecipe(output, statistics, layout, ropeDim, options.without, options.sizes.portable);
  const oneShot = applyRecipe(maps, output, statistics, layout, rope, plan, latentDim);
  await passing;

  const attending = inBackground(calibration.attend(layerMaps(oneShot, shape, dtype)));
  const whole = isCut(source, settings) ? applyWithoutRank(maps, output, statistics, layout, rope, plan) : undefined;
  const rotation = recipeRotation(statistics, plan, latentDim);
  const valueSums = splitFields(await attending, valueEquationFields(shape));

  const [keyUp, valueUp] = splitUp(oneShot.maps, shape);
  const values = refitValues(valueSums, valueUp, oneShot.meanValue, layout);
  const outputSums = splitFields(
    await calibration.values(roundFloats(values.valueUp.data, floatTypeOf(dtype), `layer ${layer}, W_UV`)),
    outputEquationFields(shape),
  );
  const refitted = refitOutput(outputSums, output, values.bias);
  const advancing = inBackground(calibration.advance(outputMaps(refitted.output, shape, dtype)));
  const loss = {
    ...recipeLosses(plan, latentDim),
    headsMissed: values.missedBefore,
    headsMissedRefitted: values.missedAfter,
    outputMissed: refitted.missed,
  };
  const refittedMaps = { ...oneShot.maps, latentUp: joinUp(keyUp, values.valueUp, shape) };
  await advancing;
  return { final: { ...oneShot, maps: refittedMaps, output: refitted.output }, rotation, withoutRank: whole, loss };
}

/** A failure is reported by the await that follows, or not wanted any more after an error of ours. */
function inBackground<Result>(work: Promise<Result>): Promise<Result> {
  work.catch(() => undefined);
  return work;
}

async function statisticsOf({ source, cluster, options }: ConversionJob, layer: number): Promise<KeyValueStatistics> {
  const layout = headLayout(source.config);
  const sums = await cluster.calibration.statistics(layer);
  return averageStatistics(splitStatistics(sums, layout), layout, options.without, scoresApart(source.config, options));
}
