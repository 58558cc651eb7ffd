/** What every program of a rank is built from, and how numbers reach tensors. */
import type { ModelConfig } from '../config/model-config.ts';
import type { Kernels } from './kernels/kernels.ts';
import type { LatentCache } from './latent-cache.ts';
import type { RankWeights } from './weights.ts';

export interface RankParts {
  readonly kernels: Kernels;
  readonly model: ModelConfig;
  readonly weights: RankWeights;
  readonly cache: LatentCache;
}

export function bytesOf(values: Float32Array | Int32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
