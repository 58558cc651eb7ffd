/**
 * What a conversion will cost and give, from the configuration and the tensor table alone: `tpla convert --dry-run`. It
 * starts nothing and writes nothing. Sizes of files are exact but for tables of a few numbers and biases; memory is an
 * estimate of the large pieces. Read next: convert-checkpoint.ts, which does what is predicted here.
 */
import { statfs } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { invariant } from '../../config/errors.ts';
import { cacheNumbersPerToken, routes, type ModelConfig } from '../../config/model-config.ts';
import { recentRows } from '../../config/recent-numbers.ts';
import type { Checkpoint, LayerRole } from '../../model/checkpoint.ts';
import { rowBytes } from '../../model/tensor-types.ts';
import { floatTypeOf, type MatrixType, storedType } from '../../model/transmla/encode-floats.ts';
import { headLayout } from '../../model/transmla/read-layer.ts';
import { untouchedTensors } from '../../model/transmla/untouched-tensors.ts';
import type { WindowCounts } from './calibration-text.ts';
import type { ConversionMethod, ConversionOptions } from './conversion-options.ts';

export interface ConversionPrediction {
  readonly method: ConversionMethod;
  /** Sizes that will be tried; one of them where they are given. */
  readonly candidates: readonly { readonly ropeDim: number; readonly kvRank: number }[];
  readonly cacheFloatsBefore: number;
  readonly cacheFloatsAfter: number;
  /** Of f16 caches, all layers. */
  readonly cacheBytesPerTokenBefore: number;
  readonly cacheBytesPerTokenAfter: number;
  /** Keys and values of the first and last tokens, float32, all layers. */
  readonly nearBytesPerSequence: number;
  readonly sourceBytes: number;
  /** Of model.safetensors and tpla_rotation.safetensors; of the largest candidate. */
  readonly outputBytes: number;
  /** Most that is on the disk at a time, the output included. */
  readonly peakDiskBytes: number;
  readonly freeDiskBytes: number;
  readonly calibrationTokens: number;
  readonly heldOutTokens: number;
  /** Estimates: this process, and each rank. */
  readonly coordinatorMemoryBytes: number;
  readonly rankMemoryBytes: number;
}

interface Sizes {
  readonly ropeDim: number;
  readonly latentDim: number;
}

export async function predictConversion(
  source: Checkpoint,
  options: ConversionOptions,
  method: ConversionMethod,
  candidates: readonly Sizes[],
  counts: WindowCounts,
): Promise<ConversionPrediction> {
  const { config } = source;
  const { near } = options;
  const bytesOf = (sizes: Sizes): number => convertedBytes(config, sizes, options, method);
  const largest = candidates.reduce((best, sizes) => (bytesOf(sizes) > bytesOf(best) ? sizes : best));
  const converted = bytesOf(largest);
  const untouched = untouchedBytes(source, options, method);
  const merged = headLayout(config).numKvHeads * headLayout(config).headDim;
  const fullRank = { ropeDim: largest.ropeDim, latentDim: 2 * merged - largest.ropeDim };
  const measured = fullRank.latentDim > largest.latentDim ? bytesOf(fullRank) : 0;
  const outputBytes = converted + untouched;
  const numbers = largest.ropeDim + largest.latentDim;
  const before = cacheNumbersPerToken(config);
  return {
    method,
    candidates: unique(candidates).map(({ ropeDim, latentDim }) => ({ ropeDim, kvRank: latentDim })),
    cacheFloatsBefore: before,
    cacheFloatsAfter: numbers,
    cacheBytesPerTokenBefore: 2 * before * config.numLayers,
    cacheBytesPerTokenAfter: 2 * numbers * config.numLayers,
    nearBytesPerSequence: 4 * before * config.numLayers * (near === null ? 0 : recentRows(near)),
    sourceBytes: source.weightFileBytes,
    outputBytes,
    // Layers of both forms wait in files, at first with the streams to go on from, old and new; then the form that is only
    // measured, later the output, is written beside them.
    peakDiskBytes:
      converted +
      measured +
      Math.max(outputBytes, measured > 0 ? measured + untouched : 0, 2 * streamBytes(config, options, method, counts)),
    freeDiskBytes: await freeBytes(options.out),
    calibrationTokens: counts.calibration * counts.length,
    heldOutTokens: counts.heldOut * counts.length,
    coordinatorMemoryBytes: coordinatorMemory(config, method),
    rankMemoryBytes: rankMemory(source, options, method, counts, largest.latentDim),
  };
}

function unique(candidates: readonly Sizes[]): Sizes[] {
  return [...new Map(candidates.map((sizes) => [`${sizes.ropeDim} ${sizes.latentDim}`, sizes])).values()];
}

