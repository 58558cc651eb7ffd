/**
 * Operations that ggml has not, has only inexactly, or defines otherwise at the edges, put together from several nodes.
 */
import { NO_POINTER, STORAGE, check, elements, ggmlShape, isContiguous, type GgmlTensor } from './tensor.ts';
import type { RopeOptions } from '../kernels.ts';
import type { GraphRecorder } from './graph.ts';

/** Length of the tables of constants: more than any model has heads, or rotated pairs per head. */
export const CONSTANT_LENGTH = 4096;

/** Rows into which `widen` cuts its input, so that several threads have some. */
export const WIDEN_ROWS = 64;
/** Blocks of rows that `widen` takes at once. */
export const WIDEN_BLOCKS = 256;

const ROPE_INTERLEAVED = 0;
const ROPE_HALVES = 2;

/** Allocated once per backend. */
export interface Constants {
  readonly ones: GgmlTensor; // [CONSTANT_LENGTH] f32
  /** All -1e30: below every score, above the -Infinity of a mask. */
  readonly veryLow: GgmlTensor; // [CONSTANT_LENGTH] f32
  readonly rowNumbers: GgmlTensor; // [WIDEN_BLOCKS, WIDEN_ROWS] i32: in each row 0, 1, 2 ...
}

/**
 * softmax(scale * x + mask) of x [H, T, S], mask [T, S] or [G, T, S]. A row without any visible position gives zeros, not NaN: ggml then finds the
 * sink as the largest score, which takes all weight and stands for no position.
 */
export function softMax(
  recorder: GraphRecorder,
  { veryLow }: Constants,
  x: GgmlTensor,
  mask: GgmlTensor,
  scale: number,
): GgmlTensor {
  const [H = 0, T = 0, S = 0] = x.shape;
  const masks = mask.shape.length === 3 ? mask.shape[0]! : 1;
  const sinks = firstOf(recorder, veryLow, H / masks);
  // ggml spreads a mask over the heads of its own batch.
  const [rows, own] =
    masks === 1 ? [x, mask] : [recorder.reshape(x, [masks, H / masks, T, S]), recorder.reshape(mask, [masks, 1, T, S])];
  const shares = recorder.emit('f32', rows.shape, (c, f) => {
    const node = f.softMax(c, rows.pointer, own.pointer, scale, 0);
    f.softMaxAddSinks(node, sinks.pointer);
    return node;
  });
  return masks === 1 ? shares : recorder.reshape(shares, x.shape);
}

/** softcap * tanh(scale * x / softcap) */
export function capped(recorder: GraphRecorder, x: GgmlTensor, scale: number, softcap: number): GgmlTensor {
  check(softcap > 0, () => `softcap ${softcap}: must be positive`);
  const narrowed = recorder.emit('f32', x.shape, (c, f) => f.scale(c, x.pointer, scale / softcap));
  const bent = recorder.emit('f32', x.shape, (c, f) => f.tanh(c, narrowed.pointer));
  return recorder.emit('f32', x.shape, (c, f) => f.scale(c, bent.pointer, softcap));
}

/** 0.5 x (1 + tanh(z)) = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3). ggml's own gelu reads an f16 table. */
export function geluTanh(recorder: GraphRecorder, x: GgmlTensor): GgmlTensor {
  const twice = 2 * Math.sqrt(2 / Math.PI);
  const square = recorder.emit('f32', x.shape, (c, f) => f.sqr(c, x.pointer));
  const slope = recorder.emit('f32', x.shape, (c, f) => f.scaleBias(c, square.pointer, twice * 0.044715, twice));
  const argument = recorder.emit('f32', x.shape, (c, f) => f.mul(c, slope.pointer, x.pointer));
  const gate = recorder.emit('f32', x.shape, (c, f) => f.sigmoid(c, argument.pointer));
  return recorder.emit('f32', x.shape, (c, f) => f.mul(c, gate.pointer, x.pointer));
}

/**
 * @param x [tokens, heads, dim]  @param positions [tokens] i32
 * @param factors [dim / 2]: base 1 makes ggml's own angle the bare position, which it divides by these; no YaRN (extension 0).
 */
