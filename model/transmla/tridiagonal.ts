/**
 * Eigenvalues and eigenvectors of large symmetric float64 matrices, on flat arrays whose rows are walked in order:
 * reflections make the matrix tridiagonal (Householder), rotations make that diagonal (implicit QL; Wilkinson and Reinsch,
 * Handbook for Automatic Computation II, contributions II/2 and II/3). Cost: about 1.7 n^3 multiplications for the first
 * and 3 n^3 for the second. Eigenvalues come in no order; eigen.ts sorts. It reads no statistics and knows no shapes.
 */
import { InvariantError } from '../../config/errors.ts';
import { dot } from './products.ts';

export interface Diagonalised {
  readonly values: Float64Array; // [n]
  /** Row i is the unit eigenvector of values[i]. [n, n] */
  readonly vectors: Float64Array;
}

const mostSweeps = 60;

/** @param a symmetric [n, n], overwritten  @throws InvariantError for what is not finite */
export function diagonalise(a: Float64Array, n: number): Diagonalised {
  const { below, vectors } = reflect(a, n);
  const values = Float64Array.from({ length: n }, (_, i) => a[i * n + i]!);
  rotateAway(values, below, vectors, n);
  return { values, vectors };
}

/**
 * A becomes tridiagonal, Q^T A Q, with Q a product of reflections I - scale v v^T; step k clears row and column k.
 * @returns what stands below the diagonal [n], and Q^T [n, n]
 */
function reflect(a: Float64Array, n: number): { below: Float64Array; vectors: Float64Array } {
  const below = new Float64Array(n);
  const reflectors = new Float64Array(n * n); // row k: v
  const scales = new Float64Array(n);
  const moved = new Float64Array(n);
  for (let k = 0; k + 1 < n; k++) {
    const v = reflectors.subarray(k * n, (k + 1) * n);
    v.set(a.subarray(k * n + k + 1, (k + 1) * n), k + 1);
    const norm = Math.sqrt(dot(v, k + 1, v, k + 1, n - k - 1));
    const first = v[k + 1]!;
    below[k] = first > 0 ? -norm : norm;
    // What is clear already needs no reflection.
    if (k + 2 === n || norm === Math.abs(first)) {
      below[k] = first;
      continue;
    }
    v[k + 1] = first - below[k]!;
    const scale = 1 / (norm * (norm + Math.abs(first)));
    scales[k] = scale;
    for (let i = k + 1; i < n; i++) moved[i] = scale * dot(a, i * n + k + 1, v, k + 1, n - k - 1);
    const half = (scale / 2) * dot(moved, k + 1, v, k + 1, n - k - 1);
    for (let i = k + 1; i < n; i++) moved[i] = moved[i]! - half * v[i]!;
    for (let i = k + 1; i < n; i++) {
      const vi = v[i]!;
      const wi = moved[i]!;
      for (let j = k + 1; j < n; j++) a[i * n + j]! -= vi * moved[j]! + wi * v[j]!;
    }
  }
  return { below, vectors: accumulated(reflectors, scales, n) };
}

/** Q^T: the reflections from the last, which touches least, to the first. [n, n] */
function accumulated(reflectors: Float64Array, scales: Float64Array, n: number): Float64Array {
  const out = new Float64Array(n * n);
  for (let i = 0; i < n; i++) out[i * n + i] = 1;
  for (let k = n - 2; k >= 0; k--) {
    const scale = scales[k]!;
    if (scale === 0) continue;
    for (let i = k + 1; i < n; i++) {
      const factor = scale * dot(out, i * n + k + 1, reflectors, k * n + k + 1, n - k - 1);
      for (let j = k + 1; j < n; j++) out[i * n + j]! -= factor * reflectors[k * n + j]!;
    }
  }
  return out;
}

/** Rotations take e = `below` to zero and d = `diagonal` to the eigenvalues; rows of `vectors` take part. */
function rotateAway(diagonal: Float64Array, below: Float64Array, vectors: Float64Array, n: number): void {
  let shifted = 0;
  let size = 0;
  for (let l = 0; l < n; l++) {
    size = Math.max(size, Math.abs(diagonal[l]!) + Math.abs(below[l]!));
    let end = l;
    while (end + 1 < n && Math.abs(below[end]!) > Number.EPSILON * size) end++;
    for (let sweeps = 0; end > l && Math.abs(below[l]!) > Number.EPSILON * size; sweeps++) {
      if (sweeps === mostSweeps)
        throw new InvariantError(`diagonalise: value ${l} of ${n} not found in ${mostSweeps} sweeps`);
      shifted += shift(diagonal, below, l, n);
      sweep(diagonal, below, vectors, l, end, n);
    }
    if (!Number.isFinite(diagonal[l]!)) throw new InvariantError(`diagonalise: value ${l} of ${n} is not finite`);
    diagonal[l] = diagonal[l]! + shifted;
  }
}

/** Moves the spectrum so that value l is near 0. @returns by how much */
function shift(d: Float64Array, e: Float64Array, l: number, n: number): number {
  const [first, off] = [d[l]!, e[l]!];
  const slope = (d[l + 1]! - first) / (2 * off);
  const root = slope < 0 ? -Math.hypot(slope, 1) : Math.hypot(slope, 1);
  d[l] = off / (slope + root);
  d[l + 1] = off * (slope + root);
  const by = first - d[l]!;
  for (let i = l + 2; i < n; i++) d[i]! -= by;
  return by;
}

/** One pass of rotations from `end` up to l. */
function sweep(d: Float64Array, e: Float64Array, vectors: Float64Array, l: number, end: number, n: number): void {
  const [dNext, eNext] = [d[l + 1]!, e[l + 1] ?? 0];
  let p = d[end]!;
  let [cos, cos2, cos3, sin, sin2] = [1, 1, 1, 0, 0];
  for (let i = end - 1; i >= l; i--) {
    cos3 = cos2;
    cos2 = cos;
    sin2 = sin;
    const [g, h] = [cos * e[i]!, cos * p];
    const r = Math.hypot(p, e[i]!);
    e[i + 1] = sin * r;
    sin = e[i]! / r;
    cos = p / r;
    p = cos * d[i]! - sin * g;
    d[i + 1] = h + sin * (cos * g + sin * d[i]!);
    rotateRows(vectors, i * n, n, cos, sin);
  }
  p = (-sin * sin2 * cos3 * eNext * e[l]!) / dNext;
  e[l] = sin * p;
  d[l] = cos * p;
}

/** The row at `start` and the one behind it. */
function rotateRows(vectors: Float64Array, start: number, n: number, cos: number, sin: number): void {
  for (let j = start; j < start + n; j++) {
    const a = vectors[j]!;
    const b = vectors[j + n]!;
    vectors[j + n] = sin * a + cos * b;
    vectors[j] = cos * a - sin * b;
  }
}
