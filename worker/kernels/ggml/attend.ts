/**
 * Attention as ggml nodes, in one of two ways. Stops at the device's own kernels; the definition is reference.ts.
 */
import { STORAGE, ggmlShape, type GgmlTensor } from './tensor.ts';
import type { AttendOptions } from '../kernels.ts';
import type { GraphRecorder } from './graph.ts';

/** From this many rows of q on, ggml's fused operation computes in f32 tiles; below it rounds q and sums to f16. */
const TILE_ROWS = 64;

/** Arguments with checked shapes, their rows contiguous; H is a multiple of G. */
export interface Attention {
  readonly q: GgmlTensor; // [H, T, dk] row-major
  readonly keys: GgmlTensor; // [G, S, dk]
  readonly values: GgmlTensor; // [G, S, dv]
  readonly mask: GgmlTensor; // [T, S] row-major
  readonly options: AttendOptions;
}

export function attend(recorder: GraphRecorder, attention: Attention): GgmlTensor {
  const { q, keys, values } = attention;
  const [H, T] = q.shape as [number, number];
  const mergedRows = (H / keys.shape[0]!) * T;
  if (keys.type !== values.type || mergedRows < TILE_ROWS) return attendInSteps(recorder, attention);
  return attendFused(recorder, attention, T < TILE_ROWS);
}

/** Scores, softmax and weighted sum as three operations; values are transposed on every run. */
function attendInSteps(recorder: GraphRecorder, attention: Attention): GgmlTensor {
  const { functions } = recorder;
  const { q, keys, values, mask, options } = attention;
  const [H, T, dk] = q.shape as [number, number, number];
  const [G, S, dv] = values.shape as [number, number, number];
  const rows = (H / G) * T;
  // Heads of one group become rows of one matrix: keys and values are read once per group.
  const grouped = recorder.reshape(q, [G, rows, dk]);
  const raw = recorder.emit('f32', [G, rows, S], (c) => functions.mulMat(c, keys.pointer, grouped.pointer));
  let scores = recorder.reshape(raw, [H, T, S]);
  let scale = options.scale;
  if (options.softcap !== 0) {
    scores = cap(recorder, scores, options);
    scale = 1;
  }
  const shares = recorder.emit('f32', [H, T, S], (c) => functions.softMax(c, scores.pointer, mask.pointer, scale, 0));
  const groupedShares = recorder.reshape(shares, [G, rows, S]);
  const columns = recorder.contiguous(recorder.permute(values, [0, 2, 1])); // [G, dv, S]
  const sums = recorder.emit('f32', [G, rows, dv], (c) => functions.mulMat(c, columns.pointer, groupedShares.pointer));
  return recorder.reshape(sums, [H, T, dv]);
}

/** softcap * tanh(scale * x / softcap) */
function cap(recorder: GraphRecorder, x: GgmlTensor, options: AttendOptions): GgmlTensor {
  const { functions } = recorder;
  const { scale, softcap } = options;
  const narrowed = recorder.emit('f32', x.shape, (c) => functions.scale(c, x.pointer, scale / softcap));
  const bent = recorder.emit('f32', x.shape, (c) => functions.tanh(c, narrowed.pointer));
  return recorder.emit('f32', x.shape, (c) => functions.scale(c, bent.pointer, softcap));
}

/**
 * One fused operation that never stores the scores. `mergeHeads` makes the heads of a group rows of one matrix, so that
 * a pass over keys and values serves all of them; the mask is then repeated for each head.
 */
function attendFused(recorder: GraphRecorder, attention: Attention, mergeHeads: boolean): GgmlTensor {
  const { functions } = recorder;
  const { q, keys, values, mask, options } = attention;
  const [H, T, dk] = q.shape as [number, number, number];
  const [G, S, dv] = values.shape as [number, number, number];
  const rows = mergeHeads ? (H / G) * T : T;
  const batches = (H * T) / rows;
  const query = recorder.reshape(q, [batches, rows, dk]);
  const halfMask = recorder.emit('f16', [T, S], (c) => functions.cast(c, mask.pointer, STORAGE.f16.id));
  const fullMask =
    rows === T
      ? halfMask
      : recorder.emit('f16', [rows / T, T, S], (c) =>
          functions.repeat(c, halfMask.pointer, ...ggmlShape([rows / T, T, S])),
        );
  const rowMask = recorder.reshape(fullMask, [rows, S]);
  const result = recorder.emit('f32', [rows, batches, dv], (c) =>
    functions.flash(c, query.pointer, keys.pointer, values.pointer, rowMask.pointer, options.scale, 0, options.softcap),
  );
  return recorder.reshape(recorder.packed(recorder.permute(result, [1, 0, 2])), [H, T, dv]);
}
