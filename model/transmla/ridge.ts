/**
 * Ridge regression in float64: the solver of all closed-form fits, of converted layers (refit.ts) and of cut attention
 * (worker/schemes/fit-solve.ts). How strongly a feature is pulled towards its prior is a choice. In proportion to its own
 * energy: the last columns of a latent, whose energies span orders of magnitude, are fitted as much as the first, which
 * converted layers need (4 % of perplexity at a third of the cache). By the mean energy of all: weak features stay where
 * they were, which is better for corrections, fitted on less text (1 %; docs/log.md).
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

export interface RidgePull {
  readonly strength: number;
  /** own: of each feature; mean: of all. */
  readonly energy: 'own' | 'mean';
}

/**
 * The W that minimises sum |target - W f|^2 + strength sum_i E_i |w_i - prior_i|^2, E_i the energy of feature i or the
 * mean energy, w_i its column of W: W = (T + P D) (F + D)^-1 with D = strength diag(E).
 * @param gram F = sum of f f^T [features, features], symmetric but for rounding
 * @param cross T = sum of target f^T [targets, features]  @param prior P [targets, features]
 */
export function ridge(gram: Dense, cross: Dense, prior: Dense, { strength, energy }: RidgePull): RidgeFit {
  const n = gram.rows;
  const energies = Float64Array.from({ length: n }, (_, i) => gram.data[i * n + i] ?? 0);
  const total = energies.reduce((sum, value) => sum + value, 0);
  // Nothing was seen: the prior stays.
  if (!(total > 0)) return { map: prior, saved: 0 };
  const mean = total / n;
  const pulls = energies.map((own) => 1e-12 * total + strength * (energy === 'mean' ? mean : own + leastEnergy * mean));
  const system = zeros(n, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      // Float32 sums of a rank need not be symmetric to the last bit.
      const product = ((gram.data[i * n + j] ?? 0) + (gram.data[j * n + i] ?? 0)) / 2;
      system.data[i * n + j] = product + (i === j ? (pulls[i] ?? 0) : 0);
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
