/**
 * Eigenvectors of symmetric float64 matrices, largest eigenvalue first, with a fixed sign so that the same input always
 * gives the same bytes. The solver is ml-matrix (Householder tridiagonalisation and QL).
 */
import { EigenvalueDecomposition, Matrix } from 'ml-matrix';
import { invariant } from '../../config/errors.ts';
import { type Dense, multiply, scaleCols, transpose, zeros } from './dense.ts';

export interface Eigen {
  /** Largest first. [n] */
  readonly values: Float64Array;
  /** Row i is the unit eigenvector of values[i]. [n, n] */
  readonly vectors: Dense;
}

/** @param a symmetric [n, n]. Cost: about 9 n^3 multiplications; n = 320 takes 0.2 s. */
export function symmetricEigen(a: Dense): Eigen {
  const n = a.rows;
  invariant(a.cols === n, `symmetricEigen: [${a.rows}, ${a.cols}] is not square`);
  if (n === 0) return { values: new Float64Array(0), vectors: zeros(0, 0) };
  const solved = new EigenvalueDecomposition(Matrix.from1DArray(n, n, a.data), { assumeSymmetric: true });
  const unsorted = solved.realEigenvalues;
  const order = unsorted.map((_, i) => i).sort((i, j) => (unsorted[j] ?? 0) - (unsorted[i] ?? 0) || i - j);
  const values = new Float64Array(n);
  const vectors = zeros(n, n);
  order.forEach((from, to) => {
    values[to] = unsorted[from] ?? 0;
    vectors.data.set(withFixedSign(solved.eigenvectorMatrix.getColumn(from)), to * n);
  });
  return { values, vectors };
}

/** The entry of largest size is positive; of equal ones the first. */
function withFixedSign(vector: readonly number[]): readonly number[] {
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
