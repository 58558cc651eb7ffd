/**
 * The published method over a whole model: the ranks sum second moments of every layer's input, this process chooses
 * sizes and converts. Also the way of --exact, where nothing is approximated. Formulas: model/transmla/published.ts.
 */
import { inputMoment } from '../../model/transmla/attention-maps.ts';
import type { Dense } from '../../model/transmla/dense.ts';
import { latentRotation } from '../../model/transmla/latent-rotation.ts';
import { applyPlan, keyValueMoment, planLayer, type PublishedSettings } from '../../model/transmla/published.ts';
import { headLayout, readGqaMaps } from '../../model/transmla/read-layer.ts';
import type { EncodedLayer } from '../../model/transmla/write-converted.ts';
import { startProgress } from '../progress.ts';
import { candidateSettings, chooseSettings } from './choose-settings.ts';
import { type ConversionJob, type ConvertedLayers, sampledLayers } from './converted-layers.ts';

type MomentOf = (layer: number) => Promise<Dense>;

export async function convertPublishedModel(job: ConversionJob): Promise<ConvertedLayers> {
  const { cluster, text, watch } = job;
  await accumulate(job);
  watch.lap('calibrate');
  const tokens = text.windows.reduce((sum, window) => sum + window.length, 0);
  const momentOf = async (layer: number): Promise<Dense> => {
    const { outer, sum } = await cluster.moments.read(layer);
    return inputMoment(outer, sum, tokens);
  };
  const settings = await choose(job, momentOf);
  watch.lap('choose');
  const layers = await convertLayers(job, settings, momentOf);
  watch.lap('convert');
  await cluster.moments.end();
  return { ...settings, ...layers, losses: [] };
}

/** Runs the windows through the ranks, which sum what momentOf reads. */
async function accumulate({ cluster, text }: ConversionJob): Promise<void> {
  using progress = startProgress('calibrate', text.windows.length, { name: 'windows', size: 1 });
  await cluster.moments.begin();
  for (const [i, tokens] of text.windows.entries()) {
    const sequences = [{ slot: 0, start: 0, tokens: [...tokens] }];
    await cluster.step({ phase: 'prefill', sequences, want: { kind: 'none' } });
    progress.update(i + 1);
  }
}

async function choose({ source, text, options }: ConversionJob, momentOf: MomentOf): Promise<PublishedSettings> {
  const { numLayers, rope } = source.config;
  const layout = headLayout(source.config);
  const candidates = candidateSettings(options.sizes, layout);
  const moments: Dense[] = [];
  for (const layer of candidates.length > 1 ? sampledLayers(numLayers) : [])
    moments.push(keyValueMoment(await readGqaMaps(source, layer), await momentOf(layer)));
  return chooseSettings(candidates, moments, layout, rope, text.windows[0]?.length ?? 1);
}

async function convertLayers(
  { source, store }: ConversionJob,
  settings: PublishedSettings,
  momentOf: MomentOf,
): Promise<Pick<ConvertedLayers, 'final' | 'withoutRank'>> {
  const { numLayers, rope } = source.config;
  const layout = headLayout(source.config);
  const mergedDim = layout.numKvHeads * layout.headDim;
  const fullRank = { ...settings, latentDim: 2 * mergedDim - settings.ropeDim };
  const final: EncodedLayer[] = [];
  const withoutRank: EncodedLayer[] = [];
  using progress = startProgress('convert', numLayers, { name: 'layers', size: 1 });
  for (let layer = 0; layer < numLayers; layer++) {
    const moment = await momentOf(layer);
    const maps = await readGqaMaps(source, layer);
    const keyValue = keyValueMoment(maps, moment);
    const converted = applyPlan(maps, layout, rope, planLayer(keyValue, layout, settings));
    final.push(await store('final', layer, { maps: converted }, latentRotation(converted, moment)));
    if (fullRank.latentDim > settings.latentDim) {
      const whole = applyPlan(maps, layout, rope, planLayer(keyValue, layout, fullRank));
      withoutRank.push(await store('without-rank', layer, { maps: whole }, undefined));
    }
    progress.update(layer + 1);
  }
  return { final, withoutRank: withoutRank.length > 0 ? withoutRank : undefined };
}
