/**
 * The latent's own principal axes, for the runtime's `--reparam pca` (TPLA, arXiv 2508.15881): eigenvectors of the
 * second moment of what the cache would hold, whatever the attention does with it. The conversion itself leaves the
 * latent in the order of its weighted PCA (`--reparam weighted`). Read next: write-converted.ts.
 */
import type { MlaMaps } from './attention-maps.ts';
import { congruence, type Dense, rowsOf } from './dense.ts';
import { symmetricEigen } from './eigen.ts';

export interface LatentRotation {
  /** Row i is the i-th new basis vector: c' = vectors c. [r, r] */
  readonly vectors: Dense;
  /** Mean square of each coordinate of c', largest first. [r] */
  readonly energy: Float64Array;
}

/** @param moment second moment of [x; 1] per token [D + 1, D + 1] */
export function latentRotation(maps: MlaMaps, moment: Dense): LatentRotation {
  const { values, vectors } = symmetricEigen(congruence(rowsOf(maps.latentDown, 0, maps.latentDim), moment));
  return { vectors, energy: values };
}
