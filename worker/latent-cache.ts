/**
 * What a rank keeps of every token: one tensor (latent) or two (keys, values) per layer, rows of all slots one after
 * the other. Memory is taken once, zero-filled, so that padded rows read as zeros. Who may write which row is decided
 * by forward.ts; which columns a row has, by the shard plan.
 */
import type { ModelConfig } from '../config/model-config.ts';
import { nearTokens } from '../config/near-tokens.ts';
import { recentNumbers } from '../config/recent-numbers.ts';
import { heldPositions, latentWidth, size, type Deal, type RankPlan, type ShardPlan } from '../config/shard-plan.ts';
import type { Kernels, Tensor, TensorType } from './kernels/kernels.ts';
import { RecentTokens } from './schemes/recent-tokens.ts';
import { allocateValues, type ValueCache } from './value-cache.ts';

/** Programs read whole blocks of rows and mask the rest, so that one program serves this many lengths. */
export const cacheBlock = 256;

export type LayerCache =
  | {
      readonly kind: 'keyValue';
      readonly keys: Tensor; // [slots * rowsPerSlot, localKvHeads * headDim]
      readonly values: ValueCache;
    }
  | { readonly kind: 'latent'; readonly rows: Tensor }; // [slots * rowsPerSlot (+ 1 spare), latentShard + ropeShard]

/** Which row of a slot, and of the cache, holds which position. */
export interface RowLayout {
  /** The most tokens that a rank keeps of a sequence, rounded up to whole read steps. */
  readonly rowsPerSlot: number;
  /** Programs read multiples of this many rows. */
  readonly readStep: number;
  readonly deal: Deal;
  /** Written for tokens that other ranks keep, never read. */
  readonly spareRow: number;
}

export interface CacheOptions {
  readonly type: TensorType;
  readonly contextTokens: number;
  readonly slots: number;
  /** Prefill runs exact attention although this rank keeps only a shard: it needs the whole latent meanwhile. */
  readonly exactPrefill: boolean;
}

export class LatentCache {
  readonly layers: readonly LayerCache[];
  readonly layout: RowLayout;
  readonly rowsPerSlot: number;
  /**
   * Memory of a token's rows in all layers, measured from the tensors as the backend holds them. On average: a rank to
   * which positions are dealt keeps one of several tokens.
   */
  readonly bytesPerToken: number;
  /** Everything that was allocated here: rows of all slots, whole latents kept beside them, and the staging. */
  readonly allocatedBytes: number;
  /**
   * Whole latents of the sequence that is being prefilled, for one layer at a time: every layer overwrites it.
   * [rowsPerSlot, latentDim + ropeDim]; absent when the cache itself holds the whole latent.
   */
  readonly staging: Tensor | undefined;
  /** Absent where a rank keeps nothing beside its shard. */
  readonly recent: RecentTokens | undefined;

  constructor(kernels: Kernels, model: ModelConfig, plan: ShardPlan, rank: RankPlan, options: CacheOptions) {
    this.layout = rowLayout(rank.positions, options);
    this.rowsPerSlot = this.layout.rowsPerSlot;
    const { deal, spareRow } = this.layout;
    const rows = deal.parts > 1 ? spareRow + 1 : spareRow;
    const attention = model.attention;
    const width = rowWidth(model, rank);
    this.layers = Array.from({ length: model.numLayers }, (): LayerCache => {
      if (attention.kind === 'mla')
        return { kind: 'latent', rows: kernels.allocate(options.type, [rows, width], 'rows') };
      return {
        kind: 'keyValue',
        keys: kernels.allocate(options.type, [rows, width], 'rows'),
        values: allocateValues(kernels, options.type, rows, width),
      };
    });
    this.staging =
      attention.kind === 'mla' && plan.latentGroups > 1 && options.exactPrefill
        ? kernels.allocate(options.type, [this.rowsPerSlot, attention.latentDim + attention.ropeDim], 'rows')
        : undefined;
    const { exactTokens } = plan;
    const hasNear = nearTokens(model) !== undefined;
    const recentWidth = exactTokens.sinks + exactTokens.window > 0 ? recentNumbers(model, plan, rank) : 0;
    // Every rank knows which near tokens are kept, also one that has no heads to read them.
    this.recent =
      recentWidth > 0 || hasNear
        ? new RecentTokens(kernels, exactTokens, model.numLayers, options.slots, Math.max(1, recentWidth), hasNear)
        : undefined;
    const sizeOf = (tensors: readonly Tensor[]): number =>
      tensors.reduce((sum, tensor) => sum + kernels.sizeOf(tensor), 0);
    const rowBytes = sizeOf(this.layers.flatMap(tensorsOf));
    this.bytesPerToken = rowBytes / rows / deal.parts;
    this.allocatedBytes =
      rowBytes +
      sizeOf([
        ...(this.staging === undefined ? [] : [this.staging]),
        ...(this.recent?.layers ?? []),
        ...(this.recent?.kept?.layers ?? []),
      ]);
  }
}

function tensorsOf(layer: LayerCache): Tensor[] {
  if (layer.kind === 'latent') return [layer.rows];
  return [layer.keys, layer.values.order === 'rows' ? layer.values.rows : layer.values.numbers];
}

/** Equal on all ranks but for the deal's part: the first part is never smaller than another. */
function rowLayout(deal: Deal, { contextTokens, slots }: CacheOptions): RowLayout {
  // Multiples of 32 rows, about cacheBlock tokens in all parts together.
  const readStep = Math.ceil(cacheBlock / deal.parts / 32) * 32;
  const rowsPerSlot = paddedLength(heldPositions({ ...deal, part: 0 }, contextTokens), readStep);
  return { rowsPerSlot, readStep, deal, spareRow: slots * rowsPerSlot };
}

/** The number of rows that a program reads to see `rows` of them. */
export function paddedLength(rows: number, readStep: number): number {
  return Math.max(1, Math.ceil(rows / readStep)) * readStep;
}

/** Numbers of a token in one tensor of a layer. */
function rowWidth({ attention }: ModelConfig, rank: RankPlan): number {
  if (attention.kind === 'mla') return latentWidth(rank) + size(rank.ropeKey);
  return size(rank.kvHeads) * attention.headDim;
}
