/**
 * Attention as ggml nodes, in one of two ways that both sum in f32. With few rows of queries: scores, softmax and
 * weighted sum as three operations, which read f16 values that lie by column three times as fast as those that lie by
 * row. With many: ggml's fused operation, which computes in tiles of TILE_ROWS rows and
 * keeps no scores. (Below that it rounds q to f16 and sums f16 values in f16, wrong by 2e-3, and is no faster.)
 */
import {
  NO_POINTER,
  STORAGE,
  check,
  describe,
  ggmlShape,
  hasContiguousRows,
  isContiguous,
  type GgmlTensor,
} from './tensor.ts';
import { productsOfRows, sizes, weightedSums } from './attention-products.ts';
import { capped, softMax, widen, type Constants } from './compound.ts';
import type { AttendOptions } from '../kernels.ts';
import type { GraphRecorder } from './graph.ts';

const TILE_ROWS = 64;
/** ggml_op_pool */
const POOL_MAX = 0;
/** Heads of other sizes are not computed in tiles: the widest vector, in f32 numbers. */
const TILE_COLUMNS = 16;

/** out [H, T, dv], logSumExp [H, T] */
export interface PartialAttention {
  readonly out: GgmlTensor;
  readonly logSumExp: GgmlTensor;
}

export interface Attention {
  readonly q: GgmlTensor; // [H, T, dk] row-major
  readonly keys: GgmlTensor; // [G, S, dk] with contiguous rows
  readonly values: GgmlTensor; // [G, S, dv] with contiguous rows, or by column: a permuted view of [G, dv, S]
  readonly mask: GgmlTensor; // [T, S] or [G, T, S] row-major
  readonly options: AttendOptions;
  readonly constants: Constants;
}

/** @returns [H, T, dv] */
export function attend(recorder: GraphRecorder, stored: Attention): GgmlTensor {
  checkAttention(stored);
  const attention = unpacked(recorder, stored);
  const { q, keys, values, mask } = attention;
  const [H, T, dk] = sizes(q);
  const [G, , dv] = sizes(values);
  if (H * T * dv === 0) return recorder.emit('f32', [H, T, dv], () => NO_POINTER);
  const tiled = dk % TILE_COLUMNS === 0 && dv % TILE_COLUMNS === 0 && keys.type === values.type;
  const columns = columnsOf(values);
  if (!tiled || (H / G) * T < TILE_ROWS || mask.shape.length === 3) {
    return columns === undefined
      ? attendInSteps(recorder, attention)
      : attendByColumn(recorder, attention, recorder.withContiguousRows(columns));
  }
  const byRow = { ...attention, values: recorder.withContiguousRows(values) };
  return attendFused(recorder, byRow) ?? attendInSteps(recorder, byRow);
}

/**
 * A q8_0 cache as f32. Products straight with it would round queries and shares to 8 bits, and unpacking a latent costs less
 * than the products of many heads with it.
 */
function unpacked(recorder: GraphRecorder, attention: Attention): Attention {
  const { keys, values, constants } = attention;
  if (keys.type !== 'q8_0' && values.type !== 'q8_0') return attention;
  const wideKeys = widen(recorder, constants, keys);
  const wideValues = isPrefix(values, keys)
    ? recorder.slice(wideKeys, 2, 0, sizes(values)[2])
    : widen(recorder, constants, values);
  return { ...attention, keys: wideKeys, values: wideValues };
}

/** Values [G, S, dv] that lie by column, as the [G, dv, S] that they are. */
export function columnsOf(values: GgmlTensor): GgmlTensor | undefined {
  return String(values.permuted?.order) === '0,2,1' ? values.permuted?.source : undefined;
}

/**
 * Products straight with the cache: with f16, ggml rounds queries and shares to f16 as the cache itself is.
 * @param columns [G, dv, S]
 */
function attendByColumn(recorder: GraphRecorder, attention: Attention, columns: GgmlTensor): GgmlTensor {
  const { q, keys, mask, options, constants } = attention;
  const [H, T, dk] = sizes(q);
  const [G, dv, S] = sizes(columns);
  const rows = (H / G) * T;
  const grouped = recorder.reshape(q, [G, rows, dk]);
  const raw = recorder.emit('f32', [G, rows, S], (c, f) => f.mulMat(c, keys.pointer, grouped.pointer));
  const shares = sharesOf(recorder, recorder.reshape(raw, [H, T, S]), mask, options, constants);
  const perGroup = recorder.reshape(shares, [G, rows, S]);
  const sums = recorder.emit('f32', [G, rows, dv], (c, f) => f.mulMat(c, columns.pointer, perGroup.pointer));
  return recorder.reshape(sums, [H, T, dv]);
}

