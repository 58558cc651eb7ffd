/**
 * Linear equations with a symmetric positive definite matrix, in float64, by Cholesky's factorisation. Columns go in
 * panels, so that nearly all the work is products of matrices. Read next: products.ts.
 */
import { InvariantError, invariant } from '../../config/errors.ts';
import { type Dense, transpose } from './dense.ts';
import { addProduct, dot, partOf } from './products.ts';

const panelCols = 32;

/**
 * X with X A = B, row by row: A [n, n] symmetric positive definite (its lower triangle is read), B [m, n].
 * Cost: n^3 / 6 + m n^2 multiplications.
 * @throws InvariantError when A is not positive definite
 */
export function solveRows(a: Dense, b: Dense): Dense {
  const n = a.rows;
  invariant(a.cols === n && b.cols === n, `solveRows: [${b.rows}, ${b.cols}] by [${a.rows}, ${a.cols}]`);
  const lower = factorise(a);
  const upper = transpose(lower);
  const x = { ...b, data: b.data.slice() };
  // L y = b, then L^T x = y: what other panels contribute first, then within the panel.
  for (let start = 0; start < n; start += panelCols) {
    const end = Math.min(start + panelCols, n);
    addProduct(
      partOf(x, 0, start, x.rows, end - start),
      partOf(x, 0, 0, x.rows, start),
      partOf(lower, start, 0, end - start, start),
      -1,
    );
    for (let row = 0; row < x.rows * n; row += n) {
      for (let i = start; i < end; i++) {
        const known = dot(lower.data, i * n + start, x.data, row + start, i - start);
        x.data[row + i] = (x.data[row + i]! - known) / lower.data[i * n + i]!;
      }
    }
  }
  const lastPanel = n - (n % panelCols || panelCols);
  for (let start = lastPanel; start >= 0; start -= panelCols) {
    const end = Math.min(start + panelCols, n);
    addProduct(partOf(x, 0, start, x.rows, end - start), partOf(x, 0, end), partOf(upper, start, end, end - start), -1);
    for (let row = 0; row < x.rows * n; row += n) {
      for (let i = end - 1; i >= start; i--) {
        const known = dot(upper.data, i * n + i + 1, x.data, row + i + 1, end - i - 1);
        x.data[row + i] = (x.data[row + i]! - known) / lower.data[i * n + i]!;
      }
    }
  }
  return x;
}

/** L with L L^T = A; what lies above the diagonal is zero. [n, n] */
function factorise({ rows: n, data }: Dense): Dense {
  const lower = { rows: n, cols: n, data: data.slice() };
  for (let start = 0; start < n; start += panelCols) {
    const end = Math.min(start + panelCols, n);
    addProduct(
      partOf(lower, start, start, n - start, end - start),
      partOf(lower, start, 0, n - start, start),
      partOf(lower, start, 0, end - start, start),
      -1,
    );
    for (let i = start; i < n; i++) {
      for (let j = start; j < Math.min(end, i + 1); j++) {
        const rest = lower.data[i * n + j]! - dot(lower.data, i * n + start, lower.data, j * n + start, j - start);
        if (i !== j) lower.data[i * n + j] = rest / lower.data[j * n + j]!;
        else if (rest > 0) lower.data[i * n + i] = Math.sqrt(rest);
        else throw new InvariantError(`solveRows: not positive definite at row ${i} of ${n} (${rest})`);
      }
    }
  }
  for (let i = 0; i < n; i++) lower.data.fill(0, i * n + i + 1, (i + 1) * n);
  return lower;
}
