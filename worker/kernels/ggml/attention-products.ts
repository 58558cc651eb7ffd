/** The two products of attention over f32 rows as ggml nodes, in the forms in which the CPU computes them fast. */
import type { GraphRecorder } from './graph.ts';
import type { GgmlTensor } from './tensor.ts';

/** Length of rows in f32 numbers that the CPU's block products need a multiple of: the widest vector. */
const FAST_COLUMNS = 16;
const MANY_ROWS = 64;

/**
 * Products of f32 rows. ggml multiplies rows whose length is a multiple of FAST_COLUMNS by blocks and others one by one, which
 * takes 2.5 times as long; so the rest of longer rows is filled up with zeros and multiplied by itself.
 * @param keys [G, S, dk] with contiguous rows  @param q [G, rows, dk] row-major  @returns [G, rows, S]
 */
export function productsOfRows(recorder: GraphRecorder, keys: GgmlTensor, q: GgmlTensor): GgmlTensor {
  const [G, rows, dk] = sizes(q);
  const [, S] = sizes(keys);
  const product = (a: GgmlTensor, b: GgmlTensor): GgmlTensor =>
    recorder.emit('f32', [G, rows, S], (c, f) => f.mulMat(c, a.pointer, b.pointer));
  const rest = dk % FAST_COLUMNS;
  if (rest === 0 || dk < FAST_COLUMNS) return product(keys, q);
  const filled = (x: GgmlTensor): GgmlTensor => {
    const columns = recorder.slice(x, 2, dk - rest, rest);
    const shape = [...x.shape.slice(0, 2), FAST_COLUMNS];
    return recorder.emit('f32', shape, (c, f) => f.pad(c, columns.pointer, FAST_COLUMNS - rest, 0, 0, 0));
  };
  const main = product(recorder.slice(keys, 2, 0, dk - rest), recorder.contiguous(recorder.slice(q, 2, 0, dk - rest)));
  const last = product(filled(keys), filled(q));
  return recorder.emit('f32', [G, rows, S], (c, f) => f.add(c, main.pointer, last.pointer));
}

/**
 * An outer product adds rows of values as they lie; the ordinary product needs them transposed on every run, which pays where
 * there are many rows of shares: 0.76 of the time of the whole attention with 2304 rows.
 * @param values [G, S, dv] @param shares [G, rows, S] @returns [G, rows, dv]
 */
export function weightedSums(recorder: GraphRecorder, values: GgmlTensor, shares: GgmlTensor): GgmlTensor {
  const { functions } = recorder;
  const [G, rows, S] = sizes(shares);
  const [, , dv] = sizes(values);
  if (rows < MANY_ROWS || S % FAST_COLUMNS !== 0) {
    const byPosition = recorder.permute(shares, [0, 2, 1]); // [G, S, rows]
    const outer = functions.outProd(recorder.context(), values.pointer, byPosition.pointer);
    if (recorder.supports(outer)) return recorder.emit('f32', [G, rows, dv], () => outer);
  }
  const columns = recorder.contiguous(recorder.permute(values, [0, 2, 1])); // [G, dv, S]
  const again = recorder.reshape(shares, [G, rows, S]);
  return recorder.emit('f32', [G, rows, dv], (c, f) => f.mulMat(c, columns.pointer, again.pointer));
}

export function sizes(tensor: GgmlTensor): [number, number, number] {
  return [tensor.shape[0] ?? 0, tensor.shape[1] ?? 0, tensor.shape[2] ?? 0];
}
