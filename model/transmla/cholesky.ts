/** Linear equations with a symmetric positive definite matrix, in float64, by Cholesky's factorisation. */
import { InvariantError, invariant } from '../../config/errors.ts';
import type { Dense } from './dense.ts';

/**
 * X with X A = B, row by row: A [n, n] symmetric positive definite (its lower triangle is read), B [m, n].
 * Cost: n^3 / 6 + m n^2 multiplications.
 * @throws InvariantError when A is not positive definite
 */
export function solveRows(a: Dense, b: Dense): Dense {
  const n = a.rows;
  invariant(a.cols === n && b.cols === n, `solveRows: [${b.rows}, ${b.cols}] by [${a.rows}, ${a.cols}]`);
  const lower = factorise(a);
  const upper = transposed(lower, n);
  const x = b.data.slice();
  for (let row = 0; row < b.rows; row++) {
    const values = x.subarray(row * n, (row + 1) * n);
    // L y = b, then L^T x = y; both walk along rows of what they read.
    for (let i = 0; i < n; i++) {
      const diagonal = lower[i * n + i]!;
      values[i] = (values[i]! - dot(lower, i * n, values, 0, i)) / diagonal;
    }
    for (let i = n - 1; i >= 0; i--) {
      const diagonal = lower[i * n + i]!;
      values[i] = (values[i]! - dot(upper, i * n + i + 1, values, i + 1, n - i - 1)) / diagonal;
    }
  }
  return { rows: b.rows, cols: n, data: x };
}

/** L with L L^T = A; what lies above the diagonal is zero. [n, n] */
function factorise({ rows: n, data: a }: Dense): Float64Array {
  const lower = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      const rest = a[i * n + j]! - dot(lower, i * n, lower, j * n, j);
      if (i !== j) lower[i * n + j] = rest / lower[j * n + j]!;
      else if (rest > 0) lower[i * n + i] = Math.sqrt(rest);
      else throw new InvariantError(`solveRows: not positive definite at row ${i} of ${n} (${rest})`);
    }
  }
  return lower;
}

/** Four sums side by side: one would wait for each addition. */
function dot(x: Float64Array, from: number, y: Float64Array, start: number, count: number): number {
  let [a, b, c, d] = [0, 0, 0, 0];
  const whole = count - (count % 4);
  for (let i = 0; i < whole; i += 4) {
    a += x[from + i]! * y[start + i]!;
    b += x[from + i + 1]! * y[start + i + 1]!;
    c += x[from + i + 2]! * y[start + i + 2]!;
    d += x[from + i + 3]! * y[start + i + 3]!;
  }
  for (let i = whole; i < count; i++) a += x[from + i]! * y[start + i]!;
  return a + b + (c + d);
}

function transposed(x: Float64Array, n: number): Float64Array {
  const out = new Float64Array(n * n);
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) out[j * n + i] = x[i * n + j]!;
  return out;
}