/** Bytes of all converted layers, rotation included. */
function convertedBytes(
  config: ModelConfig,
  { ropeDim, latentDim }: Sizes,
  { dtype, near: nearTokens }: ConversionOptions,
  method: ConversionMethod,
): number {
  const { numHeads, headDim, numKvHeads } = headLayout(config);
  const { hiddenDim, numLayers } = config;
  const nopeDim = method === 'published' && ropeDim === numKvHeads * headDim ? 0 : headDim;
  const bytesOf = (rows: number, cols: number, type: MatrixType = dtype): number =>
    rows * rowBytes(storedType(type, cols), cols);
  const query = bytesOf(numHeads * (nopeDim + ropeDim), hiddenDim);
  const down = bytesOf(latentDim + ropeDim, hiddenDim);
  const up = bytesOf(numHeads * (nopeDim + headDim), latentDim, floatTypeOf(dtype));
  const output = method === 'recipe' ? bytesOf(hiddenDim, numHeads * headDim) : 0;
  const biases = method === 'recipe' ? numHeads * (nopeDim + ropeDim) + latentDim + ropeDim + hiddenDim : 0;
  const near = nearTokens === null ? 0 : numKvHeads * headDim;
  const vectors = biases + near + ropeDim / 2 + latentDim ** 2 + latentDim;
  return numLayers * (query + down + up + output + 4 * vectors);
}

function untouchedBytes(source: Checkpoint, { untouched, near }: ConversionOptions, method: ConversionMethod): number {
  const replaced = new Array<boolean>(source.config.numLayers).fill(method === 'recipe');
  return untouchedTensors(source, replaced, untouched, near !== null).reduce((sum, { type, shape }) => {
    invariant(type !== 'i32', 'a weight of whole numbers');
    const rows = shape.slice(0, -1).reduce((a, b) => a * b, 1);
    return sum + rows * rowBytes(type, shape.at(-1) ?? 0);
  }, 0);
}

/** Of the original and the converted model's stream of all windows, where layers are refitted. */
function streamBytes(
  { hiddenDim }: ModelConfig,
  { without }: ConversionOptions,
  method: ConversionMethod,
  { length, calibration }: WindowCounts,
): number {
  return method === 'recipe' && !without.has('refit') ? 2 * 4 * calibration * length * hiddenDim : 0;
}

/** float64: moments of all layers for the recipe, of one otherwise, and the maps of one layer before and after. */
function coordinatorMemory(config: ModelConfig, method: ConversionMethod): number {
  const { numHeads, headDim, numKvHeads } = headLayout(config);
  const [hidden, merged] = [config.hiddenDim + 1, numKvHeads * headDim];
  const statistics = 4 * merged ** 2 * 2 + merged ** 2 + numHeads * headDim ** 2;
  const maps = 4 * numHeads * headDim * hidden + 4 * merged * hidden;
  return 8 * (method === 'recipe' ? statistics * config.numLayers + 4 * hidden ** 2 + maps : 4 * hidden ** 2 + maps);
}

/** Its share of the weights; for the recipe one whole layer and what it holds of its windows, otherwise all moments. */
function rankMemory(
  source: Checkpoint,
  options: ConversionOptions,
  method: ConversionMethod,
  counts: WindowCounts,
  latentDim: number,
): number {
  const { cluster, without } = options;
  const { length, calibration } = counts;
  const { config } = source;
  const ranks = Math.max(1, cluster.ranks.length);
  const { hiddenDim, numLayers, numHeads } = config;
  const weights = source.weightFileBytes / ranks;
  if (method === 'published') return weights + (4 * numLayers * hiddenDim ** 2) / ranks;
  // Streams; refitted: of each layer also the heads' outputs twice, attention's output and the features.
  const { headDim } = headLayout(config);
  const perToken = without.has('refit') ? hiddenDim : 3 * hiddenDim + numHeads * (2 * headDim + latentDim);
  const streams = (4 * calibration * length * perToken) / ranks;
  const pairs = 4 * length ** 2 * (6 * (numHeads / headLayout(config).numKvHeads));
  return weights + layerBytes(source) + streams + pairs + 12 * (hiddenDim + 1) ** 2;
}

/** Attention of the first layer in f32, its feed-forward part about as stored. */
function layerBytes(source: Checkpoint): number {
  const attention: readonly LayerRole[] = ['query', 'key', 'value', 'output'];
  const others: readonly LayerRole[] = routes(source.config, 0)
    ? ['expertGate', 'expertUp', 'expertDown', 'sharedGate', 'sharedUp', 'sharedDown']
    : ['gate', 'up', 'down'];
  const count = (roles: readonly LayerRole[], bytes: (cols: number, role: LayerRole) => number): number =>
    roles.reduce((sum, role) => {
      const shape = source.shapeOf(role, 0);
      return sum + (shape === undefined ? 0 : shape.rows * bytes(shape.cols, role));
    }, 0);
  return (
    count(attention, (cols) => 4 * cols) +
    count(others, (cols, role) => Math.max(cols * 1.1, rowBytes(source.shapeOf(role, 0)?.type ?? 'f32', cols)))
  );
}

/** Of the disk that the folder will lie on: its nearest ancestor that exists. */
async function freeBytes(folder: string): Promise<number> {
  let place = resolve(folder);
  for (;;) {
    try {
      const { bavail, bsize } = await statfs(place);
      return bavail * bsize;
    } catch (error) {
      if (dirname(place) === place) throw error;
      place = dirname(place);
    }
  }
}
