/**
 * A conversion from start to finish: calibrate on a cluster of ranks, convert layer by layer in this process, measure
 * perplexity before, without the dropped RoPE, and after, write the folder with its report. Formulas are in
 * model/transmla/. Read next: calibration-text.ts, choose-settings.ts, measure.ts.
 */
import { createHash } from 'node:crypto';
import { mkdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError } from '../../config/errors.ts';
import { cacheNumbersPerToken } from '../../config/model-config.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { exportTokenizer } from '../../model/tokenizer-export.ts';
import { LayerSpill } from '../../model/transmla/layer-spill.ts';
import { checkPortable, portableMaps } from '../../model/transmla/portable.ts';
import { convertibleAttention, headLayout, nearValueBias } from '../../model/transmla/read-layer.ts';
import type { RecipeSettings } from '../../model/transmla/recipe.ts';
import {
  encodeLayer,
  type EncodedLayer,
  writeConverted,
  type WrittenForm,
} from '../../model/transmla/write-converted.ts';
import type { Cluster } from '../cluster.ts';
import { startProgress } from '../progress.ts';
import { seededRandom } from '../sampler.ts';
import { formatBytes } from '../table.ts';
import {
  calibrationNames,
  type CalibrationText,
  type PreparedText,
  prepareText,
  type WindowCounts,
} from './calibration-text.ts';
import { candidateSettings, recipeCandidates } from './choose-settings.ts';
import {
  methodOf,
  optionsFor,
  type ConversionOptions,
  type ConversionReport,
  type ConversionRequest,
} from './conversion-options.ts';
import { conversionKey } from './conversion-key.ts';
import { ConversionProgress } from './conversion-progress.ts';
import { convertPublishedModel } from './convert-published.ts';
import { convertRecipeModel } from './convert-recipe.ts';
import type { ConversionJob, ConvertedLayers } from './converted-layers.ts';
import { measure, perplexity, startCluster } from './measure.ts';
import { checkOutputFolder, makeFolder } from './output-folder.ts';
import { writeOwnText } from './own-text.ts';
import { type ConversionPrediction, predictConversion } from './predict.ts';
import { calibrationPrompts } from './prompts.ts';
import { reportPage } from './report-page.ts';
import { Stopwatch } from './stopwatch.ts';

/** Longest window; shorter where the model's context or the asked tokens are. */
const maxWindow = 1024;
const heldOutWindows = 2;

/**
 * @returns the report that also stands in the folder
 * @throws ConfigError for a model that cannot be converted, sizes that do not fit, a text too short, a folder in the way
 */
export async function convertCheckpoint(request: ConversionRequest): Promise<ConversionReport> {
  const watch = new Stopwatch();
  await checkOutputFolder(request.out, request.force);
  await using source = await openCheckpoint(request.model);
  const options = optionsFor(source, request);
  const candidates = candidatesOf(source, options);
  const counts = windowCounts(source, options);
  const prepared = await prepareText(options, counts);
  checkDisk(await predictConversion(source, options, methodOf(options), candidates, counts), options.out);
  const key = await conversionKey(source, options);
  return await makeFolder(options.out, options.force, key, async (folder, scratch) => {
    const progress = await ConversionProgress.open(scratch);
    const run = { source, options, watch, counts, prepared, scratch, progress };
    const { text, originalPpl, layers } = await calibrateAndConvert(run);
    const { heldOut } = text;
    const afterRopePpl = layers.withoutRank && (await measureLayers(run, layers.withoutRank, heldOut));
    watch.lap('measure without rope');
    const calibrationHash = hashOf(text);
    await writeConverted(source, layers.final, folder, formOf(options), recordOf(run, layers, calibrationHash));
    if (options.text !== null) await exportTokenizer(options.model, folder);
    watch.lap('write');
    const afterRankPpl = await measure(folder, options, heldOut, 'converted');
    watch.lap('measure converted');
    const perplexities = { originalPpl, afterRopePpl: afterRopePpl ?? afterRankPpl, afterRankPpl };
    const report = reportOf(run, layers, text, perplexities);
    await writeFile(join(folder, 'conversion_report.json'), `${JSON.stringify(report, null, 2)}\n`);
    const { size: outputBytes } = await stat(join(folder, 'model.safetensors'));
    const { architecture, numLayers } = source.config;
    await writeFile(
      join(folder, 'conversion_report.html'),
      reportPage(report, { architecture, numLayers, outputBytes }),
    );
    return report;
  });
}

