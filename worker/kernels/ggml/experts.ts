/**
 * The two operations of routed experts as ggml nodes. ggml sorts the tokens by expert itself, so that each chosen
 * matrix is read once.
 */
import { zeros, type Constants } from './compound.ts';
import { check, describe, isContiguous, type GgmlTensor } from './tensor.ts';
import type { GraphRecorder } from './graph.ts';

/** @param x [tokens, slots or 1, k] packed  @param ids [tokens, slots] packed  @returns [tokens, slots, m] */
export function expertMatmul(
  recorder: GraphRecorder,
  constants: Constants,
  weights: GgmlTensor,
  x: GgmlTensor,
  ids: GgmlTensor,
): GgmlTensor {
  const at = (): string => `expertMatmul of weights ${describe(weights)}, x ${describe(x)} and ids ${describe(ids)}`;
  const [experts, rows = 0, columns] = weights.shape;
  const [tokens = 0, slots = 0] = ids.shape;
  check(weights.shape.length === 3 && x.shape.length === 3 && ids.shape.length === 2, () => `${at()}: axes`);
  check(
    weights.type !== 'i32' && isContiguous(weights) && experts! > 0,
    () => `${at()}: weights must be contiguous numbers`,
  );
  check(ids.type === 'i32', () => `${at()}: ids must be i32`);
  check(
    x.shape[0] === tokens && (x.shape[1] === slots || x.shape[1] === 1) && x.shape[2] === columns,
    () => `${at()}: expected [e, m, k], [t, j or 1, k], [t, j]`,
  );
  const shape = [tokens, slots, rows];
  if (columns === 0) return zeros(recorder, constants, shape);
  return recorder.emit('f32', shape, (c, f) => f.mulMatId(c, weights.pointer, x.pointer, ids.pointer));
}

/** @param x [tokens, slots, m] packed  @param shares [tokens, slots] packed  @returns [tokens, m] */
export function weightedSum(
  recorder: GraphRecorder,
  constants: Constants,
  x: GgmlTensor,
  shares: GgmlTensor,
): GgmlTensor {
  const [tokens = 0, slots = 0, columns = 0] = x.shape;
  check(
    x.shape.length === 3 && shares.shape.length === 2 && shares.shape[0] === tokens && shares.shape[1] === slots,
    () => `weightedSum of x ${describe(x)} and shares ${describe(shares)}: expected [t, j, m] and [t, j]`,
  );
  const shape = [tokens, columns];
  if (tokens * slots * columns === 0) return zeros(recorder, constants, shape);
  const factors = recorder.reshape(shares, [tokens, slots, 1]);
  const scaled = recorder.emit('f32', x.shape, (c, f) => f.mul(c, x.pointer, factors.pointer));
  if (slots === 1) return recorder.reshape(scaled, shape);
  const [tokenStride = 0, slotStride = 0, columnStride = 0] = scaled.strides;
  const slot = (j: number): GgmlTensor => recorder.view(scaled, shape, [tokenStride, columnStride], j * slotStride);
  let sum = slot(0);
  for (let j = 1; j < slots; j++) {
    const [before, next] = [sum, slot(j)];
    sum = recorder.emit('f32', shape, (c, f) => f.add(c, before.pointer, next.pointer));
  }
  return sum;
}
