/** Small matrices while loading, row-major: columns and rotations of the latent projections. */
import { size, type Range } from '../config/shard-plan.ts';
import { denseFrom, multiply, multiplyTransposed } from '../model/transmla/dense.ts';

/** Ranges of columns side by side. @param values [rows, cols]  @returns [rows, sum of sizes] */
export function columnsOf(values: Float32Array, rows: number, cols: number, ranges: readonly Range[]): Float32Array {
  const width = ranges.reduce((sum, range) => sum + size(range), 0);
  const out = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    let to = row * width;
    for (const { start, end } of ranges) {
      out.set(values.subarray(row * cols + start, row * cols + end), to);
      to += end - start;
    }
  }
  return out;
}

/** a [m, k] times b^T, b [n, k] -> [m, n] */
export function timesTransposed(a: Float32Array, b: Float32Array, m: number, k: number, n: number): Float32Array {
  return Float32Array.from(multiplyTransposed(denseFrom(m, k, a), denseFrom(n, k, b)).data);
}

/** a [m, k] times the first k rows of b [.., n] -> [m, n] */
export function times2d(a: Float32Array, b: Float32Array, m: number, k: number, n: number): Float32Array {
  return Float32Array.from(multiply(denseFrom(m, k, a), denseFrom(k, n, b.subarray(0, k * n))).data);
}
