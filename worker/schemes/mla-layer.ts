/** What schemes of latent caches read of a layer, narrowed once. */
import { invariant } from '../../config/errors.ts';
import type { MlaConfig, ModelConfig } from '../../config/model-config.ts';
import type { Segment } from '../attention-inputs.ts';
import { dim } from '../attention.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';
import type { LayerCache } from '../latent-cache.ts';
import type { MlaWeights } from '../mla-weights.ts';
import type { LayerWeights } from '../weights.ts';

export interface MlaLayer {
  readonly config: MlaConfig;
  readonly mla: MlaWeights;
  readonly rows: Tensor; // cache [rows, latentShard + ropeShard]
}

export function mlaLayer(model: ModelConfig, weights: LayerWeights, cache: LayerCache): MlaLayer {
  const config = model.attention;
  const mla = weights.attention;
  invariant(
    config.kind === 'mla' && mla?.kind === 'mla' && cache.kind === 'latent',
    'a scheme of latent caches on a layer without latent, or on a rank without heads',
  );
  return { config, mla, rows: cache.rows };
}

/** The cache rows that a segment reads. [1, cacheRows, columns] */
export function rowsOf(ops: Ops, rows: Tensor, segment: Segment): Tensor {
  const all = ops.reshape(rows, [1, dim(rows, 0), dim(rows, 1)]);
  return ops.slice(all, 1, segment.cacheStart, segment.cacheRows);
}