/** One conversion: what its steps share. */
interface Run {
  readonly source: Checkpoint;
  readonly options: ConversionOptions;
  readonly watch: Stopwatch;
  readonly counts: WindowCounts;
  readonly prepared: PreparedText;
  /** A folder for what is needed until the checkpoint is written. */
  readonly scratch: string;
  readonly progress: ConversionProgress;
}

/** What config.json says about how the checkpoint came about. */
function recordOf({ source, options }: Run, layers: ConvertedLayers, calibrationHash: string): Record<string, unknown> {
  const { ropeDim, latentDim, freqfold, balance } = layers;
  const method = methodOf(options);
  return {
    method,
    ropeDim,
    latentDim,
    freqfold,
    balance,
    seed: options.seed,
    calibrationHash,
    source: source.identity,
  };
}

function reportOf(
  { source, options, watch }: Run,
  { ropeDim, latentDim, freqfold, balance, losses }: ConvertedLayers,
  text: CalibrationText,
  perplexities: Pick<ConversionReport, 'originalPpl' | 'afterRopePpl' | 'afterRankPpl'>,
): ConversionReport {
  return {
    method: methodOf(options),
    exact: options.sizes.exact,
    ...perplexities,
    cacheFloatsBefore: cacheNumbersPerToken(source.config),
    cacheFloatsAfter: ropeDim + latentDim,
    nearTokens: options.near ?? { sinks: 0, window: 0 },
    ropeDim,
    kvRank: latentDim,
    freqfold,
    balance,
    seed: options.seed,
    dtype: options.dtype,
    calibration: calibrationNames(options.calibration),
    calibrationTokens: countTokens(text.windows),
    heldOutTokens: countTokens(text.heldOut),
    calibrationHash: hashOf(text),
    sourceIdentity: source.identity,
    without: [...options.without],
    layers: losses,
    seconds: watch.total(),
    stageSeconds: watch.laps,
  };
}

/**
 * What convertCheckpoint would do, without doing it.
 * @throws ConfigError as convertCheckpoint does before it starts a cluster
 */
export async function dryRun(request: ConversionRequest): Promise<ConversionPrediction> {
  await checkOutputFolder(request.out, request.force);
  await using source = await openCheckpoint(request.model);
  const options = optionsFor(source, request);
  const candidates = candidatesOf(source, options);
  const counts = windowCounts(source, options);
  await prepareText(options, counts);
  return await predictConversion(source, options, methodOf(options), candidates, counts);
}

/** Also refuses before any work what would be refused after calibration. */
function candidatesOf(source: Checkpoint, options: ConversionOptions): RecipeSettings[] {
  const layout = headLayout(source.config);
  if (options.sizes.portable) checkPortable(source);
  if (methodOf(options) !== 'recipe') return candidateSettings(options.sizes, layout);
  const constants = constantNumbers(options);
  return recipeCandidates(options.sizes, layout).map(({ ropeDim, latentDim }) => ({
    ropeDim,
    latentDim: latentDim + constants,
  }));
}

/** Latent numbers that are written and carry nothing. */
function constantNumbers({ sizes }: ConversionOptions): number {
  return sizes.portable ? 1 : 0;
}

/** @throws ConfigError before hours of work that could not be written down */
function checkDisk({ peakDiskBytes, freeDiskBytes }: ConversionPrediction, out: string): void {
  if (peakDiskBytes > freeDiskBytes)
    throw new ConfigError(
      `out: the conversion needs ${formatBytes(peakDiskBytes)} on the disk of ${out} while it runs, which has ${formatBytes(freeDiskBytes)} free; free some, or name a folder on another disk`,
    );
}

interface Calibrated {
  readonly text: CalibrationText;
  readonly originalPpl: number;
  readonly layers: ConvertedLayers;
}

