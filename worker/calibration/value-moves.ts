/** How far each value would move each head's output, for all pairs of tokens. Read next: statistics-programs.ts. */
import type { Ops, Tensor } from '../kernels/kernels.ts';
import { dim } from './operation-helpers.ts';

export interface Grams {
  /** W_O,h^T W_O,h of the heads that read one KV head. [count, d, d] */
  readonly grams: Tensor;
  /** At least as many as the longer of tokens and d. */
  readonly ones: Tensor;
}

/**
 * |(v_t - o_m) W_O,h|^2 scoreScale^2 for all pairs, as one product of rows extended by two columns:
 * [v_t, v_t G v_t, 1] . [-2 G o_m, 1, o_m G o_m]. @param v [1, t, d]  @param o [count, m, d]  @returns [count, m, t]
 */
export function moves(ops: Ops, { grams, ones }: Grams, v: Tensor, o: Tensor, scoreScale: number): Tensor {
  const [count, headDim] = [dim(o, 0), dim(o, 2)];
  const perHead = (of: (head: number) => Tensor): Tensor =>
    ops.concat(
      Array.from({ length: count }, (_, i) => of(i)),
      0,
    );
  const repeated = perHead(() => v);
  const gramV = perHead((i) => ops.matmul(ops.slice(grams, 0, i, 1), v));
  const gramO = ops.matmul(grams, o);
  const onesD = ops.reshape(ops.slice(ones, 0, 0, headDim), [1, 1, headDim]);
  const quadraticV = ops.matmul(onesD, ops.multiply(repeated, gramV)); // [count, t, 1]
  const quadraticO = ops.matmul(onesD, ops.multiply(o, gramO)); // [count, m, 1]
  const column = (length: number): Tensor => perHead(() => ops.reshape(ops.slice(ones, 0, 0, length), [1, length, 1]));
  const left = ops.concat([repeated, quadraticV, column(dim(v, 1))], 2);
  const right = ops.concat([ops.scale(gramO, -2), column(dim(o, 1)), quadraticO], 2);
  return ops.matmul(left, ops.scale(right, scoreScale * scoreScale));
}
