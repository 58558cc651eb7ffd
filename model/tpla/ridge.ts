/** Ridge regression by Cholesky factorisation, in float64: the solver of all closed-form corrections of cut attention. */
import { invariant } from '../../config/errors.ts';
import { type Dense, zeros } from '../transmla/dense.ts';

/**
 * The W [targets, features] that minimises sum |target - W f|^2 + strength D |W - prior|^2, D = mean square of a feature.
 * @param gram sum of f f^T [features, features], symmetric  @param cross sum of target f^T [targets, features]
 * @param prior [targets, features]
 */
export function ridge(gram: Dense, cross: Dense, prior: Dense, strength: number): Dense {
  const n = gram.rows;
  let trace = 0;
  for (let i = 0; i < n; i++) trace += gram.data[i * n + i] ?? 0;
  const weight = (strength * trace) / n;
  const system = zeros(n, n);
  system.data.set(gram.data);
  for (let i = 0; i < n; i++) system.data[i * n + i] = (gram.data[i * n + i] ?? 0) + weight + 1e-12 * trace;
  const right = zeros(cross.rows, n);
  for (let i = 0; i < right.data.length; i++) right.data[i] = (cross.data[i] ?? 0) + weight * (prior.data[i] ?? 0);
  solveInPlace(cholesky(system), right);
  return right;
}

/** The lower triangle L of a = L L^T. */
function cholesky(a: Dense): Dense {
  const n = a.rows;
  const l = zeros(n, n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let sum = a.data[i * n + j] ?? 0;
      for (let k = 0; k < j; k++) sum -= (l.data[i * n + k] ?? 0) * (l.data[j * n + k] ?? 0);
      if (i === j) {
        invariant(sum > 0, `ridge: the system is not positive definite at row ${i} of ${n} (${sum})`);
        l.data[i * n + i] = Math.sqrt(sum);
      } else l.data[i * n + j] = sum / (l.data[j * n + j] ?? 1);
    }
  return l;
}

/** Each row b of `rows` becomes the x with L L^T x = b. */
function solveInPlace(l: Dense, rows: Dense): void {
  const n = l.rows;
  for (let row = 0; row < rows.rows; row++) {
    const x = rows.data.subarray(row * n, (row + 1) * n);
    for (let i = 0; i < n; i++) {
      let sum = x[i] ?? 0;
      for (let k = 0; k < i; k++) sum -= (l.data[i * n + k] ?? 0) * (x[k] ?? 0);
      x[i] = sum / (l.data[i * n + i] ?? 1);
    }
    for (let i = n - 1; i >= 0; i--) {
      const value = (x[i] ?? 0) / (l.data[i * n + i] ?? 1);
      x[i] = value;
      for (let k = 0; k < i; k++) x[k] = (x[k] ?? 0) - (l.data[i * n + k] ?? 0) * value;
    }
  }
}
