/**
 * What a rank keeps of every token: one tensor (latent) or two (keys, values) per layer, rows of all slots one after
 * the other. Memory is taken once, zero-filled, so that padded rows read as zeros. Who may write which row is decided
 * by forward.ts; which columns a row has, by the shard plan.
 */
import { invariant } from '../config/errors.ts';
import type { ModelConfig } from '../config/model-config.ts';
import { size, type RankPlan, type ShardPlan } from '../config/shard-plan.ts';
import type { Kernels, Tensor, TensorType } from './kernels/kernels.ts';

/** Programs read whole blocks of rows and mask the rest, so that one program serves this many lengths. */
export const cacheBlock = 256;

export type LayerCache =
  | { readonly kind: 'keyValue'; readonly keys: Tensor; readonly values: Tensor } // [slots * rowsPerSlot, localKvHeads * headDim]
  | { readonly kind: 'latent'; readonly rows: Tensor }; // [slots * rowsPerSlot, latentShard + ropeDim]

export interface CacheOptions {
  readonly type: TensorType;
  readonly contextTokens: number;
  readonly slots: number;
  /** Prefill runs exact attention although this rank keeps only a shard: it needs the whole latent meanwhile. */
  readonly exactPrefill: boolean;
}

export class LatentCache {
  readonly layers: readonly LayerCache[];
  /** contextTokens, rounded up to whole blocks. */
  readonly rowsPerSlot: number;
  readonly bytesPerToken: number;
  /**
   * Whole latents of the sequence that is being prefilled, for one layer at a time: every layer overwrites it.
   * [rowsPerSlot, latentDim + ropeDim]; absent when the cache itself holds the whole latent.
   */
  readonly staging: Tensor | undefined;

  constructor(kernels: Kernels, model: ModelConfig, plan: ShardPlan, rank: RankPlan, options: CacheOptions) {
    this.rowsPerSlot = paddedLength(options.contextTokens);
    const rows = this.rowsPerSlot * options.slots;
    const attention = model.attention;
    const widths = cacheWidths(model, rank);
    this.layers = Array.from({ length: model.numLayers }, (): LayerCache => {
      if (attention.kind === 'mla') return { kind: 'latent', rows: kernels.allocate(options.type, [rows, widths.row]) };
      return {
        kind: 'keyValue',
        keys: kernels.allocate(options.type, [rows, widths.row]),
        values: kernels.allocate(options.type, [rows, widths.row]),
      };
    });
    this.bytesPerToken = model.numLayers * widths.numbers * bytesPerNumber(options.type);
    this.staging =
      attention.kind === 'mla' && plan.latentGroups > 1 && options.exactPrefill
        ? kernels.allocate(options.type, [this.rowsPerSlot, attention.latentDim + attention.ropeDim])
        : undefined;
  }
}

/** The number of rows that a program reads for a sequence of `length` tokens. */
export function paddedLength(length: number): number {
  return Math.max(1, Math.ceil(length / cacheBlock)) * cacheBlock;
}

function cacheWidths(model: ModelConfig, rank: RankPlan): { row: number; numbers: number } {
  const attention = model.attention;
  if (attention.kind === 'mla') {
    const row = size(rank.latent) + attention.ropeDim;
    return { row, numbers: row };
  }
  const row = size(rank.kvHeads) * attention.headDim;
  return { row, numbers: 2 * row };
}

function bytesPerNumber(type: TensorType): number {
  if (type === 'f32') return 4;
  if (type === 'f16') return 2;
  invariant(type === 'q8_0', `cache type ${type} is not one of f32, f16, q8_0`);
  return 34 / 32;
}
