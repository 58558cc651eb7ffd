/**
 * The product with a matrix of weights as ggml nodes. A matrix in AMX tiles is unpacked for every product of more than one
 * token, which costs three times a product of one: with two or three tokens as many single products are faster, as long
 * as the matrix stays in the cache of the core between them. They give the same bits.
 */
import { concat, zeros, type Constants } from './compound.ts';
import type { GraphRecorder } from './graph.ts';
import {
  check,
  describe,
  hasContiguousRows,
  isRepacked,
  layoutOf,
  paddingRowsOf,
  rowMajorStrides,
  type GgmlTensor,
} from './tensor.ts';

/** Measured with q4_1 [1536, 576] and [576, 1536]: 0.6 of the time with two, 0.85 with three, 1.0 with four. */
const MOST_SINGLE_TOKENS = 3;
/** Half of a core's second-level cache; a head of 28 MB takes 1.1 of the time with two tokens, 1.7 with three. */
const MOST_BYTES_READ_AGAIN = 2 ** 20;

/** @param x contiguous where the weight has a layout of its own, with contiguous rows otherwise */
export function product(recorder: GraphRecorder, constants: Constants, weight: GgmlTensor, x: GgmlTensor): GgmlTensor {
  checkProduct(weight, x);
  const shape = [...x.shape.slice(0, -1), weight.shape.at(-2)!];
  if (x.shape.at(-1) === 0) return zeros(recorder, constants, shape);
  if (!singlesAreFaster(weight, x)) return withoutPadding(recorder, weight, x, shape);
  const rows = Array.from({ length: x.shape[0]! }, (_, token) =>
    withoutPadding(recorder, weight, recorder.slice(x, 0, token, 1), [1, shape[1]!]),
  );
  return concat(recorder, rows, rows[0]!, 0);
}

/** The product without the columns that rows of zeros give. @returns of `shape`, contiguous */
function withoutPadding(
  recorder: GraphRecorder,
  weight: GgmlTensor,
  x: GgmlTensor,
  shape: readonly number[],
): GgmlTensor {
  const padding = paddingRowsOf(weight);
  const columns = shape.at(-1)!;
  const filled = [...shape.slice(0, -1), columns + padding];
  const all = recorder.emit('f32', filled, (c, f) => f.mulMat(c, weight.pointer, x.pointer));
  if (padding === 0) return all;
  if (shape[0] === 1) return recorder.view(all, shape, rowMajorStrides('f32', shape), 0);
  return recorder.contiguous(recorder.slice(all, 1, 0, columns));
}

function singlesAreFaster(weight: GgmlTensor, x: GgmlTensor): boolean {
  const tokens = x.shape[0]!;
  const isFew = tokens > 1 && tokens <= MOST_SINGLE_TOKENS;
  return isFew && layoutOf(weight) === 'tiles' && weight.bytes <= MOST_BYTES_READ_AGAIN;
}

function checkProduct(weight: GgmlTensor, x: GgmlTensor): void {
  const at = (): string => `matmul of weight ${describe(weight)} and x ${describe(x)}`;
  const axes = weight.shape.length;
  check(
    (axes === 2 || axes === 3) && x.shape.length === axes,
    () => `${at()}: expected two matrices or two batches of them`,
  );
  check(weight.shape.at(-1) === x.shape.at(-1), () => `${at()}: inner sizes differ`);
  check(!isRepacked(weight) || axes === 2, () => `${at()}: a weight allocated for matmul is a matrix`);
  check(weight.type !== 'i32' && hasContiguousRows(weight), () => `${at()}: rows of weight must be contiguous numbers`);
  check(
    axes === 2 || x.shape[0] === weight.shape[0] || x.shape[0]! % weight.shape[0]! === 0,
    () => `${at()}: batches of x are no multiple of those of weight`,
  );
}
