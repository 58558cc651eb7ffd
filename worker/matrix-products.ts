/** Small matrices while loading, row-major: columns and rotations of the latent projections. */
import { size, type Range } from '../config/shard-plan.ts';

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
  const out = new Float32Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let l = 0; l < k; l++) sum += (a[i * k + l] ?? 0) * (b[j * k + l] ?? 0);
      out[i * n + j] = sum;
    }
  return out;
}

/** a [m, k] times the first k rows of b [.., n] -> [m, n] */
export function times2d(a: Float32Array, b: Float32Array, m: number, k: number, n: number): Float32Array {
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let l = 0; l < k; l++) {
      const factor = a[i * k + l] ?? 0;
      for (let j = 0; j < n; j++) out[i * n + j] = (out[i * n + j] ?? 0) + factor * (b[l * n + j] ?? 0);
    }
  return Float32Array.from(out);
}