/**
 * Always in steps. The largest share of a row is 1 / sum of exp(score - largest score), so that the logarithm of the
 * sum needs two maxima and no pass of logarithms over all scores.
 * @returns [H, T, dv] and [H, T]
 */
export function attendPartial(recorder: GraphRecorder, stored: Attention): PartialAttention {
  checkAttention(stored);
  const attention = unpacked(recorder, stored);
  const { mask, options, constants } = attention;
  const { scale, softcap } = options;
  const { scores: raw, wideValues } = scoresOf(recorder, attention);
  const scores =
    softcap === 0
      ? recorder.emit('f32', raw.shape, (c, f) => f.scale(c, raw.pointer, scale))
      : capped(recorder, raw, scale, softcap);
  const visible = withMask(recorder, scores, mask);
  const shares = softMax(recorder, constants, scores, mask, 1);
  return {
    out: mixed(recorder, shares, wideValues),
    logSumExp: logSumExp(recorder, largestOfRows(recorder, visible), largestOfRows(recorder, shares)),
  };
}

/** @param scores [H, T, S], before scale and cap  @returns [H, T, dv] */
export function attendScores(
  recorder: GraphRecorder,
  scores: GgmlTensor,
  { values, mask, options, constants }: Omit<Attention, 'q' | 'keys'>,
): GgmlTensor {
  checkScores(scores, values, mask);
  const shares = sharesOf(recorder, scores, mask, options, constants);
  return mixed(recorder, shares, widen(recorder, constants, values));
}

/**
 * Largest score minus log of the largest share. Where nothing is visible ggml's pooling returns the lowest float as the
 * largest score, and the small number keeps log(0) finite; it is far below a share of 1 in any number of positions.
 */
function logSumExp(recorder: GraphRecorder, score: GgmlTensor, share: GgmlTensor): GgmlTensor {
  const above0 = recorder.emit('f32', share.shape, (c, f) => f.scaleBias(c, share.pointer, 1, 1e-30));
  const log = recorder.emit('f32', share.shape, (c, f) => f.log(c, above0.pointer));
  return recorder.emit('f32', share.shape, (c, f) => f.sub(c, score.pointer, log.pointer));
}

/** @param x [H, T, S]  @param mask [T, S] or [G, T, S]  @returns [H, T, S] */
function withMask(recorder: GraphRecorder, x: GgmlTensor, mask: GgmlTensor): GgmlTensor {
  const [H, T, S] = sizes(x);
  const masks = mask.shape.length === 3 ? mask.shape[0]! : 1;
  const rows = recorder.reshape(x, [masks, H / masks, T, S]);
  const own = recorder.reshape(mask, [masks, 1, T, S]);
  const sum = recorder.emit('f32', rows.shape, (c, f) => f.add(c, rows.pointer, own.pointer));
  return recorder.reshape(sum, x.shape);
}

/** @param x [H, T, S]  @returns [H, T] */
function largestOfRows(recorder: GraphRecorder, x: GgmlTensor): GgmlTensor {
  const [H, T, S] = sizes(x);
  const pooled = recorder.emit('f32', [H, T, 1], (c, f) => f.pool2d(c, x.pointer, POOL_MAX, S, 1, S, 1, 0, 0));
  return recorder.reshape(pooled, [H, T]);
}

function checkAttention({ q, keys, values, mask }: Attention): void {
  const at = (): string =>
    `attend: q ${describe(q)}, keys ${describe(keys)}, values ${describe(values)}, mask ${describe(mask)}`;
  const [H, T, dk] = sizes(q);
  const [G, S] = sizes(values);
  const fit =
    String(keys.shape) === String([G, S, dk]) && ['', `${G},`].some((own) => String(mask.shape) === `${own}${T},${S}`);
  check(
    q.shape.length === 3 && values.shape.length === 3 && fit,
    () => `${at()}: expected [H, T, dk], [G, S, dk], [G, S, dv], [T, S] or [G, T, S]`,
  );
  check(G > 0 && H % G === 0, () => `${at()}: ${H} query heads are no multiple of ${G} key heads`);
  check(S > 0 && dk > 0, () => `${at()}: no positions or no columns to compare`);
  check(
    isContiguous(q) &&
      isContiguous(mask) &&
      hasContiguousRows(keys) &&
      (hasContiguousRows(values) || columnsOf(values) !== undefined),
    () => `${at()}: strides`,
  );
  for (const { type } of [keys, values]) {
    check(isCacheType(type), () => `${at()}: keys and values must be f32, f16 or q8_0`);
  }
}