async function calibrateAndConvert(run: Run): Promise<Calibrated> {
  const { source, options, watch, counts, progress } = run;
  await using cluster = await startCluster(source, options, 'gqa', counts);
  watch.lap('start');
  const { state } = progress;
  const text = run.prepared ?? state.text ?? (await ownText(cluster, options, counts));
  if (run.prepared === undefined) await progress.save({ text: copyOf(text) });
  watch.lap('text');
  const originalPpl = state.originalPpl ?? (await perplexity(cluster, text.heldOut, 'measure original'));
  await progress.save({ originalPpl });
  watch.lap('measure original');
  const spill = new LayerSpill(run.scratch);
  const { portable } = options.sizes;
  const layout = headLayout(source.config);
  const { scoreScale } = convertibleAttention(source.config);
  const store: ConversionJob['store'] = async (kind, layer, { maps, output, meanValue, farSlope }, rotation) => {
    options.signal?.throwIfAborted();
    const written = portable ? portableMaps(maps, layout, scoreScale) : maps;
    return await spill.store(
      `${kind}-${layer}`,
      encodeLayer(layer, written, {
        rotation: portable ? undefined : rotation,
        dtype: options.dtype,
        output,
        ...(options.near === null
          ? {}
          : { nearValueBias: await nearValueBias(source, layer, meanValue), farSlope: farSlope?.data }),
      }),
    );
  };
  const find: ConversionJob['find'] = (kind, layer) => spill.find(`${kind}-${layer}`);
  const job = { source, cluster, text, options, watch, progress, store, find };
  const made = methodOf(options) === 'recipe' ? await convertRecipeModel(job) : await convertPublishedModel(job);
  const layers = { ...made, latentDim: made.latentDim + constantNumbers(options) };
  const { ropeDim, latentDim, freqfold } = layers;
  options.log(
    `rope ${ropeDim} + latent ${latentDim} = ${ropeDim + latentDim} cache numbers per token and layer instead of ${cacheNumbersPerToken(source.config)}; freqfold ${freqfold}`,
  );
  return { text, originalPpl, layers };
}

/** Writes layers into a folder that lasts as long as the measurement. */
async function measureLayers(
  { source, options, scratch }: Run,
  layers: readonly EncodedLayer[],
  heldOut: CalibrationText['heldOut'],
): Promise<number> {
  const folder = join(scratch, 'measured');
  await mkdir(folder, { recursive: true });
  await writeConverted(source, layers, folder, formOf(options), {});
  const measured = await measure(folder, options, heldOut, 'without the dropped RoPE');
  await rm(folder, { recursive: true });
  return measured;
}

function formOf({ dtype, untouched, sizes, near }: ConversionOptions): WrittenForm {
  return { converted: dtype, untouched, portable: sizes.portable, near };
}

/** @throws ConfigError where so many tokens are near that little is left to fit */
function windowCounts(source: Checkpoint, { calibrationTokens, near }: ConversionOptions): WindowCounts {
  const length = Math.min(maxWindow, source.config.contextLength, calibrationTokens);
  if (near !== null && near.sinks + near.window > length / 2)
    throw new ConfigError(
      `keep-window: a window of ${near.window} and ${near.sinks} sinks are more than half of a calibration window of ${length} tokens; keep fewer, or give more --calibration-tokens`,
    );
  return { length, calibration: Math.max(1, Math.round(calibrationTokens / length)), heldOut: heldOutWindows };
}

async function ownText(
  cluster: Cluster,
  { text, seed }: ConversionOptions,
  counts: WindowCounts,
): Promise<CalibrationText> {
  const random = seededRandom(seed);
  const prompts =
    text === null
      ? calibrationPrompts.map(() => [Math.floor(random() * cluster.vocabSize)])
      : calibrationPrompts.map((prompt) => text.encodeRaw(`\n\n${prompt}`));
  const total = (counts.calibration + counts.heldOut) * counts.length;
  using progress = startProgress('write calibration text', total, { name: 'tokens', size: 1 });
  return await writeOwnText(cluster, prompts, counts, seed, (done) => progress.update(done));
}

function copyOf({ windows, heldOut }: CalibrationText): { windows: number[][]; heldOut: number[][] } {
  return { windows: windows.map((window) => [...window]), heldOut: heldOut.map((window) => [...window]) };
}

function countTokens(windows: CalibrationText['windows']): number {
  return windows.reduce((sum, window) => sum + window.length, 0);
}

function hashOf({ windows, heldOut }: CalibrationText): string {
  const ids = Int32Array.from([...windows, ...heldOut].flat());
  return createHash('sha256').update(ids).digest('hex');
}
