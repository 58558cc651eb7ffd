/**
 * The order of a latent's columns that loses least when it is cut (our recipe; TPLA, arXiv 2508.15881, section 4.2 asks
 * for such a rotation and takes the plain principal axes). First come the columns that every group will keep, by what
 * they say of scores alone, because each group's softmax needs them; the rest follows by scores and values together.
 *
 * In coordinates in which the latent is white, z = C^-1/2 c, a score q^T c loses what of C^1/2 q is not kept, so the best
 * columns are principal axes of C^1/2 E[q q^T] C^1/2. Read back to the latent and made orthonormal in that order, the
 * first k of them span the same space for every k, and the rotation passes through a latent norm.
 */
import {
  type Dense,
  added,
  congruence,
  denseFrom,
  identity,
  multiply,
  rowsOf,
  scaleCols,
  scaled,
  stackRows,
  transpose,
} from '../transmla/dense.ts';
import { symmetricEigen } from '../transmla/eigen.ts';

export interface LatentImportance {
  /** Covariance of the latent of old tokens, C. [r, r] */
  readonly covariance: Dense;
  /** Second moment of absorbed queries, weighted by what an error of the score costs. [r, r] */
  readonly scores: Dense;
  /** Second moment of the maps from latent to output, weighted likewise. [r, r] */
  readonly values: Dense;
}

/** How much an error of a score counts beside one of a value that costs as much to first order (recipe: alpha = 2). */
const scoreEmphasis = 4;
/** Directions in which the latent hardly varies, relative to its mean variance: kept from blowing up. */
const leastVariance = 1e-5;

/**
 * @param shared how many columns every group will keep
 * @returns orthogonal U [r, r], rows = new basis vectors: c' = U c
 */
export function weightedOrder({ covariance, scores, values }: LatentImportance, shared: number): Dense {
  const r = covariance.rows;
  const own = symmetricEigen(covariance);
  const floor = (leastVariance * own.values.reduce((sum, value) => sum + Math.max(0, value), 0)) / r + 1e-30;
  const deviations = own.values.map((value) => Math.sqrt(Math.max(value, floor)));
  // C^1/2 and C^-1/2, symmetric.
  const root = multiply(scaleCols(transpose(own.vectors), deviations), own.vectors);
  const inverseRoot = multiply(
    scaleCols(
      transpose(own.vectors),
      deviations.map((d) => 1 / d),
    ),
    own.vectors,
  );
  const first = rowsOf(symmetricEigen(congruence(root, scores)).vectors, 0, shared); // [shared, r]
  const rest = added(identity(r), multiply(transpose(first), first), -1); // projection onto what is left
  const both = congruence(multiply(rest, root), added(values, scaled(scores, scoreEmphasis), 1));
  const order =
    shared === 0
      ? symmetricEigen(both).vectors
      : stackRows([first, rowsOf(symmetricEigen(both).vectors, 0, r - shared)]);
  return orthonormalRows(multiply(order, inverseRoot));
}

/** Gram-Schmidt, twice for rounding: the first k rows span what they spanned. A row that adds nothing is replaced. */
function orthonormalRows({ data, rows, cols }: Dense): Dense {
  const out = denseFrom(rows, cols, data);
  const row = (i: number): Float64Array => out.data.subarray(i * cols, (i + 1) * cols);
  for (let i = 0; i < rows; i++) {
    normalise(row(i));
    for (let attempt = 0; !standsApart(row, i); attempt++) {
      row(i).fill(0);
      row(i)[(i + attempt) % cols] = 1;
    }
  }
  return out;
}

/** Takes the earlier rows out of row i. @returns false where hardly anything is left */
function standsApart(row: (i: number) => Float64Array, i: number): boolean {
  const vector = row(i);
  for (let pass = 0; pass < 2; pass++) {
    for (let j = 0; j < i; j++) {
      const earlier = row(j);
      let along = 0;
      for (let k = 0; k < vector.length; k++) along += (vector[k] ?? 0) * (earlier[k] ?? 0);
      for (let k = 0; k < vector.length; k++) vector[k] = (vector[k] ?? 0) - along * (earlier[k] ?? 0);
    }
    if (normalise(vector) < 1e-10) return false;
  }
  return true;
}

/** @returns the length that it had */
function normalise(vector: Float64Array): number {
  const length = Math.hypot(...vector);
  for (let k = 0; k < vector.length; k++) vector[k] = (vector[k] ?? 0) / (length || 1);
  return length;
}
