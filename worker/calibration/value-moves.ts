/** How far each value would move each head's output, for all pairs of tokens. Read next: pair-program.ts. */
import type { Ops, Tensor } from '../kernels/kernels.ts';
import { dim } from './operation-helpers.ts';

/** Of one head. */
export interface Moving {
  /** W_O,h^T W_O,h [1, d, d] */
  readonly gram: Tensor;
  /** At least as many as the longer of tokens and d. */
  readonly ones: Tensor;
  /** [1, at least as many rows, width - d - 2] */
  readonly zeros: Tensor;
}

/**
 * |(v_t - o_m) W_O,h|^2 = [v_t, 1, v_t G v_t, 0 ..] . [-2 G o_m, o_m G o_m, 1, 0 ..]: rows of a product that gives it for
 * all pairs. This is the left side, which serves all queries. @param v [1, t, d]
 * @param rows [1, t, width]: the 1 and the zeros are there already (`movingRows`), the rest is overwritten
 */
export function moveValues(ops: Ops, moving: Moving, v: Tensor, rows: Tensor): void {
  const headDim = dim(v, 2);
  ops.copyTo(ops.slice(rows, 2, 0, headDim), v);
  ops.copyTo(ops.slice(rows, 2, headDim + 1, 1), withGram(ops, moving, v).quadratic);
}

/** Left sides before any layer. [count, width] */
export function movingRows(count: number, width: number, headDim: number): Float32Array {
  const rows = new Float32Array(count * width);
  for (let i = headDim; i < rows.length; i += width) rows[i] = 1;
  return rows;
}

/** The right side. @param o [1, m, d]  @param factor of the result  @returns [1, m, width] */
export function movedOutputs(ops: Ops, moving: Moving, o: Tensor, factor: number): Tensor {
  const { gramX, quadratic } = withGram(ops, moving, o);
  const rows = ops.concat([ops.scale(gramX, -2), quadratic, ones(ops, moving, o), zeros(ops, moving, o)], 2);
  return ops.scale(rows, factor);
}

/** G x [1, rows, d] and x G x [1, rows, 1]. */
function withGram(ops: Ops, moving: Moving, x: Tensor): { gramX: Tensor; quadratic: Tensor } {
  const headDim = dim(x, 2);
  const gramX = ops.matmul(moving.gram, x);
  const onesD = ops.reshape(ops.slice(moving.ones, 0, 0, headDim), [1, 1, headDim]);
  return { gramX, quadratic: ops.matmul(onesD, ops.multiply(x, gramX)) };
}

function ones(ops: Ops, moving: Moving, x: Tensor): Tensor {
  const rows = dim(x, 1);
  return ops.reshape(ops.slice(moving.ones, 0, 0, rows), [1, rows, 1]);
}

function zeros(ops: Ops, moving: Moving, x: Tensor): Tensor {
  return ops.contiguous(ops.slice(moving.zeros, 1, 0, dim(x, 1)));
}
