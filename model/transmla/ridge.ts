/**
 * Ridge regression in float64: the solver of all closed-form fits, of converted layers (refit.ts) and of cut attention
 * (worker/schemes/fit-solve.ts). Every feature is pulled in proportion to its own energy. A pull that is the same for
 * all, as the textbook has it, leaves weak features where they were: the last columns of a latent, whose energies span
 * orders of magnitude, were then hardly fitted at all (docs/log.md: 4 % of perplexity at a third of the cache).
 */
import type { Dense } from './dense.ts';
import { zeros } from './dense.ts';
import { solveRows } from './cholesky.ts';

/** Of a feature that is nearly never there, relative to the mean energy: keeps the equations definite. */
const leastEnergy = 1e-4;

export interface RidgeFit {
  /** W [targets, features] */
  readonly map: Dense;
  /** sum |target - W f|^2 less the energy of the targets */
  readonly saved: number;
}

/**
 * The W that minimises sum |target - W f|^2 + strength sum_i E_i |w_i - prior_i|^2, E_i the energy of feature i, w_i its
 * column of W: W = (T + P D) (F + D)^-1 with D = strength diag(E).
 * @param gram F = sum of f f^T [features, features], symmetric but for rounding
 * @param cross T = sum of target f^T [targets, features]  @param prior P [targets, features]
 */
export function ridge(gram: Dense, cross: Dense, prior: Dense, strength: number): RidgeFit {
  const n = gram.rows;
  const energies = Float64Array.from({ length: n }, (_, i) => gram.data[i * n + i] ?? 0);
  const total = energies.reduce((sum, energy) => sum + energy, 0);
  // Nothing was seen: the prior stays.
  if (!(total > 0)) return { map: prior, saved: 0 };
  const pulls = energies.map((energy) => strength * energy + 1e-12 * total + (strength * leastEnergy * total) / n);
  const system = zeros(n, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      // Float32 sums of a rank need not be symmetric to the last bit.
      const mean = ((gram.data[i * n + j] ?? 0) + (gram.data[j * n + i] ?? 0)) / 2;
      system.data[i * n + j] = mean + (i === j ? (pulls[i] ?? 0) : 0);
    }
  }
  const pullOf = (place: number): number => pulls[place % n] ?? 0;
  const right = { ...cross, data: cross.data.map((value, i) => value + pullOf(i) * (prior.data[i] ?? 0)) };
  const map = solveRows(system, right);
  // W F = T + (P - W) D makes |target - W f|^2 less the targets' energy sum W ((P - W) D - T).
  const saved = map.data.reduce(
    (sum, w, i) => sum + w * (pullOf(i) * ((prior.data[i] ?? 0) - w) - (cross.data[i] ?? 0)),
    0,
  );
  return { map, saved };
}
