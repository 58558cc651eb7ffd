/**
 * A conversion from start to finish: calibrate on a cluster of ranks, convert layer by layer in this process, measure
 * perplexity before, without the dropped RoPE, and after, write the folder with its report. Formulas are in
 * model/transmla/. Read next: calibration-text.ts, choose-settings.ts, measure.ts.
 */
import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { messageOf, ConfigError } from '../../config/errors.ts';
import { cacheNumbersPerToken } from '../../config/model-config.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { exportTokenizer } from '../../model/tokenizer-export.ts';
import { inputMoment } from '../../model/transmla/attention-maps.ts';
import type { Dense } from '../../model/transmla/dense.ts';
import { latentRotation } from '../../model/transmla/latent-rotation.ts';
import { applyPlan, keyValueMoment, planLayer, type PublishedSettings } from '../../model/transmla/published.ts';
import { headLayout, readGqaMaps } from '../../model/transmla/read-layer.ts';
import { encodeLayer, type EncodedLayer, writeConverted } from '../../model/transmla/write-converted.ts';
import type { Cluster } from '../cluster.ts';
import { startProgress } from '../progress.ts';
import { seededRandom } from '../sampler.ts';
import { type CalibrationText, type WindowCounts, windowsOfText, writeOwnText } from './calibration-text.ts';
import { candidateSettings, chooseSettings } from './choose-settings.ts';
import type { ConversionOptions, ConversionReport } from './conversion-options.ts';
import { measure, perplexity, startCluster } from './measure.ts';
import { checkOutputFolder, makeFolder } from './output-folder.ts';
import { calibrationPrompts } from './prompts.ts';
import { Stopwatch } from './stopwatch.ts';

/** Longest window; shorter where the model's context or the asked tokens are. */
const maxWindow = 1024;
const heldOutWindows = 4;
/** Layers whose predicted loss decides among settings, spread over the depth: the choice needs no more. */
const sampledLayers = 3;

/**
 * @returns the report that also stands in the folder
 * @throws ConfigError for a model that cannot be converted, sizes that do not fit, a text too short, a folder in the way
 */
export async function convertCheckpoint(options: ConversionOptions): Promise<ConversionReport> {
  const watch = new Stopwatch();
  await checkOutputFolder(options.out, options.force);
  await using source = await openCheckpoint(options.model);
  const calibrated = await calibrateAndConvert(source, options, watch);
  const { text, settings, final } = calibrated;
  return await makeFolder(options.out, options.force, async (folder) => {
    const heldOut = text.heldOut;
    const afterRopePpl =
      calibrated.withoutRank === undefined
        ? undefined
        : await measureLayers(source, calibrated.withoutRank, options, heldOut, folder, 'without the dropped RoPE');
    watch.lap('measure without rope');
    const hash = hashOf(text);
    const record = {
      method: 'published',
      ...settings,
      seed: options.seed,
      calibrationHash: hash,
      source: source.identity,
    };
    await writeConverted(source, final, folder, options.dtype, record);
    if (options.text !== null) await exportTokenizer(options.model, folder);
    watch.lap('write');
    const afterRankPpl = await measure(folder, options, heldOut, 'converted');
    watch.lap('measure converted');
    const report: ConversionReport = {
      method: 'published',
      exact: options.sizes.exact,
      originalPpl: calibrated.originalPpl,
      afterRopePpl: afterRopePpl ?? afterRankPpl,
      afterRankPpl,
      cacheFloatsBefore: cacheNumbersPerToken(source.config),
      cacheFloatsAfter: settings.ropeDim + settings.latentDim,
      ropeDim: settings.ropeDim,
      kvRank: settings.latentDim,
      freqfold: settings.freqfold,
      balance: settings.balance,
      seed: options.seed,
      dtype: options.dtype,
      calibration: nameOf(options.calibration),
      calibrationTokens: countTokens(text.windows),
      heldOutTokens: countTokens(heldOut),
      calibrationHash: hash,
      sourceIdentity: source.identity,
      seconds: watch.total(),
      stageSeconds: watch.laps,
    };
    await writeFile(join(folder, 'conversion_report.json'), `${JSON.stringify(report, null, 2)}\n`);
    return report;
  });
}

interface Calibrated {
  readonly text: CalibrationText;
  readonly originalPpl: number;
  readonly settings: PublishedSettings;
  readonly final: readonly EncodedLayer[];
  /** With a latent of full rank; undefined when nothing is dropped. */
  readonly withoutRank: readonly EncodedLayer[] | undefined;
}