export function rotate(
  recorder: GraphRecorder,
  x: GgmlTensor,
  positions: GgmlTensor,
  factors: GgmlTensor,
  { interleaved, attentionFactor }: RopeOptions,
): GgmlTensor {
  const mode = interleaved ? ROPE_INTERLEAVED : ROPE_HALVES;
  const dim = x.shape[2]!;
  return recorder.emit('f32', x.shape, (c, f) =>
    f.rope(c, x.pointer, positions.pointer, factors.pointer, dim, mode, 0, 1, 1, 0, attentionFactor, 0, 0),
  );
}

/** 1 / x of x [n] */
export function reciprocal(recorder: GraphRecorder, { ones }: Constants, x: GgmlTensor): GgmlTensor {
  const numerators = firstOf(recorder, ones, x.shape[0]!);
  return recorder.emit('f32', x.shape, (c, f) => f.div(c, numerators.pointer, x.pointer));
}

/**
 * x as f32. ggml decodes gathered rows 2 to 3 times as fast as it converts a tensor, so memory without gaps is gathered
 * as a few long rows, and so is each block of a tensor with gaps between its blocks; the same for the memory behind permuted
 * axes.
 */
export function widen(recorder: GraphRecorder, constants: Constants, x: GgmlTensor): GgmlTensor {
  if (x.type === 'f32') return x;
  if (x.permuted !== undefined) {
    return recorder.permute(widen(recorder, constants, x.permuted.source), x.permuted.order);
  }
  const blocks = isContiguous(x) ? 1 : (x.shape[0] ?? 0);
  const size = elements(x.shape) / blocks;
  const { block, blockBytes } = STORAGE[x.type];
  const isGapless = isContiguous(x) || (x.shape.length === 3 && x.strides[1] === (x.shape[2]! / block) * blockBytes);
  if (!isGapless || blocks > WIDEN_BLOCKS)
    return recorder.emit('f32', x.shape, (c, f) => f.cast(c, x.pointer, STORAGE.f32.id));
  const rows = size % (WIDEN_ROWS * block) === 0 ? WIDEN_ROWS : 1;
  const bytesOfRow = (size / rows / block) * blockBytes;
  const table = recorder.view(x, [blocks, rows, size / rows], [x.strides[0]!, bytesOfRow, blockBytes], 0);
  const all = recorder.own(constants.rowNumbers);
  const indices = recorder.slice(recorder.slice(all, 0, 0, blocks), 1, 0, rows);
  const wide = recorder.emit('f32', table.shape, (c, f) => f.getRows(c, table.pointer, indices.pointer));
  return recorder.reshape(wide, x.shape);
}

/** @param parts of equal shapes but for `axis`  @param last the last of them */
export function concat(
  recorder: GraphRecorder,
  parts: readonly GgmlTensor[],
  last: GgmlTensor,
  axis: number,
): GgmlTensor {
  const [first, ...rest] = parts.filter(({ pointer }) => pointer !== NO_POINTER);
  if (first === undefined || rest.length === 0) return recorder.contiguous(first ?? last);
  return rest.reduce((joined, part) => {
    const shape = joined.shape.with(axis, joined.shape[axis]! + part.shape[axis]!);
    return recorder.emit('f32', shape, (context, f) =>
      f.concat(context, joined.pointer, part.pointer, shape.length - 1 - axis),
    );
  }, first);
}

export function zeros(recorder: GraphRecorder, { ones }: Constants, shape: readonly number[]): GgmlTensor {
  const one = firstOf(recorder, ones, 1);
  const zero = recorder.emit('f32', [1], (c, f) => f.scale(c, one.pointer, 0));
  return recorder.emit('f32', shape, (c, f) => f.repeat(c, zero.pointer, ...ggmlShape(shape)));
}

function firstOf(recorder: GraphRecorder, constants: GgmlTensor, length: number): GgmlTensor {
  check(length <= CONSTANT_LENGTH, () => `${length} heads or frequencies, at most ${CONSTANT_LENGTH}`);
  return recorder.slice(recorder.own(constants), 0, 0, length);
}
