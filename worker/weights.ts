/**
 * Loads this rank's share of every weight, and only that: ranged reads from the checkpoint, one tensor after another,
 * so that peak memory is the share plus one tensor. Which share a rank keeps stands here, next to the weight's shape.
 * Read next: mla-weights.ts for the latent projections.
 */
import type { GqaConfig } from '../config/model-config.ts';
import { size, times, type RankPlan, type ShardPlan } from '../config/shard-plan.ts';
import type { Checkpoint } from '../model/checkpoint.ts';
import type { LayerFit } from '../model/tpla/decode-fit.ts';
import { loadFeedForward, type LayerFeedForward } from './feed-forward.ts';
import type { Tensor } from './kernels/kernels.ts';
import { loadMla, type MlaWeights } from './mla-weights.ts';
import type { WeightUploader } from './weight-uploader.ts';

export interface RankWeights {
  /** Rows of this rank's part of the vocabulary. [localVocab, hidden] */
  readonly embedding: Tensor;
  /** When the model ties them: the embedding, or a copy of it in a layout for products. [localVocab, hidden] */
  readonly head: Tensor;
  readonly finalNorm: Tensor; // [hidden], replicated
  readonly layers: readonly LayerWeights[];
}

export interface LayerWeights extends LayerFeedForward {
  readonly attentionNorm: Tensor; // [hidden], replicated
  /** undefined: there are more ranks than heads and this one has none. */
  readonly attention: GqaWeights | MlaWeights | undefined;
  readonly feedForwardNorm: Tensor; // [hidden], replicated
  /** On the summed outputs of attention and feed-forward, on the host; undefined: the model has none. [hidden] */
  readonly postNorms: { readonly attention: Float32Array; readonly feedForward: Float32Array } | undefined;
}

export interface GqaWeights {
  readonly kind: 'gqa';
  readonly query: Tensor; // [localHeads * headDim, hidden]
  readonly queryBias: Tensor | undefined;
  /** Gains of the norms of each head, queries' and keys'. [headDim] */
  readonly headNorms: { readonly query: Tensor; readonly key: Tensor } | undefined;
  readonly key: Tensor; // [localKvHeads * headDim, hidden]
  readonly keyBias: Tensor | undefined;
  readonly value: Tensor; // [localKvHeads * headDim, hidden]
  readonly valueBias: Tensor | undefined;
  readonly output: Tensor; // [hidden, localHeads * headDim]: its product is partial
  /** On rank 0 only: the sum over ranks must contain it once. */
  readonly outputBias: Tensor | undefined; // [hidden]
  readonly frequencies: Tensor; // [headDim / 2]
  /** Local query heads that read each local KV head. [localKvHeads] */
  readonly queriesOfKvHead: readonly number[];
}

/** @throws ConfigError when the checkpoint is damaged or a tensor's type cannot be computed with. */
export async function loadWeights(
  checkpoint: Checkpoint,
  plan: ShardPlan,
  rank: RankPlan,
  rotations: readonly (Float32Array | undefined)[], // per layer: [r, r] or none
  uploader: WeightUploader,
  fits: readonly LayerFit[] | undefined, // corrections of cut attention, per layer
  energyShares: readonly Float64Array[] | undefined, // per layer [r], where decode norms shards alone
  onLayer: (layers: number) => Promise<void> = () => Promise.resolve(), // told how many are loaded
): Promise<RankWeights> {
  const model = checkpoint.config;
  const embedding = await uploader.table('embedding', rank.vocab);
  const head = model.tiedEmbeddings
    ? await uploader.matrixOfTable('embedding', embedding, rank.vocab)
    : await uploader.matrix('head', undefined, rank.vocab);
  const frequencies = uploader.values(Float32Array.from(model.rope.frequencies));
  const layers: LayerWeights[] = [];
  freeReadBuffers();
  for (let layer = 0; layer < model.numLayers; layer++) {
    const table = (await uploader.optionalVector('ropeFrequencies', layer)) ?? frequencies;
    layers.push({
      attentionNorm: await uploader.vector('attentionNorm', layer),
      attention: size(rank.heads) === 0 ? undefined : await loadAttention(layer, table),
      feedForwardNorm: await uploader.vector('feedForwardNorm', layer),
      postNorms: model.postNorms
        ? {
            attention: await uploader.floats('attentionPostNorm', layer),
            feedForward: await uploader.floats('feedForwardPostNorm', layer),
          }
        : undefined,
      ...(await loadFeedForward(model, rank, uploader, layer)),
    });
    freeReadBuffers();
    await onLayer(layer + 1);
  }
  return { embedding, head, finalNorm: await uploader.vector('finalNorm', undefined), layers };

  async function loadAttention(layer: number, table: Tensor): Promise<GqaWeights | MlaWeights> {
    if (model.attention.kind === 'mla')
      return await loadMla(
        checkpoint,
        plan,
        rank,
        uploader,
        layer,
        table,
        rotations[layer],
        fits?.[layer],
        energyShares?.[layer],
      );
    return await loadGqa(model.attention, model.numHeads, rank, uploader, layer, table);
  }
}

/**
 * What was read has been uploaded. Left to itself, the garbage collector lets tens of megabytes of such buffers pile up,
 * which count in the rank's peak. Present where the process was started with --expose-gc, as the coordinator does.
 */
function freeReadBuffers(): void {
  globalThis.gc?.({ type: 'minor' });
}

async function loadGqa(
  config: GqaConfig,
  numHeads: number,
  rank: RankPlan,
  uploader: WeightUploader,
  layer: number,
  frequencies: Tensor,
): Promise<GqaWeights> {
  const queryRows = times(rank.heads, config.headDim);
  const kvRows = times(rank.kvHeads, config.headDim);
  return {
    kind: 'gqa',
    query: await uploader.matrix('query', layer, queryRows),
    queryBias: await uploader.optionalVector('queryBias', layer, queryRows),
    headNorms: config.headNorms
      ? { query: await uploader.vector('queryNorm', layer), key: await uploader.vector('keyNorm', layer) }
      : undefined,
    key: await uploader.matrix('key', layer, kvRows),
    keyBias: await uploader.optionalVector('keyBias', layer, kvRows),
    value: await uploader.matrix('value', layer, kvRows),
    valueBias: await uploader.optionalVector('valueBias', layer, kvRows),
    output: await uploader.matrix('output', layer, undefined, queryRows),
    outputBias: rank.rank === 0 ? await uploader.optionalVector('outputBias', layer) : undefined,
    frequencies,
    queriesOfKvHead: queriesOfKvHead(rank, numHeads / config.numKvHeads),
  };
}

/** How many of the local query heads read each local KV head; the first and the last may be shared with other ranks. */
function queriesOfKvHead(rank: RankPlan, queriesPerKvHead: number): number[] {
  return Array.from({ length: size(rank.kvHeads) }, (_, i) => {
    const first = (rank.kvHeads.start + i) * queriesPerKvHead;
    return Math.min(rank.heads.end, first + queriesPerKvHead) - Math.max(rank.heads.start, first);
  });
}