async function calibrateAndConvert(
  source: Checkpoint,
  options: ConversionOptions,
  watch: Stopwatch,
): Promise<Calibrated> {
  const layout = headLayout(source.config);
  const candidates = candidateSettings(options.sizes, layout);
  const counts = windowCounts(source, options);
  await using cluster = await startCluster(source, options, 'gqa', counts);
  watch.lap('start');
  const text = await calibrationText(cluster, options, counts);
  watch.lap('text');
  const originalPpl = await perplexity(cluster, text.heldOut, 'measure original');
  watch.lap('measure original');
  await accumulate(cluster, text.windows);
  watch.lap('calibrate');
  const momentOf = async (layer: number): Promise<Dense> => {
    const { outer, sum } = await cluster.moments.read(layer);
    return inputMoment(outer, sum, countTokens(text.windows));
  };
  const settings = await choose(source, candidates, momentOf, counts.length);
  watch.lap('choose');
  options.log(
    `rope ${settings.ropeDim} + latent ${settings.latentDim} = ${settings.ropeDim + settings.latentDim} cache numbers per token and layer instead of ${cacheNumbersPerToken(source.config)}; freqfold ${settings.freqfold}`,
  );
  const layers = await convertLayers(source, settings, momentOf, options);
  watch.lap('convert');
  return { text, originalPpl, settings, ...layers };
}

async function choose(
  source: Checkpoint,
  candidates: readonly PublishedSettings[],
  momentOf: (layer: number) => Promise<Dense>,
  longestDistance: number,
): Promise<PublishedSettings> {
  const { numLayers, rope } = source.config;
  const moments: Dense[] = [];
  for (let i = 0; i < sampledLayers && candidates.length > 1; i++) {
    const layer = Math.floor(((i + 0.5) * numLayers) / sampledLayers);
    moments.push(keyValueMoment(await readGqaMaps(source, layer), await momentOf(layer)));
  }
  return chooseSettings(candidates, moments, headLayout(source.config), rope, longestDistance);
}

async function convertLayers(
  source: Checkpoint,
  settings: PublishedSettings,
  momentOf: (layer: number) => Promise<Dense>,
  { dtype }: ConversionOptions,
): Promise<Pick<Calibrated, 'final' | 'withoutRank'>> {
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
    final.push(encodeLayer(layer, converted, latentRotation(converted, moment), dtype));
    if (fullRank.latentDim > settings.latentDim) {
      const whole = applyPlan(maps, layout, rope, planLayer(keyValue, layout, fullRank));
      withoutRank.push(encodeLayer(layer, whole, undefined, dtype));
    }
    progress.update(layer + 1);
  }
  return { final, withoutRank: withoutRank.length > 0 ? withoutRank : undefined };
}

/** Writes layers into a folder that lasts as long as the measurement. */
async function measureLayers(
  source: Checkpoint,
  layers: readonly EncodedLayer[],
  options: ConversionOptions,
  heldOut: CalibrationText['heldOut'],
  beside: string,
  label: string,
): Promise<number> {
  const folder = `${beside}-measured`; // inside makeFolder's temporary folder, removed with it
  await mkdir(folder);
  await writeConverted(source, layers, folder, options.dtype, {});
  return await measure(folder, options, heldOut, label);
}

function windowCounts(source: Checkpoint, { calibrationTokens }: ConversionOptions): WindowCounts {
  const length = Math.min(maxWindow, source.config.contextLength, calibrationTokens);
  return { length, calibration: Math.max(1, Math.round(calibrationTokens / length)), heldOut: heldOutWindows };
}

async function calibrationText(
  cluster: Cluster,
  { calibration, text, seed }: ConversionOptions,
  counts: WindowCounts,
): Promise<CalibrationText> {
  if (calibration === 'self') {
    const random = seededRandom(seed);
    const prompts =
      text === null
        ? calibrationPrompts.map(() => [Math.floor(random() * cluster.vocabSize)])
        : calibrationPrompts.map((prompt) => text.encodeRaw(prompt));
    const total = (counts.calibration + counts.heldOut) * counts.length;
    using progress = startProgress('write calibration text', total, { name: 'tokens', size: 1 });
    return await writeOwnText(cluster, prompts, counts, seed, (done) => progress.update(done));
  }
  if (text === null)
    throw new ConfigError(
      `calibration: ${calibration} is text, but this model has no tokenizer; use --calibration self`,
    );
  let content: string;
  try {
    content = await readFile(calibration, 'utf8');
  } catch (error) {
    throw new ConfigError(`calibration: cannot read ${calibration}: ${messageOf(error)}`, { cause: error });
  }
  return windowsOfText(text.encode(content), counts, nameOf(calibration));
}

/** Runs the windows through the ranks, which sum what momentOf reads. */
async function accumulate(cluster: Cluster, windows: CalibrationText['windows']): Promise<void> {
  using progress = startProgress('calibrate', windows.length, { name: 'windows', size: 1 });
  await cluster.moments.begin();
  for (const [i, tokens] of windows.entries()) {
    const sequences = [{ slot: 0, start: 0, tokens: [...tokens] }];
    await cluster.step({ phase: 'prefill', sequences, want: { kind: 'none' } });
    progress.update(i + 1);
  }
}

function countTokens(windows: CalibrationText['windows']): number {
  return windows.reduce((sum, window) => sum + window.length, 0);
}

function hashOf({ windows, heldOut }: CalibrationText): string {
  const ids = Int32Array.from([...windows, ...heldOut].flat());
  return createHash('sha256').update(ids).digest('hex');
}

/** Reports travel with the model: they name the file, not the path to it. */
function nameOf(calibration: string): string {
  return calibration === 'self' ? calibration : basename(calibration);
}