function checkScores(scores: GgmlTensor, values: GgmlTensor, mask: GgmlTensor): void {
  const at = (): string =>
    `attendScores: scores ${describe(scores)}, values ${describe(values)}, mask ${describe(mask)}`;
  const [H, T, S] = sizes(scores);
  const [G, length] = sizes(values);
  check(
    scores.shape.length === 3 && values.shape.length === 3 && length === S && String(mask.shape) === String([T, S]),
    () => `${at()}: expected [H, T, S], [G, S, dv], [T, S]`,
  );
  check(G > 0 && H % G === 0 && S > 0, () => `${at()}: ${H} query heads are no multiple of ${G} heads of values`);
  check(isContiguous(scores) && isContiguous(mask) && hasContiguousRows(values), () => `${at()}: strides`);
  check(isCacheType(values.type), () => `${at()}: values must be f32, f16 or q8_0`);
}

function isCacheType(type: string): boolean {
  return type === 'f32' || type === 'f16' || type === 'q8_0';
}

function attendInSteps(recorder: GraphRecorder, attention: Attention): GgmlTensor {
  const { scores, wideValues } = scoresOf(recorder, attention);
  const { mask, options, constants } = attention;
  return mixed(recorder, sharesOf(recorder, scores, mask, options, constants), wideValues);
}

/**
 * Heads of one group become rows of one matrix, so that its keys and values are read once.
 * @returns scores [H, T, S] before scale and cap, and the values as f32
 */
function scoresOf(
  recorder: GraphRecorder,
  { q, keys, values, constants }: Attention,
): { scores: GgmlTensor; wideValues: GgmlTensor } {
  const [H, T, dk] = sizes(q);
  const [G, S, dv] = sizes(values);
  const rows = (H / G) * T;
  // A product with f16 keys would round q to f16; widening a cache costs less than the products with it.
  const wideKeys = widen(recorder, constants, keys);
  const wideValues = isPrefix(values, keys) ? recorder.slice(wideKeys, 2, 0, dv) : widen(recorder, constants, values);
  const grouped = recorder.reshape(q, [G, rows, dk]);
  return { scores: recorder.reshape(productsOfRows(recorder, wideKeys, grouped), [H, T, S]), wideValues };
}

/** softmax(cap(scale * scores) + mask) */
function sharesOf(
  recorder: GraphRecorder,
  scores: GgmlTensor, // [H, T, S]
  mask: GgmlTensor, // [T, S] or [G, T, S]
  { scale, softcap }: AttendOptions,
  constants: Constants,
): GgmlTensor {
  if (softcap === 0) return softMax(recorder, constants, scores, mask, scale);
  return softMax(recorder, constants, capped(recorder, scores, scale, softcap), mask, 1);
}

/** @param shares [H, T, S]  @param values [G, S, dv] f32  @returns [H, T, dv] */
function mixed(recorder: GraphRecorder, shares: GgmlTensor, values: GgmlTensor): GgmlTensor {
  const [H, T, S] = sizes(shares);
  const [G, , dv] = sizes(values);
  const sums = weightedSums(recorder, values, recorder.reshape(shares, [G, (H / G) * T, S]));
  return recorder.reshape(sums, [H, T, dv]);
}

/** undefined if the device has no such operation for these types and sizes. */
function attendFused(recorder: GraphRecorder, { q, keys, values, mask, options }: Attention): GgmlTensor | undefined {
  const { functions } = recorder;
  const [H, T, dk] = sizes(q);
  const [G, S, dv] = sizes(values);
  // With few tokens the heads of a group fill the tiles, and each head needs the mask rows of its own.
  const headsPerTile = T < TILE_ROWS ? H / G : 1;
  const rows = headsPerTile * T;
  const batches = H / headsPerTile;
  const query = recorder.reshape(q, [batches, rows, dk]);
  const half = recorder.emit('f16', [T, S], (c, f) => f.cast(c, mask.pointer, STORAGE.f16.id));
  const perHead = [headsPerTile, T, S];
  const repeated =
    headsPerTile === 1
      ? half
      : recorder.emit('f16', perHead, (c, f) => f.repeat(c, half.pointer, ...ggmlShape(perHead)));
  const rowMask = recorder.reshape(repeated, [rows, S]);
  const { scale, softcap } = options;
  const node = functions.flash(
    recorder.context(),
    query.pointer,
    keys.pointer,
    values.pointer,
    rowMask.pointer,
    scale,
    0,
    softcap,
  );
  if (!recorder.supports(node)) return undefined;
  const result = recorder.emit('f32', [rows, batches, dv], () => node);
  return recorder.reshape(recorder.packed(recorder.permute(result, [1, 0, 2])), [H, T, dv]);
}

/** Whether values are the first columns of keys, as in a latent cache. */
function isPrefix(values: GgmlTensor, keys: GgmlTensor): boolean {
  return (
    values.root === keys.root &&
    values.offset === keys.offset &&
    values.type === keys.type &&
    String(values.strides) === String(keys.strides) &&
    values.shape[2]! <= keys.shape[2]!
  );
}
