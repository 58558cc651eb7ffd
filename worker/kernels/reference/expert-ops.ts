/**
 * The definition of the two operations of routed experts, as ops.ts has it for the others: plain loops, float64 sums.
 * Shapes were checked by shapes.ts.
 */
import { invariant } from '../../../config/errors.ts';
import type { Step } from './ops.ts';
import type { StridedTensor } from './strided-tensor.ts';

export function expertMatmulStep(
  weights: StridedTensor, // [experts, rows, columns]
  x: StridedTensor, // [tokens, slots or 1, columns]
  ids: StridedTensor, // [tokens, slots]
  out: StridedTensor, // [tokens, slots, rows]
): Step {
  const [experts = 0, rows = 0, columns = 0] = weights.shape;
  const [tokens = 0, slots = 0] = ids.shape;
  return () => {
    for (let t = 0; t < tokens; t++) {
      for (let j = 0; j < slots; j++) {
        const expert = ids.storage.data[at(ids, t, j, 0)]!;
        invariant(
          expert >= 0 && expert < experts,
          `expertMatmul: id ${expert} of token ${t} is outside 0 .. ${experts - 1}`,
        );
        const row = x.shape[1] === 1 ? 0 : j;
        for (let m = 0; m < rows; m++) {
          let sum = 0;
          for (let k = 0; k < columns; k++)
            sum += weights.storage.data[at(weights, expert, m, k)]! * x.storage.data[at(x, t, row, k)]!;
          out.storage.data[at(out, t, j, m)] = sum;
        }
      }
    }
  };
}

export function weightedSumStep(
  x: StridedTensor, // [tokens, slots, columns]
  shares: StridedTensor, // [tokens, slots]
  out: StridedTensor, // [tokens, columns]
): Step {
  const [tokens = 0, slots = 0, columns = 0] = x.shape;
  return () => {
    for (let t = 0; t < tokens; t++) {
      for (let m = 0; m < columns; m++) {
        let sum = 0;
        for (let j = 0; j < slots; j++)
          sum += shares.storage.data[at(shares, t, j, 0)]! * x.storage.data[at(x, t, j, m)]!;
        out.storage.data[at(out, t, m, 0)] = sum;
      }
    }
  };
}

/** Position of an element of a tensor with two or three axes. */
function at(x: StridedTensor, i: number, j: number, k: number): number {
  return x.offset + i * x.strides[0]! + j * x.strides[1]! + k * (x.strides[2] ?? 0);
}
