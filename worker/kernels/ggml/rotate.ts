/** Rotary embedding by a table of frequencies as one ggml node, whose own angles come from a base instead. */
import type { RopeOptions } from '../kernels.ts';
import type { GraphRecorder } from './graph.ts';
import type { GgmlTensor } from './tensor.ts';

const ROPE_INTERLEAVED = 0;
const ROPE_HALVES = 2;

/**
 * @param x [tokens, heads, dim]  @param positions [tokens]  @param reciprocals 1 / frequencies [dim / 2]
 * @returns [tokens, heads, dim]
 */
export function rotate(
  recorder: GraphRecorder,
  x: GgmlTensor,
  positions: GgmlTensor,
  reciprocals: GgmlTensor,
  { interleaved, attentionFactor }: RopeOptions,
): GgmlTensor {
  const dim = x.shape[2] ?? 0;
  const mode = interleaved ? ROPE_INTERLEAVED : ROPE_HALVES;
  const [a, b, c] = [x.pointer, positions.pointer, reciprocals.pointer];
  // Base 1 makes ggml's own angle the bare position, which it divides by the factors; no YaRN (extension 0).
  return recorder.emit('f32', x.shape, (context, f) =>
    f.rope(context, a, b, c, dim, mode, 0, 1, 1, 0, attentionFactor, 0, 0),
  );
}
