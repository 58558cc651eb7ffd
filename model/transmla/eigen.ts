/**
 * Eigenvectors of symmetric float64 matrices, largest eigenvalue first, with a fixed sign so that the same input always
 * gives the same bytes. Small ones are solved by ml-matrix, larger ones by tridiagonal.ts, which takes a third of the time.
 */
import { EigenvalueDecomposition, Matrix } from 'ml-matrix';
import { invariant } from '../../config/errors.ts';
import { type Dense, multiply, scaleCols, transpose, zeros } from './dense.ts';
import { diagonalise } from './tridiagonal.ts';

/** Above this size ml-matrix, which keeps an object per row, is slower. */
const smallSize = 32;

export interface Eigen {
  /** Largest first. [n] */
  readonly values: Float64Array;
  /** Row i is the unit eigenvector of values[i]. [n, n] */
  readonly vectors: Dense;
}

/** @param a symmetric [n, n]. Cost: about 5 n^3 multiplications; n = 384 takes 0.2 s. */
export function symmetricEigen(a: Dense): Eigen {
  const n = a.rows;
  invariant(a.cols === n, `symmetricEigen: [${a.rows}, ${a.cols}] is not square`);
  if (n === 0) return { values: new Float64Array(0), vectors: zeros(0, 0) };
  const solved = n <= smallSize ? smallEigen(a) : diagonalise(a.data.slice(), n);
  const order = Array.from(solved.values, (_, i) => i);
  order.sort((i, j) => (solved.values[j] ?? 0) - (solved.values[i] ?? 0) || i - j);
  const values = new Float64Array(n);
  const vectors = zeros(n, n);
  order.forEach((from, to) => {
    values[to] = solved.values[from] ?? 0;
    vectors.data.set(withFixedSign(solved.vectors.subarray(from * n, (from + 1) * n)), to * n);
  });
  return { values, vectors };
}

function smallEigen({ data, rows: n }: Dense): { values: Float64Array; vectors: Float64Array } {
  const solved = new EigenvalueDecomposition(Matrix.from1DArray(n, n, data), { assumeSymmetric: true });
  const { eigenvectorMatrix, realEigenvalues } = solved;
  const vectors = new Float64Array(n * n);
  for (let i = 0; i < n; i++) vectors.set(eigenvectorMatrix.getColumn(i), i * n);
  return { values: Float64Array.from(realEigenvalues), vectors };
}

/** The entry of largest size is positive; of equal ones the first. */
function withFixedSign(vector: Float64Array): Float64Array {
  let largest = 0;
  for (const value of vector) if (Math.abs(value) > Math.abs(largest) * (1 + 1e-9)) largest = value;
  return largest < 0 ? vector.map((value) => -value) : vector;
}

/** The symmetric R with R R = a, for a positive semidefinite up to rounding. [n, n] */
export function symmetricRoot(a: Dense): Dense {
  const { values, vectors } = symmetricEigen(a);
  const roots = values.map((value) => Math.sqrt(Math.max(0, value)));
  return multiply(scaleCols(transpose(vectors), roots), vectors);
}
